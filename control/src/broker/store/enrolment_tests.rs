//! Join strings that are spent, names that are held, keys that are replaced.
use super::*;
use crate::enrol::proof::EndKey;

const MINUTE_MS: u64 = 60_000;

fn joins(name: &str, uses: Option<u32>, expires_ms: Option<u64>) -> NewSubject {
    NewSubject { kind: TokenKind::Agent, uses, expires_ms, ..user(name, false, &[]) }
}

/// A join string for so many agents of any name, within a minute.
async fn string(store: &Store, uses: u32) -> Issued {
    let end = clock::unix_ms() + MINUTE_MS;
    store.issue(joins("*", Some(uses), Some(end))).await.unwrap()
}

fn end(join: &Issued, name: &str) -> NewEnd {
    let key = EndKey::generate().unwrap().public().to_owned();
    let token = join.token.reveal().to_owned();
    NewEnd { token, kind: TokenKind::Agent, name: name.into(), key }
}

async fn enrolled(store: &Store, end: NewEnd) -> Enrolment {
    store.enrol(end).await.unwrap().enrolment
}

async fn refused(store: &Store, end: NewEnd) -> Code {
    store.enrol(end).await.unwrap_err().code
}

#[tokio::test]
async fn a_use_is_spent_with_the_enrolment_and_a_repetition_spends_none() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let join = string(&store, 2).await;
    let lab = end(&join, "lab");
    let first = store.enrol(lab.clone()).await.unwrap();
    let Admitted { enrolment: known, join: by, is_new: true } = first else { panic!("{first:?}") };
    assert_eq!((known.name.as_str(), &known.key, &by), ("lab", &lab.key, &join.id));
    let again = store.enrol(lab.clone()).await.unwrap();
    assert_eq!((again.enrolment, again.is_new), (known.clone(), false));
    // What was answered is there after a crash, and the use is gone.
    store.close().await;
    let store = open(temp.path()).unwrap();
    assert_eq!(enrolled(&store, lab.clone()).await, known);
    let left = store.tokens().await.unwrap()[0].uses_left;
    assert_eq!(left, Some(1));
    enrolled(&store, end(&join, "annex")).await;
    assert_eq!(refused(&store, end(&join, "third")).await, Code::JoinUsed);
    assert_eq!(enrolled(&store, lab).await, known, "also once it is used up");
    assert!(store.is_good(&known.id).await.unwrap());
}

#[tokio::test]
async fn a_disk_that_is_full_costs_no_use() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let join = string(&store, 1000).await;
    let limit = |pages: u32| {
        store.call(move |db| {
            db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
        })
    };
    limit(1).await.unwrap();
    let mut good = Vec::new();
    let (full, fault) = loop {
        let end = end(&join, &format!("lab-{}", good.len()));
        match store.enrol(end.clone()).await {
            Ok(admitted) => good.push(admitted.enrolment.id),
            Err(fault) => break (end, fault),
        }
    };
    assert_eq!(fault.code, Code::DataDirUnusable);
    let left = async || store.tokens().await.unwrap()[0].uses_left.unwrap() as usize;
    assert_eq!(left().await, 1000 - good.len());
    limit(1_000_000).await.unwrap();
    enrolled(&store, full).await;
    assert_eq!(left().await, 999 - good.len());
}

#[tokio::test]
async fn a_string_that_is_no_good_enrols_nobody() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let old = store.issue(joins("*", None, Some(clock::unix_ms()))).await.unwrap();
    assert_eq!(refused(&store, end(&old, "lab")).await, Code::JoinExpired);
    let revoked = string(&store, 1).await;
    store.revoke(&revoked.id, false).await.unwrap();
    assert_eq!(refused(&store, end(&revoked, "lab")).await, Code::TokenRevoked);
    let bound = store.issue(joins("lab", Some(1), None)).await.unwrap();
    assert_eq!(refused(&store, end(&bound, "annex")).await, Code::AgentNotAllowed);
    let other_kind = NewEnd { kind: TokenKind::Gateway, ..end(&bound, "lab") };
    assert_eq!(refused(&store, other_kind).await, Code::TokenInvalid);
    let login = store.issue(user("ada", false, &[])).await.unwrap();
    assert_eq!(refused(&store, end(&login, "lab")).await, Code::TokenInvalid);
    let unknown = Issued { token: crate::secret::Secret::new("A".repeat(43)), ..bound.clone() };
    assert_eq!(refused(&store, end(&unknown, "lab")).await, Code::TokenInvalid);
    enrolled(&store, end(&bound, "lab")).await;
}

#[tokio::test]
async fn a_name_is_its_first_enrolments_until_that_is_revoked() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let join = store.issue(joins("*", None, None)).await.unwrap();
    let lab = end(&join, "lab");
    let first = enrolled(&store, lab.clone()).await;
    assert_eq!(refused(&store, end(&join, "lab")).await, Code::AgentNameTaken);
    let renamed = NewEnd { name: "annex".into(), ..lab.clone() };
    assert_eq!(refused(&store, renamed).await, Code::ProofInvalid, "one key, one end");
    let whose = Some((TokenKind::Agent, "lab".to_owned()));
    let done = Removed::Done(vec![Ended { id: first.id.clone(), end: whose }]);
    assert_eq!(store.revoke(&first.id, false).await.unwrap(), done);
    assert!(!store.is_good(&first.id).await.unwrap());
    assert_eq!(refused(&store, lab).await, Code::TokenRevoked, "that key never again");
    let second = enrolled(&store, end(&join, "lab")).await;
    assert_ne!(second.id, first.id);
}

