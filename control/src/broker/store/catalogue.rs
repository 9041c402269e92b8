//! Everything that agents announced, in memory: the same for all who look, and read again only where it changed.
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, Params, Rows};

use super::directory::{add, facts, kind_of, look_of};
use super::{Store, lock};
use crate::code::Fault;
use crate::policy::{Object, Thing};
use crate::wire::{Look, ResourceKind};

/// Names that are read again one by one; if more have changed, all are read.
const NAMES_MAX: usize = 256;

/// A resource and the agents that announced it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) kind: ResourceKind,
    pub(crate) look: Look,
    pub(crate) agents: Vec<String>,
    /// As policies see it, see [`Standing::announced`](super::Standing::announced).
    pub(crate) announced: Vec<Thing>,
}

/// Every resource, in the order of names.
pub(crate) type Catalogue = Arc<Vec<Arc<Listed>>>;

/// What a user was granted.
#[derive(Debug, Default)]
pub(crate) struct Granted(HashSet<String>);

impl Granted {
    pub(crate) fn covers(&self, resource: &str) -> bool {
        self.0.contains("*") || self.0.contains(resource)
    }
}

/// The catalogue, and what has changed since it was read.
#[derive(Debug)]
pub(super) struct Shelf(Mutex<Shelved>);

#[derive(Debug)]
struct Shelved {
    catalogue: Catalogue,
    /// Names that have changed, each with the number of its last change.
    changed: BTreeMap<String, u64>,
    /// The last change that may concern any name.
    all_changed: Option<u64>,
    changes: u64,
}

impl Default for Shelf {
    fn default() -> Self {
        let (catalogue, changed) = (Catalogue::default(), BTreeMap::new());
        Self(Mutex::new(Shelved { catalogue, changed, all_changed: Some(0), changes: 0 }))
    }
}

impl Shelf {
    /// To be called when a change can be read, and before anybody is told of it.
    pub(super) fn changed(&self, names: impl IntoIterator<Item = String>) {
        let mut shelved = lock(&self.0);
        shelved.changes += 1;
        let change = shelved.changes;
        shelved.changed.extend(names.into_iter().map(|name| (name, change)));
        if shelved.changed.len() > NAMES_MAX {
            shelved.changed.clear();
            shelved.all_changed = Some(change);
        }
    }

    /// As [`Self::changed`], if it is not known which.
    pub(super) fn all_changed(&self) {
        let mut shelved = lock(&self.0);
        shelved.changes += 1;
        shelved.all_changed = Some(shelved.changes);
    }

    /// The catalogue, unless it has to be read.
    fn fresh(&self) -> Option<Catalogue> {
        let shelved = lock(&self.0);
        let is_fresh = shelved.all_changed.is_none() && shelved.changed.is_empty();
        is_fresh.then(|| shelved.catalogue.clone())
    }

    /// Reads what has changed. Nothing was read in this transaction of `db` before: it sees whatever is noted here.
    fn refresh(&self, db: &Connection) -> rusqlite::Result<Catalogue> {
        let (old, changed, all, until) = {
            let shelved = lock(&self.0);
            let changed = shelved.changed.keys().cloned().collect::<Vec<_>>();
            (shelved.catalogue.clone(), changed, shelved.all_changed.is_some(), shelved.changes)
        };
        let catalogue =
            Arc::new(if all { read(db, "", [])? } else { replaced(db, &old, &changed)? });
        let mut shelved = lock(&self.0);
        shelved.catalogue = catalogue.clone();
        // What changed meanwhile is read the next time.
        shelved.changed.retain(|_, change| *change > until);
        shelved.all_changed = shelved.all_changed.filter(|change| *change > until);
        Ok(catalogue)
    }
}

impl Store {
    /// Every resource, and what `user` was granted.
    pub(crate) async fn catalogue(&self, user: &str) -> Result<(Catalogue, Granted), Fault> {
        let (shelf, user) = (self.shelf.clone(), user.to_owned());
        self.read(move |db| {
            let catalogue = match shelf.fresh() {
                Some(catalogue) => catalogue,
                None => shelf.refresh(db)?,
            };
            let mut query = db.prepare_cached("SELECT resource FROM grants WHERE user = ?1")?;
            let granted = query.query_map([user], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok((catalogue, Granted(granted)))
        })
        .await
    }
}

/// With these names (in their order) read again.
fn replaced(
    db: &Connection,
    old: &[Arc<Listed>],
    names: &[String],
) -> rusqlite::Result<Vec<Arc<Listed>>> {
    let mut catalogue = Vec::with_capacity(old.len() + names.len());
    let mut rest = old;
    for name in names {
        let before = rest.partition_point(|listed| listed.name < *name);
        catalogue.extend_from_slice(&rest[..before]);
        rest = &rest[before..];
        if rest.first().is_some_and(|listed| listed.name == *name) {
            rest = &rest[1..];
        }
        catalogue.append(&mut read(db, "WHERE name = ?1", [name])?);
    }
    catalogue.extend_from_slice(rest);
    Ok(catalogue)
}

fn read(db: &Connection, which: &str, of: impl Params) -> rusqlite::Result<Vec<Arc<Listed>>> {
    let sql = format!("SELECT name, agent, kind, look FROM resources {which} ORDER BY name, agent");
    let mut query = db.prepare_cached(&sql)?;
    let listed = listed(query.query(of)?)?;
    Ok(listed.into_iter().map(Arc::new).collect())
}

fn listed(mut rows: Rows<'_>) -> rusqlite::Result<Vec<Listed>> {
    let mut all: Vec<Listed> = Vec::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let kind = kind_of(&row.get::<_, String>(2)?);
        let look = look_of(&row.get::<_, String>(3)?);
        let thing = Thing::from(Object::Resource(facts(&name, kind, &look)));
        if all.last().is_none_or(|last| last.name != name) {
            // Where agents differ, people see what the first in the order of names says.
            let (agents, announced) = (Vec::new(), Vec::new());
            all.push(Listed { name, kind, look, agents, announced });
        }
        if let Some(last) = all.last_mut() {
            last.agents.push(row.get(1)?);
            add(&mut last.announced, thing);
        }
    }
    Ok(all)
}
