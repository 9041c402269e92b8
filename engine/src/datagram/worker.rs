//! One worker's loop: wait, move data, answer, look at the clock.
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::allocation::Tuple;
use super::binding::Site;
use super::counts::{Count, Counters, UdpDrop};
use super::forward::{FromClient, ToPeer};
use super::peers::Peers;
use super::ready::{Event, Ready};
use super::relays::Relays;
use super::server::{Now, Server};
use crate::ring::{HEAD_MAX, Inbox, Outbox, Parcel, Received, local_addresses};

/// What a worker serves.
pub(crate) struct Worker {
    pub(crate) ready: Arc<Ready>,
    /// By site: the primary one is this worker's own, the others are for answers that are asked to come from there.
    pub(crate) sites: [Option<UdpSocket>; Site::COUNT],
    pub(crate) relays: Relays,
    pub(crate) server: Server,
    pub(crate) counters: Arc<Counters>,
    pub(crate) clock: Clock,
    /// Makes the list of forbidden peers anew.
    pub(crate) judge: Judge,
    pub(crate) desk: Desk,
}

/// Buffers and lists that are used again and again.
pub(crate) struct Desk {
    inbox: Inbox,
    outbox: Outbox,
    to_peers: Vec<Sorted>,
    parcels: Vec<Parcel>,
    /// Numbers Data indications.
    number: u64,
}

/// Payload for a peer, to be sorted by socket without changing its order there.
#[derive(Clone, Copy)]
struct Sorted {
    order: usize,
    to: ToPeer,
    /// Where the payload lies in the inbox.
    start: usize,
}

/// The moments that a service counts from.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) started: Instant,
}

/// Knows the addresses that peers must not have.
pub(crate) struct Judge {
    pub(crate) allowed: Vec<super::Network>,
    /// Addresses of this host that no interface shows: the public side of a 1:1 NAT.
    pub(crate) own: Vec<IpAddr>,
    pub(crate) at: Instant,
}

/// Receptions per batch. 32 fill a system call well and their headers stay in the cache.
const SLOTS: usize = 32;
/// Batches from one site, or receptions from one allocation, before others have their turn.
const ROUNDS: usize = 4;
const FROM_PEER_MAX: usize = 16;
/// How often ended allocations are swept.
const SWEEP: Duration = Duration::from_secs(1);
/// Addresses of a host change seldom; reading them takes some 50 microseconds.
const LOOK_AT_ADDRESSES: Duration = Duration::from_secs(10);

impl Desk {
    pub(crate) fn new(number: u64) -> Self {
        Self {
            inbox: Inbox::new(SLOTS),
            outbox: Outbox::new(),
            to_peers: Vec::new(),
            parcels: Vec::new(),
            number,
        }
    }
}

impl Judge {
    pub(crate) fn peers(&self) -> Peers {
        let mut local = local_addresses().unwrap_or_else(|error| {
            tracing::warn!(%error, "the addresses of this host are unknown: only configured ones are kept from the relay");
            Vec::new()
        });
        local.extend(&self.own);
        Peers::new(local, self.allowed.clone())
    }
}

impl Worker {
    /// Serves until it is stopped.
    pub(crate) fn run(mut self) {
        let mut events = Vec::new();
        let mut swept = Instant::now();
        loop {
            let patience = (!self.relays.is_empty()).then_some(SWEEP);
            if let Err(error) = self.ready.wait(patience, &mut events) {
                return tracing::error!(%error, "a UDP worker ended");
            }
            let now = self.clock.now();
            if now.instant.duration_since(self.judge.at) >= LOOK_AT_ADDRESSES {
                self.judge.at = now.instant;
                self.server.set_peers(self.judge.peers());
            }
            if self.turn(now, &events) {
                return;
            }
            if now.instant.duration_since(swept) >= SWEEP {
                swept = now.instant;
                self.server.expire(now.instant, &mut self.relays);
            }
        }
    }

    /// Serves what is ready: allocations first, all together, as their datagrams leave through one socket. True if told to
    /// stop.
    fn turn(&mut self, now: Now, events: &[Event]) -> bool {
        let mut used = 0;
        for event in events {
            if let Event::Relay(id) = *event {
                used = self.peers(now.instant, id, used);
            }
        }
        self.flush_to_clients();
        for event in events {
            if let Event::Site(site) = *event {
                self.clients(now, site);
            }
        }
        events.contains(&Event::Stop)
    }

    /// Receives what peers sent to an allocation, into the slots that are still free; answers how many are used then.
    fn peers(&mut self, now: Instant, id: usize, used: usize) -> usize {
        let mut first = used;
        if first + FROM_PEER_MAX > SLOTS {
            self.flush_to_clients();
            first = 0;
        }
        let Some(socket) = self.relays.get(id) else { return first };
        // What fails is an empty socket; an ICMP error is not told to a socket that is not connected.
        let Ok(count) = self.desk.inbox.receive(socket, first, FROM_PEER_MAX) else { return first };
        for index in 0..count {
            if let Some(received) = self.desk.inbox.get(first, index) {
                self.take_from_peer(now, id, &received);
            }
        }
        first + count
    }

