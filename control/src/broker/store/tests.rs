//! The database under honest use and under damage.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::directory::Access;
use super::*;
use crate::api::{GrantView, TokenKind};
use crate::broker::seal::Grant;
use crate::wire::{PublicKey, Resource, ResourceKind, SessionId};

fn open(path: &Path) -> Result<Store, Fault> {
    let data = DataDir::open(path)?;
    let lock = data.lock()?;
    Store::open(Database::open(&data)?, Arc::new(lock))
}

fn user(name: &str, admin: bool, grants: &[&str]) -> NewSubject {
    let grants = grants.iter().map(|&grant| grant.to_owned()).collect();
    NewSubject { kind: TokenKind::User, name: name.into(), admin, grants }
}

fn agent(name: &str, resources: &[&str]) -> AgentRecord {
    let resource = |&name: &&str| Resource::tcp(name, "127.0.0.1:22");
    let resources = resources.iter().map(resource).collect();
    AgentRecord { name: name.into(), key: "key".into(), version: "1".into(), resources }
}

#[tokio::test]
async fn what_was_answered_is_there_after_reopening() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let issued = store.issue(user("ada", true, &["ssh"])).await.unwrap();
    store.announce(agent("lab", &["ssh", "web"])).await.unwrap();
    store.close().await;
    assert_eq!(store.tokens().await.unwrap_err().code, Code::Internal, "closed is closed");
    let store = open(temp.path()).unwrap();
    let owner = store.owner(issued.token.reveal()).await.unwrap();
    assert_eq!((owner.name.as_str(), owner.admin, owner.token), ("ada", true, issued.id));
    let feed = store.resources(Some("ada".into())).await.unwrap();
    let ssh = Listed { name: "ssh".into(), kind: ResourceKind::Tcp, agents: vec!["lab".into()] };
    assert_eq!(feed, [ssh]);
    assert_eq!(store.resources(None).await.unwrap().len(), 2);
    assert!(store.resources(Some("eve".into())).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_file_holds_no_token() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let issued = store.issue(user("ada", true, &[])).await.unwrap();
    store.close().await;
    for entry in fs::read_dir(temp.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let token = issued.token.reveal().as_bytes();
        assert!(!bytes.windows(token.len()).any(|window| window == token), "{}", path.display());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
    }
}

#[tokio::test]
async fn the_first_tokens_are_issued_once() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let subjects = || vec![user("admin", true, &["*"])];
    assert_eq!(store.issue_first(subjects()).await.unwrap().unwrap().len(), 1);
    assert!(store.issue_first(subjects()).await.unwrap().is_none());
}

#[tokio::test]
async fn tokens_are_good_until_revoked_and_the_last_administrator_stays() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let admin = store.issue(user("root", true, &[])).await.unwrap();
    let ada = store.issue(user("ada", false, &[])).await.unwrap();
    assert_eq!(store.revoke(&admin.id).await.unwrap(), Removed::LastAdmin);
    assert_eq!(store.revoke("nobody").await.unwrap(), Removed::Unknown);
    for _ in 0..2 {
        assert_eq!(store.revoke(&ada.id).await.unwrap(), Removed::Done);
    }
    let fault = store.owner(ada.token.reveal()).await.unwrap_err();
    assert_eq!(fault.code, Code::TokenRevoked);
    assert!(!store.is_good(&ada.id).await.unwrap());
    for guess in ["", "short", &"A".repeat(43), &"A".repeat(4096)] {
        assert_eq!(store.owner(guess).await.unwrap_err().code, Code::TokenInvalid);
    }
    let second = store.issue(user("ada", true, &[])).await.unwrap();
    assert_eq!(store.revoke(&admin.id).await.unwrap(), Removed::Done);
    assert_eq!(store.revoke(&second.id).await.unwrap(), Removed::LastAdmin);
}

