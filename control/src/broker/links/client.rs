//! A client's link: it asks for sessions and legs, reports, and says goodbye to sessions.
use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::WebSocket;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use data_encoding::BASE64URL_NOPAD;
use switchback_engine::PairId;
use tokio::time::Instant;

use super::agent::is_key;
use super::reports::{judge_all, take_in};
use super::{Peer, hear, run, udp, upgraded};
use crate::api::AuditRecord;
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::door::Visitor;
use crate::broker::http::{Caller, Refused, Upgrade};
use crate::broker::limits::is_name;
use crate::broker::orchestrator::{Input, LinkId, Output, Wish};
use crate::broker::policy::{Judged, Rights, SessionFacts, record};
use crate::broker::rate::{Bucket, LINK_MESSAGES};
use crate::broker::seal::transport;
use crate::broker::shadow::{Watch, may_shadow};
use crate::broker::store::Owner;
use crate::code::{Code, Fault};
use crate::policy::Decision;
use crate::wire::{
    CLIENT_LINK, Candidate, ClientAddress, FIRST_WORD, FromClient, LegWish, PROTOCOL, PublicKey,
    SealedGrant, SessionId, SessionPurpose, ShadowWish,
};

/// Characters of a session id: 60 random bits.
pub(super) const SESSION_CHARS: usize = 12;

/// A client's link.
#[utoipa::path(get, path = CLIENT_LINK, tag = "links", security(("bearer" = ["user"])),
    responses((status = 101, description = "A WebSocket follows, see `wire.rs`.")))]
pub(in crate::broker) async fn open(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    Caller(owner): Caller,
    headers: HeaderMap,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, Refused> {
    let word = first_word(&headers);
    let share = app.user_links.take(owner.name.clone());
    let share =
        share.ok_or_else(|| Code::RateLimited.because("you hold as many links as you may"))?;
    let tasks = app.tasks.clone();
    let taken = word.is_some();
    let serve = |socket| serve(app, visitor, owner, word, socket);
    let mut response = upgraded(upgrade, tasks, share, serve);
    if taken {
        response.headers_mut().insert(FIRST_WORD, HeaderValue::from_static("taken"));
    }
    Ok(response)
}

/// The message that came with the request. One that is no text in base64url is left to the link: it is not ours.
fn first_word(headers: &HeaderMap) -> Option<String> {
    let word = headers.get(FIRST_WORD)?.as_bytes();
    String::from_utf8(BASE64URL_NOPAD.decode(word).ok()?).ok()
}

async fn serve(
    app: Arc<App>,
    visitor: Visitor,
    owner: Owner,
    word: Option<String>,
    socket: WebSocket,
) {
    let (link, queue) = app.hub.attach();
    let (user, token) = (owner.name.clone(), owner.token.clone());
    tracing::info!(user, link = link.0, peer = %visitor.address, "client's link started");
    let address = visitor.local.map(|local| ClientAddress::new(visitor.address, local));
    app.hub.apply(Input::ClientUp { link, user, token, address });
    let flood = Bucket::full(LINK_MESSAGES, clock::now());
    let mut client = Client { app: app.clone(), visitor, owner, link, flood };
    // Until the link was known a revocation could not reach it.
    if !matches!(app.store.is_good(&client.owner.token).await, Ok(true)) {
        client.refuse(Code::TokenRevoked.into());
    } else if let Some(word) = word {
        client.said(&word).await;
    }
    run(socket, queue, &mut client, &app.stop).await;
    app.hub.detach(link, Input::ClientDown { link });
    tracing::info!(user = client.owner.name, link = link.0, "client's link ended");
}

/// A wish for a session, as it came.
struct Asked {
    request: u64,
    resource: String,
    key: PublicKey,
    udp: Option<Vec<Candidate>>,
    purpose: SessionPurpose,
    ready: bool,
}

impl Asked {
    /// As policies see it.
    const fn transport(&self) -> &'static str {
        transport(self.udp.is_some())
    }

    /// What was asked for, once it is granted.
    fn wish(&self, session: SessionId, source: IpAddr, rights: Rights) -> Wish {
        Wish {
            request: self.request,
            resource: self.resource.clone(),
            client_key: self.key.clone(),
            ready: self.ready,
            session,
            pair: PairId(clock::random()),
            created_ms: clock::unix_ms(),
            udp: self.udp.clone(),
            purpose: self.purpose.clone(),
            consent: false,
            source: Some(source),
            rights,
        }
    }
}

