//! The gateway's STUN and TURN over UDP (RFC 8489, 5780, 8656), on workers of its own.
//!
//! ```text
//!            worker.rs     the loop: wait (ready.rs), move data, answer, sweep
//!   data     forward.rs    whose is it, where does it go?          (pure)
//!   control  server.rs     who asks, and may he?                   (pure)   over wire.rs, nonce.rs, credentials.rs
//!            requests.rs   what a signed request does              (pure)
//!            binding.rs    Binding requests, NAT behaviour         (pure)
//!   state    allocation.rs permissions and channels                (pure)   shared.rs: quotas over all workers
//!   abuse    peers.rs      whom the relay sends to                 (pure)   throttle.rs: answers to strangers
//!   sockets  relays.rs     of allocations; service.rs of the service, ring/datagram.rs are the system calls
//! ```
//!
//! An allocation lives on the worker that the kernel gives its client's packets to (`SO_REUSEPORT` hashes the 4-tuple), so
//! data is relayed without locks or hand-overs.
mod allocation;
mod binding;
mod config;
mod counts;
mod credentials;
mod forward;
mod nonce;
mod peers;
mod ready;
mod relays;
mod requests;
mod server;
mod service;
mod shared;
#[cfg(test)]
mod stories;
mod throttle;
mod trial;
mod wire;
mod worker;

pub use config::{RelayAddress, UdpConfig, UdpSockets};
pub use counts::{UdpDrop, UdpMetrics, UdpRefusal, UdpTraffic};
pub use credentials::{NoRelay, RelayCredentials, RelayUser, SharedSecret, relay_password};
pub use peers::Network;
pub use service::{UdpService, bind_udp};
pub use trial::Trial;
