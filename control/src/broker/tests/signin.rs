//! Sign-ins by OIDC: what they make, how they last, and how they end.
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::support::*;
use crate::api::signin::{Signin, SigninOffer};
use crate::api::*;
use crate::broker::Broker;
use crate::broker::clock::unix_ms;
use crate::code::Code;
use crate::oidc::test_tokens::Signer;
use crate::oidc::{OidcConfig, TakenNames};
use crate::wire::ToClient;

/// A provider that publishes its key and says what the test wants said.
struct Issuer {
    url: String,
    signer: Signer,
}

impl Issuer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let signer = Signer::p256("one");
        let document = json!({ "issuer": url, "jwks_uri": format!("{url}/jwks") }).to_string();
        let keys = json!({ "keys": [signer.jwk()] }).to_string();
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(move || async move { document }))
            .route("/jwks", get(move || async move { keys }));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, signer }
    }

    /// The body of a sign-in as this user, with what else the token says.
    fn proof(&self, user: &str, more: Value) -> String {
        let now = unix_ms() / 1000;
        let mut claims = json!({
            "iss": self.url, "aud": "cli", "sub": user, "iat": now, "exp": now + 300,
            "email": format!("{user}@example.com"), "email_verified": true, "groups": ["dev"],
        });
        let more = more.as_object().unwrap().clone();
        claims.as_object_mut().unwrap().extend(more);
        json!({ "id_token": self.signer.sign(&claims) }).to_string()
    }
}

async fn bench(
    data: &std::path::Path,
    issuer: &Issuer,
    set: impl FnOnce(&mut OidcConfig),
) -> Bench {
    let mut config = config(data);
    let mut oidc = OidcConfig::new(&issuer.url, "cli");
    set(&mut oidc);
    config.oidc = Some(oidc);
    Bench::started(Broker::start(config).await.unwrap(), data)
}

async fn sign_in(bench: &Bench, by: Option<&str>, proof: String) -> Result<Signin, Code> {
    let answer = bench.ask(Method::POST, "/v1/signin", by, proof).await;
    match answer.status {
        StatusCode::OK => Ok(answer.json()),
        _ => Err(answer.code().unwrap()),
    }
}

fn token(signed: &Signin) -> String {
    signed.token.as_ref().expect("a token").reveal().to_owned()
}

