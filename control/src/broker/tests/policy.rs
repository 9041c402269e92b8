//! Policies decide, bind, change and are audited, at a broker with real links.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};

use super::support::*;
use crate::api::{AuditRecord, PolicyExplained, PolicyStatus, ResourceView};
use crate::broker::Location;
use crate::code::Code;
use crate::wire::*;

const EVERYTHING: &str = "@id(\"all\") permit(principal, action, resource);";

/// Watching once a second, judging, and a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(5);

struct Stage {
    bench: Bench,
    file: PathBuf,
}

async fn stage(temp: &Path, policy: &str) -> Stage {
    let file = temp.join("policy.cedar");
    std::fs::write(&file, policy).unwrap();
    let bench = Bench::first_with(&temp.join("data"), |config| {
        config.policy = Some(file.clone());
        config.locations = vec![Location::parse("here=127.0.0.0/8,::1").unwrap()];
    })
    .await;
    Stage { bench, file }
}

impl Stage {
    fn write(&self, policy: &str) {
        std::fs::write(&self.file, policy).unwrap();
    }

    async fn status(&self) -> PolicyStatus {
        self.bench.get("/v1/policy", &self.bench.admin).await.json()
    }

    async fn audit(&self, query: &str) -> Vec<AuditRecord> {
        self.bench.get(&format!("/v1/audit?{query}"), &self.bench.admin).await.json()
    }

    async fn feed(&self, token: &str) -> Vec<String> {
        let feed: Vec<ResourceView> = self.bench.get("/v1/resources", token).await.json();
        feed.into_iter().map(|resource| resource.name).collect()
    }
}

