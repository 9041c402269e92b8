//! The HTTP API of [`crate::api`]: routes, and what every request goes through.

mod answer;
mod caller;
mod figures;
mod sessions;
mod test_pairs;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};

use self::answer::Told;
use crate::broker::app::App;
use crate::broker::limits::REQUEST_DEADLINE;
use crate::broker::{links, metrics};
use crate::code::Code;
use crate::wire::{AGENT_LINK, CLIENT_LINK};

pub(crate) use self::answer::{Refused, Upgrade};
pub(crate) use self::caller::{Admin, AgentCaller, Caller};

/// Every route of the broker.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/metrics", get(metrics::page))
        .route("/v1/whoami", get(sessions::who_am_i))
        .route("/v1/resources", get(sessions::feed))
        .route("/v1/sessions", get(sessions::list))
        .route("/v1/sessions/{id}", get(sessions::show).delete(sessions::kill))
        .route("/v1/sessions/{id}/explain", get(sessions::explain))
        .route("/v1/tokens", get(tokens::list).post(tokens::issue))
        .route("/v1/tokens/{id}", delete(tokens::revoke))
        .route("/v1/grants", get(tokens::grants).put(tokens::grant).delete(tokens::ungrant))
        .route("/v1/test-pairs", post(test_pairs::make))
        .route(AGENT_LINK, get(links::agent::open))
        .route(CLIENT_LINK, get(links::client::open))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(app.clone(), account))
        .with_state(app)
}

async fn no_such_route() -> Refused {
    Code::NotFound.into()
}

async fn no_such_method() -> Response {
    let mut response = Refused::from(Code::NotFound.because("no such method here")).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// Bounds a request in time, and counts its answer.
async fn account(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let answered = tokio::time::timeout(REQUEST_DEADLINE, next.run(request)).await;
    let response = answered.unwrap_or_else(|_| {
        Refused::from(Code::MessageMalformed.because("the request did not arrive in time"))
            .into_response()
    });
    match response.extensions().get::<Told>() {
        Some(Told(code)) => {
            app.counters.api_errors.add(*code);
            app.counters.faults.add(*code);
        }
        None => app.counters.api_ok.add(),
    }
    response
}
