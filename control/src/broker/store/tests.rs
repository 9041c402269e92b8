//! The database under honest use and under damage.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::api::{GrantView, TokenKind};
use crate::broker::clock;
use crate::broker::seal::Grant;
use crate::claims::Claims;
use crate::policy::{Object, ResourceFacts, Thing};
use crate::wire::{Look, PublicKey, Resource, ResourceKind, SessionId};

#[path = "catalogue_tests.rs"]
mod catalogues;
#[path = "enrolment_tests.rs"]
mod enrolments;
#[path = "hardship_tests.rs"]
mod hardship;
#[path = "signin_tests.rs"]
mod sign_ins;

fn open(path: &Path) -> Result<Store, Fault> {
    let data = DataDir::open(path)?;
    let lock = data.lock()?;
    Store::open(Database::open(&data)?, Arc::new(lock))
}

fn user(name: &str, admin: bool, grants: &[&str]) -> NewSubject {
    let grants = grants.iter().map(|&grant| grant.to_owned()).collect();
    let (kind, claims) = (TokenKind::User, Claims::default());
    NewSubject { kind, name: name.into(), admin, grants, claims, expires_ms: None, uses: None }
}

fn agent(name: &str, resources: &[&str]) -> AgentRecord {
    let resource = |&name: &&str| Resource::tcp(name, "127.0.0.1:22");
    let resources = resources.iter().map(resource).collect();
    AgentRecord { name: name.into(), key: "key".into(), version: "1".into(), resources }
}

async fn resources(store: &Store) -> Vec<Arc<Listed>> {
    store.catalogue("ada").await.unwrap().0.to_vec()
}

/// Resources that a user was granted.
async fn granted(store: &Store, user: &str) -> Vec<Arc<Listed>> {
    let (catalogue, granted) = store.catalogue(user).await.unwrap();
    catalogue.iter().filter(|listed| granted.covers(&listed.name)).cloned().collect()
}

fn thing(facts: ResourceFacts) -> Thing {
    Thing::from(Object::Resource(facts))
}

/// What the ends of ada's session show.
pub(super) fn shown(token: &str, agent_token: &str) -> Grant {
    Grant {
        session: SessionId("s".into()),
        user: "ada".into(),
        token: token.into(),
        resource: "ssh".into(),
        agent: "lab".into(),
        agent_token: agent_token.into(),
        client_key: PublicKey("c".into()),
        agent_key: PublicKey("a".into()),
        created_ms: 1,
        purpose: Default::default(),
        source: None,
        udp: true,
        rights: Default::default(),
        watched: None,
    }
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
    let feed = granted(&store, "ada").await;
    let look = Look::default();
    let (agents, announced) = (vec!["lab".into()], vec![thing(ResourceFacts::named("ssh"))]);
    let ssh = Listed { name: "ssh".into(), kind: ResourceKind::Tcp, look, agents, announced };
    assert_eq!(feed, [Arc::new(ssh)]);
    assert_eq!(resources(&store).await.len(), 2);
    assert!(granted(&store, "eve").await.is_empty());
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

fn token_of(issued: &Issued) -> Ended {
    Ended { id: issued.id.clone(), end: None }
}

#[tokio::test]
async fn tokens_are_good_until_revoked_and_the_last_administrator_stays() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let admin = store.issue(user("root", true, &[])).await.unwrap();
    let ada = store.issue(user("ada", false, &[])).await.unwrap();
    assert_eq!(store.revoke(&admin.id, false).await.unwrap(), Removed::LastAdmin);
    assert_eq!(store.revoke("nobody", true).await.unwrap(), Removed::Unknown);
    for _ in 0..2 {
        let done = Removed::Done(vec![token_of(&ada)]);
        assert_eq!(store.revoke(&ada.id, false).await.unwrap(), done);
    }
    let fault = store.owner(ada.token.reveal()).await.unwrap_err();
    assert_eq!(fault.code, Code::TokenRevoked);
    assert!(!store.is_good(&ada.id).await.unwrap());
    for guess in ["", "short", &"A".repeat(43), &"A".repeat(4096)] {
        assert_eq!(store.owner(guess).await.unwrap_err().code, Code::TokenInvalid);
    }
    let second = store.issue(user("ada", true, &[])).await.unwrap();
    let done = Removed::Done(vec![token_of(&admin)]);
    assert_eq!(store.revoke(&admin.id, false).await.unwrap(), done);
    assert_eq!(store.revoke(&second.id, false).await.unwrap(), Removed::LastAdmin);
}