#[tokio::test]
async fn grants_decide_access_and_judge_what_ends_show() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let token = store.issue(user("ada", false, &[])).await.unwrap().id;
    let of_agent = || NewSubject { kind: TokenKind::Agent, ..user("*", false, &[]) };
    let joined = store.issue(of_agent()).await.unwrap().id;
    store.announce(agent("lab", &["ssh"])).await.unwrap();
    let access = |granted, exists| Access { granted, exists };
    let grant =
        |user: &str, resource: &str| GrantView { user: user.into(), resource: resource.into() };
    assert_eq!(store.access("ada", "ssh").await.unwrap(), access(false, true));
    assert_eq!(store.access("ada", "web").await.unwrap(), access(false, false));
    assert!(!store.grant(grant("nobody", "ssh")).await.unwrap());
    assert!(store.grant(grant("ada", "*")).await.unwrap());
    assert_eq!(store.access("ada", "ssh").await.unwrap(), access(true, true));
    let shown = Grant {
        session: SessionId("s".into()),
        user: "ada".into(),
        token: token.clone(),
        resource: "ssh".into(),
        agent: "lab".into(),
        agent_token: joined.clone(),
        client_key: PublicKey("c".into()),
        agent_key: PublicKey("a".into()),
        created_ms: 1,
        purpose: Default::default(),
    };
    assert_eq!(store.judge(vec![shown.clone()]).await.unwrap()[0].1, Ok(()));
    assert_eq!(store.ungrant(grant("ada", "*")).await.unwrap(), Some(vec![]));
    assert_eq!(store.ungrant(grant("ada", "*")).await.unwrap(), None);
    let verdict = store.judge(vec![shown.clone()]).await.unwrap()[0].1;
    assert_eq!(verdict, Err(Code::ResourceNotGranted));
    store.grant(grant("ada", "ssh")).await.unwrap();
    store.revoke(&joined).await.unwrap();
    assert_eq!(store.judge(vec![shown.clone()]).await.unwrap()[0].1, Err(Code::TokenRevoked));
    let agent_token = store.issue(of_agent()).await.unwrap().id;
    let shown = Grant { agent_token, ..shown };
    assert_eq!(store.judge(vec![shown.clone()]).await.unwrap()[0].1, Ok(()));
    store.revoke(&token).await.unwrap();
    assert_eq!(store.judge(vec![shown]).await.unwrap()[0].1, Err(Code::TokenRevoked));
}

/// As if everything in the database had happened this many days earlier.
async fn age(store: &Store, days: i64) {
    let ms = days * 24 * 3600 * 1000;
    let sql = "UPDATE agents SET seen_ms = seen_ms - ?1";
    store.call(move |db| db.execute(sql, [ms])).await.unwrap();
}

#[tokio::test]
async fn a_name_belongs_to_its_first_key_until_unused_for_a_month() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let other = || AgentRecord { key: "other".into(), ..agent("lab", &["web"]) };
    store.announce(agent("lab", &["ssh"])).await.unwrap();
    age(&store, 29).await;
    let fault = store.announce(other()).await.unwrap_err();
    assert_eq!(fault.code, Code::AgentNameTaken);
    assert!(fault.detail.contains("--name"), "{fault}");
    assert_eq!(store.resources(None).await.unwrap()[0].name, "ssh", "nothing changed");
    store.keep_agents(vec!["lab".into()]).await.unwrap();
    age(&store, 29).await;
    assert!(store.announce(other()).await.is_err(), "a connected agent is in use");
    age(&store, 2).await;
    store.announce(other()).await.unwrap();
    assert_eq!(store.resources(None).await.unwrap()[0].name, "web");
}

#[tokio::test]
async fn agents_are_bounded_and_unused_ones_are_forgotten() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    store.announce(agent("lab", &["ssh"])).await.unwrap();
    let many = "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 4096)
        INSERT INTO agents SELECT 'agent-' || i, key, version, seen_ms FROM agents, n";
    assert_eq!(store.call(move |db| db.execute(many, [])).await.unwrap(), 4095);
    let fault = store.announce(agent("annex", &["web"])).await.unwrap_err();
    assert_eq!(fault.code, Code::RateLimited);
    store.announce(agent("lab", &["ssh", "web"])).await.unwrap();
    age(&store, 31).await;
    store.keep_agents(vec!["agent-2".into()]).await.unwrap();
    assert!(store.resources(None).await.unwrap().is_empty(), "resources go with their agent");
    let left = "SELECT name FROM agents";
    let left = store.call(move |db| db.query_row(left, [], |row| row.get::<_, String>(0))).await;
    assert_eq!(left.unwrap(), "agent-2");
    store.announce(agent("annex", &["web"])).await.unwrap();
}

#[tokio::test]
async fn a_corrupt_database_is_named_as_such() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join(DATABASE_FILE);
    fs::write(
        &path,
        "this is no database, although it is long enough to have a header ".repeat(40),
    )
    .unwrap();
    assert_eq!(open(temp.path()).unwrap_err().code, Code::DataCorrupt);

    fs::remove_file(&path).unwrap();
    let store = open(temp.path()).unwrap();
    for index in 0..200 {
        store.issue(user(&format!("user-{index}"), false, &["ssh"])).await.unwrap();
    }
    store.close().await;
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[4096..middle].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    assert_eq!(open(temp.path()).unwrap_err().code, Code::DataCorrupt);
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    open(temp.path()).unwrap().close().await;
    let db = Connection::open(temp.path().join(DATABASE_FILE)).unwrap();
    db.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(db);
    let fault = open(temp.path()).unwrap_err();
    assert!(fault.detail.contains("newer version"), "{fault}");
}

#[test]
fn a_read_only_database_is_unusable_not_corrupt() {
    // Root may write anywhere, so the refusal comes from SQLite itself rather than from file modes.
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch("PRAGMA query_only = ON").unwrap();
    let error = db.execute_batch("CREATE TABLE t (x)").unwrap_err();
    assert_eq!(schema::fault(&error).code, Code::DataDirUnusable);
}
