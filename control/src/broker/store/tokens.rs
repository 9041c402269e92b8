//! Who holds which token. Only a token's SHA-256 is stored: 256 random bits need no slow hash.
use aws_lc_rs::digest;
use data_encoding::BASE64URL_NOPAD;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, Transaction, params};

use super::{Store, enrolments};
use crate::api::{TokenKind, TokenView};
use crate::broker::clock;
use crate::claims::Claims;
use crate::code::{Code, Fault};
use crate::secret::Secret;

/// Characters of a token's public id: 50 random bits.
const ID_CHARS: usize = 10;
/// Characters of a token: 32 bytes in base64url.
const TOKEN_CHARS: usize = 43;

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The token's public id; an agent's or a gateway's is its enrolment's.
    pub(crate) token: String,
    pub(crate) kind: TokenKind,
    /// User name, or the name of the agent or gateway.
    pub(crate) name: String,
    pub(crate) admin: bool,
    /// How the user signed in.
    pub(crate) claims: Claims,
    /// When the token was made, Unix milliseconds.
    pub(crate) created_ms: u64,
    /// When the token ends, Unix milliseconds; `None`: never.
    pub(crate) expires_ms: Option<u64>,
}

impl Owner {
    /// Whether the token has ended by itself.
    fn is_over(&self) -> bool {
        self.expires_ms.is_some_and(|end| end <= clock::unix_ms())
    }
}

/// A token just made; its text is nowhere else.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) id: String,
    pub(crate) token: Secret,
}

/// Who a new token is for.
#[derive(Clone, Debug)]
pub(crate) struct NewSubject {
    pub(crate) kind: TokenKind,
    pub(crate) name: String,
    pub(crate) admin: bool,
    pub(crate) grants: Vec<String>,
    /// How the user signed in; kept with the token.
    pub(crate) claims: Claims,
    /// When the token ends, Unix milliseconds; `None`: never.
    pub(crate) expires_ms: Option<u64>,
    /// How many ends may enrol with it; `None`: any number.
    pub(crate) uses: Option<u32>,
}

/// What became of a wish to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    /// These are good no more.
    Done(Vec<Ended>),
    Unknown,
    /// It is the last good token of an administrator that does not end by itself: without it nobody could issue another.
    LastAdmin,
}

/// A token or an enrolment that was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) id: String,
    /// Whose enrolment it was: kind and name.
    pub(crate) end: Option<(TokenKind, String)>,
}

impl Store {
    /// The owner of a good token.
    ///
    /// The lookup is by hash, so its time tells nothing about how much of a guess is right.
    ///
    /// # Errors
    /// [`Code::TokenInvalid`], [`Code::TokenRevoked`], [`Code::TokenExpired`].
    pub(crate) async fn owner(&self, token: &str) -> Result<Owner, Fault> {
        if token.len() != TOKEN_CHARS {
            return Err(Code::TokenInvalid.into());
        }
        let hash = hash(token);
        let found = self.read(move |db| find(db, "hash", &hash.as_slice())).await?;
        match found {
            None => Err(Code::TokenInvalid.into()),
            Some((_, Some(_))) => Err(Code::TokenRevoked.into()),
            Some((owner, None)) if owner.is_over() => Err(Code::TokenExpired.into()),
            Some((owner, None)) => Ok(owner),
        }
    }

    /// Whether the token of this id is still good.
    pub(crate) async fn is_good(&self, id: &str) -> Result<bool, Fault> {
        Ok(self.owner_again(id).await?.is_some())
    }

    /// What is known by now of the owner of the token with this id; `None` once the token is not good.
    pub(crate) async fn owner_again(&self, id: &str) -> Result<Option<Owner>, Fault> {
        let id = id.to_owned();
        self.read(move |db| Ok(good(db, &id)?.ok())).await
    }

    /// Makes a token, and its user with the grants if need be.
    pub(crate) async fn issue(&self, subject: NewSubject) -> Result<Issued, Fault> {
        self.call(move |db| {
            let step = db.transaction()?;
            let issued = issue(&step, &subject)?;
            step.commit()?;
            Ok(issued)
        })
        .await
    }

    /// Issues one token to each subject if the database is new, else none: a crash between two leaves none.
    pub(crate) async fn issue_first(
        &self,
        subjects: Vec<NewSubject>,
    ) -> Result<Option<Vec<Issued>>, Fault> {
        self.call(move |db| {
            let step = db.transaction()?;
            let known: i64 = step.query_row("SELECT count(*) FROM users", [], |row| row.get(0))?;
            if known > 0 {
                return Ok(None);
            }
            let issued: Result<Vec<_>, _> =
                subjects.iter().map(|subject| issue(&step, subject)).collect();
            step.commit()?;
            issued.map(Some)
        })
        .await
    }

