//! What a [`super::UdpService`] is told.
use std::net::{IpAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::peers::Network;

/// Bound sockets. The caller may keep second handles (`try_clone`), to pass them to a process that takes over: what waits in
/// a socket's queue is then answered by the successor. Allocations do not survive; clients make new ones.
#[derive(Debug)]
pub struct UdpSockets {
    /// STUN and TURN, one socket for each worker, all bound to one address with `SO_REUSEPORT`
    /// ([`super::bind_udp`]), so that the kernel keeps a client on one worker. At least one.
    pub primary: Vec<UdpSocket>,
    /// For NAT behaviour discovery (RFC 5780): up to three more, each with another port, another address, or both. They
    /// answer Binding requests only. Another port alone works; OTHER-ADDRESS, by which stock clients find the others, is
    /// told only when all three are there.
    pub alternate: Vec<UdpSocket>,
}

/// How to serve STUN and TURN. All limits are for the whole service, not for each worker, unless said otherwise.
#[derive(Clone, Debug)]
pub struct UdpConfig {
    /// Workers. If more than [`UdpSockets::primary`], further sockets are bound to the address of the first one, which
    /// must then have `SO_REUSEPORT`.
    pub workers: usize,
    /// REALM of the credentials, at most 127 bytes. Short: every refusal carries it.
    pub realm: String,
    /// Where allocations get addresses, at most one of each family. Without one for IPv4 (IPv6), the address that the
    /// client reached serves if it is of that family, else the answer is 440.
    pub relay_addresses: Vec<RelayAddress>,
    /// Ports of allocations. Below 1024 needs privileges.
    pub relay_ports: RangeInclusive<u16>,
    /// Allocations.
    pub allocations_max: usize,
    /// Allocations of one user ([`super::RelayUser::account`]).
    pub allocations_per_user: usize,
    /// Allocations under one name ([`super::RelayUser::name`]).
    pub allocations_per_name: usize,
    /// Lifetime of an allocation whose client asks for none or for less.
    pub lifetime_default: Duration,
    /// Longest lifetime that a client can ask for.
    pub lifetime_max: Duration,
    /// How long a nonce is good.
    pub nonce_lifetime: Duration,
    /// Answers without credentials (STUN replies and refusals) to one source per second in the long run, for each worker.
    /// A source is an IPv4 address or an IPv6 /64.
    pub answers_per_s: u32,
    /// Such answers at once.
    pub answers_burst: u32,
    /// Peers that are allowed although they are loopback, link-local or an address of this host, on every port: for labs
    /// and tests.
    pub allowed_peers: Vec<Network>,
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            realm: "switchback".into(),
            relay_addresses: Vec::new(),
            // IANA's dynamic ports, as RFC 8656 section 7.2 recommends.
            relay_ports: 49_152..=65_535,
            // Half of the ports, so that a random try finds a free one soon. Each is a descriptor.
            allocations_max: 8192,
            // A quarter of all: a thousand sessions with an allocation at either end, and three more users like that.
            allocations_per_user: 2048,
            // An end of a session has one, for each family perhaps, and another beside it while it is renewed. Each time its
            // NAT binds it anew it makes another, and the one before lingers for its ten minutes: room for one every five
            // seconds. An account's limit bounds all its names together.
            allocations_per_name: 128,
            // RFC 8656 section 3.2: 10 minutes, at most an hour.
            lifetime_default: Duration::from_secs(600),
            lifetime_max: Duration::from_secs(3600),
            // RFC 8656 section 5: at least once an hour.
            nonce_lifetime: Duration::from_secs(3600),
            // A thousand endpoints behind one NAT ask 50 times a second at most; a forger gets 20 kB/s out of it.
            answers_per_s: 200,
            answers_burst: 1000,
            allowed_peers: Vec::new(),
        }
    }
}

/// An address that allocations are made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayAddress {
    /// An address of this host.
    pub bind: IpAddr,
    /// What peers reach it by: differs behind a 1:1 NAT, as clouds have them.
    pub public: IpAddr,
}
