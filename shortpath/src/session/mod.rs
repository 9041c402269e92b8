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
//! * `leg` watches one transport connection: `meter` what it was given and has brought, `rtt` and `path` how far and how
//!   lossy it is, `health` whether it is trusted. `select` chooses which of them carries the next frame.
//! * `moves` goes there and tries others for bulk, `rescue` sends copies when a leg falls silent and leaves it when it stays
//!   so, `network` looks again at what was rejected, `redundancy` sends small writes twice while a path is lossy or unknown.
//! * `flow` and `datagrams` are channels that carry datagrams.
//! * `core` is the session; `app`, `inbound`, `outbound` and `clock` are what happens to it by call, frame and time, and
//!   `books` is the bookkeeping they share.

mod allow;
mod app;
mod books;
mod channel;
mod clock;
mod close;
mod core;
mod datagrams;
mod figures;
mod flow;
pub mod frame;
mod health;
mod inbound;
mod leg;
pub mod limits;
mod meter;
mod moves;
mod network;
mod outbound;
mod path;
mod queue;
mod receive;
mod redundancy;
mod rescue;
mod rtt;
mod select;
mod send;
mod words;

#[cfg(test)]
mod legs_tests;
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
pub use core::{Event, ReadOutcome, Session};
pub use figures::{Figures, LegFigures};
pub use limits::{Redundancy, SessionConfig};
pub use moves::Move;
pub use path::PathFigures;
pub use rtt::RttFigures;
pub use words::{
    ChannelError, ChannelId, DatagramError, LegId, LegKind, LegState, MoveCause, OpenError, Role,
};
