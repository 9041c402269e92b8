//! Enrolling ends, and giving them new keys.
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};

use super::answer::{Body, Id, Refused};
use super::caller::{Admin, bearer};
use crate::api::ErrorBody;
use crate::api::enrol::{Enrolled, NewEnrolment, NewKey};
use crate::broker::app::App;
use crate::broker::door::Visitor;
use crate::broker::enrolment;
use crate::code::Code;

/// Make an agent or a gateway known by its key. The bearer is a join string's token, of which it spends one use; the same key
/// again gets the same answer.
#[utoipa::path(post, path = "/v1/enrol", tag = "enrolment", security(("bearer" = ["join"])), request_body = NewEnrolment,
    responses((status = 200, description = "It is enrolled.", body = Enrolled),
        (status = 409, description = "AGENT_NAME_TAKEN, GATEWAY_NAME_TAKEN", body = ErrorBody)))]
pub(super) async fn enrol(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Body(wish): Body<NewEnrolment>,
) -> Result<Json<Enrolled>, Refused> {
    app.enrolments.sources.charge(visitor.address, "enrolments")?;
    let enrolled = match bearer(headers.get(AUTHORIZATION)) {
        Ok(token) => enrolment::enrol(&app, token, wish, visitor.address.ip()).await,
        Err(fault) => Err(fault),
    };
    Ok(Json(enrolled.map_err(|fault| {
        tracing::info!(peer = %visitor.address, %fault, "enrolment refused");
        app.count_guess(fault, visitor.address)
    })?))
}

/// Give an enrolment another key. The bearer is a statement of the present key.
#[utoipa::path(post, path = "/v1/enrol/rotate", tag = "enrolment", security(("bearer" = ["end"])), request_body = NewKey,
    responses((status = 204, description = "The new key is in force.")))]
pub(super) async fn rotate(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Body(wish): Body<NewKey>,
) -> Result<StatusCode, Refused> {
    app.enrolments.sources.charge(visitor.address, "enrolments")?;
    let rotated = match bearer(headers.get(AUTHORIZATION)) {
        Ok(token) => enrolment::rotate(&app, token, wish, visitor.address.ip()).await,
        Err(fault) => Err(fault),
    };
    rotated.map_err(|fault| {
        tracing::info!(peer = %visitor.address, %fault, "new key refused");
        app.count_guess(fault, visitor.address)
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// Have an enrolled end make itself a new key: at once if it is connected, else with its next link.
#[utoipa::path(post, path = "/v1/tokens/{id}/rotate", tag = "enrolment", security(("bearer" = ["admin"])), params(("id" = String, Path, description = "An enrolment of the list of tokens.")),
    responses((status = 204, description = "It is asked.")))]
pub(super) async fn order(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Id(id): Id,
) -> Result<StatusCode, Refused> {
    if !app.store.order_rotation(&id).await? {
        return Err(Code::SubjectUnknown.because("no such enrolment that is good").into());
    }
    tracing::info!(enrolment = id, by = by.name, "a new key is ordered");
    app.hub.order_rotation(&id);
    Ok(StatusCode::NO_CONTENT)
}