async fn offer(agent: &mut Link) -> SessionOffer {
    loop {
        match agent.hear().await {
            ToAgent::Offer { session, .. } => return *session,
            ToAgent::About(AboutSession::Policy { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_decide_in_place_of_grants_and_hide_what_may_not_be_seen() {
    let temp = tempfile::tempdir().unwrap();
    let text = "permit(principal == User::\"ada\", action, resource) when { context.locations.contains(\"here\") };\n\
                permit(principal == User::\"bob\", action == Action::\"see\", resource);\n\
                permit(principal, action == Action::\"admin\", resource) when { principal.admin };";
    let stage = stage(temp.path(), text).await;
    let mut agent = stage.bench.agent("lab", vec![]).await;
    let (ada, _) = stage.bench.user("ada", &[]).await;
    let (bob, _) = stage.bench.user("bob", &["ssh"]).await;
    let (eve, _) = stage.bench.user("eve", &["*"]).await;
    for (token, feed, outcome) in [
        (&ada, vec!["ssh"], Ok(())),
        (&bob, vec!["ssh"], Err(Code::PolicyDenied)),
        (&eve, vec![], Err(Code::ResourceUnknown)),
    ] {
        assert_eq!(stage.feed(token).await, feed);
        let mut client = stage.bench.client_link(token).await;
        assert_eq!(client.open("ssh").await.map(drop), outcome);
        assert_eq!(client.open("no-such").await.map(drop), Err(Code::ResourceUnknown));
    }
    let id = offer(&mut agent).await.id;
    // Who may administer is the policies' to say as well, and eve, who is granted everything, may not.
    assert_eq!(stage.bench.get("/v1/tokens", &eve).await.code(), Some(Code::AdminOnly));
    let records = async || stage.audit("since_ms=0").await;
    eventually(async || records().await.iter().filter(|it| it.action == "connect").count() >= 6)
        .await;
    let records = records().await;
    let of = |user: &str, resource: &str| {
        let found = records.iter().find(|it| it.user == user && it.resource == resource);
        found.unwrap_or_else(|| panic!("{user} {resource}: {records:?}"))
    };
    let granted = of("ada", "ssh");
    assert!(granted.allowed && granted.correlation == id.0 && granted.policies.len() == 1);
    assert_eq!(granted.source.as_deref(), Some("127.0.0.1"));
    assert_eq!(of("bob", "ssh").code, Some(Code::PolicyDenied));
    assert_eq!(of("eve", "ssh").code, Some(Code::ResourceUnknown));
    assert!(records.iter().any(|it| it.action == "admin" && it.user == "eve" && !it.allowed));
    let file = std::fs::read_to_string(temp.path().join("data/audit.jsonl")).unwrap();
    let lines =
        file.lines().map(serde_json::from_str::<AuditRecord>).collect::<Result<Vec<_>, _>>();
    assert!(lines.unwrap().len() >= records.len());
    for secret in [&ada, &bob, &eve, &stage.bench.admin, &stage.bench.join] {
        assert!(!file.contains(secret.as_str()), "a token is in the audit trail");
    }
    let asked = serde_json::json!({"user": "bob", "resource": "ssh", "source": "127.0.0.1"});
    let answer = stage.bench.as_admin(Method::POST, "/v1/policy/explain", &asked).await;
    let explained: PolicyExplained = answer.json();
    assert!(!explained.trial.decision.allowed && explained.granted);
    assert_eq!(explained.locations, ["here"]);
    stage.bench.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_policy_narrows_and_ends_live_sessions_and_a_broken_one_changes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let stage = stage(temp.path(), EVERYTHING).await;
    let mut agent = stage.bench.agent("lab", vec![]).await;
    let mut client = stage.bench.client_link(&stage.bench.admin).await;
    let held = client.open("ssh").await.ok().unwrap();
    let session = held.session.clone();
    assert_eq!(offer(&mut agent).await.transport, TransportPolicy::default());

    stage.write("permit(principal, action, resorce);");
    eventually(async || stage.status().await.failures == 1).await;
    let status = stage.status().await;
    assert_eq!((status.policies, status.wrong.len(), status.wrong[0].line), (1, 1, 1));
    let page = stage.bench.get("/metrics", &stage.bench.admin).await;
    assert!(page.text().contains("switchback_policy_files_sound 0"), "{}", page.text());
    let path = format!("/v1/sessions/{session}");
    assert_eq!(stage.bench.get(&path, &stage.bench.admin).await.status, StatusCode::OK);

    let changed = Instant::now();
    stage.write(&format!("@no_udp @rate(\"8mbit\") {EVERYTHING}"));
    let transport = TransportPolicy { udp: UdpUse::Off, ..TransportPolicy::default() };
    let rate_bits = Some(8_000_000);
    let told = AboutSession::Policy { session: session.clone(), transport, rate_bits };
    assert_eq!(client.hear::<ToClient>().await, ToClient::About(told.clone()));
    assert_eq!(agent.hear::<ToAgent>().await, ToAgent::About(told));
    assert!(changed.elapsed() < SOON, "{:?}", changed.elapsed());
    assert!(stage.status().await.wrong.is_empty());

    // What was taken from a live session is not given back to it, and new ones have what policy says now.
    stage.write(EVERYTHING);
    eventually(async || stage.status().await.reloads == 2).await;
    client
        .say(&FromClient::Leg {
            request: 9,
            grant: held.grant.clone(),
            udp: None,
            wish: LegWish::default(),
        })
        .await;
    // The rate is given back, and whoever shows a session is told again what binds it.
    let mut told = 0;
    while matches!(client.hear::<ToClient>().await, ToClient::About(_)) {
        told += 1;
    }
    assert!(told >= 1);
    assert_eq!(offer(&mut agent).await.transport, transport);

    let changed = Instant::now();
    stage.write("permit(principal, action == Action::\"admin\", resource);");
    let code = Code::PolicyDenied;
    let end = loop {
        match client.hear::<ToClient>().await {
            ToClient::About(_) => {}
            other => break other,
        }
    };
    assert_eq!(end, ToClient::End { session: session.clone(), code });
    assert!(changed.elapsed() < SOON, "{:?}", changed.elapsed());
    assert_eq!(client.leg(held.grant).await.err(), Some(code));
    eventually(async || {
        let records = stage.audit("since_ms=0").await;
        let ended = |it: &AuditRecord| it.correlation == session.0 && it.code == Some(code);
        records.iter().any(ended) && records.iter().any(|it| it.action == "policy-reload")
    })
    .await;
    stage.bench.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_when_their_time_or_their_sign_in_is_up_unless_there_is_a_younger_one() {
    let temp = tempfile::tempdir().unwrap();
    let text = "@max_session(\"3s\") permit(principal == User::\"ada\", action, resource);\n\
                @reauthenticate(\"4s\") permit(principal == User::\"bob\", action, resource);\n\
                permit(principal, action == Action::\"admin\", resource) when { principal.admin };";
    let stage = stage(temp.path(), text).await;
    let _agent = stage.bench.agent("lab", vec![]).await;
    let (ada, _) = stage.bench.user("ada", &[]).await;
    let mut ada = stage.bench.client_link(&ada).await;
    let held = ada.open("ssh").await.ok().unwrap();
    let code = Code::SessionExpired;
    assert_eq!(ada.hear::<ToClient>().await, ToClient::End { session: held.session, code });
    assert!(ada.open("ssh").await.is_ok(), "another one has its own time");

    let (token, _) = stage.bench.user("bob", &[]).await;
    let mut bob = stage.bench.client_link(&token).await;
    let held = bob.open("ssh").await.ok().unwrap();
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(stage.bench.user("bob", &[]).await);
    let code = Code::Reauthenticate;
    assert_eq!(bob.hear::<ToClient>().await, ToClient::End { session: held.session, code });
    assert!(
        began.elapsed() >= Duration::from_secs(5),
        "the younger sign-in counts: {:?}",
        began.elapsed()
    );
    assert_eq!(bob.open("ssh").await.err(), Some(code));
    stage.bench.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demands_that_exclude_each_other_deny_with_a_code_of_their_own() {
    let temp = tempfile::tempdir().unwrap();
    let text = "@relay_only permit(principal, action, resource);\n\
                @direct_required permit(principal, action == Action::\"connect\", resource);";
    let stage = stage(temp.path(), text).await;
    let _agent = stage.bench.agent("lab", vec![]).await;
    let mut client = stage.bench.client_link(&stage.bench.admin).await;
    assert_eq!(client.open("ssh").await.err(), Some(Code::PolicyConflict));
    stage.bench.broker.shutdown().await;
}

#[tokio::test]
async fn a_broker_does_not_start_with_wrong_policies() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("policy.cedar");
    std::fs::write(&file, "permit(principal, action, resource) when { context.x };").unwrap();
    for path in [&file, &temp.path().join("none"), &temp.path().to_owned()] {
        let mut config = config(&temp.path().join("data"));
        config.policy = Some(path.clone());
        let fault = crate::broker::Broker::start(config).await.err().unwrap();
        assert_eq!(fault.code, Code::PolicyInvalid, "{fault}");
    }
}

/// Asks to watch `session`.
async fn watch(link: &mut Link, session: &str, control: bool) -> Result<Held, Code> {
    let session = SessionId(session.into());
    let wish = ShadowWish { session, control, no_prompt: true, target: false };
    let (request, resource, key) = (8, String::new(), key("watcher"));
    let purpose = SessionPurpose::Shadow(wish);
    let (protocol, udp, ready) = (PROTOCOL, None, false);
    link.say(&FromClient::Open { request, protocol, resource, key, udp, purpose, ready }).await;
    match link.hear().await {
        ToClient::Granted { request: 8, session, grant, ticket, .. } => {
            Ok(Held { session, grant, ticket })
        }
        ToClient::Refused { request: 8, code, .. } => Err(code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_is_a_right_of_its_own_which_is_audited_and_ends_with_what_it_rests_on() {
    let temp = tempfile::tempdir().unwrap();
    let text = |consent: &str| {
        format!(
            "permit(principal == User::\"ada\", action, resource);\n\
             permit(principal, action == Action::\"admin\", resource) when {{ principal.admin }};\n\
             @consent(\"{consent}\") permit(principal == User::\"admin\", action == Action::\"shadow-view\", resource)\n\
             when {{ resource.owner == User::\"ada\" }};"
        )
    };
    let stage = stage(temp.path(), &text("notify")).await;
    let _agent = stage.bench.agent("lab", vec![]).await;
    let (ada, _) = stage.bench.user("ada", &[]).await;
    let (bob, _) = stage.bench.user("bob", &["*"]).await;
    let mut ada = stage.bench.client_link(&ada).await;
    let used = ada.open("ssh").await.ok().unwrap().session.0;
    let mut bob = stage.bench.client_link(&bob).await;
    let mut admin = stage.bench.client_link(&stage.bench.admin).await;
    let unknown = Some(Code::SessionUnknown);
    assert_eq!(watch(&mut bob, &used, false).await.err(), unknown);
    assert_eq!(watch(&mut admin, &used, true).await.err(), unknown, "viewing is not control");
    assert_eq!(watch(&mut admin, "k3m9x2q7w4ht", false).await.err(), unknown);
    let held = watch(&mut admin, &used, false).await.ok().unwrap();
    assert!(admin.leg(held.grant).await.is_ok(), "its grant is judged as a watch");
    let records = async || stage.audit("since_ms=0").await;
    eventually(async || records().await.iter().any(|it| it.action == "shadow_began")).await;
    let records = records().await;
    let of = |user: &str, action: &str| {
        let found = records.iter().find(|it| it.user == user && it.action == action);
        found.unwrap_or_else(|| panic!("{user} {action}: {records:?}"))
    };
    for (user, action, allowed) in [
        ("bob", "shadow-view", false),
        ("admin", "shadow-control", false),
        ("admin", "shadow-view", true),
        ("admin", "shadow_began", true),
    ] {
        let record = of(user, action);
        assert_eq!((record.allowed, &*record.correlation), (allowed, &*used), "{record:?}");
        assert_eq!(record.resource, "ssh");
    }
    assert_eq!(of("bob", "shadow-view").code, unknown);

    stage.write(&text("required"));
    let code = Code::ConsentRefused;
    assert_eq!(admin.hear::<ToClient>().await, ToClient::End { session: held.session, code });
    stage.bench.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_see_the_tags_and_the_folder_of_a_resource() {
    let temp = tempfile::tempdir().unwrap();
    let text = "permit(principal, action in [Action::\"see\", Action::\"connect\"], resource)\n\
                when { resource.tags.contains(\"public\") && resource.folder like \"Berlin/*\" };\n\
                permit(principal, action == Action::\"admin\", resource) when { principal.admin };";
    let stage = stage(temp.path(), text).await;
    let resource = |name: &str, folder: &str, tags: &[&str]| {
        let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
        let look = Look { folder: Some(folder.into()), tags, ..Look::default() };
        Resource { look, ..Resource::tcp(name, "127.0.0.1:22") }
    };
    let mut agent = stage.bench.agent_link("lab").await;
    let FromAgent::Register { protocol, version, name, key, sessions, .. } =
        register("lab", vec![])
    else {
        panic!("it registers")
    };
    let resources = vec![
        resource("db", "Berlin/Servers", &["secret"]),
        resource("ssh", "Berlin/Servers", &["public", "linux"]),
        resource("web", "Paris", &["public"]),
    ];
    agent.say(&FromAgent::Register { protocol, version, name, key, resources, sessions }).await;
    assert_eq!(agent.hear::<ToAgent>().await, ToAgent::Registered);
    let (ada, _) = stage.bench.user("ada", &["*"]).await;
    assert_eq!(stage.feed(&ada).await, ["ssh"]);
    let mut client = stage.bench.client_link(&ada).await;
    assert_eq!(client.open("db").await.err(), Some(Code::ResourceUnknown));
    assert!(client.open("ssh").await.is_ok());
    stage.bench.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_agent_loosens_what_holds_for_the_resource_of_another() {
    let temp = tempfile::tempdir().unwrap();
    let text = "permit(principal, action, resource);\n\
                @id(\"no-prod\") forbid(principal, action == Action::\"connect\", resource)\n\
                when { resource.tags.contains(\"prod\") };";
    let stage = stage(temp.path(), text).await;
    let mut links = Vec::new();
    for (name, tags) in [("zzz", vec!["prod"]), ("aaa", vec![])] {
        let mut agent = stage.bench.agent_link(name).await;
        let tags = tags.into_iter().map(str::to_owned).collect();
        let look = Look { tags, ..Look::default() };
        let register = FromAgent::Register {
            protocol: PROTOCOL,
            version: "test".into(),
            name: name.into(),
            key: key(name),
            resources: vec![Resource { look, ..Resource::tcp("db", "127.0.0.1:22") }],
            sessions: vec![],
        };
        agent.say(&register).await;
        assert_eq!(agent.hear::<ToAgent>().await, ToAgent::Registered);
        links.push(agent);
    }
    let (ada, _) = stage.bench.user("ada", &["*"]).await;
    let mut client = stage.bench.client_link(&ada).await;
    assert_eq!(client.open("db").await.err(), Some(Code::PolicyDenied));
    drop(links.pop());
    assert_eq!(client.open("db").await.err(), Some(Code::PolicyDenied), "also once it has left");
    let asked = serde_json::json!({"user": "ada", "resource": "db"});
    let answer = stage.bench.as_admin(Method::POST, "/v1/policy/explain", &asked).await;
    let explained: PolicyExplained = answer.json();
    assert!(!explained.trial.decision.allowed);
    assert_eq!(explained.trial.decision.deciding, ["no-prod"]);
    stage.bench.broker.shutdown().await;
}
