//! What is ignored of what arrives, and why, in numbers.
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// What was ignored, and why.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) stun_unclaimed: AtomicU64,
    pub(super) quic_unknown_token: AtomicU64,
    pub(super) quic_unknown_id: AtomicU64,
    pub(super) quic_stranger: AtomicU64,
    pub(super) quic_undecryptable: AtomicU64,
    pub(super) relay_stranger: AtomicU64,
    pub(super) turn_forged: AtomicU64,
    pub(super) stun_astray: AtomicU64,
    pub(super) garbage: AtomicU64,
    pub(super) overflow: AtomicU64,
    pub(super) checks_held: AtomicU64,
    pub(super) socket_errors: AtomicU64,
}

/// Datagrams and errors ignored since the start, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ignored {
    /// STUN messages that nobody waits for: forged, reflected, or late.
    pub stun_unclaimed: u64,
    /// First QUIC packets with a token that no session has.
    pub quic_unknown_token: u64,
    /// QUIC packets for a connection id that is not ours.
    pub quic_unknown_id: u64,
    /// QUIC packets for one of our connections by a route that no check has proved.
    pub quic_stranger: u64,
    /// QUIC packets of one of our connections, by a route that is proved, which its keys do not open: forged, or broken.
    pub quic_undecryptable: u64,
    /// Datagrams to an allocation's socket that its server has not sent.
    pub relay_stranger: u64,
    /// Datagrams in the name of a TURN server that lack its signature, or bring data of peers it was not to let through.
    pub turn_forged: u64,
    /// Answers to our own questions at STUN servers that came from elsewhere.
    pub stun_astray: u64,
    /// Neither STUN nor QUIC, or STUN of more than 2,048 bytes.
    pub garbage: u64,
    /// Dropped as the receiver was behind.
    pub overflow: u64,
    /// Checks left out, as all sessions together had sent as many in this second as they may.
    pub checks_held: u64,
    /// What sockets said when they were to send or receive: no route, no buffers, forbidden by a firewall. ICMP errors are
    /// not among them: the kernel does not tell them to sockets that are not connected, and ours are not.
    pub socket_errors: u64,
}

impl Ignored {
    /// Each by its name.
    #[must_use]
    pub const fn by_name(&self) -> [(&'static str, u64); 12] {
        [
            ("stun_unclaimed", self.stun_unclaimed),
            ("quic_unknown_token", self.quic_unknown_token),
            ("quic_unknown_id", self.quic_unknown_id),
            ("quic_stranger", self.quic_stranger),
            ("quic_undecryptable", self.quic_undecryptable),
            ("relay_stranger", self.relay_stranger),
            ("turn_forged", self.turn_forged),
            ("stun_astray", self.stun_astray),
            ("garbage", self.garbage),
            ("overflow", self.overflow),
            ("checks_held", self.checks_held),
            ("socket_error", self.socket_errors),
        ]
    }
}

impl Counters {
    pub(super) fn read(&self) -> Ignored {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ignored {
            stun_unclaimed: read(&self.stun_unclaimed),
            quic_unknown_token: read(&self.quic_unknown_token),
            quic_unknown_id: read(&self.quic_unknown_id),
            quic_stranger: read(&self.quic_stranger),
            quic_undecryptable: read(&self.quic_undecryptable),
            relay_stranger: read(&self.relay_stranger),
            turn_forged: read(&self.turn_forged),
            stun_astray: read(&self.stun_astray),
            garbage: read(&self.garbage),
            overflow: read(&self.overflow),
            checks_held: read(&self.checks_held),
            socket_errors: read(&self.socket_errors),
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub(super) fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}
