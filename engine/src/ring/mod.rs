//! The kernel's doors: io_uring, pipes, UDP batches, socket options, TCP_INFO. The only folder with `unsafe`.
mod datagram;
mod interfaces;
mod listen;
mod options;
mod pipe;
mod poll;
mod socket;
mod tcp_info;

pub(crate) use datagram::{
    HEAD_MAX, Inbox, Outbox, Parcel, Received, dont_fragment, prepare_datagrams,
};
pub(crate) use interfaces::local_addresses;
pub(crate) use listen::{accept, defer_accept};
pub(crate) use options::{clear_option, set_option};
pub(crate) use pipe::{Pipe, PipePool};
pub(crate) use poll::{PollRing, Polled, probe};
pub(crate) use socket::{
    Move, borrow_uring, close_abruptly, prepare_listener, receive, send, splice_in, splice_out,
};
pub(crate) use tcp_info::tcp_info;
