//! What the gateway tells its owner.
use std::net::{SocketAddr, TcpStream};

use bytes::Bytes;

use crate::{ForeignPlace, LegSide, Outcome, PairId, Refusal};

/// A connection on the gateway's port that is no leg: the broker's HTTPS takes it from here.
#[derive(Debug)]
pub struct ForeignConnection {
    /// The accepted connection, non-blocking.
    pub stream: TcpStream,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The bytes that the gateway has already read from it.
    pub head: Bytes,
    /// To be kept until the connection is closed.
    pub place: ForeignPlace,
}

/// Something that happened in the data plane. Sent in order per pair.
#[derive(Debug)]
#[non_exhaustive]
pub enum GatewayEvent {
    /// An admitted leg waits for its mate.
    LegWaiting {
        /// The meeting it waits for.
        pair: PairId,
        /// The end it comes from.
        side: LegSide,
    },
    /// A leg left without a mate: one that waited, or one that was admitted and turned away on arrival
    /// ([`Refusal::LegLimit`], [`Refusal::PairLimit`], [`Refusal::Draining`]). A [`Refusal::LegDuplicate`] is only
    /// counted, because the pair's own leg goes on waiting.
    LegGone {
        /// The meeting it waited for.
        pair: PairId,
        /// The end it came from.
        side: LegSide,
        /// Why we sent it away; `None` if the peer hung up.
        refusal: Option<Refusal>,
    },
    /// Two legs met and are being relayed.
    PairStarted {
        /// Their meeting.
        pair: PairId,
        /// The client's address as the gateway sees it.
        client: SocketAddr,
        /// The agent's address as the gateway sees it.
        agent: SocketAddr,
        /// Live figures of the pair, readable at any time.
        meter: std::sync::Arc<crate::PairMeter>,
    },
    /// A pair ended.
    PairEnded {
        /// Their meeting.
        pair: PairId,
        /// How.
        outcome: Outcome,
    },
}
