//! The service: workers on threads, started and stopped together.
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::binding::{Site, Sites};
use super::counts::{Counters, UdpMetrics};
use super::credentials::RelayCredentials;
use super::nonce::Nonces;
use super::ready::Ready;
use super::relays::{Relays, Reserved, enlarge};
use super::server::{Common, Server};
use super::shared::{Limits, Shared};
use super::worker::{Clock, Desk, Judge, Worker};
use super::{UdpConfig, UdpSockets};
use crate::port::once_free;
use crate::ring::prepare_datagrams;

/// STUN and TURN over UDP, on threads of its own. Dropping it shuts it down.
pub struct UdpService {
    workers: Vec<Running>,
    counters: Vec<Arc<Counters>>,
    common: Arc<Common>,
}

struct Running {
    ready: Arc<Ready>,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for UdpService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpService").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

/// Binds `count` (at least 1) UDP sockets to one address, for [`UdpSockets::primary`]. Of port 0 the first makes a number,
/// which the others take. A port that anyone else has is refused, even with `SO_REUSEPORT`: the first is bound without it.
/// `EADDRINUSE` is retried for 2 seconds, in which the kernel tears down what a killed process had. Blocks that long.
///
/// # Errors
/// `bind(2)`: port in use, no permission for a port below 1024, no such address.
pub fn bind_udp(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    let first = once_free(|| {
        let first = socket(address)?;
        first.bind(&address.into())?;
        Ok(first)
    })?;
    first.set_reuse_port(true)?;
    let first = UdpSocket::from(first);
    let more = bind_more(&first, count.saturating_sub(1))?;
    Ok([first].into_iter().chain(more).collect())
}

fn bind_more(first: &UdpSocket, count: usize) -> io::Result<Vec<UdpSocket>> {
    let address = first.local_addr()?;
    let bind = |_| {
        let next = socket(address)?;
        next.set_reuse_port(true)?;
        // An IPv6 wildcard that takes IPv4 too, or does not, as the first one.
        if address.is_ipv6() {
            next.set_only_v6(SockRef::from(first).only_v6()?)?;
        }
        next.bind(&address.into())?;
        Ok(next.into())
    };
    (0..count).map(bind).collect()
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))
}

impl UdpService {
    /// Starts answering on `sockets`, and relaying for whom `credentials` knows.
    ///
    /// # Errors
    /// No socket, or two with one role; more workers than sockets where the first has no `SO_REUSEPORT`; an address that
    /// cannot be bound; no thread or descriptor to be had.
    pub fn start(
        sockets: UdpSockets,
        config: UdpConfig,
        credentials: Arc<dyn RelayCredentials>,
    ) -> io::Result<Self> {
        let UdpSockets { mut primary, alternate } = sockets;
        let first = primary.first().ok_or_else(|| io::Error::other("no UDP socket to serve on"))?;
        let missing = config.workers.saturating_sub(primary.len());
        if missing > 0 && !SockRef::from(first).reuse_port()? {
            return Err(io::Error::other("several UDP workers need a socket with SO_REUSEPORT"));
        }
        let more = bind_more(first, missing)?;
        let (alternates, sites) = assign(first.local_addr()?, alternate)?;
        primary.extend(more);
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("no random bytes"))?;
        let started = Instant::now();
        let limits = Limits {
            total: config.allocations_max,
            account: config.allocations_per_user,
            name: config.allocations_per_name,
        };
        let common = Arc::new(Common {
            nonces: Nonces::new(&key, seconds(config.nonce_lifetime)),
            shared: Shared::new(limits),
            config,
            sites,
            credentials,
        });
        let reserved = Arc::new(Reserved::default());
        let (workers, counters) = (Vec::new(), Vec::new());
        let mut service = Self { workers, counters, common: common.clone() };
        for (index, socket) in primary.into_iter().enumerate() {
            // An early return drops `service`, which stops the workers that run already.
            let counters = Arc::new(Counters::default());
            let own = Sockets { socket, alternates: &alternates, listens: index == 0 };
            let worker = own.worker(&common, &reserved, &counters, started)?;
            service.spawn(index, worker)?;
            service.counters.push(counters);
        }
        Ok(service)
    }

    /// What has been done so far.
    #[must_use]
    pub fn metrics(&self) -> UdpMetrics {
        Counters::sum(&self.counters)
    }

    /// Takes back the right of a user ([`super::RelayUser::name`]) to allocations, whatever its credentials say: those it has
    /// end within a second or two, new ones are refused with 403. The last 65,536 such users are remembered. Costs a lock and
    /// a look-up.
    pub fn revoke(&self, user: &str) {
        self.common.shared.revoke(user);
    }

    /// Stops at once: ends all allocations and closes the sockets.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn spawn(&mut self, index: usize, worker: Worker) -> io::Result<()> {
        let ready = worker.ready.clone();
        let thread = std::thread::Builder::new().name(format!("udp-{index}"));
        let thread = thread.spawn(move || worker.run())?;
        self.workers.push(Running { ready, thread });
        Ok(())
    }

    fn stop(&mut self) {
        for worker in &self.workers {
            worker.ready.stop();
        }
        for worker in self.workers.drain(..) {
            if worker.thread.join().is_err() {
                tracing::error!("a UDP worker panicked");
            }
        }
    }
}

