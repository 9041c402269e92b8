//! The process's UDP: sockets, what is known of the network around them, and QUIC legs for sessions.
//!
//! ```text
//! kernel sockets ─► wire ─► demux ─┬─ STUN ─► exchange ─► driver of a session ─► path::Finder
//!   (and relays)      ▲            │                  └─► keeping               ─► path::Keeper
//!                     │            └─ QUIC ─► paths: is the route proved? ─► endpoint (quinn)
//!                  virtual addresses ◄──────────────────────────────────────── shell::quic
//! ```
//! * `sockets`, `interfaces`: what the machine has. `wire`: all of it as one socket, for quinn.
//! * `demux`, `paths`, `early`: what a datagram is, whom it is for, and what came a moment too soon; pure.
//! * `spread`: packets while a session is not heard; `alarm`: how often everything is looked at meanwhile; pure.
//! * `exchange`: which task a STUN message is for. `relay`: a TURN allocation at work.
//! * `endpoint`: quinn. `witness`: whose its connection ids are.
//! * `driver`, `search`: one session's search, and what `view` shows of it. `whereabouts`: which address of a relay is asked.
//! * `keeping`: candidates, fresh before any session needs them. `mapping`: a port at the router.
//!   `spare`: how long idle mappings last.
//!
//! Nothing that arrives is believed before it is authenticated: a STUN message by its signature, a route by an answered
//! check, a QUIC peer by its key. What fails is counted in [`Ignored`].
mod alarm;
mod demux;
mod driver;
mod early;
mod endpoint;
mod exchange;
mod ignored;
mod interfaces;
mod keeping;
mod mapping;
mod marking;
mod path_mtu;
mod paths;
mod probing;
mod relay;
mod search;
mod sockets;
mod spare;
mod spread;
mod upnp;
mod view;
mod whereabouts;
mod wire;
mod witness;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::path::{Candidate, IceCredentials, KeeperView, MappingLifetime, NetworkFilter};
use crate::session::Role;
use crate::shell::SessionHandle;
use crate::tls::SessionKey;
use alarm::{Allowance, CHECKS, LOOKS};
use driver::{Driver, Signal};
use endpoint::Quic;
pub use ignored::Ignored;
pub use interfaces::source_to;
use keeping::Known;
pub use mapping::{MappingProbe, probe_port_mapping};
pub use path_mtu::probe_path_mtu;
pub use sockets::open_udp;
pub use view::{LegState, LegView, REASONS, ShortpathView};
pub use whereabouts::{RelayServer, look_up};
use wire::Wire;

/// How the process uses UDP.
#[derive(Clone, Debug)]
pub struct UnderlayConfig {
    /// Ports of the sockets and relays' sockets; `None` lets the kernel choose. Default `None`.
    pub ports: Option<RangeInclusive<u16>>,
    /// Fixed port of a listener for networks that route to this machine; agents only. Default `None`.
    pub managed_port: Option<u16>,
    /// Networks whose addresses are offered, and checked at the peer. Default: all.
    pub networks: NetworkFilter,
    /// Use IPv6 where the machine has it. Default `true`.
    pub ipv6: bool,
    /// Differentiated services code point of all packets, 0 to 63 (RFC 2474); a session's own goes before it. Default `None`.
    pub dscp: Option<u8>,
    /// Ask the router for a port (PCP, NAT-PMP). Default `true`.
    pub port_mapping: bool,
    /// Offer loopback addresses: for two ends on one machine. Default `false`.
    pub loopback: bool,
}

impl Default for UnderlayConfig {
    fn default() -> Self {
        Self {
            ports: None,
            managed_port: None,
            networks: NetworkFilter::default(),
            ipv6: true,
            dscp: None,
            port_mapping: true,
            loopback: false,
        }
    }
}

/// The process's UDP. Clones share it; the last one dropped closes all its legs.
#[derive(Clone, Debug)]
pub struct Underlay(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    inner: Arc<Inner>,
    servers: watch::Sender<Vec<SocketAddr>>,
    changed: watch::Receiver<u64>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.inner.stop.cancel();
        self.inner.quic.close();
    }
}

