//! Tickets for pairs that carry no session: to test or load the gateway with legs of one's own.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use data_encoding::BASE64;
use switchback_engine::{LegSide, PairId, hello};

use super::answer::{Body, Refused};
use super::caller::Admin;
use crate::api::{NewTestPairs, TestPair};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::limits::TEST_PAIRS_MAX;
use crate::code::Code;
use crate::secret::Secret;

/// Tickets for pairs that carry no session, to test or load the gateway with legs of one's own.
#[utoipa::path(post, path = "/v1/test-pairs", tag = "operations", security(("bearer" = ["admin"])), request_body = NewTestPairs,
    responses((status = 200, description = "Both legs' opening bytes of each pair.", body = Vec<TestPair>)))]
pub(super) async fn make(
    State(app): State<Arc<App>>,
    _: Admin,
    Body(NewTestPairs { count }): Body<NewTestPairs>,
) -> Result<Json<Vec<TestPair>>, Refused> {
    if !(1..=TEST_PAIRS_MAX).contains(&count) {
        return Err(Code::UsageInvalid.because("between 1 and 1,000 pairs at a time").into());
    }
    Ok(Json((0..count).map(|_| pair(&app)).collect()))
}

fn pair(app: &App) -> TestPair {
    let pair = PairId(clock::random());
    let opening = |side| {
        let ticket = app.hub.ticket(pair, side, false);
        let hello = hello::encode(ticket.server_name.reveal(), clock::random());
        Secret::new(BASE64.encode(&hello))
    };
    TestPair {
        pair: pair.to_string(),
        client_hello: opening(LegSide::Client),
        agent_hello: opening(LegSide::Agent),
    }
}
