//! The database's tables, and how an older database becomes a newer one.
use rusqlite::{Connection, Error, ErrorCode};

use crate::code::{Code, Fault};

/// One step per released version of the schema; `user_version` counts the steps taken.
///
/// A process that takes over takes them after `go` and before `serving`. If it fails in between, it leaves a newer
/// database than the one before it can open: with a second step, a failed takeover is no longer harmless there.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE users (
        name       TEXT PRIMARY KEY,
        admin      INTEGER NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE tokens (
        id         TEXT PRIMARY KEY,
        hash       BLOB NOT NULL UNIQUE,
        kind       TEXT NOT NULL CHECK (kind IN ('user', 'agent')),
        name       TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        revoked_ms INTEGER
    ) STRICT;
    CREATE TABLE agents (
        name       TEXT PRIMARY KEY,
        key        TEXT NOT NULL,
        version    TEXT NOT NULL,
        seen_ms    INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE resources (
        agent      TEXT NOT NULL REFERENCES agents (name) ON DELETE CASCADE,
        name       TEXT NOT NULL,
        kind       TEXT NOT NULL,
        target     TEXT NOT NULL,
        PRIMARY KEY (agent, name)
    ) STRICT;
    CREATE INDEX resources_by_name ON resources (name);
    CREATE TABLE grants (
        user       TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
        resource   TEXT NOT NULL,
        PRIMARY KEY (user, resource)
    ) STRICT;
"];

/// Whether a database is sound, and not newer than this program. Changes nothing that another process using it would
/// notice.
pub(super) fn check(db: &Connection) -> Result<(), Fault> {
    let version = examine(db).map_err(|error| fault(&error))?;
    missing(version).map(|_| ())
}

/// Brings a checked database up to date.
pub(super) fn migrate(db: &mut Connection) -> Result<(), Fault> {
    let version = version(db).map_err(|error| fault(&error))?;
    for (step, sql) in missing(version)? {
        take(db, sql, step + 1).map_err(|error| fault(&error))?;
    }
    Ok(())
}

fn examine(db: &Connection) -> Result<i64, Error> {
    // FULL syncs the write-ahead log at every commit: what was answered survives a power cut.
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;",
    )?;
    let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(Error::SqliteFailure(code, Some(verdict)));
    }
    version(db)
}

fn version(db: &Connection) -> Result<i64, Error> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// The steps that a database of this version lacks, numbered.
fn missing(version: i64) -> Result<impl Iterator<Item = (usize, &'static str)>, Fault> {
    let taken = usize::try_from(version).unwrap_or(usize::MAX);
    if taken > MIGRATIONS.len() {
        return Err(Code::DataCorrupt.because(format!(
            "the database is of a newer version ({version}); update this program"
        )));
    }
    Ok(MIGRATIONS.into_iter().enumerate().skip(taken))
}

fn take(db: &mut Connection, sql: &str, version: usize) -> Result<(), Error> {
    let step = db.transaction()?;
    step.execute_batch(sql)?;
    step.execute_batch(&format!("PRAGMA user_version = {version}"))?;
    step.commit()
}

/// What a failure of SQLite means to people.
pub(super) fn fault(error: &Error) -> Fault {
    let code = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Code::DataCorrupt,
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked,
        ) => Code::DataDirUnusable,
        // A table or column that should be there is not, or holds something else.
        None if matches!(
            error,
            Error::InvalidColumnType(..) | Error::FromSqlConversionFailure(..)
        ) =>
        {
            Code::DataCorrupt
        }
        _ => Code::Internal,
    };
    code.because(format!("database: {error}"))
}
