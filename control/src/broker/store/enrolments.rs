//! Agents and gateways that are known by keys of their own. A name is one enrolment's until that is revoked.
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::Store;
use super::tokens::{Ended, hash, kind, sql_int};
use crate::api::enrol::EnrolmentView;
use crate::api::{TokenKind, TokenView};
use crate::broker::clock;
use crate::broker::store::Owner;
use crate::claims::Claims;
use crate::code::{Code, Fault};

/// Characters of an enrolment's id: 50 random bits. It is no secret.
const ID_CHARS: usize = 10;
/// Good enrolments at once: as many as agents are remembered. Each is some 400 bytes; without a bound, one string for any
/// number of ends could fill the disk.
const ENROLMENTS_MAX: i64 = 32_768;
/// When all places are taken, the end unseen for longest gives its own up, if it was unseen for this long.
const UNSEEN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a revoked enrolment is remembered, to tell its end so.
const REMEMBER: Duration = Duration::from_secs(90 * 24 * 3600);

/// An end, as the broker knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Enrolment {
    pub(crate) id: String,
    pub(crate) kind: TokenKind,
    pub(crate) name: String,
    pub(crate) key: String,
    /// The key before, until the present one was seen.
    pub(crate) old_key: Option<String>,
    /// When the key was made or last replaced, Unix milliseconds.
    pub(crate) key_ms: u64,
    pub(crate) created_ms: u64,
    pub(crate) is_revoked: bool,
    /// It is to bring another key.
    pub(crate) rotate: bool,
}

impl Enrolment {
    /// As other parts know ends: by the enrolment in the place of a token.
    pub(crate) fn owner(&self) -> Owner {
        Owner {
            token: self.id.clone(),
            kind: self.kind,
            name: self.name.clone(),
            admin: false,
            claims: Claims::default(),
            created_ms: self.created_ms,
            expires_ms: None,
        }
    }
}

/// An end that is known from now on, or was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) enrolment: Enrolment,
    /// The join string that it enrolled with.
    pub(crate) join: String,
    /// It spent a use.
    pub(crate) is_new: bool,
}

/// Who wants to enrol.
#[derive(Clone, Debug)]
pub(crate) struct NewEnd {
    /// The join string's token.
    pub(crate) token: String,
    pub(crate) kind: TokenKind,
    pub(crate) name: String,
    pub(crate) key: String,
}

impl Store {
    /// What kind of end may join with this token, used up, expired or not.
    ///
    /// # Errors
    /// [`Code::TokenInvalid`].
    pub(crate) async fn join_kind(&self, token: &str) -> Result<TokenKind, Fault> {
        let hash = hash(token);
        let found = self.read(move |db| {
            let sql = "SELECT kind FROM tokens WHERE hash = ?1";
            db.prepare_cached(sql)?.query_row([hash.as_slice()], |row| kind(row, 0)).optional()
        });
        found.await?.ok_or_else(|| Code::TokenInvalid.into())
    }

    /// Enrols an end and spends one use of its join string, both or neither. The same key with the same string again is the
    /// same enrolment.
    ///
    /// # Errors
    /// [`Code::TokenInvalid`], [`Code::TokenRevoked`], [`Code::JoinUsed`], [`Code::JoinExpired`],
    /// [`Code::AgentNotAllowed`], [`Code::GatewayNotAllowed`], [`Code::AgentNameTaken`], [`Code::GatewayNameTaken`],
    /// [`Code::ProofInvalid`] for a key that is another end's, [`Code::RateLimited`] while there is no room.
    pub(crate) async fn enrol(&self, end: NewEnd) -> Result<Admitted, Fault> {
        let now = clock::unix_ms();
        self.call(move |db| {
            let step = db.transaction()?;
            let enrolled = enrol(&step, &end, now)?;
            step.commit()?;
            Ok(enrolled)
        })
        .await?
    }

