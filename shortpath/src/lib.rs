//! Session layer: channels that survive the legs that carry them.
//!
//! Layers, each usable and tested without the ones that act:
//!
//! * [`path`] finds UDP paths: candidates, connectivity checks, reflexive addresses, relays. Pure code, too.
//! * [`session`] decides. Frames, offsets, acknowledgements, windows, legs and timers, in pure code: no clock, no
//!   socket, no task. Its tests run two sessions in virtual time.
//! * [`tls`] authenticates. TLS 1.3 configurations with raw public keys (RFC 7250) pinned at both ends.
//! * [`shell`] acts. Tokio tasks that move frames between the session and its legs, and bytes between channels and
//!   sockets. It dials nothing: the owner makes legs and attaches them.
//! * [`underlay`] owns the process's UDP sockets and its QUIC endpoint. It drives `path`, and gives sessions their UDP
//!   legs.
//!
//! Byte offsets belong to channels, never to legs, so any leg may carry any frame: a planned move is "next frames go to
//! the new leg", a failure is "re-send from the last acknowledgement", a duplicate is dropped by its offset. What a leg is
//! worth is judged by what the peer says has come on it.

pub mod path;
pub mod session;
pub mod shell;
mod time;
pub mod tls;
mod tokens;
pub mod underlay;

pub use session::{
    ChannelError, ChannelId, CloseReason, DatagramError, LegId, LegKind, LegState, MoveCause,
    OpenError, PathFigures, Redundancy, Role, RttFigures, SessionConfig,
};
pub use shell::{
    CarryEnd, CarryOutcome, Channel, ChannelReader, ChannelWriter, DatagramFlow, FlowEnd,
    FlowOutcome, LegStats, LinkState, MoveStats, ROUND_BYTES_MAX, SessionEvent, SessionHandle,
    SessionStats, Tap, Wide, carry, carry_datagrams, carry_datagrams_with, carry_stdio, carry_with,
};
pub use tls::{KeyError, SessionKey, client_config, server_config};