/// What every task of the underlay holds.
#[derive(Debug)]
struct Inner {
    config: UnderlayConfig,
    wire: Arc<Wire>,
    quic: Quic,
    known: watch::Sender<Known>,
    /// Some session is not heard: what is known may be of yesterday.
    doubt: Notify,
    looks: Mutex<Allowance>,
    checks: Mutex<Allowance>,
    stop: CancellationToken,
}

impl Underlay {
    /// Opens the sockets and starts to look around. Call within a tokio runtime.
    ///
    /// # Errors
    /// When no socket can be bound within the configured ports, or the managed port is taken.
    pub fn start(config: UnderlayConfig) -> io::Result<Self> {
        let wire = Arc::new(Wire::new(sockets::open_all(&config)?));
        let quic = Quic::start(&wire)?;
        let (known, _) = watch::channel(Known::default());
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            config,
            wire,
            quic,
            known,
            doubt: Notify::new(),
            looks: Mutex::new(Allowance::of(LOOKS)),
            checks: Mutex::new(Allowance::of(CHECKS)),
            stop,
        });
        keeping::look(&inner);
        let (servers, asked) = watch::channel(Vec::new());
        let (version, changed) = watch::channel(0);
        let (learnt, learns) = watch::channel(MappingLifetime::default());
        tokio::spawn(spare::learn(Arc::clone(&inner), learnt));
        tokio::spawn(keeping::keep(Arc::clone(&inner), asked, learns));
        if inner.config.port_mapping {
            tokio::spawn(mapping::keep(Arc::clone(&inner)));
        }
        tokio::spawn(count_changes(inner.known.subscribe(), version));
        Ok(Self(Arc::new(Owner { inner, servers, changed })))
    }

    /// The gateways' STUN and TURN addresses: asked what they see of us from now on, and never checked as candidates. Set
    /// again whenever they were reached by another way, they are asked at once.
    pub fn set_servers(&self, servers: Vec<SocketAddr>) {
        self.0.servers.send_replace(servers);
    }

    /// Our candidates known now; never waits.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let known = self.0.inner.known.borrow();
        known.locals.iter().map(|(candidate, _)| *candidate).collect()
    }

    /// A number that changes when [`Self::candidates`] do.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.clone()
    }

    /// What is known of the NAT before each socket: mapping behaviour, and what each server sees.
    #[must_use]
    pub fn nats(&self) -> Vec<KeeperView> {
        self.0.inner.known.borrow().nats.clone()
    }

    /// What was ignored so far, and why.
    #[must_use]
    pub fn ignored(&self) -> Ignored {
        self.0.inner.wire.counters.read()
    }

    /// QUIC peers turned away so far: those without the expected key above all.
    #[must_use]
    pub fn refused_peers(&self) -> u64 {
        self.0.inner.quic.refused()
    }

    /// Searches UDP paths for a session in the background; legs attach themselves. Dropping the result ends the search and
    /// closes its legs.
    #[must_use]
    pub fn connect(&self, plan: ShortpathPlan, session: &SessionHandle) -> Shortpath {
        let inner = Arc::clone(&self.0.inner);
        match Driver::new(inner, plan, session.reference()) {
            Ok((driver, reins)) => {
                tokio::spawn(driver.run());
                Shortpath {
                    signalled: reins.signalled,
                    relayed: reins.relayed,
                    view: reins.view,
                    stop: reins.stop,
                }
            }
            Err(error) => {
                tracing::warn!(%error, "no UDP for a session");
                let view = ShortpathView { reasons: vec!["bad_key"], ..ShortpathView::default() };
                let (signalled, (_, view)) = (mpsc::channel(1).0, watch::channel(view));
                let (_, relayed) = watch::channel(None);
                Shortpath { signalled, relayed, view, stop: CancellationToken::new() }
            }
        }
    }
}

