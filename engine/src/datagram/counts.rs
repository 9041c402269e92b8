//! What the UDP workers did: counted without locks, read by whoever asks.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a [`super::UdpService`] has done since its start, all workers together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpMetrics {
    /// Binding requests answered with the reflexive address.
    pub bindings_answered: u64,
    /// Allocations now.
    pub allocations: u64,
    /// Allocations made.
    pub allocations_total: u64,
    /// Allocations that ended because their user was revoked.
    pub allocations_revoked: u64,
    /// Relayed from clients to peers.
    pub to_peers: UdpTraffic,
    /// Relayed from peers to clients.
    pub to_clients: UdpTraffic,
    /// Requests answered with an error.
    pub refusals: Vec<(UdpRefusal, u64)>,
    /// Datagrams dropped without an answer.
    pub drops: Vec<(UdpDrop, u64)>,
}

impl UdpMetrics {
    /// How many requests were refused for this reason.
    #[must_use]
    pub fn refused(&self, refusal: UdpRefusal) -> u64 {
        self.refusals.iter().find(|(which, _)| *which == refusal).map_or(0, |(_, count)| *count)
    }

    /// How many datagrams were dropped for this reason.
    #[must_use]
    pub fn dropped(&self, drop: UdpDrop) -> u64 {
        self.drops.iter().find(|(which, _)| *which == drop).map_or(0, |(_, count)| *count)
    }
}

/// Relayed payload in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpTraffic {
    /// Datagrams.
    pub packets: u64,
    /// Bytes of their payload, without TURN's headers.
    pub bytes: u64,
}

macro_rules! reasons {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$variant),*];

            /// The name in metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    /// Why a request was answered with an error. Codes as in RFC 8489 section 14.8 and RFC 8656 section 19.
    UdpRefusal {
        /// 400: an attribute is missing or makes no sense.
        BadRequest = "bad_request",
        /// 401 without credentials: the first step of every client.
        Challenged = "challenged",
        /// 401: unknown or expired user, or a wrong password.
        Unauthorized = "unauthorized",
        /// 403: a peer that the relay does not send to.
        ForbiddenPeer = "forbidden_peer",
        /// 420: an unknown attribute that must be understood.
        UnknownAttributes = "unknown_attributes",
        /// 437: no allocation, or already one.
        AllocationMismatch = "allocation_mismatch",
        /// 438: a nonce that is old, of another address, of another start, or invented.
        StaleNonce = "stale_nonce",
        /// 403: the user's right has been taken back ([`super::UdpService::revoke`]).
        Revoked = "revoked",
        /// 440: no relayed addresses of this family.
        FamilyNotSupported = "family_not_supported",
        /// 441: not the user who made the allocation.
        WrongCredentials = "wrong_credentials",
        /// 442: another transport than UDP.
        TransportNotSupported = "transport_not_supported",
        /// 443: the peer is of another family than the relayed address.
        PeerFamilyMismatch = "peer_family_mismatch",
        /// 486: the user has as many allocations as allowed.
        QuotaReached = "quota_reached",
        /// 508: no port, descriptor or place left.
        InsufficientCapacity = "insufficient_capacity",
    }
}

impl UdpRefusal {
    /// The error code on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Challenged | Self::Unauthorized => 401,
            Self::ForbiddenPeer | Self::Revoked => 403,
            Self::UnknownAttributes => 420,
            Self::AllocationMismatch => 437,
            Self::StaleNonce => 438,
            Self::FamilyNotSupported => 440,
            Self::WrongCredentials => 441,
            Self::TransportNotSupported => 442,
            Self::PeerFamilyMismatch => 443,
            Self::QuotaReached => 486,
            Self::InsufficientCapacity => 508,
        }
    }
}

