//! Audit records in the database: the latest, for questions; the files hold the same and more.
use std::time::Duration;

use rusqlite::{Connection, params};

use super::Store;
use super::tokens::sql_int;
use crate::api::AuditRecord;
use crate::broker::clock;
use crate::code::Fault;

/// Records kept, about 400 bytes each.
const RECORDS_MAX: i64 = 100_000;
/// Records are kept for a quarter of a year.
const AGE_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

/// Which records are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditQuery {
    /// Not before this, Unix milliseconds.
    pub(crate) since_ms: u64,
    pub(crate) user: Option<String>,
    /// The latest so many.
    pub(crate) limit: u32,
}

impl Store {
    /// Adds records, and forgets old ones.
    ///
    /// They are not synced to the disk by themselves: the next durable write does that, at the latest when the write-ahead log
    /// is folded in. Waiting for the disk here would hold up everybody who asks the database, session starts above all.
    pub(crate) async fn add_audit(&self, records: Vec<AuditRecord>) -> Result<(), Fault> {
        let now = clock::unix_ms();
        self.call(move |db| {
            db.execute_batch("PRAGMA synchronous = NORMAL")?;
            let added = add(db, &records, now);
            db.execute_batch("PRAGMA synchronous = FULL")?;
            added
        })
        .await
    }

    /// The latest records that match, oldest first.
    pub(crate) async fn audit(&self, query: AuditQuery) -> Result<Vec<AuditRecord>, Fault> {
        self.read(move |db| {
            let sql = "SELECT record FROM audit WHERE at_ms >= ?1 AND (?2 IS NULL OR user = ?2)
                       ORDER BY id DESC LIMIT ?3";
            let since = sql_int(query.since_ms);
            let mut found = db.prepare_cached(sql)?;
            let rows = found.query_map(params![since, query.user, query.limit], |row| {
                row.get::<_, String>(0)
            })?;
            let texts = rows.collect::<Result<Vec<_>, _>>()?;
            let read = texts.iter().rev().filter_map(|text| serde_json::from_str(text).ok());
            Ok(read.collect())
        })
        .await
    }
}

fn add(db: &mut Connection, records: &[AuditRecord], now: u64) -> rusqlite::Result<()> {
    let step = db.transaction()?;
    for record in records {
        let text = serde_json::to_string(record).unwrap_or_default();
        let sql = "INSERT INTO audit (at_ms, user, record) VALUES (?1, ?2, ?3)";
        let at = sql_int(record.at_ms);
        step.prepare_cached(sql)?.execute(params![at, record.user, text])?;
    }
    step.execute("DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1", [RECORDS_MAX])?;
    step.execute(
        "DELETE FROM audit WHERE at_ms < ?1",
        [sql_int(now.saturating_sub(clock::millis(AGE_MAX)))],
    )?;
    step.commit()
}
