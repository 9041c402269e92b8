//! The sockets of one worker's allocations.
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

use super::ready::Ready;
use super::server::{Opened, RelaySockets, Wish};
use crate::ring::{dont_fragment, prepare_datagrams};

/// Sockets by their id.
pub(crate) struct Relays {
    sockets: Slab<Relay>,
    ready: Arc<Ready>,
    ports: RangeInclusive<u16>,
    reserved: Arc<Reserved>,
}

struct Relay {
    socket: UdpSocket,
    /// DF is set.
    whole: bool,
}

/// Ports kept for a second Allocate (RFC 8656 section 7.2, EVEN-PORT), which may come to another worker.
#[derive(Default)]
pub(crate) struct Reserved(Mutex<HashMap<[u8; 8], (UdpSocket, Instant)>>);

/// RFC 8656 section 7.2.
const RESERVED_FOR: Duration = Duration::from_secs(30);
/// Ports that are kept and not used: nobody but RTP's old pairs asks for any.
const RESERVED_MAX: usize = 256;
/// Random ports tried before the answer is 508; with half of them taken, all are with a chance of 2^-32.
const TRIES: usize = 32;
/// A burst of 64 KiB batches.
const BUFFER: usize = 1 << 20;

impl Relays {
    pub(crate) fn new(
        ready: Arc<Ready>,
        ports: RangeInclusive<u16>,
        reserved: Arc<Reserved>,
    ) -> Self {
        Self { sockets: Slab::new(), ready, ports, reserved }
    }

    pub(crate) fn get(&self, id: usize) -> Option<BorrowedFd<'_>> {
        self.sockets.get(id).map(|relay| relay.socket.as_fd())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Sets DF from now on: Linux has it per socket, so one datagram that wants it decides for all.
    pub(crate) fn keep_whole(&mut self, id: usize) {
        if let Some(relay) = self.sockets.get_mut(id).filter(|relay| !relay.whole) {
            // A kernel that refuses leaves the datagrams fragmentable, as they were.
            relay.whole = dont_fragment(&relay.socket).is_ok();
        }
    }

    fn obtain(&self, wish: &Wish, now: Instant) -> Option<(UdpSocket, Option<[u8; 8]>)> {
        if let Some(token) = wish.token {
            return Some((self.reserved.take(token, now)?, None));
        }
        for _ in 0..TRIES {
            let port = self.random_port(wish.even)?;
            let Ok(socket) = bind((wish.bind, port).into()) else { continue };
            if !wish.reserve {
                return Some((socket, None));
            }
            let next = port.checked_add(1).filter(|next| self.ports.contains(next));
            let Some(Ok(next)) = next.map(|next| bind((wish.bind, next).into())) else { continue };
            return Some((socket, Some(self.reserved.keep(next, now)?)));
        }
        None
    }

    fn random_port(&self, even: bool) -> Option<u16> {
        let mut random = [0; 4];
        aws_lc_rs::rand::fill(&mut random).ok()?;
        let (first, last) = (u32::from(*self.ports.start()), u32::from(*self.ports.end()));
        let port = first + u32::from_be_bytes(random) % last.checked_sub(first)?.checked_add(1)?;
        let port = if even { port & !1 } else { port };
        u16::try_from(port).ok().filter(|port| self.ports.contains(port))
    }
}

impl RelaySockets for Relays {
    fn open(&mut self, wish: &Wish) -> Option<Opened> {
        let (socket, token) = self.obtain(wish, Instant::now())?;
        let bound = socket.local_addr().ok()?;
        let entry = self.sockets.vacant_entry();
        let id = entry.key();
        self.ready.watch(&socket, Ready::relay(id)).ok()?;
        entry.insert(Relay { socket, whole: false });
        if wish.whole {
            self.keep_whole(id);
        }
        Some(Opened { id, bound, token })
    }

    fn close(&mut self, id: usize) {
        // Closing ends the watch: nobody holds another descriptor of it.
        drop(self.sockets.try_remove(id));
    }
}

impl Reserved {
    fn keep(&self, socket: UdpSocket, now: Instant) -> Option<[u8; 8]> {
        let mut token = [0; 8];
        aws_lc_rs::rand::fill(&mut token).ok()?;
        let mut kept = self.lock();
        kept.retain(|_, (_, until)| *until > now);
        (kept.len() < RESERVED_MAX).then(|| kept.insert(token, (socket, now + RESERVED_FOR)))?;
        Some(token)
    }

    fn take(&self, token: [u8; 8], now: Instant) -> Option<UdpSocket> {
        let (socket, until) = self.lock().remove(&token)?;
        (until > now).then_some(socket)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 8], (UdpSocket, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if matches!(address.ip(), IpAddr::V6(_)) {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    enlarge(&socket);
    prepare_datagrams(&socket, false)?;
    Ok(socket.into())
}

/// Asks for large buffers and takes what `net.core.rmem_max` and `wmem_max` allow.
pub(crate) fn enlarge(socket: &Socket) {
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const PLAIN: Wish =
        Wish { bind: LOOPBACK, even: false, reserve: false, token: None, whole: false };

    fn relays(ports: RangeInclusive<u16>) -> Relays {
        Relays::new(Arc::new(Ready::new().unwrap()), ports, Arc::default())
    }

    #[test]
    fn ports_come_from_the_range_and_run_out() {
        let mut relays = relays(41_000..=41_003);
        let mut ports: Vec<_> = (0..200).filter_map(|_| relays.open(&PLAIN)).collect();
        assert!(ports.len() <= 4 && ports.len() > 1, "{ports:?}");
        assert!(ports.iter().all(|opened| (41_000..=41_003).contains(&opened.bound.port())));
        let first = ports.remove(0);
        relays.close(first.id);
        relays.close(first.id);
        assert!(relays.get(first.id).is_none());
    }

    #[test]
    fn an_even_port_keeps_its_neighbour_for_whoever_has_the_token() {
        let mut relays = relays(41_100..=41_199);
        let opened = relays.open(&Wish { even: true, reserve: true, ..PLAIN }).unwrap();
        assert_eq!(opened.bound.port() % 2, 0);
        let second = Wish { token: opened.token, ..PLAIN };
        let next = relays.open(&second).unwrap();
        assert_eq!((next.bound.port(), next.token), (opened.bound.port() + 1, None));
        assert_eq!(relays.open(&second), None, "a token is used once");
    }

    #[test]
    fn kept_ports_are_let_go_after_half_a_minute() {
        let reserved = Reserved::default();
        let now = Instant::now();
        let keep = |now| reserved.keep(bind((LOOPBACK, 0).into()).unwrap(), now).unwrap();
        let token = keep(now);
        assert!(reserved.take(token, now + RESERVED_FOR).is_none());
        keep(now);
        keep(now + RESERVED_FOR);
        assert_eq!(reserved.lock().len(), 1);
    }
}