reasons! {
    /// Why a datagram was dropped.
    UdpDrop {
        /// Neither STUN nor ChannelData, damaged, or a message that nobody sends to a server.
        Malformed = "malformed",
        /// A control message of more than 2,048 bytes.
        Oversized = "oversized",
        /// Its source has had its share of answers without credentials.
        RateLimited = "rate_limited",
        /// Data from a client without allocation.
        NoAllocation = "no_allocation",
        /// Data on a channel that is not bound.
        NoChannel = "no_channel",
        /// Data for or from a peer without permission.
        NoPermission = "no_permission",
        /// Data for a peer that the relay does not send to.
        ForbiddenPeer = "forbidden_peer",
        /// The kernel did not take it: no room, no route, or too long.
        SendFailed = "send_failed",
    }
}

/// Places of the counters in [`Counters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Binding,
    Allocated,
    Freed,
    PacketsToPeers,
    BytesToPeers,
    PacketsToClients,
    BytesToClients,
    Revoked,
    Refused(UdpRefusal),
    Dropped(UdpDrop),
}

const PLAIN: usize = 8;
const PLACES: usize = PLAIN + UdpRefusal::ALL.len() + UdpDrop::ALL.len();

/// The counters of one worker. Only the worker writes them.
#[derive(Debug)]
pub(crate) struct Counters([AtomicU64; PLACES]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; PLACES])
    }
}

impl Counters {
    /// A load and a store: there is one writer, so no locked instruction is needed.
    pub(crate) fn add(&self, what: Count, amount: u64) {
        let place = &self.0[what.place()];
        place.store(place.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    fn get(&self, what: Count) -> u64 {
        self.0[what.place()].load(Relaxed)
    }

    /// The sum over `workers`.
    pub(crate) fn sum(workers: &[std::sync::Arc<Self>]) -> UdpMetrics {
        let sum = |what| workers.iter().map(|counters| counters.get(what)).sum::<u64>();
        let traffic = |packets, bytes| UdpTraffic { packets: sum(packets), bytes: sum(bytes) };
        UdpMetrics {
            bindings_answered: sum(Count::Binding),
            // Freed first: an allocation that ends in between must not make it negative.
            allocations: {
                let freed = sum(Count::Freed);
                sum(Count::Allocated).saturating_sub(freed)
            },
            allocations_total: sum(Count::Allocated),
            allocations_revoked: sum(Count::Revoked),
            to_peers: traffic(Count::PacketsToPeers, Count::BytesToPeers),
            to_clients: traffic(Count::PacketsToClients, Count::BytesToClients),
            refusals: UdpRefusal::ALL.map(|why| (why, sum(Count::Refused(why)))).to_vec(),
            drops: UdpDrop::ALL.map(|why| (why, sum(Count::Dropped(why)))).to_vec(),
        }
    }
}

impl Count {
    const fn place(self) -> usize {
        match self {
            Self::Binding => 0,
            Self::Allocated => 1,
            Self::Freed => 2,
            Self::PacketsToPeers => 3,
            Self::BytesToPeers => 4,
            Self::PacketsToClients => 5,
            Self::BytesToClients => 6,
            Self::Revoked => 7,
            Self::Refused(why) => PLAIN + why as usize,
            Self::Dropped(why) => PLAIN + UdpRefusal::ALL.len() + why as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn every_counter_has_its_own_place_and_workers_add_up() {
        let workers = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        for (index, why) in UdpRefusal::ALL.into_iter().enumerate() {
            workers[0].add(Count::Refused(why), index as u64);
        }
        for (index, why) in UdpDrop::ALL.into_iter().enumerate() {
            workers[1].add(Count::Dropped(why), 100 + index as u64);
        }
        workers[0].add(Count::Allocated, 3);
        workers[1].add(Count::Allocated, 3);
        workers[1].add(Count::Freed, 1);
        let metrics = Counters::sum(&workers);
        assert_eq!((metrics.allocations, metrics.allocations_total), (5, 6));
        assert_eq!(metrics.refused(UdpRefusal::InsufficientCapacity), 13);
        assert_eq!(metrics.refused(UdpRefusal::BadRequest), 0);
        assert_eq!(metrics.dropped(UdpDrop::SendFailed), 107);
        assert_eq!((metrics.bindings_answered, metrics.to_clients.bytes), (0, 0));
    }
}
