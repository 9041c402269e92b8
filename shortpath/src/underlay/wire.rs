//! The socket that quinn sees: all our UDP sockets and relays as one, with virtual peer addresses.
//!
//! Receiving keeps the kernel's batches (GRO) as they are when all of a batch is QUIC for one slot, which is nearly always;
//! sending passes quinn's batches (GSO) through. No error of a socket ends the endpoint: ICMP may be forged, interfaces
//! come back.
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::sync::mpsc;

use super::UnderlayConfig;
use super::demux::{Kind, compact, kind, segments};
use super::early::Early;
use super::exchange::{Ear, Exchange};
use super::ignored::{Counters, count};
use super::paths::{Arrival, ConnectionIds, Paths, Refusal, SlotId, slot_at, virtual_address};
use super::relay::Relay;
use super::sockets::{Bound, open_in_range};
use super::spread::Spreads;
use crate::path::{LocalId, Route, canonical};
use crate::time::now;

/// See the module.
pub(super) struct Wire {
    pub(super) sockets: Vec<Bound>,
    /// A second IPv4 socket, opened where the NAT ends mappings at an age (see [`crate::path::Shifts`]).
    twin: OnceLock<Bound>,
    /// The twin must not send: its next mapping is to be born later.
    twin_silent: AtomicBool,
    pub(super) exchange: Exchange,
    pub(super) ids: ConnectionIds,
    pub(super) counters: Counters,
    paths: RwLock<Paths>,
    early: Mutex<Early>,
    relays: RwLock<HashMap<LocalId, Arc<Relay>>>,
    /// Who wants to know of QUIC packets by routes that are not proved.
    strangers: Mutex<HashMap<SlotId, mpsc::Sender<(SlotId, Route)>>>,
    inbox: Mutex<Inbox>,
    spreads: Mutex<Spreads>,
    /// Some slot is in an alarm: sending looks at `spreads`.
    alarmed: AtomicBool,
    forgotten: AtomicU32,
    /// The socket that could not send last.
    blocked: AtomicUsize,
    /// The socket to receive from first.
    turn: AtomicUsize,
}

/// QUIC packets that do not fit into a batch as the kernel gave it: those of relays, and of mixed batches.
#[derive(Debug, Default)]
struct Inbox {
    packets: VecDeque<(SlotId, Bytes)>,
    waker: Option<Waker>,
    /// Packets that came here so far.
    #[cfg(test)]
    copied: u64,
}

