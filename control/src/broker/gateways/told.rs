//! What linked gateways tell, as the hub takes it in, and what they are told.
use std::sync::Arc;

use switchback_engine::{LegSide, PairId, Tuning};

use super::{Member, Meter};
use crate::broker::clock;
use crate::broker::hub::{Core, Hub, Outgoing};
use crate::broker::orchestrator::{GatewayId, GatewaySnapshot, GatewayUp, Input, LinkId};
use crate::code::{Code, Fault};
use crate::wire::{GatewayRtt, LegEvent, PairFigures, PairName, RelayAccess, SessionId, ToGateway};

impl Hub {
    /// A gateway registers; one of the same name that has a link loses that.
    ///
    /// # Errors
    /// [`Code::GatewayLimit`].
    pub(crate) fn gateway_up(&self, up: GatewayUp, member: Member) -> Result<(), Fault> {
        let mut core = self.core();
        if !core.orchestrator.has_room_for_gateway(&up.name) {
            return Err(Code::GatewayLimit.into());
        }
        let link = member.link;
        if let Some(old) = core.members.insert(up.name.clone(), member) {
            self.queue(&mut core, old.link, Outgoing::Close);
        }
        self.send(&mut core, link, &ToGateway::Registered);
        self.apply_locked(&mut core, Input::GatewayUp { up });
        Ok(())
    }

    /// A gateway's link is gone.
    pub(crate) fn gateway_gone(&self, link: LinkId, name: Option<&GatewayId>) {
        let mut core = self.core();
        core.forget_link(link);
        if let Some(name) = name
            && core.members.remove(name, link)
        {
            tracing::warn!(gateway = &**name, "gateway lost; what it relays goes on");
            self.apply_locked(&mut core, Input::GatewayDown { gateway: name.clone() });
        }
    }

    pub(crate) fn refuse_gateway(&self, link: LinkId, fault: Fault) {
        let mut core = self.core();
        self.refuse_gateway_locked(&mut core, link, fault);
    }

    pub(in crate::broker) fn refuse_gateway_locked(
        &self,
        core: &mut Core,
        link: LinkId,
        fault: Fault,
    ) {
        self.counters.fault(&fault);
        let Fault { code, detail: message } = fault;
        self.send(core, link, &ToGateway::Refused { code, message });
        self.queue(core, link, Outgoing::Close);
    }

    /// Something that `name` says on its present link; what an old one says is not heard.
    pub(crate) fn gateway_says(&self, link: LinkId, name: &GatewayId, input: Input) {
        let mut core = self.core();
        if core.members.get(name).is_some_and(|member| member.link == link) {
            self.apply_locked(&mut core, input);
        }
    }

    /// What happened there, in order. A gateway speaks of its own pairs only.
    pub(crate) fn gateway_events(&self, link: LinkId, name: &GatewayId, events: Vec<LegEvent>) {
        let mut core = self.core();
        if core.members.get(name).is_none_or(|member| member.link != link) {
            return;
        }
        for event in events {
            if let Some(input) = core.heard(name, event) {
                self.apply_locked(&mut core, input);
            }
        }
    }

    pub(crate) fn gateway_meters(&self, name: &GatewayId, pairs: Vec<PairFigures>) {
        let mut core = self.core();
        for PairFigures { pair: PairName(pair), view } in pairs {
            if core.is_at(name, pair) && core.orchestrator.session_of(pair).is_some() {
                core.meters.insert(pair, Meter::Linked(Arc::new(view)));
            }
        }
    }

    /// Has a gateway's sessions move, or lets some come again, if it is known.
    pub(crate) fn drain_gateway(&self, name: &str, drain: bool) {
        let mut core = self.core();
        let gateway = name.into();
        if let Some(link) = core.members.get(name).map(|member| member.link) {
            self.send(&mut core, link, &ToGateway::Drain { drain });
        }
        self.apply_locked(&mut core, Input::GatewayDrains { gateway, drain });
    }

    // --- doing what the orchestrator says ---

    /// A gateway hears whose pair will come, so that it can say so to a broker that was started anew.
    pub(in crate::broker) fn expect(&self, core: &mut Core, pair: PairId, session: &SessionId) {
        if let Some(link) = core.member_of(pair).map(|member| member.link) {
            let session = session.clone();
            self.send(core, link, &ToGateway::Expect { pair: PairName(pair), session });
        }
    }

