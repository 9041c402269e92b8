//! How a pair ended.
use std::time::Duration;

/// Who or what ended a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Both directions ended with FIN, the client's first.
    ClientFinished,
    /// Both directions ended with FIN, the agent's first.
    AgentFinished,
    /// The client's leg was reset or broke.
    ClientReset,
    /// The agent's leg was reset or broke.
    AgentReset,
    /// The client's leg stopped acknowledging (TCP_USER_TIMEOUT or keepalive).
    ClientTimeout,
    /// The agent's leg stopped acknowledging.
    AgentTimeout,
    /// Someone with the right to do so ended it.
    Killed,
    /// The gateway shut down.
    Shutdown,
    /// The gateway itself failed: out of descriptors or memory, or a system call that should not fail did.
    Internal,
}

/// How far a pair had come when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Joined, and no byte has crossed yet.
    Joined,
    /// Bytes crossed and both directions were open.
    Relaying,
    /// One direction had ended, the other was open.
    HalfClosed,
    /// Both directions had ended.
    Finished,
}

/// The end of a pair: cause, phase, bytes, duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Who or what ended it.
    pub cause: Cause,
    /// How far it had come.
    pub phase: Phase,
    /// Bytes delivered from the client's leg to the agent's.
    pub client_to_agent: u64,
    /// Bytes delivered from the agent's leg to the client's.
    pub agent_to_client: u64,
    /// From the pair's start to its end.
    pub duration: Duration,
}

impl Cause {
    /// Every cause, for counters and tables.
    pub const ALL: [Self; 9] = [
        Self::ClientFinished,
        Self::AgentFinished,
        Self::ClientReset,
        Self::AgentReset,
        Self::ClientTimeout,
        Self::AgentTimeout,
        Self::Killed,
        Self::Shutdown,
        Self::Internal,
    ];

    /// Lower-case name, as in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientFinished => "client_finished",
            Self::AgentFinished => "agent_finished",
            Self::ClientReset => "client_reset",
            Self::AgentReset => "agent_reset",
            Self::ClientTimeout => "client_timeout",
            Self::AgentTimeout => "agent_timeout",
            Self::Killed => "killed",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }
}

impl Phase {
    /// Every phase, for counters and tables.
    pub const ALL: [Self; 4] = [Self::Joined, Self::Relaying, Self::HalfClosed, Self::Finished];

    /// Lower-case name, as in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Relaying => "relaying",
            Self::HalfClosed => "half_closed",
            Self::Finished => "finished",
        }
    }
}
