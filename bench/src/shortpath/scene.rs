//! One measurement's surroundings: hosts, a service, a tunnel to it, and an echo through the tunnel.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::echo::Echo;
use super::goals::{Metric, Sample};
use super::ground::Ground;
use super::peers::{PeerKind, Site, Tunnel, dial};
use super::service::{Duty, Service};
use super::trace::Trace;
use crate::load::drive::Clock;
use crate::peers::child::scratch_dir;

/// What every measurement needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Ours.
    pub(crate) binary: PathBuf,
    /// Short and few.
    pub(crate) quick: bool,
}

/// One measurement: who, and by which chance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) peer: PeerKind,
    /// The same for all peers of a round: same losses at the same times.
    pub(crate) seed: u64,
}

/// Distances in milliseconds there and back: the agent and the client are
/// `path / 4` from the internet, the server 2.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Distances {
    /// Client to agent.
    pub(crate) path: u32,
}

/// One way from the internet to the server, in milliseconds.
const SERVER_MS: f64 = 2.5;

impl Distances {
    /// Client to agent through the server, one way each of their four links, and back.
    pub(crate) fn relayed(self) -> f64 {
        f64::from(self.path) + 4.0 * SERVER_MS
    }

    /// Client to server.
    pub(crate) fn broker(self) -> f64 {
        f64::from(self.path) / 2.0 + 2.0 * SERVER_MS
    }

    /// The lab with these distances; `more` are further parameters, as in `agent-nat=symmetric`.
    pub(crate) fn topology(self, more: &str) -> String {
        let way = f64::from(self.path) / 4.0;
        let separator = if more.is_empty() { "" } else { "," };
        format!(
            "pair:client-link=delay={way}ms,agent-link=delay={way}ms,\
             server-link=delay={SERVER_MS}ms{separator}{more}"
        )
    }

    /// A round trip below this runs on the direct path: half-way to the relayed one. Nanoseconds.
    pub(crate) fn direct_ns(self) -> u64 {
        ns((f64::from(self.path) + self.relayed()) / 2.0)
    }
}

/// Milliseconds as nanoseconds.
pub(crate) fn ns(ms: f64) -> u64 {
    (ms * 1e6) as u64
}

/// Nanoseconds as milliseconds.
pub(crate) fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// A peer on its ground, with its server and agent up.
pub(crate) struct Scene<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) service: &'a Service,
    pub(crate) clock: Clock,
    pub(crate) peer: PeerKind,
    /// How long a session may take to find its path.
    pub(crate) patience: Duration,
}

