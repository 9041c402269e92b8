//! What agents offer, and who may use it.
use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::Store;
use super::tokens::sql_int;
use crate::api::GrantView;
use crate::broker::clock;
use crate::broker::seal::Grant;
use crate::code::{Code, Fault};
use crate::wire::{Resource, ResourceKind};

/// An agent's name is free for another key, and what it offered is forgotten, once it was not connected for this long:
/// longer than any holiday of a machine that is coming back, and short enough for a key that was lost.
const UNUSED_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Agents remembered, online or not: as many as may share one join string. With 100 resources each, all of
/// them take some 50 MiB; without a bound, one join string could fill the disk.
const AGENTS_MAX: i64 = 4096;

/// Whether a user may use a resource, and whether there is such a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) granted: bool,
    pub(crate) exists: bool,
}

/// An agent as it announced itself.
#[derive(Clone, Debug)]
pub(crate) struct AgentRecord {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) version: String,
    pub(crate) resources: Vec<Resource>,
}

/// A resource and the agents that announced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) kind: ResourceKind,
    pub(crate) agents: Vec<String>,
}

impl Store {
    /// Keeps what an agent announced, in place of what it announced before. Its name belongs to the key that first
    /// announced it, whether that agent is connected or not, until it was not seen for 30 days.
    ///
    /// # Errors
    /// [`Code::AgentNameTaken`]; [`Code::RateLimited`] while there are 4,096 other agents. Then nothing changes.
    pub(crate) async fn announce(&self, agent: AgentRecord) -> Result<(), Fault> {
        let now = clock::unix_ms();
        let name = agent.name.clone();
        let room = self.call(move |db| announce(db, &agent, now)).await?;
        match room {
            Room::Made => Ok(()),
            Room::NameTaken => Err(Code::AgentNameTaken.because(format!(
                "the name {name} belongs to the key of another agent; pass another --name, or wait until that \
                 agent was not connected for 30 days"
            ))),
            Room::Full => Err(Code::RateLimited
                .because("the broker remembers as many agents as it may; one goes after 30 days")),
        }
    }

    /// Notes that the agents `online` are in use, and forgets those that were not for 30 days. To be called now and then.
    pub(crate) async fn keep_agents(&self, online: Vec<String>) -> Result<(), Fault> {
        let now = clock::unix_ms();
        self.call(move |db| {
            let step = db.transaction()?;
            for name in online {
                let sql = "UPDATE agents SET seen_ms = ?2 WHERE name = ?1";
                step.prepare_cached(sql)?.execute(params![name, sql_int(now)])?;
            }
            // Their resources go with them.
            step.execute("DELETE FROM agents WHERE seen_ms < ?1", [unused_since(now)])?;
            step.commit()
        })
        .await
    }

    /// Resources that `user` may use, or all of them.
    pub(crate) async fn resources(&self, user: Option<String>) -> Result<Vec<Listed>, Fault> {
        self.call(move |db| {
            let mut query = db.prepare_cached(
                "SELECT name, agent, kind FROM resources WHERE ?1 IS NULL
                 OR EXISTS (SELECT 1 FROM grants WHERE user = ?1 AND resource IN (name, '*'))
                 ORDER BY name, agent",
            )?;
            let mut listed: BTreeMap<String, Listed> = BTreeMap::new();
            let mut rows = query.query([user])?;
            while let Some(row) = rows.next()? {
                let name: String = row.get(0)?;
                // Where agents differ, the first in the order of names says what it is.
                let entry = listed.entry(name.clone()).or_insert(Listed {
                    kind: kind_of(&row.get::<_, String>(2)?),
                    name,
                    agents: Vec::new(),
                });
                entry.agents.push(row.get(1)?);
            }
            Ok(listed.into_values().collect())
        })
        .await
    }

    pub(crate) async fn access(&self, user: &str, resource: &str) -> Result<Access, Fault> {
        let (user, resource) = (user.to_owned(), resource.to_owned());
        self.call(move |db| {
            let exists = "SELECT 1 FROM resources WHERE name = ?1";
            let exists = db.prepare_cached(exists)?.exists([&resource])?;
            Ok(Access { granted: is_granted(db, &user, &resource)?, exists })
        })
        .await
    }

    /// Judges grants that ends show: both ends' tokens must still be good, and the user must still be allowed.
    pub(crate) async fn judge(
        &self,
        grants: Vec<Grant>,
    ) -> Result<Vec<(Grant, Result<(), Code>)>, Fault> {
        self.call(move |db| {
            let judged = grants.into_iter().map(|grant| {
                let verdict = judge(db, &grant)?;
                Ok((grant, verdict))
            });
            judged.collect()
        })
        .await
    }

    pub(crate) async fn grants(&self) -> Result<Vec<GrantView>, Fault> {
        self.call(|db| {
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

/// Whether there is room for an agent's announcement.
enum Room {
    Made,
    NameTaken,
    Full,
}

fn announce(db: &mut Connection, agent: &AgentRecord, now: u64) -> rusqlite::Result<Room> {
    let step = db.transaction()?;
    let sql = "SELECT key, seen_ms FROM agents WHERE name = ?1";
    let known = step
        .query_row(sql, [&agent.name], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    match known {
        Some((key, seen_ms)) if key != agent.key && seen_ms >= unused_since(now) => {
            return Ok(Room::NameTaken);
        }
        Some(_) => {}
        None => {
            let agents: i64 =
                step.query_row("SELECT count(*) FROM agents", [], |row| row.get(0))?;
            if agents >= AGENTS_MAX {
                return Ok(Room::Full);
            }
        }
    }
    step.execute(
        "INSERT INTO agents (name, key, version, seen_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name) DO UPDATE SET
             key = excluded.key, version = excluded.version, seen_ms = excluded.seen_ms",
        params![agent.name, agent.key, agent.version, sql_int(now)],
    )?;
    step.execute("DELETE FROM resources WHERE agent = ?1", [&agent.name])?;
    for Resource { name, kind, target, .. } in &agent.resources {
        step.execute(
            "INSERT INTO resources (agent, name, kind, target) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO NOTHING",
            params![agent.name, name, kind.as_str(), target],
        )?;
    }
    step.commit()?;
    Ok(Room::Made)
}

fn kind_of(text: &str) -> ResourceKind {
    if text == ResourceKind::Udp.as_str() { ResourceKind::Udp } else { ResourceKind::Tcp }
}

/// Agents last seen before this, in Unix milliseconds, are not in use.
fn unused_since(now: u64) -> i64 {
    let unused = u64::try_from(UNUSED_MAX.as_millis()).unwrap_or(u64::MAX);
    sql_int(now.saturating_sub(unused))
}

pub(super) fn insert_grant(
    step: &Transaction<'_>,
    user: &str,
    resource: &str,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO grants (user, resource) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    step.execute(sql, params![user, resource]).map(drop)
}

fn is_granted(db: &Connection, user: &str, resource: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM grants WHERE user = ?1 AND resource IN (?2, '*')";
    db.prepare_cached(sql)?.exists([user, resource])
}

fn judge(db: &Connection, grant: &Grant) -> rusqlite::Result<Result<(), Code>> {
    let sql = "SELECT 1 FROM tokens WHERE id = ?1 AND revoked_ms IS NULL";
    for token in [&grant.token, &grant.agent_token] {
        if !db.prepare_cached(sql)?.exists([token])? {
            return Ok(Err(Code::TokenRevoked));
        }
    }
    let granted = is_granted(db, &grant.user, &grant.resource)?;
    Ok(if granted { Ok(()) } else { Err(Code::ResourceNotGranted) })
}
