//! Whole sessions between two hosts behind NATs, beside other tunnels: how soon they start, how they
//! survive, what they cost.
//!
//! `experiments` has one file per claim; each measurement builds a lab of its own (`ground`), a
//! service at the agent (`service`), a tunnel to it (`peers`, made of `running` programs) and usually
//! an `echo` through it, or a `duplex` stream (`scene` has them all). `trace` and `goals` decide and are pure: what became
//! of the echo, and whether a goal was reached. `runner` interleaves rounds, `taken` keeps
//! what they brought, `report`, `text` and
//! `page` show what came out.

mod duplex;
mod echo;
pub(crate) mod experiments;
pub(crate) mod goals;
mod ground;
pub(crate) mod page;
pub(crate) mod peers;
pub(crate) mod report;
pub(crate) mod runner;
mod running;
pub(crate) mod scene;
mod service;
pub(crate) mod taken;
pub(crate) mod text;
pub(crate) mod trace;
