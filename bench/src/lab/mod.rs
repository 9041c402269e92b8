//! Several hosts on one machine: links whose quality changes while traffic runs, and every NAT.
//!
//! `packet`, `nat`, `wire` and `presets` decide without a clock or a socket: time is the
//! [`std::time::Duration`] since the lab's start, chance comes from a seed.

pub mod nat;
pub mod packet;
pub mod presets;
pub mod wire;
