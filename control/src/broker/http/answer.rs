//! Refusals as HTTP answers, and JSON bodies read within limits.
use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::api::ErrorBody;
use crate::broker::clock;
use crate::broker::limits::BODY_BYTES_MAX;
use crate::code::{Code, Exit, Fault};
use crate::wire::BROKER_TIME;

/// Travels with a refusal's response, to be counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told(pub(super) Code);

/// A refused request.
#[derive(Debug)]
pub(crate) struct Refused(Fault);

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl From<Code> for Refused {
    fn from(code: Code) -> Self {
        Self(code.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = self.0.code;
        if code == Code::Internal {
            tracing::error!(fault = %self.0, "request failed");
        }
        let mut response = (status(code), Json(ErrorBody::from(self.0))).into_response();
        if code == Code::ClockSkew {
            response.headers_mut().insert(BROKER_TIME, HeaderValue::from(clock::unix_ms()));
        }
        response.extensions_mut().insert(Told(code));
        response
    }
}

/// The HTTP status that fits a code.
pub(crate) const fn status(code: Code) -> StatusCode {
    match code {
        Code::TokenInvalid
        | Code::TokenRevoked
        | Code::TokenExpired
        | Code::ClockSkew
        | Code::IdTokenInvalid
        | Code::IdTokenExpired => StatusCode::UNAUTHORIZED,
        Code::NotFound
        | Code::AgentUnknown
        | Code::GatewayUnknown
        | Code::SessionUnknown
        | Code::SubjectUnknown
        | Code::ResourceUnknown
        | Code::SigninOff => StatusCode::NOT_FOUND,
        Code::AgentNameTaken | Code::GatewayNameTaken => StatusCode::CONFLICT,
        Code::MessageTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        _ => match code.exit() {
            Exit::NoPermission => StatusCode::FORBIDDEN,
            Exit::Usage | Exit::Data => StatusCode::BAD_REQUEST,
            Exit::Temporary | Exit::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Exit::Internal | Exit::System => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

/// The last part of a path. One that is no UTF-8 names nothing.
pub(super) struct Id(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        id.map(|Path(id)| Self(id)).map_err(|_| Code::NotFound.into())
    }
}

/// What stands after the `?`.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        let query = query.map_err(|error| Code::MessageMalformed.because(error.body_text()))?;
        Ok(Self(query.0))
    }
}

/// A request to become a WebSocket.
pub(crate) struct Upgrade(pub(crate) WebSocketUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, state).await;
        let upgrade = upgrade.map_err(|error| Code::MessageMalformed.because(error.body_text()))?;
        Ok(Self(upgrade))
    }
}

/// A JSON body of at most [`BODY_BYTES_MAX`], whatever its content type says.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let bytes = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
        let bytes = bytes.map_err(|error| {
            let cause = std::error::Error::source(&error);
            if cause.is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>()) {
                Code::MessageTooLarge.because("the body is too large")
            } else {
                Code::MessageMalformed.because("the body broke off")
            }
        })?;
        let parsed = serde_json::from_slice(&bytes);
        // serde's message names fields and positions, and may quote a value: these bodies hold no secret.
        Ok(Self(parsed.map_err(|error| Code::MessageMalformed.because(error.to_string()))?))
    }
}
