//! The feed as clients follow it, and the agents behind it.
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

use super::support::{Bench, eventually, register, soon};
use crate::api::{AgentView, EstimateView, GrantView, ResourceView};
use crate::code::Code;
use crate::wire::{FromAgent, Resource, ToAgent};

type Sender = hyper::client::conn::http1::SendRequest<Full<bytes::Bytes>>;

async fn sender(bench: &Bench) -> Sender {
    let connection = TokioIo::new(bench.connect().await);
    let (sender, connection) = hyper::client::conn::http1::handshake(connection).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(path: &str, token: &str, tag: Option<&str>) -> Request<Full<bytes::Bytes>> {
    let request = Request::get(path).header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {token}"));
    let request = tag.into_iter().fold(request, |it, tag| it.header("if-none-match", tag));
    request.body(Full::default()).unwrap()
}

fn following(token: &str) -> Request<Full<bytes::Bytes>> {
    let mut request = request("/v1/resources", token, None);
    request.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_has_not_changed_is_not_sent_again() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, _) = bench.user("ada", &["ssh"]).await;
    let mut sender = sender(&bench).await;
    let first = sender.send_request(request("/v1/resources", &ada, None)).await.unwrap();
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    drop(first.into_body().collect().await.unwrap());
    for (tags, status) in [
        (tag.clone(), StatusCode::NOT_MODIFIED),
        (format!("\"other\", {tag}"), StatusCode::NOT_MODIFIED),
        ("*".to_owned(), StatusCode::NOT_MODIFIED),
        ("\"other\"".to_owned(), StatusCode::OK),
    ] {
        sender.ready().await.unwrap();
        let answer = sender.send_request(request("/v1/resources", &ada, Some(&tags))).await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), status, "{tags}");
        drop(answer.into_body().collect().await.unwrap());
    }
    let _agent = bench.agent("lab", vec![]).await;
    eventually(async || {
        sender.ready().await.unwrap();
        let answer = sender.send_request(request("/v1/resources", &ada, Some(&tag))).await;
        let answer = answer.unwrap();
        let changed = answer.status() == StatusCode::OK;
        drop(answer.into_body().collect().await.unwrap());
        changed
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_a_feed_sees_each_change_and_nothing_after_the_token_is_revoked() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, id) = bench.user("ada", &[]).await;
    let mut sender = sender(&bench).await;
    let answer = sender.send_request(following(&ada)).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.into_body();
    let mut next = async || {
        loop {
            let frame = soon(body.frame()).await?.ok()?;
            let text = String::from_utf8(frame.into_data().ok()?.to_vec()).unwrap();
            let data = text.lines().find_map(|line| line.strip_prefix("data: "));
            if let Some(data) = data {
                return Some(serde_json::from_str::<Vec<ResourceView>>(data).unwrap());
            }
        }
    };
    assert!(next().await.unwrap().is_empty());
    let _agent = bench.agent("lab", vec![]).await;
    let grant = GrantView { user: "ada".into(), resource: "ssh".into() };
    bench.as_admin(Method::PUT, "/v1/grants", &grant).await;
    let feed = next().await.unwrap();
    assert_eq!((feed.len(), &*feed[0].name, feed[0].online), (1, "ssh", true));
    bench.as_admin(Method::DELETE, &format!("/v1/tokens/{id}"), &()).await;
    assert!(next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_changes_is_a_few_looks_and_the_last_one_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, _) = bench.user("ada", &[]).await;
    let _agent = bench.agent("lab", vec![]).await;
    let mut sender = sender(&bench).await;
    let mut body = sender.send_request(following(&ada)).await.unwrap().into_body();
    let begun = std::time::Instant::now();
    let grant = GrantView { user: "ada".into(), resource: "ssh".into() };
    let last = GrantView { user: "ada".into(), resource: "*".into() };
    for _ in 0..20 {
        bench.as_admin(Method::PUT, "/v1/grants", &grant).await;
        bench.as_admin(Method::DELETE, "/v1/grants", &grant).await;
    }
    bench.as_admin(Method::PUT, "/v1/grants", &last).await;
    let (mut events, mut last, mut at) = (0, String::new(), begun.elapsed());
    // In the middle of the burst it may be visible, too.
    let patience = |last: &str| if last.contains("\"ssh\"") { CALM * 10 } else { CALM * 100 };
    while let Ok(frame) = tokio::time::timeout(patience(&last), body.frame()).await {
        let data = frame.unwrap().unwrap().into_data().unwrap_or_default();
        last = String::from_utf8(data.to_vec()).unwrap();
        events += last.lines().filter(|line| line.starts_with("data:")).count();
        at = begun.elapsed();
    }
    assert!(last.contains("\"ssh\""), "{last}");
    // One at once, and one for each calm that has passed since.
    assert!(events as u128 <= at.as_millis() / CALM.as_millis() + 2, "{events} events in {at:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_big_feed_is_judged_like_a_small_one() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut agents = Vec::new();
    for number in 0..4 {
        let name = format!("lab{number}");
        let mut link = bench.agent_link(&name).await;
        let mut word = register(&name, vec![]);
        if let FromAgent::Register { resources, .. } = &mut word {
            let names = (0..100).map(|it| format!("r{number}-{it:02}"));
            *resources = names.map(|name| Resource::tcp(name, "127.0.0.1:22")).collect();
        }
        link.say(&word).await;
        assert_eq!(link.hear::<ToAgent>().await, ToAgent::Registered);
        agents.push(link);
    }
    let (ada, _) = bench.user("ada", &["r1-07", "r3-99"]).await;
    let (bob, _) = bench.user("bob", &["*"]).await;
    let feed = async |token: &str| {
        let feed = bench.get("/v1/resources", token).await.json::<Vec<ResourceView>>();
        assert!(feed.iter().all(|resource| resource.online && resource.agents.is_empty()));
        feed.into_iter().map(|resource| resource.name).collect::<Vec<_>>()
    };
    assert_eq!(feed(&ada).await, ["r1-07", "r3-99"]);
    let all = feed(&bob).await;
    assert!(all.len() == 400 && all.is_sorted());
    let ways = async |token: &str| {
        bench.get("/v1/estimate", token).await.json::<EstimateView>().resources.len()
    };
    assert_eq!((ways(&ada).await, ways(&bob).await), (2, 400));
}

/// As the broker has it between two looks.
const CALM: std::time::Duration = std::time::Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_listed_and_stay_drained_over_their_links() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, _) = bench.user("ada", &["ssh"]).await;
    let agents = async || bench.get("/v1/agents", &bench.admin).await.json::<Vec<AgentView>>();
    let agent = bench.agent("lab", vec![]).await;
    eventually(async || agents().await.first().is_some_and(|lab| lab.online.is_some())).await;
    let drain = "/v1/agents/lab/drain";
    assert_eq!(bench.as_admin(Method::PUT, drain, &()).await.status, StatusCode::NO_CONTENT);
    let mut client = bench.client_link(&ada).await;
    assert_eq!(client.open("ssh").await.err(), Some(Code::AgentDraining));
    drop(agent);
    eventually(async || agents().await[0].online.is_none()).await;
    let _agent = bench.agent("lab", vec![]).await;
    eventually(async || agents().await[0].online.is_some()).await;
    assert_eq!(client.open("ssh").await.err(), Some(Code::AgentDraining));
    assert_eq!(bench.as_admin(Method::DELETE, drain, &()).await.status, StatusCode::NO_CONTENT);
    assert!(client.open("ssh").await.is_ok());
    let unknown = bench.as_admin(Method::PUT, "/v1/agents/nobody/drain", &()).await;
    assert_eq!(unknown.code(), Some(Code::AgentUnknown));
    assert_eq!(bench.get("/v1/agents", &ada).await.code(), Some(Code::AdminOnly));
}
