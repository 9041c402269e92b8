//! Moving the bytes of one pair: what to do next, and how it ends. Pure; the worker does what it says.
mod flow;
mod meter;
mod pair;

pub(crate) use flow::{Did, Flow, Step};
pub use meter::{PairFigures, PairMeter};
pub(crate) use pair::{Direction, Pair, Readiness};
