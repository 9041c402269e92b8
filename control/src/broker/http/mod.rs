//! The HTTP API of [`crate::api`]: routes, and what every request goes through.

mod agents;
mod answer;
mod caller;
mod document;
mod enrol;
mod events;
mod feed;
mod figures;
mod gateways;
mod health;
mod policy;
mod request_id;
mod sessions;
mod signin;
mod test_pairs;
mod tokens;
mod verbs;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use tracing::Instrument;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::answer::Told;
use self::request_id::RequestId;
use crate::broker::app::App;
use crate::broker::limits::REQUEST_DEADLINE;
use crate::broker::{links, metrics};
use crate::code::Code;

pub(crate) use self::answer::{Refused, Upgrade};
pub(crate) use self::caller::{Admin, AgentCaller, Caller, GatewayCaller};
pub(crate) use self::figures::pair_view;

/// Every route of the broker.
pub(crate) fn router(app: Arc<App>) -> Router {
    let (router, document) = routes().split_for_parts();
    router
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(Extension(document::Text::of(&document::finished(document))))
        .layer(from_fn_with_state(app.clone(), account))
        .with_state(app)
}

/// The OpenAPI document of every route.
pub(crate) fn document() -> OpenApi {
    document::finished(routes().into_openapi())
}

/// Router and document of the same routes. Each handler says its method and path itself (`utoipa::path`), so that neither
/// can have what the other lacks; a test of the document keeps bare routes out.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(document::head())
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(document::show))
        .routes(routes!(metrics::page))
        .routes(routes!(sessions::who_am_i))
        .routes(routes!(feed::feed))
        .routes(routes!(agents::list))
        .routes(routes!(agents::drain, agents::undrain))
        .routes(routes!(sessions::list))
        .routes(routes!(sessions::show, sessions::kill))
        .routes(routes!(sessions::explain))
        .routes(routes!(verbs::message))
        .routes(routes!(verbs::pause))
        .routes(routes!(verbs::resume))
        .routes(routes!(events::read))
        .routes(routes!(tokens::list, tokens::issue))
        .routes(routes!(tokens::revoke))
        .routes(routes!(enrol::enrol))
        .routes(routes!(enrol::rotate))
        .routes(routes!(enrol::order))
        .routes(routes!(tokens::grants, tokens::grant, tokens::ungrant))
        .routes(routes!(policy::status))
        .routes(routes!(policy::explain))
        .routes(routes!(policy::audit))
        .routes(routes!(gateways::list))
        .routes(routes!(gateways::drain, gateways::undrain))
        .routes(routes!(gateways::estimate))
        .routes(routes!(signin::offer, signin::sign_in))
        .routes(routes!(signin::sign_out))
        .routes(routes!(test_pairs::make))
        .routes(routes!(links::agent::open))
        .routes(routes!(links::client::open))
        .routes(routes!(links::gateway::open))
}

async fn no_such_route() -> Refused {
    Code::NotFound.into()
}

async fn no_such_method() -> Response {
    let mut response = Refused::from(Code::NotFound.because("no such method here")).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// Names a request, bounds it in time, and counts its answer.
async fn account(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", id = id.as_str(), %method, path);
    let answered =
        tokio::time::timeout(REQUEST_DEADLINE, next.run(request).instrument(span.clone())).await;
    let mut response = answered.unwrap_or_else(|_| {
        Refused::from(Code::MessageMalformed.because("the request did not arrive in time"))
            .into_response()
    });
    let _entered = span.enter();
    tracing::debug!(status = response.status().as_u16(), "answered");
    id.put_into(response.headers_mut());
    match response.extensions().get::<Told>() {
        Some(Told(code)) => {
            app.counters.api_errors.add(*code);
            app.counters.faults.add(*code);
        }
        None => app.counters.api_ok.add(),
    }
    response
}
