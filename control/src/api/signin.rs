//! Signing in by OpenID Connect: bodies of the API, and the calls.
//!
//! | method and path | who | answer |
//! |---|---|---|
//! | `GET /v1/signin` | anyone | [`SigninOffer`] |
//! | `POST /v1/signin` [`NewSignin`] | anyone; with the token of a sign-in that lasts, its user | [`Signin`] |
//! | `POST /v1/signout` | the user of a sign-in | 204 |
use serde::{Deserialize, Serialize};

use super::client::ApiClient;
use crate::code::Fault;
use crate::secret::Secret;

/// How users sign in at this broker.
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigninOffer {
    /// The OIDC provider; absent if login strings are the only way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Which client of the provider `switchback` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Scopes to ask the provider for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
}

/// Proof of who signs in.
#[derive(utoipa::ToSchema, Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSignin {
    /// The provider's ID token.
    pub id_token: Secret,
    /// The nonce that it was asked for with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
}

/// A sign-in that lasts until it ends.
#[derive(utoipa::ToSchema, Clone, Debug, Serialize, Deserialize)]
pub struct Signin {
    /// The bearer token; absent if the request carried one, which goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// When it ends unless renewed, Unix milliseconds.
    pub expires_ms: u64,
    /// The same, in milliseconds from now: the user's clock may be off.
    pub lasts_ms: u64,
    /// User name.
    pub user: String,
    /// Whether the user administers this broker.
    pub admin: bool,
}

impl ApiClient {
    /// How users sign in.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn signin_offer(&self) -> Result<SigninOffer, Fault> {
        self.get("/v1/signin").await
    }

    /// Signs in, or renews the sign-in of the invitation's token.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn sign_in(&self, proof: &NewSignin) -> Result<Signin, Fault> {
        self.post("/v1/signin", proof).await
    }

    /// Ends the sign-in of the invitation's token.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn sign_out(&self) -> Result<(), Fault> {
        self.order("/v1/signout").await
    }
}
