//! The question the gateway asks about every leg, and the answers it may get.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::{LegSide, PairId, Tuning};

/// Decides which legs may enter. Called on the gateway's relay workers and its desk, several at once, and while it judges
/// nothing is relayed there: it must neither block nor panic.
pub trait Admission: Send + Sync + 'static {
    /// Judges the server name of a complete ClientHello that arrived from `peer`.
    fn admit(&self, server_name: &str, peer: SocketAddr) -> Verdict;
}

/// What to do with a connection whose ClientHello is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server name is no ticket: the connection belongs to the broker's HTTPS.
    Foreign,
    /// The leg may enter.
    Admit(Admitted),
    /// The leg is turned away with this reason.
    Refuse(Refusal),
}

/// An admitted leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The meeting this leg came for.
    pub pair: PairId,
    /// The end it comes from.
    pub side: LegSide,
    /// How long it may wait for its mate.
    pub patience: Duration,
    /// Socket options for both legs of the pair, set when they meet, over what they have from their listener. If both legs
    /// bring some, the client's count. `mss` and `fast-open` come too late for a leg and change nothing.
    pub tuning: Option<Arc<Tuning>>,
}

/// Why a connection was turned away. Travels to the peer as a fatal TLS alert, see [`Refusal::alert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The first bytes are no TLS handshake record.
    HelloNotTls,
    /// A TLS handshake record that holds no well-formed ClientHello.
    HelloMalformed,
    /// The ClientHello exceeds [`crate::Limits::hello_bytes_max`].
    HelloTooLarge,
    /// The ClientHello was not complete within [`crate::Limits::hello_deadline`].
    HelloTimeout,
    /// The peer closed or reset before its ClientHello was complete.
    HelloTruncated,
    /// Too many unfinished hellos, from this source address or in all, or no descriptor left for a connection to the broker.
    HelloLimit,
    /// The ticket's MAC does not verify: forged, damaged, or minted for another gateway or an earlier run of this one.
    TicketInvalid,
    /// The ticket's time is over.
    TicketExpired,
    /// The ticket was presented before.
    TicketReplayed,
    /// The ticket was minted for the other side.
    TicketWrongSide,
    /// No mate came within the leg's patience.
    LegUnpaired,
    /// A leg of the same side already waits under this pair.
    LegDuplicate,
    /// Too many legs are waiting.
    LegLimit,
    /// Too many pairs are being relayed.
    PairLimit,
    /// The gateway is shutting down.
    Draining,
}

impl Refusal {
    /// Every refusal, for counters and tables.
    pub const ALL: [Self; 15] = [
        Self::HelloNotTls,
        Self::HelloMalformed,
        Self::HelloTooLarge,
        Self::HelloTimeout,
        Self::HelloTruncated,
        Self::HelloLimit,
        Self::TicketInvalid,
        Self::TicketExpired,
        Self::TicketReplayed,
        Self::TicketWrongSide,
        Self::LegUnpaired,
        Self::LegDuplicate,
        Self::LegLimit,
        Self::PairLimit,
        Self::Draining,
    ];

    /// The symbolic code, as people and programs see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HelloNotTls => "HELLO_NOT_TLS",
            Self::HelloMalformed => "HELLO_MALFORMED",
            Self::HelloTooLarge => "HELLO_TOO_LARGE",
            Self::HelloTimeout => "HELLO_TIMEOUT",
            Self::HelloTruncated => "HELLO_TRUNCATED",
            Self::HelloLimit => "HELLO_LIMIT",
            Self::TicketInvalid => "TICKET_INVALID",
            Self::TicketExpired => "TICKET_EXPIRED",
            Self::TicketReplayed => "TICKET_REPLAYED",
            Self::TicketWrongSide => "TICKET_WRONG_SIDE",
            Self::LegUnpaired => "LEG_UNPAIRED",
            Self::LegDuplicate => "LEG_DUPLICATE",
            Self::LegLimit => "LEG_LIMIT",
            Self::PairLimit => "PAIR_LIMIT",
            Self::Draining => "GATEWAY_DRAINING",
        }
    }

    /// The description byte of the fatal TLS alert that tells the peer.
    ///
    /// TLS has no alert for these, so they use 224 and up, which RFC 8446 section 6 leaves unassigned: our endpoints
    /// read the reason from it, any other TLS stack reports an unknown fatal alert.
    #[must_use]
    pub const fn alert(self) -> u8 {
        224 + self as u8
    }

    /// The refusal behind an alert description byte, if it is one of ours.
    #[must_use]
    pub fn from_alert(description: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.alert() == description)
    }
}
