//! The data plane, as the broker sees it: something that joins pairs, ends them and tells.
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use switchback_engine::{
    Admission, Cause, EngineConfig, ForeignConnection, Gateway, GatewayEvent, Metrics, Network,
    PairId, RelayCredentials, StartError, UdpConfig, UdpMetrics, UdpService, UdpSockets, Verdict,
    bind_listeners, bind_udp,
};

use crate::broker::config::ServeConfig;
use crate::broker::hub::Hub;
use crate::broker::limits::EVENTS_MAX;
use crate::code::{Code, Fault};

/// The gateway and the UDP service; absent before the start and after the end.
#[derive(Default)]
pub(crate) struct DataPlane {
    gateway: RwLock<Option<Gateway>>,
    stun: RwLock<Option<Stun>>,
}

struct Stun {
    service: UdpService,
    /// A second handle, for who takes over.
    socket: UdpSocket,
}

impl DataPlane {
    /// Second handles on the listening sockets.
    ///
    /// # Errors
    /// [`Code::Internal`]: the gateway does not run, or there are no descriptors to spare.
    pub(crate) fn sockets(&self) -> Result<Sockets, Fault> {
        let cloned = || -> io::Result<Sockets> {
            let gateway = read(&self.gateway);
            let gateway = gateway.as_ref().ok_or_else(|| io::Error::other("it does not run"))?;
            let listeners = gateway.listeners()?.into_iter().map(TcpListener::from).collect();
            let stun = read(&self.stun).as_ref().map(|stun| stun.socket.try_clone()).transpose()?;
            Ok(Sockets { listeners, stun })
        };
        cloned().map_err(|error| Code::Internal.because(format!("the gateway's sockets: {error}")))
    }

    /// Stops accepting, for good, and answering STUN; pairs go on. Blocks until no connection comes in any more, some
    /// milliseconds.
    pub(crate) fn stop_accepting(&self) {
        drop(self.stun.write().unwrap_or_else(PoisonError::into_inner).take());
        let gateway = read(&self.gateway);
        let Some(gateway) = &*gateway else { return };
        gateway.stop_accepting();
        let give_up = Instant::now() + DEAF_WITHIN;
        while gateway.is_accepting() {
            if Instant::now() >= give_up {
                return tracing::warn!("a relay worker does not let go of its listener");
            }
            std::thread::sleep(DEAF_LOOK_EVERY);
        }
    }

    /// Pairs being relayed.
    pub(crate) fn pairs(&self) -> usize {
        self.metrics().map_or(0, |metrics| metrics.pairs_active)
    }

    /// Cuts a pair, or sends the leg away that waits for it. Returns at once.
    pub(crate) fn end_pair(&self, pair: PairId) {
        if let Some(gateway) = &*read(&self.gateway) {
            gateway.end_pair(pair, Cause::Killed);
        }
    }

    /// Ends the allocations of these users of the relay, within a second or two, and admits none of theirs any more.
    pub(crate) fn end_relay(&self, users: &[String]) {
        if let Some(stun) = &*read(&self.stun) {
            users.iter().for_each(|user| stun.service.revoke(user));
        }
    }

    pub(crate) fn metrics(&self) -> Option<Metrics> {
        read(&self.gateway).as_ref().map(Gateway::metrics)
    }

    pub(crate) fn stun(&self) -> Option<UdpMetrics> {
        read(&self.stun).as_ref().map(|stun| stun.service.metrics())
    }

    /// Name of the readiness source, and why it was chosen.
    pub(crate) fn backend(&self) -> (&'static str, String) {
        read(&self.gateway)
            .as_ref()
            .map_or(("none", "the gateway does not run".into()), |gateway| {
                (gateway.backend().kind.as_str(), gateway.backend().reason.clone())
            })
    }

    /// Ends every pair and joins the gateway's threads: blocks for up to 3 s.
    pub(crate) fn shutdown(&self) {
        let gateway = self.gateway.write().unwrap_or_else(PoisonError::into_inner).take();
        let stun = self.stun.write().unwrap_or_else(PoisonError::into_inner).take();
        drop((gateway, stun));
    }

    fn set<T>(slot: &RwLock<Option<T>>, value: T) {
        *slot.write().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

fn read<T>(slot: &RwLock<Option<T>>) -> std::sync::RwLockReadGuard<'_, Option<T>> {
    slot.read().unwrap_or_else(PoisonError::into_inner)
}

/// A relay worker hears its orders every turn, and a turn takes a millisecond or two.
const DEAF_LOOK_EVERY: Duration = Duration::from_millis(2);
/// A thousand turns.
const DEAF_WITHIN: Duration = Duration::from_secs(2);

/// The sockets that peers reach us at: bound here, or received from the process that served before.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// TCP, all of one port.
    listeners: Vec<TcpListener>,
    /// UDP of the same port, for STUN; `None` if it could not be had.
    stun: Option<UdpSocket>,
}

