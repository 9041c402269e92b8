//! What users ask: who am I, what may I use, how are my sessions.
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::answer::{Id, Refused};
use super::caller::Caller;
use super::figures::{legs_view, rtt_view, slow_view};
use crate::api::{
    EndView, ExplainView, ResourceView, SessionLoss, SessionRtt, SessionView, WhoAmI,
};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::hub::Metered;
use crate::broker::orchestrator::Input;
use crate::broker::store::{Listed, Owner};
use crate::code::Code;
use crate::firewall;
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
        let transport = agents.iter().find_map(|agent| app.hub.transport(agent, &name));
        let agents_seen = if owner.admin { agents } else { Vec::new() };
        ResourceView { name, kind, online: transport.is_some(), agents: agents_seen, transport }
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

/// Asks both ends what they see, and waits for their answers for a moment.
pub(super) async fn explain(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Id(id): Id,
) -> Result<Json<ExplainView>, Refused> {
    let id = SessionId(id);
    visible(&app, &owner, &id)?;
    let asked = Instant::now();
    app.hub.apply(Input::Explain { session: id.clone() });
    let give_up = asked + EXPLAIN_PATIENCE;
    loop {
        let (said, there) = app.hub.explained(&id).ok_or(Code::SessionUnknown)?;
        let fresh = |at: Instant| at >= asked;
        let waits = said
            .iter()
            .zip(there)
            .any(|(said, there)| there && !said.as_ref().is_some_and(|(at, _)| fresh(*at)));
        if waits && Instant::now() < give_up {
            tokio::time::sleep(EXPLAIN_LOOK_EVERY).await;
            continue;
        }
        let session = view(&app, visible(&app, &owner, &id)?, clock::unix_ms());
        let transport = app.hub.transport(&session.agent, &session.resource);
        let [client, agent] = said
            .map(|said| said.map(|(at, paths)| EndView { age_ms: millis(at.elapsed()), paths }));
        let places = app.places(app.hub.managed(&session.agent, &session.resource));
        let rules = [("client", &client), ("agent", &agent)]
            .into_iter()
            .flat_map(|(name, end)| end.iter().map(move |end| (name, &end.paths.reasons)))
            .flat_map(|(name, reasons)| reasons.iter().map(move |code| (name, code)))
            .flat_map(|(name, code)| firewall::rules(name, code, &places))
            .collect();
        let policy = transport.unwrap_or_default();
        return Ok(Json(ExplainView { session, policy, client, agent, places, rules }));
    }
}

/// Ends answer within a round trip; one that does not in three seconds has a link in trouble, and what it said last
/// must do.
const EXPLAIN_PATIENCE: Duration = Duration::from_secs(3);
const EXPLAIN_LOOK_EVERY: Duration = Duration::from_millis(10);

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
        paths: session.paths,
        rtt,
        legs: legs_view(&figures),
        slow: slow_view(&figures),
        client_to_target: session.client_to_target,
        target_to_client: session.target_to_client,
        age_ms: now.saturating_sub(session.created_ms),
        channels: session.channels,
        resumes: session.resumes,
        loss: SessionLoss { client: session.loss[0], agent: session.loss[1] },
    }
}
