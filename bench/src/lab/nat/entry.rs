//! One mapping and its peers: who may answer, and when each of them has been silent too long.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Filtering, NatSettings};
use crate::lab::packet::{PacketView, Protocol, TcpFlags};

/// Remote endpoints remembered per mapping; the one idle longest is forgotten.
const PEERS_MAX: usize = 512;

/// A TCP connection being opened (RFC 5382, REQ-5: at least 4 minutes).
const TCP_OPENING: Duration = Duration::from_secs(240);

/// A TCP connection that was reset or has ended both ways: late segments may still come.
const TCP_CLOSING: Duration = Duration::from_secs(10);

/// An ICMP echo (RFC 5508, REQ-1: at least 60 s).
const ECHO: Duration = Duration::from_secs(60);

/// What a packet does to a peer's timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Datagram,
    Tcp(TcpFlags),
}

impl Segment {
    pub(super) fn of(view: &PacketView<'_>) -> Segment {
        view.tcp_flags().map_or(Segment::Datagram, Segment::Tcp)
    }

    pub(super) fn continues_tcp(self) -> bool {
        matches!(self, Segment::Tcp(flags) if !flags.syn)
    }
}

/// Inside endpoint and, as the mapping behaviour has it, whom it speaks to.
pub(super) type InsideKey = (Protocol, SocketAddr, Option<IpAddr>, u16);

/// One mapping.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: InsideKey,
    created: Duration,
    /// Last packet that refreshed it.
    pub(super) used: Duration,
    /// When the last peer runs out.
    pub(super) until: Duration,
    pub(super) peers: BTreeMap<SocketAddr, Peer>,
}

/// A remote endpoint spoken to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peer {
    pub(super) until: Duration,
    /// TCP: which directions have sent SYN and FIN (bit 0 outbound, bit 1 inbound), and RST.
    opened: u8,
    ended: u8,
    aborted: bool,
}

impl Entry {
    pub(super) fn new(now: Duration, key: InsideKey) -> Self {
        Entry { key, created: now, used: now, until: now, peers: BTreeMap::new() }
    }

    pub(super) fn ends(&self, settings: &NatSettings) -> Duration {
        settings.lifetime.map_or(self.until, |lifetime| self.until.min(self.created + lifetime))
    }

    pub(super) fn lives(&self, now: Duration, settings: &NatSettings) -> bool {
        now < self.ends(settings)
    }

    pub(super) fn knows(&self, now: Duration, remote: SocketAddr) -> bool {
        self.peers.get(&remote).is_some_and(|peer| now < peer.until)
    }

    pub(super) fn admits(&self, now: Duration, filtering: Filtering, remote: SocketAddr) -> bool {
        match filtering {
            Filtering::Open | Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => {
                let port = |port| SocketAddr::new(remote.ip(), port);
                self.peers.range(port(0)..=port(u16::MAX)).any(|(_, peer)| now < peer.until)
            }
            Filtering::AddressAndPortDependent => self.knows(now, remote),
        }
    }

    pub(super) fn refresh(
        &mut self,
        now: Duration,
        settings: &NatSettings,
        remote: SocketAddr,
        segment: Segment,
        outbound: bool,
    ) {
        if !self.peers.contains_key(&remote) {
            self.make_room();
        }
        let protocol = self.key.0;
        let peer = self.peers.entry(remote).or_default();
        if peer.until <= now {
            *peer = Peer::default();
        }
        peer.until = now
            + match (segment, protocol) {
                (Segment::Tcp(flags), _) => peer.follow(flags, outbound, settings.tcp_timeout),
                (Segment::Datagram, Protocol::Echo) => ECHO,
                // A first fragment of TCP has its flags; only UDP is left.
                (Segment::Datagram, _) => settings.udp_timeout,
            };
        self.used = now;
        self.until = match segment {
            Segment::Datagram => self.until.max(peer.until),
            // Closing shortens the time left, so the maximum must be found again.
            Segment::Tcp(_) => self.peers.values().map(|peer| peer.until).max().unwrap_or(now),
        };
    }

    /// Before one more peer: the one that would end first is forgotten.
    fn make_room(&mut self) {
        if self.peers.len() >= PEERS_MAX {
            let first_to_go = self.peers.iter().min_by_key(|(_, peer)| peer.until);
            if let Some(remote) = first_to_go.map(|(remote, _)| *remote) {
                self.peers.remove(&remote);
            }
        }
    }
}

impl Peer {
    /// Follows a TCP connection; the time it may now be silent.
    fn follow(&mut self, flags: TcpFlags, outbound: bool, established: Duration) -> Duration {
        let side = if outbound { 1 } else { 2 };
        if flags.syn {
            if self.aborted || self.ended == 3 {
                *self = Peer::default();
            }
            self.opened |= side;
        }
        if flags.fin {
            self.ended |= side;
        }
        self.aborted |= flags.rst;
        match (self.aborted || self.ended == 3, self.opened == 3) {
            (true, _) => TCP_CLOSING,
            (false, true) => established,
            (false, false) => TCP_OPENING,
        }
    }
}