/// A number of the kernel's choice is free in TCP; that UDP has none of these free does not happen.
const NUMBERS_TRIED: usize = 4;

impl Sockets {
    /// Binds TCP and UDP of one port. Blocks for some seconds while another process has it.
    ///
    /// # Errors
    /// [`Code::AddressInUse`], [`Code::PortNotPermitted`], [`Code::AddressUnavailable`]. A UDP port that cannot be had
    /// is only logged.
    pub(crate) fn bind(address: SocketAddr, listeners: usize) -> Result<Self, Fault> {
        let mut sockets = Self { listeners: bind_tcp(address, listeners)?, stun: None };
        let numbers = if address.port() == 0 { NUMBERS_TRIED } else { 1 };
        for left in (0..numbers).rev() {
            let bound = sockets.address()?;
            match bind_udp(bound, 1) {
                Ok(stun) => {
                    sockets.stun = stun.into_iter().next();
                    break;
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse && left > 0 => {
                    sockets.listeners = bind_tcp(address, listeners)?;
                }
                Err(error) => {
                    tracing::warn!(address = %bound, %error, "no STUN: the UDP port could not be had");
                }
            }
        }
        Ok(sockets)
    }

    /// Sockets as [`Sockets::descriptors`] lists them, received from another process; `stun` says whether the last is
    /// the UDP one.
    pub(crate) fn adopt(mut descriptors: Vec<OwnedFd>, stun: bool) -> Self {
        let stun = if stun { descriptors.pop().map(UdpSocket::from) } else { None };
        Self { listeners: descriptors.into_iter().map(TcpListener::from).collect(), stun }
    }

    /// The TCP listeners, then the UDP socket if there is one.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let listeners = self.listeners.iter().map(AsFd::as_fd);
        listeners.chain(self.stun.as_ref().map(AsFd::as_fd)).collect()
    }

    pub(crate) fn has_stun(&self) -> bool {
        self.stun.is_some()
    }

    /// The address that they are bound to.
    ///
    /// # Errors
    /// [`Code::Internal`] if there is none, or it is no socket.
    pub(crate) fn address(&self) -> Result<SocketAddr, Fault> {
        let first = self.listeners.first();
        let first = first.ok_or_else(|| Code::Internal.because("there is no listener"))?;
        first.local_addr().map_err(|error| Code::Internal.because(format!("listener: {error}")))
    }
}

fn bind_tcp(address: SocketAddr, listeners: usize) -> Result<Vec<TcpListener>, Fault> {
    bind_listeners(address, listeners).map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::AddrInUse => Code::AddressInUse,
            io::ErrorKind::PermissionDenied => Code::PortNotPermitted,
            io::ErrorKind::AddrNotAvailable => Code::AddressUnavailable,
            // EAFNOSUPPORT: an IPv6 address on a machine without IPv6.
            _ if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
                Code::AddressUnavailable
            }
            _ => Code::Internal,
        };
        code.because(format!("{address}: {error}"))
    })
}

/// Listeners at most, one per relay worker as a rule: with the UDP socket they fit one message of a takeover (the kernel's
/// `SCM_MAX_FD` is 253).
const LISTENERS_MAX: usize = 128;

/// How many listeners to bind for this configuration.
pub(crate) fn listeners(config: &ServeConfig) -> usize {
    workers(config).min(LISTENERS_MAX)
}

fn engine(config: &ServeConfig) -> EngineConfig {
    EngineConfig {
        io: config.io,
        workers: workers(config),
        limits: config.gateway_limits,
        busy_poll: config.busy_poll,
        tuning: config.tuning.clone(),
    }
}

fn refused(error: StartError) -> Fault {
    match error {
        StartError::UringUnavailable(reason) => Code::UringUnavailable.because(reason),
        StartError::Tuning(refused) => Code::TuningUnsupported.because(refused.to_string()),
        StartError::System(error) => Code::Internal.because(format!("gateway: {error}")),
    }
}

fn workers(config: &ServeConfig) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    config.workers.unwrap_or_else(cores)
}

/// Starts relaying, and tells `hub` what happens.
///
/// # Errors
/// [`Code::UringUnavailable`] if io_uring was demanded; [`Code::TuningUnsupported`]; [`Code::Internal`] if the
/// system refused threads or descriptors.
pub(crate) fn start(
    sockets: Sockets,
    config: &ServeConfig,
    admission: Arc<dyn Admission>,
    foreign: Box<dyn Fn(ForeignConnection) + Send + Sync>,
    hub: &Arc<Hub>,
) -> Result<(), Fault> {
    let events = events_to(hub.clone())?;
    let believer = hub.relay_credentials();
    start_plane(&hub.data_plane, sockets, config, (admission, foreign, events), believer)
}

/// What a gateway asks, hands over and tells.
pub(crate) type Owners = (
    Arc<dyn Admission>,
    Box<dyn Fn(ForeignConnection) + Send + Sync>,
    Arc<dyn Fn(GatewayEvent) + Send + Sync>,
);

