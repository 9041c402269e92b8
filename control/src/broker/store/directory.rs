//! What agents offer, and who may use it.
use std::collections::BTreeSet;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::Store;
use super::tokens::sql_int;
use crate::api::GrantView;
use crate::broker::clock;
use crate::code::{Code, Fault};
use crate::policy::ResourceFacts;
use crate::wire::{Look, Resource, ResourceKind};

/// What an agent offered is forgotten once it was not connected for this long: longer than any holiday of a machine that is
/// coming back.
const UNUSED_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Agents remembered, online or not. With a few resources each they take some 50 MiB; without a bound, one join string
/// for any number of agents could fill the disk.
const AGENTS_MAX: i64 = 32_768;
/// Ways in which agents may announce one resource. The agents of a pool agree, but for those that were not updated yet; each
/// way costs every decision about the resource a judgement of its own.
pub(crate) const ANNOUNCED_MAX: usize = 16;

/// An agent as it announced itself.
#[derive(Clone, Debug)]
pub(crate) struct AgentRecord {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) version: String,
    pub(crate) resources: Vec<Resource>,
}

/// An agent that has announced itself at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownAgent {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) seen_ms: u64,
    pub(crate) draining: bool,
}

impl Store {
    /// Keeps what an agent announced, in place of what it announced before. That its name is its own is known by its
    /// enrolment.
    ///
    /// # Errors
    /// [`Code::RateLimited`] while there are 32,768 other agents. Then nothing changes.
    pub(crate) async fn announce(&self, agent: AgentRecord) -> Result<(), Fault> {
        let now = clock::unix_ms();
        let shelf = self.shelf.clone();
        let announced = self.call(move |db| {
            let announced = announce(db, &agent, now);
            match &announced {
                Ok(Some(changed)) => shelf.changed(changed.iter().cloned()),
                Ok(None) => {}
                // Who knows what is in the file by now.
                Err(_) => shelf.all_changed(),
            }
            announced
        });
        if announced.await?.is_some() {
            Ok(())
        } else {
            Err(Code::RateLimited
                .because("the broker remembers as many agents as it may; one goes after 30 days"))
        }
    }

