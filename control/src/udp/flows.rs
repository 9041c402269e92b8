//! Datagram services: one flow for each local address that sends, and a socket for each flow at the agent.
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use switchback_shortpath::{DatagramFlow, OpenError, SessionHandle};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// A flow that carries nothing for this long is forgotten: RFC 4787 REQ-5 asks NATs for two minutes at least, and a service
/// that is silent for longer keeps itself alive for NATs anyway.
pub(crate) const FLOW_IDLE: Duration = Duration::from_secs(120);
/// Flows of one local port: applications have a few; a scanner of the local port gets no more.
const FLOWS_MAX: usize = 256;
/// Datagrams from one local address that wait for its flow's task.
const WAITING_MAX: usize = 64;
/// Longest UDP payload (RFC 768).
const DATAGRAM_MAX: usize = 65_507;
/// Between two failed reads of the local port, so that an error that stays costs little.
const READ_PAUSE: Duration = Duration::from_millis(50);

/// Carries what comes to `socket` in flows of the session, one for each address that sends, until the session is over.
pub(crate) async fn forward(session: &SessionHandle, socket: UdpSocket) -> Result<(), OpenError> {
    let socket = Arc::new(socket);
    let (ended, mut endings) = mpsc::channel(FLOWS_MAX);
    let mut flows: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    loop {
        let (length, from) = tokio::select! {
            Some(address) = endings.recv() => {
                flows.remove(&address);
                continue;
            }
            read = socket.recv_from(&mut buffer) => match read {
                Ok(read) => read,
                Err(error) => {
                    tracing::debug!(%error, "the local UDP port cannot be read");
                    tokio::time::sleep(READ_PAUSE).await;
                    continue;
                }
            },
        };
        let datagram = Bytes::copy_from_slice(&buffer[..length]);
        let queue = match flows.get(&from) {
            Some(queue) => queue,
            None if flows.len() >= FLOWS_MAX => {
                tracing::debug!(%from, "too many addresses send to the local UDP port");
                continue;
            }
            None => match session.open_datagrams() {
                Ok(flow) => {
                    let (queue, waiting) = mpsc::channel(WAITING_MAX);
                    let (socket, ended) = (socket.clone(), ended.clone());
                    tokio::spawn(async move {
                        carry(flow, &socket, from, waiting).await;
                        // The port is closed already.
                        let _ = ended.send(from).await;
                    });
                    flows.entry(from).or_insert(queue)
                }
                Err(OpenError::ChannelLimit) => continue,
                Err(error) => return Err(error),
            },
        };
        // Full: the session takes no more just now, and datagrams may be lost.
        let _ = queue.try_send(datagram);
    }
}

/// One local address's flow, until either side ends it or nothing comes for [`FLOW_IDLE`].
async fn carry(
    flow: DatagramFlow,
    socket: &UdpSocket,
    address: SocketAddr,
    mut waiting: mpsc::Receiver<Bytes>,
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
