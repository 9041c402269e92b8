//! Datagram services: one flow for each local address that sends, and a socket for each flow at the agent.
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use switchback_shortpath::{DatagramFlow, OpenError, SessionHandle};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// A flow that carries nothing for this long is forgotten: RFC 4787 REQ-5 asks NATs for two minutes at least, and a service
/// that is silent for longer keeps itself alive for NATs anyway.
pub(crate) const FLOW_IDLE: Duration = Duration::from_secs(120);
/// Flows of one local port: applications have a few, and one that asks from a new port each time (DNS) has more than needed.
/// Beyond, the one that was quiet for longest gives its place.
const FLOWS_MAX: usize = 256;
/// Datagrams from one local address that wait for its flow's task.
const WAITING_MAX: usize = 64;
/// Longest UDP payload (RFC 768).
const DATAGRAM_MAX: usize = 65_507;
/// Between two failed reads of the local port, so that an error that stays costs little.
const READ_PAUSE: Duration = Duration::from_millis(50);

/// Carries what comes to `socket` in flows of the session, one for each address that sends, until the session is over.
pub(crate) async fn forward(session: &SessionHandle, socket: UdpSocket) -> Result<(), OpenError> {
    let mut flows = Flows::new(Arc::new(socket));
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    loop {
        let (length, from) = tokio::select! {
            Some((address, number)) = flows.endings.recv() => {
                flows.end(address, number);
                continue;
            }
            read = flows.socket.recv_from(&mut buffer) => match read {
                Ok(read) => read,
                Err(error) => {
                    tracing::debug!(%error, "the local UDP port cannot be read");
                    tokio::time::sleep(READ_PAUSE).await;
                    continue;
                }
            },
        };
        flows.carry(session, from, Bytes::copy_from_slice(&buffer[..length]))?;
    }
}

/// The flows of a local port.
struct Flows {
    socket: Arc<UdpSocket>,
    open: HashMap<SocketAddr, Open>,
    /// An address may have a flow again before it is known that its last one has ended, so flows have numbers.
    number: u64,
    ended: mpsc::Sender<(SocketAddr, u64)>,
    endings: mpsc::Receiver<(SocketAddr, u64)>,
}

/// A flow as its port knows it. Dropping it ends the flow.
struct Open {
    number: u64,
    queue: mpsc::Sender<Bytes>,
    used: Arc<Used>,
}

impl Flows {
    fn new(socket: Arc<UdpSocket>) -> Self {
        let (ended, endings) = mpsc::channel(FLOWS_MAX);
        Self { socket, open: HashMap::new(), number: 0, ended, endings }
    }

    fn end(&mut self, address: SocketAddr, number: u64) {
        if self.open.get(&address).is_some_and(|open| open.number == number) {
            self.open.remove(&address);
        }
    }

    fn carry(
        &mut self,
        session: &SessionHandle,
        from: SocketAddr,
        datagram: Bytes,
    ) -> Result<(), OpenError> {
        if !self.open.contains_key(&from) {
            if self.open.len() >= FLOWS_MAX {
                self.make_room();
            }
            match session.open_datagrams() {
                Ok(flow) => self.begin(flow, from),
                // The session's other channels leave none. The place is free once both ends know; until then datagrams are
                // lost, as they may be.
                Err(OpenError::ChannelLimit) => self.make_room(),
                Err(error) => return Err(error),
            }
        }
        if let Some(open) = self.open.get(&from) {
            open.used.now();
            // Full: the session takes no more just now.
            let _ = open.queue.try_send(datagram);
        }
        Ok(())
    }

    fn begin(&mut self, flow: DatagramFlow, from: SocketAddr) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let used = Arc::new(Used::new());
        self.number += 1;
        let (number, ended) = (self.number, self.ended.clone());
        let (socket, mark) = (Arc::clone(&self.socket), Arc::clone(&used));
        tokio::spawn(async move {
            carry(flow, &socket, from, waiting, &mark).await;
            // The port is closed already.
            let _ = ended.send((from, number)).await;
        });
        self.open.insert(from, Open { number, queue, used });
    }

    /// Ends the flow that has been quiet for longest.
    fn make_room(&mut self) {
        let quiet = self.open.iter().min_by_key(|(_, open)| open.used.last());
        if let Some(address) = quiet.map(|(address, _)| *address) {
            tracing::debug!(%address, "many addresses send to the local UDP port; the quietest gives its place");
            self.open.remove(&address);
        }
    }
}

/// When a flow last carried anything, either way.
struct Used {
    since: Instant,
    micros: AtomicU64,
}

impl Used {
    fn new() -> Self {
        Self { since: Instant::now(), micros: AtomicU64::new(0) }
    }

    fn now(&self) {
        let micros = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.micros.store(micros, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.since + Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// One local address's flow, until either side ends it or nothing comes for [`FLOW_IDLE`].
async fn carry(
    flow: DatagramFlow,
    socket: &UdpSocket,
    address: SocketAddr,
    mut waiting: mpsc::Receiver<Bytes>,
    used: &Used,
) {
    let mut idle_at = Instant::now() + FLOW_IDLE;
    loop {
        tokio::select! {
            datagram = waiting.recv() => {
                let Some(datagram) = datagram else { return };
                if let Err(error) = flow.send(datagram) {
                    if matches!(error, switchback_shortpath::DatagramError::Ended(_)) {
                        return;
                    }
                    tracing::debug!(%error, "datagram not sent");
                }
            }
            datagram = flow.recv() => {
                let Some(datagram) = datagram else { return };
                used.now();
                // An application that left makes ICMP errors, which are no reason to end its flow before its time.
                let _ = socket.send_to(&datagram, address).await;
            }
            () = sleep_until(idle_at) => return,
        }
        idle_at = Instant::now() + FLOW_IDLE;
    }
}

/// A socket that talks to `target` (`HOST:PORT`) alone.
///
/// # Errors
/// The name does not resolve, or no socket can be had.
pub(crate) async fn connect(target: &str) -> io::Result<UdpSocket> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in tokio::net::lookup_host(target).await? {
        let any: SocketAddr = if address.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
        };
        // A machine may lack the family of one of the name's addresses.
        let connected = async {
            let socket = UdpSocket::bind(any).await?;
            socket.connect(address).await?;
            Ok(socket)
        };
        match connected.await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}