impl Drop for UdpService {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The sockets of one worker.
struct Sockets<'a> {
    socket: UdpSocket,
    alternates: &'a [Option<UdpSocket>; Site::COUNT],
    /// Requests to the alternate sites are this worker's.
    listens: bool,
}

impl Sockets<'_> {
    fn worker(
        self,
        common: &Arc<Common>,
        reserved: &Arc<Reserved>,
        counters: &Arc<Counters>,
        started: Instant,
    ) -> io::Result<Worker> {
        let ready = Arc::new(Ready::new()?);
        let mut sites = [const { None }; Site::COUNT];
        for (site, alternate) in sites.iter_mut().zip(self.alternates) {
            *site = alternate.as_ref().map(UdpSocket::try_clone).transpose()?;
        }
        sites[Site::PRIMARY.index()] = Some(self.socket);
        for (site, socket) in (0..).map(Site).zip(&sites) {
            let Some(socket) = socket.as_ref().filter(|_| self.listens || site == Site::PRIMARY)
            else {
                continue;
            };
            enlarge(&SockRef::from(socket));
            prepare_datagrams(socket, true)?;
            ready.watch(socket.as_fd(), Ready::site(site))?;
        }
        let config = &common.config;
        let own = config.relay_addresses.iter().flat_map(|address| [address.bind, address.public]);
        let judge =
            Judge { allowed: config.allowed_peers.clone(), own: own.collect(), at: started };
        let server = Server::new(common.clone(), counters.clone(), judge.peers(), started);
        let relays = Relays::new(ready.clone(), config.relay_ports.clone(), reserved.clone());
        let mut number = [0; 8];
        aws_lc_rs::rand::fill(&mut number).map_err(|_| io::Error::other("no random bytes"))?;
        let desk = Desk::new(u64::from_ne_bytes(number));
        let (clock, counters) = (Clock { started }, counters.clone());
        Ok(Worker { ready, sites, relays, server, counters, clock, judge, desk })
    }
}

/// Gives each alternate socket its role by how it differs from the primary address.
fn assign(
    primary: SocketAddr,
    alternates: Vec<UdpSocket>,
) -> io::Result<([Option<UdpSocket>; Site::COUNT], Sites)> {
    let mut sockets = [const { None }; Site::COUNT];
    let mut sites = [None; Site::COUNT];
    sites[Site::PRIMARY.index()] = Some(primary);
    for socket in alternates {
        let address = socket.local_addr()?;
        let other_port = u8::from(address.port() != primary.port());
        let other_address = u8::from(address.ip() != primary.ip());
        let site = Site(other_address << 1 | other_port);
        if sites[site.index()].is_some() {
            return Err(io::Error::other(format!("{address} has the role of another UDP socket")));
        }
        sites[site.index()] = Some(address);
        sockets[site.index()] = Some(socket);
    }
    if let [Some(a), Some(b), Some(c), Some(d)] = sites
        && (b.port() != d.port() || c.ip() != d.ip() || a.ip() != b.ip())
    {
        return Err(io::Error::other(
            "the alternate UDP sockets are not of one address and one port",
        ));
    }
    Ok((sockets, sites))
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