#[tokio::test]
async fn a_string_is_revoked_alone_or_with_those_who_joined_by_it() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let (join, other) = (string(&store, 5).await, string(&store, 5).await);
    let mut ids = Vec::new();
    for (join, name) in [(&join, "a"), (&join, "b"), (&other, "c")] {
        ids.push(enrolled(&store, end(join, name)).await.id);
    }
    store.revoke(&join.id, false).await.unwrap();
    assert!(store.is_good(&ids[0]).await.unwrap());
    let Removed::Done(mut ended) = store.revoke(&join.id, true).await.unwrap() else { panic!() };
    ended.sort_by(|a, b| a.id.cmp(&b.id));
    let agent = |name: &str| Some((TokenKind::Agent, name.to_owned()));
    let all = [(&ids[0], agent("a")), (&ids[1], agent("b")), (&join.id, None)];
    let mut all = all.map(|(id, end)| Ended { id: id.clone(), end });
    all.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(ended, all);
    let good = async |id: &str| store.is_good(id).await.unwrap();
    assert_eq!(
        (good(&ids[0]).await, good(&ids[1]).await, good(&ids[2]).await),
        (false, false, true)
    );
}

#[tokio::test]
async fn a_key_is_swapped_for_the_one_it_was_asked_against_and_no_other() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let join = string(&store, 2).await;
    let lab = enrolled(&store, end(&join, "lab")).await;
    let annex = enrolled(&store, end(&join, "annex")).await;
    assert!(store.order_rotation(&lab.id).await.unwrap());
    assert!(!store.order_rotation(&join.id).await.unwrap());
    assert!(!store.swap_key(&lab.id, "another", "new").await.unwrap());
    assert!(!store.swap_key(&lab.id, &lab.key, &annex.key).await.unwrap(), "another's key");
    assert!(store.swap_key(&lab.id, &lab.key, "new").await.unwrap());
    assert!(!store.swap_key(&lab.id, &lab.key, "newer").await.unwrap(), "it was replaced");
    let now = store.enrolment(&lab.id).await.unwrap().unwrap();
    assert_eq!((now.key.as_str(), now.old_key, now.rotate), ("new", Some(lab.key), false));
    store.key_seen(&lab.id, "new").await.unwrap();
    assert_eq!(store.enrolment(&lab.id).await.unwrap().unwrap().old_key, None);
    store.revoke(&lab.id, false).await.unwrap();
    assert!(!store.swap_key(&lab.id, "new", "newer").await.unwrap());
}

#[tokio::test]
async fn enrolments_are_bounded_and_the_longest_unseen_gives_its_place() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let join = store.issue(joins("*", None, None)).await.unwrap();
    let first = enrolled(&store, end(&join, "lab")).await;
    let many = "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 32768)
        INSERT INTO enrolments (id, kind, name, key, token, created_ms, seen_ms, key_ms)
        SELECT 'e' || i, kind, 'a' || i, 'k' || i, token, created_ms, seen_ms, key_ms FROM enrolments, n";
    store.call(move |db| db.execute(many, [])).await.unwrap();
    assert_eq!(refused(&store, end(&join, "annex")).await, Code::RateLimited);
    let day = 24 * 3600 * 1000_i64;
    let age = "UPDATE enrolments SET seen_ms = seen_ms - ?1";
    store.call(move |db| db.execute(age, [31 * day])).await.unwrap();
    let online = (3..=32_768).map(|i| format!("e{i}")).chain([first.id.clone()]).collect();
    store.keep_enrolments(online).await.unwrap();
    enrolled(&store, end(&join, "annex")).await;
    assert!(store.enrolment("e2").await.unwrap().is_none());
    assert!(store.is_good(&first.id).await.unwrap());
    assert_eq!(refused(&store, end(&join, "another")).await, Code::RateLimited);
    store.revoke(&first.id, false).await.unwrap();
    enrolled(&store, end(&join, "another")).await;
    // That it was revoked is told for a while, and then forgotten.
    store.keep_enrolments(vec![]).await.unwrap();
    assert!(store.enrolment(&first.id).await.unwrap().is_some());
    let age = "UPDATE enrolments SET revoked_ms = revoked_ms - ?1";
    store.call(move |db| db.execute(age, [91 * day])).await.unwrap();
    store.keep_enrolments(vec![]).await.unwrap();
    assert!(store.enrolment(&first.id).await.unwrap().is_none());
}

#[tokio::test]
async fn what_a_revoked_agent_announced_shuts_nobody_out_any_more() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let join = string(&store, 5).await;
    let announce = async |name: &str, tag: &str| {
        let mut record = agent(name, &["ssh"]);
        record.resources[0].look.tags = [tag.to_owned()].into();
        store.announce(record).await.unwrap();
    };
    let ways = async || {
        let ways = store.facts("ssh").await.unwrap().len();
        assert_eq!(resources(&store).await[0].announced.len(), ways, "feeds know it too");
        ways
    };
    enrolled(&store, end(&join, "lab")).await;
    let rogue = enrolled(&store, end(&join, "rogue")).await;
    announce("lab", "ours").await;
    announce("rogue", "forbidden").await;
    assert_eq!(ways().await, 2);
    store.revoke(&rogue.id, false).await.unwrap();
    assert_eq!(ways().await, 1);
    // It was about to register as that happened.
    announce("rogue", "forbidden").await;
    store.retract("rogue").await.unwrap();
    assert_eq!(ways().await, 1);
    // Its successor of the same name is another one.
    enrolled(&store, end(&join, "rogue")).await;
    announce("rogue", "new").await;
    store.revoke(&rogue.id, false).await.unwrap();
    store.retract("rogue").await.unwrap();
    assert_eq!(ways().await, 2);
}
