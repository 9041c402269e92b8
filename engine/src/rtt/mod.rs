//! Round-trip times of legs, as the kernel measures them.
mod window;

pub use window::RttFigures;
pub(crate) use window::Window;
