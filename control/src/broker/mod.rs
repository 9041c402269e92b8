//! The broker.
mod admission;
mod clock;
mod orchestrator;
mod seal;
