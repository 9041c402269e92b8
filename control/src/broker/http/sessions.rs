//! What users ask: who am I, what may I use, how are my sessions.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::answer::{Id, Refused};
use super::caller::Caller;
use super::figures::{legs_view, rtt_view, slow_view};
use crate::api::{ResourceView, SessionRtt, SessionView, WhoAmI};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::hub::Metered;
use crate::broker::orchestrator::Input;
use crate::broker::store::{Listed, Owner};
use crate::code::Code;
use crate::wire::SessionId;

pub(super) async fn who_am_i(Caller(owner): Caller) -> Json<WhoAmI> {
    Json(WhoAmI { user: owner.name, admin: owner.admin })
}

pub(super) async fn feed(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
) -> Result<Json<Vec<ResourceView>>, Refused> {
    let listed = app.store.resources(Some(owner.name)).await?;
    let feed = listed.into_iter().map(|Listed { name, kind, agents }| {
        let online = agents.iter().any(|agent| app.hub.offers(agent, &name));
        ResourceView { name, kind, online, agents: if owner.admin { agents } else { Vec::new() } }
    });
    Ok(Json(feed.collect()))
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
) -> Json<Vec<SessionView>> {
    let user = (!owner.admin).then_some(owner.name.as_str());
    let now = clock::unix_ms();
    let sessions = app.hub.sessions(user).into_iter();
    let mut views: Vec<_> = sessions.map(|session| view(&app, session, now)).collect();
    views.sort_by(|a, b| b.age_ms.cmp(&a.age_ms).then_with(|| a.id.cmp(&b.id)));
    Json(views)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Id(id): Id,
) -> Result<Json<SessionView>, Refused> {
    let session = visible(&app, &owner, &SessionId(id))?;
    Ok(Json(view(&app, session, clock::unix_ms())))
}

pub(super) async fn kill(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Id(id): Id,
) -> Result<StatusCode, Refused> {
    let session = SessionId(id);
    visible(&app, &owner, &session)?;
    tracing::info!(%session, by = owner.name, "session killed");
    app.hub.apply(Input::Kill { session, code: Code::SessionKilled });
    Ok(StatusCode::NO_CONTENT)
}

/// Another user's session looks like none.
fn visible(app: &App, owner: &Owner, id: &SessionId) -> Result<Metered, Refused> {
    let found = app.hub.session(id).filter(|(found, _)| owner.admin || found.user == owner.name);
    found.ok_or_else(|| Code::SessionUnknown.into())
}

fn view(app: &App, (session, meter): Metered, now: u64) -> SessionView {
    let figures = meter.map(|meter| meter.figures()).unwrap_or_default();
    let rtt = SessionRtt {
        client_leg: figures.client.map(|leg| rtt_view(leg.rtt)),
        agent_leg: figures.agent.map(|leg| rtt_view(leg.rtt)),
        end_to_end: session.end_to_end,
    };
    SessionView {
        id: session.session,
        user: session.user,
        resource: session.resource,
        agent: session.agent,
        gateway: app.authority.to_string(),
        state: session.state,
        transport: session.transport,
        rtt,
        legs: legs_view(&figures),
        slow: slow_view(&figures),
        client_to_target: session.client_to_target,
        target_to_client: session.target_to_client,
        age_ms: now.saturating_sub(session.created_ms),
        channels: session.channels,
        resumes: session.resumes,
    }
}
