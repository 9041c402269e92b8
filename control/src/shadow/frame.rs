//! The protocol on a watch's channel: frames, to bytes and back. Pure.
//!
//! A frame is a length (32 bits, of what follows it), a type (8 bits) and a body; all integers are big-endian. Times are
//! microseconds since the Unix epoch by the agent's clock.
//!
//! | type | from | body |
//! |---|---|---|
//! | 1 hello | agent, first | JSON, see [`Hello`] |
//! | 2 opened | agent | channel (64), time (64) |
//! | 3 data | agent | channel (64), direction (8: 0 to the target, 1 to the client), time (64), bytes |
//! | 4 skipped | agent | channel (64), direction (8), time (64), number of bytes (64) |
//! | 5 closed | agent | channel (64), time (64) |
//! | 6 session ended | agent, last | time (64), why (UTF-8) |
//! | 16 inject | watcher | channel (64), bytes |
//!
//! Within a channel and direction, data and skipped frames are in order; a skipped frame stands where the bytes would have.
//! Data may be cut anywhere.
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::wire::{ResourceKind, SessionId};

/// Version of the protocol.
pub const VERSION: u32 = 1;
/// Bytes of one data or inject frame; longer ones are cut.
pub const DATA_MAX: usize = 32 * 1024;
/// Largest frame that is read.
const FRAME_MAX: usize = DATA_MAX + 1024;

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the client to the target.
    ToTarget,
    /// From the target to the client.
    ToClient,
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// The session that is watched.
    pub session: SessionId,
    /// Who uses it.
    pub user: String,
    /// What is used.
    pub resource: String,
    /// What that carries.
    pub kind: ResourceKind,
    /// Port of the target, so that a recording can be told apart by protocol.
    pub port: u16,
    /// When the agent began to serve it.
    pub since_us: u64,
    /// Whether `inject` is obeyed.
    pub control: bool,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first.
    Hello(Box<Hello>),
    /// A channel is open.
    Opened {
        /// Which: 1, 2, 3 ... within the session.
        channel: u64,
        /// When it was opened.
        at_us: u64,
    },
    /// Bytes passed.
    Data {
        /// Which channel.
        channel: u64,
        /// Which way.
        direction: Direction,
        /// When.
        at_us: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Bytes passed that are not shown: before the backlog, or faster than the watcher took them.
    Skipped {
        /// Which channel.
        channel: u64,
        /// Which way.
        direction: Direction,
        /// When the last of them passed.
        at_us: u64,
        /// How many.
        bytes: u64,
    },
    /// A channel is closed.
    Closed {
        /// Which.
        channel: u64,
        /// When.
        at_us: u64,
    },
    /// The watch is over.
    SessionEnded {
        /// When.
        at_us: u64,
        /// Why, for people.
        why: String,
    },
    /// To be sent to the target.
    Inject {
        /// Which channel.
        channel: u64,
        /// The bytes.
        bytes: Bytes,
    },
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than any frame.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// A type this version does not know.
    #[error("frames of type {0} are not known")]
    UnknownType(u8),
    /// A body that is not as its type says.
    #[error("a frame of type {0} is malformed")]
    Malformed(u8),
}

impl Frame {
    /// Appends the frame to `out`. Data and injected bytes longer than [`DATA_MAX`] become several frames.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Data { channel, direction, at_us, bytes } => {
                for piece in bytes.chunks(DATA_MAX) {
                    head(out, 3, 17 + piece.len());
                    out.put_u64(*channel);
                    out.put_u8(direction.number());
                    out.put_u64(*at_us);
                    out.put_slice(piece);
                }
            }
            Self::Inject { channel, bytes } => {
                for piece in bytes.chunks(DATA_MAX) {
                    head(out, 16, 8 + piece.len());
                    out.put_u64(*channel);
                    out.put_slice(piece);
                }
            }
            Self::Hello(hello) => {
                // Plain strings and numbers.
                let text = serde_json::to_vec(hello).unwrap_or_default();
                head(out, 1, text.len());
                out.put_slice(&text);
            }
            Self::Opened { channel, at_us } => two(out, 2, *channel, *at_us),
            Self::Closed { channel, at_us } => two(out, 5, *channel, *at_us),
            Self::Skipped { channel, direction, at_us, bytes } => {
                head(out, 4, 25);
                out.put_u64(*channel);
                out.put_u8(direction.number());
                out.put_u64(*at_us);
                out.put_u64(*bytes);
            }
            Self::SessionEnded { at_us, why } => {
                head(out, 6, 8 + why.len());
                out.put_u64(*at_us);
                out.put_slice(why.as_bytes());
            }
        }
    }
}

impl Direction {
    const fn number(self) -> u8 {
        match self {
            Self::ToTarget => 0,
            Self::ToClient => 1,
        }
    }

    const fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::ToTarget),
            1 => Some(Self::ToClient),
            _ => None,
        }
    }
}

fn head(out: &mut BytesMut, kind: u8, body: usize) {
    // A body is FRAME_MAX at most: texts in it are bounded where they are made.
    out.put_u32(u32::try_from(body + 1).unwrap_or(u32::MAX));
    out.put_u8(kind);
}

