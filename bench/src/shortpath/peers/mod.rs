//! What carries an application's connection from the client to the service: ours and its rivals.

mod iroh;
mod quinn;
mod rathole;
mod ssh;
mod switchback;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rustix::process::Pid;
use serde_json::Value;

use self::switchback::{Carriers, Switchback};
use super::ground::{Ground, Host};
use crate::peers::Skip;
use crate::peers::program::{find, required, version};

/// Who can be measured. Not everybody takes part in every experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerKind {
    /// Ours: TCP first, then the best UDP path
    Switchback,
    /// Ours without TCP: the direct UDP path only
    SwitchbackUdp,
    /// Ours without UDP: TCP through the gateway only
    SwitchbackTcp,
    /// A TCP tunnel over iroh, with a relay of its own (bench/peers/iroh-tunnel)
    Iroh,
    /// QUIC alone by quinn, where no NAT is between the ends
    Quinn,
    /// rathole over plain TCP, through its server
    Rathole,
    /// OpenSSH `ssh -R`, through its server
    Ssh,
    /// Our relay alone (engine's example turn); only `turn`
    SwitchbackTurn,
    /// coturn; only `turn`
    Coturn,
}

impl PeerKind {
    /// The name in reports and flags.
    pub(crate) fn name(self) -> &'static str {
        match self {
            PeerKind::Switchback => "switchback",
            PeerKind::SwitchbackUdp => "switchback-udp",
            PeerKind::SwitchbackTcp => "switchback-tcp",
            PeerKind::Iroh => "iroh",
            PeerKind::Quinn => "quinn",
            PeerKind::Rathole => "rathole",
            PeerKind::Ssh => "ssh",
            PeerKind::SwitchbackTurn => "switchback-turn",
            PeerKind::Coturn => "coturn",
        }
    }

    /// It is ours.
    pub(crate) fn is_ours(self) -> bool {
        use PeerKind::{Coturn, Iroh, Quinn, Rathole, Ssh};
        !matches!(self, Iroh | Quinn | Rathole | Ssh | Coturn)
    }

    /// Whether it can be started on this machine.
    ///
    /// # Errors
    /// Why not, and how to get it.
    pub(crate) fn available(self, binary: &Path) -> Result<(), Skip> {
        let built = |path: &Path, remedy: &str| match path.is_file() {
            true => Ok(()),
            false => Err(Skip {
                reason: format!("there is no {}", path.display()),
                remedy: remedy.to_owned(),
            }),
        };
        match self {
            PeerKind::Switchback | PeerKind::SwitchbackUdp | PeerKind::SwitchbackTcp => {
                built(binary, "cargo build --release builds it, --binary PATH names another")
            }
            PeerKind::SwitchbackTurn => built(&turn_program(binary), TURN_REMEDY),
            PeerKind::Iroh => required("iroh-tunnel").map(drop),
            PeerKind::Quinn => Ok(()),
            PeerKind::Rathole => required("rathole").map(drop),
            PeerKind::Ssh => ["sshd", "ssh", "ssh-keygen", "id"]
                .into_iter()
                .try_for_each(|name| required(name).map(drop)),
            PeerKind::Coturn => ["turnserver", "turnutils_uclient", "turnutils_peer"]
                .into_iter()
                .try_for_each(|name| match find(name) {
                    Some(_) => Ok(()),
                    None => Err(Skip {
                        reason: format!("{name} is not installed"),
                        remedy: "apt-get install coturn".to_owned(),
                    }),
                }),
        }
    }

    /// What exactly is measured, as the program itself tells.
    pub(crate) fn version(self, binary: &Path) -> String {
        let told = match self {
            PeerKind::Iroh => Ok("iroh 1.4.1, library defaults".to_owned()),
            PeerKind::Quinn => Ok("quinn 0.11, library defaults".to_owned()),
            PeerKind::Rathole => version("rathole", "--help"),
            PeerKind::Ssh => version("ssh", "-V"),
            PeerKind::Coturn => version("turnserver", "--version"),
            _ => crate::peers::program::answer(binary, "--version"),
        };
        told.unwrap_or_else(|error| format!("unknown: {error:#}"))
    }

    /// Starts its server and its agent's end, for sessions to `service`; returns when a client may
    /// come.
    ///
    /// # Errors
    /// Something does not start.
    pub(crate) fn start<'a>(self, site: Site<'a>) -> Result<Box<dyn Tunnel + 'a>> {
        Ok(match self {
            PeerKind::Switchback => Box::new(Switchback::start(site, Carriers::All)?),
            PeerKind::SwitchbackUdp => Box::new(Switchback::start(site, Carriers::Udp)?),
            PeerKind::SwitchbackTcp => Box::new(Switchback::start(site, Carriers::Tcp)?),
            PeerKind::Iroh => Box::new(iroh::Iroh::start(site)?),
            PeerKind::Quinn => Box::new(quinn::Quinn::start(site)?),
            PeerKind::Rathole => Box::new(rathole::Rathole::start(site)?),
            PeerKind::Ssh => Box::new(ssh::Ssh::start(site)?),
            PeerKind::SwitchbackTurn | PeerKind::Coturn => {
                anyhow::bail!("{} carries no connections", self.name())
            }
        })
    }
}

/// Our relay as a program of its own: built beside the gateway.
pub(crate) fn turn_program(binary: &Path) -> PathBuf {
    binary.with_file_name("examples").join("turn")
}

