//! Relay workers: one pinned thread each, with listeners, a readiness source, and the pairs placed there.
mod accept;
mod arrivals;
mod crew;
mod ends;
mod epoll;
mod homes;
mod inbox;
mod placement;
mod queue;
mod readiness;
mod sampling;
mod serve;
mod slots;
mod spin;
mod turn;
mod uring;
mod workers;

pub(crate) use crew::Crew;
pub(crate) use inbox::{Errand, Errands, NewLeg};
pub(crate) use workers::{Workers, WorkersSetup, pipes_per_worker};
