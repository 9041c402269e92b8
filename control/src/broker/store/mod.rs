//! Users, tokens, enrolments, agents, resources and grants, in one SQLite file.
//!
//! One connection changes it and another one reads it, each on a thread of its own; everybody else sends them work and waits.
//! What a call answered is on disk, and readers see it: SQLite's log lets them read while it is written. Sessions are not here: they live in memory and are learned again from the ends.

mod audit;
mod backup;
mod catalogue;
mod directory;
mod enrolments;
mod gateways;
mod lane;
mod schema;
mod signins;
mod standing;
mod tokens;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

pub(crate) use audit::AuditQuery;
pub use backup::{Saved, backup, restore};
pub(crate) use catalogue::{Catalogue, Granted, Listed};
pub(crate) use directory::{ANNOUNCED_MAX, AgentRecord};
pub(crate) use enrolments::{Admitted, Enrolment, NewEnd};
pub(crate) use signins::{Begun, Displaced, Person, Renewed};
pub(crate) use standing::Standing;
pub(crate) use tokens::{Ended, Issued, NewSubject, Owner, Removed};

use self::catalogue::Shelf;
use self::lane::Lane;
use crate::broker::data::{DataDir, DataLock};
use crate::code::{Code, Fault};

const DATABASE_FILE: &str = "broker.db";
/// For someone who looks into the file with another tool while we run.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

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
    writer: Lane,
    reader: Lane,
    shelf: Arc<Shelf>,
}

impl Store {
    /// Brings the database up to date and starts to serve it. `lock` is kept until [`Store::close`].
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] or [`Code::DataDirUnusable`].
    pub(crate) fn open(database: Database, lock: Arc<DataLock>) -> Result<Self, Fault> {
        let Database(mut db) = database;
        schema::migrate(&mut db)?;
        let reader = open_reader(&db)?;
        Ok(Self {
            writer: Lane::open("broker-store", db, lock)?,
            reader: Lane::open("broker-reads", reader, ())?,
            shelf: Arc::default(),
        })
    }

    /// Finishes what is queued, closes the database and gives its hold on the data directory up. Later calls fail.
    pub(crate) async fn close(&self) {
        // The last connection to close folds the log in, and that must be able to write.
        self.reader.close().await;
        self.writer.close().await;
    }

    /// Comes back once the database has answered.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`], [`Code::DataDirUnusable`], [`Code::Internal`].
    pub(crate) async fn answers(&self) -> Result<(), Fault> {
        let count = |db: &Connection| db.query_row("SELECT count(*) FROM users", [], |_| Ok(()));
        self.call(move |db| count(db)).await?;
        self.read(count).await
    }

    /// Changes something, behind all that others change.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        self.writer.call(work).await
    }

    /// Reads as of one moment. It sees what was answered before, and does not wait for what is being written.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        self.reader.call(move |db| work(&*db.transaction()?)).await
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

/// A second connection to the same database, which changes nothing.
fn open_reader(db: &Connection) -> Result<Connection, Fault> {
    let path = db.path().ok_or_else(|| Code::Internal.because("the database has no path"))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reader = Connection::open_with_flags(path, flags)
        .and_then(|db| db.busy_timeout(BUSY_TIMEOUT).map(|()| db))
        .and_then(|db| db.execute_batch("PRAGMA trusted_schema = OFF").map(|()| db));
    reader.map_err(|error| schema::fault(&error))
}