const TURN_REMEDY: &str = "cargo build --release -p switchback-engine --example turn";

/// Where a tunnel is set up.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) ground: &'a Ground,
    /// Ours.
    pub(crate) binary: &'a Path,
    /// For keys, configurations and databases; deleted afterwards.
    pub(crate) files: &'a Path,
    /// What sessions are for, as the agent reaches it.
    pub(crate) service: SocketAddr,
}

impl Site<'_> {
    /// An address at the server.
    pub(crate) fn server(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ground.server(), port)
    }

    /// Writes a configuration and returns its path.
    ///
    /// # Errors
    /// No space, mostly.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.files.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Until somebody listens there, asked at the server's host.
    ///
    /// # Errors
    /// Nobody does within [`READY_WITHIN`].
    pub(crate) fn wait_for(&self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let listens = || Ok(TcpStream::connect(address).is_ok());
        while !self.ground.enter(Host::Server, listens)? {
            ensure!(Instant::now() < deadline, "nobody listens on {address}");
            thread::sleep(RETRY);
        }
        Ok(())
    }
}

/// A peer whose server and agent are up.
pub(crate) trait Tunnel {
    /// Starts the client's end. For rivals without one, returns when the tunnel works.
    ///
    /// # Errors
    /// It does not start.
    fn client(&mut self) -> Result<()>;

    /// Where an application at the client dials.
    fn entry(&self) -> SocketAddr;

    /// When the client asked for its session, if it did so by itself; otherwise the first
    /// application to dial does. Waits until it is known.
    fn asked(&self) -> Option<Instant> {
        None
    }

    /// When the client was signed in, if it tells.
    fn signed_in(&self) -> Option<Instant> {
        None
    }

    /// Starts the client's end so that it stays connected, and a session begins with a first connection
    /// and ends [`IDLE`] after the last. Returns when it is connected and at rest.
    ///
    /// # Errors
    /// It does not start, or there is no such client.
    fn client_on_demand(&mut self) -> Result<()> {
        anyhow::bail!("its client has no sessions on demand")
    }

    /// What carries the session now, as the peer calls it; `None` if it does not tell.
    fn transport(&self) -> Option<String> {
        None
    }

    /// Everything it tells about the session; `Null` if it tells nothing.
    fn session(&self) -> Value {
        Value::Null
    }

    /// SIGKILL for its server.
    fn kill_server(&mut self);

    /// Starts its server again with the same state; returns when it listens.
    ///
    /// # Errors
    /// It does not start.
    fn restart_server(&mut self) -> Result<()>;

    /// The processes at the two ends.
    fn ends(&self) -> Vec<Pid>;

    /// The server's processes.
    fn servers(&self) -> Vec<Pid>;
}

/// How long a session on demand outlasts its last connection.
pub(crate) const IDLE: Duration = Duration::from_millis(200);

/// The longest a program may take until it is ready, on a busy machine.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(20);

/// Between attempts to reach what is about to come up.
pub(crate) const RETRY: Duration = Duration::from_millis(1);

/// Dials the tunnel's entry until somebody listens there.
///
/// # Errors
/// Nobody does within [`READY_WITHIN`].
pub(crate) fn dial(ground: &Ground, entry: SocketAddr) -> Result<TcpStream> {
    let deadline = Instant::now() + READY_WITHIN;
    ground.enter(Host::Client, || {
        loop {
            match TcpStream::connect(entry) {
                Ok(stream) => break Ok(stream.set_nodelay(true).map(|()| stream)?),
                Err(error) if Instant::now() >= deadline => {
                    break Err(error).with_context(|| format!("dialling {entry}"));
                }
                Err(_) => thread::sleep(RETRY),
            }
        }
    })
}

/// Sends a byte and waits for it to come back.
///
/// # Errors
/// It does not within the time.
pub(crate) fn first_byte(stream: &mut TcpStream, within: Duration) -> Result<Instant> {
    stream.set_read_timeout(Some(within))?;
    stream.write_all(b"!").context("sending the first byte")?;
    let mut byte = [0];
    stream.read_exact(&mut byte).context("the first byte did not come back")?;
    Ok(Instant::now())
}

/// Dials until a byte comes back: a rival's server may listen before its agent is there.
pub(crate) fn wait_until_usable(ground: &Ground, entry: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let answered =
            dial(ground, entry).and_then(|mut stream| first_byte(&mut stream, ANSWER_WITHIN));
        match answered {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Longer than the longest round trip of any case.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The sum of all numbers of this name in what a tunnel tells, wherever they are; `None` if there is none.
pub(crate) fn sum_of(value: &Value, name: &str) -> Option<f64> {
    let inside = |(key, value): (&String, &Value)| match value.as_f64() {
        Some(number) if key == name => Some(number),
        _ => sum_of(value, name),
    };
    let found: Vec<f64> = match value {
        Value::Object(fields) => fields.iter().filter_map(inside).collect(),
        Value::Array(items) => items.iter().filter_map(|item| sum_of(item, name)).collect(),
        _ => Vec::new(),
    };
    (!found.is_empty()).then(|| found.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_wherever_a_session_has_them() {
        let told = serde_json::json!({"a": {"dup_sent": 3}, "b": [{"dup_sent": 4}, {"x": 1}]});
        assert_eq!(sum_of(&told, "dup_sent"), Some(7.0));
        assert_eq!(sum_of(&told, "dup_won"), None);
    }
}
