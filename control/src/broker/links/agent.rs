//! An agent's link: it registers, then asks for warm legs, reports and says goodbye to sessions.
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::WebSocket;
use axum::response::Response;
use switchback_engine::PairId;
use tokio::time::Instant;

use super::{Peer, hear, run, udp, upgraded};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::door::Visitor;
use crate::broker::enrolment;
use crate::broker::http::{AgentCaller, Refused, Upgrade};
use crate::broker::limits::{
    KEY_CHARS_MAX, REGISTER_DEADLINE, RESOURCES_MAX, TARGET_CHARS_MAX, is_label, is_name,
};
use crate::broker::links::reports::judge_all;
use crate::broker::orchestrator::{Input, LinkId, Output, Registration, WARM_LEGS_MAX};
use crate::broker::policy::Judged;
use crate::broker::rate::{Bucket, LINK_MESSAGES};
use crate::broker::seal::Grant;
use crate::broker::store::{AgentRecord, Owner};
use crate::code::{Code, Fault};
use crate::wire::{AGENT_LINK, FromAgent, PROTOCOL, PublicKey, Resource, SealedGrant, SessionId};

/// An agent's link.
#[utoipa::path(get, path = AGENT_LINK, tag = "links", security(("bearer" = ["agent"])),
    responses((status = 101, description = "A WebSocket follows, see `wire.rs`.")))]
