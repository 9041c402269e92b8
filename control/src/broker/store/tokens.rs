//! Who holds which token. Only a token's SHA-256 is stored: 256 random bits need no slow hash.
use aws_lc_rs::digest;
use data_encoding::BASE64URL_NOPAD;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::Store;
use crate::api::{TokenKind, TokenView};
use crate::broker::clock;
use crate::code::{Code, Fault};
use crate::secret::Secret;

/// Characters of a token's public id: 50 random bits.
const ID_CHARS: usize = 10;
/// Characters of a token: 32 bytes in base64url.
const TOKEN_CHARS: usize = 43;

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The token's public id.
    pub(crate) token: String,
    pub(crate) kind: TokenKind,
    /// User name, or the only name the agent may use (`*`: any).
    pub(crate) name: String,
    pub(crate) admin: bool,
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
}

/// What became of a wish to revoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    Done,
    Unknown,
    /// It is the last good token of an administrator: without it nobody could issue another.
    LastAdmin,
}

impl Store {
    /// The owner of a good token.
    ///
    /// The lookup is by hash, so its time tells nothing about how much of a guess is right.
    ///
    /// # Errors
    /// [`Code::TokenInvalid`], [`Code::TokenRevoked`].
    pub(crate) async fn owner(&self, token: &str) -> Result<Owner, Fault> {
        if token.len() != TOKEN_CHARS {
            return Err(Code::TokenInvalid.into());
        }
        let hash = hash(token);
        let found = self.call(move |db| find(db, &hash)).await?;
        match found {
            None => Err(Code::TokenInvalid.into()),
            Some((_, Some(_))) => Err(Code::TokenRevoked.into()),
            Some((owner, None)) => Ok(owner),
        }
    }

    /// Whether the token of this id is still good.
    pub(crate) async fn is_good(&self, id: &str) -> Result<bool, Fault> {
        let id = id.to_owned();
        self.call(move |db| {
            let sql = "SELECT 1 FROM tokens WHERE id = ?1 AND revoked_ms IS NULL";
            db.prepare_cached(sql)?.exists([id])
        })
        .await
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
        self.call(|db| {
            let mut query = db.prepare_cached(
                "SELECT id, kind, tokens.name, coalesce(admin, 0), tokens.created_ms, revoked_ms
                 FROM tokens LEFT JOIN users ON kind = 'user' AND users.name = tokens.name
                 ORDER BY tokens.created_ms, id",
            )?;
            query.query_map([], view)?.collect()
        })
        .await
    }

    /// Revokes a token for good. Revoking it again is done already.
    pub(crate) async fn revoke(&self, id: &str) -> Result<Removed, Fault> {
        let id = id.to_owned();
        let now = clock::unix_ms();
        self.call(move |db| {
            let step = db.transaction()?;
            let admins = good_admin_tokens(&step)?;
            if admins == [id.clone()] {
                return Ok(Removed::LastAdmin);
            }
            let sql = "UPDATE tokens SET revoked_ms = coalesce(revoked_ms, ?2) WHERE id = ?1";
            let touched = step.execute(sql, params![id, sql_int(now)])?;
            step.commit()?;
            Ok(if touched == 0 { Removed::Unknown } else { Removed::Done })
        })
        .await
    }
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

fn find(db: &Connection, hash: &[u8; 32]) -> rusqlite::Result<Option<(Owner, Option<i64>)>> {
    let mut query = db.prepare_cached(
        "SELECT id, kind, tokens.name, coalesce(admin, 0), revoked_ms
         FROM tokens LEFT JOIN users ON kind = 'user' AND users.name = tokens.name
         WHERE hash = ?1",
    )?;
    let found = query.query_row([hash.as_slice()], |row| {
        let owner = Owner {
            token: row.get(0)?,
            kind: kind(row, 1)?,
            name: row.get(2)?,
            admin: row.get(3)?,
        };
        Ok((owner, row.get(4)?))
    });
    found.optional()
}

fn issue(step: &Transaction<'_>, subject: &NewSubject) -> rusqlite::Result<Issued> {
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
        "INSERT INTO tokens (id, hash, kind, name, created_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, hash(&token).as_slice(), kind_text(subject.kind), subject.name, now],
    )?;
    Ok(Issued { id, token: Secret::new(token) })
}

fn good_admin_tokens(step: &Transaction<'_>) -> rusqlite::Result<Vec<String>> {
    let mut query = step.prepare_cached(
        "SELECT id FROM tokens JOIN users ON users.name = tokens.name
         WHERE kind = 'user' AND admin = 1 AND revoked_ms IS NULL LIMIT 2",
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
    })
}

const fn kind_text(kind: TokenKind) -> &'static str {
    match kind {
        TokenKind::User => "user",
        TokenKind::Agent => "agent",
    }
}

fn kind(row: &Row<'_>, column: usize) -> rusqlite::Result<TokenKind> {
    // The table's CHECK allows these two only.
    let text: String = row.get(column)?;
    Ok(if text == "user" { TokenKind::User } else { TokenKind::Agent })
}

/// SQLite's integers are signed; times fit for 292 million years.
pub(super) fn sql_int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
