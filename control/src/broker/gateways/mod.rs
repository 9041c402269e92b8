//! Gateways on other machines, as the broker deals with them: their keys, what they tell, and what they are told.
//!
//! The orchestrator knows a gateway by its name and what it is near to; [`Members`] knows the link that leads there, the
//! key that its tickets are minted with, and its relay. The broker's own gateway is no member: what is asked of it goes to the
//! data plane of this process.
mod ending;
mod told;

use std::collections::HashMap;
use std::sync::Arc;

pub(in crate::broker) use ending::Ending;
use switchback_engine::{LegSide, PairId, PairMeter};

use crate::broker::clock;
use crate::broker::http::pair_view;
use crate::broker::orchestrator::{GatewayId, LinkId};
use crate::broker::udp::RelayKeys;
use crate::code::{Code, Fault};
use crate::secret::Secret;
use crate::ticket::{TICKET_TTL, Ticket, TicketKey};
use crate::wire::{LegTicket, PairView};

/// A gateway with a link.
pub(crate) struct Member {
    pub(crate) link: LinkId,
    /// Its enrolment.
    pub(crate) token: String,
    /// `HOST:PORT`.
    address: String,
    tickets: TicketKey,
    relay: Option<RelayKeys>,
    /// First and last.
    relay_ports: Option<(u16, u16)>,
    /// Its clock less ours, seconds: its tickets expire by its own.
    ahead: i64,
}

impl Member {
    /// Of what a gateway says of itself; `now`: its clock.
    ///
    /// # Errors
    /// [`Code::MessageMalformed`] if a key is none.
    pub(crate) fn new(
        (link, token): (LinkId, String),
        address: String,
        ticket_key: &Secret,
        (relay_key, relay_ports): (Option<&Secret>, Option<(u16, u16)>),
        now: u64,
    ) -> Result<Self, Fault> {
        let tickets = TicketKey::new(&key(ticket_key)?);
        let relay = relay_key.map(key).transpose()?.map(|key| RelayKeys::new(&key));
        let ahead = now.cast_signed().saturating_sub(clock::steady_seconds().cast_signed());
        Ok(Self { link, token, address, tickets, relay, relay_ports, ahead })
    }

    /// Admission of one leg there, from now on for [`TICKET_TTL`].
    pub(crate) fn ticket(&self, pair: PairId, side: LegSide, warm: bool) -> LegTicket {
        let now = clock::steady_seconds().saturating_add_signed(self.ahead);
        let expiry = u32::try_from(now + TICKET_TTL.as_secs()).unwrap_or(u32::MAX);
        let server_name = self.tickets.mint(&Ticket::new(pair, side, warm, expiry));
        LegTicket { pair: pair.to_string(), server_name, gateway: Some(self.address.clone()) }
    }

    /// Its relay's keys and its address, if it relays.
    pub(crate) fn relay(&self) -> Option<(&RelayKeys, &str)> {
        self.relay.as_ref().map(|keys| (keys, &*self.address))
    }

    /// The UDP ports that it relays on, first and last, as far as it says.
    pub(crate) const fn relay_ports(&self) -> Option<(u16, u16)> {
        self.relay_ports
    }

    /// Its clock when ours shows `now`.
    pub(crate) const fn time(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.ahead)
    }
}

/// 32 bytes in hex.
fn key(text: &Secret) -> Result<[u8; 32], Fault> {
    let bytes = data_encoding::HEXLOWER.decode(text.reveal().as_bytes()).ok();
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| Code::MessageMalformed.because("a gateway's keys are 64 hex digits"))
}

/// Gateways with a link, by name.
#[derive(Default)]
pub(crate) struct Members(HashMap<GatewayId, Member>);

impl Members {
    /// Takes one in; returns the one that it replaces.
    pub(crate) fn insert(&mut self, name: GatewayId, member: Member) -> Option<Member> {
        self.0.insert(name, member)
    }

    /// Removes one, if this is its link.
    pub(crate) fn remove(&mut self, name: &str, link: LinkId) -> bool {
        let is_its = self.0.get(name).is_some_and(|member| member.link == link);
        is_its && self.0.remove(name).is_some()
    }

    /// `None`: it is the broker's own, or has no link.
    pub(crate) fn get(&self, name: &str) -> Option<&Member> {
        self.0.get(name)
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = LinkId> {
        self.0.values().map(|member| member.link)
    }

    /// Enrolments of those that are here.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(|member| &*member.token)
    }

    /// Links of those with this enrolment.
    pub(crate) fn with_token(&self, token: &str) -> Vec<(GatewayId, LinkId)> {
        let of_token = self.0.iter().filter(|(_, member)| member.token == token);
        of_token.map(|(name, member)| (name.clone(), member.link)).collect()
    }
}

/// Where a pair's figures come from.
#[derive(Clone, Debug)]
pub(crate) enum Meter {
    /// The gateway of this process.
    Local(Arc<PairMeter>),
    /// What another one told last.
    Linked(Arc<PairView>),
}

impl Meter {
    pub(crate) fn view(&self) -> PairView {
        match self {
            Self::Local(meter) => pair_view(&meter.figures()),
            Self::Linked(view) => PairView::clone(view),
        }
    }
}
