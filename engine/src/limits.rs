//! Every maximum of the data plane, with its reason.
use std::time::Duration;

/// What the gateway holds at most. One place, so that the sum can be reasoned about.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest ClientHello, in bytes. Post-quantum hellos are about 1.8 KiB; one TLS record is at most 16 KiB.
    pub hello_bytes_max: usize,
    /// From accept to a complete ClientHello. Three TCP retransmissions on a slow link (1 + 2 + 4 s) still fit. A silent
    /// connection is accepted after a second (`TCP_DEFER_ACCEPT`).
    pub hello_deadline: Duration,
    /// Unfinished hellos at once per source address (IPv4 address or IPv6 /64). A hello that is complete at the first read,
    /// as nearly all are, counts for neither this limit nor the next.
    pub hellos_per_source_max: usize,
    /// Unfinished hellos at once over all sources.
    pub hellos_max: usize,
    /// Legs that wait for a mate, over all workers.
    pub waiting_legs_max: usize,
    /// Pairs relayed at once, over all workers.
    pub pairs_max: usize,
    /// Sockets of the last three together, with those of refused connections and of the broker's HTTPS: two for a pair,
    /// else one each. At start it is cut to what the descriptor limit of the process can carry, and the last three with it.
    pub sockets_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello_bytes_max: 16 * 1024 + 5,
            hello_deadline: Duration::from_secs(8),
            hellos_per_source_max: 128,
            hellos_max: 4096,
            waiting_legs_max: 8192,
            pairs_max: 65_536,
            sockets_max: 4096 + 8192 + 2 * 65_536 + 1024 + 8192,
        }
    }
}
