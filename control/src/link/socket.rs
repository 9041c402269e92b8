//! One WebSocket, from the HTTP upgrade to its end.
//!
//! The upgrade is hyper's, not tungstenite's: that one logs the request, token included, at trace level.
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use super::{Doubt, Ended, LinkEvent, Made};
use crate::api::ErrorBody;
use crate::code::{Code, Fault};
use crate::dial::{BrokerAddress, BrokerStream};
use crate::invite::Invite;
use crate::wire::{BROKER_TIME, FIRST_WORD, MESSAGE_BYTES_MAX};

/// From the request to the switch of protocols.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between pings: keeps NAT and firewall entries (30 s and more) alive.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Silence that ends a link: three pings without an answer.
const IDLE_MAX: Duration = Duration::from_secs(45);
/// Silence after a doubt that ends a link: as long as the session layer gives a leg, several round trips of a satellite.
const DOUBT_MAX: Duration = Duration::from_secs(2);
/// Silence after a doubt before another link is made beside: what making this one took, which was three round trips, and
/// time for TCP to send one lost packet again. A link that is well has answered by then.
const SPARE_AFTER: Duration = Duration::from_millis(250);
const SPARE_AFTER_MOST: Duration = Duration::from_millis(1500);
/// Between two such links, and between two pings for doubts: a busy broker gets few of both.
const SPARE_PAUSE: Duration = Duration::from_secs(5);
const DOUBT_PAUSE: Duration = Duration::from_millis(200);
/// A message that cannot be written for this long ends the link.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Last words on a link that is being closed.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// A thousand idle links must be cheap; messages are small.
const BUFFER_BYTES: usize = 4096;

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Turns an HTTPS connection into a WebSocket (RFC 6455 section 4.1), and says whether the broker took the first word. If it
/// refuses with its time, that is told to `heard_time`.
pub(super) async fn upgrade(
    stream: BrokerStream,
    invite: &Invite,
    path: &'static str,
    word: Option<HeaderValue>,
    heard_time: impl Fn(u64),
) -> Result<(Socket, bool), Fault> {
    timeout(UPGRADE_TIMEOUT, ask_upgrade(stream, invite, path, word, heard_time))
        .await
        .unwrap_or_else(|_| Err(unreachable("no answer to the link's request")))
}

async fn ask_upgrade(
    stream: BrokerStream,
    invite: &Invite,
    path: &str,
    word: Option<HeaderValue>,
    heard_time: impl Fn(u64),
) -> Result<(Socket, bool), Fault> {
    let key = generate_key();
    let mut request = request(invite, path, &key)?;
    if let Some(word) = word {
        request.headers_mut().insert(FIRST_WORD, word);
    }
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = tokio::spawn(connection.with_upgrades());
    let response = sender.send_request(request).await.map_err(broken);
    let response = response.inspect_err(|_| connection.abort())?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let time = response.headers().get(BROKER_TIME).and_then(|time| time.to_str().ok());
        time.and_then(|time| time.parse().ok()).into_iter().for_each(heard_time);
        let fault = refusal(response).await;
        connection.abort();
        return Err(fault);
    }
    let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accepted.map(HeaderValue::as_bytes) != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(Code::MessageMalformed.because("the broker's answer is no WebSocket"));
    }
    let taken = response.headers().contains_key(FIRST_WORD);
    let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let stream = TokioIo::new(upgraded);
    Ok((Socket::from_raw_socket(stream, Role::Client, Some(config)).await, taken))
}

fn request(invite: &Invite, path: &str, key: &str) -> Result<Request<Empty<Bytes>>, Fault> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", invite.token.reveal()))
        .map_err(|_| Code::InviteInvalid.because("the string's token holds odd characters"))?;
    bearer.set_sensitive(true);
    Request::get(path)
        .header(header::HOST, BrokerAddress::of(invite)?.host_port())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, key)
        .header(header::AUTHORIZATION, bearer)
        .body(Empty::new())
        .map_err(|error| Code::Internal.because(error.to_string()))
}

/// What the broker says instead of switching protocols.
async fn refusal(response: Response<Incoming>) -> Fault {
    let status = response.status();
    let body = Limited::new(response.into_body(), MESSAGE_BYTES_MAX).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if let Ok(ErrorBody { error }) = serde_json::from_slice(&body) {
        return error.code.because(error.message);
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Code::TokenInvalid.into(),
        StatusCode::TOO_MANY_REQUESTS => Code::RateLimited.into(),
        _ => unreachable(&format!("the broker answered {status}")),
    }
}

