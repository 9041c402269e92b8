//! The session, in pure code: no clock, no socket, no task.
//!
//! # Invariant: mutate, then drain
//! Every `&mut` call on a [`Session`] may produce output. After each one the caller takes all events
//! ([`Session::poll_event`]), wakes the writer of every leg with [`Session::has_transmit`], and reads
//! [`Session::poll_timeout`] again, in this order, before it waits for anything. Nothing else is ever needed: a caller
//! that drains after each mutation loses no wake-up, whatever order inputs come in.
//!
//! * [`frame`] is the wire format, [`limits`] every maximum with its reason.
//! * `send` keeps unacknowledged bytes, `receive` puts arriving ones in order, `channel` joins the two.
//! * `leg` watches one transport connection, `select` chooses which of them carries the next frame.
//! * `core` is the session; `app`, `inbound`, `outbound` and `clock` are what happens to it by call, frame and time, and
//!   `books` is the bookkeeping they share.

mod app;
mod books;
mod channel;
mod clock;
mod close;
mod core;
pub mod frame;
mod inbound;
mod leg;
pub mod limits;
mod outbound;
mod queue;
mod receive;
mod rtt;
mod select;
mod send;
mod words;

#[cfg(test)]
mod pair;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod tests;

pub use close::{
    CLOSE_NORMAL, CLOSE_PROTOCOL, CLOSE_RESTARTED, CloseReason, ProtocolError, RESET_DROPPED,
    RESET_LIMIT, RESET_SOCKET,
};
pub use core::{Event, Figures, ReadOutcome, Session};
pub use limits::SessionConfig;
pub use rtt::RttFigures;
pub use words::{ChannelError, ChannelId, LegId, LegKind, OpenError, Role};