    /// Every agent that is remembered.
    pub(crate) async fn agents(&self) -> Result<Vec<KnownAgent>, Fault> {
        self.read(|db| {
            let sql = "SELECT name, version, seen_ms, draining FROM agents ORDER BY name";
            let mut query = db.prepare_cached(sql)?;
            let rows = query.query_map([], |row| {
                Ok(KnownAgent {
                    name: row.get(0)?,
                    version: row.get(1)?,
                    seen_ms: row.get::<_, i64>(2)?.cast_unsigned(),
                    draining: row.get(3)?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Whether the agent of this name is to get no new sessions.
    pub(crate) async fn is_draining(&self, agent: &str) -> Result<bool, Fault> {
        let agent = agent.to_owned();
        self.read(move |db| {
            let sql = "SELECT 1 FROM agents WHERE name = ?1 AND draining";
            db.prepare_cached(sql)?.exists([agent])
        })
        .await
    }

    /// Has an agent get no new sessions, or some again; `false` if there is no such agent.
    pub(crate) async fn drain(&self, agent: &str, draining: bool) -> Result<bool, Fault> {
        let agent = agent.to_owned();
        self.call(move |db| {
            let sql = "UPDATE agents SET draining = ?2 WHERE name = ?1";
            Ok(db.prepare_cached(sql)?.execute(params![agent, draining])? > 0)
        })
        .await
    }

    /// Notes that the agents `online` are in use, and forgets those that were not for 30 days. To be called now and then.
    pub(crate) async fn keep_agents(&self, online: Vec<String>) -> Result<(), Fault> {
        let now = clock::unix_ms();
        let shelf = self.shelf.clone();
        self.call(move |db| {
            let step = db.transaction()?;
            for name in online {
                let sql = "UPDATE agents SET seen_ms = ?2 WHERE name = ?1";
                step.prepare_cached(sql)?.execute(params![name, sql_int(now)])?;
            }
            // Their resources go with them.
            let sql = "DELETE FROM agents WHERE seen_ms < ?1";
            let gone = step.execute(sql, [unused_since(now)])?;
            let kept = step.commit();
            if gone > 0 {
                shelf.all_changed();
            }
            kept
        })
        .await
    }

    pub(crate) async fn grants(&self) -> Result<Vec<GrantView>, Fault> {
        self.read(|db| {
            let sql = "SELECT user, resource FROM grants ORDER BY user, resource";
            let mut query = db.prepare_cached(sql)?;
            let rows = query
                .query_map([], |row| Ok(GrantView { user: row.get(0)?, resource: row.get(1)? }))?;
            rows.collect()
        })
        .await
    }

    /// Grants; `false` if there is no such user.
    pub(crate) async fn grant(&self, grant: GrantView) -> Result<bool, Fault> {
        self.call(move |db| {
            let step = db.transaction()?;
            let known = step
                .prepare_cached("SELECT 1 FROM users WHERE name = ?1")?
                .exists([&grant.user])?;
            if known {
                insert_grant(&step, &grant.user, &grant.resource)?;
            }
            step.commit()?;
            Ok(known)
        })
        .await
    }

    /// Takes a grant back and answers what the user keeps; `None` if there was no such grant.
    pub(crate) async fn ungrant(&self, grant: GrantView) -> Result<Option<Vec<String>>, Fault> {
        self.call(move |db| {
            let step = db.transaction()?;
            let sql = "DELETE FROM grants WHERE user = ?1 AND resource = ?2";
            if step.execute(sql, params![grant.user, grant.resource])? == 0 {
                return Ok(None);
            }
            let kept = step
                .prepare_cached("SELECT resource FROM grants WHERE user = ?1")?
                .query_map([&grant.user], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            step.commit()?;
            Ok(Some(kept))
        })
        .await
    }
}

/// The names of resources that changed by it; `None` if there is no room for it.
fn announce(
    db: &mut Connection,
    agent: &AgentRecord,
    now: u64,
) -> rusqlite::Result<Option<BTreeSet<String>>> {
    let step = db.transaction()?;
    let known = step
        .prepare_cached("SELECT key, version FROM agents WHERE name = ?1")?
        .query_row([&agent.name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if known.is_none() {
        let agents: i64 = step.query_row("SELECT count(*) FROM agents", [], |row| row.get(0))?;
        if agents >= AGENTS_MAX {
            return Ok(None);
        }
    }
    step.prepare_cached(
        "INSERT INTO agents (name, key, version, seen_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name) DO UPDATE SET
             key = excluded.key, version = excluded.version, seen_ms = excluded.seen_ms",
    )?
    .execute(params![agent.name, agent.key, agent.version, sql_int(now)])?;
    let before = offered(&step, &agent.name)?;
    step.prepare_cached("DELETE FROM resources WHERE agent = ?1")?.execute([&agent.name])?;
    for Resource { name, kind, target, look, .. } in &agent.resources {
        let look = serde_json::to_string(look).unwrap_or_else(|_| "{}".into());
        step.prepare_cached(
            "INSERT INTO resources (agent, name, kind, target, look) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![agent.name, name, kind.as_str(), target, look])?;
    }
    let after = offered(&step, &agent.name)?;
    // An agent that comes back as it was changes nothing, and waits for no disk: after a restart of the broker they all do. That
    // it was seen is noted by `keep_agents`.
    if before != after || known != Some((agent.key.clone(), agent.version.clone())) {
        step.commit()?;
    }
    let changed = before.symmetric_difference(&after).map(|(name, ..)| name.clone());
    Ok(Some(changed.collect()))
}

/// Name, kind, look and target of what an agent offers.
fn offered(
    step: &Transaction<'_>,
    agent: &str,
) -> rusqlite::Result<BTreeSet<(String, String, String, String)>> {
    let sql = "SELECT name, kind, look, target FROM resources WHERE agent = ?1";
    let mut query = step.prepare_cached(sql)?;
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    query.query_map([agent], row)?.collect()
}

/// What policies see of a resource, as each of its agents announced it; nothing: none ever announced such a one.
pub(super) fn facts_of(db: &Connection, name: &str) -> rusqlite::Result<Vec<ResourceFacts>> {
    let sql = "SELECT kind, look FROM resources WHERE name = ?1
               GROUP BY kind, look ORDER BY min(agent)";
    let mut query = db.prepare_cached(sql)?;
    let mut rows = query.query([name])?;
    let mut announced = Vec::new();
    while let Some(row) = rows.next()? {
        let kind = kind_of(&row.get::<_, String>(0)?);
        let look = look_of(&row.get::<_, String>(1)?);
        add(&mut announced, facts(name, kind, &look));
    }
    Ok(announced)
}

/// Keeps each way once, and one more than there may be, so that those are seen to be too many.
pub(super) fn add<T: PartialEq>(announced: &mut Vec<T>, facts: T) {
    if announced.len() <= ANNOUNCED_MAX && !announced.contains(&facts) {
        announced.push(facts);
    }
}

pub(super) fn facts(name: &str, kind: ResourceKind, look: &Look) -> ResourceFacts {
    ResourceFacts {
        name: name.to_owned(),
        kind: kind.as_str().to_owned(),
        tags: look.tags.clone(),
        folder: look.folder.clone().unwrap_or_default(),
    }
}

pub(super) fn kind_of(text: &str) -> ResourceKind {
    if text == ResourceKind::Udp.as_str() { ResourceKind::Udp } else { ResourceKind::Tcp }
}

/// This program wrote it. One that cannot be read is none, and policies then see a resource without tags.
pub(super) fn look_of(text: &str) -> Look {
    serde_json::from_str(text).unwrap_or_default()
}

/// Agents last seen before this, in Unix milliseconds, are not in use.
fn unused_since(now: u64) -> i64 {
    sql_int(now.saturating_sub(clock::millis(UNUSED_MAX)))
}

pub(super) fn insert_grant(
    step: &Transaction<'_>,
    user: &str,
    resource: &str,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO grants (user, resource) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    step.execute(sql, params![user, resource]).map(drop)
}

pub(super) fn is_granted(db: &Connection, user: &str, resource: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM grants WHERE user = ?1 AND resource IN (?2, '*')";
    db.prepare_cached(sql)?.exists([user, resource])
}
