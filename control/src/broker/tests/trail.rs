//! What is kept of enrolments, besides them.
use hyper::Method;

use super::enrol::{rotate, rotation};
use super::support::*;
use crate::api::{AuditRecord, EventKind, EventPage, EventView, NewToken, TokenKind};
use crate::code::Code;
use crate::enrol::proof::EndKey;

async fn records(bench: &Bench) -> Vec<AuditRecord> {
    let all = bench.get("/v1/audit?since_ms=0", &bench.admin).await.json::<Vec<AuditRecord>>();
    let of_ends = |it: &AuditRecord| matches!(&*it.action, "enrol" | "replace-key" | "revoke");
    all.into_iter().filter(of_ends).collect()
}

async fn events(bench: &Bench) -> Vec<EventView> {
    let page = bench.get("/v1/events", &bench.admin).await.json::<EventPage>();
    let kinds = [EventKind::Enrolled, EventKind::KeyReplaced, EventKind::EnrolmentRevoked];
    page.events.into_iter().filter(|event| kinds.contains(&event.kind)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolments_new_keys_and_revocations_are_recorded_and_told_once_and_hold_no_secret() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (token, join) = bench.issue(&NewToken::new(TokenKind::Agent, "lab")).await;
    let (first, second) = (EndKey::generate().unwrap(), EndKey::generate().unwrap());
    let wish = bench.enrolment(&token, "lab", &first);
    // The answer may have been lost: the same again is no second enrolment.
    let answers = [bench.enrol(&token, &wish).await, bench.enrol(&token, &wish).await];
    let id = answers[0].json::<serde_json::Value>()["id"].as_str().unwrap().to_owned();
    let thief = bench.enrolment(&token, "lab", &EndKey::generate().unwrap());
    assert_eq!(bench.enrol(&token, &thief).await.code(), Some(Code::JoinUsed));
    let new_key = rotation(&bench, &id, &first, &second);
    assert_eq!((rotate(&bench, &new_key).await, rotate(&bench, &new_key).await), (None, None));
    let path = format!("/v1/tokens/{id}");
    assert_eq!(bench.as_admin(Method::DELETE, &path, &()).await.status, 204);

    let told = events(&bench).await;
    let kinds: Vec<_> = told.iter().map(|event| event.kind).collect();
    let story = [EventKind::Enrolled, EventKind::KeyReplaced, EventKind::EnrolmentRevoked];
    assert_eq!(kinds, story);
    assert!(told.iter().all(|it| it.agent.as_deref() == Some("lab") && it.user.is_none()));
    assert!(told.iter().all(|it| it.detail.as_ref().unwrap().contains(&id)));

    eventually(async || records(&bench).await.len() >= 4).await;
    let kept = records(&bench).await;
    let rows: Vec<_> =
        kept.iter().map(|it| (&*it.user, &*it.action, it.allowed, it.code)).collect();
    let lab = "agent/lab";
    assert_eq!(
        rows,
        [
            (lab, "enrol", true, None),
            ("", "enrol", false, Some(Code::JoinUsed)),
            (lab, "replace-key", true, None),
            ("admin", "revoke", true, None),
        ]
    );
    assert!(kept.iter().all(|it| it.resource == lab && it.source.as_deref() == Some("127.0.0.1")));
    assert!(kept[0].detail.as_ref().unwrap().contains(&join), "which string that was");
    assert!(kept.iter().filter(|it| it.allowed).all(|it| it.correlation == id));
    let file = std::fs::read_to_string(temp.path().join("audit.jsonl")).unwrap();
    let lines = file.lines().map(|line| serde_json::from_str::<AuditRecord>(line).unwrap());
    let lines: Vec<_> = lines.filter(|it| kept.contains(it)).collect();
    assert_eq!(lines, kept, "both hold the same");
    let text = file + &serde_json::to_string(&told).unwrap();
    for secret in [&token, wish.proof.reveal(), &new_key.0, first.to_text().reveal()] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_changes_its_key_without_end_is_slowed_down() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let End { id, key } = bench.end("lab").await;
    let mut keys = vec![key];
    let refused = loop {
        let next = EndKey::generate().unwrap();
        if let Some(code) =
            rotate(&bench, &rotation(&bench, &id, keys.last().unwrap(), &next)).await
        {
            break code;
        }
        keys.push(next.into());
        assert!(keys.len() < 100);
    };
    assert_eq!(refused, Code::RateLimited);
    let path = format!("/v1/tokens/{id}");
    assert_eq!(bench.as_admin(Method::DELETE, &path, &()).await.status, 204, "and no more");
}
