//! Names of things inside the gateway.
use std::fmt;

/// Names one meeting of two legs: both tickets of a pair carry it.
///
/// 16 random bytes chosen by the broker, so it cannot be guessed and says nothing about the session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PairId(pub [u8; 16]);

impl fmt::Display for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which end of a session a leg comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LegSide {
    /// The user's end. Its ClientHello is forwarded to the agent.
    Client,
    /// The service's end. Its ClientHello only presents the ticket and is consumed by the gateway.
    Agent,
}

impl LegSide {
    /// The other end.
    #[must_use]
    pub const fn mate(self) -> Self {
        match self {
            Self::Client => Self::Agent,
            Self::Agent => Self::Client,
        }
    }

    /// Lower-case name, as in server names, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Agent => "agent",
        }
    }
}
