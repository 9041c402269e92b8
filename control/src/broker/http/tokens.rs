//! The built-in issuer: tokens, and who may use what.
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;

use super::answer::{Body, Id, Query, Refused};
use super::caller::Admin;
use crate::api::{GrantView, IssuedToken, NewToken, TokenKind, TokenView};
use crate::broker::app::App;
use crate::broker::door::Visitor;
use crate::broker::enrolment::{self, JOIN_LIFE, JOIN_USES, join_end};
use crate::broker::events::grants_changed;
use crate::broker::limits::{is_name, is_user_name};
use crate::broker::orchestrator::Input;
use crate::broker::store::{Ended, NewSubject, Removed};
use crate::claims::Claims;
use crate::code::{Code, Fault};

/// Grants in one request; more are granted one by one.
const GRANTS_MAX: usize = 256;
/// Whoever means longer means for ever.
const JOIN_LIFE_MAX_S: u64 = 10 * 365 * 24 * 3600;

/// Every token, without its text, and every enrolment.
#[utoipa::path(get, path = "/v1/tokens", tag = "rights", security(("bearer" = ["admin"])),
    responses((status = 200, description = "Tokens.", body = Vec<TokenView>)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Admin,
) -> Result<Json<Vec<TokenView>>, Refused> {
    Ok(Json(app.store.tokens().await?))
}

/// Mint a login or join string. Its text is in this answer only.
#[utoipa::path(post, path = "/v1/tokens", tag = "rights", security(("bearer" = ["admin"])), request_body = NewToken,
    responses((status = 200, description = "The new token.", body = IssuedToken)))]
pub(super) async fn issue(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Body(wish): Body<NewToken>,
) -> Result<Json<IssuedToken>, Refused> {
    check(&wish)?;
    let (uses, expires_ms) = terms(&wish);
    let NewToken { kind, name, admin, grants, .. } = wish;
    let claims = Claims::default();
    let subject = NewSubject { kind, name: name.clone(), admin, grants, claims, expires_ms, uses };
    let issued = app.store.issue(subject).await?;
    app.signins.ends_changed();
    app.hub.feeds_changed();
    tracing::info!(token = issued.id, kind = kind.as_str(), name, by = by.name, "token issued");
    let invite = app.invite(&issued, kind);
    Ok(Json(IssuedToken { id: issued.id, kind, name, invite, uses, expires_ms }))
}

/// How often a string may be used, and until when.
fn terms(wish: &NewToken) -> (Option<u32>, Option<u64>) {
    if wish.kind == TokenKind::User {
        return (None, None);
    }
    let uses = wish.uses.unwrap_or(JOIN_USES);
    let life = wish.lasts_s.map_or(JOIN_LIFE, Duration::from_secs);
    (Some(uses).filter(|uses| *uses > 0), (!life.is_zero()).then(|| join_end(life)))
}

fn check(wish: &NewToken) -> Result<(), Fault> {
    let invalid = |detail: &str| Err(Code::UsageInvalid.because(detail));
    if wish.lasts_s.is_some_and(|life| life > JOIN_LIFE_MAX_S) {
        return invalid("a join string lasts ten years at most, or for ever");
    }
    match wish.kind {
        TokenKind::User if wish.uses.is_some() || wish.lasts_s.is_some() => {
            invalid("a login string is used any number of times, until it is revoked")
        }
        TokenKind::Agent if wish.admin || !wish.grants.is_empty() => {
            invalid("an agent is no administrator and is granted nothing")
        }
        TokenKind::Agent if wish.name != "*" && !is_name(&wish.name) => {
            invalid("an agent's name is 1 to 63 of a-z 0-9 - _ . (or * for any)")
        }
        TokenKind::Gateway if wish.admin || !wish.grants.is_empty() => {
            invalid("a gateway is no administrator and is granted nothing")
        }
        TokenKind::Gateway if wish.name != "*" && !is_name(&wish.name) => {
            invalid("a gateway's name is 1 to 63 of a-z 0-9 - _ . (or * for any)")
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

/// What else is revoked.
#[derive(Deserialize)]
pub(super) struct Along {
    #[serde(default)]
    enrolments: bool,
}

/// Revoke a token or an enrolment; what it held up ends at once. Ends that enrolled with a join string go on without it, unless
/// they are revoked along with it.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "rights", security(("bearer" = ["admin"])), params(("id" = String, Path, description = "From the list."),
    ("enrolments" = Option<bool>, Query, description = "Revoke the enrolments made with this join string too.")),
    responses((status = 204, description = "It is revoked.")))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Extension(visitor): Extension<Visitor>,
    Id(id): Id,
    Query(Along { enrolments }): Query<Along>,
) -> Result<StatusCode, Refused> {
    let source = visitor.address.ip();
    match app.store.revoke(&id, enrolments).await? {
        Removed::Unknown => Err(Code::SubjectUnknown.because("no such token or enrolment").into()),
        Removed::LastAdmin => Err(Code::UsageInvalid
            .because("this is the last administrator's token; issue another one first")
            .into()),
        Removed::Done(ended) => {
            for Ended { id, end } in ended {
                tracing::info!(token = id, by = by.name, "revoked");
                match end {
                    Some(end) => enrolment::revoked(&app, id, end, &by.name, source),
                    None => app.hub.token_revoked(id),
                }
            }
            Ok(StatusCode::NO_CONTENT)
        }
    }
}

/// Every grant.
#[utoipa::path(get, path = "/v1/grants", tag = "rights", security(("bearer" = ["admin"])),
    responses((status = 200, description = "Grants.", body = Vec<GrantView>)))]
pub(super) async fn grants(
    State(app): State<Arc<App>>,
    _: Admin,
) -> Result<Json<Vec<GrantView>>, Refused> {
    Ok(Json(app.store.grants().await?))
}

/// Let a user use a resource.
#[utoipa::path(put, path = "/v1/grants", tag = "rights", security(("bearer" = ["admin"])), request_body = GrantView,
    responses((status = 204, description = "Granted.")))]
pub(super) async fn grant(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Body(grant): Body<GrantView>,
) -> Result<StatusCode, Refused> {
    check_resource(&grant.resource)?;
    tracing::info!(user = grant.user, resource = grant.resource, by = by.name, "granting");
    if app.store.grant(grant).await? {
        app.hub.feeds_changed();
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Code::SubjectUnknown.because("no such user").into())
    }
}

/// Take a grant back; sessions it held up end at once.
#[utoipa::path(delete, path = "/v1/grants", tag = "rights", security(("bearer" = ["admin"])), request_body = GrantView,
    responses((status = 204, description = "Taken back.")))]
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
    if app.judge.is_built_in() {
        app.hub.withdraw(Input::GrantsChanged { user, resources });
    } else {
        // What a grant is worth is the policies' to say.
        app.hub.bus.publish(grants_changed(&user, &resources));
        app.hub.rights_changed();
        app.judge_user_anew(&user).await;
    }
    Ok(StatusCode::NO_CONTENT)
}
