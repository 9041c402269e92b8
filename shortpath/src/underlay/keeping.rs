//! What is known of the network around the process: our candidates, always fresh.
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::Inner;
use super::exchange::{EAR, Ear, Heard};
use super::ignored;
use super::interfaces::{Changes, host_candidates, source_to};
use super::sockets::Bound;
use crate::path::{
    AgeLimit, Candidate, Keeper, KeeperConfig, KeeperEvent, KeeperView, LocalId, Mapping,
    MappingLifetime, NetworkFilter, Route, Shift, Shifts,
};
use crate::time::{now, sleep_until};

/// What sessions need to know.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Our candidates and their sockets.
    pub(super) locals: Vec<(Candidate, LocalId)>,
    /// The gateways' STUN and TURN addresses.
    pub(super) servers: Vec<SocketAddr>,
    /// Goes up whenever addresses or mappings change.
    pub(super) network_changes: u64,
    /// What is known of the NAT before each socket.
    pub(super) nats: Vec<KeeperView>,
    /// Where the NAT ends mappings at an age: which of two sockets speak, and which of them shall not be relied on.
    pub(super) shifts: KnownShifts,
    /// A server was asked in vain, and none ever answers.
    blocked: bool,
    /// The port that the router forwards to a socket.
    mapped: Option<(Candidate, LocalId)>,
}

/// See [`crate::path::Shifts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KnownShifts {
    /// The least age that mappings reach, if it is worth shifting.
    pub(super) least: Option<Duration>,
    /// The twin speaks.
    pub(super) twin: bool,
    /// The socket whose mapping ends soon.
    pub(super) retiring: Option<LocalId>,
}

impl Known {
    /// The pause after which no mapping is known to be lost: the shortest of our sockets'.
    pub(super) fn keepalive(&self) -> Option<Duration> {
        self.nats.iter().map(|nat| Duration::from_millis(nat.keepalive_ms)).min()
    }

    /// What the router forwards to us; true when that is another address than before.
    pub(super) fn set_mapped(&mut self, mapped: Option<(Candidate, LocalId)>) -> bool {
        let before = std::mem::replace(&mut self.mapped, mapped);
        if before == mapped {
            return false;
        }
        self.locals.retain(|known| Some(*known) != before);
        add(&mut self.locals, mapped);
        true
    }

    /// What our side of the network makes hard or impossible.
    pub(super) fn nat_reasons(&self) -> impl Iterator<Item = &'static str> {
        let hard = |nat: &KeeperView| {
            matches!(
                nat.mapping,
                Mapping::AddressDependent | Mapping::AddressAndPortDependent | Mapping::Dependent
            )
        };
        let reasons = [
            self.blocked.then_some("udp_egress_blocked"),
            self.nats.iter().any(hard).then_some("hard_nat"),
        ];
        reasons.into_iter().flatten()
    }
}

/// Reads the machine's addresses, for who asks before [`keep`] has run.
pub(super) fn look(inner: &Inner) {
    let hosts = host_candidates(&inner.config, &inner.wire.sockets);
    inner.known.send_modify(|known| known.locals = hosts);
}

/// Keeps [`Known`] fresh until the underlay ends.
pub(super) async fn keep(
    inner: Arc<Inner>,
    servers: watch::Receiver<Vec<SocketAddr>>,
    learnt: watch::Receiver<MappingLifetime>,
) {
    let (ear, hears) = mpsc::channel(EAR);
    let keeper =
        |socket: &Bound| (socket.id, Keeper::new(now(), config_of(socket.ipv6, socket.port)));
    let own = inner.wire.sockets.iter().filter(|socket| !socket.managed);
    let keepers = own.map(keeper).collect();
    Keeping { inner, keepers, ear, silent: false, shifts: Shifts::default(), lacks_twin: false }
        .run(hears, servers, learnt)
        .await;
}

fn config_of(ipv6: bool, port: u16) -> KeeperConfig {
    let any = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    KeeperConfig::new(Some(SocketAddr::new(any, port)), Vec::new())
}

/// Of a mapping's life: so often is looked whether it is time for the next shift.
const LOOKS: u32 = 40;
/// But not more often: each look reads the machine's addresses. Of the shortest life that is shifted, a sixteenth.
const LOOK_MIN: Duration = Duration::from_millis(250);

