//! What the kernel measures on the legs: round trips and what limits sending. Pure; the worker asks the kernel.
mod figures;
mod info;
mod rounds;
mod slow;
mod window;

pub(crate) use figures::LegRecord;
pub use figures::{LegFigures, RttFigures, SendingFigures};
pub(crate) use info::{INFO_BYTES, TcpInfo};
pub(crate) use rounds::{Rounds, Spot};
pub(crate) use slow::who_is_slow;
pub use slow::{Because, Finding, Slow};
