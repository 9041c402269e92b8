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
    /// Every kind.
    pub const ALL: [Self; 4] =
        [Self::TcpReverse, Self::UdpDirect, Self::UdpManaged, Self::UdpRelay];

    /// It has several streams, which overtake each other, and unreliable datagrams.
    #[must_use]
    pub fn is_udp(self) -> bool {
        self != Self::TcpReverse
    }

    /// Of two as good ones the higher is preferred: it burdens fewer others.
    pub(super) fn rank(self) -> u8 {
        match self {
            Self::TcpReverse => 0,
            Self::UdpRelay => 1,
            Self::UdpManaged => 2,
            Self::UdpDirect => 3,
        }
    }

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

/// What a leg is to its session now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LegState {
    /// Its peer's HELLO has not come.
    Starting,
    /// It carries the session.
    Selected,
    /// It could.
    Standby,
    /// It owes word of what it was given, and others carry copies.
    Suspect,
    /// It let the session down and is watched.
    Quarantined,
}

impl LegState {
    /// The name in logs, metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Selected => "selected",
            Self::Standby => "standby",
            Self::Suspect => "suspect",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Why a session moved to another leg, or waited for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MoveCause {
    /// It is the first.
    First,
    /// It is the better one; planned.
    Better,
    /// It moves bulk bytes faster; planned.
    Throttled,
    /// The one before was silent about what it was given.
    Silent,
    /// The one before was lost.
    Lost,
    /// No move: the leg was silent about what it was given and held it up, and then answered after all.
    Recovered,
}

impl MoveCause {
    /// The name in logs, metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Better => "better",
            Self::Throttled => "throttled",
            Self::Silent => "silent",
            Self::Lost => "lost",
            Self::Recovered => "recovered",
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

/// Why a datagram was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// No UDP datagram is that long.
    #[error("a datagram holds at most 65,507 bytes")]
    TooLong,
    /// The channel has ended.
    #[error(transparent)]
    Ended(#[from] ChannelError),
}
