//! A TURN allocation at work: a socket of its own, as a server knows an allocation by the address that asked for it.
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::udp::Transmit;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::UnderlayConfig;
use super::demux::segments;
use super::ignored::{add, count};
use super::sockets::{Bound, open_in_range};
use super::wire::Wire;
use crate::path::{LocalId, Route, TurnClient, TurnConfig, TurnEvent, canonical};
use crate::time::{now, sleep_until};

/// See the module. Dropping the last handle does not end it: [`Relay::close`] does.
#[derive(Debug)]
pub(super) struct Relay {
    socket: Bound,
    server: SocketAddr,
    turn: Mutex<Turn>,
    /// The client has a new deadline.
    earlier: Notify,
    closing: CancellationToken,
}

#[derive(Debug)]
struct Turn {
    client: TurnClient,
    /// Where packets are wrapped.
    scratch: Vec<u8>,
}

thread_local! {
    /// Where a thread receives: what came is passed on before another relay has its turn.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; 64 * 1024].into_boxed_slice());
}

/// Events waiting for the driver: one for the allocation, one per peer (32), one for its end.
const EVENTS: usize = 64;

impl Relay {
    /// Asks for an allocation, on a new socket. Events come until the relay is closed.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub(super) fn open(
        wire: &Arc<Wire>,
        config: TurnConfig,
        own: &UnderlayConfig,
    ) -> io::Result<(LocalId, Arc<Self>, mpsc::Receiver<TurnEvent>)> {
        let server = canonical(config.server);
        let socket = open_in_range(LocalId(u16::MAX), server.is_ipv6(), None, own)?;
        let turn = Turn { client: TurnClient::new(now(), config), scratch: Vec::new() };
        let mut number = LocalId(u16::MAX);
        let relay = wire.add_relay(|id| {
            number = id;
            Arc::new(Self {
                socket: Bound { id, ..socket },
                server,
                turn: Mutex::new(turn),
                earlier: Notify::new(),
                closing: CancellationToken::new(),
            })
        });
        let relay = relay.ok_or_else(|| io::Error::other("too many relays"))?;
        let (events, receiver) = mpsc::channel(EVENTS);
        tokio::spawn(Arc::clone(&relay).run(Arc::clone(wire), events));
        Ok((number, relay, receiver))
    }

    /// Lets the peer's packets through, and opens a channel for ours.
    pub(super) fn permit(&self, peer: SocketAddr) {
        self.with(|turn| turn.client.permit(now(), peer));
        self.earlier.notify_one();
    }

    /// Has the server say whether the allocation is still ours; if not, it is made anew.
    pub(super) fn doubt(&self) {
        self.with(|turn| turn.client.doubt(now()));
        self.earlier.notify_one();
    }

    /// Gives the allocation back.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// Sends one datagram to a peer.
    pub(super) fn send(&self, peer: SocketAddr, datagram: &[u8]) {
        self.transmit(
            peer,
            &Transmit {
                destination: peer,
                ecn: None,
                contents: datagram,
                segment_size: None,
                src_ip: None,
            },
        );
    }

    /// Sends a batch to a peer: each packet in a channel of its own header, in one system call. Before the channel is there,
    /// single packets go as indications.
    pub(super) fn transmit(&self, peer: SocketAddr, transmit: &Transmit<'_>) {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Turn { client, scratch } = &mut *turn;
        scratch.clear();
        for segment in segments(transmit.contents.len(), size) {
            let packet = &transmit.contents[segment];
            if let Some(header) = client.wrap(peer, packet.len()) {
                scratch.extend_from_slice(&header);
                scratch.extend_from_slice(packet);
            } else if let Some(indication) = client.indication(peer, packet) {
                self.socket.send(&indication, self.server);
            }
        }
        if scratch.is_empty() {
            return;
        }
        let size = transmit.segment_size.map(|size| size + CHANNEL_HEADER);
        let gso = self.socket.state.max_gso_segments() > 1;
        for contents in scratch.chunks(chunk(scratch.len(), size, gso)) {
            // What the kernel does not take now is lost, as on any link that is full.
            let transmit = Transmit {
                destination: self.server,
                ecn: transmit.ecn,
                contents,
                segment_size: size.filter(|size| *size < contents.len()),
                src_ip: None,
            };
            let _ = self.socket.transmit(&transmit, None);
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Turn) -> T) -> T {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut turn);
        while let Some(datagram) = turn.client.poll_transmit() {
            self.socket.send(&datagram, self.server);
        }
        result
    }

    async fn run(self: Arc<Self>, wire: Arc<Wire>, events: mpsc::Sender<TurnEvent>) {
        loop {
            let due = self.with(|turn| {
                while let Some(event) = turn.client.poll_event() {
                    // Nobody listens any more once the driver is gone, which closes the relay.
                    let _ = events.try_send(event);
                }
                turn.client.poll_timeout()
            });
            tokio::select! {
                received = self.socket.io.readable() => {
                    if received.is_err() || !self.receive(&wire) {
                        tokio::time::sleep(AFTER_ERROR).await;
                    }
                }
                () = sleep_until(due) => self.with(|turn| turn.client.handle_timeout(now())),
                () = self.earlier.notified() => {}
                () = self.closing.cancelled() => break,
            }
        }
        wire.remove_relay(self.socket.id);
        self.with(|turn| turn.client.release(now()));
    }

    /// Reads what is there, up to a turn's worth. False after an error of the socket.
    fn receive(&self, wire: &Wire) -> bool {
        BUFFER.with_borrow_mut(|buffer| self.receive_into(wire, buffer))
    }

    fn receive_into(&self, wire: &Wire, buffer: &mut [u8]) -> bool {
        for _ in 0..TURN {
            let mut metas = [quinn::udp::RecvMeta::default()];
            let received = self.socket.io.try_io(tokio::io::Interest::READABLE, || {
                let mut bufs = [io::IoSliceMut::new(buffer)];
                self.socket.state.recv((&self.socket.io).into(), &mut bufs, &mut metas)
            });
            match received {
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
            let [meta] = metas;
            if canonical(meta.addr) != self.server {
                count(&wire.counters.relay_stranger);
                continue;
            }
            for segment in segments(meta.len, meta.stride) {
                self.take(wire, &buffer[segment]);
            }
        }
        true
    }

    fn take(&self, wire: &Wire, datagram: &[u8]) {
        let (data, forged) = self
            .with(|turn| (turn.client.handle_packet(now(), datagram), turn.client.take_forged()));
        add(&wire.counters.turn_forged, forged);
        if let Some((peer, payload)) = data {
            let route = Route { local: self.socket.id, remote: canonical(peer) };
            wire.unwrapped(route, &datagram[payload]);
        }
    }
}

/// Bytes that leave at once of a batch of packets of this size: all, or one packet where the socket's path has refused
/// batches (quinn-udp notices that by itself, per socket).
fn chunk(batch: usize, size: Option<usize>, gso: bool) -> usize {
    size.filter(|_| !gso).unwrap_or(batch).max(1)
}

/// RFC 8656 section 12.4.
const CHANNEL_HEADER: usize = 4;
/// Batches read before the task lets others run.
const TURN: usize = 16;
/// A socket that fails is left alone for a moment, so that an error which stays costs nothing.
const AFTER_ERROR: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_leaves_one_by_one_where_the_path_refuses_batches() {
        let batch = vec![0; 2500];
        let leaves = |gso| batch.chunks(chunk(batch.len(), Some(1000), gso)).map(<[u8]>::len);
        assert_eq!(leaves(true).collect::<Vec<_>>(), [2500]);
        assert_eq!(leaves(false).collect::<Vec<_>>(), [1000, 1000, 500]);
        assert_eq!(chunk(1200, None, false), 1200);
    }
}
