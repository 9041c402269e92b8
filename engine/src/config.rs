//! What a gateway can be told.
use std::time::Duration;

use crate::{Limits, Tuning};

/// Where readiness comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring where the kernel has what we need (6.1 and later, not forbidden by seccomp or sysctl), else epoll.
    #[default]
    Auto,
    /// io_uring, or refuse to start.
    Uring,
    /// epoll.
    Epoll,
}

/// Configuration of a [`crate::Gateway`].
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where readiness comes from. Default: [`IoChoice::Auto`].
    pub io: IoChoice,
    /// Relay workers: one pinned thread and one ring each. Default: the number of cores this process may use.
    pub workers: usize,
    /// What the gateway holds at most.
    pub limits: Limits,
    /// How long a worker that has nothing to do goes on looking for events after bytes moved, before it sleeps: up to 10 ms.
    /// Saves the wake-up of a sleeping core (tens of microseconds a message) and keeps the core busy meanwhile. Workers
    /// without active flows sleep as ever. Needs no privilege. Default: none.
    pub busy_poll: Option<Duration>,
    /// Socket options of the listener and of every leg it accepts, over [`Tuning::base`]. Default: none.
    pub tuning: Tuning,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            io: IoChoice::default(),
            workers,
            limits: Limits::default(),
            busy_poll: None,
            tuning: Tuning::default(),
        }
    }
}