#[tokio::test]
async fn grants_decide_access_and_judge_what_ends_show() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let token = store.issue(user("ada", false, &[])).await.unwrap().id;
    let of_agent = || NewSubject { kind: TokenKind::Agent, ..user("*", false, &[]) };
    let joined = store.issue(of_agent()).await.unwrap().id;
    store.announce(agent("lab", &["ssh"])).await.unwrap();
    let access = async |token: &str, resource| {
        let standing = store.standing(token, resource).await.unwrap();
        (standing.granted, !standing.announced.is_empty())
    };
    let grant =
        |user: &str, resource: &str| GrantView { user: user.into(), resource: resource.into() };
    assert_eq!(access(&token, "ssh").await, (false, true));
    assert_eq!(access(&token, "web").await, (false, false));
    assert!(!store.grant(grant("nobody", "ssh")).await.unwrap());
    assert!(store.grant(grant("ada", "*")).await.unwrap());
    assert_eq!(access(&token, "ssh").await, (true, true));
    let fault = store.standing(&joined, "ssh").await.unwrap_err();
    assert_eq!(fault.code, Code::TokenInvalid, "an agent is no user");
    let shown = shown(&token, &joined);
    let judge = async |shown: &Grant| {
        let (_, found) = store.standings(vec![shown.clone()]).await.unwrap().remove(0);
        found.map(|standing| standing.granted)
    };
    assert_eq!(judge(&shown).await, Ok(true));
    assert_eq!(store.ungrant(grant("ada", "*")).await.unwrap(), Some(vec![]));
    assert_eq!(store.ungrant(grant("ada", "*")).await.unwrap(), None);
    assert_eq!(judge(&shown).await, Ok(false));
    store.grant(grant("ada", "ssh")).await.unwrap();
    store.revoke(&joined, false).await.unwrap();
    assert_eq!(judge(&shown).await, Err(Code::TokenRevoked));
    let agent_token = store.issue(of_agent()).await.unwrap().id;
    let shown = Grant { agent_token, ..shown };
    assert_eq!(judge(&shown).await, Ok(true));
    store.revoke(&token, false).await.unwrap();
    assert_eq!(judge(&shown).await, Err(Code::TokenRevoked));
}

/// As if everything in the database had happened this many days earlier.
async fn age(store: &Store, days: i64) {
    let ms = days * 24 * 3600 * 1000;
    let sql = "UPDATE agents SET seen_ms = seen_ms - ?1";
    store.call(move |db| db.execute(sql, [ms])).await.unwrap();
}

#[tokio::test]
async fn agents_are_bounded_and_unused_ones_are_forgotten() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    store.announce(agent("lab", &["ssh"])).await.unwrap();
    let many = "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 32768)
        INSERT INTO agents (name, key, version, seen_ms)
        SELECT 'agent-' || i, key, version, seen_ms FROM agents, n";
    assert_eq!(store.call(move |db| db.execute(many, [])).await.unwrap(), 32_767);
    let fault = store.announce(agent("annex", &["web"])).await.unwrap_err();
    assert_eq!(fault.code, Code::RateLimited);
    store.announce(agent("lab", &["ssh", "web"])).await.unwrap();
    age(&store, 31).await;
    store.keep_agents(vec!["agent-2".into()]).await.unwrap();
    assert!(resources(&store).await.is_empty(), "resources go with their agent");
    let left = "SELECT name FROM agents";
    let left = store.call(move |db| db.query_row(left, [], |row| row.get::<_, String>(0))).await;
    assert_eq!(left.unwrap(), "agent-2");
    store.announce(agent("annex", &["web"])).await.unwrap();
}

