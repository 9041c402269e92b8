//! The gateway comparison: scenarios, interleaved rounds, and the figures drawn from them.

pub(crate) mod digest;
pub(crate) mod rounds;
pub(crate) mod scenario;
