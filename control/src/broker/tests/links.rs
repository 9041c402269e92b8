//! What links refuse, and what ends them.
use futures_util::SinkExt;
use hyper::{Method, StatusCode};
use switchback_engine::Tuning;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::support::*;
use crate::broker::limits::USER_LINKS_MAX;
use crate::code::Code;
use crate::wire::*;

fn code_of_agent(message: &ToAgent) -> Option<Code> {
    match message {
        ToAgent::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

fn code_of_client(message: &ToClient) -> Option<Code> {
    match message {
        ToClient::Refused { request: 0, code, .. } => Some(*code),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_need_a_good_token_of_their_own_kind() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    for (path, token) in [
        (AGENT_LINK, &*bench.admin),
        (CLIENT_LINK, &*bench.join),
        (AGENT_LINK, &*bench.join),
        (CLIENT_LINK, &*bench.pass("lab").await),
        (GATEWAY_LINK, &*bench.pass("lab").await),
        (AGENT_LINK, "guess"),
        (CLIENT_LINK, ""),
    ] {
        let refused = bench.link(path, token).await.err();
        assert_eq!(refused, Some(StatusCode::UNAUTHORIZED), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_messages_are_refused_and_close_the_link() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let oversized = format!("{{\"type\":\"report\",\"x\":\"{}\"}}", "x".repeat(MESSAGE_BYTES_MAX));
    let rows = [
        (Message::text("{"), Code::MessageMalformed),
        (Message::text("[]"), Code::MessageMalformed),
        (Message::text(r#"{"type":"dance"}"#), Code::MessageMalformed),
        (Message::binary(vec![1, 2, 3]), Code::MessageMalformed),
        (Message::text(oversized), Code::MessageTooLarge),
        (Message::text("x".repeat(512 * 1024)), Code::MessageTooLarge),
    ];
    for (message, code) in rows {
        let mut link = bench.client_link(&bench.admin).await;
        // The broker may stop reading, so the sending of much may fail.
        let sent = link.socket.send(message.clone()).await;
        if sent.is_ok() && message.len() < 256 * 1024 {
            assert_eq!(code_of_client(&link.hear().await), Some(code));
        }
        link.ends_somehow().await;
        let mut link = bench.agent("lab", vec![]).await;
        let sent = link.socket.send(message.clone()).await;
        if sent.is_ok() && message.len() < 256 * 1024 {
            assert_eq!(code_of_agent(&link.hear().await), Some(code));
        }
        link.ends_somehow().await;
    }
    let metrics = bench.get("/metrics", &bench.admin).await;
    for counted in ["\"MESSAGE_MALFORMED\"} 8", "\"MESSAGE_TOO_LARGE\"} 4"] {
        let line = format!("switchback_faults_total{{code={counted}");
        assert!(metrics.text().contains(&line), "{}", metrics.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tuning_that_the_gateway_cannot_give_refuses_the_registration() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let out_of_range = Tuning { dscp: Some(64), ..Tuning::default() };
    for (tuning, code) in [
        ("congestion=nosuch".parse().unwrap(), Code::TuningUnsupported),
        ("fast-open=5".parse().unwrap(), Code::ConfigInvalid),
        (out_of_range, Code::ConfigInvalid),
    ] {
        let mut link = bench.agent_link("lab").await;
        let mut message = register("lab", vec![]);
        if let FromAgent::Register { resources, .. } = &mut message {
            resources[0].tuning = tuning;
        }
        link.say(&message).await;
        let ToAgent::Refused { code: told, message } = link.hear().await else { panic!("taken") };
        assert_eq!(told, code, "{message}");
        assert!(message.contains("resource ssh, at the gateway"), "{message}");
        link.ends_somehow().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_registers_first_once_and_properly() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let with = |change: fn(&mut FromAgent)| {
        let mut message = register("lab", vec![]);
        change(&mut message);
        message
    };
    let rows = [
        (FromAgent::WarmLegs { count: 1 }, Code::MessageMalformed),
        (
            with(|message| {
                if let FromAgent::Register { protocol, .. } = message {
                    *protocol = 99;
                }
            }),
            Code::ProtocolVersion,
        ),
        (
            with(|message| {
                if let FromAgent::Register { name, .. } = message {
                    *name = "No Name".into();
                }
            }),
            Code::MessageMalformed,
        ),
        (
            with(|message| {
                if let FromAgent::Register { resources, .. } = message {
                    *resources = vec![resources[0].clone(); 101];
                }
            }),
            Code::MessageMalformed,
        ),
        (
            with(|message| {
                if let FromAgent::Register { resources, .. } = message {
                    resources[0].name = "Über".into();
                }
            }),
            Code::MessageMalformed,
        ),
        (
            with(|message| {
                if let FromAgent::Register { key, .. } = message {
                    *key = PublicKey("not base64!".into());
                }
            }),
            Code::MessageMalformed,
        ),
    ];
    for (message, code) in rows {
        let mut link = bench.agent_link("lab").await;
        link.say(&message).await;
        assert_eq!(code_of_agent(&link.hear().await), Some(code), "{message:?}");
        link.ends().await;
    }
    let mut link = bench.agent("lab", vec![]).await;
    link.say(&register("lab", vec![])).await;
    assert_eq!(code_of_agent(&link.hear().await), Some(Code::MessageMalformed));
    link.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_bound_by_enrolments() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut link = bench.agent_link("lab").await;
    link.say(&register("annex", vec![])).await;
    assert_eq!(code_of_agent(&link.hear().await), Some(Code::AgentNotAllowed));
    link.ends().await;

    let first = bench.agent("lab", vec![]).await;
    let mut copy = bench.agent_link("lab").await;
    let mut message = register("lab", vec![]);
    if let FromAgent::Register { key, .. } = &mut message {
        *key = super::support::key("another");
    }
    copy.say(&message).await;
    assert_eq!(code_of_agent(&copy.hear().await), Some(Code::AgentNameTaken));
    copy.ends().await;
    let _second = bench.agent("lab", vec![]).await;
    first.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_offers_is_there_as_soon_as_it_is_registered() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut client = bench.client_link(&bench.admin).await;
    for index in 0..20 {
        let mut link = bench.agent_link(&format!("lab-{index}")).await;
        let offered = format!("ssh-{index}");
        let mut message = register(&format!("lab-{index}"), vec![]);
        if let FromAgent::Register { resources, .. } = &mut message {
            resources[0].name.clone_from(&offered);
        }
        link.say(&message).await;
        assert_eq!(link.hear::<ToAgent>().await, ToAgent::Registered);
        assert_eq!(client.open(&offered).await.err(), None, "{offered}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_cut_links_and_sessions() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, ada_id) = bench.user("ada", &["ssh"]).await;
    let (bob, _) = bench.user("bob", &["ssh"]).await;
    let mut agent = bench.agent("lab", vec![]).await;
    let mut of_ada = bench.client_link(&ada).await;
    let mut of_bob = bench.client_link(&bob).await;
    let session = of_ada.open("ssh").await.ok().unwrap().session;
    let sessions_of_bob = of_bob.open("ssh").await.ok().unwrap().session;
    for _ in 0..2 {
        assert!(matches!(agent.hear().await, ToAgent::Offer { .. }));
    }
    let path = format!("/v1/tokens/{ada_id}");
    bench.as_admin(Method::DELETE, &path, &()).await;
    let code = Code::TokenRevoked;
    let end = ToClient::End { session: session.clone(), code };
    assert_eq!(of_ada.hear::<ToClient>().await, end);
    assert_eq!(code_of_client(&of_ada.hear().await), Some(code));
    of_ada.ends().await;
    assert_eq!(agent.hear::<ToAgent>().await, ToAgent::End { session, code });
    assert_eq!(bench.get("/v1/whoami", &ada).await.code(), Some(code));
    assert_eq!(bench.link(CLIENT_LINK, &ada).await.err(), Some(StatusCode::UNAUTHORIZED));

    let of_lab = bench.end("lab").await.id;
    bench.as_admin(Method::DELETE, &format!("/v1/tokens/{of_lab}"), &()).await;
    let end = ToClient::End { session: sessions_of_bob.clone(), code };
    assert_eq!(of_bob.hear::<ToClient>().await, end);
    let end = ToAgent::End { session: sessions_of_bob, code };
    assert_eq!(agent.hear::<ToAgent>().await, end);
    assert_eq!(code_of_agent(&agent.hear().await), Some(code));
    agent.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_enrolment_is_revoked_before_it_registers_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let id = bench.end("lab").await.id;
    let mut link = bench.agent_link("lab").await;
    // The answer to a bad link would have come by now: the link's own first look at its token is over.
    let probe = tokio::time::timeout(std::time::Duration::from_millis(200), link.hear::<ToAgent>());
    assert!(probe.await.is_err(), "an unregistered agent is told nothing");
    bench.as_admin(Method::DELETE, &format!("/v1/tokens/{id}"), &()).await;
    link.say(&register("lab", vec![])).await;
    assert_eq!(code_of_agent(&link.hear().await), Some(Code::TokenRevoked));
    link.ends().await;
    let (ada, _) = bench.user("ada", &["ssh"]).await;
    let mut client = bench.client_link(&ada).await;
    assert_eq!(client.open("ssh").await.err(), Some(Code::ResourceUnknown), "it left nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_holds_so_many_links_and_no_more() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, _) = bench.user("ada", &[]).await;
    let mut links = Vec::new();
    for _ in 0..USER_LINKS_MAX {
        links.push(bench.client_link(&ada).await);
    }
    let refused = bench.link(CLIENT_LINK, &ada).await.err();
    assert_eq!(refused, Some(StatusCode::TOO_MANY_REQUESTS));
    let _others_have_room = bench.client_link(&bench.admin).await;
    drop(links.pop());
    eventually(async || bench.link(CLIENT_LINK, &ada).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_requests_leave_the_link_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (eve, _) = bench.user("eve", &["web"]).await;
    let _agent = bench.agent("lab", vec![]).await;
    let mut client = bench.client_link(&eve).await;
    // Granted but unknown, known but not granted, and no name at all: one answer, nothing to learn from it.
    for resource in ["web", "ssh", "A B"] {
        assert_eq!(client.open(resource).await.err(), Some(Code::ResourceUnknown), "{resource}");
    }
    let forged = crate::secret::Secret::new("A".repeat(300));
    assert_eq!(client.leg(forged).await.err(), Some(Code::GrantInvalid));
    let (request, resource, key) = (7, "ssh".into(), key("client"));
    let open = |protocol| FromClient::Open {
        request,
        protocol,
        resource,
        key,
        udp: None,
        purpose: SessionPurpose::Use,
        ready: false,
    };
    client.say(&open(99)).await;
    let refused: ToClient = client.hear().await;
    assert!(matches!(refused, ToClient::Refused { request: 7, code: Code::ProtocolVersion, .. }));
    let metrics = bench.get("/metrics", &bench.admin).await;
    assert!(metrics.text().contains("switchback_faults_total{code=\"RESOURCE_NOT_GRANTED\"} 1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_word_is_heard_like_any_other_and_only_from_those_who_may_speak() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let _agent = bench.agent("lab", vec![]).await;
    let encoded = |text: &str| data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
    let open = FromClient::Open {
        request: 7,
        protocol: PROTOCOL,
        resource: "ssh".into(),
        key: key("client"),
        udp: None,
        purpose: SessionPurpose::Use,
        ready: false,
    };
    let word = encoded(&serde_json::to_string(&open).unwrap());
    let refused = bench.link_with(CLIENT_LINK, "guess", Some(&word)).await.err();
    assert_eq!(refused, Some(StatusCode::UNAUTHORIZED));
    let (mut link, taken) = bench.link_with(CLIENT_LINK, &bench.admin, Some(&word)).await.unwrap();
    assert!(taken);
    let granted: ToClient = link.hear().await;
    assert!(matches!(granted, ToClient::Granted { request: 7, .. }), "{granted:?}");
    // Malformed: refused as on the link. No text at all: not ours, and the link is as good as any.
    let bad = encoded("{");
    let (mut link, taken) = bench.link_with(CLIENT_LINK, &bench.admin, Some(&bad)).await.unwrap();
    assert!(taken);
    assert_eq!(code_of_client(&link.hear().await), Some(Code::MessageMalformed));
    link.ends().await;
    let (mut link, taken) = bench.link_with(CLIENT_LINK, &bench.admin, Some("?")).await.unwrap();
    assert!(!taken);
    link.say(&open).await;
    let granted: ToClient = link.hear().await;
    assert!(matches!(granted, ToClient::Granted { request: 7, .. }), "{granted:?}");
    let long = encoded(&"x".repeat(FIRST_WORD_BYTES_MAX * 2));
    let refused = bench.link_with(CLIENT_LINK, &bench.admin, Some(&long)).await.err();
    assert_eq!(refused, Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
}
