//! Users, tokens, enrolments, agents, resources and grants, in one SQLite file.
//!
//! One connection lives on one thread of its own; everybody else sends it work and waits. What a call answered is on
//! disk. Sessions are not here: they live in memory and are learned again from the ends.

mod audit;
mod backup;
mod directory;
mod enrolments;
mod schema;
mod signins;
mod standing;
mod tokens;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

pub(crate) use audit::AuditQuery;
pub use backup::{Saved, backup, restore};
pub(crate) use directory::{ANNOUNCED_MAX, AgentRecord, Listed};
pub(crate) use enrolments::{Enrolment, NewEnd};
pub(crate) use signins::{Begun, Displaced, Person, Renewed};
pub(crate) use standing::Standing;
pub(crate) use tokens::{Issued, NewSubject, Owner, Removed};

use crate::broker::data::{DataDir, DataLock};
use crate::code::{Code, Fault};

const DATABASE_FILE: &str = "broker.db";
/// Calls waiting for the database. One takes some ten microseconds, a durable write a few milliseconds; more than
/// this are served so late that their callers had better wait outside.
const QUEUE_MAX: usize = 1024;
/// For someone who looks into the file with another tool while we run.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A database that is opened and sound, and not yet changed: two processes may each have one.
#[derive(Debug)]
pub(crate) struct Database(Connection);

impl Database {
    /// Opens the database in `data`, or an empty one, and checks it.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`], also if it is of a newer version of this program; [`Code::DataDirUnusable`].
    pub(crate) fn open(data: &DataDir) -> Result<Self, Fault> {
        let db = open_private(data)?;
        schema::check(&db)?;
        Ok(Self(db))
    }
}

/// The database, as the rest of the broker sees it.
#[derive(Debug)]
pub(crate) struct Store {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Brings the database up to date and starts to serve it. `lock` is kept until [`Store::close`].
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] or [`Code::DataDirUnusable`].
    pub(crate) fn open(database: Database, lock: Arc<DataLock>) -> Result<Self, Fault> {
        let Database(mut db) = database;
        schema::migrate(&mut db)?;
        let (jobs, mut inbox) = mpsc::channel::<Job>(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("broker-store".into())
            .spawn(move || {
                while let Some(job) = inbox.blocking_recv() {
                    job(&mut db);
                }
                drop(db);
                drop(lock);
            })
            .map_err(|error| Code::Internal.because(format!("no thread: {error}")))?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    /// Finishes what is queued, closes the database and gives its hold on the data directory up. Later calls fail.
    pub(crate) async fn close(&self) {
        drop(lock(&self.jobs).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic on the thread was reported when it happened.
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }

    /// Comes back once the database has answered.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`], [`Code::DataDirUnusable`], [`Code::Internal`].
    pub(crate) async fn answers(&self) -> Result<(), Fault> {
        self.call(|db| db.query_row("SELECT count(*) FROM users", [], |_| Ok(()))).await
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let gone = || Code::Internal.because("the database is closed");
        let jobs = lock(&self.jobs).clone().ok_or_else(gone)?;
        let (answer, answered) = oneshot::channel();
        // The caller may have gone; nobody misses the answer then.
        let job: Job = Box::new(move |db| drop(answer.send(work(db))));
        jobs.send(job).await.map_err(|_| gone())?;
        drop(jobs);
        answered.await.map_err(|_| gone())?.map_err(|error| schema::fault(&error))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// SQLite gives its log files the mode of the database, so an empty private file comes first.
fn open_private(data: &DataDir) -> Result<Connection, Fault> {
    if data.read_len(DATABASE_FILE)?.is_none() {
        data.write(DATABASE_FILE, b"")?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(data.file(DATABASE_FILE), flags)
        .and_then(|db| db.busy_timeout(BUSY_TIMEOUT).map(|()| db));
    db.map_err(|error| schema::fault(&error))
}
