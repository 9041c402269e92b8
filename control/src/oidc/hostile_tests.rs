//! Providers that are slow, huge, down or up to no good, on loopback.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::config::OidcConfig;
use super::http::Http;
use super::provider::Provider;
use super::test_tokens::Signer;
use crate::code::Code;

const NOW: u64 = 1_800_000_000;

struct Stage {
    issuer: String,
    listener: TcpListener,
}

impl Stage {
    async fn set() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { issuer: format!("http://{}", listener.local_addr().unwrap()), listener }
    }

    fn document(&self) -> Value {
        json!({ "issuer": self.issuer, "jwks_uri": format!("{}/jwks", self.issuer) })
    }

    /// Serves the routes, and answers a provider that is asked there with little patience.
    fn play(self, routes: Router) -> Arc<Provider> {
        let config = OidcConfig::new(self.issuer.clone(), "cli");
        tokio::spawn(async move { axum::serve(self.listener, routes).await });
        let http = Http::new(None).unwrap().with_deadline(Duration::from_millis(300));
        Provider::with(config, http)
    }
}

fn page(body: impl ToString) -> axum::routing::MethodRouter {
    let body = body.to_string();
    get(move || async move { body })
}

fn jwks(signer: &Signer) -> Value {
    json!({ "keys": [signer.jwk()] })
}

fn token(provider: &Provider, signer: &Signer) -> String {
    signer.sign(&json!({
        "iss": provider.config.issuer, "aud": "cli", "sub": "u1", "iat": NOW, "exp": NOW + 300,
        "email": "ada@example.com", "email_verified": true,
    }))
}

async fn judged(provider: &Arc<Provider>, signer: &Signer) -> Result<String, Code> {
    let token = token(provider, signer);
    let verdict = timeout(Duration::from_secs(5), provider.verify(&token, None, NOW)).await;
    verdict.expect("a verdict in time").map(|it| it.user).map_err(|fault| fault.code)
}

const DOCUMENT: &str = "/.well-known/openid-configuration";

#[tokio::test]
async fn keys_are_fetched_once_for_all_who_wait() {
    let (stage, signer) = (Stage::set().await, Signer::p256("one"));
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, keys) = (asked.clone(), jwks(&signer).to_string());
    let slow = get(move || async move {
        count.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        keys
    });
    let routes = Router::new().route(DOCUMENT, page(stage.document())).route("/jwks", slow);
    let provider = stage.play(routes);
    let all = (0..20).map(|_| judged(&provider, &signer));
    for verdict in futures_util::future::join_all(all).await {
        assert_eq!(verdict.as_deref(), Ok("ada@example.com"));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    for _ in 0..5 {
        let stranger = Signer::p256("made up");
        assert_eq!(judged(&provider, &stranger).await, Err(Code::IdTokenInvalid));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2, "unknown keys are looked for once, for now");
}

#[tokio::test]
async fn a_provider_that_is_down_or_slow_is_told_as_such_in_time() {
    let signer = Signer::p256("one");
    let stage = Stage::set().await;
    let config = OidcConfig::new(stage.issuer.clone(), "cli");
    drop(stage);
    let down = Provider::with(config, Http::new(None).unwrap());
    assert_eq!(judged(&down, &signer).await, Err(Code::ProviderUnreachable));

    let stage = Stage::set().await;
    let never = get(|| async { std::future::pending::<&str>().await });
    let routes = Router::new().route(DOCUMENT, page(stage.document())).route("/jwks", never);
    let slow = stage.play(routes);
    let began = Instant::now();
    assert_eq!(judged(&slow, &signer).await, Err(Code::ProviderUnreachable));
    assert!(began.elapsed() < Duration::from_secs(3), "the deadline ends it");
}

#[tokio::test]
async fn while_an_unknown_key_is_looked_for_known_ones_do_not_wait() {
    let (stage, signer) = (Stage::set().await, Signer::p256("one"));
    let routes =
        Router::new().route(DOCUMENT, page(stage.document())).route("/jwks", page(jwks(&signer)));
    let provider = stage.play(routes);
    judged(&provider, &signer).await.unwrap();
    assert!(provider.begin_fetch(), "a fetch is under way, and never ends");
    assert_eq!(judged(&provider, &signer).await.as_deref(), Ok("ada@example.com"));
    let stranger = Signer::p256("two");
    let token = token(&provider, &stranger);
    let waits = timeout(Duration::from_millis(50), provider.verify(&token, None, NOW)).await;
    assert!(waits.is_err(), "whoever needs the fetch waits for it");
}

#[tokio::test]
async fn what_a_provider_must_not_do_is_refused() {
    let signer = Signer::p256("one");
    let good = jwks(&signer);
    type Change = fn(&mut Value);
    let documents: [(&str, Change); 3] = [
        ("another issuer", |it| it["issuer"] = "https://id.example".into()),
        ("keys in the clear", |it| it["jwks_uri"] = "http://192.0.2.1/jwks".into()),
        ("no keys", |it| it["jwks_uri"] = Value::Null),
    ];
    for (what, change) in documents {
        let stage = Stage::set().await;
        let mut document = stage.document();
        change(&mut document);
        let routes = Router::new().route(DOCUMENT, page(document)).route("/jwks", page(&good));
        let verdict = judged(&stage.play(routes), &signer).await;
        assert_eq!(verdict, Err(Code::ProviderUnreachable), "{what}");
    }
    let huge = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(300 * 1024));
    for (what, keys) in [
        ("huge", page(huge)),
        ("no JSON", page("<html>")),
        ("an error", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "no") })),
        ("no key", page(json!({ "keys": [] }))),
    ] {
        let stage = Stage::set().await;
        let routes = Router::new().route(DOCUMENT, page(stage.document())).route("/jwks", keys);
        let verdict = judged(&stage.play(routes), &signer).await;
        assert_eq!(verdict, Err(Code::ProviderUnreachable), "{what}");
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let (stage, other, signer) = (Stage::set().await, Stage::set().await, Signer::p256("one"));
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, keys) = (asked.clone(), jwks(&signer).to_string());
    let elsewhere = get(move || async move {
        count.fetch_add(1, Ordering::Relaxed);
        keys
    });
    let target = format!("{}/jwks", other.issuer);
    let _other = other.play(Router::new().route("/jwks", elsewhere));
    let redirect = get(move || async move { Redirect::temporary(&target) });
    let routes = Router::new().route(DOCUMENT, page(stage.document())).route("/jwks", redirect);
    let provider = stage.play(routes);
    assert_eq!(judged(&provider, &signer).await, Err(Code::ProviderUnreachable));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}
