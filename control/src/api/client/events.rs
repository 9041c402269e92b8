//! Events from the broker: a page at a time, or as they happen.
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{ACCEPT, HeaderValue};
use tokio::time::timeout;

use super::{ApiClient, NOTHING, broken, collect, open};
use crate::api::{EventPage, EventView};
use crate::code::{Code, Fault};
use crate::dial::connect_broker;

/// A broker says something on a stream at least every 20 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// One event on a stream, with room for what later versions add.
const EVENT_BYTES_MAX: usize = 64 * 1024;

impl ApiClient {
    /// Events after this id, oldest first; 0 is all that the broker remembers. Own ones; all for an administrator.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn events(&self, after: u64) -> Result<EventPage, Fault> {
        self.get(&format!("/v1/events?after={after}")).await
    }

    /// Events as they happen, after this id, or (`None`) from now on. On a connection of its own.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn follow(&self, after: Option<u64>) -> Result<EventStream, Fault> {
        let path = after
            .map_or_else(|| "/v1/events".to_owned(), |after| format!("/v1/events?after={after}"));
        let mut request = self.request(Method::GET, &path, NOTHING)?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let dialled = async {
            let mut sender = open(connect_broker(&self.invite).await?).await?;
            let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
            if answer.status().is_success() {
                Ok(EventStream { body: answer.into_body(), text: Vec::new(), _sender: sender })
            } else {
                collect(answer).await?;
                Err(broken(&"no stream"))
            }
        };
        timeout(super::REQUEST_TIMEOUT, dialled).await.unwrap_or_else(|_| {
            Err(Code::BrokerUnreachable.because("the broker did not answer in time"))
        })
    }
}

/// What a stream brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Something happened.
    Event(Box<EventView>),
    /// Some events before the next one are forgotten.
    Lost,
}

/// Events as they happen.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    text: Vec<u8>,
    _sender: SendRequest<http_body_util::Full<Bytes>>,
}

impl EventStream {
    /// The next one; `None` once the broker has ended the stream: it stops, or the token is no good any more. Not to be
    /// dropped and called again.
    ///
    /// # Errors
    /// [`Code::BrokerUnreachable`] if the connection broke or went silent; [`Code::MessageMalformed`],
    /// [`Code::MessageTooLarge`].
    pub async fn next(&mut self) -> Result<Option<Told>, Fault> {
        loop {
            while let Some(block) = take_block(&mut self.text) {
                if let Some(told) = read_block(&block)? {
                    return Ok(Some(told));
                }
            }
            if self.text.len() > EVENT_BYTES_MAX {
                return Err(Code::MessageTooLarge.because("an event exceeds 64 KiB"));
            }
            let silent = || Code::BrokerUnreachable.because("the broker has gone silent");
            match timeout(SILENCE_MAX, self.body.frame()).await.map_err(|_| silent())? {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(&error)),
                Some(Ok(frame)) => self.text.extend(frame.data_ref().into_iter().flatten()),
            }
        }
    }
}

/// Cuts the first whole block (up to an empty line) off.
fn take_block(text: &mut Vec<u8>) -> Option<String> {
    let end = text.windows(2).position(|pair| pair == b"\n\n")?;
    let rest = text.split_off(end + 2);
    let block = std::mem::replace(text, rest);
    Some(String::from_utf8_lossy(&block).into_owned())
}

/// What a block says, in the format of server-sent events (HTML, section 9.2.6); `None` for a comment.
fn read_block(block: &str) -> Result<Option<Told>, Fault> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim_start()))
    };
    match (field("event"), field("data")) {
        (Some("lost"), _) => Ok(Some(Told::Lost)),
        (_, Some(data)) => serde_json::from_str(data)
            .map(|event| Some(Told::Event(Box::new(event))))
            .map_err(|error| Code::MessageMalformed.because(format!("an event: {error}"))),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EventKind;

    #[test]
    fn blocks_are_cut_where_they_end_however_they_arrive() {
        let whole = b": hello\n\nid: 7\nevent: draining\ndata: {\"id\":7,\"at_ms\":1,\"kind\":\"draining\"}\n\n\
            event: lost\ndata: {\"after\":1}\n\nid: 8";
        let (mut text, mut told) = (Vec::new(), Vec::new());
        for byte in whole {
            text.push(*byte);
            while let Some(block) = take_block(&mut text) {
                told.extend(read_block(&block).unwrap());
            }
        }
        let [Told::Event(event), Told::Lost] = &told[..] else { panic!("{told:?}") };
        assert_eq!((event.id, event.kind), (7, EventKind::Draining));
        assert_eq!(text, b"id: 8");
        assert_eq!(read_block("data: {\n\n").unwrap_err().code, Code::MessageMalformed);
    }
}
