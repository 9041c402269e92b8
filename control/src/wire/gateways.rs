//! What gateways on other machines and the broker say to each other, and what ends are told and tell of gateways.
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use switchback_engine::{LegSide, PairId, Tuning};

use super::{RttView, SessionId};
use crate::api::{SessionLegs, SlowView};
use crate::code::Code;
use crate::secret::Secret;

/// Path of the gateways' link.
pub const GATEWAY_LINK: &str = "/v1/link/gateway";
/// Name of the gateway that runs within the broker.
pub const LOCAL_GATEWAY: &str = "local";
/// Gateways of one broker, its own included: each end measures all of them.
pub const GATEWAYS_MAX: usize = 32;
/// Events in one message: about 16 KiB.
pub const GATEWAY_EVENTS_MAX: usize = 128;
/// Pairs whose figures go into one message: about 32 KiB.
pub const GATEWAY_METERS_MAX: usize = 24;
/// Pairs in one message: about 32 KiB of live ones.
pub const GATEWAY_PAIRS_MAX: usize = 256;
/// Users of the relay in one message: about 12 KiB.
pub const RELAY_USERS_MAX: usize = 512;

/// A pair's id as messages carry it: 32 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PairName(pub PairId);

impl From<PairName> for String {
    fn from(PairName(pair): PairName) -> Self {
        pair.to_string()
    }
}

impl TryFrom<String> for PairName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| Self(PairId(bytes))).ok_or("a pair is 32 hex digits")
    }
}

/// Which end a leg comes from, as messages carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The user's.
    Client,
    /// The service's.
    Agent,
}

impl From<LegSide> for Side {
    fn from(side: LegSide) -> Self {
        match side {
            LegSide::Client => Self::Client,
            LegSide::Agent => Self::Agent,
        }
    }
}

impl From<Side> for LegSide {
    fn from(side: Side) -> Self {
        match side {
            Side::Client => Self::Client,
            Side::Agent => Self::Agent,
        }
    }
}

/// A gateway as ends are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayPlace {
    /// Its name.
    pub name: String,
    /// `HOST:PORT`, TCP for legs, UDP for STUN and TURN; absent: the broker's, as the peer dialled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Where it stands, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// How far a gateway is from an end. Neither: it was tried, and did not answer.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayRtt {
    /// Its name.
    pub gateway: String,
    /// Round trip to its STUN, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_us: Option<u32>,
    /// Time that TCP takes to connect, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_us: Option<u32>,
}

/// What a client says of the leg that it asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegWish {
    /// Not through this gateway, if there is another: [`LegTicket::gateway`](super::LegTicket::gateway) of the leg that
    /// failed, or nothing if it named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_via: Option<String>,
    /// It replaces the legs of its kind that work, see `relocate`.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub instead: bool,
    /// It stands by, see [`Standby::TwoGateways`](super::Standby::TwoGateways): through another gateway than `not_via`, or not
    /// at all.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub second: bool,
}

impl LegWish {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// From a gateway to the broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromGateway {
    /// First message on a link.
    Register(Box<GatewayRegister>),
    /// Follows `register` at once: what it holds, in as many messages as it takes. Other pairs of its name are over.
    Holds {
        /// Pairs alive, [`GATEWAY_PAIRS_MAX`] at most.
        pairs: Vec<HeldPair>,
        /// This was the last of these.
        last: bool,
    },
    /// What happened, in order.
    Events {
        /// [`GATEWAY_EVENTS_MAX`] at most.
        events: Vec<LegEvent>,
    },
    /// Figures of pairs that moved bytes, about once a second.
    Meters {
        /// [`GATEWAY_METERS_MAX`] at most.
        pairs: Vec<PairFigures>,
    },
    /// How much it has to do, about once a second.
    Load {
        /// Pairs alive.
        pairs: u32,
    },
    /// It is about to end, and admits no leg for long: its sessions shall move.
    Draining,
}

/// What a gateway says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayRegister {
    /// [`PROTOCOL`](super::PROTOCOL).
    pub protocol: u32,
    /// Software version, for people.
    pub version: String,
    /// Its name.
    pub name: String,
    /// Where it stands, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// `HOST:PORT` that ends dial.
    pub address: String,
    /// Its ticket key, 32 bytes in hex: whoever has it can admit legs.
    pub ticket_key: Secret,
    /// What its relay's credentials are made with, 32 bytes in hex; absent: it relays no UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_key: Option<Secret>,
    /// UDP ports that it relays on, first and last; absent if it relays no UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_ports: Option<(u16, u16)>,
    /// Its clock, Unix seconds: tickets expire by it.
    pub now: u64,
    /// Pairs that it may hold.
    pub capacity: u32,
    /// It is about to end: its sessions shall move.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub draining: bool,
}

