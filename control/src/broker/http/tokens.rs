//! The built-in issuer: tokens, and who may use what.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::answer::{Body, Id, Refused};
use super::caller::Admin;
use crate::api::{GrantView, IssuedToken, NewToken, TokenKind, TokenView};
use crate::broker::app::App;
use crate::broker::limits::{is_name, is_user_name};
use crate::broker::orchestrator::Input;
use crate::broker::store::{NewSubject, Removed};
use crate::code::{Code, Fault};

/// Grants in one request; more are granted one by one.
const GRANTS_MAX: usize = 256;

pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Admin,
) -> Result<Json<Vec<TokenView>>, Refused> {
    Ok(Json(app.store.tokens().await?))
}

pub(super) async fn issue(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Body(wish): Body<NewToken>,
) -> Result<Json<IssuedToken>, Refused> {
    check(&wish)?;
    let NewToken { kind, name, admin, grants } = wish;
    let issued = app.store.issue(NewSubject { kind, name: name.clone(), admin, grants }).await?;
    tracing::info!(token = issued.id, ?kind, name, by = by.name, "token issued");
    let invite = app.invite(&issued, kind);
    Ok(Json(IssuedToken { id: issued.id, kind, name, invite }))
}

fn check(wish: &NewToken) -> Result<(), Fault> {
    let invalid = |detail: &str| Err(Code::UsageInvalid.because(detail));
    match wish.kind {
        TokenKind::Agent if wish.admin || !wish.grants.is_empty() => {
            invalid("an agent is no administrator and is granted nothing")
        }
        TokenKind::Agent if wish.name != "*" && !is_name(&wish.name) => {
            invalid("an agent's name is 1 to 63 of a-z 0-9 - _ . (or * for any)")
        }
        TokenKind::User if !is_user_name(&wish.name) => {
            invalid("a user's name is 1 to 63 of A-Z a-z 0-9 - _ . @ +")
        }
        TokenKind::User if wish.grants.len() > GRANTS_MAX => invalid("too many grants at once"),
        _ => wish.grants.iter().try_for_each(|resource| check_resource(resource)),
    }
}

fn check_resource(resource: &str) -> Result<(), Fault> {
    if resource == "*" || is_name(resource) {
        Ok(())
    } else {
        Err(Code::UsageInvalid.because("a resource's name is 1 to 63 of a-z 0-9 - _ . (or *)"))
    }
}

pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Id(id): Id,
) -> Result<StatusCode, Refused> {
    match app.store.revoke(&id).await? {
        Removed::Unknown => Err(Code::SubjectUnknown.because("no such token").into()),
        Removed::LastAdmin => Err(Code::UsageInvalid
            .because("this is the last administrator's token; issue another one first")
            .into()),
        Removed::Done => {
            tracing::info!(token = id, by = by.name, "token revoked");
            app.hub.withdraw(Input::TokenRevoked { token: id });
            Ok(StatusCode::NO_CONTENT)
        }
    }
}

pub(super) async fn grants(
    State(app): State<Arc<App>>,
    _: Admin,
) -> Result<Json<Vec<GrantView>>, Refused> {
    Ok(Json(app.store.grants().await?))
}

pub(super) async fn grant(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Body(grant): Body<GrantView>,
) -> Result<StatusCode, Refused> {
    check_resource(&grant.resource)?;
    tracing::info!(user = grant.user, resource = grant.resource, by = by.name, "granting");
    if app.store.grant(grant).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Code::SubjectUnknown.because("no such user").into())
    }
}

pub(super) async fn ungrant(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Body(grant): Body<GrantView>,
) -> Result<StatusCode, Refused> {
    let user = grant.user.clone();
    tracing::info!(user, resource = grant.resource, by = by.name, "taking a grant back");
    let Some(resources) = app.store.ungrant(grant).await? else {
        return Err(Code::SubjectUnknown.because("no such grant").into());
    };
    app.hub.withdraw(Input::GrantsChanged { user, resources });
    Ok(StatusCode::NO_CONTENT)
}
