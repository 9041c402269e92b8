//! What the database knows of a user who wants something: what policies are asked with.
use rusqlite::{Connection, OptionalExtension, params};

use super::directory::{facts_of, is_granted};
use super::tokens::{good, sql_int};
use super::{Owner, Store};
use crate::api::TokenKind;
use crate::broker::clock;
use crate::broker::seal::Grant;
use crate::code::{Code, Fault};
use crate::policy::{ResourceFacts, Subject};

/// A user, a resource, and whether the one was granted the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) subject: Subject,
    /// The resource as its agents announced it, each way once: policies must allow every one, so that no agent loosens what
    /// holds for another's. None: no agent ever announced such a one.
    pub(crate) announced: Vec<ResourceFacts>,
    pub(crate) granted: bool,
}

/// When a user last signed in with any of their tokens, as `Owner::subject` has it of one.
pub(super) const LAST_SIGN_IN: &str = "
    SELECT max(coalesce(json_extract(claims, '$.auth_time_ms'),
                        CASE WHEN json_extract(claims, '$.issuer') IS NULL THEN created_ms END))
    FROM tokens WHERE kind = 'user' AND name = ?1 AND revoked_ms IS NULL";

impl Standing {
    /// What policies see of the resource, which has this name: of one that is not known, just that.
    pub(crate) fn facts(&self, name: &str) -> Vec<ResourceFacts> {
        or_named(self.announced.clone(), name)
    }
}

fn or_named(mut announced: Vec<ResourceFacts>, name: &str) -> Vec<ResourceFacts> {
    if announced.is_empty() {
        announced.push(ResourceFacts::named(name));
    }
    announced
}

impl Store {
    /// Of the token with this id, about this resource.
    ///
    /// # Errors
    /// [`Code::TokenRevoked`], [`Code::TokenExpired`], [`Code::TokenInvalid`] if it is no user's.
    pub(crate) async fn standing(&self, token: &str, resource: &str) -> Result<Standing, Fault> {
        let (token, resource) = (token.to_owned(), resource.to_owned());
        let found = self.read(move |db| match user_of(db, &token)? {
            Ok(owner) => standing(db, owner.subject(), &resource).map(Ok),
            Err(code) => Ok(Err(code)),
        });
        Ok(found.await??)
    }

    /// As if `user` asked with the youngest of their good tokens; `None` if there is no such user, or none is good.
    pub(crate) async fn standing_of(
        &self,
        user: &str,
        resource: &str,
    ) -> Result<Option<Standing>, Fault> {
        let (user, resource) = (user.to_owned(), resource.to_owned());
        let now = sql_int(clock::unix_ms());
        self.read(move |db| {
            let sql = "SELECT id FROM tokens WHERE kind = 'user' AND name = ?1
                       AND revoked_ms IS NULL AND coalesce(expires_ms > ?2, TRUE)
                       ORDER BY created_ms DESC LIMIT 1";
            let token: Option<String> = db
                .prepare_cached(sql)?
                .query_row(params![user, now], |row| row.get(0))
                .optional()?;
            let Some(token) = token else { return Ok(None) };
            let Ok(owner) = user_of(db, &token)? else { return Ok(None) };
            standing(db, owner.subject(), &resource).map(Some)
        })
        .await
    }

    /// Of grants that ends show or that live: both ends' tokens must still be good. A user counts as signed in when they last
    /// did so with any of their tokens.
    pub(crate) async fn standings(
        &self,
        grants: Vec<Grant>,
    ) -> Result<Vec<(Grant, Result<Standing, Code>)>, Fault> {
        self.read(move |db| {
            let looked_up = grants.into_iter().map(|grant| {
                let found = of_grant(db, &grant)?;
                Ok((grant, found))
            });
            looked_up.collect()
        })
        .await
    }

    /// What policies see of a resource, see [`Standing::announced`]: of one that is not known any more, its name.
    pub(crate) async fn facts(&self, resource: &str) -> Result<Vec<ResourceFacts>, Fault> {
        let name = resource.to_owned();
        let announced = self.read(move |db| facts_of(db, &name)).await?;
        Ok(or_named(announced, resource))
    }
}

fn user_of(db: &Connection, token: &str) -> rusqlite::Result<Result<Owner, Code>> {
    let is_user = |owner: &Owner| owner.kind == TokenKind::User;
    let found = good(db, token)?;
    Ok(found.and_then(|it| if is_user(&it) { Ok(it) } else { Err(Code::TokenInvalid) }))
}

fn standing(db: &Connection, subject: Subject, resource: &str) -> rusqlite::Result<Standing> {
    let granted = is_granted(db, &subject.name, resource)?;
    let announced = facts_of(db, resource)?;
    Ok(Standing { subject, announced, granted })
}

fn of_grant(db: &Connection, grant: &Grant) -> rusqlite::Result<Result<Standing, Code>> {
    let owner = match user_of(db, &grant.token)? {
        Ok(owner) => owner,
        Err(code) => return Ok(Err(code)),
    };
    if let Err(code) = good(db, &grant.agent_token)? {
        return Ok(Err(code));
    }
    let mut subject = owner.subject();
    let youngest: Option<i64> =
        db.prepare_cached(LAST_SIGN_IN)?.query_row(params![subject.name], |row| row.get(0))?;
    subject.signed_in_ms = youngest.map(i64::cast_unsigned).max(subject.signed_in_ms);
    standing(db, subject, &grant.resource).map(Ok)
}
