//! The promises, through the real binary: real SSH, real HTTP, real kills, real refusals.
//!
//! Every test starts its own broker, agent and target on loopback port 0 with temporary directories, and ends what it
//! started. Tests that need a program that is missing print why and are skipped.
mod enrol;
mod enrol_killed;
mod gateways;
mod http;
mod many_sessions;
mod oidc;
mod operations;
mod ops;
mod policy;
mod refusals;
mod shadow;
mod shortpath;
mod ssh;
mod startup;
mod support;
mod survival;
mod takeover;
mod tuning;