struct Client {
    app: Arc<App>,
    /// Also holds the connection's room.
    visitor: Visitor,
    owner: Owner,
    link: LinkId,
    flood: Bucket,
}

impl Peer for Client {
    async fn said(&mut self, text: &str) {
        match hear(&mut self.flood, text) {
            Ok(message) => self.obey(message).await,
            Err(fault) => self.refuse(fault),
        }
    }

    fn refuse(&mut self, fault: Fault) {
        tracing::info!(user = self.owner.name, link = self.link.0, %fault, "client's link refused");
        self.app.hub.refuse_client(self.link, 0, fault, true);
    }

    fn introduction_due(&self) -> Option<Instant> {
        None
    }
}

impl Client {
    async fn obey(&mut self, message: FromClient) {
        let link = self.link;
        match message {
            FromClient::Open { request, protocol, resource, key, udp, purpose, ready } => {
                let asked = Asked { request, resource, key, udp: self.admit(udp), purpose, ready };
                let answer = match asked.purpose.shadow().cloned() {
                    Some(wish) => self.shadow(protocol, asked, wish).await,
                    None => self.open(protocol, asked).await,
                };
                self.answer(request, answer);
            }
            FromClient::Rtts { rtts } => self.app.hub.apply(Input::Rtts { link, rtts }),
            FromClient::Leg { request, grant, udp, wish } => {
                let asked = self.leg(request, grant, self.admit(udp), wish).await;
                self.answer(request, asked);
            }
            FromClient::Candidates { session, candidates } => {
                let candidates = udp::admit(&self.app, link, &self.visitor, candidates);
                self.app.hub.apply(Input::Candidates { link, session, candidates });
            }
            FromClient::Moved { session, moved } => {
                if udp::is_plain(&moved) {
                    let direct = crate::is_direct(&moved.to);
                    self.app.hub.apply(Input::Moved { link, session, moved, direct });
                }
            }
            FromClient::Paths { session, paths } => {
                let paths = Box::new(udp::bounded(*paths));
                self.app.hub.apply(Input::Paths { link, session, paths });
            }
            FromClient::Report { sessions } => {
                let end = |session, code| Output::EndAtClient { link, session, code };
                let source = Some(self.visitor.address.ip());
                take_in(&self.app, link, source, sessions, end).await;
            }
            FromClient::Consent { id, yes } => {
                self.app.hub.apply(Input::Consent { link, id, yes });
            }
            FromClient::Begun { session } => {
                self.app.hub.apply(Input::Begun { link, session });
            }
            FromClient::Ended { session, code } => {
                self.app.hub.apply(Input::Ended { link, session, code });
            }
        }
    }

    /// A refusal of one request leaves the link as it is; whatever was granted is answered by the hub.
    fn answer(&self, request: u64, asked: Result<(), Fault>) {
        if let Err(fault) = asked {
            tracing::info!(user = self.owner.name, link = self.link.0, %fault, "request refused");
            self.app.hub.refuse_client(self.link, request, fault, false);
        }
    }

    /// Candidates that may be passed on, of a client that does UDP.
    fn admit(&self, udp: Option<Vec<Candidate>>) -> Option<Vec<Candidate>> {
        udp.map(|candidates| udp::admit(&self.app, self.link, &self.visitor, candidates))
    }

    async fn open(&self, protocol: u32, asked: Asked) -> Result<(), Fault> {
        self.app.charge(&self.owner.name)?;
        check_open(protocol, &asked.key)?;
        if !is_name(&asked.resource) {
            return Err(Code::ResourceUnknown.into());
        }
        let source = self.visitor.address.ip();
        let transport = asked.transport();
        loop {
            let known = self.app.hub.rights();
            let place = self.app.audit.place()?;
            let resource = &asked.resource;
            let judged = self.app.may_connect(&self.owner, source, resource, transport).await;
            let session = SessionId(clock::random_name(SESSION_CHARS));
            let told = |decision: &Decision| AuditRecord {
                correlation: session.0.clone(),
                ..record(&self.owner.name, "connect", resource, decision, Some(source))
            };
            let (rights, decision) = match judged {
                Ok(judged) => judged,
                Err((fault, decision)) => {
                    let code = Some(fault.code);
                    let told = AuditRecord { allowed: false, code, ..told(&decision) };
                    self.app.audit.tell_refusal(told);
                    return Err(fault);
                }
            };
            let record = told(&decision);
            let wish = asked.wish(session, source, rights);
            if self.app.hub.apply_if(known, Input::Open { link: self.link, wish }) {
                place.record(record);
                return Ok(());
            }
        }
    }

