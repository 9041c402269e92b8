//! The database in bad company: locked by others, on a full disk, backed up under load, restored from garbage.
use std::time::Instant;

use super::*;

fn new_user(number: usize) -> NewSubject {
    user(&format!("user{number}"), false, &["ssh"])
}

#[tokio::test]
async fn a_lock_of_another_process_is_waited_for_and_then_named() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let other = rusqlite::Connection::open(temp.path().join(DATABASE_FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let begun = Instant::now();
    let fault = store.issue(new_user(1)).await.unwrap_err();
    assert_eq!(fault.code, Code::DataDirUnusable, "{fault}");
    assert!(begun.elapsed() >= BUSY_TIMEOUT);
    assert!(store.tokens().await.unwrap().is_empty(), "reading goes on");
    let waiting = store.issue(new_user(2));
    let (issued, ()) = tokio::join!(waiting, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        other.execute_batch("ROLLBACK").unwrap();
    });
    assert!(store.owner(issued.unwrap().token.reveal()).await.is_ok());
}

#[tokio::test]
async fn a_full_disk_loses_nothing_that_was_acknowledged() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path()).unwrap();
    let limit = |pages: u32| {
        store.call(move |db| {
            db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
        })
    };
    limit(1).await.unwrap();
    let mut good = Vec::new();
    let fault = loop {
        match store.issue(new_user(good.len())).await {
            Ok(issued) => good.push(issued),
            Err(fault) => break fault,
        }
    };
    assert_eq!(fault.code, Code::DataDirUnusable, "{fault}");
    assert!(fault.detail.contains("full"), "{fault}");
    limit(1_000_000).await.unwrap();
    good.push(store.issue(new_user(good.len())).await.unwrap());
    store.close().await;
    let store = open(temp.path()).unwrap();
    for issued in &good {
        assert!(store.owner(issued.token.reveal()).await.is_ok());
    }
    assert_eq!(store.tokens().await.unwrap().len(), good.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_holds_everything_acknowledged_before_it() {
    let temp = tempfile::tempdir().unwrap();
    let [data, to, again] = ["data", "saved", "again"].map(|name| temp.path().join(name));
    let store = Arc::new(open(&data).unwrap());
    DataDir::open(&data).unwrap().write("seal.key", b"secret").unwrap();
    let mut before = Vec::new();
    for number in 0..50 {
        before.push(store.issue(new_user(number)).await.unwrap());
    }
    let writer = store.clone();
    let load = tokio::spawn(async move {
        for number in 50.. {
            if writer.issue(new_user(number)).await.is_err() {
                return number;
            }
        }
        0
    });
    let (from, into) = (data.clone(), to.clone());
    let saved = tokio::task::spawn_blocking(move || backup(&from, &into)).await.unwrap().unwrap();
    assert_eq!(saved.files, ["seal.key"]);
    assert!(saved.users >= 50 && saved.bytes > 0);
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(backup(&data, &to).unwrap_err().code, Code::UsageInvalid, "none is overwritten");
    store.close().await;
    assert!(load.await.unwrap() > 50, "it was written meanwhile");

    assert_eq!(restore(&to, &again).unwrap(), saved);
    assert_eq!(restore(&to, &again).unwrap_err().code, Code::UsageInvalid, "nor a directory");
    assert_eq!(fs::read(again.join("seal.key")).unwrap(), b"secret");
    for entry in fs::read_dir(&again).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o077, 0);
    }
    let store = open(&again).unwrap();
    for issued in &before {
        assert!(store.owner(issued.token.reveal()).await.is_ok());
    }
    assert_eq!(store.tokens().await.unwrap().len() as u64, saved.users);
}

#[tokio::test]
async fn what_is_no_backup_is_refused_and_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let [data, to, again] = ["data", "saved", "again"].map(|name| temp.path().join(name));
    assert_eq!(backup(&data, &to).unwrap_err().code, Code::DataDirUnusable, "no broker there");
    open(&data).unwrap().close().await;
    backup(&data, &to).unwrap();
    let whole = fs::read(&to).unwrap();
    let refused = |content: &[u8]| {
        fs::write(&to, content).unwrap();
        let fault = restore(&to, &again).unwrap_err();
        assert!(!again.exists(), "{fault}");
        fault.code
    };
    let mut torn = whole.clone();
    torn.truncate(whole.len() / 2);
    assert_eq!(refused(&torn), Code::DataCorrupt);
    assert_eq!(refused(b"not a backup at all"), Code::DataCorrupt);
    assert_eq!(refused(b""), Code::DataCorrupt);
    assert_eq!(refused(&fs::read(data.join(DATABASE_FILE)).unwrap()), Code::DataCorrupt);
    let mut newer = whole.clone();
    // The user_version in the database's head, big-endian (SQLite file format, section 1.3).
    newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
    assert_eq!(refused(&newer), Code::DataCorrupt);
    fs::write(&to, &whole).unwrap();
    assert!(restore(&to, &again).is_ok());
    let left: Vec<_> =
        fs::read_dir(temp.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
}