    /// The enrolment of this id, revoked or not.
    pub(crate) async fn enrolment(&self, id: &str) -> Result<Option<Enrolment>, Fault> {
        let id = id.to_owned();
        self.read(move |db| find(db, &id)).await
    }

    /// Gives a good enrolment the key `to` if its key is `from`, which stays good until the new one is seen.
    pub(crate) async fn swap_key(&self, id: &str, from: &str, to: &str) -> Result<bool, Fault> {
        let (id, from, to) = (id.to_owned(), from.to_owned(), to.to_owned());
        let now = sql_int(clock::unix_ms());
        self.call(move |db| {
            let sql =
                "UPDATE OR IGNORE enrolments SET old_key = key, key = ?3, key_ms = ?4, rotate = 0
                       WHERE id = ?1 AND key = ?2 AND revoked_ms IS NULL";
            Ok(db.prepare_cached(sql)?.execute(params![id, from, to, now])? > 0)
        })
        .await
    }

    /// The end has signed in with `key`: the one before is good no more.
    pub(crate) async fn key_seen(&self, id: &str, key: &str) -> Result<(), Fault> {
        let (id, key) = (id.to_owned(), key.to_owned());
        self.call(move |db| {
            let sql = "UPDATE enrolments SET old_key = NULL WHERE id = ?1 AND key = ?2";
            db.prepare_cached(sql)?.execute([id, key]).map(drop)
        })
        .await
    }

    /// Notes that a good enrolment is to have another key; `false` if there is none of this id.
    pub(crate) async fn order_rotation(&self, id: &str) -> Result<bool, Fault> {
        let id = id.to_owned();
        self.call(move |db| {
            let sql = "UPDATE enrolments SET rotate = 1 WHERE id = ?1 AND revoked_ms IS NULL";
            Ok(db.prepare_cached(sql)?.execute([id])? > 0)
        })
        .await
    }

    /// Forgets what an agent announced whose enrolment was revoked meanwhile.
    pub(crate) async fn retract(&self, agent: &str) -> Result<(), Fault> {
        let (agent, shelf) = (agent.to_owned(), self.shelf.clone());
        self.call(move |db| {
            let done = retract(db, &agent);
            shelf.all_changed();
            done
        })
        .await
    }

    /// Notes that these are connected, and forgets those that were revoked long ago. To be called now and then.
    pub(crate) async fn keep_enrolments(&self, online: Vec<String>) -> Result<(), Fault> {
        let now = clock::unix_ms();
        self.call(move |db| {
            let step = db.transaction()?;
            for id in online {
                let sql = "UPDATE enrolments SET seen_ms = ?2 WHERE id = ?1";
                step.prepare_cached(sql)?.execute(params![id, sql_int(now)])?;
            }
            let sql = "DELETE FROM enrolments WHERE revoked_ms < ?1";
            step.execute(sql, [sql_int(now.saturating_sub(clock::millis(REMEMBER)))])?;
            step.commit()
        })
        .await
    }
}