    pub(crate) async fn tokens(&self) -> Result<Vec<TokenView>, Fault> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id, kind, tokens.name, coalesce(tokens.admin, users.admin, 0), tokens.created_ms,
                        revoked_ms, expires_ms, uses_left
                 FROM tokens LEFT JOIN users ON kind = 'user' AND users.name = tokens.name
                 ORDER BY tokens.created_ms, id",
            )?;
            let mut tokens: Vec<_> = query.query_map([], view)?.collect::<Result<_, _>>()?;
            tokens.append(&mut enrolments::list(db)?);
            Ok(tokens)
        })
        .await
    }

    /// Revokes a token or an enrolment for good; with `enrolments` also those that were made with the token. Revoking it again
    /// is done already.
    pub(crate) async fn revoke(&self, id: &str, enrolments: bool) -> Result<Removed, Fault> {
        let id = id.to_owned();
        let now = clock::unix_ms();
        let shelf = self.shelf.clone();
        self.call(move |db| {
            let step = db.transaction()?;
            let admins = good_admin_tokens(&step)?;
            if admins == [id.clone()] {
                return Ok(Removed::LastAdmin);
            }
            let sql = "UPDATE tokens SET revoked_ms = coalesce(revoked_ms, ?2) WHERE id = ?1";
            let is_token = step.execute(sql, params![id, sql_int(now)])? > 0;
            let join = enrolments.then_some(&*id);
            let mut ended = super::enrolments::revoke(&step, (&id, join), now)?;
            let done = step.commit();
            if !ended.is_empty() {
                // What ended agents announced went with them.
                shelf.all_changed();
            }
            done?;
            if is_token {
                ended.push(Ended { id, end: None });
            }
            Ok(if ended.is_empty() { Removed::Unknown } else { Removed::Done(ended) })
        })
        .await
    }
}

pub(super) fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

/// By `hash` or `id`; with when it was revoked.
fn find(
    db: &Connection,
    column: &str,
    value: &dyn ToSql,
) -> rusqlite::Result<Option<(Owner, Option<i64>)>> {
    let mut query = db.prepare_cached(&format!(
        "SELECT id, kind, tokens.name, coalesce(tokens.admin, users.admin, 0), revoked_ms, claims,
                expires_ms, tokens.created_ms
         FROM tokens LEFT JOIN users ON kind = 'user' AND users.name = tokens.name
         WHERE {column} = ?1"
    ))?;
    let found = query.query_row([value], |row| {
        let owner = Owner {
            token: row.get(0)?,
            kind: kind(row, 1)?,
            name: row.get(2)?,
            admin: row.get(3)?,
            claims: claims(row, 5)?,
            created_ms: row.get::<_, i64>(7)?.cast_unsigned(),
            expires_ms: row.get::<_, Option<i64>>(6)?.map(i64::cast_unsigned),
        };
        Ok((owner, row.get(4)?))
    });
    found.optional()
}

/// Whose the token or enrolment with this id is, if it is good now.
pub(super) fn good(db: &Connection, id: &str) -> rusqlite::Result<Result<Owner, Code>> {
    if let Some(enrolment) = enrolments::find(db, id)? {
        return Ok(if enrolment.is_revoked {
            Err(Code::TokenRevoked)
        } else {
            Ok(enrolment.owner())
        });
    }
    let found = find(db, "id", &id)?;
    Ok(found.ok_or(Code::TokenRevoked).and_then(|(owner, revoked)| match revoked {
        Some(_) => Err(Code::TokenRevoked),
        None if owner.is_over() => Err(Code::TokenExpired),
        None => Ok(owner),
    }))
}

pub(super) fn issue(step: &Transaction<'_>, subject: &NewSubject) -> rusqlite::Result<Issued> {
    let now = sql_int(clock::unix_ms());
    if subject.kind == TokenKind::User {
        step.execute(
            "INSERT INTO users (name, admin, created_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET admin = max(admin, excluded.admin)",
            params![subject.name, subject.admin, now],
        )?;
        for resource in &subject.grants {
            super::directory::insert_grant(step, &subject.name, resource)?;
        }
    }
    let token = BASE64URL_NOPAD.encode(&clock::random::<32>());
    let id = clock::random_name(ID_CHARS);
    step.execute(
        "INSERT INTO tokens (id, hash, kind, name, created_ms, claims, expires_ms, uses_left)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            id,
            hash(&token).as_slice(),
            subject.kind.as_str(),
            subject.name,
            now,
            serde_json::to_string(&subject.claims).unwrap_or_else(|_| "{}".into()),
            subject.expires_ms.map(sql_int),
            subject.uses,
        ],
    )?;
    Ok(Issued { id, token: Secret::new(token) })
}

fn good_admin_tokens(step: &Transaction<'_>) -> rusqlite::Result<Vec<String>> {
    let mut query = step.prepare_cached(
        "SELECT id FROM tokens JOIN users ON users.name = tokens.name
         WHERE kind = 'user' AND users.admin = 1 AND tokens.admin IS NULL AND revoked_ms IS NULL AND expires_ms IS NULL LIMIT 2",
    )?;
    query.query_map([], |row| row.get(0))?.collect()
}

fn view(row: &Row<'_>) -> rusqlite::Result<TokenView> {
    Ok(TokenView {
        id: row.get(0)?,
        kind: kind(row, 1)?,
        name: row.get(2)?,
        admin: row.get(3)?,
        created_ms: row.get::<_, i64>(4)?.cast_unsigned(),
        revoked_ms: row.get::<_, Option<i64>>(5)?.map(i64::cast_unsigned),
        expires_ms: row.get::<_, Option<i64>>(6)?.map(i64::cast_unsigned),
        uses_left: row.get(7)?,
        enrolment: None,
    })
}

pub(super) fn kind(row: &Row<'_>, column: usize) -> rusqlite::Result<TokenKind> {
    // The table's CHECK allows these only.
    let text: String = row.get(column)?;
    Ok(match &*text {
        "user" => TokenKind::User,
        "gateway" => TokenKind::Gateway,
        _ => TokenKind::Agent,
    })
}

fn claims(row: &Row<'_>, column: usize) -> rusqlite::Result<Claims> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
    })
}

/// SQLite's integers are signed; times fit for 292 million years.
pub(super) fn sql_int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
