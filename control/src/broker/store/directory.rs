//! What agents offer, and who may use it.
use std::collections::BTreeMap;

use rusqlite::{Connection, Transaction, params};

use super::Store;
use super::tokens::sql_int;
use crate::api::GrantView;
use crate::broker::clock;
use crate::broker::seal::Grant;
use crate::code::{Code, Fault};
use crate::wire::{Resource, ResourceKind};

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
    /// Keeps what an agent announced, in place of what it announced before.
    pub(crate) async fn announce(&self, agent: AgentRecord) -> Result<(), Fault> {
        let now = sql_int(clock::unix_ms());
        self.call(move |db| {
            let step = db.transaction()?;
            step.execute(
                "INSERT INTO agents (name, key, version, seen_ms) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET
                     key = excluded.key, version = excluded.version, seen_ms = excluded.seen_ms",
                params![agent.name, agent.key, agent.version, now],
            )?;
            step.execute("DELETE FROM resources WHERE agent = ?1", [&agent.name])?;
            for Resource { name, kind, target } in &agent.resources {
                let ResourceKind::Tcp = kind;
                step.execute(
                    "INSERT INTO resources (agent, name, kind, target) VALUES (?1, ?2, 'tcp', ?3)
                     ON CONFLICT DO NOTHING",
                    params![agent.name, name, target],
                )?;
            }
            step.commit()
        })
        .await
    }

    /// Resources that `user` may use, or all of them.
    pub(crate) async fn resources(&self, user: Option<String>) -> Result<Vec<Listed>, Fault> {
        self.call(move |db| {
            let mut query = db.prepare_cached(
                "SELECT name, agent FROM resources WHERE ?1 IS NULL
                 OR EXISTS (SELECT 1 FROM grants WHERE user = ?1 AND resource IN (name, '*'))
                 ORDER BY name, agent",
            )?;
            let mut listed: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let mut rows = query.query([user])?;
            while let Some(row) = rows.next()? {
                listed.entry(row.get(0)?).or_default().push(row.get(1)?);
            }
            let kind = ResourceKind::Tcp;
            Ok(listed.into_iter().map(|(name, agents)| Listed { name, kind, agents }).collect())
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