#[tokio::test]
async fn agents_that_come_back_as_they_were_wait_for_no_disk() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let writes = Connection::open(temp.path().join("broker.db")).unwrap();
    // Another connection's number changes with each commit.
    let writes =
        || writes.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
    let first = agent("lab", &["ssh"]);
    let mut moved = first.clone();
    moved.resources[0].target = "127.0.0.1:23".into();
    let newer = AgentRecord { version: "2".into(), ..moved.clone() };
    for (record, is_written) in
        [(&first, true), (&first, false), (&moved, true), (&newer, true), (&newer, false)]
    {
        let before = writes();
        store.announce(record.clone()).await.unwrap();
        assert_eq!(writes() != before, is_written, "{record:?}");
    }
}

#[tokio::test]
async fn every_way_in_which_agents_announce_a_resource_is_known() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let tagged = |name: &str, title: &str, tag: &str| {
        let mut record = agent(name, &["db"]);
        let tags = [tag.to_owned()].into();
        record.resources[0].look = Look { title: Some(title.into()), tags, ..Look::default() };
        record
    };
    store.announce(tagged("b", "one", "prod")).await.unwrap();
    store.announce(tagged("c", "two", "prod")).await.unwrap();
    store.announce(tagged("a", "one", "test")).await.unwrap();
    let facts = store.facts("db").await.unwrap();
    let tags = facts.iter().flat_map(|it| &it.tags).collect::<Vec<_>>();
    assert_eq!(tags, ["test", "prod"], "and each but once");
    let announced = facts.into_iter().map(thing).collect::<Vec<_>>();
    assert_eq!(resources(&store).await[0].announced, announced);
    assert_eq!(store.facts("web").await.unwrap(), [ResourceFacts::named("web")]);
    for number in 0..100 {
        let tag = number.to_string();
        store.announce(tagged(&tag, "many", &tag)).await.unwrap();
    }
    assert_eq!(store.facts("db").await.unwrap().len(), ANNOUNCED_MAX + 1);
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
async fn a_sign_in_ends_in_time_and_keeps_what_is_known_of_it() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let claims = Claims { groups: ["ops".to_owned()].into(), ..Claims::default() };
    let until = |expires_ms| NewSubject {
        claims: claims.clone(),
        expires_ms: Some(expires_ms),
        ..user("ann", false, &[])
    };
    let good = store.issue(until(clock::unix_ms() + 60_000)).await.unwrap();
    assert_eq!(store.owner(good.token.reveal()).await.unwrap().claims, claims);
    assert!(store.is_good(&good.id).await.unwrap());
    let over = store.issue(until(clock::unix_ms())).await.unwrap();
    let fault = store.owner(over.token.reveal()).await.unwrap_err();
    assert_eq!(fault.code, Code::TokenExpired);
    assert!(!store.is_good(&over.id).await.unwrap());
}

#[tokio::test]
async fn a_database_of_the_first_version_is_brought_up_to_date_with_its_tokens() {
    let temp = tempfile::tempdir().unwrap();
    let token = {
        let store = open(temp.path()).unwrap();
        let issued = store.issue(user("ann", true, &["ssh"])).await.unwrap();
        store.close().await;
        issued.token
    };
    let old = tempfile::tempdir().unwrap();
    let db = Connection::open(old.path().join(DATABASE_FILE)).unwrap();
    db.execute_batch(schema::FIRST).unwrap();
    let newest = temp.path().join(DATABASE_FILE);
    db.execute("ATTACH ?1 AS newest", [newest.to_str().unwrap()]).unwrap();
    let copy = "INSERT INTO main.users SELECT name, admin, created_ms FROM newest.users;
        INSERT INTO main.tokens SELECT id, hash, kind, name, created_ms, revoked_ms FROM newest.tokens;
        DETACH newest; PRAGMA user_version = 1";
    db.execute_batch(copy).unwrap();
    drop(db);
    let store = open(old.path()).unwrap();
    let owner = store.owner(token.reveal()).await.unwrap();
    assert!(owner.admin && owner.claims == Claims::default() && owner.expires_ms.is_none());
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
