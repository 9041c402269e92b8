//! Sessions with real legs through the real gateway.
use hyper::{Method, StatusCode};
use tokio::net::TcpStream;

use super::support::*;
use crate::api::{SessionState, SessionView, SlowPart, TestPair};
use crate::code::Code;
use crate::secret::Secret;
use crate::wire::*;

async fn view(bench: &Bench, session: &SessionId) -> Option<SessionView> {
    let answer = bench.get(&format!("/v1/sessions/{session}"), &bench.admin).await;
    (answer.status == StatusCode::OK).then(|| answer.json())
}

async fn is_in(bench: &Bench, session: &SessionId, state: SessionState) -> bool {
    view(bench, session).await.is_some_and(|view| view.state == state)
}

/// The agent's leg for an offer that has it dialled.
async fn dial_offer(bench: &Bench, agent: &mut Link) -> (TcpStream, SealedGrant) {
    loop {
        match agent.hear().await {
            ToAgent::Offer { session, leg: AgentLeg::Dial { ticket } } => {
                return (bench.dial(&ticket).await, session.grant);
            }
            // With each session that it shows.
            ToAgent::About(AboutSession::Policy { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn report(session: &SessionId, grant: Option<SealedGrant>) -> SessionReport {
    let rtt = RttView { smoothed_us: 4, min_us: 1, p50_us: 2, p99_us: 3 };
    SessionReport {
        session: session.clone(),
        grant,
        transport: Some("TCP (Reverse-Connect)".into()),
        rtt: Some(rtt),
        client_to_target: 11,
        target_to_client: 22,
        channels: 3,
        resumes: 1,
        paths: vec![],
        loss: LossCounts::default(),
        jitter_us: None,
        loss_ppm: None,
        held: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_crosses_the_gateway_reports_and_is_killed() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut agent = bench.agent("lab", vec![]).await;
    let mut client = bench.client_link(&bench.admin).await;
    let held = client.open("ssh").await.ok().unwrap();
    let session = held.session.clone();
    let mut client_leg = bench.dial(&held.ticket).await;
    let (mut agent_leg, _) = dial_offer(&bench, &mut agent).await;
    assert_joined(&mut client_leg, &mut agent_leg).await;
    eventually(async || is_in(&bench, &session, SessionState::Active).await).await;
    client.say(&FromClient::Report { sessions: vec![report(&session, None)] }).await;
    eventually(async || view(&bench, &session).await.unwrap().client_to_target == 11).await;
    let seen = view(&bench, &session).await.unwrap();
    assert_eq!(seen.transport.as_deref(), Some("TCP (Reverse-Connect)"));
    assert_eq!((seen.channels, seen.resumes, seen.rtt.end_to_end.unwrap().p99_us), (3, 1, 3));
    eventually(async || view(&bench, &session).await.unwrap().rtt.client_leg.is_some()).await;
    let seen = view(&bench, &session).await.unwrap();
    for leg in [seen.legs.client, seen.legs.agent] {
        assert!(leg.is_some_and(|leg| leg.cwnd_segments > 0), "{seen:?}");
    }
    eventually(async || view(&bench, &session).await.unwrap().slow.who == SlowPart::Idle).await;

    let path = format!("/v1/sessions/{session}");
    let answer = bench.as_admin(Method::DELETE, &path, &()).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let code = Code::SessionKilled;
    let end = ToClient::End { session: session.clone(), code };
    assert_eq!(client.hear::<ToClient>().await, end);
    assert_eq!(agent.hear::<ToAgent>().await, ToAgent::End { session: session.clone(), code });
    assert_cut(client_leg).await;
    assert_cut(agent_leg).await;
    assert_eq!(client.leg(held.grant).await.err(), Some(code));
    assert!(view(&bench, &session).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_count_about_loss_is_shown_per_session_and_summed_once() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let _agent = bench.agent("lab", vec![]).await;
    let mut client = bench.client_link(&bench.admin).await;
    let held = client.open("ssh").await.ok().unwrap();
    let mut last = LossCounts::default();
    for dup_sent in [3, 3, 7] {
        last = LossCounts {
            dup_sent,
            dup_bytes: 448,
            dup_won: 2,
            ms_saved: 90,
            black_holes: 1,
            datagrams_dropped: 5,
        };
        let told = SessionReport { loss: last, ..report(&held.session, None) };
        client.say(&FromClient::Report { sessions: vec![told] }).await;
    }
    eventually(async || view(&bench, &held.session).await.unwrap().loss.client == last).await;
    assert!(view(&bench, &held.session).await.unwrap().loss.agent.is_zero());
    let page = bench.get("/metrics", &bench.admin).await;
    let page = page.text();
    for line in [
        "switchback_session_dup_sent_total{end=\"client\"} 7",
        "switchback_session_dup_bytes_total{end=\"client\"} 448",
        "switchback_session_dup_won_total{end=\"client\"} 2",
        "switchback_session_saved_seconds_total{end=\"client\"} 0.09",
        "switchback_session_mtu_black_holes_total{end=\"client\"} 1",
        "switchback_session_datagrams_dropped_total{end=\"client\"} 5",
        "switchback_session_dup_sent_total{end=\"agent\"} 0",
    ] {
        assert!(page.contains(line), "{line}: {page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leg_pauses_the_session_and_another_resumes_it() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut agent = bench.agent("lab", vec![]).await;
    let mut client = bench.client_link(&bench.admin).await;
    let held = client.open("ssh").await.ok().unwrap();
    let client_leg = bench.dial(&held.ticket).await;
    let (agent_leg, _) = dial_offer(&bench, &mut agent).await;
    eventually(async || is_in(&bench, &held.session, SessionState::Active).await).await;
    drop((client_leg, agent_leg));
    eventually(async || is_in(&bench, &held.session, SessionState::Paused).await).await;
    let ticket = client.leg(held.grant).await.unwrap();
    let mut client_leg = bench.dial(&ticket).await;
    let (mut agent_leg, _) = dial_offer(&bench, &mut agent).await;
    assert_joined(&mut client_leg, &mut agent_leg).await;
    eventually(async || is_in(&bench, &held.session, SessionState::Active).await).await;

    let (session, code) = (held.session.clone(), Code::SessionClosed);
    agent.say(&FromAgent::Ended { session: session.clone(), code }).await;
    assert_eq!(client.hear::<ToClient>().await, ToClient::End { session: session.clone(), code });
    eventually(async || view(&bench, &session).await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_leg_spares_the_dial() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut agent = bench.agent("lab", vec![]).await;
    agent.say(&FromAgent::WarmLegs { count: 1 }).await;
    let ToAgent::WarmTickets { tickets } = agent.hear().await else { panic!("tickets") };
    let mut warm_leg = bench.dial(&tickets[0]).await;
    eventually(async || {
        bench.get("/metrics", &bench.admin).await.text().contains("switchback_warm_legs 1")
    })
    .await;
    let mut client = bench.client_link(&bench.admin).await;
    let held = client.open("ssh").await.ok().unwrap();
    assert_eq!(held.ticket.pair, tickets[0].pair);
    let ToAgent::Offer { leg, .. } = agent.hear().await else { panic!("an offer") };
    assert_eq!(leg, AgentLeg::Warm { pair: tickets[0].pair.clone() });
    let mut client_leg = bench.dial(&held.ticket).await;
    assert_joined(&mut client_leg, &mut warm_leg).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_broker_learns_its_sessions_from_both_ends() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let mut agent = bench.agent("lab", vec![]).await;
    let mut client = bench.client_link(&bench.admin).await;
    let held = client.open("ssh").await.ok().unwrap();
    let second = client.open("ssh").await.ok().unwrap();
    let (_leg, agents_grant) = dial_offer(&bench, &mut agent).await;
    let bench = bench.restart().await;
    assert!(view(&bench, &held.session).await.is_none());

    let mut agent = bench.agent("lab", vec![agents_grant, Secret::new("forged")]).await;
    assert!(is_in(&bench, &held.session, SessionState::Paused).await, "from the agent's register");
    let mut client = bench.client_link(&bench.admin).await;
    let sessions = vec![report(&second.session, Some(second.grant.clone()))];
    client.say(&FromClient::Report { sessions }).await;
    eventually(async || view(&bench, &second.session).await.is_some()).await;

    let ticket = client.leg(held.grant.clone()).await.unwrap();
    let mut client_leg = bench.dial(&ticket).await;
    let (mut agent_leg, _) = dial_offer(&bench, &mut agent).await;
    assert_joined(&mut client_leg, &mut agent_leg).await;
    eventually(async || is_in(&bench, &held.session, SessionState::Active).await).await;

    // The tickets of the earlier run are worth nothing now.
    assert_cut(bench.dial(&held.ticket).await).await;
    let bench = bench.restart().await;
    let mut client = bench.client_link(&bench.admin).await;
    assert_eq!(client.leg(held.grant).await.err(), Some(Code::AgentOffline), "temporary");
    assert!(is_in(&bench, &held.session, SessionState::Paused).await, "from the client's request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_longer_granted_ends_and_does_not_come_back() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, _) = bench.user("ada", &["ssh"]).await;
    let mut agent = bench.agent("lab", vec![]).await;
    let mut client = bench.client_link(&ada).await;
    let held = client.open("ssh").await.ok().unwrap();
    let (_leg, agents_grant) = dial_offer(&bench, &mut agent).await;
    let grant = crate::api::GrantView { user: "ada".into(), resource: "ssh".into() };
    bench.as_admin(Method::DELETE, "/v1/grants", &grant).await;
    let code = Code::ResourceNotGranted;
    let session = held.session.clone();
    assert_eq!(client.hear::<ToClient>().await, ToClient::End { session: session.clone(), code });
    assert_eq!(client.leg(held.grant).await.err(), Some(code));
    let bench = bench.restart().await;
    let mut agent = bench.agent("lab", vec![agents_grant]).await;
    assert_eq!(agent.hear::<ToAgent>().await, ToAgent::End { session: session.clone(), code });
    assert!(view(&bench, &session).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_pairs_meet_without_a_session() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let body = crate::api::NewTestPairs { count: 2 };
    let answer = bench.as_admin(Method::POST, "/v1/test-pairs", &body).await;
    let pairs: Vec<TestPair> = answer.json();
    assert_eq!(pairs.len(), 2);
    for pair in pairs {
        let dial = async |hello: Secret| {
            let hello = data_encoding::BASE64.decode(hello.reveal().as_bytes()).unwrap();
            let mut leg = TcpStream::connect(bench.address).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut leg, &hello).await.unwrap();
            leg
        };
        let (mut client, mut agent) = (dial(pair.client_hello).await, dial(pair.agent_hello).await);
        assert_joined(&mut client, &mut agent).await;
    }
    assert_eq!(bench.get("/v1/sessions", &bench.admin).await.text(), "[]");
}
