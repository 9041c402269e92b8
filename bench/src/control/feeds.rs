//! Readers of the feed: who asks for it at a rate, and who watches it.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::future::poll_fn;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, ETAG, HOST, HeaderValue, IF_NONE_MATCH};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use switchback_control::api::ResourceView;
use switchback_control::dial::BrokerAddress;
use switchback_control::invite::Invite;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::broker::Broker;
use super::ends::{READERS, bearer, connect, source};
use super::pace::{Turn, pace};
use crate::load::schedule::{Arrivals, Schedule};
use crate::measure::Usage;

/// Of the feed.
const PATH: &str = "/v1/resources";

/// Connections that requests take turns on.
const CONNECTIONS: usize = 16;

/// Longest event taken from a stream: a thousand resources are about 200 KiB.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// Resources whose appearance is timed begin with this.
pub(crate) const CHANGE: &str = "change-";

type Sender = SendRequest<Empty<Bytes>>;

/// One user, with idle connections.
pub(crate) struct Reader {
    invite: Invite,
    idle: Mutex<Vec<Sender>>,
    room: Semaphore,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) status: StatusCode,
    pub(crate) tag: Option<HeaderValue>,
    pub(crate) bytes: usize,
}

impl Reader {
    /// Connects.
    ///
    /// # Errors
    /// The broker cannot be reached.
    pub(crate) async fn start(invite: Invite) -> Result<Arc<Reader>> {
        let mut idle = Vec::new();
        for number in 0..CONNECTIONS {
            idle.push(http(&invite, source(READERS, number)).await?);
        }
        Ok(Arc::new(Reader { invite, idle: Mutex::new(idle), room: Semaphore::new(CONNECTIONS) }))
    }

    /// Reads the feed, or learns that it is still the one with this tag.
    ///
    /// # Errors
    /// No answer.
    pub(crate) async fn read(&self, tag: Option<&HeaderValue>) -> Result<Read> {
        let _room = self.room.acquire().await?;
        let mut sender = self.idle().pop().context("a connection was lost")?;
        let mut wanted = request(&self.invite)?;
        if let Some(tag) = tag {
            wanted.headers_mut().insert(IF_NONE_MATCH, tag.clone());
        }
        sender.ready().await?;
        let answer = sender.send_request(wanted).await?;
        let (status, tag) = (answer.status(), answer.headers().get(ETAG).cloned());
        let bytes = answer.into_body().collect().await?.to_bytes().len();
        self.idle().push(sender);
        Ok(Read { status, tag, bytes })
    }

    /// Reads at a rate for so long, whatever comes back. What each took from the time it was meant to be asked, in
    /// nanoseconds, and what it cost the broker.
    ///
    /// # Errors
    /// An answer is missing, or not `expected`.
    pub(crate) async fn read_often(
        self: &Arc<Self>,
        broker: &Broker,
        (schedule, seconds): (Schedule, f64),
        tag: Option<HeaderValue>,
        expected: StatusCode,
    ) -> Result<(Vec<u64>, Usage)> {
        let meter = broker.meter()?;
        let mut asked = JoinSet::new();
        let reading = meter.begin()?;
        let mut turns = pace(schedule, seconds)?;
        while let Some(Turn { due, .. }) = turns.recv().await {
            let (reader, tag) = (self.clone(), tag.clone());
            asked.spawn(async move {
                let read = reader.read(tag.as_ref()).await?;
                ensure!(read.status == expected, "the broker answered {}", read.status);
                Ok(due.elapsed().as_nanos() as u64)
            });
        }
        let times = asked.join_all().await.into_iter().collect::<Result<_>>()?;
        Ok((times, meter.used_since(&reading)?))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests at this rate, at random times.
pub(crate) fn at_random(rate: f64, seed: u64) -> Schedule {
    Schedule::new(Arrivals::Poisson, rate, 1, seed)
}

/// Watchers of the feed, which run until this is dropped.
pub(crate) struct Watchers {
    /// The name of a resource that begins with [`CHANGE`], and when one of them learnt that it is online.
    pub(crate) seen: mpsc::UnboundedReceiver<(String, Instant)>,
    _tasks: JoinSet<()>,
}

impl Watchers {
    /// So many streams of one user, each after its first event.
    ///
    /// # Errors
    /// The broker does not answer.
    pub(crate) async fn start(invite: &Invite, count: usize) -> Result<Watchers> {
        let (sender, seen) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let mut http = http(invite, source(READERS, CONNECTIONS + number)).await?;
            let mut wanted = request(invite)?;
            let stream = HeaderValue::from_static("text/event-stream");
            wanted.headers_mut().insert(ACCEPT, stream);
            let answer = http.send_request(wanted).await?;
            ensure!(answer.status() == StatusCode::OK, "no stream but {}", answer.status());
            let mut events = Events::of(answer);
            events.next().await.context("a stream without a first event")?;
            let sender = sender.clone();
            tasks.spawn(async move {
                let _connection = http;
                while let Some(event) = events.next().await {
                    let at = Instant::now();
                    for name in changes(&event) {
                        // Nobody may be counting any more.
                        let _ = sender.send((name, at));
                    }
                }
            });
        }
        Ok(Watchers { seen, _tasks: tasks })
    }
}

/// Server-sent events as they come.
struct Events {
    body: Incoming,
    text: Vec<u8>,
}

impl Events {
    fn of(answer: Response<Incoming>) -> Events {
        Events { body: answer.into_body(), text: Vec::new() }
    }

    /// The next one, which an empty line ends.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.text.windows(2).position(|pair| pair == b"\n\n") {
                let rest = self.text.split_off(end + 2);
                return Some(std::mem::replace(&mut self.text, rest));
            }
            if self.text.len() > EVENT_BYTES_MAX {
                return None;
            }
            let body = &mut self.body;
            let frame = poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await?.ok()?;
            self.text.extend_from_slice(frame.data_ref()?);
        }
    }
}

/// The resources that are timed and online, of an event with a feed.
fn changes(event: &[u8]) -> Vec<String> {
    let lines = event.split(|byte| *byte == b'\n');
    let data = lines.filter_map(|line| line.strip_prefix(b"data:"));
    let feeds = data.filter_map(|data| serde_json::from_slice::<Vec<ResourceView>>(data).ok());
    let is_new = |view: &ResourceView| view.online && view.name.starts_with(CHANGE);
    feeds.flatten().filter(is_new).map(|view| view.name).collect()
}

fn request(invite: &Invite) -> Result<Request<Empty<Bytes>>> {
    let host = BrokerAddress::of(invite)?.host_port();
    let request = Request::get(PATH).header(HOST, host).header(AUTHORIZATION, bearer(invite)?);
    Ok(request.body(Empty::new())?)
}

/// An HTTPS connection.
async fn http(invite: &Invite, from: Ipv4Addr) -> Result<Sender> {
    let stream = connect(invite, from).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with its sender.
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_feed_only_changes_that_are_online_are_told() {
        let view = |name: &str, online: bool| {
            format!(r#"{{"name":"{name}","kind":"tcp","online":{online}}}"#)
        };
        let feed = [view("r-1", true), view("change-1", true), view("change-2", false)].join(",");
        let event = format!("event: feed\nid: \"x\"\ndata: [{feed}]\n\n");
        assert_eq!(changes(event.as_bytes()), ["change-1"]);
        assert!(changes(b": comment\n\n").is_empty());
    }
}