fn two(out: &mut BytesMut, kind: u8, channel: u64, at_us: u64) {
    head(out, kind, 16);
    out.put_u64(channel);
    out.put_u64(at_us);
}

/// A byte stream cut into frames.
#[derive(Debug, Default)]
pub struct Decoder(BytesMut);

impl Decoder {
    /// More of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next frame, if it is whole.
    ///
    /// # Errors
    /// [`FrameError`]; what follows cannot be read then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(length) = self.0.first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > FRAME_MAX {
            return Err(FrameError::TooLong(length));
        }
        if length == 0 {
            return Err(FrameError::Malformed(0));
        }
        if self.0.len() < 4 + length {
            return Ok(None);
        }
        self.0.advance(4);
        let mut body = self.0.split_to(length).freeze();
        let kind = body.get_u8();
        parse(kind, body).map(Some)
    }
}

fn parse(kind: u8, mut body: Bytes) -> Result<Frame, FrameError> {
    let malformed = |_| FrameError::Malformed(kind);
    let wrong = || FrameError::Malformed(kind);
    let frame = match kind {
        1 => {
            let hello = serde_json::from_slice(&body).map_err(|_| wrong())?;
            return Ok(Frame::Hello(Box::new(hello)));
        }
        2 | 5 => {
            let channel = body.try_get_u64().map_err(malformed)?;
            let at_us = body.try_get_u64().map_err(malformed)?;
            match kind {
                2 => Frame::Opened { channel, at_us },
                _ => Frame::Closed { channel, at_us },
            }
        }
        3 | 4 => {
            let channel = body.try_get_u64().map_err(malformed)?;
            let direction = Direction::of(body.try_get_u8().map_err(malformed)?);
            let direction = direction.ok_or_else(wrong)?;
            let at_us = body.try_get_u64().map_err(malformed)?;
            if kind == 3 {
                return Ok(Frame::Data { channel, direction, at_us, bytes: body });
            }
            let bytes = body.try_get_u64().map_err(malformed)?;
            Frame::Skipped { channel, direction, at_us, bytes }
        }
        6 => {
            let at_us = body.try_get_u64().map_err(malformed)?;
            let why = String::from_utf8(body.to_vec()).map_err(|_| wrong())?;
            return Ok(Frame::SessionEnded { at_us, why });
        }
        16 => {
            let channel = body.try_get_u64().map_err(malformed)?;
            return Ok(Frame::Inject { channel, bytes: body });
        }
        kind => return Err(FrameError::UnknownType(kind)),
    };
    if body.has_remaining() { Err(wrong()) } else { Ok(frame) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let direction = || prop_oneof![Just(Direction::ToTarget), Just(Direction::ToClient)];
        let bytes = || proptest::collection::vec(any::<u8>(), 1..300).prop_map(Bytes::from);
        prop_oneof![
            ("[a-z]{1,12}", any::<u64>(), any::<bool>()).prop_map(|(text, since_us, control)| {
                Frame::Hello(Box::new(Hello {
                    version: VERSION,
                    session: SessionId(text.clone()),
                    user: text.clone(),
                    resource: text,
                    kind: ResourceKind::Tcp,
                    port: 22,
                    since_us,
                    control,
                }))
            }),
            any::<(u64, u64)>().prop_map(|(channel, at_us)| Frame::Opened { channel, at_us }),
            any::<(u64, u64)>().prop_map(|(channel, at_us)| Frame::Closed { channel, at_us }),
            (any::<(u64, u64)>(), direction(), bytes()).prop_map(
                |((channel, at_us), direction, bytes)| Frame::Data {
                    channel,
                    direction,
                    at_us,
                    bytes
                }
            ),
            (any::<(u64, u64, u64)>(), direction()).prop_map(
                |((channel, at_us, bytes), direction)| Frame::Skipped {
                    channel,
                    direction,
                    at_us,
                    bytes
                }
            ),
            (any::<u64>(), "\\PC{0,40}")
                .prop_map(|(at_us, why)| Frame::SessionEnded { at_us, why }),
            (any::<u64>(), bytes()).prop_map(|(channel, bytes)| Frame::Inject { channel, bytes }),
        ]
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_stream_is_cut(
            frames in proptest::collection::vec(frames(), 1..8),
            cut in 1..500_usize,
        ) {
            let mut stream = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut stream));
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    found.push(frame);
                }
            }
            prop_assert_eq!(found, frames);
        }

        #[test]
        fn whatever_comes_is_refused_or_read_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn a_long_write_becomes_several_frames_and_no_frame_is_too_long() {
        let bytes = Bytes::from(vec![7; 2 * DATA_MAX + 1]);
        let mut stream = BytesMut::new();
        Frame::Inject { channel: 1, bytes: bytes.clone() }.encode(&mut stream);
        let mut decoder = Decoder::default();
        decoder.push(&stream);
        let mut found = Vec::new();
        while let Some(Frame::Inject { bytes, .. }) = decoder.next_frame().unwrap() {
            found.extend_from_slice(&bytes);
        }
        assert_eq!(found, bytes);
        let mut hostile = Decoder::default();
        hostile.push(&u32::MAX.to_be_bytes());
        assert!(matches!(hostile.next_frame(), Err(FrameError::TooLong(_))));
    }
}
