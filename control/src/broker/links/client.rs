//! A client's link: it asks for sessions and legs, reports, and says goodbye to sessions.
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
use super::reports::{Shown, judge_all, take_in};
use super::{Peer, hear, limited, run, udp};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::door::Visitor;
use crate::broker::http::{Caller, Refused, Upgrade};
use crate::broker::limits::is_name;
use crate::broker::orchestrator::{Input, LinkId, Output, Wish};
use crate::broker::rate::{Bucket, LINK_MESSAGES};
use crate::broker::store::Owner;
use crate::code::{Code, Fault};
use crate::wire::{
    Candidate, ClientAddress, FIRST_WORD, FromClient, PROTOCOL, PublicKey, SealedGrant, SessionId,
    SessionPurpose,
};

/// Characters of a session id: 60 random bits.
const SESSION_CHARS: usize = 12;

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
    let mut response = limited(upgrade).on_upgrade(move |socket| {
        tasks.track_future(async move {
            serve(app, visitor, owner, word, socket).await;
            drop(share);
        })
    });
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
                let answer = self.open(protocol, asked).await;
                self.answer(request, answer);
            }
            FromClient::Leg { request, grant, udp } => {
                let asked = self.leg(request, grant, self.admit(udp)).await;
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
                take_in(&self.app, link, sessions, end).await;
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
        let Asked { request, resource, key: client_key, udp, purpose, ready } = asked;
        self.app.charge(&self.owner.name)?;
        if protocol != PROTOCOL {
            let detail = format!("the client speaks version {protocol}, this broker {PROTOCOL}");
            return Err(Code::ProtocolVersion.because(detail));
        }
        if !is_key(&client_key) {
            return Err(Code::MessageMalformed.because("the key is no base64url of a public key"));
        }
        loop {
            let rights = self.app.hub.rights();
            self.check_access(&resource).await?;
            let wish = Wish {
                request,
                resource: resource.clone(),
                client_key: client_key.clone(),
                ready,
                session: SessionId(clock::random_name(SESSION_CHARS)),
                pair: PairId(clock::random()),
                created_ms: clock::unix_ms(),
                udp: udp.clone(),
                purpose,
            };
            if self.app.hub.apply_if(rights, Input::Open { link: self.link, wish }) {
                return Ok(());
            }
        }
    }

    /// A resource that is not granted looks like none, so that nobody learns names by guessing; the counters and the log
    /// know the difference.
    async fn check_access(&self, resource: &str) -> Result<(), Fault> {
        let unknown = || Err(Code::ResourceUnknown.into());
        if !is_name(resource) {
            return unknown();
        }
        let access = self.app.store.access(&self.owner.name, resource).await?;
        if access.granted && access.exists {
            return Ok(());
        }
        if access.exists {
            self.app.counters.faults.add(Code::ResourceNotGranted);
            let code = Code::ResourceNotGranted;
            tracing::info!(user = self.owner.name, resource, %code, "session refused");
        }
        unknown()
    }

    async fn leg(
        &self,
        request: u64,
        sealed: SealedGrant,
        udp: Option<Vec<Candidate>>,
    ) -> Result<(), Fault> {
        self.app.charge(&self.owner.name)?;
        loop {
            let rights = self.app.hub.rights();
            let shown = judge_all(&self.app, vec![sealed.clone()]).await?;
            let Some(Shown { grant, verdict }) = shown.into_iter().next() else {
                return Err(Code::GrantInvalid.because("the broker did not make this grant"));
            };
            verdict?;
            let (link, pair) = (self.link, PairId(clock::random()));
            let input = Input::Leg { link, request, grant, pair, udp: udp.clone() };
            if self.app.hub.apply_if(rights, input) {
                return Ok(());
            }
        }
    }
}
