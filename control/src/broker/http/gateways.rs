//! What is asked of gateways: which there are, that one drains, and how far they are.
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;

use super::answer::{Id, Refused};
use super::caller::{Admin, Caller};
use crate::api::{EstimateView, GatewayState, GatewayView, ResourceWays};
use crate::broker::app::App;
use crate::broker::door::Visitor;
use crate::broker::orchestrator::GatewaySnapshot;
use crate::broker::store::Listed;
use crate::code::Code;

/// List the gateways that sessions may go through; figures of load for administrators only.
#[utoipa::path(get, path = "/v1/gateways", tag = "gateways", security(("bearer" = ["user"])),
    responses((status = 200, description = "Gateways.", body = Vec<GatewayView>)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
) -> Json<Vec<GatewayView>> {
    Json(views(&app, app.administers(&owner, visitor.address.ip()).allowed))
}

/// Move a gateway's sessions to others, and give it no new ones, over restarts of either until it is let have some again.
#[utoipa::path(put, path = "/v1/gateways/{id}/drain", tag = "gateways", security(("bearer" = ["admin"])),
    params(("id" = String, Path, description = "Its name.")),
    responses((status = 204, description = "Done.")))]
pub(super) async fn drain(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Id(name): Id,
) -> Result<StatusCode, Refused> {
    set(&app, &by.name, &name, true).await
}

/// Give a gateway sessions again.
#[utoipa::path(delete, path = "/v1/gateways/{id}/drain", tag = "gateways", security(("bearer" = ["admin"])),
    params(("id" = String, Path, description = "Its name.")),
    responses((status = 204, description = "Done.")))]
pub(super) async fn undrain(
    State(app): State<Arc<App>>,
    Admin(by): Admin,
    Id(name): Id,
) -> Result<StatusCode, Refused> {
    set(&app, &by.name, &name, false).await
}

async fn set(app: &App, by: &str, name: &str, drain: bool) -> Result<StatusCode, Refused> {
    let known = app.hub.gateways().iter().any(|it| &*it.name == name);
    // One that is away may be let come back.
    let changed = (known || !drain) && app.store.drain_gateway(name, drain).await?;
    if !known && !changed {
        return Err(Code::GatewayUnknown.into());
    }
    app.hub.drain_gateway(name, drain);
    tracing::info!(gateway = name, by, drain, "gateway drains, or no longer");
    Ok(StatusCode::NO_CONTENT)
}

/// How far agents are from gateways. What the user's resources would see is added up by who asks: it knows its own way.
#[utoipa::path(get, path = "/v1/estimate", tag = "gateways", security(("bearer" = ["user"])),
    responses((status = 200, description = "Ways.", body = EstimateView)))]
pub(super) async fn estimate(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
) -> Result<Json<EstimateView>, Refused> {
    let source = visitor.address.ip();
    let admin = app.administers(&owner, source).allowed;
    let ways = move |app: &App, seen: Vec<&Listed>| {
        let ways = seen.into_iter().map(|listed| ways(app, admin, &listed.name));
        ways.flatten().collect()
    };
    let (resources, _) = app.look(&owner, source, ways).await?;
    Ok(Json(EstimateView { gateways: views(&app, admin), resources }))
}

fn ways(app: &App, admin: bool, resource: &str) -> Vec<ResourceWays> {
    let way = |(agent, rtts): (String, _)| {
        let transport = app.hub.transport(&agent, resource).unwrap_or_default();
        let agent = admin.then_some(agent);
        ResourceWays { resource: resource.to_owned(), agent, transport, rtts }
    };
    app.hub.agents_ways(resource).into_iter().map(way).collect()
}

fn views(app: &App, admin: bool) -> Vec<GatewayView> {
    let local_pairs = app.hub.data_plane.pairs();
    let view = |it: GatewaySnapshot| {
        let pairs = if it.address.is_none() { it.pairs.max(local_pairs) } else { it.pairs };
        let state = match (it.link, it.draining, pairs) {
            (false, ..) => GatewayState::Lost,
            (true, false, _) => GatewayState::Up,
            (true, true, 0) => GatewayState::Drained,
            (true, true, _) => GatewayState::Draining,
        };
        GatewayView {
            name: it.name.to_string(),
            region: it.region,
            address: it.address.unwrap_or_else(|| app.authority.to_string()),
            state,
            pairs: admin.then_some(pairs as u64),
            capacity: admin.then_some(it.capacity as u64),
            version: admin.then_some(it.version),
        }
    };
    app.hub.gateways().into_iter().map(view).collect()
}
