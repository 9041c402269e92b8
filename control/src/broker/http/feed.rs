//! What a user may use, now and whenever it changes.
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use axum::extract::{Extension, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64URL_NOPAD;
use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::answer::Refused;
use super::caller::Caller;
use super::events::wants_stream;
use crate::api::ResourceView;
use crate::broker::app::App;
use crate::broker::door::Visitor;
use crate::broker::looks::calm;
use crate::broker::shares::Share;
use crate::broker::store::{Listed, Owner};
use crate::code::{Code, Fault};

/// Tells proxies and NATs that the stream lives, and us that its reader does.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A feed as it is sent, with the tag that stands for it.
struct Feed {
    body: String,
    tag: HeaderValue,
    /// How long it was looked at resources.
    took: Duration,
}

/// The feed: what the caller may connect to.
///
/// With `Accept: text/event-stream` the answer is a stream: an event `feed` with the whole feed now, and again at each change,
/// for as long as the token is good.
#[utoipa::path(get, path = "/v1/resources", tag = "use", security(("bearer" = ["user"])),
    responses(
        (status = 200, description = "Resources, with an `ETag`.", content(
            (Vec<ResourceView> = "application/json"), (String = "text/event-stream"))),
        (status = 304, description = "Nothing has changed since the tag of `If-None-Match`.")))]
pub(super) async fn feed(
    State(app): State<Arc<App>>,
    Caller(owner): Caller,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let source = visitor.address.ip();
    if wants_stream(&headers) {
        return follow(app, owner, source);
    }
    let Feed { body, tag, took: _ } = look(&app, &owner, source).await?;
    // A list of tags, or `*` (RFC 9110 section 13.1.2); ours hold no comma.
    let known = |value: &HeaderValue| {
        value.to_str().is_ok_and(|tags| {
            tags.split(',').map(str::trim).any(|one| one == "*" || one.as_bytes() == tag.as_bytes())
        })
    };
    let about =
        [(ETAG, tag.clone()), (CACHE_CONTROL, HeaderValue::from_static("private, no-cache"))];
    if headers.get_all(IF_NONE_MATCH).iter().any(known) {
        return Ok((StatusCode::NOT_MODIFIED, about).into_response());
    }
    let json = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok((about, [json], body).into_response())
}

fn follow(app: Arc<App>, owner: Owner, source: IpAddr) -> Result<Response, Refused> {
    let share = app.user_links.take(owner.name.clone());
    let share = share.ok_or_else(|| {
        Code::RateLimited.because("you hold as many links and streams as you may")
    })?;
    let mut changes = app.hub.feeds();
    changes.mark_changed();
    let (token, calm_until, sent) = (owner.token, Instant::now(), None);
    let following = Following { app, token, source, changes, calm_until, sent, _share: share };
    let events = stream::unfold(following, |mut following| async {
        let event = following.next().await?;
        Some((event, following))
    });
    let events = events.map(Ok::<_, Infallible>);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

struct Following {
    app: Arc<App>,
    /// Its id: what is known of its user may change with the next sign-in.
    token: String,
    source: IpAddr,
    changes: watch::Receiver<u64>,
    /// Until then it is not looked again.
    calm_until: Instant,
    sent: Option<HeaderValue>,
    _share: Share<String>,
}

impl Following {
    async fn next(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = self.app.stop.cancelled() => return None,
            }
            tokio::select! {
                () = sleep_until(self.calm_until) => {}
                () = self.app.stop.cancelled() => return None,
            }
            self.changes.mark_unchanged();
            let owner = self.app.store.owner_again(&self.token).await.ok()??;
            let begun = Instant::now();
            let Feed { body, tag, took } = look(&self.app, &owner, self.source).await.ok()?;
            self.calm_until = begun + calm(took, self.app.hub.followers());
            if self.sent.replace(tag.clone()).as_ref() != Some(&tag) {
                let tag = tag.to_str().unwrap_or_default();
                return Some(Event::default().event("feed").id(tag).data(body));
            }
        }
    }
}

async fn look(app: &Arc<App>, owner: &Owner, source: IpAddr) -> Result<Feed, Fault> {
    let admin = app.administers(owner, source).allowed;
    let show = move |app: &App, seen: Vec<&Listed>| {
        written(&seen.into_iter().map(|listed| view(app, admin, listed)).collect::<Vec<_>>())
    };
    let (written, took) = app.look(owner, source, show).await?;
    let (body, tag) = written?;
    Ok(Feed { body, tag, took })
}

fn written(views: &[ResourceView]) -> Result<(String, HeaderValue), Fault> {
    let body = serde_json::to_string(views)
        .map_err(|error| Code::Internal.because(format!("feed: {error}")))?;
    let hash = digest::digest(&digest::SHA256, body.as_bytes());
    // Sixteen bytes are enough to tell feeds apart.
    let tag = format!("\"{}\"", BASE64URL_NOPAD.encode(&hash.as_ref()[..16]));
    let tag = HeaderValue::from_str(&tag)
        .map_err(|error| Code::Internal.because(format!("feed: {error}")))?;
    Ok((body, tag))
}

fn view(app: &App, admin: bool, listed: &Listed) -> ResourceView {
    let Listed { name, kind, look, agents, announced: _ } = listed;
    let transport = agents.iter().find_map(|agent| app.hub.transport(agent, name));
    let agents = if admin { agents.clone() } else { Vec::new() };
    let (name, look, online) = (name.clone(), look.clone(), transport.is_some());
    ResourceView { name, kind: *kind, look, online, agents, transport }
}