/// Sets everything up, has `act` measure, and takes everything down.
///
/// # Errors
/// Something does not start, or as `act`.
pub(crate) fn within<T>(
    trial: Trial<'_>,
    ground: &Ground,
    duty: Duty,
    act: impl FnOnce(&Scene<'_>, &mut dyn Tunnel) -> Result<T>,
) -> Result<T> {
    let files = scratch_dir()?;
    let service = Service::start(ground, duty)?;
    let binary = &trial.setup.binary;
    let site = Site { ground, binary, files: files.path(), service: service.address() };
    let mut tunnel = trial.peer.start(site)?;
    let patience = if trial.setup.quick { SETTLED_WITHIN_QUICK } else { SETTLED_WITHIN };
    let (clock, peer) = (Clock::start(), trial.peer);
    let scene = Scene { ground, service: &service, clock, peer, patience };
    act(&scene, tunnel.as_mut())
}

/// As [`within`], in a lab with an echo service.
///
/// # Errors
/// As [`within`].
pub(crate) fn in_lab<T>(
    trial: Trial<'_>,
    topology: &str,
    act: impl FnOnce(&Scene<'_>, &mut dyn Tunnel) -> Result<T>,
) -> Result<T> {
    let ground = Ground::lab(topology, trial.seed)?;
    within(trial, &ground, Duty::Echo, act)
}

/// A session is settled within this, or never.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);
const SETTLED_WITHIN_QUICK: Duration = Duration::from_secs(6);

/// Answers after which a path of a peer without UDP counts as settled.
const SETTLED_ANSWERS: usize = 20;

impl Scene<'_> {
    /// Starts the client and an echo through it.
    ///
    /// # Errors
    /// No session, or nobody listens.
    pub(crate) fn begin(&self, tunnel: &mut dyn Tunnel, rate: f64) -> Result<Echo> {
        tunnel.client()?;
        let stream = dial(self.ground, tunnel.entry())?;
        Echo::start(stream, self.clock, rate)
    }

    /// As [`Scene::begin`], and says when the session was asked for, on the trace's clock: by the
    /// client itself where it does that and tells, else by the echo's first message.
    ///
    /// # Errors
    /// As [`Scene::begin`].
    pub(crate) fn begin_timed(&self, tunnel: &mut dyn Tunnel, rate: f64) -> Result<(Echo, u64)> {
        let echo = self.begin(tunnel, rate)?;
        let begun_ns = echo.now_ns();
        let asked_ns = tunnel.asked().map(|asked| {
            let ago = asked.elapsed().as_nanos() as u64;
            echo.now_ns().saturating_sub(ago)
        });
        Ok((echo, asked_ns.unwrap_or(begun_ns)))
    }

    /// As [`Scene::begin`], and returns when the echo runs on the best path the peer can have.
    ///
    /// # Errors
    /// It never does.
    pub(crate) fn settle(
        &self,
        tunnel: &mut dyn Tunnel,
        rate: f64,
        distances: Distances,
    ) -> Result<Echo> {
        let echo = self.begin(tunnel, rate)?;
        let direct = matches!(self.peer, PeerKind::Switchback | PeerKind::Iroh);
        let settled = |trace: &Trace| match direct {
            true => trace.runs_within(distances.direct_ns(), 0).map(drop),
            false => (answered(trace) >= SETTLED_ANSWERS).then_some(()),
        };
        if echo.until(self.patience, settled).is_none() {
            let path = tunnel.transport().unwrap_or_else(|| "not told".to_owned());
            let trace = echo.finish(Duration::ZERO);
            let broken = trace.broken.map_or_else(String::new, |why| format!("; {why}"));
            let count = trace.messages.iter().filter(|message| message.back_ns.is_some()).count();
            bail!(
                "not on its path within {:?}: transport {path}, {count} of {} \
                 messages answered{broken}",
                self.patience,
                trace.messages.len()
            );
        }
        Ok(echo)
    }

    /// What becomes of the echo after something happened at `from_ns`: waits until it is answered
    /// again, at most `limit`, and watches it for `settle` more.
    ///
    /// # Errors
    /// Nothing could be observed.
    pub(crate) fn aftermath(
        &self,
        echo: Echo,
        from_ns: u64,
        limit: Duration,
        settle: Duration,
    ) -> Result<Aftermath> {
        let recovered = echo.until(limit, |trace| trace.answered_after(from_ns));
        if recovered.is_some() {
            std::thread::sleep(settle);
        }
        let until_ns = echo.now_ns();
        let trace = echo.finish(LINGER);
        let silence = trace.longest_silence(from_ns, until_ns).context("no time has passed")?;
        let dead = recovered.is_none() || trace.broken.is_some();
        Ok(Aftermath { silence_ms: ms(silence), dead, trace })
    }
}

/// For what is on its way when an echo ends: longer than any round trip here.
pub(crate) const LINGER: Duration = Duration::from_millis(500);

/// What an event did to an echo.
pub(crate) struct Aftermath {
    /// The longest time without an answer, in milliseconds.
    pub(crate) silence_ms: f64,
    /// It broke, or was not answered again in time.
    pub(crate) dead: bool,
    pub(crate) trace: Trace,
}

impl Aftermath {
    /// The stall of a survivor, or that it died.
    pub(crate) fn sample(&self, patience: Duration) -> Sample {
        let alive = (!self.dead).then_some(self.silence_ms);
        let sample =
            Sample::default().with(DEAD, f64::from(u8::from(self.dead))).with_some(STALL, alive);
        match (&self.trace.broken, self.dead) {
            (Some(why), _) => sample.told("died", why.clone()),
            (None, true) => sample.told("died", format!("no answer within {patience:?}")),
            (None, false) => sample,
        }
    }
}

/// The longest time without an answer, of connections that went on.
pub(crate) const STALL: Metric = Metric::ms("stall");

/// Connections that broke or were not answered again: 1 or 0 each.
pub(crate) const DEAD: Metric = Metric { name: "dead", unit: "sessions" };

/// Messages that came back.
pub(crate) fn answered(trace: &Trace) -> usize {
    trace.messages.iter().filter(|message| message.back_ns.is_some()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_what_their_topology_makes() {
        let distances = Distances { path: 50 };
        assert_eq!((distances.relayed(), distances.broker()), (60.0, 30.0));
        assert_eq!(distances.direct_ns(), 55_000_000);
        let topology: switchback_bench::lab::Topology =
            distances.topology("agent-nat=symmetric").parse().unwrap();
        assert_eq!(topology.links[0].settings.up.delay, Duration::from_micros(12_500));
    }
}
