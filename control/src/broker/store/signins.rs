//! Sign-ins of users whom a provider vouches for: made, renewed, and found when they end.
use rusqlite::{OptionalExtension, Transaction, params};

use super::Store;
use super::tokens::{Issued, NewSubject, issue, sql_int};
use crate::api::TokenKind;
use crate::broker::clock;
use crate::claims::Claims;
use crate::code::{Code, Fault};

/// Sign-ins of one user that are kept: more than the machines and jobs that one user has, and few enough that an ID token
/// posted over and over does not fill the disk. One takes as much as the token's claims, 32 KiB at most.
pub(super) const SIGN_INS_MAX: u32 = 64;

/// Who signs in, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) user: String,
    /// Who it is at the provider, for ever.
    pub(crate) subject: String,
    /// As the provider's groups say; `None`: as the users table says.
    pub(crate) admin: Option<bool>,
    /// With the issuer.
    pub(crate) claims: Claims,
    pub(crate) expires_ms: u64,
    /// A name that another account has is taken over.
    pub(crate) link: bool,
}

/// A sign-in just made, and those that made room for it.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    pub(crate) issued: Issued,
    /// Their tokens, which are good no more; none of these was revoked before.
    pub(crate) displaced: Vec<Displaced>,
}

/// A sign-in that made room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Displaced {
    pub(crate) token: String,
    /// It had ended by itself.
    pub(crate) was_over: bool,
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// The same token lasts longer.
    Same,
    /// And what is known of its user has changed.
    Changed,
    /// It is over, or of somebody else.
    Not,
}

impl Store {
    /// Makes a token for this user, who is made if need be and granted nothing. Of the user's other sign-ins those go that
    /// began or were renewed longest ago, if they are too many.
    ///
    /// # Errors
    /// [`Code::UserNameTaken`].
    pub(crate) async fn sign_in(&self, person: Person) -> Result<Begun, Fault> {
        let user = person.user.clone();
        let begun = self
            .call(move |db| {
                let step = db.transaction()?;
                if !person.link && is_taken(&step, &person)? {
                    return Ok(None);
                }
                let issued = issue(&step, &subject(&person))?;
                step.execute(
                    "UPDATE users SET issuer = ?2, subject = ?3 WHERE name = ?1",
                    params![person.user, person.claims.issuer, person.subject],
                )?;
                let sql = "UPDATE tokens SET admin = ?2 WHERE id = ?1";
                step.execute(sql, params![issued.id, person.admin])?;
                let displaced = make_room(&step, &person.user, &issued.id)?;
                step.commit()?;
                Ok(Some(Begun { issued, displaced }))
            })
            .await?;
        begun.ok_or_else(|| {
            Code::UserNameTaken.because(format!("{user} is another account's name here"))
        })
    }

