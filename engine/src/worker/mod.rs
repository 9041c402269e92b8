//! Relay workers: one pinned thread each, one readiness source, and the pairs whose id falls to it.
mod arrivals;
mod ends;
mod epoll;
mod inbox;
mod queue;
mod readiness;
mod sampling;
mod serve;
mod slots;
mod spin;
mod turn;
mod uring;
mod workers;

pub(crate) use inbox::{Farewell, NewLeg};
pub(crate) use workers::{PIPES_MAX, Workers, WorkersSetup};