/// A pair alive at a gateway, or one of which a leg waits there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPair {
    /// Its id.
    pub pair: PairName,
    /// Whose it is, if the gateway was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Its legs have met.
    pub met: bool,
}

/// What happens at a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum LegEvent {
    /// A leg was admitted and waits for its mate.
    Waiting {
        /// Its pair.
        pair: PairName,
        /// Whose it is.
        side: Side,
    },
    /// It left, or was sent away.
    Gone {
        /// Its pair.
        pair: PairName,
        /// Whose it was.
        side: Side,
        /// Why it was sent away; absent: it hung up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refusal: Option<String>,
    },
    /// Two legs met.
    Started {
        /// Their pair.
        pair: PairName,
        /// Where the client's comes from.
        client: SocketAddr,
        /// Where the agent's comes from.
        agent: SocketAddr,
    },
    /// A pair is over.
    Ended {
        /// Which.
        pair: PairName,
        /// What ended it.
        cause: String,
        /// In which phase.
        phase: String,
        /// Bytes from client to agent.
        client_to_agent: u64,
        /// Bytes from agent to client.
        agent_to_client: u64,
        /// How long it lasted.
        duration_ms: u64,
    },
}

/// Figures of a pair, as the gateway's kernel has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairFigures {
    /// Its id.
    pub pair: PairName,
    /// What they are.
    pub view: PairView,
}

/// Figures of a pair, as the API shows them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairView {
    /// Round trip between gateway and client.
    pub client_rtt: Option<RttView>,
    /// Round trip between gateway and agent.
    pub agent_rtt: Option<RttView>,
    /// What TCP_INFO says of both legs.
    pub legs: SessionLegs,
    /// Which part holds the pair back.
    pub slow: SlowView,
}

/// From the broker to a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToGateway {
    /// Answer to `register`.
    Registered,
    /// The enrolment is to have another key soon; see `POST /v1/enrol/rotate`.
    Rotate,
    /// The broker refuses the link; after this it closes.
    Refused {
        /// Symbolic code.
        code: Code,
        /// What happened.
        message: String,
    },
    /// Legs of this pair are on their way, for this session: to be told again to a broker that restarted.
    Expect {
        /// The pair.
        pair: PairName,
        /// Whose it will be.
        session: SessionId,
    },
    /// The client's leg of this pair brings these socket options for both.
    Tune {
        /// The pair.
        pair: PairName,
        /// What it brings.
        tuning: Tuning,
    },
    /// Cut these pairs, or send the legs away that wait for them.
    EndPairs {
        /// Which, [`GATEWAY_PAIRS_MAX`] at most.
        pairs: Vec<PairName>,
    },
    /// These users of the relay may use it no more.
    EndRelay {
        /// Their names, [`RELAY_USERS_MAX`] at most.
        users: Vec<String>,
    },
    /// Its sessions are being moved away, or may come again: for its log.
    Drain {
        /// Which of the two.
        drain: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_travels_as_hex_and_nothing_else_is_one() {
        let pair = PairName(PairId([0xa5; 16]));
        let text = serde_json::to_string(&pair).unwrap();
        assert_eq!(text, format!("\"{}\"", "a5".repeat(16)));
        assert_eq!(serde_json::from_str::<PairName>(&text).unwrap(), pair);
        for bad in ["\"\"", "\"a5\"", "7", "\"zz\""] {
            assert!(serde_json::from_str::<PairName>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_stay_out_of_debug() {
        let register = GatewayRegister {
            protocol: 1,
            version: "1".into(),
            name: "eu-1".into(),
            region: None,
            address: "gate.example:443".into(),
            ticket_key: Secret::new("t1cket"),
            relay_key: Some(Secret::new("r3lay")),
            relay_ports: None,
            now: 1,
            capacity: 1,
            draining: false,
        };
        let shown = format!("{register:?}");
        assert!(!shown.contains("t1cket") && !shown.contains("r3lay"));
    }
}
