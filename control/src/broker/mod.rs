//! The broker.
mod admission;
mod clock;
mod data;
mod identity;
mod orchestrator;
mod seal;
mod store;
