//! Agents enrol, sign in with keys of their own, change them, and are revoked; and whoever only pretends to.
use std::time::Duration;

use hyper::{Method, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::support::*;
use crate::agent::{self, AgentConfig, AgentOptions, AgentState};
use crate::api::enrol::{Enrolled, NewEnrolment, NewKey};
use crate::api::{NewToken, TokenKind, TokenView};
use crate::broker::clock::unix_seconds;
use crate::code::{Code, Fault};
use crate::enrol::proof::{EndKey, Enrolling, Rotating, SigningIn, fingerprint};
use crate::enrol::{Enrolment, joining};
use crate::invite::{Invite, InviteKind};
use crate::link::{self, Doubt, FirstWord, LinkEvent, Pass};
use crate::secret::Secret;
use crate::udp::UdpOptions;
use crate::wire::{AGENT_LINK, FromAgent, Resource, ToAgent};

async fn join_string(bench: &Bench, uses: u32) -> (String, String) {
    let wish = NewToken { uses: Some(uses), ..NewToken::new(TokenKind::Agent, "*") };
    bench.issue(&wish).await
}

fn revoke(id: &str) -> String {
    format!("/v1/tokens/{id}")
}

/// What the broker says to an agent's link with this bearer; without a WebSocket, so that the body can be read.
async fn door(bench: &Bench, bearer: &str) -> Code {
    let answer = bench.get(AGENT_LINK, bearer).await;
    answer.code().expect("no WebSocket was asked for")
}

/// The door let it pass: only then is it missed that no WebSocket was asked for.
const PASSED: Code = Code::MessageMalformed;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_string_enrols_once_and_a_lost_answer_is_no_loss() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (token, id) = join_string(&bench, 1).await;
    let key = EndKey::generate().unwrap();
    let wish = bench.enrolment(&token, "lab", &key);
    let first: Enrolled = bench.enrol(&token, &wish).await.json();
    let again: Enrolled = bench.enrol(&token, &wish).await.json();
    assert_eq!(first, again);
    let other = EndKey::generate().unwrap();
    let refused = bench.enrol(&token, &bench.enrolment(&token, "annex", &other)).await;
    assert_eq!((refused.code(), refused.status), (Some(Code::JoinUsed), StatusCode::FORBIDDEN));
    let tokens: Vec<TokenView> = bench.get("/v1/tokens", &bench.admin).await.json();
    let end = tokens.iter().find(|token| token.id == first.id).unwrap();
    assert_eq!((end.kind, end.name.as_str()), (TokenKind::Agent, "lab"));
    assert_eq!(end.enrolment.as_ref().unwrap().join, id);
    let string = tokens.iter().find(|token| token.id == id).unwrap();
    assert!(string.uses_left == Some(0) && string.expires_ms.is_some());
    let bench = bench.restart().await;
    let again: Enrolled = bench.enrol(&token, &wish).await.json();
    assert_eq!(first, again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_enrol_hears_why() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (token, _) = join_string(&bench, 9).await;
    let key = EndKey::generate().unwrap();
    let good = bench.enrolment(&token, "lab", &key);
    let code = async |token: &str, wish: &NewEnrolment| bench.enrol(token, wish).await.code();

    // The proof is of another key, name, string or broker, or none at all.
    let other = EndKey::generate().unwrap();
    let proved = |sub: &str, join: &str, aud: &str| {
        let said = Enrolling { aud: aud.into(), sub: sub.into(), join: fingerprint(join) };
        NewEnrolment { proof: key.sign(None, &said).unwrap(), ..good.clone() }
    };
    let pin = bench.pin();
    for wish in [
        NewEnrolment { key: other.public().into(), ..good.clone() },
        NewEnrolment { key: "short".into(), ..good.clone() },
        NewEnrolment { name: "annex".into(), ..good.clone() },
        NewEnrolment { proof: Secret::new("x"), ..good.clone() },
        proved("agent/annex", &token, &pin),
        proved("gateway/lab", &token, &pin),
        proved("agent/lab", "another", &pin),
        proved("agent/lab", &token, "another"),
    ] {
        assert_eq!(code(&token, &wish).await, Some(Code::ProofInvalid), "{wish:?}");
    }
    let named = NewEnrolment { name: "Not A Name".into(), ..good.clone() };
    assert_eq!(code(&token, &named).await, Some(Code::MessageMalformed));

    // The string is of another kind, none, revoked, or too old.
    let (gateways, _) = bench.issue(&NewToken::new(TokenKind::Gateway, "*")).await;
    assert_eq!(code(&gateways, &good).await, Some(Code::TokenInvalid));
    let revoked = join_string(&bench, 1).await;
    bench.as_admin(Method::DELETE, &revoke(&revoked.1), &()).await;
    let wish = bench.enrolment(&revoked.0, "lab", &key);
    assert_eq!(code(&revoked.0, &wish).await, Some(Code::TokenRevoked));
    let wish = NewToken { lasts_s: Some(1), ..NewToken::new(TokenKind::Agent, "*") };
    let (old, _) = bench.issue(&wish).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let wish = bench.enrolment(&old, "lab", &key);
    assert_eq!(code(&old, &wish).await, Some(Code::JoinExpired));

    // The name is held, connected or not.
    bench.end("lab").await;
    assert_eq!(code(&token, &good).await, Some(Code::AgentNameTaken));
    let answer = bench.as_admin(Method::DELETE, &revoke(&bench.end("lab").await.id), &()).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(code(&token, &good).await, None, "a name is free once its enrolment is revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_proofs_is_slowed_down() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (token, _) = join_string(&bench, 1).await;
    let key = EndKey::generate().unwrap();
    let wish = bench.enrolment("another", "lab", &key);
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(bench.enrol(&token, &wish).await.code().unwrap());
    }
    assert_eq!(codes[0], Code::ProofInvalid);
    assert!(codes.contains(&Code::RateLimited));
    let good = bench.enrolment(&token, "lab", &key);
    assert_eq!(bench.enrol(&token, &good).await.status, StatusCode::OK, "a good one passes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_fresh_assertion_of_the_right_key_for_this_broker_opens_a_link() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let End { id, key } = bench.end("lab").await;
    let (pin, now) = (bench.pin(), unix_seconds());
    let said = |now| SigningIn::new(&id, &pin, now);
    let signed = |said: &SigningIn| key.sign(Some(&id), said).unwrap().reveal().to_owned();
    assert_eq!(door(&bench, &signed(&said(now))).await, PASSED);

    // A clock that is minutes or days off, or an assertion that is shown again after its end.
    for off in [-90, -600, -3 * 86_400, 90, 600, 3 * 86_400_i64] {
        let stale = signed(&said(now.saturating_add_signed(off)));
        let answer = bench.get(AGENT_LINK, &stale).await;
        assert_eq!(answer.code(), Some(Code::ClockSkew), "{off}");
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    let greedy = SigningIn { exp: now + 3600, ..said(now) };
    assert_eq!(door(&bench, &signed(&greedy)).await, Code::ClockSkew);

    let other = SigningIn { aud: "another".into(), ..said(now) };
    let about = SigningIn { sub: "another".into(), ..said(now) };
    let stranger = EndKey::generate().unwrap();
    let forged = |header: serde_json::Value| {
        let encode = |value: &serde_json::Value| {
            data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes())
        };
        let claims = serde_json::to_value(said(now)).unwrap();
        format!("{}.{}.", encode(&header), encode(&claims))
    };
    let typ = "switchback-sign-in+jwt";
    let mut hmac = Header::new(Algorithm::HS256);
    (hmac.kid, hmac.typ) = (Some(id.clone()), Some(typ.into()));
    let public = EncodingKey::from_secret(key.public().as_bytes());
    let rotating = Rotating { aud: pin.clone(), sub: id.clone(), key: key.public().into() };
    for (what, bearer) in [
        ("for another broker", signed(&other)),
        ("about another end", signed(&about)),
        ("another key", stranger.sign(Some(&id), &said(now)).unwrap().reveal().into()),
        ("unknown kid", key.sign(Some("nobody"), &said(now)).unwrap().reveal().into()),
        ("no kid", key.sign(None, &said(now)).unwrap().reveal().into()),
        ("another statement", key.sign(Some(&id), &rotating).unwrap().reveal().into()),
        ("alg none", forged(json!({ "alg": "none", "typ": typ, "kid": id }))),
        ("alg HS256", jsonwebtoken::encode(&hmac, &said(now), &public).unwrap()),
        ("a join string's token", bench.join.clone()),
        ("a user's token", bench.admin.clone()),
    ] {
        assert_eq!(door(&bench, &bearer).await, Code::TokenInvalid, "{what}");
    }
    assert_eq!(door(&bench, &signed(&said(now))).await, PASSED);
}

/// Both statements of a rotation.
pub(super) fn rotation(bench: &Bench, id: &str, old: &EndKey, new: &EndKey) -> (String, NewKey) {
    let (aud, sub, key) = (bench.pin(), id.to_owned(), new.public().to_owned());
    let said = Rotating { aud, sub, key: key.clone() };
    let bearer = old.sign(Some(id), &said).unwrap().reveal().to_owned();
    (bearer, NewKey { key, proof: new.sign(Some(id), &said).unwrap() })
}

pub(super) async fn rotate(bench: &Bench, (bearer, body): &(String, NewKey)) -> Option<Code> {
    let body = serde_json::to_vec(body).unwrap();
    bench.ask(Method::POST, "/v1/enrol/rotate", Some(bearer), body).await.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_takes_the_place_of_the_old_one_once_it_is_seen() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let End { id, key: old } = bench.end("lab").await;
    let (new, third) = (EndKey::generate().unwrap(), EndKey::generate().unwrap());
    let pass = |key: &EndKey| {
        let said = SigningIn::new(&id, &bench.pin(), unix_seconds());
        key.sign(Some(&id), &said).unwrap().reveal().to_owned()
    };
    let mut live = bench.agent("lab", vec![]).await;

    // Without the old key, or without the new one, nothing changes.
    let (_, body) = rotation(&bench, &id, &old, &new);
    let stranger = rotation(&bench, &id, &third, &new);
    assert_eq!(rotate(&bench, &stranger).await, Some(Code::TokenInvalid));
    let unproved =
        (rotation(&bench, &id, &old, &new).0, NewKey { key: third.public().into(), ..body });
    assert_eq!(rotate(&bench, &unproved).await, Some(Code::ProofInvalid));
    let assertion = (pass(&old), rotation(&bench, &id, &old, &new).1);
    assert_eq!(rotate(&bench, &assertion).await, Some(Code::TokenInvalid), "a sign-in is no order");

    let wish = rotation(&bench, &id, &old, &new);
    assert_eq!(rotate(&bench, &wish).await, None);
    assert_eq!(rotate(&bench, &wish).await, None, "a repetition is done already");
    assert_eq!(door(&bench, &pass(&old)).await, PASSED, "its end may not know yet");
    assert_eq!(door(&bench, &pass(&new)).await, PASSED);
    assert_eq!(door(&bench, &pass(&old)).await, Code::TokenInvalid);
    let back = rotation(&bench, &id, &old, &third);
    assert_eq!(rotate(&bench, &back).await, Some(Code::TokenInvalid));
    live.say(&FromAgent::WarmLegs { count: 1 }).await;
    assert!(matches!(live.hear().await, ToAgent::WarmTickets { .. }), "the link did not notice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_for_a_new_key_reaches_the_end_now_or_with_its_next_link() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let End { id, .. } = bench.end("lab").await;
    let path = format!("/v1/tokens/{id}/rotate");
    let mut live = bench.agent("lab", vec![]).await;
    assert_eq!(bench.as_admin(Method::POST, &path, &()).await.status, StatusCode::NO_CONTENT);
    assert_eq!(live.hear::<ToAgent>().await, ToAgent::Rotate);
    let mut next = bench.agent("lab", vec![]).await;
    assert_eq!(next.hear::<ToAgent>().await, ToAgent::Rotate);
    let unknown = bench.as_admin(Method::POST, "/v1/tokens/nobody/rotate", &()).await;
    assert_eq!(unknown.code(), Some(Code::SubjectUnknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_string_that_is_revoked_leaves_its_agents_unless_they_go_along() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut link = bench.agent("lab", vec![]).await;
    let tokens: Vec<TokenView> = bench.get("/v1/tokens", &bench.admin).await.json();
    let join = tokens.iter().find_map(|token| Some(token.enrolment.as_ref()?.join.clone()));
    let path = revoke(&join.unwrap());
    bench.as_admin(Method::DELETE, &path, &()).await;
    link.say(&FromAgent::WarmLegs { count: 1 }).await;
    assert!(matches!(link.hear().await, ToAgent::WarmTickets { .. }));
    bench.as_admin(Method::DELETE, &format!("{path}?enrolments=true"), &()).await;
    let refused = link.hear().await;
    assert!(matches!(refused, ToAgent::Refused { code: Code::TokenRevoked, .. }), "{refused:?}");
    link.ends().await;
    assert_eq!(door(&bench, &bench.pass("lab").await).await, Code::TokenRevoked);
}

/// A real agent at the bench's broker.
struct Running {
    state: watch::Receiver<AgentState>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Fault>>,
}

impl Running {
    fn start(bench: &Bench, token: &str) -> Self {
        let (url, pin) = (bench.broker.url(), bench.pin());
        let invite = Invite { kind: InviteKind::Join, url, pin, token: Secret::new(token) };
        let config = AgentConfig {
            invite,
            name: "lab".into(),
            resources: vec![Resource::tcp("ssh", "127.0.0.1:22")],
            warm_legs: 0,
            state_dir: bench.data().join("lab"),
        };
        let (sender, state) = watch::channel(AgentState::default());
        let options =
            AgentOptions { state: Some(sender), udp: UdpOptions::off(), ..AgentOptions::default() };
        let stop = CancellationToken::new();
        let task = tokio::spawn(agent::run_with(config, options, stop.clone()));
        Self { state, stop, task }
    }

    async fn registers(&mut self) {
        soon(self.state.wait_for(|state| state.registered)).await.expect("it lives");
    }

    async fn ends(self) -> Result<(), Code> {
        soon(self.task).await.unwrap().map_err(|fault| fault.code)
    }

    async fn stop(self) {
        self.stop.cancel();
        self.ends().await.unwrap();
    }
}

fn end_state(bench: &Bench) -> serde_json::Value {
    let text = std::fs::read(bench.data().join("lab").join("enrolment.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_joins_once_restarts_without_a_string_and_joins_anew_with_another() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut agent = Running::start(&bench, &bench.join);
    agent.registers().await;
    agent.stop().await;
    let first = end_state(&bench);
    for token in ["", &bench.join] {
        let mut agent = Running::start(&bench, token);
        agent.registers().await;
        agent.stop().await;
    }
    assert_eq!(end_state(&bench), first);

    let mut agent = Running::start(&bench, "");
    agent.registers().await;
    bench.as_admin(Method::DELETE, &revoke(first["id"].as_str().unwrap()), &()).await;
    assert_eq!(agent.ends().await, Err(Code::TokenRevoked));
    // The string that it was made with brings nobody back, not even one for any number of agents.
    assert_eq!(Running::start(&bench, &bench.join).ends().await, Err(Code::TokenRevoked));
    let (another, _) = join_string(&bench, 0).await;
    let mut agent = Running::start(&bench, &another);
    agent.registers().await;
    agent.stop().await;
    let second = end_state(&bench);
    assert_ne!((&second["id"], &second["key"]), (&first["id"], &first["key"]));
    bench.as_admin(Method::DELETE, &revoke(second["id"].as_str().unwrap()), &()).await;
    assert_eq!(Running::start(&bench, &another).ends().await, Err(Code::TokenRevoked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_string_is_no_good_ends_with_the_reason() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (used, _) = join_string(&bench, 1).await;
    let key = EndKey::generate().unwrap();
    bench.enrol(&used, &bench.enrolment(&used, "annex", &key)).await;
    assert_eq!(Running::start(&bench, &used).ends().await, Err(Code::JoinUsed));
    bench.end("lab").await;
    let (second, _) = join_string(&bench, 1).await;
    assert_eq!(Running::start(&bench, &second).ends().await, Err(Code::AgentNameTaken));
    assert_eq!(Running::start(&bench, "").ends().await, Err(Code::UsageInvalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_has_a_live_agent_change_its_key_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut agent = Running::start(&bench, &bench.join);
    agent.registers().await;
    let before = end_state(&bench);
    let path = format!("/v1/tokens/{}/rotate", before["id"].as_str().unwrap());
    bench.as_admin(Method::POST, &path, &()).await;
    eventually(async || {
        let after = end_state(&bench);
        after["key"] != before["key"] && after["rotating"] == false
    })
    .await;
    assert!(!agent.state.has_changed().unwrap_or(true) || agent.state.borrow().registered);
    let after = end_state(&bench);
    assert_eq!((&after["other"], &after["id"]), (&before["key"], &before["id"]));
    agent.stop().await;

    // Killed after the broker had taken the next key, before it heard so: either key is tried.
    let mut torn = after.clone();
    (torn["key"], torn["other"]) = (after["other"].clone(), after["key"].clone());
    torn["rotating"] = true.into();
    // The new key was seen, so the old one is no good at once.
    let mut agent = Running::start(&bench, "");
    agent.registers().await;
    agent.stop().await;
    let file = bench.data().join("lab").join("enrolment.json");
    std::fs::write(&file, serde_json::to_vec(&torn).unwrap()).unwrap();
    let mut agent = Running::start(&bench, "");
    agent.registers().await;
    eventually(async || end_state(&bench)["rotating"] == false).await;
    assert_eq!(end_state(&bench)["key"], after["key"]);
    agent.stop().await;

    // Killed before the broker heard of it: the present key is good, and the next one takes its place.
    let next = EndKey::generate().unwrap();
    let mut torn = after.clone();
    (torn["other"], torn["rotating"]) = (next.to_text().reveal().into(), true.into());
    std::fs::write(&file, serde_json::to_vec(&torn).unwrap()).unwrap();
    let mut agent = Running::start(&bench, "");
    agent.registers().await;
    eventually(async || end_state(&bench)["key"] == next.to_text().reveal()).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_with_a_wrong_clock_goes_by_the_brokers() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let token = Secret::new(&*bench.join);
    let invite =
        Invite { kind: InviteKind::Join, url: bench.broker.url(), pin: bench.pin(), token };
    let dir = bench.data().join("lab");
    let (invite, name) =
        joining(&dir, TokenKind::Agent, Some(invite), Some("lab".into()), || panic!()).unwrap();
    for days in [-3, 3] {
        let end = Enrolment::open(Some(dir.clone()), &invite, TokenKind::Agent, &name).unwrap();
        // What a broker whose clock is so far off would have made of ours.
        let now_ms = unix_seconds() * 1000;
        end.heard_time(now_ms.saturating_add_signed(days * 86_400_000));
        assert!(end.mend(Code::ClockSkew) && !end.mend(Code::ClockSkew), "once");
        let (sender, mut events) = mpsc::channel::<LinkEvent<FromAgent, ToAgent>>(8);
        let stop = CancellationToken::new();
        let (doubt, first) = (Doubt::default(), FirstWord::default());
        let linking = stop.clone();
        let link = tokio::spawn(async move {
            link::run(&*end, AGENT_LINK, sender, doubt, first, linking).await
        });
        let event = soon(events.recv()).await.unwrap();
        assert!(matches!(event, LinkEvent::Up(_)), "{days} days: {event:?}");
        stop.cancel();
        soon(link).await.unwrap().unwrap();
    }
}
