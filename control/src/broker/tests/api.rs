//! The API as a table of who may what, and what bad requests get.
use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use crate::api::*;
use crate::code::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_and_the_lists_show_what_their_reader_may_see() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, _) = bench.user("ada", &["ssh"]).await;
    let (eve, _) = bench.user("eve", &[]).await;
    let agent = bench.agent("lab", vec![]).await;
    eventually(async || {
        !bench.get("/v1/resources", &ada).await.json::<Vec<ResourceView>>().is_empty()
    })
    .await;
    let feed =
        async |token: &str| bench.get("/v1/resources", token).await.json::<Vec<ResourceView>>();
    let of_ada = feed(&ada).await;
    assert_eq!((of_ada.len(), of_ada[0].online, of_ada[0].agents.len()), (1, true, 0));
    assert!(feed(&eve).await.is_empty());
    assert_eq!(feed(&bench.admin).await[0].agents, ["lab"]);
    drop(agent);
    eventually(async || !feed(&ada).await[0].online).await;

    let mut client = bench.client_link(&ada).await;
    assert_eq!(client.open("ssh").await.err(), Some(Code::AgentOffline));
    let _agent = bench.agent("lab", vec![]).await;
    let session = client.open("ssh").await.ok().unwrap().session;
    let list =
        async |token: &str| bench.get("/v1/sessions", token).await.json::<Vec<SessionView>>();
    assert_eq!(list(&ada).await[0].id, session);
    assert!(list(&eve).await.is_empty());
    let seen = &list(&bench.admin).await[0];
    assert_eq!((&*seen.user, &*seen.resource, &*seen.agent), ("ada", "ssh", "lab"));
    assert_eq!((seen.state, &seen.transport), (SessionState::Connecting, &None));
    assert_eq!(seen.gateway, bench.address.to_string());
    let who: WhoAmI = bench.get("/v1/whoami", &ada).await.json();
    assert_eq!(who, WhoAmI { user: "ada".into(), admin: false, issuer: None, expires_ms: None });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_a_code_and_a_remedy() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let huge = "x".repeat(65 * 1024);
    let long_name = format!(r#"{{"kind":"user","name":"{}"}}"#, "x".repeat(64));
    let post = |path: &'static str, body: &str, code| (Method::POST, path, body.to_owned(), code);
    let rows = [
        post("/v1/tokens", "{", Code::MessageMalformed),
        post("/v1/tokens", "", Code::MessageMalformed),
        post("/v1/tokens", "[]", Code::MessageMalformed),
        post("/v1/tokens", r#"{"kind":"king","name":"x"}"#, Code::MessageMalformed),
        post("/v1/tokens", &huge, Code::MessageTooLarge),
        post("/v1/tokens", &long_name, Code::UsageInvalid),
        post("/v1/tokens", r#"{"kind":"user","name":"a b"}"#, Code::UsageInvalid),
        post("/v1/tokens", r#"{"kind":"agent","name":"A"}"#, Code::UsageInvalid),
        post("/v1/tokens", r#"{"kind":"agent","name":"a","admin":true}"#, Code::UsageInvalid),
        post("/v1/tokens", r#"{"kind":"user","name":"a","grants":["A B"]}"#, Code::UsageInvalid),
        post("/v1/test-pairs", r#"{"count":0}"#, Code::UsageInvalid),
        post("/v1/test-pairs", r#"{"count":1001}"#, Code::UsageInvalid),
        post("/v1/test-pairs", r#"{"count":-1}"#, Code::MessageMalformed),
        post("/v1/whoami", "", Code::NotFound),
        (Method::PUT, "/v1/grants", r#"{"user":"no","resource":"x"}"#.into(), Code::SubjectUnknown),
        (
            Method::DELETE,
            "/v1/grants",
            r#"{"user":"no","resource":"x"}"#.into(),
            Code::SubjectUnknown,
        ),
        (Method::DELETE, "/v1/tokens/none", String::new(), Code::SubjectUnknown),
        (Method::DELETE, "/v1/sessions/none", String::new(), Code::SessionUnknown),
        (Method::DELETE, "/v1/sessions/%ff", String::new(), Code::NotFound),
        (Method::GET, "/v1/link/client", String::new(), Code::MessageMalformed),
    ];
    for (method, path, body, code) in rows {
        let answer = bench.ask(method.clone(), path, Some(&bench.admin), body).await;
        assert_eq!(answer.code(), Some(code), "{method} {path}: {}", answer.text());
        let refusal: ErrorBody = answer.json();
        assert_eq!(refusal.error.remedy, code.remedy());
    }
    let metrics = bench.get("/metrics", &bench.admin).await;
    let counted = "switchback_api_responses_total{code=\"MESSAGE_MALFORMED\"} 6";
    assert!(metrics.text().contains(counted), "{}", metrics.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_administrator_is_not_locked_out() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let tokens: Vec<TokenView> = bench.get("/v1/tokens", &bench.admin).await.json();
    let own = tokens.iter().find(|token| token.kind == TokenKind::User).unwrap();
    let path = format!("/v1/tokens/{}", own.id);
    let answer = bench.ask(Method::DELETE, &path, Some(&bench.admin), "").await;
    assert_eq!(answer.code(), Some(Code::UsageInvalid));
    assert_eq!(tokens.iter().find(|token| token.kind == TokenKind::Agent).unwrap().name, "*");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_tokens_is_slowed_down_but_good_tokens_pass() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let guess = "A".repeat(43);
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(bench.get("/v1/whoami", &guess).await.code().unwrap());
    }
    assert_eq!(codes[0], Code::TokenInvalid);
    assert!(codes.contains(&Code::RateLimited));
    assert_eq!(bench.get("/v1/whoami", &bench.admin).await.status, StatusCode::OK);
    assert_eq!(bench.get("/v1/whoami", &bench.join).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_head_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut connection = bench.connect().await;
    let head = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}", "y".repeat(32 * 1024));
    // The refusal may arrive while we still write.
    drop(connection.write_all(head.as_bytes()).await);
    let mut answer = Vec::new();
    drop(soon(connection.read_to_end(&mut answer)).await);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_one_well_formed_page() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let page = bench.get("/metrics", &bench.admin).await;
    let mut families = std::collections::HashSet::new();
    for line in page.text().lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned()), "{name} twice");
            assert!(["counter", "gauge", "histogram"].contains(&kind));
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            assert!(families.contains(name) || families.contains(family.unwrap_or("")), "{line}");
            value.parse::<f64>().unwrap();
        }
    }
    let (io, _) = bench.broker.io_backend();
    assert!(page.text().contains(&format!("io=\"{io}\"")));
    for family in
        ["switchback_sessions", "switchback_gateway_rtt_seconds", "switchback_gateway_worker_pairs"]
    {
        assert!(families.contains(family), "{family}");
    }
}
