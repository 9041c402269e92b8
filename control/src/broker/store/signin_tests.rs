//! Sign-ins of a provider's users: how old they count, how many one user has, how they are found.
use super::*;

fn person(user: &str, auth_time_ms: Option<u64>) -> Person {
    let issuer = Some("https://id.example".to_owned());
    let claims = Claims { issuer, auth_time_ms, ..Claims::default() };
    let expires_ms = clock::unix_ms() + 60_000;
    Person { user: user.into(), subject: user.into(), admin: None, claims, expires_ms, link: false }
}

async fn sign_in(store: &Store, person: Person) -> (String, Vec<Displaced>) {
    let begun = store.sign_in(person).await.unwrap();
    (begun.issued.id, begun.displaced)
}

/// When the user signed in, as policies see it who judge a new session.
async fn signed_in(store: &Store, token: &str) -> Option<u64> {
    store.standing(token, "ssh").await.unwrap().subject.signed_in_ms
}

/// The same of a session that lives.
async fn signed_in_of_session(store: &Store, token: &str) -> Option<u64> {
    let agent = NewSubject { kind: TokenKind::Agent, ..user("*", false, &[]) };
    let agent_token = store.issue(agent).await.unwrap().id;
    let (_, standing) = store.standings(vec![shown(token, &agent_token)]).await.unwrap().remove(0);
    standing.unwrap().subject.signed_in_ms
}

#[tokio::test]
async fn only_the_provider_can_tell_when_its_user_signed_in() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let (untold, _) = sign_in(&store, person("ada", None)).await;
    assert_eq!(signed_in(&store, &untold).await, None, "a new token is no new sign-in");
    assert_eq!(signed_in_of_session(&store, &untold).await, None);
    let (told, _) = sign_in(&store, person("ada", Some(7))).await;
    assert_eq!(signed_in(&store, &told).await, Some(7));
    assert_eq!(signed_in_of_session(&store, &untold).await, Some(7), "with any token");
    let string = store.issue(user("ada", false, &[])).await.unwrap().id;
    let minted = store.owner_again(&string).await.unwrap().unwrap().created_ms;
    assert_eq!(signed_in(&store, &string).await, Some(minted));
    assert_eq!(signed_in_of_session(&store, &untold).await, Some(minted));
}

#[tokio::test]
async fn a_renewal_that_tells_no_time_leaves_the_sign_in_as_old_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let (token, _) = sign_in(&store, person("ada", Some(7))).await;
    assert_eq!(store.renew(&token, person("ada", None)).await.unwrap(), Renewed::Same);
    assert_eq!(signed_in(&store, &token).await, Some(7));
    assert_eq!(store.renew(&token, person("ada", Some(9))).await.unwrap(), Renewed::Changed);
    assert_eq!(signed_in(&store, &token).await, Some(9));
}

#[tokio::test]
async fn a_user_has_so_many_sign_ins_and_the_one_renewed_longest_ago_makes_room() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let ada =
        |life_ms: u64| Person { expires_ms: clock::unix_ms() + life_ms, ..person("ada", None) };
    let (first, _) = sign_in(&store, ada(60_000)).await;
    let (second, _) = sign_in(&store, ada(60_000)).await;
    let string = store.issue(user("ada", false, &[])).await.unwrap().id;
    let (bob, _) = sign_in(&store, person("bob", None)).await;
    for _ in 2..signins::SIGN_INS_MAX {
        assert!(sign_in(&store, ada(60_000)).await.1.is_empty());
    }
    store.renew(&first, ada(120_000)).await.unwrap();
    let (newest, displaced) = sign_in(&store, ada(60_000)).await;
    assert_eq!(displaced, [Displaced { token: second.clone(), was_over: false }]);
    assert!(!store.is_good(&second).await.unwrap());
    for token in [&first, &newest, &string, &bob] {
        assert!(store.is_good(token).await.unwrap());
    }
    // The newest stays, though all others last longer; one that has ended goes before those that are good.
    let (over, displaced) = sign_in(&store, ada(0)).await;
    assert_eq!(displaced.len(), 1);
    let (short, displaced) = sign_in(&store, ada(30_000)).await;
    assert_eq!(displaced, [Displaced { token: over, was_over: true }]);
    assert!(store.is_good(&short).await.unwrap());
    // What was revoked before needs no withdrawal any more.
    store.revoke(&first, false).await.unwrap();
    assert!(sign_in(&store, ada(60_000)).await.1.is_empty());
    assert!(store.is_good(&short).await.unwrap());
}

#[tokio::test]
async fn the_sign_ins_of_a_user_are_found_without_a_look_at_those_of_others() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let sql = format!("EXPLAIN QUERY PLAN {}", standing::LAST_SIGN_IN);
    let plan = store.call(move |db| db.query_row(&sql, ["ada"], |row| row.get::<_, String>(3)));
    let plan = plan.await.unwrap();
    assert!(plan.contains("USING INDEX tokens_by_name"), "{plan}");
}
