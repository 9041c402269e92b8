//! What a TURN client is made of and tells: its configuration, events and reasons.
use std::net::SocketAddr;

/// What an allocation needs.
#[derive(Clone)]
pub struct TurnConfig {
    /// The server's UDP address.
    pub server: SocketAddr,
    /// `EXPIRY:NAME` for time-limited credentials.
    pub username: String,
    /// Its password.
    pub password: String,
    /// How often an allocation is asked for until the server counts as unreachable: [`TURN_TRIES`] take 12.6 s, 3 take 1.4 s.
    pub tries: u32,
    /// For transaction ids. From the system's generator, unless a test sets it.
    pub seed: [u8; 32],
}

/// How often a request is sent, with pauses that double from 200 ms on.
pub const TURN_TRIES: u32 = 6;

impl TurnConfig {
    /// With a fresh seed and all tries.
    #[must_use]
    pub fn new(server: SocketAddr, username: String, password: String) -> Self {
        Self { server, username, password, tries: TURN_TRIES, seed: rand::random() }
    }
}

impl std::fmt::Debug for TurnConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnConfig").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why there is no allocation, or no channel to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnFailure {
    /// No answer to any of the tries.
    #[error("the relay does not answer over UDP")]
    Unreachable,
    /// 401 with our credentials, or an answer without a valid signature.
    #[error("the relay does not accept the credentials; is its clock right, the secret the same?")]
    Unauthorized,
    /// 486 or 508.
    #[error("the relay has no place left")]
    Full,
    /// 403: the server forbids the peer's address.
    #[error("the relay forbids the peer's address")]
    Forbidden,
    /// 437: the server has forgotten or mixed up the allocation (it was started anew).
    #[error("the relay does not know the allocation")]
    Mismatch,
    /// Any other error code.
    #[error("the relay answers with error {0}")]
    Refused(u16),
}

impl TurnFailure {
    /// The reason code.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "relay_unreachable",
            Self::Unauthorized => "relay_unauthorized",
            Self::Full => "relay_full",
            Self::Forbidden => "relay_forbids_peer",
            Self::Mismatch => "relay_mismatch",
            Self::Refused(_) => "relay_refused",
        }
    }

    pub(super) fn of(code: u16) -> Self {
        match code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            437 => Self::Mismatch,
            486 | 508 => Self::Full,
            code => Self::Refused(code),
        }
    }
}

/// What happened to the allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnEvent {
    /// It was gone and is being made anew, on the same socket and with the same peers. What is sent from now on arrives, and
    /// what was sent before did not.
    Renewing,
    /// It is there, or there again with another address.
    Allocated {
        /// Our address at the server: a relayed candidate.
        relayed: SocketAddr,
        /// What the server sees of us: a server-reflexive candidate.
        mapped: Option<SocketAddr>,
    },
    /// The peer's channel is there; [`TurnClient::wrap`](super::TurnClient::wrap) works.
    Bound(SocketAddr),
    /// No channel to that peer for now; only `Forbidden` and `Refused(443)` are for good.
    PeerRefused(SocketAddr, TurnFailure),
    /// There is no allocation (any more). Final: make another client, on another socket after `Mismatch`.
    Failed(TurnFailure),
}
