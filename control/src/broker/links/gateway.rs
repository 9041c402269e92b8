//! A gateway's link: it registers with its keys, says what it holds, and then tells what happens there.
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::WebSocket;
use axum::response::Response;
use tokio::time::Instant;

use super::client::SESSION_CHARS;
use super::{Peer, hear, run, upgraded};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::config::Authority;
use crate::broker::door::Visitor;
use crate::broker::enrolment;
use crate::broker::gateways::Member;
use crate::broker::http::{GatewayCaller, Refused, Upgrade};
use crate::broker::limits::{REGISTER_DEADLINE, is_label, is_name};
use crate::broker::orchestrator::{GatewayId, GatewayUp, Input, LinkId};
use crate::broker::rate::{Bucket, LINK_MESSAGES};
use crate::broker::store::Owner;
use crate::code::{Code, Fault};
use crate::wire::{
    FromGateway, GATEWAY_EVENTS_MAX, GATEWAY_LINK, GATEWAY_METERS_MAX, GATEWAY_PAIRS_MAX,
    GatewayRegister, HeldPair, LOCAL_GATEWAY, PROTOCOL, SessionId,
};

/// A gateway's link.
#[utoipa::path(get, path = GATEWAY_LINK, tag = "links", security(("bearer" = ["gateway"])),
    responses((status = 101, description = "A WebSocket follows, see `wire.rs`.")))]
