//! The catalogue in memory is what the database holds, whatever changed in between.
use proptest::prelude::*;

use super::*;

fn offering(name: &str, resources: &[(u8, u8)]) -> AgentRecord {
    let mut record = agent(name, &[]);
    for (number, tag) in resources {
        let mut resource = Resource::tcp(format!("r{number}"), "127.0.0.1:22");
        resource.look.tags = [tag.to_string()].into();
        record.resources.push(resource);
    }
    record
}

/// As it is read anew.
async fn anew(store: &Store) -> Vec<Arc<Listed>> {
    store.shelf.all_changed();
    resources(store).await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_was_read_again_in_parts_is_what_is_read_as_a_whole(
        steps in proptest::collection::vec(
            (0..4_u8, proptest::collection::vec((0..8_u8, 0..3_u8), 0..5), any::<bool>()), 1..12)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let temp = tempfile::tempdir().unwrap();
            let store = open(temp.path()).unwrap();
            for (number, offered, looked) in steps {
                store.announce(offering(&format!("agent{number}"), &offered)).await.unwrap();
                if looked {
                    let seen = resources(&store).await;
                    assert_eq!(seen, anew(&store).await);
                }
            }
            let seen = resources(&store).await;
            assert_eq!(seen, anew(&store).await);
            store.close().await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_listed_while_others_announce_and_look() {
    let temp = tempfile::tempdir().unwrap();
    let store = Arc::new(open(temp.path()).unwrap());
    let agents = (0..8).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..20 {
                let name = format!("r{number}-{round}");
                store.announce(agent(&format!("agent{number}"), &[&name])).await.unwrap();
                let listed = resources(&store).await;
                assert!(listed.iter().any(|it| it.name == name), "{name}");
                let gone = format!("r{number}-{}", round - 1);
                assert!(listed.iter().all(|it| it.name != gone), "{gone}");
            }
        })
    });
    for agent in agents.collect::<Vec<_>>() {
        agent.await.unwrap();
    }
    assert_eq!(resources(&store).await, anew(&store).await);
}

#[tokio::test]
async fn who_comes_back_as_before_changes_nothing_and_a_fleet_is_read_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    for number in 0..300 {
        store
            .announce(agent(&format!("agent{number}"), &[&format!("r{number:03}")]))
            .await
            .unwrap();
    }
    let first = store.catalogue("ada").await.unwrap().0;
    assert_eq!(first.len(), 300);
    assert!(first.is_sorted_by_key(|listed| listed.name.clone()));
    store.announce(agent("agent7", &["r007"])).await.unwrap();
    let second = store.catalogue("ada").await.unwrap().0;
    assert!(Arc::ptr_eq(&first, &second), "it was not even looked for");
    store.announce(agent("agent7", &["other"])).await.unwrap();
    let third = store.catalogue("ada").await.unwrap().0;
    assert_eq!((third[0].name.as_str(), third.len()), ("other", 300));
    let kept = third.iter().filter(|listed| first.iter().any(|it| Arc::ptr_eq(it, listed)));
    assert_eq!(kept.count(), 299, "others were not read again");
}

#[tokio::test]
async fn reading_does_not_wait_for_what_is_being_written() {
    let temp = tempfile::tempdir().unwrap();
    let store = Arc::new(open(temp.path()).unwrap());
    let issued = store.issue(user("ada", true, &["ssh"])).await.unwrap();
    let (held, until) = std::sync::mpsc::channel::<()>();
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        let write = writer.call(move |db| {
            let step = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            step.execute("DELETE FROM grants", [])?;
            // Until the sender is dropped.
            assert!(until.recv().is_err());
            step.commit()
        });
        write.await.unwrap();
    });
    let standing = store.standing(&issued.id, "ssh").await.unwrap();
    assert!(standing.granted, "as it is until that is committed");
    assert!(store.owner(issued.token.reveal()).await.is_ok());
    drop(held);
    writing.await.unwrap();
    assert!(!store.standing(&issued.id, "ssh").await.unwrap().granted);
}

#[tokio::test]
async fn a_reader_cannot_write() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let wrote = store.read(|db| db.execute("DELETE FROM users", []).map(drop)).await;
    assert_eq!(wrote.unwrap_err().code, Code::DataDirUnusable);
}