pub(in crate::broker) async fn open(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    AgentCaller(owner): AgentCaller,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, Refused> {
    let share = app.enrolment_links.take(owner.token.clone());
    let share = share
        .ok_or_else(|| Code::RateLimited.because("this agent holds as many links as it may"))?;
    let tasks = app.tasks.clone();
    Ok(upgraded(upgrade, tasks, share, |socket| serve(app, visitor, owner, socket)))
}

async fn serve(app: Arc<App>, visitor: Visitor, owner: Owner, socket: WebSocket) {
    let (link, queue) = app.hub.attach();
    let due = Some(Instant::now() + REGISTER_DEADLINE);
    let flood = Bucket::full(LINK_MESSAGES, clock::now());
    let mut agent = Agent { app: app.clone(), visitor, owner, link, name: None, due, flood };
    // Until the link was attached a revocation could not reach it.
    if !matches!(app.store.is_good(&agent.owner.token).await, Ok(true)) {
        agent.refuse(Code::TokenRevoked.into());
    }
    run(socket, queue, &mut agent, &app.stop).await;
    app.hub.detach(link, Input::AgentDown { link });
    if let Some(name) = agent.name {
        tracing::info!(agent = name, link = link.0, "agent's link ended");
    }
}

struct Agent {
    app: Arc<App>,
    visitor: Visitor,
    owner: Owner,
    link: LinkId,
    /// Set once registered.
    name: Option<String>,
    due: Option<Instant>,
    flood: Bucket,
}

/// What `register` says.
struct Introduction {
    protocol: u32,
    version: String,
    name: String,
    key: PublicKey,
    resources: Vec<Resource>,
    sessions: Vec<SealedGrant>,
}

impl Peer for Agent {
    async fn said(&mut self, text: &str) {
        match hear(&mut self.flood, text) {
            Ok(message) => self.obey(message).await,
            Err(fault) => self.refuse(fault),
        }
    }

    fn refuse(&mut self, fault: Fault) {
        let name = self.name.as_deref().unwrap_or("-");
        tracing::info!(agent = name, peer = %self.visitor.address, %fault, "agent's link refused");
        self.due = None;
        self.app.hub.refuse_agent(self.link, fault, true);
    }

    fn introduction_due(&self) -> Option<Instant> {
        self.due
    }

    fn answered(&mut self, rtt: Duration) {
        self.app.hub.apply(Input::LinkRtt { link: self.link, rtt });
    }
}

impl Agent {
    async fn obey(&mut self, message: FromAgent) {
        let link = self.link;
        match (message, self.name.is_some()) {
            (FromAgent::Register { protocol, version, name, key, resources, sessions }, false) => {
                let introduction =
                    Introduction { protocol, version, name, key, resources, sessions };
                if let Err(fault) = self.register(introduction).await {
                    self.refuse(fault);
                }
            }
            (FromAgent::WarmLegs { count }, true) => {
                let count = usize::try_from(count).unwrap_or(usize::MAX).min(WARM_LEGS_MAX);
                let pairs = (0..count).map(|_| PairId(clock::random())).collect();
                self.app.hub.apply(Input::Warm { link, pairs });
            }
            (FromAgent::Report { sessions }, true) => {
                let end = |session, code| Output::EndAtAgent { link, session, code };
                super::reports::take_in(&self.app, link, None, sessions, end).await;
            }
            (FromAgent::Rtts { rtts }, true) => self.app.hub.apply(Input::Rtts { link, rtts }),
            (FromAgent::Begun { session }, true) => {
                self.app.hub.apply(Input::Begun { link, session });
            }
            (FromAgent::Ended { session, code }, true) => {
                self.app.hub.apply(Input::Ended { link, session, code });
            }
            (FromAgent::Network { candidates }, true) => {
                let candidates = udp::admit(&self.app, link, &self.visitor, candidates);
                self.app.hub.apply(Input::Network { link, candidates });
            }
            (FromAgent::Candidates { session, candidates }, true) => {
                let candidates = udp::admit(&self.app, link, &self.visitor, candidates);
                self.app.hub.apply(Input::Candidates { link, session, candidates });
            }
            (FromAgent::Health { targets, load_percent }, true) => {
                let targets = targets.into_iter().take(RESOURCES_MAX).collect();
                self.app.hub.apply(Input::Health { link, targets, load_percent });
            }
            (FromAgent::Paths { session, paths }, true) => {
                let paths = Box::new(udp::bounded(*paths));
                self.app.hub.apply(Input::Paths { link, session, paths });
            }
            (_, false) => self.refuse(Code::MessageMalformed.because("register comes first")),
            (FromAgent::Register { .. }, true) => {
                self.refuse(Code::MessageMalformed.because("register comes once"));
            }
        }
    }

    async fn register(&mut self, introduction: Introduction) -> Result<(), Fault> {
        let Introduction { protocol, version, name, key, mut resources, sessions } = introduction;
        if protocol != PROTOCOL {
            let detail = format!("the agent speaks version {protocol}, this broker {PROTOCOL}");
            return Err(Code::ProtocolVersion.because(detail));
        }
        check(&name, &version, &key, &resources)?;
        if self.owner.name != name {
            return Err(Code::AgentNotAllowed.into());
        }
        resources.iter_mut().try_for_each(|resource| self.app.hub.tunings.judge(resource))?;
        let link = self.link;
        let record = AgentRecord { name: name.clone(), key: key.0.clone(), version, resources };
        let bad = loop {
            let rights = self.app.hub.rights();
            // Until it is registered, a revocation does not reach the link.
            if !self.app.store.is_good(&self.owner.token).await? {
                self.app.store.retract(&name).await?;
                return Err(Code::TokenRevoked.into());
            }
            let (good, bad) = judge_held(&self.app, sessions.clone()).await?;
            // Before anybody can hear of it, so that what it offers is there when it is asked for.
            self.app.store.announce(record.clone()).await?;
            let registration = Registration {
                name: name.clone(),
                key: key.clone(),
                token: self.owner.token.clone(),
                resources: record.resources.clone(),
                sessions: good,
                draining: self.app.store.is_draining(&name).await?,
            };
            if self.app.hub.apply_if(rights, Input::AgentUp { link, registration }) {
                break bad;
            }
        };
        self.due = None;
        if !self.app.hub.is_registered(link) {
            // Its name is taken; the refusal is on its way.
            return Ok(());
        }
        for (session, code) in bad {
            self.app.hub.end_at(Output::EndAtAgent { link, session, code });
        }
        let AgentRecord { version, resources, .. } = record;
        let resources = resources.len();
        let peer = self.visitor.address;
        tracing::info!(agent = name, link = link.0, %peer, version, resources, "agent registered");
        self.name = Some(name);
        enrolment::remind(&self.app, &self.owner.token).await;
        Ok(())
    }
}

/// Sessions that an agent still holds: those that go on, and those that do not, with why.
async fn judge_held(
    app: &Arc<App>,
    sessions: Vec<SealedGrant>,
) -> Result<(Vec<Grant>, Vec<(SessionId, Code)>), Fault> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for Judged { grant, verdict, .. } in judge_all(app, sessions, None).await? {
        match verdict {
            Ok(()) => good.push(grant),
            Err(code) => bad.push((grant.session, code)),
        }
    }
    Ok((good, bad))
}

fn check(name: &str, version: &str, key: &PublicKey, resources: &[Resource]) -> Result<(), Fault> {
    let malformed = |detail: &str| Err(Code::MessageMalformed.because(detail));
    if !is_name(name) {
        return malformed("an agent's name is 1 to 63 of a-z 0-9 - _ .");
    }
    if !is_label(version) {
        return malformed("the version is no short plain text");
    }
    if !is_key(key) {
        return malformed("the key is no base64url of a public key");
    }
    if resources.len() > RESOURCES_MAX {
        return malformed("more than 100 resources");
    }
    let is_good = |resource: &Resource| {
        is_name(&resource.name)
            && resource.target.len() <= TARGET_CHARS_MAX
            && resource.target.bytes().all(|b| b.is_ascii_graphic())
            && resource.look.check().is_ok()
    };
    if !resources.iter().all(is_good) {
        return malformed("a resource's name, target or look is not as it must be");
    }
    Ok(())
}

pub(super) fn is_key(key: &PublicKey) -> bool {
    (1..=KEY_CHARS_MAX).contains(&key.0.len())
        && data_encoding::BASE64URL_NOPAD.decode(key.0.as_bytes()).is_ok()
}
