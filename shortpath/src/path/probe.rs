//! What probes have in common: they ask one STUN server on a socket of their own.
use std::net::SocketAddr;
use std::time::Instant;

/// Asks a server until it knows enough.
pub trait Probe {
    /// A datagram that came. What is no answer of the server is ignored.
    fn handle_packet(&mut self, now: Instant, source: SocketAddr, datagram: &[u8]);

    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);

    /// When [`Self::handle_timeout`] is due; `None` when the probe has ended.
    fn poll_timeout(&self) -> Option<Instant>;

    /// The next datagram and the server that it is for.
    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)>;
}