struct Keeping {
    inner: Arc<Inner>,
    keepers: Vec<(LocalId, Keeper)>,
    ear: Ear,
    /// Some server did not answer.
    silent: bool,
    shifts: Shifts,
    /// No second socket can be had within the configured ports.
    lacks_twin: bool,
}

impl Keeping {
    async fn run(
        mut self,
        mut hears: mpsc::Receiver<Heard>,
        mut servers: watch::Receiver<Vec<SocketAddr>>,
        mut learnt: watch::Receiver<MappingLifetime>,
    ) {
        let mut changes = Changes::new();
        self.set_servers(&servers.borrow_and_update().clone());
        loop {
            let (shifts, look) = self.arrange_shifts();
            let rebound = self.drain();
            self.publish(rebound, shifts);
            let due = self.keepers.iter().filter_map(|(_, keeper)| keeper.poll_timeout()).min();
            let due = [due, look].into_iter().flatten().min();
            let inner = Arc::clone(&self.inner);
            tokio::select! {
                () = inner.stop.cancelled() => return,
                () = inner.doubt.notified() => {
                    self.keepers.iter_mut().for_each(|(_, keeper)| keeper.doubt(now()));
                }
                Some(heard) = hears.recv() => self.hear(&heard),
                changed = changes.next() => if changed { self.network_changed() },
                changed = servers.changed() => match changed {
                    Ok(()) => self.set_servers(&servers.borrow_and_update().clone()),
                    Err(_) => return,
                },
                Ok(()) = learnt.changed() => self.learn(*learnt.borrow_and_update()),
                () = sleep_until(due) => {
                    self.keepers.iter_mut().for_each(|(_, keeper)| keeper.handle_timeout(now()));
                }
            }
        }
    }

    /// Each socket asks the servers of its family.
    fn set_servers(&mut self, servers: &[SocketAddr]) {
        self.silent = false;
        for (id, keeper) in &mut self.keepers {
            let ipv6 = self.inner.wire.is_ipv6(*id);
            let fitting = servers.iter().filter(|server| server.is_ipv6() == ipv6);
            keeper.set_servers(now(), fitting.copied().collect());
        }
        self.inner.known.send_if_modified(|known| {
            let changed = known.servers != servers;
            known.servers = servers.to_vec();
            changed
        });
    }

    fn hear(&mut self, heard: &Heard) {
        let (local, remote) = (heard.route.local, heard.route.remote);
        if let Some((_, keeper)) = self.keepers.iter_mut().find(|(id, _)| *id == local) {
            keeper.handle_packet(now(), remote, &heard.datagram);
            ignored::add(&self.inner.wire.counters.stun_astray, keeper.take_astray());
        }
    }

    /// All IPv4 sockets are behind the same NAT.
    fn learn(&mut self, found: MappingLifetime) {
        for (id, keeper) in &mut self.keepers {
            if !self.inner.wire.is_ipv6(*id) {
                keeper.learn_lifetime(found);
            }
        }
    }

    fn network_changed(&mut self) {
        self.silent = false;
        self.keepers.iter_mut().for_each(|(_, keeper)| keeper.network_changed(now()));
        self.inner.known.send_modify(|known| known.network_changes += 1);
    }

    /// Sends what the keepers want sent; true when a NAT has bound one of our sockets anew.
    fn drain(&mut self) -> bool {
        let mut rebound = false;
        let mapped = self.inner.known.borrow().mapped;
        for (local, keeper) in &mut self.keepers {
            let ours = mapped.filter(|(_, id)| id == local);
            keeper.set_forwarded(ours.map(|(candidate, _)| candidate.address));
            while let Some(event) = keeper.poll_event() {
                match event {
                    KeeperEvent::Changed => {}
                    KeeperEvent::Rebound { .. } => rebound = true,
                    KeeperEvent::Silent(_) => self.silent = true,
                }
            }
            while let Some((remote, datagram)) = keeper.poll_transmit() {
                self.inner.wire.send_stun(&self.ear, Route { local: *local, remote }, &datagram);
            }
        }
        rebound
    }

