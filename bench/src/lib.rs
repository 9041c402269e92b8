//! The network lab: hosts, links and NATs on one machine, for tests and for network engineers.
//!
//! The programs of this crate measure; what they measure across is built here.

pub mod lab;
