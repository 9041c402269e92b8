//! Events: a page of them, or a stream that goes on (server-sent events).
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::Deserialize;

use super::answer::{Query, Refused};
use super::caller::Caller;
use crate::api::{EventPage, EventView};
use crate::broker::app::App;
use crate::broker::bus::Audience;
use crate::broker::door::Visitor;
use crate::broker::shares::Share;
use crate::broker::store::Owner;
use crate::code::Code;

/// Events of one page, about 300 bytes each.
const PAGE_MAX: u16 = 1000;
/// Events that a stream takes at a time: what waits for a slow reader is here, in its socket, and in the ring all share.
const STREAM_PAGE: usize = 64;
/// How often a stream asks whether its token is still good. "Within seconds" is the promise for everything that lives.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A line for NATs and proxies on the way, which forget silent connections after a minute at the earliest.
const COMMENT_EVERY: Duration = Duration::from_secs(20);

/// Which events.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Those after this id; 0 is all that are remembered. Default: all in a page, only new ones in a stream. A stream may
    /// say it in the header `Last-Event-ID` instead.
    after: Option<u64>,
    /// At most this many in a page.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u16>,
}

/// What happened: sessions, links, rights. Users see what concerns them, administrators everything.
///
/// With `Accept: text/event-stream` the answer goes on for as long as the token is good: each event's `id`, its kind as
/// `event`, and an `EventView` as `data`. A reader that falls behind gets `event: lost` in place of what was forgotten.
#[utoipa::path(get, path = "/v1/events", tag = "operations", security(("bearer" = ["user"])), params(Wanted),
    responses((status = 200, description = "Events, oldest first.", content(
        (EventPage = "application/json"), (String = "text/event-stream")))))]
pub(super) async fn read(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let source = visitor.address.ip();
    if !wants_stream(&headers) {
        let limit = wanted.limit.unwrap_or(PAGE_MAX);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Code::UsageInvalid.because("limit is 1 to 1,000").into());
        }
        let after = wanted.after.unwrap_or(0);
        let all = app.administers(&owner, source).allowed;
        let page = app.hub.bus.after(after, audience(all, &owner), limit.into());
        return Ok(Json(page).into_response());
    }
    let share = app.user_links.take(owner.name.clone());
    let share =
        share.ok_or_else(|| Code::RateLimited.because("you hold as many links as you may"))?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let after = wanted.after.or(last).unwrap_or_else(|| app.hub.bus.newest());
    let reader = Reader::new(app, owner, source, after, share);
    let comments = KeepAlive::new().interval(COMMENT_EVERY);
    Ok(Sse::new(reader.events()).keep_alive(comments).into_response())
}

/// Whether the answer is to be a stream of events.
pub(super) fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "text/event-stream"))
}

fn audience(all: bool, owner: &Owner) -> Audience<'_> {
    if all { Audience::Admin } else { Audience::User(owner.name.as_str()) }
}

/// Someone who reads events as they come.
struct Reader {
    app: Arc<App>,
    owner: Owner,
    source: IpAddr,
    after: u64,
    ready: VecDeque<Event>,
    looked_at: Instant,
    /// Whether everything is shown, as of then: every event wakes every reader, and policies are not asked each time.
    all: bool,
    _share: Share<String>,
}

impl Reader {
    fn new(app: Arc<App>, owner: Owner, source: IpAddr, after: u64, share: Share<String>) -> Self {
        let (looked_at, all) = (Instant::now(), app.administers(&owner, source).allowed);
        Self { app, owner, source, after, ready: VecDeque::new(), looked_at, all, _share: share }
    }

    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, async |mut reader| {
            let event = reader.next().await?;
            Some((Ok(event), reader))
        })
    }

    /// The next event; `None` once the broker ends or the token is no good any more.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.looked_at.elapsed() >= LOOK_EVERY {
                // What is known of its user may have changed with the last sign-in.
                self.owner = self.app.store.owner_again(&self.owner.token).await.ok()??;
                self.all = self.app.administers(&self.owner, self.source).allowed;
                self.looked_at = Instant::now();
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            self.refill();
            if !self.ready.is_empty() {
                continue;
            }
            tokio::select! {
                () = self.app.stop.cancelled() => return None,
                () = self.app.hub.bus.newer(self.after) => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn refill(&mut self) {
        let bus = &self.app.hub.bus;
        let audience = audience(self.all, &self.owner);
        let EventPage { events, lost, next } = bus.after(self.after, audience, STREAM_PAGE);
        if lost {
            let data = format!("{{\"after\":{}}}", self.after);
            self.ready.push_back(Event::default().event("lost").data(data));
        }
        self.ready.extend(events.iter().filter_map(written));
        self.after = next.max(self.after);
    }
}

fn written(event: &EventView) -> Option<Event> {
    let named = Event::default().id(event.id.to_string()).event(event.kind.as_str());
    // Nothing in it can fail to be written.
    named.json_data(event).ok()
}