    /// Which of the two IPv4 sockets speak, and when to look again.
    fn arrange_shifts(&mut self) -> (KnownShifts, Option<Instant>) {
        let (now, twin) = (now(), self.inner.wire.twin_id());
        let ages = |of: LocalId| {
            let keeper = self.keepers.iter().find(|(id, _)| *id == of);
            keeper.and_then(|(_, keeper)| keeper.mapping_age(now))
        };
        let first = self.keepers.iter().find(|(id, _)| !self.inner.wire.is_ipv6(*id));
        let Some((first, limit)) = first.map(|(id, keeper)| (*id, keeper.age_limit())) else {
            return (KnownShifts::default(), None);
        };
        let limit = limit.filter(|limit| limit.is_worth_shifting() && !self.lacks_twin);
        let roster = self.shifts.arrange(limit, ages(first), ages(twin));
        self.let_twin_speak(roster.twin);
        for (_, keeper) in self.keepers.iter_mut().filter(|(id, _)| *id == twin) {
            keeper.learn_age_limit(limit);
        }
        let retiring = roster.retiring.map(|shift| match shift {
            Shift::First => first,
            Shift::Twin => twin,
        });
        let shifts = KnownShifts {
            least: limit.map(|limit| limit.least),
            twin: roster.twin && !self.lacks_twin,
            retiring,
        };
        (shifts, limit.map(|limit| now + look_after(limit)))
    }

    fn let_twin_speak(&mut self, speaks: bool) {
        let twin = self.inner.wire.twin_id();
        let spoke = self.keepers.iter().any(|(id, _)| *id == twin);
        if spoke == speaks || self.lacks_twin {
            return;
        }
        match self.inner.wire.let_twin_speak(speaks, &self.inner.config) {
            Ok(_) if !speaks => self.keepers.retain(|(id, _)| *id != twin),
            Ok(port) => {
                let mut config = config_of(false, port);
                let servers = self.inner.known.borrow().servers.clone();
                config.servers = servers.into_iter().filter(SocketAddr::is_ipv4).collect();
                self.keepers.push((twin, Keeper::new(now(), config)));
            }
            Err(error) => {
                tracing::info!(%error, "no second socket, although mappings end at an age");
                self.lacks_twin = true;
            }
        }
    }

    fn publish(&self, rebound: bool, shifts: KnownShifts) {
        let mut locals = host_candidates(&self.inner.config, &self.inner.wire.sockets);
        for (id, keeper) in &self.keepers {
            if self.may_offer_seen(*id) {
                add(&mut locals, keeper.candidates().into_iter().map(|candidate| (candidate, *id)));
            }
        }
        let nats: Vec<_> = self.keepers.iter().map(|(_, keeper)| keeper.view()).collect();
        let answered =
            nats.iter().flat_map(|nat| &nat.servers).any(|(_, mapped, _)| mapped.is_some());
        let blocked = self.silent && !answered;
        self.inner.known.send_if_modified(|known| {
            add(&mut locals, known.mapped);
            let moved = known.locals != locals;
            let news = moved || rebound || known.blocked != blocked || known.shifts != shifts;
            known.shifts = shifts;
            known.network_changes += u64::from(moved || rebound);
            (known.locals, known.nats, known.blocked) = (locals, nats, blocked);
            news
        });
    }

    /// What servers see of a socket stands for the address that packets to them leave from: it is offered only if policy allows
    /// that one, as with an interface's own.
    fn may_offer_seen(&self, id: LocalId) -> bool {
        let networks = &self.inner.config.networks;
        if *networks == NetworkFilter::default() {
            return true;
        }
        let ipv6 = self.inner.wire.is_ipv6(id);
        let known = self.inner.known.borrow();
        let mut asked = known.servers.iter().filter(|server| server.is_ipv6() == ipv6);
        asked.all(|server| source_to(*server).is_none_or(|base| networks.allows(base)))
    }
}

/// The pause before the next look.
fn look_after(limit: AgeLimit) -> Duration {
    (limit.least / LOOKS).max(LOOK_MIN)
}

/// Adds what is new: what a server sees, or a router forwards, is our own address where no NAT is.
fn add(
    locals: &mut Vec<(Candidate, LocalId)>,
    more: impl IntoIterator<Item = (Candidate, LocalId)>,
) {
    for (candidate, id) in more {
        if !locals.iter().any(|(known, _)| known.address == candidate.address) {
            locals.push((candidate, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_nat_makes_us_look_more_than_four_times_a_second() {
        for least in [1, 40, 4_000, 9_999, 600_000].map(Duration::from_millis) {
            let pause = look_after(AgeLimit { least, most: least });
            assert!(pause >= Duration::from_millis(250) && pause >= least / LOOKS, "{pause:?}");
        }
    }
}