/// Carries messages both ways until the link ends; the fault says how.
pub(super) async fn converse<Out: Serialize, In: DeserializeOwned, Another>(
    Made { mut socket, took }: Made,
    mut outgoing: mpsc::Receiver<Out>,
    events: &mpsc::Sender<LinkEvent<Out, In>>,
    doubt: &Doubt,
    stop: &CancellationToken,
    another: impl Fn() -> Another,
) -> Ended
where
    Another: Future<Output = Result<Made, Fault>>,
{
    let patience = (took + SPARE_AFTER).min(SPARE_AFTER_MOST);
    let mut spare = Spare { patience, begin_at: None, rest_until: Instant::now(), opening: None };
    // When the other end is to be asked for a sign of life, and was.
    let (mut ask_at, mut asked) = (None, None);
    let mut ping_at = Instant::now() + PING_INTERVAL;
    let mut silent_at = Instant::now() + IDLE_MAX;
    loop {
        let message = tokio::select! {
            incoming = socket.next() => match incoming.map_or_else(|| Err(ended(None)), read::<In>) {
                Ok(message) => {
                    silent_at = Instant::now() + IDLE_MAX;
                    spare.forget();
                    let Some(message) = message else { continue };
                    if events.send(LinkEvent::Message(message)).await.is_err() {
                        return ended(None).into();
                    }
                    continue;
                }
                Err(fault) => return fault.into(),
            },
            queued = outgoing.recv() => match queued.as_ref().map(write) {
                Some(Ok(message)) => message,
                Some(Err(fault)) => {
                    tracing::warn!(%fault, "message not sent");
                    continue;
                }
                None => return goodbye(socket, outgoing).await.into(),
            },
            () = stop.cancelled() => return goodbye(socket, outgoing).await.into(),
            () = doubt.0.notified() => {
                // Many doubts in a row are one question.
                let next = asked.map_or_else(Instant::now, |at| at + DOUBT_PAUSE);
                ask_at.get_or_insert(next);
                continue;
            }
            () = at_last(ask_at) => {
                let now = Instant::now();
                (ask_at, asked) = (None, Some(now));
                silent_at = silent_at.min(now + DOUBT_MAX);
                spare.want(now);
                Message::Ping(Bytes::new())
            }
            opened = spare.open(&another) => match opened {
                Ok(made) => return Ended { fault: unreachable("the link fell silent"), next: Some(made), up: true },
                Err(fault) => {
                    tracing::debug!(code = %fault.code, detail = fault.detail, "no link beside a silent one");
                    continue;
                }
            },
            () = sleep_until(silent_at) => return unreachable("the link fell silent").into(),
            () = sleep_until(ping_at) => {
                ping_at = Instant::now() + PING_INTERVAL;
                Message::Ping(Bytes::new())
            }
        };
        match timeout(WRITE_TIMEOUT, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return unreachable(&format!("the link broke: {error}")).into(),
            Err(_) => return unreachable("the link takes no more messages").into(),
        }
    }
}

/// Waits until then; for ever, if there is no such time.
async fn at_last(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// The link that is made beside one that is silent.
struct Spare<Another> {
    patience: Duration,
    begin_at: Option<Instant>,
    rest_until: Instant,
    opening: Option<Pin<Box<Another>>>,
}

impl<Another: Future<Output = Result<Made, Fault>>> Spare<Another> {
    /// The link is doubted.
    fn want(&mut self, now: Instant) {
        if self.opening.is_none() && self.begin_at.is_none() {
            self.begin_at = Some(self.rest_until.max(now + self.patience));
        }
    }

    /// The link spoke.
    fn forget(&mut self) {
        (self.begin_at, self.opening) = (None, None);
    }

    /// Waits until one is to be made, and is. May be dropped and called again.
    async fn open(&mut self, another: impl Fn() -> Another) -> Result<Made, Fault> {
        if self.opening.is_none() {
            at_last(self.begin_at).await;
            self.begin_at = None;
            self.rest_until = Instant::now() + SPARE_PAUSE;
        }
        let opening = self.opening.get_or_insert_with(|| Box::pin(another()));
        let opened = opening.await;
        self.opening = None;
        opened
    }
}

/// Says what is still queued, and closes.
async fn goodbye<Out: Serialize>(mut socket: Socket, mut outgoing: mpsc::Receiver<Out>) -> Fault {
    let last_words = async {
        while let Ok(message) = outgoing.try_recv() {
            if let Ok(message) = write(&message) {
                socket.send(message).await?;
            }
        }
        socket.close(None).await
    };
    // A link in trouble keeps nobody from leaving.
    let _ = timeout(GOODBYE_TIMEOUT, last_words).await;
    ended(None)
}

fn read<In: DeserializeOwned>(
    incoming: Result<Message, tungstenite::Error>,
) -> Result<Option<In>, Fault> {
    match incoming {
        Ok(Message::Text(text)) => match serde_json::from_str(&text) {
            Ok(message) => Ok(Some(message)),
            Err(error) => {
                // A newer broker may say things we do not know; the link is still good.
                tracing::warn!(code = %Code::MessageMalformed, %error, "message ignored");
                Ok(None)
            }
        },
        Ok(Message::Close(frame)) => Err(ended(frame)),
        Ok(_) => Ok(None),
        Err(tungstenite::Error::Capacity(error)) => {
            Err(Code::MessageTooLarge.because(error.to_string()))
        }
        Err(error) => Err(unreachable(&format!("the link broke: {error}"))),
    }
}

fn write<Out: Serialize>(message: &Out) -> Result<Message, Fault> {
    let text = serde_json::to_string(message)
        .map_err(|error| Code::Internal.because(error.to_string()))?;
    if text.len() > MESSAGE_BYTES_MAX {
        return Err(Code::MessageTooLarge.because(format!("{} bytes to send", text.len())));
    }
    Ok(Message::text(text))
}

/// The fault behind a close frame: the broker may name a code as its reason.
fn ended(frame: Option<CloseFrame>) -> Fault {
    let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
    Code::from_symbol(&reason).map_or_else(|| unreachable("the link ended"), Fault::from)
}

fn unreachable(detail: &str) -> Fault {
    Code::BrokerUnreachable.because(detail)
}

fn broken(error: hyper::Error) -> Fault {
    let io =
        std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    unreachable(&io.map_or_else(|| error.to_string(), io::Error::to_string))
}