/// Tells when candidates change, and not when something else that is known does.
async fn count_changes(mut known: watch::Receiver<Known>, version: watch::Sender<u64>) {
    let mut before = known.borrow_and_update().locals.clone();
    while known.changed().await.is_ok() {
        let locals = known.borrow_and_update().locals.clone();
        if locals != before {
            before = locals;
            version.send_modify(|version| *version += 1);
        }
    }
}

/// What a session's search needs, most of it from the broker. `Debug` shows no secrets.
pub struct ShortpathPlan {
    /// The client dials and controls.
    pub role: Role,
    /// Our ICE credentials, as signalled.
    pub local: IceCredentials,
    /// The peer's.
    pub remote: IceCredentials,
    /// The peer's candidates known now.
    pub remote_candidates: Vec<Candidate>,
    /// A relay we may use.
    pub relay: Option<RelayAccess>,
    /// What we prove.
    pub key: SessionKey,
    /// What the peer must prove: SubjectPublicKeyInfo, DER.
    pub peer_key: Vec<u8>,
    /// Names the session in the client's first packet; the same at both ends, and nowhere else.
    pub token: [u8; 16],
    /// Which kinds of legs are allowed.
    pub policy: UdpPolicy,
    /// Differentiated services code point of the session's QUIC packets, 0 to 63.
    pub dscp: Option<u8>,
    /// Have a relay ready beside a direct path. Without, one is asked for only while no other UDP path is up.
    pub standby: bool,
}

impl fmt::Debug for ShortpathPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShortpathPlan")
            .field("role", &self.role)
            .field("local", &self.local)
            .field("remote", &self.remote)
            .field("remote_candidates", &self.remote_candidates)
            .field("relay", &self.relay)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// A TURN server and time-limited credentials for it. `Debug` shows no secret.
#[derive(Clone)]
pub struct RelayAccess {
    /// Where it is.
    pub server: RelayServer,
    /// Such as `EXPIRY:NAME`.
    pub username: String,
    /// The password that goes with it.
    pub password: String,
}

impl fmt::Debug for RelayAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayAccess").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Which kinds of UDP legs a session may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpPolicy {
    /// Punched through NATs.
    pub direct: bool,
    /// To the agent's fixed port, in a network that routes.
    pub managed: bool,
    /// Through a TURN server.
    pub relay: bool,
}

impl UdpPolicy {
    /// Everything.
    pub const ALL: Self = Self { direct: true, managed: true, relay: true };
    /// TCP only.
    pub const NONE: Self = Self { direct: false, managed: false, relay: false };
}

/// One session's search for UDP paths. Dropped, it ends, and its legs with it.
#[derive(Debug)]
pub struct Shortpath {
    signalled: mpsc::Sender<Signal>,
    relayed: watch::Receiver<Option<Candidate>>,
    view: watch::Receiver<ShortpathView>,
    stop: CancellationToken,
}

impl Shortpath {
    /// Candidates of the peer that came to be known later. Beyond what a peer may signal at once they are dropped.
    pub fn add_remote_candidates(&self, candidates: Vec<Candidate>) {
        self.signal(Signal::Candidates(candidates));
    }

    /// The right to use the relay was renewed: allocations are made with it from now on, and one that lives is replaced
    /// before it ends, as its credentials cannot change (RFC 8656 section 7.2 refuses that with 441).
    pub fn renew_relay(&self, access: RelayAccess) {
        self.signal(Signal::Relay(access));
    }

    fn signal(&self, signal: Signal) {
        if self.signalled.try_send(signal).is_err() {
            tracing::debug!("word for a search that is over, or flooded");
        }
    }

    /// Our address at this session's relay, once it is there: to be signalled to the peer, whose NAT opens by sending to it.
    #[must_use]
    pub fn relayed(&self) -> watch::Receiver<Option<Candidate>> {
        self.relayed.clone()
    }

    /// What the search knows, at most 100 ms old.
    #[must_use]
    pub fn view(&self) -> ShortpathView {
        let mut view = self.view.borrow().clone();
        view.name_interfaces();
        view
    }
}

impl Drop for Shortpath {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
