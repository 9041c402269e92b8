//! Refusals as HTTP answers, and JSON bodies read within limits.
use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::api::ErrorBody;
use crate::broker::limits::BODY_BYTES_MAX;
use crate::code::{Code, Fault};

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
        response.extensions_mut().insert(Told(code));
        response
    }
}

/// The HTTP status that fits a code.
pub(crate) const fn status(code: Code) -> StatusCode {
    match code {
        Code::TokenInvalid | Code::TokenRevoked => StatusCode::UNAUTHORIZED,
        Code::AdminOnly | Code::AgentNotAllowed | Code::ResourceNotGranted => StatusCode::FORBIDDEN,
        Code::NotFound | Code::SessionUnknown | Code::SubjectUnknown | Code::ResourceUnknown => {
            StatusCode::NOT_FOUND
        }
        Code::MessageMalformed | Code::UsageInvalid | Code::ProtocolVersion => {
            StatusCode::BAD_REQUEST
        }
        Code::MessageTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::SessionLimit | Code::AgentOffline => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
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