/// Starts relaying. Of `config` it needs nothing that is about a broker.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_plane(
    plane: &DataPlane,
    sockets: Sockets,
    config: &ServeConfig,
    (admission, foreign, events): Owners,
    believer: Arc<dyn RelayCredentials>,
) -> Result<(), Fault> {
    let Sockets { listeners, stun } = sockets;
    let gateway = Gateway::start(listeners, engine(config), admission, foreign, events);
    DataPlane::set(&plane.gateway, gateway.map_err(refused)?);
    if let Some(socket) = stun {
        let alternate = match &*config.stun_alternates {
            [] => another_port(config).into_iter().collect(),
            alternates => bind_alternates(alternates)?,
        };
        let start = |primary| {
            let sockets = UdpSockets { primary: vec![primary], alternate };
            UdpService::start(sockets, udp(config), believer)
        };
        let service = socket.try_clone().and_then(start);
        let service = service.map_err(|error| Code::Internal.because(format!("UDP: {error}")))?;
        DataPlane::set(&plane.stun, Stun { service, socket });
    }
    Ok(())
}

/// A socket on one of the relay's ports, which firewalls let through, from the last one down: ends that ask there too learn
/// how their NAT gives ports. `None`, after a warning, if there is none to be had.
fn another_port(config: &ServeConfig) -> Option<UdpSocket> {
    let ports = config.turn_ports.clone().unwrap_or_else(|| UdpConfig::default().relay_ports);
    if ports.len() < 2 {
        // The relay needs it more.
        return None;
    }
    let bind = |port| UdpSocket::bind((config.listen.ip(), port)).ok();
    let bound = ports.rev().take(PORTS_TRIED).find_map(bind);
    if bound.is_none() {
        tracing::warn!("no second port for STUN: ends behind some NATs will need the relay");
    }
    bound
}

/// Ports tried for a second STUN port; another gateway of this machine, or an old one that drains, has a few of them.
const PORTS_TRIED: usize = 64;

fn bind_alternates(addresses: &[SocketAddr]) -> Result<Vec<UdpSocket>, Fault> {
    let bind = |address: &SocketAddr| {
        UdpSocket::bind(address).map_err(|error| {
            Code::AddressUnavailable.because(format!("alternate STUN address {address}: {error}"))
        })
    };
    addresses.iter().map(bind).collect()
}

fn udp(config: &ServeConfig) -> UdpConfig {
    let listen = config.listen.ip().to_canonical();
    let mut udp = UdpConfig { workers: workers(config), ..UdpConfig::default() };
    if let Some(ports) = &config.turn_ports {
        udp.relay_ports = ports.clone();
    }
    // Ends on this very machine, as in the demo, are to be relayed too; from elsewhere nobody gets here.
    if listen.is_loopback() {
        udp.allowed_peers =
            vec![Network { address: listen, prefix: if listen.is_ipv4() { 8 } else { 128 } }];
    }
    udp.relay_addresses.extend(config.public_relay());
    udp
}

/// Starts a gateway of this configuration on a port of its own, and ends it: threads, rings and descriptors can be had,
/// and nobody serves worse for it. Blocks for some milliseconds.
///
/// # Errors
/// As [`start`].
pub(crate) fn rehearse(config: &ServeConfig) -> Result<(), Fault> {
    let loopback = loopback_of(config.listen);
    tracing::info!(%loopback, "trying a gateway that nobody uses, before another process stops for it");
    let listeners = bind_tcp((loopback, 0).into(), listeners(config))?;
    let (foreign, events) = (Box::new(drop), Arc::new(drop));
    let gateway = Gateway::start(listeners, engine(config), Arc::new(Nobody), foreign, events);
    gateway.map_err(refused)?.shutdown();
    Ok(())
}

/// Of the same family: a machine may lack the other, and a tuning may be for one of them.
const fn loopback_of(listen: SocketAddr) -> IpAddr {
    match listen {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Admits no leg.
struct Nobody;

impl Admission for Nobody {
    fn admit(&self, _server_name: &str, _peer: SocketAddr) -> Verdict {
        Verdict::Foreign
    }
}

/// A thread that hands the gateway's events to `hub`, one after the other; it ends with the gateway.
fn events_to(hub: Arc<Hub>) -> Result<Arc<dyn Fn(GatewayEvent) + Send + Sync>, Fault> {
    let (sender, events) = crossbeam::channel::bounded(EVENTS_MAX);
    std::thread::Builder::new()
        .name("broker-events".into())
        .spawn(move || events.into_iter().for_each(|event| hub.gateway_event(event)))
        .map_err(|error| Code::Internal.because(format!("no thread: {error}")))?;
    // Nobody listens only while everything is shutting down.
    Ok(Arc::new(move |event| drop(sender.send(event))))
}
