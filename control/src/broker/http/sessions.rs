//! What users ask: who am I, how are my sessions.
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;

use super::answer::{Id, Refused};
use super::caller::Caller;
use super::figures::pair_view;
use crate::api::{AuditRecord, EndView, ExplainView, SessionLoss, SessionRtt, SessionView, WhoAmI};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::door::Visitor;
use crate::broker::hub::Metered;
use crate::broker::orchestrator::{Input, Snapshot};
use crate::broker::policy::{SessionFacts, record};
use crate::broker::store::Owner;
use crate::code::Code;
use crate::firewall;
use crate::policy::Action;
use crate::wire::{LOCAL_GATEWAY, PairView, SessionId};

/// Who the token belongs to.
#[utoipa::path(get, path = "/v1/whoami", tag = "use", security(("bearer" = ["user"])),
    responses((status = 200, description = "The user.", body = WhoAmI)))]
pub(super) async fn who_am_i(Caller(owner): Caller) -> Json<WhoAmI> {
    Json(WhoAmI {
        user: owner.name,
        admin: owner.admin,
        issuer: owner.claims.issuer,
        expires_ms: owner.expires_ms,
    })
}

/// Live sessions: own ones, or all for administrators.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", security(("bearer" = ["user"])),
    responses((status = 200, description = "Sessions, oldest first.", body = Vec<SessionView>)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
) -> Json<Vec<SessionView>> {
    let all = app.administers(&owner, visitor.address.ip()).allowed;
    let user = (!all).then_some(owner.name.as_str());
    let now = clock::unix_ms();
    let sessions = app.hub.sessions(user).into_iter();
    let mut views: Vec<_> = sessions.map(|session| view(&app, session, now)).collect();
    views.sort_by(|a, b| b.age_ms.cmp(&a.age_ms).then_with(|| a.id.cmp(&b.id)));
    Json(views)
}

/// One live session, of the caller, or any for administrators.
#[utoipa::path(get, path = "/v1/sessions/{id}", tag = "sessions", security(("bearer" = ["user"])), params(("id" = String, Path, description = "From the list.")),
    responses((status = 200, description = "The session.", body = SessionView)))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
    Id(id): Id,
) -> Result<Json<SessionView>, Refused> {
    let session = visible(&app, (&owner, &visitor), &SessionId(id))?;
    Ok(Json(view(&app, session, clock::unix_ms())))
}

/// End a session at both ends at once.
#[utoipa::path(delete, path = "/v1/sessions/{id}", tag = "sessions", security(("bearer" = ["user"])), params(("id" = String, Path, description = "From the list.")),
    responses((status = 204, description = "It is over.")))]
pub(super) async fn kill(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
    Id(id): Id,
) -> Result<StatusCode, Refused> {
    let session = SessionId(id);
    let (found, _) = app.hub.session(&session).ok_or(Code::SessionUnknown)?;
    let Snapshot { user, resource, .. } = &found;
    let source = visitor.address.ip();
    let facts = SessionFacts { session: &session.0, user, resource };
    let decision = app.judge_session(&owner, source, Action::Kill, &facts).await?;
    let told = record(&owner.name, "kill", resource, &decision, Some(source));
    let denied = if visible(&app, (&owner, &visitor), &session).is_ok() {
        Code::PolicyDenied
    } else {
        Code::SessionUnknown
    };
    let code = (!decision.allowed).then_some(denied);
    let detail = Some(format!("a session of {user}"));
    let told = AuditRecord { correlation: session.0.clone(), code, detail, ..told };
    if let Some(code) = code {
        app.audit.tell_refusal(told);
        return Err(code.into());
    }
    app.audit.tell(told);
    tracing::info!(%session, by = owner.name, "session killed");
    app.hub.apply(Input::Kill { session, code: Code::SessionKilled });
    Ok(StatusCode::NO_CONTENT)
}

/// Why a session takes the way it takes. Asks both ends what they see, and waits for their answers, 3 s at most.
#[utoipa::path(get, path = "/v1/sessions/{id}/explain", tag = "sessions", security(("bearer" = ["user"])), params(("id" = String, Path, description = "From the list.")),
    responses((status = 200, description = "What the ends see, and what would mend it.", body = ExplainView)))]
pub(super) async fn explain(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
    Id(id): Id,
) -> Result<Json<ExplainView>, Refused> {
    let id = SessionId(id);
    visible(&app, (&owner, &visitor), &id)?;
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
        let session = view(&app, visible(&app, (&owner, &visitor), &id)?, clock::unix_ms());
        let transport = app.hub.transport_of(&id);
        let [client, agent] = said.map(|said| {
            said.map(|(at, paths)| EndView { age_ms: clock::millis(at.elapsed()), paths })
        });
        let places = app.places(&id, app.hub.managed(&session.agent, &session.resource));
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

/// Another user's session looks like none.
pub(super) fn visible(
    app: &App,
    (owner, visitor): (&Owner, &Visitor),
    id: &SessionId,
) -> Result<Metered, Refused> {
    let source = visitor.address.ip();
    let may = |found: &Snapshot| found.user == owner.name || app.administers(owner, source).allowed;
    let found = app.hub.session(id).filter(|(found, _)| may(found));
    found.ok_or_else(|| Code::SessionUnknown.into())
}

fn view(app: &App, (session, meter): Metered, now: u64) -> SessionView {
    // Without a meter nobody is to blame, and `because` says so.
    let figures = meter.map_or_else(|| pair_view(&Default::default()), |meter| meter.view());
    let PairView { client_rtt: client_leg, agent_rtt: agent_leg, legs, slow } = figures;
    let rtt = SessionRtt { client_leg, agent_leg, end_to_end: session.end_to_end };
    let gateway = match session.gateway.as_deref() {
        None | Some(LOCAL_GATEWAY) => app.authority.to_string(),
        Some(name) => name.to_owned(),
    };
    SessionView {
        id: session.session,
        user: session.user,
        resource: session.resource,
        agent: session.agent,
        gateway,
        state: session.state,
        transport: session.transport,
        paths: session.paths,
        rtt,
        legs,
        slow,
        client_to_target: session.client_to_target,
        target_to_client: session.target_to_client,
        age_ms: now.saturating_sub(session.created_ms),
        channels: session.channels,
        resumes: session.resumes,
        loss: SessionLoss { client: session.loss[0], agent: session.loss[1] },
        life: session.life,
    }
}
