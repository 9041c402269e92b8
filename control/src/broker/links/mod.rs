//! Links: one WebSocket per agent and client, for as long as both live.
//!
//! One task per link sends what the hub queued, reads what the peer says, and watches the silence between. What is said
//! is judged by the link's [`Peer`]; what must be answered goes through the hub's queue, so that a refusal leaves before
//! the close that follows it.

pub(super) mod agent;
pub(super) mod client;
pub(super) mod gateway;
mod reports;
mod udp;

use std::future::Future;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::clock;
use crate::broker::hub::Outgoing;
use crate::broker::limits::{
    FAREWELL_DEADLINE, LINK_READ_MAX, LINK_SEND_DEADLINE, LINK_SILENCE_MAX, PING_EVERY,
};
use crate::broker::rate::Bucket;
use crate::broker::shares::Share;
use crate::code::{Code, Fault};
use crate::wire::MESSAGE_BYTES_MAX;

/// The end that a link talks to.
trait Peer: Send {
    /// Judges a message.
    fn said(&mut self, text: &str) -> impl Future<Output = ()> + Send;

    /// Refuses whatever it was, and closes the link.
    fn refuse(&mut self, fault: Fault);

    /// When the peer must have introduced itself; `None` once it has.
    fn introduction_due(&self) -> Option<Instant>;

    /// A ping was answered after this.
    fn answered(&mut self, _rtt: Duration) {}
}

/// A link begins with all that its ends have to say; its round trip is measured once that has passed.
const FIRST_PING_AFTER: Duration = Duration::from_secs(5);
/// Bytes of a link's buffers; larger messages grow them for a while. The library's own 128 KiB each would be most of what an
/// idle link costs, and messages are small.
const BUFFER_BYTES: usize = 4096;

/// Answers with a WebSocket under our limits, which `serve` has until the link ends, and with it the owner's `share`.
fn upgraded<S: Future<Output = ()> + Send + 'static>(
    upgrade: WebSocketUpgrade,
    tasks: TaskTracker,
    share: Share<String>,
    serve: impl FnOnce(WebSocket) -> S + Send + 'static,
) -> Response {
    upgrade
        .max_message_size(LINK_READ_MAX)
        .max_frame_size(LINK_READ_MAX)
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .on_upgrade(move |socket| {
            tasks.track_future(async move {
                serve(socket).await;
                drop(share);
            })
        })
}

/// A message of the protocol, if its sender keeps to its rate.
fn hear<M: DeserializeOwned>(flood: &mut Bucket, text: &str) -> Result<M, Fault> {
    if !flood.take(clock::now()) {
        return Err(Code::RateLimited.because("too many messages on this link"));
    }
    // No detail from serde: it may quote a value, and messages hold secrets.
    serde_json::from_str(text)
        .map_err(|_| Code::MessageMalformed.because("no message of this protocol"))
}

/// What a link's wait ended with.
enum Event {
    Outgoing(Option<Outgoing>),
    Incoming(Option<Result<Message, axum::Error>>),
    PingDue,
    Silent,
    NotIntroduced,
    Stop,
}

/// Runs a link to its end.
async fn run(
    mut socket: WebSocket,
    mut queue: mpsc::Receiver<Outgoing>,
    peer: &mut impl Peer,
    stop: &CancellationToken,
) {
    let mut ping = interval_at(Instant::now() + FIRST_PING_AFTER, PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard_at = Instant::now();
    let mut pinged_at = None;
    loop {
        let introduction = peer.introduction_due();
        let due = introduction.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            outgoing = queue.recv() => Event::Outgoing(outgoing),
            () = sleep_until(heard_at + LINK_SILENCE_MAX) => Event::Silent,
            () = sleep_until(due), if introduction.is_some() => Event::NotIntroduced,
            _ = ping.tick() => Event::PingDue,
            incoming = socket.recv() => Event::Incoming(incoming),
        };
        match event {
            Event::Outgoing(Some(Outgoing::Text(text))) => {
                if !sent(&mut socket, Message::text(text)).await {
                    return;
                }
            }
            Event::Outgoing(Some(Outgoing::Close)) => return farewell(socket).await,
            Event::PingDue => {
                pinged_at = Some(Instant::now());
                if !sent(&mut socket, Message::Ping(bytes::Bytes::new())).await {
                    return;
                }
            }
            Event::Incoming(Some(Ok(message))) => {
                heard_at = Instant::now();
                if matches!(message, Message::Pong(_)) {
                    let rtt = pinged_at.take().map(|at: Instant| at.elapsed());
                    rtt.into_iter().for_each(|rtt| peer.answered(rtt));
                }
                heard(peer, message).await;
            }
            Event::Incoming(Some(Err(error))) if is_too_long(&error) => peer.refuse(too_large()),
            Event::NotIntroduced => {
                peer.refuse(Code::MessageMalformed.because("no register within 10 s"));
            }
            // `None` from the queue: the hub gave the link up because it does not drain.
            Event::Outgoing(None)
            | Event::Incoming(None | Some(Err(_)))
            | Event::Silent
            | Event::Stop => return,
        }
    }
}

async fn heard(peer: &mut impl Peer, message: Message) {
    match message {
        Message::Text(text) if text.len() > MESSAGE_BYTES_MAX => peer.refuse(too_large()),
        Message::Text(text) => peer.said(text.as_str()).await,
        Message::Binary(_) => {
            peer.refuse(Code::MessageMalformed.because("messages are text, not binary"));
        }
        // Pings are answered below us; a close is followed by the end of the stream.
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => {}
    }
}

fn too_large() -> Fault {
    Code::MessageTooLarge.because("the message exceeds 64 KiB")
}

fn is_too_long(error: &axum::Error) -> bool {
    use tokio_tungstenite::tungstenite::{Error, error::CapacityError};
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(Error::Capacity(CapacityError::MessageTooLong { .. })))
}

async fn sent(socket: &mut WebSocket, message: Message) -> bool {
    matches!(timeout(LINK_SEND_DEADLINE, socket.send(message)).await, Ok(Ok(())))
}

/// Says goodbye, and reads on for a moment: closing with unread bytes would reset the connection, and what we said last
/// could be lost with it (RFC 9112 section 9.6 describes the same for HTTP).
async fn farewell(mut socket: WebSocket) {
    let frame = CloseFrame { code: close_code::POLICY, reason: "".into() };
    if sent(&mut socket, Message::Close(Some(frame))).await {
        let drain = async { while let Some(Ok(_)) = socket.recv().await {} };
        drop(timeout(FAREWELL_DEADLINE, drain).await);
    }
}
