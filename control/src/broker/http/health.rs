//! Whether the process lives, and whether it can do its work.
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::api::Readiness;
use crate::broker::app::App;

/// A database that is queued for longer serves nobody in time.
const DATABASE_PATIENCE: Duration = Duration::from_secs(2);

/// Is the process alive? Answers `ok` as long as it answers at all: restart what does not.
#[utoipa::path(get, path = "/healthz", tag = "operations", security(()),
    responses((status = 200, description = "It is.", body = String, content_type = "text/plain")))]
pub(super) async fn alive() -> &'static str {
    "ok"
}

/// Can it do its work? 503 says what is missing: send no requests there, and look, but do not restart it for this.
#[utoipa::path(get, path = "/readyz", tag = "operations", security(()), responses(
    (status = 200, description = "It can.", body = Readiness),
    (status = 503, description = "Something is missing.", body = Readiness)))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Readiness>) {
    let missing = missing(&app).await;
    let ready = missing.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, missing }))
}

async fn missing(app: &App) -> Vec<String> {
    let mut missing = Vec::new();
    match tokio::time::timeout(DATABASE_PATIENCE, app.store.answers()).await {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => missing.push(format!("the database fails ({})", fault.code)),
        Err(_) => missing.push(format!("the database has not answered for {DATABASE_PATIENCE:?}")),
    }
    if app.hub.data_plane.metrics().is_none() {
        missing.push("the gateway does not run".to_owned());
    }
    if app.stop.is_cancelled() {
        missing.push("it is ending, or another process takes over".to_owned());
    }
    missing
}
