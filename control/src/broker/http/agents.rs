//! Agents, for administrators: how they are, and which get no new sessions.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::answer::{Id, Refused};
use super::caller::Admin;
use crate::api::{AgentOnline, AgentView};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::orchestrator::{AgentSnapshot, Input};
use crate::code::Code;
use crate::wire::TargetHealth;

/// Agents, connected or not.
#[utoipa::path(get, path = "/v1/agents", tag = "agents", security(("bearer" = ["admin"])),
    responses((status = 200, description = "Agents.", body = Vec<AgentView>)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Admin,
) -> Result<Json<Vec<AgentView>>, Refused> {
    let known = app.store.agents().await?.into_iter();
    let views = known.map(|agent| AgentView {
        online: app.hub.agent_state(&agent.name).map(online),
        name: agent.name,
        version: agent.version,
        draining: agent.draining,
        seen_ms: agent.seen_ms,
    });
    Ok(Json(views.collect()))
}

/// Give an agent no new sessions.
#[utoipa::path(put, path = "/v1/agents/{id}/drain", tag = "agents", security(("bearer" = ["admin"])),
    params(("id" = String, Path, description = "Its name.")),
    responses((status = 204, description = "Done.")))]
pub(super) async fn drain(
    State(app): State<Arc<App>>,
    Admin(owner): Admin,
    Id(agent): Id,
) -> Result<StatusCode, Refused> {
    set(&app, agent, true, &owner.name).await
}

/// Give an agent new sessions again.
#[utoipa::path(delete, path = "/v1/agents/{id}/drain", tag = "agents", security(("bearer" = ["admin"])),
    params(("id" = String, Path, description = "Its name.")),
    responses((status = 204, description = "Done.")))]
pub(super) async fn undrain(
    State(app): State<Arc<App>>,
    Admin(owner): Admin,
    Id(agent): Id,
) -> Result<StatusCode, Refused> {
    set(&app, agent, false, &owner.name).await
}

async fn set(app: &App, agent: String, draining: bool, by: &str) -> Result<StatusCode, Refused> {
    if !app.store.drain(&agent, draining).await? {
        return Err(Code::AgentUnknown.into());
    }
    tracing::info!(agent, draining, by, "agent's new sessions");
    app.hub.apply(Input::Drain { agent, draining });
    Ok(StatusCode::NO_CONTENT)
}

fn online(agent: AgentSnapshot) -> AgentOnline {
    let target = |(resource, fault)| TargetHealth { resource, fault };
    AgentOnline {
        connected_ms: clock::millis(agent.connected),
        sessions: agent.sessions,
        load_percent: agent.load_percent,
        link_rtt_us: agent.link_rtt.and_then(|rtt| u64::try_from(rtt.as_micros()).ok()),
        targets: agent.resources.into_iter().map(target).collect(),
    }
}
