//! The database's tables, and how an older database becomes a newer one.
use rusqlite::{Connection, Error, ErrorCode};

use crate::code::{Code, Fault};

/// One step per released version of the schema; `user_version` counts the steps taken.
///
/// A process that takes over takes them after `go` and before `serving`. If it fails in between, it leaves a newer
/// database than the one before it can open: with a second step, a failed takeover is no longer harmless there.
const MIGRATIONS: [&str; 9] = [
    FIRST,
    SIGN_INS,
    GATEWAY_TOKENS,
    POOLS,
    PROVIDED_USERS,
    AUDIT,
    ENROLMENTS,
    TOKENS_BY_NAME,
    DRAINED_GATEWAYS,
];

pub(super) const FIRST: &str = "
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
";

/// Tokens of sign-ins end, and say how the user signed in.
const SIGN_INS: &str = "
    ALTER TABLE tokens ADD COLUMN expires_ms INTEGER;
    ALTER TABLE tokens ADD COLUMN claims TEXT NOT NULL DEFAULT '{}';
";

/// Gateways on other machines join with tokens too. SQLite changes no CHECK, so the table is made anew.
const GATEWAY_TOKENS: &str = "
    CREATE TABLE tokens_of_all (
        id         TEXT PRIMARY KEY,
        hash       BLOB NOT NULL UNIQUE,
        kind       TEXT NOT NULL CHECK (kind IN ('user', 'agent', 'gateway')),
        name       TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        revoked_ms INTEGER,
        expires_ms INTEGER,
        claims     TEXT NOT NULL DEFAULT '{}'
    ) STRICT;
    INSERT INTO tokens_of_all SELECT id, hash, kind, name, created_ms, revoked_ms, expires_ms, claims FROM tokens;
    DROP TABLE tokens;
    ALTER TABLE tokens_of_all RENAME TO tokens;
";

/// Users whom an OIDC provider vouches for, and sign-ins that say themselves whether their user is an administrator.
const PROVIDED_USERS: &str = "
    ALTER TABLE users ADD COLUMN issuer TEXT;
    ALTER TABLE users ADD COLUMN subject TEXT;
    ALTER TABLE tokens ADD COLUMN admin INTEGER;
    CREATE INDEX tokens_by_end ON tokens (expires_ms) WHERE expires_ms IS NOT NULL;
";

/// The latest audit records.
const AUDIT: &str = "
    CREATE TABLE audit (
        id     INTEGER PRIMARY KEY,
        at_ms  INTEGER NOT NULL,
        user   TEXT NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX audit_by_time ON audit (at_ms);
";

/// Ends are known by keys of their own; a join string is spent on making one known.
const ENROLMENTS: &str = "
    ALTER TABLE tokens ADD COLUMN uses_left INTEGER CHECK (uses_left >= 0);
    CREATE TABLE enrolments (
        id         TEXT PRIMARY KEY,
        kind       TEXT NOT NULL CHECK (kind IN ('agent', 'gateway')),
        name       TEXT NOT NULL,
        key        TEXT NOT NULL UNIQUE,
        old_key    TEXT,
        token      TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        seen_ms    INTEGER NOT NULL,
        key_ms     INTEGER NOT NULL,
        rotate     INTEGER NOT NULL DEFAULT 0,
        revoked_ms INTEGER
    ) STRICT;
    CREATE UNIQUE INDEX enrolments_by_name ON enrolments (kind, name) WHERE revoked_ms IS NULL;
    CREATE INDEX enrolments_by_token ON enrolments (token);
    CREATE INDEX enrolments_by_old_key ON enrolments (old_key) WHERE old_key IS NOT NULL;
";

/// Each grant that is judged asks for the other sign-ins of its user.
const TOKENS_BY_NAME: &str = "
    CREATE INDEX tokens_by_name ON tokens (name) WHERE kind = 'user';
";

/// Gateways that get no legs until someone says otherwise.
const DRAINED_GATEWAYS: &str = "
    CREATE TABLE drained_gateways (name TEXT PRIMARY KEY) STRICT;
";

/// Whether a database is sound, and not newer than this program. Changes nothing that another process using it would
/// notice.
pub(super) fn check(db: &Connection) -> Result<(), Fault> {
    let version = examine(db).map_err(|error| fault(&error))?;
    missing(version).map(|_| ())
}

/// Whether a backup is sound to its last page, and not newer than this program.
pub(super) fn verify(db: &Connection) -> Result<(), Fault> {
    let verdict = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
    let verdict = verdict.map_err(|error| fault(&error))?;
    if verdict != "ok" {
        return Err(Code::DataCorrupt.because(format!("the backup is damaged: {verdict}")));
    }
    missing(version(db).map_err(|error| fault(&error))?).map(|_| ())
}

/// Resources look like something, and agents may be drained.
const POOLS: &str = "
    ALTER TABLE resources ADD COLUMN look TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE agents ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;
";

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