fn enrol(
    step: &Transaction<'_>,
    end: &NewEnd,
    now: u64,
) -> rusqlite::Result<Result<Admitted, Fault>> {
    let sql =
        "SELECT id, kind, name, revoked_ms, expires_ms, uses_left FROM tokens WHERE hash = ?1";
    let join = step.query_row(sql, [hash(&end.token).as_slice()], join).optional()?;
    let Some(join) = join.filter(|join| join.kind == end.kind) else {
        return Ok(Err(Code::TokenInvalid.into()));
    };
    if let Some(known) = with_key(step, &end.key)? {
        let same = known.is_of(end) && known.token == join.id;
        return Ok(match known.enrolment {
            it if it.is_revoked => Err(Code::TokenRevoked.into()),
            enrolment if same => Ok(Admitted { enrolment, join: join.id, is_new: false }),
            _ => Err(Code::ProofInvalid.because("this key is that of another end")),
        });
    }
    if let Err(code) = join.admits(&end.name, now) {
        return Ok(Err(code.into()));
    }
    let (kind, name) = (end.kind.as_str(), &end.name);
    let sql = "SELECT 1 FROM enrolments WHERE kind = ?1 AND name = ?2 AND revoked_ms IS NULL";
    if step.prepare_cached(sql)?.exists([kind, name])? {
        return Ok(Err(taken(end)));
    }
    if !make_room(step, now)? {
        return Ok(Err(Code::RateLimited
            .because("as many agents and gateways are enrolled as may be; revoke some")));
    }
    step.execute(
        "UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ?1 AND uses_left > 0",
        [&join.id],
    )?;
    let id = clock::random_name(ID_CHARS);
    step.execute(
        "INSERT INTO enrolments (id, kind, name, key, token, created_ms, seen_ms, key_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?6)",
        params![id, kind, name, end.key, join.id, sql_int(now)],
    )?;
    let enrolment = find(step, &id)?;
    let admitted = enrolment.map(|enrolment| Admitted { enrolment, join: join.id, is_new: true });
    Ok(admitted.ok_or_else(|| Code::Internal.because("an enrolment is not there")))
}

fn taken(end: &NewEnd) -> Fault {
    let code = match end.kind {
        TokenKind::Gateway => Code::GatewayNameTaken,
        TokenKind::Agent | TokenKind::User => Code::AgentNameTaken,
    };
    let (kind, name) = (end.kind.as_str(), &end.name);
    code.because(format!(
        "another {kind} is enrolled as {name}; a name is free once that is revoked"
    ))
}

/// Whether there is a place, perhaps one that is given up for it.
fn make_room(step: &Transaction<'_>, now: u64) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM enrolments WHERE revoked_ms IS NULL";
    let good: i64 = step.query_row(sql, [], |row| row.get(0))?;
    if good < ENROLMENTS_MAX {
        return Ok(true);
    }
    let sql = "DELETE FROM enrolments WHERE id IN (SELECT id FROM enrolments
                   WHERE revoked_ms IS NULL AND seen_ms < ?1 ORDER BY seen_ms LIMIT 1)";
    Ok(step.execute(sql, [sql_int(now.saturating_sub(clock::millis(UNSEEN_MAX)))])? > 0)
}

/// A join string's token.
struct Join {
    id: String,
    kind: TokenKind,
    name: String,
    is_revoked: bool,
    expires_ms: Option<i64>,
    uses_left: Option<i64>,
}

impl Join {
    fn admits(&self, name: &str, now: u64) -> Result<(), Code> {
        if self.is_revoked {
            return Err(Code::TokenRevoked);
        }
        if self.expires_ms.is_some_and(|end| end <= sql_int(now)) {
            return Err(Code::JoinExpired);
        }
        if self.uses_left == Some(0) {
            return Err(Code::JoinUsed);
        }
        match self.kind {
            _ if self.name == "*" || self.name == name => Ok(()),
            TokenKind::Gateway => Err(Code::GatewayNotAllowed),
            TokenKind::Agent => Err(Code::AgentNotAllowed),
            TokenKind::User => Err(Code::TokenInvalid),
        }
    }
}

fn join(row: &Row<'_>) -> rusqlite::Result<Join> {
    Ok(Join {
        id: row.get(0)?,
        kind: kind(row, 1)?,
        name: row.get(2)?,
        is_revoked: row.get::<_, Option<i64>>(3)?.is_some(),
        expires_ms: row.get(4)?,
        uses_left: row.get(5)?,
    })
}

/// An enrolment and the join string that made it.
struct Known {
    enrolment: Enrolment,
    token: String,
}

impl Known {
    fn is_of(&self, end: &NewEnd) -> bool {
        self.enrolment.kind == end.kind && self.enrolment.name == end.name
    }
}

