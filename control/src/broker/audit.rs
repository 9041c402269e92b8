//! The audit trail: who wanted what, and what was decided, in files of JSON lines and in the database.
//!
//! A decision takes its place in a bounded queue before it is made; a task writes what is there every 200 ms. Nobody waits for
//! a disk. While neither file nor database can be written the queue fills, and once it is full nothing new is decided
//! ([`Code::AuditFull`]): a right that cannot be recorded is not given. Taking rights away never waits.
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::api::AuditRecord;
use crate::broker::counters::Counter;
use crate::broker::data::DataDir;
use crate::broker::rate::{Rate, Rates};
use crate::broker::store::Store;
use crate::code::{Code, Fault};

/// Records waiting, about 400 bytes each: ten seconds of a disk that hangs while sessions start as fast as they can.
const QUEUE_MAX: usize = 8192;
/// Records written together.
const BATCH_MAX: usize = 1024;
/// Between two batches.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// Between two tries while nothing can be written.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Refusals of one user that are recorded. Asking costs them nothing: without a bound one user's wishes would push everybody's
/// records out of the files and the table, and fill the queue.
const REFUSALS: Rate = Rate { burst: 20.0, per_second: 1.0 };
/// In the data directory; those put aside have a number behind it.
pub(crate) const AUDIT_FILE: &str = "audit.jsonl";
/// A file that has reached this is put aside; with [`FILES_KEPT`] this bounds the disk that the trail takes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Files put aside, `audit.jsonl.1` the youngest.
const FILES_KEPT: usize = 8;

/// Where decisions are told.
#[derive(Debug)]
pub(crate) struct Audit {
    queue: mpsc::Sender<AuditRecord>,
    inbox: Mutex<mpsc::Receiver<AuditRecord>>,
    path: PathBuf,
    refusals: Rates<String>,
    counts: Arc<AuditCounts>,
}

/// What became of records.
#[derive(Debug, Default)]
pub(crate) struct AuditCounts {
    pub(crate) written: Counter,
    /// Decisions refused because they could not be recorded.
    pub(crate) refused: Counter,
    /// Ends of rights that could not be recorded.
    pub(crate) lost: Counter,
    /// Refusals beyond those that are recorded of one user.
    pub(crate) refusals_unrecorded: Counter,
    /// Writes to the file, and to the database, that failed.
    pub(crate) file_failures: Counter,
    pub(crate) database_failures: Counter,
}

/// A place for one record.
pub(crate) struct Place<'a>(mpsc::Permit<'a, AuditRecord>);

impl Place<'_> {
    pub(crate) fn record(self, record: AuditRecord) {
        self.0.send(record);
    }
}

