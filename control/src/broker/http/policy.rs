//! Policies and the audit trail, for administrators.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::answer::{Body, Query, Refused};
use super::caller::Admin;
use crate::api::{AuditRecord, ExplainPolicy, PolicyExplained, PolicyStatus};
use crate::broker::app::App;
use crate::broker::store::{AuditQuery, Standing};
use crate::code::{Code, Fault};
use crate::policy::{Action, Object, Subject};

/// Records of one answer: some 4 MiB.
const RECORDS_MAX: u32 = 10_000;
/// Without a limit given.
const RECORDS: u32 = 1000;

/// The policies that hold, with their text.
#[utoipa::path(get, path = "/v1/policy", tag = "rights", security(("bearer" = ["admin"])),
    responses((status = 200, description = "The policies.", body = PolicyStatus)))]
pub(super) async fn status(State(app): State<Arc<App>>, _: Admin) -> Json<PolicyStatus> {
    Json(app.judge.status(true))
}

/// What the policies would say to a request, why, and what would change it. Nothing is done.
#[utoipa::path(post, path = "/v1/policy/explain", tag = "rights", security(("bearer" = ["admin"])), request_body = ExplainPolicy,
    responses((status = 200, description = "The decision with its grounds.", body = PolicyExplained)))]
pub(super) async fn explain(
    State(app): State<Arc<App>>,
    _: Admin,
    Body(asked): Body<ExplainPolicy>,
) -> Result<Json<PolicyExplained>, Refused> {
    let wrong = |detail: String| Refused::from(Code::UsageInvalid.because(detail));
    let action = asked.action.as_deref().unwrap_or("connect");
    let action = Action::from_text(action).ok_or_else(|| wrong(format!("no action {action}")))?;
    let source = asked.source.as_deref().map(str::parse).transpose();
    let source = source.map_err(|_| wrong("the source is no IP address".into()))?;
    let standing = standing(&app, &asked.user, &asked.resource).await?;
    let facts = standing.facts(&asked.resource).into_iter();
    let Standing { mut subject, granted, .. } = standing;
    subject.claims.groups.extend(asked.groups);
    subject.claims.amr.extend(asked.amr);
    if !subject.claims.fits() {
        return Err(wrong("that is more than a sign-in may bring".into()));
    }
    let objects: Vec<Object> = match action {
        Action::See | Action::Connect => facts.map(Object::Resource).collect(),
        Action::Admin => vec![Object::Broker],
        // As if it were the user's own.
        Action::Kill | Action::ShadowView | Action::ShadowControl => {
            Object::sessions("", &asked.user, facts)
        }
    };
    let mut here = app.judge.circumstances(source, granted, asked.transport);
    here.now_ms = asked.at_ms.unwrap_or(here.now_ms);
    let trial = app.judge.try_out(&subject, action, &objects, &here);
    Ok(Json(PolicyExplained { trial, granted, locations: here.locations.into_iter().collect() }))
}

async fn standing(app: &App, user: &str, resource: &str) -> Result<Standing, Fault> {
    if let Some(standing) = app.store.standing_of(user, resource).await? {
        return Ok(standing);
    }
    // Someone who never signed in.
    let subject = Subject { name: user.to_owned(), ..Subject::default() };
    Ok(Standing { subject, ..Standing::default() })
}

/// Which records.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Not before this, Unix milliseconds.
    since_ms: Option<u64>,
    /// What this user wanted.
    user: Option<String>,
    /// The latest so many; 1,000 if left out, 10,000 at most.
    limit: Option<u32>,
}

/// What was decided, for whom and why, oldest first.
#[utoipa::path(get, path = "/v1/audit", tag = "rights", security(("bearer" = ["admin"])), params(Wanted),
    responses((status = 200, description = "Audit records.", body = Vec<AuditRecord>)))]
pub(super) async fn audit(
    State(app): State<Arc<App>>,
    _: Admin,
    Query(Wanted { since_ms, user, limit }): Query<Wanted>,
) -> Result<Json<Vec<AuditRecord>>, Refused> {
    let (since_ms, limit) = (since_ms.unwrap_or(0), limit.unwrap_or(RECORDS).min(RECORDS_MAX));
    Ok(Json(app.store.audit(AuditQuery { since_ms, user, limit }).await?))
}
