//! The comparison: scenario files, interleaved rounds, and the figures and verdicts drawn from them.

pub(crate) mod catalogue;
pub(crate) mod digest;
pub(crate) mod goals;
pub(crate) mod rounds;
pub(crate) mod scenario;
pub(crate) mod timings;
pub(crate) mod warnings;