async fn whoami(bench: &Bench, token: &str) -> Result<WhoAmI, Code> {
    let answer = bench.get("/v1/whoami", token).await;
    answer.code().map_or_else(|| Ok(answer.json()), Err)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_sign_in_makes_a_user_who_may_do_nothing_yet() {
    let (temp, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let bench = bench(temp.path(), &issuer, |oidc| oidc.admin_group = Some("ops".into())).await;
    let offer: SigninOffer = bench.ask(Method::GET, "/v1/signin", None, "").await.json();
    assert_eq!(offer.issuer.as_deref(), Some(issuer.url.as_str()));
    let ada = sign_in(&bench, None, issuer.proof("ada", json!({}))).await.unwrap();
    let who = whoami(&bench, &token(&ada)).await.unwrap();
    assert_eq!((who.user.as_str(), who.admin), ("ada@example.com", false));
    assert_eq!((who.issuer, who.expires_ms), (Some(issuer.url.clone()), Some(ada.expires_ms)));
    let _agent = bench.agent("lab", vec![]).await;
    let mut link = bench.client_link(&token(&ada)).await;
    assert_eq!(link.open("ssh").await.err(), Some(Code::ResourceUnknown));
    let root = sign_in(&bench, None, issuer.proof("root", json!({ "groups": ["ops"] }))).await;
    let root = root.unwrap();
    assert!(root.admin && whoami(&bench, &token(&root)).await.unwrap().admin);
    let again = sign_in(&bench, None, issuer.proof("root", json!({}))).await.unwrap();
    assert!(!again.admin, "the provider's groups decide, at each sign-in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_sign_in_keeps_its_token_link_and_session() {
    let (temp, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let bench = bench(temp.path(), &issuer, |oidc| oidc.lifetime = Duration::from_secs(5)).await;
    let ada = sign_in(&bench, None, issuer.proof("ada", json!({}))).await.unwrap();
    let bearer = token(&ada);
    let grant = json!({ "user": "ada@example.com", "resource": "ssh" });
    assert_eq!(bench.as_admin(Method::PUT, "/v1/grants", &grant).await.status, 204);
    let mut agent = bench.agent("lab", vec![]).await;
    let mut link = bench.client_link(&bearer).await;
    let held = link.open("ssh").await.ok().unwrap();
    drop(agent.hear::<crate::wire::ToAgent>().await);
    tokio::time::sleep(Duration::from_millis(1100)).await;

    let same = sign_in(&bench, Some(&bearer), issuer.proof("ada", json!({}))).await.unwrap();
    assert!(same.token.is_none() && same.expires_ms > ada.expires_ms);
    let eve = sign_in(&bench, Some(&bearer), issuer.proof("eve", json!({}))).await;
    assert_eq!(eve.err(), Some(Code::UsageInvalid), "another user's proof renews nothing");
    let ticket = link.leg(held.grant.clone()).await;
    assert!(ticket.is_ok(), "the link and the session go on");

    let more = json!({ "groups": ["dev", "night"] });
    sign_in(&bench, Some(&bearer), issuer.proof("ada", more)).await.unwrap();
    link.ends_somehow().await;
    let mut link = bench.client_link(&bearer).await;
    assert!(link.leg(held.grant.clone()).await.is_ok(), "a new link, the same session");

    // Nobody renews it any more.
    assert_eq!(
        link.hear::<ToClient>().await,
        ToClient::End { session: held.session, code: Code::TokenExpired }
    );
    link.ends_somehow().await;
    assert_eq!(whoami(&bench, &bearer).await, Err(Code::TokenExpired));
    let late = sign_in(&bench, Some(&bearer), issuer.proof("ada", json!({}))).await;
    assert_eq!(late.err(), Some(Code::TokenExpired), "what is over stays over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_is_not_given_away() {
    let (temp, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let bench = bench(temp.path(), &issuer, |_| ()).await;
    bench.user("ada@example.com", &["ssh"]).await;
    let taken = sign_in(&bench, None, issuer.proof("ada", json!({}))).await;
    assert_eq!(taken.err(), Some(Code::UserNameTaken), "a user made here");
    sign_in(&bench, None, issuer.proof("bob", json!({}))).await.unwrap();
    let heir = issuer.proof("bob", json!({ "sub": "another account" }));
    assert_eq!(sign_in(&bench, None, heir).await.err(), Some(Code::UserNameTaken));
    let (bob, _) = bench.user("bob@example.com", &["ssh"]).await;
    assert!(
        whoami(&bench, &bob).await.is_ok(),
        "an administrator may hand out strings all the same"
    );
    assert!(sign_in(&bench, None, issuer.proof("bob", json!({}))).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_may_have_accounts_linked_to_users_of_their_name() {
    let (temp, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let bench = bench(temp.path(), &issuer, |oidc| oidc.users = TakenNames::Link).await;
    let (_, _) = bench.user("ada@example.com", &["ssh"]).await;
    let _agent = bench.agent("lab", vec![]).await;
    let ada = sign_in(&bench, None, issuer.proof("ada", json!({}))).await.unwrap();
    let mut link = bench.client_link(&token(&ada)).await;
    assert!(link.open("ssh").await.is_ok(), "with the rights of the user");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signing_out_ends_links_at_once_and_leaves_login_strings_alone() {
    let (temp, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let bench = bench(temp.path(), &issuer, |_| ()).await;
    let ada = token(&sign_in(&bench, None, issuer.proof("ada", json!({}))).await.unwrap());
    let link = bench.client_link(&ada).await;
    let out = bench.ask(Method::POST, "/v1/signout", Some(&ada), "").await;
    assert_eq!(out.status, StatusCode::NO_CONTENT);
    link.ends_somehow().await;
    assert_eq!(whoami(&bench, &ada).await, Err(Code::TokenRevoked));
    let out = bench.ask(Method::POST, "/v1/signout", Some(&bench.admin), "").await;
    assert_eq!(out.code(), Some(Code::UsageInvalid));
    let out = bench.ask(Method::POST, "/v1/signout", None, "").await;
    assert_eq!(out.code(), Some(Code::TokenInvalid));
    assert!(whoami(&bench, &bench.admin).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_wants_a_young_sign_in_believes_the_provider_alone() {
    let (temp, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let file = temp.path().join("policy.cedar");
    let text = "@reauthenticate(\"1h\") permit(principal, action, resource);";
    std::fs::write(&file, text).unwrap();
    let bench = Bench::first_with(&temp.path().join("data"), |config| {
        config.policy = Some(file);
        config.oidc = Some(OidcConfig::new(&issuer.url, "cli"));
    })
    .await;
    let _agent = bench.agent("lab", vec![]).await;
    let now = unix_ms() / 1000;
    for (user, more, outcome) in [
        ("ada", json!({ "auth_time": now }), Ok(())),
        ("bob", json!({ "auth_time": now - 7200 }), Err(Code::Reauthenticate)),
        ("eve", json!({}), Err(Code::Reauthenticate)),
    ] {
        let signed = sign_in(&bench, None, issuer.proof(user, more)).await.unwrap();
        let mut link = bench.client_link(&token(&signed)).await;
        assert_eq!(link.open("ssh").await.map(drop), outcome, "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_too_many_ends_the_oldest_one_with_its_links() {
    let (temp, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let bench = bench(temp.path(), &issuer, |_| ()).await;
    let first = token(&sign_in(&bench, None, issuer.proof("ada", json!({}))).await.unwrap());
    let link = bench.client_link(&first).await;
    for _ in 1..64 {
        sign_in(&bench, None, issuer.proof("ada", json!({}))).await.unwrap();
    }
    assert!(whoami(&bench, &first).await.is_ok());
    sign_in(&bench, None, issuer.proof("ada", json!({}))).await.unwrap();
    link.ends_somehow().await;
    assert_eq!(whoami(&bench, &first).await, Err(Code::TokenInvalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_are_slowed_down_and_good_tokens_pass() {
    let (temp, issuer) = (tempfile::tempdir().unwrap(), Issuer::start().await);
    let bench = bench(temp.path(), &issuer, |_| ()).await;
    let mut codes = Vec::new();
    for _ in 0..25 {
        let forged = json!({ "id_token": "a.b.c" }).to_string();
        codes.push(sign_in(&bench, None, forged).await.err().unwrap());
    }
    assert_eq!(codes[0], Code::IdTokenInvalid);
    assert_eq!(codes.last(), Some(&Code::RateLimited));
    assert!(sign_in(&bench, None, issuer.proof("ada", json!({}))).await.is_ok());
    let mut offers = 0;
    while bench.ask(Method::GET, "/v1/signin", None, "").await.code().is_none() {
        offers += 1;
        assert!(offers < 2000, "asking is limited too");
    }
    let bad = bench.ask(Method::POST, "/v1/signin", None, r#"{"id_token":7}"#).await;
    assert_eq!(bad.code(), Some(Code::MessageMalformed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_provider_there_are_login_strings_only() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let offer = bench.ask(Method::GET, "/v1/signin", None, "").await;
    assert_eq!((offer.status, offer.text()), (StatusCode::OK, "{}"));
    let answer = sign_in(&bench, None, json!({ "id_token": "a.b.c" }).to_string()).await;
    assert_eq!(answer.err(), Some(Code::SigninOff));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_starts_and_serves_while_its_provider_is_down() {
    let temp = tempfile::tempdir().unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let issuer = Issuer { url: format!("http://{gone}"), signer: Signer::p256("one") };
    let bench = bench(temp.path(), &issuer, |_| ()).await;
    let answer = sign_in(&bench, None, issuer.proof("ada", json!({}))).await;
    assert_eq!(answer.err(), Some(Code::ProviderUnreachable));
    assert!(whoami(&bench, &bench.admin).await.is_ok());
}