    async fn shadow(&self, protocol: u32, asked: Asked, shadow: ShadowWish) -> Result<(), Fault> {
        self.app.charge(&self.owner.name)?;
        check_open(protocol, &asked.key)?;
        let source = self.visitor.address.ip();
        let how = Watch::of(&shadow);
        loop {
            let known = self.app.hub.rights();
            let place = self.app.audit.place()?;
            let (found, _) = self.app.hub.session(&shadow.session).ok_or(Code::SessionUnknown)?;
            let session = &shadow.session;
            let (user, resource) = (&*found.user, &*found.resource);
            let facts = SessionFacts { session: &session.0, user, resource };
            let judged = may_shadow(&self.app, &self.owner, source, &facts, how).await?;
            let (terms, decision) = judged;
            let (by, action) = (&self.owner.name, how.action().as_str());
            let record = AuditRecord {
                correlation: session.0.clone(),
                detail: Some(format!("a session of {user}")),
                ..record(by, action, resource, &decision, Some(source))
            };
            let terms = match terms {
                Ok(terms) => terms,
                Err(code) => {
                    tracing::info!(%session, user = by, ?how, %code, "watching refused");
                    let told = AuditRecord { allowed: false, code: Some(code), ..record };
                    self.app.audit.tell_refusal(told);
                    return Err(code.into());
                }
            };
            if found.life.watches.is_some() {
                return Err(Code::UsageInvalid.because("a watch cannot be watched"));
            }
            let target = self.app.hub.shadow_target(session);
            if target == Some(false) && how == Watch::View {
                return Err(Code::ShadowNeedsControl.into());
            }
            let no_prompt = shadow.no_prompt && terms.may_skip_consent;
            let shadow = ShadowWish { target: target.is_some(), no_prompt, ..shadow.clone() };
            let watch = SessionId(clock::random_name(SESSION_CHARS));
            let wish = Wish {
                resource: found.resource,
                ready: false,
                purpose: SessionPurpose::Shadow(shadow),
                consent: !no_prompt,
                ..asked.wish(watch, source, terms.rights)
            };
            if self.app.hub.apply_if(known, Input::Open { link: self.link, wish }) {
                place.record(record);
                return Ok(());
            }
        }
    }

    async fn leg(
        &self,
        request: u64,
        sealed: SealedGrant,
        udp: Option<Vec<Candidate>>,
        wish: LegWish,
    ) -> Result<(), Fault> {
        self.app.charge(&self.owner.name)?;
        loop {
            let rights = self.app.hub.rights();
            let source = Some(self.visitor.address.ip());
            let shown = judge_all(&self.app, vec![sealed.clone()], source).await?;
            let Some(Judged { grant, decision, verdict }) = shown.into_iter().next() else {
                return Err(Code::GrantInvalid.because("the broker did not make this grant"));
            };
            if let Err(code) = verdict {
                self.app.condemn(self.link, &grant, &decision, code);
                return Err(code.into());
            }
            let (link, pair) = (self.link, PairId(clock::random()));
            let (udp, wish) = (udp.clone(), wish.clone());
            let input = Input::Leg { link, request, grant, pair, udp, wish };
            if self.app.hub.apply_if(rights, input) {
                return Ok(());
            }
        }
    }
}

fn check_open(protocol: u32, key: &PublicKey) -> Result<(), Fault> {
    if protocol != PROTOCOL {
        let detail = format!("the client speaks version {protocol}, this broker {PROTOCOL}");
        return Err(Code::ProtocolVersion.because(detail));
    }
    if !is_key(key) {
        return Err(Code::MessageMalformed.because("the key is no base64url of a public key"));
    }
    Ok(())
}
