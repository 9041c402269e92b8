//! The database's tables, and how an older database becomes a newer one.
use rusqlite::{Connection, Error, ErrorCode};

use crate::code::{Code, Fault};

/// One step per released version of the schema; `user_version` counts the steps taken.
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

/// Checks a database and brings it up to date.
pub(super) fn prepare(db: &mut Connection) -> Result<(), Fault> {
    let steps = check(db).map_err(|error| fault(&error))?;
    let taken = usize::try_from(steps).unwrap_or(usize::MAX);
    let Some(missing) = MIGRATIONS.get(taken..) else {
        return Err(Code::DataCorrupt.because(format!(
            "the database is of a newer version ({steps}); update this program"
        )));
    };
    for (step, sql) in missing.iter().enumerate() {
        migrate(db, sql, taken + step + 1).map_err(|error| fault(&error))?;
    }
    Ok(())
}

fn check(db: &Connection) -> Result<i64, Error> {
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
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn migrate(db: &mut Connection, sql: &str, version: usize) -> Result<(), Error> {
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
