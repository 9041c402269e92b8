//! The edge of whatever asks one STUN server on a socket of its own: [`LifetimeProbe`] and [`MtuProbe`].
use std::net::SocketAddr;
use std::time::Instant;

use super::sockets::Bound;
use crate::path::{LifetimeProbe, MtuProbe, canonical};
use crate::time::{now, sleep_until};

/// What both have in common.
pub(super) trait Probe {
    fn poll_timeout(&self) -> Option<Instant>;
    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)>;
    fn handle_packet(&mut self, now: Instant, source: SocketAddr, datagram: &[u8]);
    fn handle_timeout(&mut self, now: Instant);
}

macro_rules! delegate {
    ($kind:ty) => {
        impl Probe for $kind {
            fn poll_timeout(&self) -> Option<Instant> {
                self.poll_timeout()
            }
            fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
                self.poll_transmit()
            }
            fn handle_packet(&mut self, now: Instant, source: SocketAddr, datagram: &[u8]) {
                self.handle_packet(now, source, datagram);
            }
            fn handle_timeout(&mut self, now: Instant) {
                self.handle_timeout(now);
            }
        }
    };
}

delegate!(LifetimeProbe);
delegate!(MtuProbe);

/// Runs until the probe has ended; `heard` is called after each datagram.
pub(super) async fn run<P: Probe>(socket: &Bound, probe: &mut P, mut heard: impl FnMut(&P)) {
    let mut buffer = [0; 2048];
    while let Some(due) = probe.poll_timeout() {
        while let Some((to, datagram)) = probe.poll_transmit() {
            // What is too large for the interface is an answer as good as silence.
            socket.send(&datagram, to);
        }
        tokio::select! {
            // An error is ICMP's: the probe repeats what was lost, or learns from it.
            received = socket.io.recv_from(&mut buffer) => if let Ok((length, from)) = received {
                probe.handle_packet(now(), canonical(from), &buffer[..length]);
                heard(probe);
            },
            () = sleep_until(Some(due)) => probe.handle_timeout(now()),
        }
    }
}