    /// Lets a sign-in of the same user last longer. One that is over stays over. Unless the provider says when the user
    /// proved who they are, that is as long ago as before (OpenID Connect Core 1.0 section 12.2).
    pub(crate) async fn renew(&self, token: &str, mut person: Person) -> Result<Renewed, Fault> {
        let token = token.to_owned();
        let now = sql_int(clock::unix_ms());
        self.call(move |db| {
            let step = db.transaction()?;
            let sql =
                "SELECT claims, tokens.admin FROM tokens JOIN users ON users.name = tokens.name
                       WHERE id = ?1 AND kind = 'user' AND revoked_ms IS NULL AND expires_ms > ?2
                       AND tokens.name = ?3 AND issuer = ?4 AND subject = ?5";
            let (name, issuer) = (&person.user, &person.claims.issuer);
            let known = step
                .prepare_cached(sql)?
                .query_row(params![token, now, name, issuer, person.subject], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, Option<bool>>(1)?))
                });
            let Some((claims, admin)) = known.optional()? else { return Ok(Renewed::Not) };
            if person.claims.auth_time_ms.is_none() {
                let before: Claims = serde_json::from_str(&claims).unwrap_or_default();
                person.claims.auth_time_ms = before.auth_time_ms;
            }
            let text = serde_json::to_string(&person.claims).unwrap_or_else(|_| "{}".into());
            let sql = "UPDATE tokens SET claims = ?2, admin = ?3, expires_ms = ?4 WHERE id = ?1";
            let end = sql_int(person.expires_ms);
            step.execute(sql, params![token, text, person.admin, end])?;
            step.commit()?;
            let same = claims == text && admin == person.admin;
            Ok(if same { Renewed::Same } else { Renewed::Changed })
        })
        .await
    }

    /// When the next sign-in after `after_ms` ends.
    pub(crate) async fn next_end(&self, after_ms: u64) -> Result<Option<u64>, Fault> {
        self.read(move |db| {
            let sql = "SELECT min(expires_ms) FROM tokens WHERE expires_ms > ?1";
            let next = db.prepare_cached(sql)?.query_row([sql_int(after_ms)], |row| row.get(0))?;
            Ok(Option::<i64>::map(next, i64::cast_unsigned))
        })
        .await
    }

    /// The tokens that ended after `from_ms`, by `to_ms`.
    pub(crate) async fn ended(&self, from_ms: u64, to_ms: u64) -> Result<Vec<String>, Fault> {
        self.read(move |db| {
            let sql = "SELECT id FROM tokens WHERE expires_ms > ?1 AND expires_ms <= ?2";
            let mut query = db.prepare_cached(sql)?;
            query.query_map([sql_int(from_ms), sql_int(to_ms)], |row| row.get(0))?.collect()
        })
        .await
    }

    /// Forgets tokens that ended before this time.
    pub(crate) async fn forget_ended(&self, before_ms: u64) -> Result<usize, Fault> {
        self.call(move |db| {
            let sql = "DELETE FROM tokens WHERE expires_ms < ?1";
            db.prepare_cached(sql)?.execute([sql_int(before_ms)])
        })
        .await
    }
}

/// Forgets the sign-ins of a user that are too many beside the one with the id `newest`: revoked ones first, then by their
/// ends, which a renewal moves. Login strings stay.
fn make_room(step: &Transaction<'_>, user: &str, newest: &str) -> rusqlite::Result<Vec<Displaced>> {
    let sql = "DELETE FROM tokens WHERE id IN (
                   SELECT id FROM tokens
                   WHERE kind = 'user' AND name = ?1 AND expires_ms IS NOT NULL AND id <> ?2
                   ORDER BY revoked_ms IS NULL DESC, expires_ms DESC, rowid DESC
                   LIMIT -1 OFFSET ?3)
               RETURNING id, expires_ms <= ?4, revoked_ms IS NOT NULL";
    let now = sql_int(clock::unix_ms());
    let mut query = step.prepare_cached(sql)?;
    let rows = query.query_map(params![user, newest, SIGN_INS_MAX - 1, now], |row| {
        let displaced = Displaced { token: row.get(0)?, was_over: row.get(1)? };
        Ok((displaced, row.get::<_, bool>(2)?))
    })?;
    let gone: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
    Ok(gone.into_iter().filter(|(_, revoked)| !revoked).map(|(displaced, _)| displaced).collect())
}

/// Whether this user is somebody else: made here, of another provider, or another account of the same one, as when a mail
/// address is given to a new colleague.
fn is_taken(step: &Transaction<'_>, person: &Person) -> rusqlite::Result<bool> {
    let sql = "SELECT coalesce(issuer = ?2 AND subject = ?3, FALSE) FROM users WHERE name = ?1";
    let issuer = &person.claims.issuer;
    let same = step
        .prepare_cached(sql)?
        .query_row(params![person.user, issuer, person.subject], |row| row.get::<_, bool>(0));
    Ok(same.optional()? == Some(false))
}

fn subject(person: &Person) -> NewSubject {
    NewSubject {
        kind: TokenKind::User,
        name: person.user.clone(),
        admin: false,
        grants: Vec::new(),
        claims: person.claims.clone(),
        expires_ms: Some(person.expires_ms),
        uses: None,
    }
}