    /// Over a link the options may come later than a client that is nearer to the gateway than the broker is: then its pair
    /// goes with what the listener has.
    pub(in crate::broker) fn tune(&self, core: &mut Core, pair: PairId, tuning: Arc<Tuning>) {
        match core.member_of(pair).map(|member| member.link) {
            Some(link) => {
                let tuning = Tuning::clone(&tuning);
                self.send(core, link, &ToGateway::Tune { pair: PairName(pair), tuning });
            }
            None => self.tunings.expect(pair, tuning, clock::steady_seconds()),
        }
    }

    /// The right to use the relay of the gateway that the session's last leg went through.
    pub(in crate::broker) fn relay(
        &self,
        core: &Core,
        session: &SessionId,
        user: &str,
        side: LegSide,
    ) -> Option<RelayAccess> {
        let now = clock::unix_seconds();
        let gateway = core.orchestrator.gateway_of_session(session);
        let member = gateway.and_then(|gateway| core.members.get(gateway));
        match member.filter(|_| self.udp.is_own()) {
            Some(member) => {
                let (keys, address) = member.relay()?;
                let address = Some(address.to_owned());
                Some(keys.access(address, session, user, side, member.time(now)))
            }
            None => self.udp.relay(session, user, side, now),
        }
    }

    // --- what the API asks ---

    pub(crate) fn gateways(&self) -> Vec<GatewaySnapshot> {
        self.core().orchestrator.gateways()
    }

    /// `HOST:PORT` of the gateway that a session goes through, and the UDP ports that it relays on, as far as it has said; `None`:
    /// the broker's own.
    pub(crate) fn place_of(&self, session: &SessionId) -> Option<(String, Option<(u16, u16)>)> {
        let core = self.core();
        let name = core.orchestrator.session(session, clock::now())?.gateway?;
        let address = core.orchestrator.address_of(&name)?.to_owned();
        Some((address, core.members.get(&name).and_then(Member::relay_ports)))
    }

    /// What agents that offer `resource` now measured, by name.
    pub(crate) fn agents_ways(&self, resource: &str) -> Vec<(String, Vec<GatewayRtt>)> {
        let core = self.core();
        let agents = core.orchestrator.agents_of(resource).into_iter();
        agents.map(|agent| (agent.clone(), core.orchestrator.rtts_of_agent(&agent))).collect()
    }
}

impl Core {
    fn is_at(&self, name: &GatewayId, pair: PairId) -> bool {
        self.orchestrator.gateway_of(pair) == Some(name)
    }

    fn heard(&mut self, name: &GatewayId, event: LegEvent) -> Option<Input> {
        let (LegEvent::Waiting { pair: PairName(pair), .. }
        | LegEvent::Gone { pair: PairName(pair), .. }
        | LegEvent::Started { pair: PairName(pair), .. }
        | LegEvent::Ended { pair: PairName(pair), .. }) = event;
        if !self.is_at(name, pair) {
            return None;
        }
        let session = self.orchestrator.session_of(pair);
        let session = session.as_ref().map_or("-", |session| &*session.0);
        Some(match event {
            LegEvent::Waiting { side, .. } => Input::LegWaiting { pair, side: side.into() },
            LegEvent::Gone { side, refusal, .. } => {
                tracing::info!(session, %pair, gateway = &**name, ?side, refusal, "leg gone");
                Input::LegGone { pair, side: side.into() }
            }
            LegEvent::Started { client, agent, .. } => {
                tracing::info!(session, %pair, gateway = &**name, %client, %agent, "pair started");
                Input::PairStarted { pair }
            }
            LegEvent::Ended {
                cause, phase, client_to_agent, agent_to_client, duration_ms, ..
            } => {
                self.meters.remove(&pair);
                tracing::info!(
                    session,
                    %pair,
                    gateway = &**name,
                    cause,
                    phase,
                    client_to_agent,
                    agent_to_client,
                    duration_ms,
                    "pair ended"
                );
                Input::PairEnded { pair }
            }
        })
    }
}