fn with_key(step: &Transaction<'_>, key: &str) -> rusqlite::Result<Option<Known>> {
    let sql = "SELECT id, token FROM enrolments WHERE key = ?1 OR old_key = ?1";
    let mut query = step.prepare_cached(sql)?;
    let found = query.query_row([key], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)));
    let Some((id, token)) = found.optional()? else { return Ok(None) };
    Ok(find(step, &id)?.map(|enrolment| Known { enrolment, token }))
}

pub(super) fn find(db: &Connection, id: &str) -> rusqlite::Result<Option<Enrolment>> {
    let sql = "SELECT id, kind, name, key, old_key, key_ms, created_ms, revoked_ms, rotate
               FROM enrolments WHERE id = ?1";
    let mut query = db.prepare_cached(sql)?;
    let found = query.query_row([id], |row| {
        Ok(Enrolment {
            id: row.get(0)?,
            kind: kind(row, 1)?,
            name: row.get(2)?,
            key: row.get(3)?,
            old_key: row.get(4)?,
            key_ms: row.get::<_, i64>(5)?.cast_unsigned(),
            created_ms: row.get::<_, i64>(6)?.cast_unsigned(),
            is_revoked: row.get::<_, Option<i64>>(7)?.is_some(),
            rotate: row.get(8)?,
        })
    });
    found.optional()
}

/// Revokes the enrolment of this id, and those made with the join string of this id; answers whose.
pub(super) fn revoke(
    step: &Transaction<'_>,
    (id, join): (&str, Option<&str>),
    now: u64,
) -> rusqlite::Result<Vec<Ended>> {
    let sql = "UPDATE enrolments SET revoked_ms = coalesce(revoked_ms, ?3)
               WHERE id = ?1 OR token = ?2 RETURNING id, kind, name";
    let mut query = step.prepare_cached(sql)?;
    let ended =
        |row: &Row<'_>| Ok(Ended { id: row.get(0)?, end: Some((kind(row, 1)?, row.get(2)?)) });
    let ended = query.query_map(params![id, join, sql_int(now)], ended)?;
    let ended: Vec<_> = ended.collect::<rusqlite::Result<_>>()?;
    for (kind, name) in ended.iter().filter_map(|it| it.end.as_ref()) {
        if *kind == TokenKind::Agent {
            retract(step, name)?;
        }
    }
    Ok(ended)
}

/// Forgets what an agent announced that is enrolled no more: policies must allow each way in which a resource is announced.
fn retract(db: &Connection, agent: &str) -> rusqlite::Result<()> {
    let sql = "DELETE FROM resources WHERE agent = ?1 AND NOT EXISTS (
                   SELECT 1 FROM enrolments WHERE kind = 'agent' AND name = ?1 AND revoked_ms IS NULL)";
    db.prepare_cached(sql)?.execute([agent]).map(drop)
}

/// Every enrolment, oldest first.
pub(super) fn list(db: &Connection) -> rusqlite::Result<Vec<TokenView>> {
    let mut query = db.prepare_cached(
        "SELECT id, kind, name, created_ms, revoked_ms, token, seen_ms, key_ms, rotate
         FROM enrolments ORDER BY created_ms, id",
    )?;
    let time = |row: &Row<'_>, column| row.get::<_, i64>(column).map(i64::cast_unsigned);
    let rows = query.query_map([], |row| {
        Ok(TokenView {
            id: row.get(0)?,
            kind: kind(row, 1)?,
            name: row.get(2)?,
            admin: false,
            created_ms: time(row, 3)?,
            revoked_ms: row.get::<_, Option<i64>>(4)?.map(i64::cast_unsigned),
            expires_ms: None,
            uses_left: None,
            enrolment: Some(EnrolmentView {
                join: row.get(5)?,
                seen_ms: time(row, 6)?,
                key_ms: time(row, 7)?,
                rotating: row.get(8)?,
            }),
        })
    })?;
    rows.collect()
}
