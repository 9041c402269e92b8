//! What is done to a session beside ending it: messages and pauses.
use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::StatusCode;

use super::answer::{Body, Id, Refused};
use super::caller::Caller;
use super::sessions::visible;
use crate::api::NewMessage;
use crate::broker::app::App;
use crate::broker::door::Visitor;
use crate::broker::orchestrator::Input;
use crate::broker::store::Owner;
use crate::code::Code;
use crate::shadow::plain_text;
use crate::wire::SessionId;

/// Show a message to the user of a session.
#[utoipa::path(post, path = "/v1/sessions/{id}/message", tag = "sessions", security(("bearer" = ["user"])),
    params(("id" = String, Path, description = "From the list.")), request_body = NewMessage,
    responses((status = 204, description = "It is on its way.")))]
pub(super) async fn message(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
    Id(id): Id,
    Body(NewMessage { text }): Body<NewMessage>,
) -> Result<StatusCode, Refused> {
    let session = SessionId(id);
    visible(&app, (&owner, &visitor), &session)?;
    let text = plain_text(&text);
    if text.is_empty() {
        return Err(Code::MessageMalformed
            .because("the message has no text that can be shown")
            .into());
    }
    let (_, [client, _]) = app.hub.explained(&session).ok_or(Code::SessionUnknown)?;
    if !client {
        return Err(Code::ClientOffline.into());
    }
    app.hub.apply(Input::Message { session, from: owner.name, text });
    Ok(StatusCode::NO_CONTENT)
}

/// Hold a session's bytes back.
#[utoipa::path(post, path = "/v1/sessions/{id}/pause", tag = "sessions", security(("bearer" = ["user"])),
    params(("id" = String, Path, description = "From the list.")),
    responses((status = 204, description = "Its agent is told.")))]
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
    Id(id): Id,
) -> Result<StatusCode, Refused> {
    hold(&app, (owner, &visitor), id, true)
}

/// Let a paused session go on.
#[utoipa::path(post, path = "/v1/sessions/{id}/resume", tag = "sessions", security(("bearer" = ["user"])),
    params(("id" = String, Path, description = "From the list.")),
    responses((status = 204, description = "Its agent is told.")))]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
    Id(id): Id,
) -> Result<StatusCode, Refused> {
    hold(&app, (owner, &visitor), id, false)
}

/// Who was paused by another goes on by an administrator's word.
fn hold(
    app: &App,
    (owner, visitor): (Owner, &Visitor),
    id: String,
    held: bool,
) -> Result<StatusCode, Refused> {
    let session = SessionId(id);
    let (found, _) = visible(app, (&owner, visitor), &session)?;
    if found.life.watches.is_some() {
        return Err(Code::UsageInvalid.because("a watch cannot be paused; end it").into());
    }
    let theirs = found.life.paused_by.as_ref().is_none_or(|by| *by == owner.name);
    if !theirs && !app.administers(&owner, visitor.address.ip()).allowed {
        return Err(Code::AdminOnly.into());
    }
    let (_, [_, agent]) = app.hub.explained(&session).ok_or(Code::SessionUnknown)?;
    if !agent {
        return Err(Code::AgentOffline.into());
    }
    app.hub.apply(Input::Hold { session, by: owner.name, held });
    Ok(StatusCode::NO_CONTENT)
}
