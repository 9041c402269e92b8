//! The edge of whatever asks one STUN server on a socket of its own.
use super::sockets::Bound;
use crate::path::{Probe, canonical};
use crate::time::{now, sleep_until};

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
