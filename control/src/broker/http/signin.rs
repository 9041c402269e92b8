//! Signing in by a provider's token, and out again.
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};

use super::answer::{Body, Refused};
use super::caller::Caller;
use crate::api::TokenKind;
use crate::api::signin::{NewSignin, Signin, SigninOffer};
use crate::broker::app::App;
use crate::broker::door::Visitor;
use crate::broker::signin;

/// Which provider users sign in with, if any.
#[utoipa::path(get, path = "/v1/signin", tag = "sign-in", security(()),
    responses((status = 200, description = "How to sign in.", body = SigninOffer)))]
pub(super) async fn offer(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
) -> Result<Json<SigninOffer>, Refused> {
    app.signins.sources.charge(visitor.address, "sign-ins")?;
    Ok(Json(app.signins.offer()))
}

/// Sign in by a provider's ID token, or renew the sign-in whose token is shown.
///
/// Who renews is known and pays as a user; who comes anew pays for the address.
#[utoipa::path(post, path = "/v1/signin", tag = "sign-in", security(()), request_body = NewSignin,
    responses((status = 200, description = "A token of this broker.", body = Signin)))]
pub(super) async fn sign_in(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Body(proof): Body<NewSignin>,
) -> Result<Json<Signin>, Refused> {
    let by = match headers.get(AUTHORIZATION) {
        Some(bearer) => {
            let bearer = bearer.to_str().ok();
            let owner = app.sign_in(bearer, TokenKind::User, visitor.address).await?;
            app.charge(&owner.name)?;
            Some(owner)
        }
        None => {
            app.signins.sources.charge(visitor.address, "sign-ins")?;
            None
        }
    };
    let signed = signin::sign_in(&app, proof, by).await;
    Ok(Json(signed.map_err(|fault| {
        tracing::info!(peer = %visitor.address, %fault, "sign-in refused");
        app.count_guess(fault, visitor.address)
    })?))
}

/// Sign out: the token shown ends, with its links and sessions.
#[utoipa::path(post, path = "/v1/signout", tag = "sign-in", security(("bearer" = ["user"])),
    responses((status = 204, description = "It has ended.")))]
pub(super) async fn sign_out(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
) -> Result<StatusCode, Refused> {
    signin::sign_out(&app, owner).await?;
    Ok(StatusCode::NO_CONTENT)
}
