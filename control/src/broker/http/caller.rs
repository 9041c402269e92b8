//! Who asks.
use std::sync::Arc;

use axum::extract::{Extension, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method};

use super::answer::Refused;
use crate::api::{AuditRecord, TokenKind};
use crate::broker::app::App;
use crate::broker::door::Visitor;
use crate::broker::enrolment;
use crate::broker::policy::record;
use crate::broker::store::Owner;
use crate::code::{Code, Fault};

/// Of a path, in a record: ours are shorter, and what a caller makes up is not kept whole.
const PATH_CHARS_MAX: usize = 128;

/// A signed-in user.
pub(crate) struct Caller(pub(crate) Owner);

/// A signed-in administrator.
pub(crate) struct Admin(pub(crate) Owner);

/// An enrolled agent.
pub(crate) struct AgentCaller(pub(crate) Owner);

/// An enrolled gateway.
pub(crate) struct GatewayCaller(pub(crate) Owner);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        let Extension(visitor) = visitor(parts, app).await?;
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let owner = app.sign_in(header, TokenKind::User, visitor.address).await?;
        app.charge(&owner.name)?;
        Ok(Self(owner))
    }
}

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        let Caller(owner) = Caller::from_request_parts(parts, app).await?;
        let Extension(visitor) = visitor(parts, app).await?;
        let source = visitor.address.ip();
        let decision = app.administers(&owner, source);
        let denied = if owner.admin { Code::PolicyDenied } else { Code::AdminOnly };
        let code = (!decision.allowed).then_some(denied);
        let path: String = parts.uri.path().chars().take(PATH_CHARS_MAX).collect();
        let request = format!("{} {path}", parts.method);
        let told = record(&owner.name, "admin", &request, &decision, Some(source));
        let told = AuditRecord { code, ..told };
        match parts.method {
            _ if code.is_some() => app.audit.tell_refusal(told),
            // Taking a right away does not wait for room.
            Method::DELETE => app.audit.tell(told),
            // Looking changes nothing, and Prometheus looks often.
            Method::GET => {}
            _ => app.audit.place()?.record(told),
        }
        code.map_or(Ok(Self(owner)), |code| Err(code.into()))
    }
}

impl FromRequestParts<Arc<App>> for AgentCaller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        Ok(Self(end(parts, app, TokenKind::Agent).await?))
    }
}

impl FromRequestParts<Arc<App>> for GatewayCaller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refused> {
        Ok(Self(end(parts, app, TokenKind::Gateway).await?))
    }
}

async fn visitor(parts: &mut Parts, app: &Arc<App>) -> Result<Extension<Visitor>, Fault> {
    let visitor = Extension::<Visitor>::from_request_parts(parts, app).await;
    visitor.map_err(|_| Code::Internal.because("a request came in by no door"))
}

/// Who signs in by an assertion of their key.
async fn end(parts: &mut Parts, app: &Arc<App>, kind: TokenKind) -> Result<Owner, Fault> {
    let Extension(visitor) = visitor(parts, app).await?;
    let signed_in = match bearer(parts.headers.get(AUTHORIZATION)) {
        Ok(bearer) => enrolment::sign_in(app, bearer, kind).await,
        Err(fault) => Err(fault),
    };
    signed_in.map_err(|fault| app.count_guess(fault, visitor.address))
}

/// The bearer token of a request.
pub(super) fn bearer(header: Option<&HeaderValue>) -> Result<&str, Fault> {
    let text = header.and_then(|value| value.to_str().ok());
    let token = text.and_then(|header| header.strip_prefix("Bearer ")).map(str::trim);
    token.ok_or_else(|| Code::TokenInvalid.because("the request carries no bearer token"))
}
