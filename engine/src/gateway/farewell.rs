//! How a refused peer is told: a fatal TLS alert that names the reason, then FIN.
use std::net::Shutdown;
use std::os::fd::AsFd;

use socket2::SockRef;

use crate::Refusal;
use crate::ring::send;

/// Sends the alert and FIN. Closing the socket over unread bytes would send RST after them, which can destroy the alert;
/// the desk reads on for a moment.
pub(crate) fn say_farewell(socket: &impl AsFd, refusal: Refusal) {
    // A peer that cannot take 7 bytes is gone or hostile.
    let _ = send(socket, &alert_record(refusal));
    let _ = SockRef::from(socket).shutdown(Shutdown::Write);
}

/// A fatal alert in a plaintext TLS record (RFC 8446 section 6).
fn alert_record(refusal: Refusal) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, refusal.alert()]
}
