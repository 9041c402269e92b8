//! Who asks.
use std::sync::Arc;

use axum::extract::{Extension, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::answer::Refused;
use crate::api::TokenKind;
use crate::broker::app::App;
use crate::broker::door::Visitor;
use crate::broker::store::Owner;
use crate::code::{Code, Fault};

/// A signed-in user.
pub(crate) struct Caller(pub(crate) Owner);

/// A signed-in administrator.
pub(crate) struct Admin(pub(crate) Owner);

/// A connected agent's token.
pub(crate) struct AgentCaller(pub(crate) Owner);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        let owner = sign_in(parts, app, TokenKind::User).await?;
        app.charge(&owner.name)?;
        Ok(Self(owner))
    }
}

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        let Caller(owner) = Caller::from_request_parts(parts, app).await?;
        if owner.admin { Ok(Self(owner)) } else { Err(Code::AdminOnly.into()) }
    }
}

impl FromRequestParts<Arc<App>> for AgentCaller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        Ok(Self(sign_in(parts, app, TokenKind::Agent).await?))
    }
}

async fn sign_in(parts: &mut Parts, app: &Arc<App>, kind: TokenKind) -> Result<Owner, Fault> {
    let Extension(visitor) = Extension::<Visitor>::from_request_parts(parts, app)
        .await
        .map_err(|_| Code::Internal.because("a request came in by no door"))?;
    let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    app.sign_in(header, kind, visitor.address).await
}
