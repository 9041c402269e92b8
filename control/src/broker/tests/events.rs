//! Who learns what happened, and when.
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;

use super::support::*;
use crate::api::{EventKind, EventPage};
use crate::wire::{FromClient, PathMove};

/// The kinds of events of this answer, and what the next page is after.
fn kinds(page: &EventPage) -> Vec<EventKind> {
    page.events.iter().map(|event| event.kind).collect()
}

async fn stream(bench: &Bench, token: &str, after: u64) -> Response<Incoming> {
    let connection = TokioIo::new(bench.connect().await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(connection).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .uri(format!("/v1/events?after={after}"))
        .header("host", "localhost")
        .header("accept", "text/event-stream")
        .header("authorization", format!("Bearer {token}"))
        .header("x-request-id", "look-here.1");
    soon(sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap())).await.unwrap()
}

/// Reads until the text holds `mark`.
async fn until(body: &mut Incoming, seen: &mut String, mark: &str) {
    while !seen.contains(mark) {
        let frame = soon(body.frame()).await.expect("the stream goes on").unwrap();
        seen.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sessions_story_is_told_to_its_user_and_to_administrators() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, _) = bench.user("ada", &["ssh"]).await;
    let (eve, _) = bench.user("eve", &[]).await;
    let _agent = bench.agent("lab", vec![]).await;
    let mut client = bench.client_link(&ada).await;
    let session = client.open("ssh").await.ok().unwrap().session;
    let path = format!("/v1/sessions/{session}");
    bench.ask(Method::DELETE, &path, Some(&ada), "").await;
    let page = async |token: &str| bench.get("/v1/events", token).await.json::<EventPage>();
    let of_ada = page(&ada).await;
    let story = [EventKind::ClientOnline, EventKind::SessionGranted, EventKind::SessionEnded];
    assert_eq!(kinds(&of_ada), story);
    let over = of_ada.events.last().unwrap();
    assert_eq!(over.code, Some(crate::Code::SessionKilled));
    assert_eq!((over.session.as_ref(), over.resource.as_deref()), (Some(&session), Some("ssh")));
    let first = [EventKind::BrokerStarted, EventKind::Enrolled, EventKind::AgentOnline];
    assert_eq!(kinds(&page(&bench.admin).await), [&first[..], &story].concat());
    assert!(page(&eve).await.events.is_empty());
    let later = bench.get(&format!("/v1/events?after={}", of_ada.next), &ada).await;
    assert!(later.json::<EventPage>().events.is_empty());
    for wrong in ["after=-1", "after=x", "limit=0", "limit=1001", "limit=99999"] {
        let refused = bench.get(&format!("/v1/events?{wrong}"), &ada).await;
        assert_eq!(refused.status, 400, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_events_goes_on_until_its_token_is_revoked() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, id) = bench.user("ada", &["ssh"]).await;
    let answer = stream(&bench, &ada, 1).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_eq!(answer.headers()["x-request-id"], "look-here.1");
    let (mut body, mut seen) = (answer.into_body(), String::new());
    until(&mut body, &mut seen, "event: lost").await;
    let mut client = bench.client_link(&ada).await;
    until(&mut body, &mut seen, "event: client_online").await;
    let _agent = bench.agent("lab", vec![]).await;
    let session = client.open("ssh").await.ok().unwrap().session;
    until(&mut body, &mut seen, "event: session_granted").await;
    until(&mut body, &mut seen, &session.0).await;
    assert!(!seen.contains("agent_online"), "that is for administrators: {seen}");
    bench.ask(Method::DELETE, &format!("/v1/tokens/{id}"), Some(&bench.admin), "").await;
    while let Some(frame) = soon(body.frame()).await {
        drop(frame);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whose_session_moves_without_end_pushes_nobodys_events_out() {
    const MOVES: usize = 5000;
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, _) = bench.user("ada", &["ssh"]).await;
    let (eve, _) = bench.user("eve", &["ssh"]).await;
    let _agent = bench.agent("lab", vec![]).await;
    let mut client = bench.client_link(&ada).await;
    client.open("ssh").await.ok().unwrap();
    let mut flood = bench.client_link(&eve).await;
    let session = flood.open("ssh").await.ok().unwrap().session;
    let moved = PathMove {
        at_ms: 1,
        from: None,
        to: "UDP (Shortpath)".into(),
        cause: "better".into(),
        stall_us: 0,
        rtt_us: None,
    };
    for _ in 0..MOVES {
        flood
            .say(&FromClient::Moved { session: session.clone(), moved: moved.clone().into() })
            .await;
    }
    let metric = "switchback_events_left_out_total ";
    let left_out = async || {
        let page = bench.get("/metrics", &bench.admin).await;
        let line = page.text().lines().find_map(|line| line.strip_prefix(metric)).unwrap();
        line.parse::<usize>().unwrap()
    };
    eventually(async || left_out().await >= MOVES - 100).await;
    let page = bench.get("/v1/events", &bench.admin).await.json::<EventPage>();
    assert_eq!(kinds(&page)[0], EventKind::BrokerStarted, "nothing was forgotten");
    let of_ada = bench.get("/v1/events", &ada).await.json::<EventPage>();
    assert_eq!(kinds(&of_ada), [EventKind::ClientOnline, EventKind::SessionGranted]);
    let moves = kinds(&page).iter().filter(|kind| **kind == EventKind::SessionMoved).count();
    assert!((1..100).contains(&moves), "{moves}");
}
