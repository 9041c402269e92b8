//! What a keeper is made of and tells: its configuration, events and view.
use std::net::SocketAddr;

use serde::Serialize;

use super::lifetime::MappingLifetime;
use super::predict::{Mapping, Ports};

/// What a keeper is made of.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// The socket's own address, if it is bound to one: tells "no NAT" and "port preserved". With an unspecified
    /// address only the port counts.
    pub local: Option<SocketAddr>,
    /// The gateways' STUN servers; at most 8 are asked.
    pub servers: Vec<SocketAddr>,
    /// Predicted candidates for a sequential NAT: the peer tries that many next ports. 8 leave room for what our own
    /// checks to other addresses take first.
    pub predict: usize,
    /// For transaction ids: the only thing that tells a server's answer from a forged one. From the system's generator,
    /// unless a test sets it.
    pub seed: [u8; 32],
}

impl KeeperConfig {
    /// Eight predictions, a fresh seed.
    #[must_use]
    pub fn new(local: Option<SocketAddr>, servers: Vec<SocketAddr>) -> Self {
        Self { local, servers, predict: 8, seed: rand::random() }
    }
}

/// What the owner has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeeperEvent {
    /// [`Keeper::candidates`](super::Keeper::candidates) differ from before.
    Changed,
    /// The NAT gave the socket another address: finders doubt their pairs, peers want to know.
    Rebound {
        /// What the server saw before.
        from: SocketAddr,
        /// What it sees now.
        to: SocketAddr,
    },
    /// A server that answered, or was never heard of, does not answer: UDP to it is blocked, or it is gone.
    Silent(SocketAddr),
}

/// What is known of the NAT before the socket, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeeperView {
    /// Mapping behaviour towards IPv4 servers; IPv6 is rarely translated.
    pub mapping: Mapping,
    /// How ports are chosen.
    pub ports: Ports,
    /// Lifetime of idle mappings.
    pub lifetime: MappingLifetime,
    /// The age at which the NAT ends mappings that are in use, if it was seen to, milliseconds.
    pub age_limit_ms: Option<u64>,
    /// Keepalive interval in use, milliseconds.
    pub keepalive_ms: u64,
    /// Each server, what it sees of us, and its RTT in microseconds.
    pub servers: Vec<(SocketAddr, Option<SocketAddr>, Option<u64>)>,
    /// Times that the mapping changed.
    pub rebounds: u64,
}
