//! One process takes another's place without a dropped connection.
//!
//! ```text
//! new                                  serving
//!  hello {protocol, version, listen} ─►
//!                                    ◄─ offer {listeners, stun} + their descriptors     or refused {code, message}
//!  reads configuration, keys, database
//!  ready                             ─► stops accepting, ends links and requests, closes the database
//!                                    ◄─ go + the data directory's lock
//!  serves
//!  serving                           ─► drains: its pairs go on until they end by themselves
//! ```
//!
//! The listening sockets are never closed, so who connects in between waits in their queue. The lock is never free. A new
//! process that fails before `ready` is not noticed by anyone; one that fails before `serving` makes the old one serve
//! again, on the same sockets. If it had brought the database to a newer version by then, the old one cannot, and
//! ends. What is handed over is sockets and a lock, no state: links and the registry come back by themselves, as after any
//! restart, and pairs need no broker.

mod channel;
mod giving;
mod messages;
mod taking;

pub use giving::{Draining, Successor};

pub(in crate::broker) use giving::Giver;
pub(in crate::broker) use taking::Predecessor;

/// Name of the socket in the data directory.
const SOCKET_FILE: &str = "takeover.sock";
