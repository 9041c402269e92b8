//! UDP at the ends of sessions: what an end offers of itself, and the search for a direct path of each session.
//!
//! * [`UdpOptions`]: what the user of an end allows.
//! * `reach`: an end's sockets, and what is known of the network around them (the underlay).
//! * `flows`: datagram services: a local port at one end, a socket per flow at the other.
//! * `session`: one session's search, moves, and what is told about them.

pub(crate) mod flows;
pub(crate) mod reach;
pub(crate) mod session;

use std::ops::RangeInclusive;

use tokio::sync::watch;

pub use session::PAUSED;
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
    /// Whether to ask the router for a port (PCP, NAT-PMP, UPnP). Default: yes.
    pub port_mapping: bool,
    /// Differentiated services code point of this end's UDP packets, 0 to 63; a resource's own goes before it. Default: none.
    pub dscp: Option<u8>,
}

/// Waits until an end's candidates are others than before; for ever if it does without UDP.
pub(crate) async fn changed(network: &mut Option<watch::Receiver<u64>>) {
    let there = match network {
        Some(network) => network.changed().await.is_ok(),
        None => false,
    };
    if !there {
        std::future::pending().await
    }
}

impl Default for UdpOptions {
    fn default() -> Self {
        let networks = NetworkFilter::default();
        Self {
            enabled: true,
            ports: None,
            managed_port: None,
            networks,
            port_mapping: true,
            dscp: None,
        }
    }
}

impl UdpOptions {
    /// TCP alone.
    #[must_use]
    pub fn off() -> Self {
        Self { enabled: false, ..Self::default() }
    }
}
