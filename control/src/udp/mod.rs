//! UDP at the ends of sessions: what an end offers of itself, and the search for a direct path of each session.
//!
//! * [`UdpOptions`]: what the user of an end allows.
//! * `session`: one session's search, moves, and what is told about them.

pub(crate) mod session;

use std::ops::RangeInclusive;

pub use switchback_shortpath::path::{Network, NetworkFilter};

/// The agent's fixed UDP port, when it is asked to have one: the one that the reference uses for managed networks.
pub const MANAGED_PORT_DEFAULT: u16 = 3390;

/// How an end uses UDP.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// Whether it does. Default: yes.
    pub enabled: bool,
    /// Local ports to use. Default: whichever the system gives.
    pub ports: Option<RangeInclusive<u16>>,
    /// A fixed port to listen on, for networks that route to it. Default: none, so that an agent has no inbound listener
    /// unless its operator says so.
    pub managed_port: Option<u16>,
    /// Networks to use. Default: all.
    pub networks: NetworkFilter,
}

impl Default for UdpOptions {
    fn default() -> Self {
        let networks = NetworkFilter::default();
        Self { enabled: true, ports: None, managed_port: None, networks }
    }
}

impl UdpOptions {
    /// TCP alone.
    #[must_use]
    pub fn off() -> Self {
        Self { enabled: false, ..Self::default() }
    }
}
