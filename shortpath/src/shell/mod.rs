//! The session layer's tokio shell: tasks that move frames between a session and its legs, and handles for channels.
//!
//! One `std` mutex guards the core; it is never held across an await, and every use of it ends with the drain the core's
//! contract asks for. Each leg has a reading and a writing task; the writer pulls up to 64 KiB of frames per round, so a
//! leg that cannot write pulls nothing and the application waits. One task keeps time, one delivers events.
//!
//! Dialling, TLS and `TCP_NODELAY` are the owner's: it attaches established streams.

mod carry;
mod channel;
mod datagrams;
mod handle;
mod lanes;
mod leg;
mod quic;
mod room;
mod rope;
mod shared;
mod wide;

#[cfg(test)]
mod tests;

pub use carry::{CarryEnd, CarryOutcome, Tap, carry, carry_stdio, carry_with};
pub use channel::{Channel, ChannelReader, ChannelWriter};
pub use datagrams::{DatagramFlow, FlowEnd, FlowOutcome, carry_datagrams, carry_datagrams_with};
pub use handle::{LegStats, LinkState, MoveStats, SessionEvent, SessionHandle, SessionStats};
pub use leg::ROUND_BYTES_MAX;
pub(crate) use quic::{STREAMS_FIRST, SessionRef};
pub use wide::Wide;