    fn take_from_peer(&mut self, now: Instant, id: usize, received: &Received) {
        let route = match self.server.route(now, id, received.from) {
            Ok(route) => route,
            Err(why) => return self.counters.add(Count::Dropped(why), 1),
        };
        let mut packets = 0;
        for (start, length) in received.datagrams() {
            self.desk.number = self.desk.number.wrapping_add(1);
            let (head, head_length, padding) = route.head(length, self.desk.number);
            let (to, from) = (route.client, Some(route.from));
            self.desk.parcels.push(Parcel { to, from, head, head_length, padding, start, length });
            packets += 1;
        }
        self.counters.add(Count::PacketsToClients, packets);
        self.counters.add(Count::BytesToClients, received.length as u64);
    }

    fn flush_to_clients(&mut self) {
        let Desk { inbox, outbox, parcels, .. } = &mut self.desk;
        if let Some(socket) =
            self.sites[Site::PRIMARY.index()].as_ref().filter(|_| !parcels.is_empty())
        {
            let sent = outbox.send(socket.as_fd(), inbox.bytes(), parcels);
            self.counters.add(Count::Dropped(UdpDrop::SendFailed), sent.lost as u64);
        }
        parcels.clear();
    }

    fn clients(&mut self, now: Now, at: Site) {
        for _ in 0..ROUNDS {
            let Some(socket) = &self.sites[at.index()] else { return };
            let Ok(count) = self.desk.inbox.receive(socket.as_fd(), 0, SLOTS) else { return };
            for index in 0..count {
                match self.desk.inbox.get(0, index) {
                    Some(received) => self.take_from_client(now, at, &received),
                    None => self.counters.add(Count::Dropped(UdpDrop::Malformed), 1),
                }
            }
            self.flush_to_peers();
            if count < SLOTS {
                return;
            }
        }
    }

    fn take_from_client(&mut self, now: Now, at: Site, received: &Received) {
        let bound = || self.sites[at.index()].as_ref().and_then(|socket| socket.local_addr().ok());
        let reached = received.to.or_else(|| bound().map(|address| address.ip()));
        let reached = reached.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let tuple = Tuple { client: received.from, reached };
        for (start, length) in received.datagrams() {
            let bytes = self.desk.inbox.bytes().get(start..start + length).unwrap_or_default();
            let sorted = if at == Site::PRIMARY {
                self.server.sort(now.instant, &tuple, bytes)
            } else {
                FromClient::Control
            };
            match sorted {
                FromClient::Data(to) => {
                    let order = self.desk.to_peers.len();
                    self.desk.to_peers.push(Sorted { order, to, start: start + to.start });
                }
                FromClient::Dropped(why) => self.counters.add(Count::Dropped(why), 1),
                FromClient::Control => {
                    // It may end an allocation, whose id the next one takes: what came before it must not leave by that.
                    self.flush_to_peers();
                    let bytes = self.desk.inbox.bytes().get(start..start + length);
                    let bytes = bytes.unwrap_or_default();
                    let reply = self.server.control(now, at, tuple, bytes, &mut self.relays);
                    if let Some((reply, from)) = reply {
                        self.answer(tuple, &reply, from);
                    }
                }
            }
        }
    }

    fn answer(&mut self, to: Tuple, reply: &[u8], from: Site) {
        let Some(socket) = &self.sites[from.index()] else { return };
        let bound = socket.local_addr().ok().map(|address| address.ip());
        // A site with an address of its own answers from there.
        let source = bound.filter(|ip| !ip.is_unspecified()).unwrap_or(to.reached);
        let parcel = Parcel::plain(to.client, Some(source), 0, reply.len());
        let sent = self.desk.outbox.send(socket.as_fd(), reply, &[parcel]);
        self.counters.add(Count::Dropped(UdpDrop::SendFailed), sent.lost as u64);
    }

    /// Sends what clients gave for peers, socket by socket.
    fn flush_to_peers(&mut self) {
        let Desk { inbox, outbox, to_peers, parcels, .. } = &mut self.desk;
        if !to_peers.is_sorted_by_key(|sorted| sorted.to.id) {
            to_peers.sort_unstable_by_key(|sorted| (sorted.to.id, sorted.order));
        }
        for run in to_peers.chunk_by(|a, b| a.to.id == b.to.id) {
            let id = run[0].to.id;
            if run.iter().any(|sorted| sorted.to.whole) {
                self.relays.keep_whole(id);
            }
            let Some(socket) = self.relays.get(id) else { continue };
            let parcel = |sorted: &Sorted| {
                Parcel::plain(sorted.to.peer, None, sorted.start, sorted.to.length)
            };
            parcels.clear();
            parcels.extend(run.iter().map(parcel));
            let sent = outbox.send(socket, inbox.bytes(), parcels);
            self.counters.add(Count::Dropped(UdpDrop::SendFailed), sent.lost as u64);
            self.counters.add(Count::PacketsToPeers, sent.datagrams as u64);
            let bytes = run.iter().map(|sorted| sorted.to.length as u64).sum();
            self.counters.add(Count::BytesToPeers, bytes);
        }
        parcels.clear();
        to_peers.clear();
    }
}

impl Clock {
    fn now(self) -> Now {
        let instant = Instant::now();
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Now {
            instant,
            unix_s: unix.map_or(0, |unix| unix.as_secs()),
            uptime_s: u32::try_from(instant.duration_since(self.started).as_secs())
                .unwrap_or(u32::MAX),
        }
    }
}

impl Parcel {
    fn plain(to: SocketAddr, from: Option<IpAddr>, start: usize, length: usize) -> Self {
        Self { to, from, head: [0; HEAD_MAX], head_length: 0, padding: 0, start, length }
    }
}