impl Audit {
    pub(crate) fn new(data: &DataDir) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        let counts = Arc::default();
        let (path, refusals) = (data.file(AUDIT_FILE), Rates::new(REFUSALS));
        Self { queue, inbox: Mutex::new(inbox), path, refusals, counts }
    }

    pub(crate) fn counts(&self) -> &AuditCounts {
        &self.counts
    }

    /// Records that wait to be written.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Room for the record of a decision that is about to be made.
    ///
    /// # Errors
    /// [`Code::AuditFull`].
    pub(crate) fn place(&self) -> Result<Place<'_>, Fault> {
        self.queue.try_reserve().map(Place).map_err(|_| {
            self.counts.refused.add();
            Code::AuditFull.into()
        })
    }

    /// Records that a right ended, if there is room.
    pub(crate) fn tell(&self, record: AuditRecord) {
        if let Err(error) = self.queue.try_send(record) {
            self.counts.lost.add();
            tracing::error!(%error, "an audit record was lost");
        }
    }

    /// Records that somebody was refused, or counts it where they are refused all the time. Half of the queue is kept for what
    /// is granted and what ends.
    pub(crate) fn tell_refusal(&self, record: AuditRecord) {
        let recorded = self.refusals.take(record.user.clone(), Instant::now())
            && self.queue.capacity() > QUEUE_MAX / 2
            && self.queue.try_send(record).is_ok();
        if !recorded {
            self.counts.refusals_unrecorded.add();
        }
    }

    /// Writes what is told until `stop`, then what is left.
    pub(crate) async fn run(&self, store: &Store, stop: &CancellationToken) {
        let mut inbox = self.inbox.lock().await;
        let mut batch = Vec::new();
        loop {
            if batch.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = inbox.recv_many(&mut batch, BATCH_MAX) => {}
                }
            }
            if stop.is_cancelled() {
                return self.write_rest(store, &mut inbox, batch).await;
            }
            let written = batch.is_empty() || self.write(store, &batch).await;
            if written {
                batch.clear();
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(if written { WRITE_EVERY } else { RETRY_AFTER }) => {}
            }
        }
    }

    /// Writes what is left once nobody decides any more.
    pub(crate) async fn flush(&self, store: &Store) {
        let mut inbox = self.inbox.lock().await;
        self.write_rest(store, &mut inbox, Vec::new()).await;
    }

    async fn write_rest(
        &self,
        store: &Store,
        inbox: &mut mpsc::Receiver<AuditRecord>,
        mut batch: Vec<AuditRecord>,
    ) {
        while let Ok(record) = inbox.try_recv() {
            batch.push(record);
        }
        if !batch.is_empty() && !self.write(store, &batch).await {
            tracing::error!(lost = batch.len(), "audit records could not be written");
        }
    }

    /// To the file and the database; whether either has them now.
    async fn write(&self, store: &Store, batch: &[AuditRecord]) -> bool {
        let mut text = String::new();
        for record in batch {
            text += &serde_json::to_string(record).unwrap_or_default();
            text.push('\n');
        }
        let path = self.path.clone();
        let filed = tokio::task::spawn_blocking(move || append(&path, &text)).await;
        let filed = filed.unwrap_or_else(|error| Err(io::Error::other(error)));
        let kept = store.add_audit(batch.to_vec()).await;
        if let Err(error) = &filed {
            self.counts.file_failures.add();
            tracing::error!(%error, "the audit file could not be written");
        }
        if let Err(fault) = &kept {
            self.counts.database_failures.add();
            tracing::error!(%fault, "the audit table could not be written");
        }
        let done = filed.is_ok() || kept.is_ok();
        if done {
            self.counts.written.add_many(batch.len() as u64);
        }
        done
    }
}

fn append(path: &std::path::Path, text: &str) -> io::Result<()> {
    let open = || -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(path)
    };
    let mut file = open()?;
    if file.metadata()?.len() >= FILE_BYTES_MAX {
        put_aside(path)?;
        file = open()?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_data()
}

fn put_aside(path: &std::path::Path) -> io::Result<()> {
    let aside = |number: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (1..FILES_KEPT).rev() {
        match std::fs::rename(aside(number), aside(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(path, aside(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_private_and_bounded() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join(AUDIT_FILE);
        for _ in 0..FILES_KEPT + 3 {
            append(&path, "x\n").unwrap();
            let full = File::options().write(true).open(&path).unwrap();
            full.set_len(FILE_BYTES_MAX).unwrap();
        }
        append(&path, "last\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "last\n");
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), FILES_KEPT + 1);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_recorded_is_not_decided_but_rights_still_end() {
        let temp = tempfile::tempdir().unwrap();
        let audit = Audit::new(&DataDir::open(temp.path()).unwrap());
        for _ in 0..QUEUE_MAX {
            audit.place().unwrap().record(AuditRecord::default());
        }
        assert_eq!(audit.place().err().map(|fault| fault.code), Some(Code::AuditFull));
        audit.tell(AuditRecord::default());
        assert_eq!((audit.counts().refused.get(), audit.counts().lost.get()), (1, 1));
        assert_eq!(audit.waiting(), QUEUE_MAX);
    }

    #[test]
    fn whoever_is_refused_all_the_time_pushes_nobodys_records_out() {
        let temp = tempfile::tempdir().unwrap();
        let audit = Audit::new(&DataDir::open(temp.path()).unwrap());
        let of = |user: &str| AuditRecord { user: user.into(), ..AuditRecord::default() };
        for _ in 0..1000 {
            audit.tell_refusal(of("eve"));
        }
        let recorded = audit.waiting();
        assert!((20..30).contains(&recorded), "{recorded}");
        assert_eq!(audit.counts().refusals_unrecorded.get(), 1000 - recorded as u64);
        for number in 0..QUEUE_MAX {
            audit.tell_refusal(of(&number.to_string()));
        }
        assert!(audit.waiting() <= QUEUE_MAX / 2, "there is room for what is granted");
        assert!(audit.place().is_ok());
    }
}
