//! What the API shows of gateways.
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::wire::{GatewayRtt, TransportPolicy};

/// State of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GatewayState {
    /// Sessions may go there.
    Up,
    /// None comes any more, and those that are there move.
    Draining,
    /// It drains, and relays nothing: it can be stopped.
    Drained,
    /// It has no link to the broker; what it relays goes on if it lives.
    Lost,
}

impl GatewayState {
    /// Lower-case name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Lost => "lost",
        }
    }
}

/// A gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GatewayView {
    /// Its name; `local` is the broker's own.
    pub name: String,
    /// Where it stands.
    pub region: Option<String>,
    /// `HOST:PORT` that ends dial.
    pub address: String,
    /// State.
    pub state: GatewayState,
    /// Pairs that it relays or that are about to meet there; for administrators.
    pub pairs: Option<u64>,
    /// Pairs that it may hold; for administrators.
    pub capacity: Option<u64>,
    /// Software version; for administrators.
    pub version: Option<String>,
}

/// What a user's resources can be reached through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EstimateView {
    /// Every gateway.
    pub gateways: Vec<GatewayView>,
    /// Every resource of the feed, by the agents that offer it now.
    pub resources: Vec<ResourceWays>,
}

/// How far the gateways are from an agent that offers a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourceWays {
    /// The resource.
    pub resource: String,
    /// The agent; administrators only.
    pub agent: Option<String>,
    /// What may carry its sessions.
    pub transport: TransportPolicy,
    /// What the agent measured.
    pub rtts: Vec<GatewayRtt>,
}
