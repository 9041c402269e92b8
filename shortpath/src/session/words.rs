//! The small types every part of a session speaks in.
use std::fmt;
use std::num::NonZeroU32;

/// Which end of a session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens odd channels.
    Client,
    /// Opens even channels.
    Agent,
}

impl Role {
    /// The id of the first channel this end opens.
    pub(super) fn first_channel(self) -> u32 {
        match self {
            Self::Client => 1,
            Self::Agent => 2,
        }
    }
}

/// Names a channel within its session. Odd ones are opened by the client, even ones by the agent, without gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(NonZeroU32);

impl ChannelId {
    /// `None` for 0, which stands for no channel on the wire.
    #[must_use]
    pub fn new(id: u32) -> Option<Self> {
        NonZeroU32::new(id).map(Self)
    }

    /// The id on the wire.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    pub(super) fn opened_by(self, role: Role) -> bool {
        self.get() % 2 == role.first_channel() % 2
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "channel {}", self.get())
    }
}

/// Names a leg within one end of a session; never re-used. Later legs compare greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegId(pub(super) u64);

impl fmt::Debug for LegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leg {}", self.0)
    }
}

impl fmt::Display for LegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What transport a leg is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LegKind {
    /// Both ends dialled a gateway, which splices.
    TcpReverse,
    /// Punched through NATs.
    UdpDirect,
    /// Within a managed network.
    UdpManaged,
    /// Through a UDP relay.
    UdpRelay,
}

impl LegKind {
    /// The label shown to people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TcpReverse => "TCP (Reverse-Connect)",
            Self::UdpDirect => "UDP (Shortpath)",
            Self::UdpManaged => "UDP (Shortpath, managed)",
            Self::UdpRelay => "UDP (Relay)",
        }
    }

    /// The name in configuration, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TcpReverse => "tcp-reverse",
            Self::UdpDirect => "udp-direct",
            Self::UdpManaged => "udp-managed",
            Self::UdpRelay => "udp-relay",
        }
    }
}

/// Why no channel was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many channels are open as the session may have; one that ends makes room.
    #[error("the session has as many channels as it may have")]
    ChannelLimit,
    /// The session is over.
    #[error("the session is closed")]
    Closed,
}

/// Why a channel carries no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The peer reset it with this code.
    #[error("channel reset by the peer with code {0:#x}")]
    Reset(u16),
    /// This end finished or reset it before.
    #[error("channel already finished")]
    Finished,
    /// The session was closed, by either end or for a protocol error.
    #[error("the session is closed")]
    Closed,
    /// The session found no leg within the resume window.
    #[error("the session lost its peer")]
    Lost,
}