/// Every so many calls the inbox comes before the sockets, so that one which is always busy does not keep relays waiting.
const INBOX_TURN: usize = 4;
/// Packets waiting in the inbox: 1.5 MB, what a relay at 1 Gbit/s brings in 12 ms.
const INBOX: usize = 1024;

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(sockets: Vec<Bound>) -> Self {
        Self {
            sockets,
            twin: OnceLock::new(),
            twin_silent: AtomicBool::new(true),
            exchange: Exchange::default(),
            ids: ConnectionIds::default(),
            counters: Counters::default(),
            paths: RwLock::default(),
            early: Mutex::default(),
            relays: RwLock::default(),
            strangers: Mutex::default(),
            inbox: Mutex::default(),
            spreads: Mutex::default(),
            alarmed: AtomicBool::new(false),
            forgotten: AtomicU32::new(0),
            blocked: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        }
    }

    /// The number of the twin, whether it is open or not.
    pub(super) fn twin_id(&self) -> LocalId {
        LocalId(u16::try_from(self.sockets.len()).unwrap_or(u16::MAX))
    }

    /// Lets the twin speak, or silences it; it is opened when it is to speak first. Returns its port.
    ///
    /// # Errors
    /// No socket can be opened within the configured ports.
    pub(super) fn let_twin_speak(&self, speaks: bool, config: &UnderlayConfig) -> io::Result<u16> {
        if speaks && self.twin.get().is_none() {
            let _ = self.twin.set(open_in_range(self.twin_id(), false, None, config)?);
            // From now on quinn polls it, too.
            let waker = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).waker.take();
            waker.into_iter().for_each(Waker::wake);
        }
        self.twin_silent.store(!speaks, Ordering::Relaxed);
        Ok(self.twin.get().map_or(0, |twin| twin.port))
    }

    /// Whether that socket speaks IPv6; the twin does not.
    pub(super) fn is_ipv6(&self, id: LocalId) -> bool {
        self.sockets.get(usize::from(id.0)).is_some_and(|socket| socket.ipv6)
    }

    fn all_sockets(&self) -> impl Iterator<Item = &Bound> {
        self.sockets.iter().chain(self.twin.get())
    }

    fn socket(&self, at: usize) -> Option<&Bound> {
        self.sockets.get(at).or_else(|| self.twin.get().filter(|_| at == self.sockets.len()))
    }

    /// Whether packets by this base go nowhere now.
    fn is_silent(&self, id: LocalId) -> bool {
        id == self.twin_id() && self.twin_silent.load(Ordering::Relaxed)
    }

    /// Changes the paths.
    pub(super) fn paths<T>(&self, act: impl FnOnce(&mut Paths) -> T) -> T {
        act(&mut self.paths.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets in what comes by a route that is proved, also what came a moment ago; sends by it from now on if `send`.
    pub(super) fn admit(&self, slot: SlotId, route: Route, send: bool) {
        self.paths(|paths| if send { paths.direct(slot, route) } else { paths.admit(slot, route) });
        let early = self.early().take(now(), slot, route);
        early.iter().for_each(|packet| self.set_aside(slot, packet));
    }

    fn early(&self) -> MutexGuard<'_, Early> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `ear` is told when packets of the slot come by routes that are not proved.
    pub(super) fn watch_strangers(&self, slot: SlotId, ear: Option<mpsc::Sender<(SlotId, Route)>>) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        match ear {
            Some(ear) => drop(strangers.insert(slot, ear)),
            None => drop(strangers.remove(&slot)),
        }
    }

    fn spreads<T>(&self, act: impl FnOnce(&mut Spreads) -> T) -> T {
        act(&mut self.spreads.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Nothing is heard of the session of these slots: what they send leaves by all routes that may carry, for a while.
    pub(super) fn alarm(&self, slots: &[SlotId]) {
        self.spreads(|spreads| slots.iter().for_each(|slot| spreads.alarm(now(), *slot)));
        self.alarmed.store(true, Ordering::Relaxed);
    }

    /// These routes may carry what the slot sends, the likeliest first.
    pub(super) fn stand_by(&self, slot: SlotId, routes: Vec<Route>) {
        let again = self.spreads(|spreads| spreads.stand_by(now(), slot, routes));
        let dscp = self.mark_of(slot);
        for (route, batch) in again {
            // Best effort: quinn sends it again.
            let _ = self.pass(
                route,
                &Transmit {
                    destination: route.remote,
                    ecn: None,
                    contents: &batch.contents,
                    segment_size: batch.segment,
                    src_ip: None,
                },
                dscp,
            );
        }
    }

    fn mark_of(&self, slot: SlotId) -> Option<u8> {
        self.paths.read().unwrap_or_else(PoisonError::into_inner).mark_of(slot)
    }

    /// This socket or relay reaches peers anew.
    pub(super) fn renewed(&self, slot: SlotId, local: LocalId) {
        self.spreads(|spreads| spreads.renewed(slot, local));
    }

    /// The slot is gone.
    pub(super) fn close(&self, slot: SlotId) {
        self.paths(|paths| paths.close(slot));
        self.spreads(|spreads| spreads.close(slot));
    }

    /// What quinn sends for a slot in an alarm leaves by other routes, too.
    fn spread(&self, slot: SlotId, out: Option<Route>, transmit: &Transmit<'_>, dscp: Option<u8>) {
        let (contents, segment) = (transmit.contents, transmit.segment_size);
        let others = self.spreads(|spreads| {
            let others = spreads.sends(now(), slot, out, contents, segment);
            self.alarmed.store(spreads.is_alarmed(now()), Ordering::Relaxed);
            others
        });
        for route in others {
            // Best effort.
            let _ = self.pass(route, transmit, dscp);
        }
    }

    /// Sends by a route, marked with the code point.
    fn pass(&self, route: Route, transmit: &Transmit<'_>, dscp: Option<u8>) -> io::Result<()> {
        if self.is_silent(route.local) {
            return Ok(());
        }
        let Some(socket) = self.socket(usize::from(route.local.0)) else {
            self.relay(route.local).iter().for_each(|relay| relay.transmit(route.remote, transmit));
            return Ok(());
        };
        let transmit = Transmit {
            destination: route.remote,
            ecn: transmit.ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: None,
        };
        socket.transmit(&transmit, dscp)
    }

    /// Takes a relay in; `None` when all numbers are taken.
    pub(super) fn add_relay(&self, make: impl FnOnce(LocalId) -> Arc<Relay>) -> Option<Arc<Relay>> {
        let mut relays = self.relays.write().unwrap_or_else(PoisonError::into_inner);
        let LocalId(twin) = self.twin_id();
        let id =
            (twin.saturating_add(1)..u16::MAX).map(LocalId).find(|id| !relays.contains_key(id))?;
        let relay = make(id);
        relays.insert(id, Arc::clone(&relay));
        Some(relay)
    }

    pub(super) fn remove_relay(&self, id: LocalId) {
        self.relays.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn relay(&self, id: LocalId) -> Option<Arc<Relay>> {
        self.relays.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Sends a STUN message by a route; `ear` hears the answer.
    pub(super) fn send_stun(&self, ear: &Ear, route: Route, datagram: &[u8]) {
        if self.is_silent(route.local) {
            return;
        }
        self.exchange.sends(ear, datagram);
        if let Some(socket) = self.socket(usize::from(route.local.0)) {
            socket.send(datagram, route.remote);
        } else if let Some(relay) = self.relay(route.local) {
            relay.send(route.remote, datagram);
        }
    }

    /// One datagram that a relay unwrapped.
    pub(super) fn unwrapped(&self, route: Route, datagram: &[u8]) {
        match kind(datagram) {
            Kind::Stun => self.stun(route, datagram),
            Kind::Quic(cid) => {
                let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
                let admitted = paths.admitted(route);
                match paths.arrive(&self.ids, admitted, cid) {
                    Ok(Arrival::Slot(slot)) => self.set_aside(slot, datagram),
                    Ok(Arrival::AnyAdmitted) => {
                        admitted.iter().for_each(|slot| self.set_aside(*slot, datagram));
                    }
                    Err(refusal) => self.refuse(route, refusal, datagram),
                }
            }
            Kind::Other => count(&self.counters.garbage),
        }
    }

    /// A connection of the slot has decrypted a packet that was addressed to this id.
    pub(super) fn learn(&self, slot: SlotId, id: &[u8]) {
        if let Some(number) = self.ids.number_of_nobodys(id) {
            self.paths(|paths| paths.learn(slot, number));
        }
    }

    /// The number is given to a new id. quinn may refuse it as it holds the old one, so its owner must learn it anew.
    pub(super) fn forget_id(&self, number: u32) {
        if self.paths(|paths| paths.forget_id(number)) {
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Goes up whenever it is forgotten whose an id is.
    pub(super) fn forgotten(&self) -> u32 {
        self.forgotten.load(Ordering::Relaxed)
    }

    fn stun(&self, route: Route, datagram: &[u8]) {
        if !self.exchange.deliver(route, datagram) {
            count(&self.counters.stun_unclaimed);
        }
    }

    fn refuse(&self, route: Route, refusal: Refusal, datagram: &[u8]) {
        match refusal {
            Refusal::UnknownId => count(&self.counters.quic_unknown_id),
            Refusal::UnknownToken => count(&self.counters.quic_unknown_token),
            Refusal::Early(slot) => self.is_stranger(route, Some(slot), datagram),
            Refusal::Stranger(slot) => self.is_stranger(route, slot, datagram),
        }
    }

    /// The packet waits for its route's proof, and the slot's owner hears of the route.
    fn is_stranger(&self, route: Route, slot: Option<SlotId>, datagram: &[u8]) {
        count(&self.counters.quic_stranger);
        let Some(slot) = slot else { return };
        self.early().keep(now(), slot, route, datagram);
        let strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ear) = strangers.get(&slot) {
            // A full ear knows already.
            let _ = ear.try_send((slot, route));
        }
    }

    #[cfg(test)]
    pub(super) fn copied(&self) -> u64 {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).copied
    }

    /// Keeps a packet for the next [`AsyncUdpSocket::poll_recv`].
    fn set_aside(&self, slot: SlotId, datagram: &[u8]) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        {
            inbox.copied += 1;
        }
        if inbox.packets.len() >= INBOX {
            return count(&self.counters.overflow);
        }
        inbox.packets.push_back((slot, Bytes::copy_from_slice(datagram)));
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }

    /// Fills buffers from the inbox; registers for more when it is empty.
    fn take_aside(
        &self,
        cx: &Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> usize {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        for (buffer, meta) in bufs.iter_mut().zip(metas) {
            let Some((slot, packet)) = inbox.packets.pop_front() else { break };
            let Some(place) = buffer.get_mut(..packet.len()) else { continue };
            place.copy_from_slice(&packet);
            let (addr, len) = (virtual_address(slot), packet.len());
            *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
            taken += 1;
        }
        if taken == 0 {
            inbox.waker = Some(cx.waker().clone());
        }
        taken
    }

    /// Sorts what a socket received: QUIC stays, in the first buffers; the rest goes where it belongs. Returns how many
    /// buffers stay.
    fn sort(
        &self,
        local: LocalId,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
        received: usize,
    ) -> usize {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        let mut kept = 0;
        for at in 0..received {
            let route = Route { local, remote: canonical(metas[at].addr) };
            let Some((slot, len)) = self.sort_batch(&paths, route, &mut bufs[at], &metas[at])
            else {
                continue;
            };
            metas[at] = RecvMeta { addr: virtual_address(slot), len, dst_ip: None, ..metas[at] };
            bufs.swap(kept, at);
            metas.swap(kept, at);
            kept += 1;
        }
        kept
    }

    /// One batch of one sender: the slot and the bytes of what quinn shall see of it.
    fn sort_batch(
        &self,
        paths: &Paths,
        route: Route,
        buffer: &mut [u8],
        meta: &RecvMeta,
    ) -> Option<(SlotId, usize)> {
        let admitted = paths.admitted(route);
        let slot_of = |datagram: &[u8]| match kind(datagram) {
            Kind::Quic(cid) => paths.arrive(&self.ids, admitted, cid).map_err(Some),
            _ => Err(None),
        };
        // What is for any of several slots is for the first, and copied for the others.
        let first_of = |arrival| match arrival {
            Ok(Arrival::Slot(slot)) => Some(slot),
            Ok(Arrival::AnyAdmitted) if admitted.len() == 1 => admitted.first().copied(),
            _ => None,
        };
        let mut all = segments(meta.len, meta.stride);
        let first = all.next().map(|segment| first_of(slot_of(&buffer[segment])))?;
        if first.is_some() && all.all(|segment| first_of(slot_of(&buffer[segment])) == first) {
            return first.map(|slot| (slot, meta.len));
        }
        let mut keep: Vec<Range<usize>> = Vec::new();
        let mut kept = None;
        for segment in segments(meta.len, meta.stride) {
            let datagram = &buffer[segment.clone()];
            let slots = match slot_of(datagram) {
                Ok(Arrival::Slot(slot)) => &[slot][..],
                Ok(Arrival::AnyAdmitted) => admitted,
                Err(Some(refusal)) => {
                    self.refuse(route, refusal, datagram);
                    continue;
                }
                Err(None) if matches!(kind(datagram), Kind::Stun) => {
                    self.stun(route, datagram);
                    continue;
                }
                Err(None) => {
                    count(&self.counters.garbage);
                    continue;
                }
            };
            for slot in slots {
                if *kept.get_or_insert(*slot) == *slot {
                    keep.push(segment.clone());
                } else {
                    self.set_aside(*slot, datagram);
                }
            }
        }
        kept.map(|slot| (slot, compact(buffer, &keep)))
    }

    fn poll_socket(
        &self,
        socket: &Bound,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<usize> {
        loop {
            if ready!(socket.io.poll_recv_ready(cx)).is_err() {
                return Poll::Pending;
            }
            let received = socket
                .io
                .try_io(Interest::READABLE, || socket.state.recv((&socket.io).into(), bufs, metas));
            match received {
                Ok(received) => match self.sort(socket.id, bufs, metas, received) {
                    0 => {}
                    kept => return Poll::Ready(kept),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => count(&self.counters.socket_errors),
            }
        }
    }
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { wire: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let slot = slot_at(transmit.destination);
        let (route, dscp) = {
            let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
            slot.map_or((None, None), |slot| (paths.route_of(slot), paths.mark_of(slot)))
        };
        if let Some(slot) = slot.filter(|_| self.alarmed.load(Ordering::Relaxed)) {
            self.spread(slot, route, transmit, dscp);
        }
        // Without a route the packet is lost, as any may be.
        let Some(route) = route else { return Ok(()) };
        let sent = self.pass(route, transmit, dscp);
        let at = usize::from(route.local.0);
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked.store(at, Ordering::Relaxed);
                Err(error)
            }
            Err(_) => {
                count(&self.counters.socket_errors);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        if first.is_multiple_of(INBOX_TURN) {
            let taken = self.take_aside(cx, bufs, metas);
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
        }
        let sockets = self.sockets.len() + usize::from(self.twin.get().is_some());
        for step in 0..sockets {
            let Some(socket) = self.socket(first.wrapping_add(step) % sockets) else { continue };
            if let Poll::Ready(kept) = self.poll_socket(socket, cx, bufs, metas) {
                return Poll::Ready(Ok(kept));
            }
        }
        // After the sockets, whose mixed batches fill it.
        let taken = self.take_aside(cx, bufs, metas);
        if taken > 0 { Poll::Ready(Ok(taken)) } else { Poll::Pending }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((std::net::Ipv6Addr::UNSPECIFIED, 1).into())
    }

    fn max_transmit_segments(&self) -> usize {
        self.all_sockets().map(|socket| socket.state.max_gso_segments()).min().unwrap_or(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.all_sockets().map(|socket| socket.state.gro_segments()).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.all_sockets().any(|socket| socket.state.may_fragment())
    }
}

/// Waits for the socket that could not send. It may be another connection's by now, which costs one idle try.
struct Writable {
    wire: Arc<Wire>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writable")
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { wire, waiting } = &mut *self;
        let future = waiting.get_or_insert_with(|| {
            let wire = Arc::clone(wire);
            Box::pin(async move {
                let at = wire.blocked.load(Ordering::Relaxed);
                match wire.socket(at) {
                    Some(socket) => socket.io.writable().await,
                    None => Ok(()),
                }
            })
        });
        let writable = ready!(future.as_mut().poll(cx));
        *waiting = None;
        Poll::Ready(writable)
    }
}