pub(in crate::broker) async fn open(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    GatewayCaller(owner): GatewayCaller,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, Refused> {
    let share = app.enrolment_links.take(owner.token.clone());
    let share = share
        .ok_or_else(|| Code::RateLimited.because("this gateway holds as many links as it may"))?;
    let tasks = app.tasks.clone();
    Ok(upgraded(upgrade, tasks, share, |socket| serve(app, visitor, owner, socket)))
}

async fn serve(app: Arc<App>, visitor: Visitor, owner: Owner, socket: WebSocket) {
    let (link, queue) = app.hub.attach();
    let due = Some(Instant::now() + REGISTER_DEADLINE);
    let flood = Bucket::full(LINK_MESSAGES, clock::now());
    let mut gateway = Gateway { app: app.clone(), visitor, owner, link, name: None, due, flood };
    run(socket, queue, &mut gateway, &app.stop).await;
    app.hub.gateway_gone(link, gateway.name.as_ref());
}

struct Gateway {
    app: Arc<App>,
    visitor: Visitor,
    owner: Owner,
    link: LinkId,
    /// Set once registered.
    name: Option<GatewayId>,
    due: Option<Instant>,
    flood: Bucket,
}

impl Peer for Gateway {
    async fn said(&mut self, text: &str) {
        match hear(&mut self.flood, text) {
            Ok(message) => {
                if let Err(fault) = self.obey(message).await {
                    self.refuse(fault);
                }
            }
            Err(fault) => self.refuse(fault),
        }
    }

    fn refuse(&mut self, fault: Fault) {
        let name = self.name.as_deref().unwrap_or("-");
        tracing::info!(gateway = name, peer = %self.visitor.address, %fault, "gateway's link refused");
        self.due = None;
        self.app.hub.refuse_gateway(self.link, fault);
    }

    fn introduction_due(&self) -> Option<Instant> {
        self.due
    }
}

impl Gateway {
    async fn obey(&mut self, message: FromGateway) -> Result<(), Fault> {
        let too_many = || Err(Code::MessageMalformed.because("more in one message than may be"));
        let (hub, link) = (self.app.hub.clone(), self.link);
        let Some(name) = self.name.clone() else {
            return match message {
                FromGateway::Register(register) => self.register(*register).await,
                _ => Err(Code::MessageMalformed.because("register comes first")),
            };
        };
        let gateway = name.clone();
        match message {
            FromGateway::Register(_) => {
                return Err(Code::MessageMalformed.because("register comes once"));
            }
            FromGateway::Holds { pairs, last } => {
                if pairs.len() > GATEWAY_PAIRS_MAX {
                    return too_many();
                }
                if !pairs.iter().filter_map(|it| it.session.as_ref()).all(is_session) {
                    return Err(Code::MessageMalformed.because("a session's id is 12 of a-z 2-7"));
                }
                let held = |HeldPair { pair, session, met }| (pair.0, session, met);
                let held = pairs.into_iter().map(held).collect();
                hub.gateway_says(link, &name, Input::GatewayHolds { gateway, held, last });
            }
            FromGateway::Events { events } => {
                if events.len() > GATEWAY_EVENTS_MAX {
                    return too_many();
                }
                hub.gateway_events(link, &name, events);
            }
            FromGateway::Meters { pairs } => {
                if pairs.len() > GATEWAY_METERS_MAX {
                    return too_many();
                }
                hub.gateway_meters(&name, pairs);
            }
            FromGateway::Load { pairs } => {
                let pairs = usize::try_from(pairs).unwrap_or(usize::MAX);
                hub.gateway_says(link, &name, Input::GatewayLoad { gateway, pairs });
            }
            FromGateway::Draining => {
                tracing::info!(gateway = &*name, "gateway is about to end, its sessions move");
                hub.gateway_says(link, &name, Input::GatewayDrains { gateway, drain: true });
            }
        }
        Ok(())
    }

    async fn register(&mut self, register: GatewayRegister) -> Result<(), Fault> {
        let GatewayRegister {
            protocol,
            version,
            name,
            region,
            address,
            ticket_key,
            relay_key,
            relay_ports,
            now,
            capacity,
            draining,
        } = register;
        if protocol != PROTOCOL {
            let detail = format!("the gateway speaks version {protocol}, this broker {PROTOCOL}");
            return Err(Code::ProtocolVersion.because(detail));
        }
        let malformed = |detail: &str| Err(Code::MessageMalformed.because(detail));
        if !is_name(&name) || name == LOCAL_GATEWAY {
            return malformed("a gateway's name is 1 to 63 of a-z 0-9 - _ . and not `local`");
        }
        if !is_label(&version) || !region.as_deref().is_none_or(is_label) {
            return malformed("version or region is no short plain text");
        }
        if self.owner.name != name {
            return Err(Code::GatewayNotAllowed.into());
        }
        // It must be whole: ends dial it as it stands.
        let Some(address) = Authority::parse(&address, 0).filter(|it| it.port > 0) else {
            return malformed("the advertised address is no HOST:PORT");
        };
        let address = address.to_string();
        // Until it is registered, a revocation does not reach the link.
        if !self.app.store.is_good(&self.owner.token).await? {
            return Err(Code::TokenRevoked.into());
        }
        let keys = (self.link, self.owner.token.clone());
        let relay = (relay_key.as_ref(), relay_ports);
        let member = Member::new(keys, address.clone(), &ticket_key, relay, now)?;
        let name: GatewayId = name.into();
        let ordered = self.app.store.is_gateway_draining(&name).await?;
        let draining = draining || ordered;
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        let peer = self.visitor.address;
        tracing::info!(gateway = &*name, %peer, address, version, draining, "gateway registered");
        let up = GatewayUp { name: name.clone(), address, region, version, capacity, draining };
        self.app.hub.gateway_up(up, member)?;
        // From here on one does, and so does an order to drain; they may have come in between.
        if !self.app.store.is_good(&self.owner.token).await? {
            return Err(Code::TokenRevoked.into());
        }
        let still = self.app.store.is_gateway_draining(&name).await?;
        if ordered || still {
            self.app.hub.drain_gateway(&name, still);
        }
        self.due = None;
        self.name = Some(name);
        enrolment::remind(&self.app, &self.owner.token).await;
        Ok(())
    }
}

/// Whether a broker may have named a session so: with what [`clock::random_name`] makes.
fn is_session(SessionId(id): &SessionId) -> bool {
    id.len() == SESSION_CHARS && id.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_speak_of_sessions_that_a_broker_may_have_named_and_of_no_others() {
        for _ in 0..100 {
            assert!(is_session(&SessionId(clock::random_name(SESSION_CHARS))));
        }
        for id in ["", "k3m7x2q7w4h", "k3m7x2q7w4hta", "K3M7X2Q7W4HT", "k3m7x2q7w4é"] {
            assert!(!is_session(&SessionId(id.into())), "{id:?}");
        }
    }
}
