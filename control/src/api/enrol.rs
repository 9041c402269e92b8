//! Enrolling agents and gateways: bodies of the API, and the calls.
//!
//! | method and path | who | answer |
//! |---|---|---|
//! | `POST /v1/enrol` [`NewEnrolment`] | whoever has a join string's token | [`Enrolled`] |
//! | `POST /v1/enrol/rotate` [`NewKey`] | an enrolled end, by a statement of its key | 204 |
//! | `POST /v1/tokens/{id}/rotate` | admin | 204; the end is asked for a new key |
use serde::{Deserialize, Serialize};

use super::TokenKind;
use super::client::ApiClient;
use crate::code::Fault;
use crate::secret::Secret;

/// Asks for an enrolment: from then on the end of this kind and name is whoever has the key.
#[derive(utoipa::ToSchema, Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewEnrolment {
    /// An agent or a gateway.
    pub kind: TokenKind,
    /// Its name.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9._-]+$")]
    pub name: String,
    /// Its public key: an uncompressed point of P-256 (SEC 1 section 2.3.3), base64url.
    #[schema(min_length = 87, max_length = 87)]
    pub key: String,
    /// A JSON Web Token by ES256 with that key, `typ` `switchback-enrol+jwt`: `aud` is the broker's pin, `sub` is `KIND/NAME`,
    /// `join` is the SHA-256 of the join string's token, base64url.
    pub proof: Secret,
}

/// An end that is known by its key.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The enrolment: `kid`, `iss` and `sub` of the end's assertions.
    pub id: String,
    /// An agent or a gateway.
    pub kind: TokenKind,
    /// Its name.
    pub name: String,
}

/// Another key for an enrolment. The request's bearer token is the same statement as `proof`, by the present key.
#[derive(utoipa::ToSchema, Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// The new public key.
    #[schema(min_length = 87, max_length = 87)]
    pub key: String,
    /// A JSON Web Token by ES256 with the new key, `kid` the enrolment, `typ` `switchback-rotate+jwt`: `aud` is the broker's
    /// pin, `sub` the enrolment, `key` the new key.
    pub proof: Secret,
}

/// What is known of an enrolment beside what tokens have.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentView {
    /// The join string that it was made with.
    pub join: String,
    /// When it was connected last, Unix milliseconds; to a few minutes.
    pub seen_ms: u64,
    /// When its key was made or last replaced, Unix milliseconds.
    pub key_ms: u64,
    /// It was asked for a new key and has not brought one yet.
    pub rotating: bool,
}

/// Whom a proof is about.
pub(crate) fn subject(kind: TokenKind, name: &str) -> String {
    format!("{}/{name}", kind.as_str())
}

impl ApiClient {
    /// Enrols the end with the join string whose token the invitation holds.
    ///
    /// # Errors
    /// The broker's refusal.
    pub(crate) async fn enrol(&self, wish: &NewEnrolment) -> Result<Enrolled, Fault> {
        self.post("/v1/enrol", wish).await
    }

    /// Gives the enrolment another key.
    ///
    /// # Errors
    /// The broker's refusal.
    pub(crate) async fn rotate(&self, wish: &NewKey) -> Result<(), Fault> {
        self.order_with("/v1/enrol/rotate", wish).await
    }

    /// Has the end of this enrolment make itself a new key.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn order_rotation(&self, id: &str) -> Result<(), Fault> {
        self.order(&format!("/v1/tokens/{}/rotate", super::client::segment(id))).await
    }
}
