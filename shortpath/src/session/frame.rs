//! Frames on a leg: an 8-byte header, a body, all integers big-endian.
//!
//! ```text
//! type u8 | flags u8 | body length u16 | channel u32 | body
//! HELLO  flags: 1 = sole leg       body: version u16, instance u64, expects u64, opened u32, seen u32,
//!                                        id length u8, id, then states
//! OPEN   flags: 1 = datagrams      body: window limit u64
//! DATA   flags: 1 = copy, 2 = loose  body: offset u64, bytes
//! FIN                              body: final offset u64
//! RESET                            body: code u16
//! ACK    flags: 1 = FIN, 2 = RESET, 4 = window  body: received u64, window limit u64
//! PING, PONG (channel 0)           body: opaque u64
//! CLOSE  (channel 0)               body: code u16, counted bytes before it u64
//! SEEN   (channel 0)               body: counted bytes u64, copies that won u64
//! DATAGRAM flags: 2 = loose        body: bytes
//! state in HELLO: channel u32, flags u8, received u64, limit u64
//! ```
//! The channel comes in the header so that a reader may sort frames before it looks into them.
//!
//! OPEN, DATA, FIN, RESET, DATAGRAM and an ACK with the window flag are *counted*, with header, unless they are loose: SEEN
//! tells the sender how many such bytes have come on the leg it travels on. So each leg is judged by what it brings to the
//! peer and back, whatever other legs bring. Loose frames travel in unreliable datagrams and may vanish.
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::words::ChannelId;

/// Version of this format, the first thing a HELLO says.
pub const VERSION: u16 = 2;
/// Most payload bytes of one DATA frame: an interactive write waits behind at most this much of a bulk one
/// (1.3 ms at 100 Mbit/s), and a full frame with its header is exactly a full TLS record (2^14 bytes, RFC 8446 section 5.1).
pub const PAYLOAD_MAX: usize = 16 * 1024 - HEADER - 8;
/// Most payload bytes of a DATA frame that is taken: what this version's senders may send, of which the first ones made use.
pub(super) const PAYLOAD_TAKEN: usize = 16 * 1024;
/// Most bytes of one UDP datagram: 65,535 less the headers of IPv4 and UDP.
pub const DATAGRAM_MAX: usize = 65_507;
/// Most bytes of a session id.
pub const ID_MAX: usize = 255;
/// Offsets stay below this, so that adding a length never overflows (2^62 bytes are 146 years at 1 GB/s).
pub const OFFSET_MAX: u64 = 1 << 62;

const HEADER: usize = 8;
const STATE: usize = 21;
const HELLO_FIXED: usize = 27;

const HELLO: u8 = 1;
const OPEN: u8 = 2;
const DATA: u8 = 3;
const FIN: u8 = 4;
const RESET: u8 = 5;
const ACK: u8 = 6;
const PING: u8 = 7;
const PONG: u8 = 8;
const CLOSE: u8 = 9;
const SEEN: u8 = 10;
const DATAGRAM: u8 = 11;

const SOLE: u8 = 1;
const DATAGRAMS: u8 = 1;
const COPY: u8 = 1;
const LOOSE: u8 = 2;
const FIN_SEEN: u8 = 1;
const RESET_SEEN: u8 = 2;
const OPENS: u8 = 4;

/// What one leg carries to the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First on every leg, in both directions.
    Hello(Hello),
    /// A channel begins.
    Open {
        /// Its id.
        channel: ChannelId,
        /// The opener takes bytes up to this offset.
        limit: u64,
        /// It carries datagrams instead of a byte stream.
        datagrams: bool,
    },
    /// Bytes of a channel.
    Data {
        /// Its id.
        channel: ChannelId,
        /// Offset of the first byte.
        offset: u64,
        /// At most [`PAYLOAD_MAX`] of them.
        bytes: Bytes,
        /// Whether they were sent in another frame as well.
        mark: Mark,
    },
    /// The sender's direction ends at `offset`.
    Fin {
        /// Its id.
        channel: ChannelId,
        /// Number of bytes in the whole direction.
        offset: u64,
    },
    /// Both directions end at once.
    Reset {
        /// Its id.
        channel: ChannelId,
        /// Why, for the application.
        code: u16,
    },
    /// What the sender of this frame has received.
    Ack(Received),
    /// Asks for a [`Frame::Pong`] on the same leg.
    Ping(u64),
    /// Answers a [`Frame::Ping`].
    Pong(u64),
    /// The session ends deliberately.
    Close {
        /// Why.
        code: u16,
        /// Counted bytes the leg was given before: streams may be overtaken by this word.
        after: u64,
    },
    /// What has come on this leg.
    Seen {
        /// Counted bytes, in all.
        bytes: u64,
        /// Copies that came before their originals, on all legs of the session.
        won: u64,
    },
    /// One datagram of a channel that carries them.
    Datagram {
        /// Its id.
        channel: ChannelId,
        /// At most [`DATAGRAM_MAX`] of them.
        bytes: Bytes,
        /// It travels in an unreliable datagram.
        loose: bool,
    },
}

/// What a DATA frame is to others with the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The frame that answers for its bytes.
    Original,
    /// A second one, on a stream.
    Copy,
    /// A second one, in an unreliable datagram.
    Loose,
}

/// Opens a leg and says where to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u16,
    /// The session's name.
    pub session: Bytes,
    /// Random, not 0: tells this end from one that was started anew under the same name and knows nothing.
    pub instance: u64,
    /// The instance the sender has met at the other end; 0 if none yet.
    pub expects: u64,
    /// No other leg of the sender carries this session: what it was sent on earlier ones is lost.
    pub sole: bool,
    /// The next id the sender will open: lower ones of its own that are not in `channels` are over.
    pub opened: u32,
    /// The next id the sender expects the receiver to open: lower ones not in `channels` are over.
    pub seen: u32,
    /// Every channel the sender knows.
    pub channels: Vec<Received>,
}

/// The receive state of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its id.
    pub channel: ChannelId,
    /// All bytes below this offset have arrived.
    pub received: u64,
    /// Bytes up to this offset may be sent.
    pub limit: u64,
    /// Every byte up to the final offset has arrived.
    pub fin_seen: bool,
    /// The RESET of the receiver of this frame has arrived. With `fin_seen`: the channel is over and forgotten.
    pub reset_seen: bool,
    /// The window has opened so much that a waiting sender depends on this word.
    pub opens: bool,
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such frame type.
    #[error("unknown frame type {0}")]
    Type(u8),
    /// A body of the wrong length for its type.
    #[error("frame of type {0} with a body of {1} bytes")]
    Length(u8, u16),
    /// Channel 0 where a channel is needed, or one where none is.
    #[error("frame of type {0} on channel {1}")]
    Channel(u8, u32),
    /// An offset of [`OFFSET_MAX`] or more.
    #[error("offset out of range")]
    Offset,
    /// Flags this version does not define.
    #[error("frame of type {0} with flags {1:#x}")]
    Flags(u8, u8),
}

impl Frame {
    /// Bytes on the wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        HEADER + self.body_len()
    }

    /// The channel it belongs to; `None`: it is about the leg or the session.
    #[must_use]
    pub fn channel(&self) -> Option<ChannelId> {
        ChannelId::new(self.head().2)
    }

    /// SEEN answers for it: the leg it is sent on promises to deliver it, and something depends on that.
    pub(super) fn is_counted(&self) -> bool {
        match self {
            Self::Open { .. } | Self::Fin { .. } | Self::Reset { .. } => true,
            Self::Data { mark, .. } => *mark != Mark::Loose,
            Self::Datagram { loose, .. } => !loose,
            Self::Ack(state) => state.opens,
            _ => false,
        }
    }

    /// It travelled in an unreliable datagram.
    pub(super) fn is_loose(&self) -> bool {
        matches!(self, Self::Data { mark: Mark::Loose, .. } | Self::Datagram { loose: true, .. })
    }

    /// Appends everything but the payload of DATA and DATAGRAM, which is returned and must follow.
    pub fn encode_head(&self, out: &mut BytesMut) -> Option<&Bytes> {
        let (kind, flags, channel) = self.head();
        out.reserve(HEADER + self.body_len());
        out.put_u8(kind);
        out.put_u8(flags);
        // Every constructor in this crate keeps a body far below 64 KiB: see `limits::CHANNELS_MAX`.
        out.put_u16(u16::try_from(self.body_len()).unwrap_or(u16::MAX));
        out.put_u32(channel);
        match self {
            Self::Hello(hello) => hello.encode(out),
            Self::Open { limit, .. } => out.put_u64(*limit),
            Self::Data { offset, bytes, .. } => {
                out.put_u64(*offset);
                return Some(bytes);
            }
            Self::Fin { offset, .. } => out.put_u64(*offset),
            Self::Reset { code, .. } => out.put_u16(*code),
            Self::Close { code, after } => {
                out.put_u16(*code);
                out.put_u64(*after);
            }
            Self::Seen { bytes, won } => {
                out.put_u64(*bytes);
                out.put_u64(*won);
            }
            Self::Datagram { bytes, .. } => return Some(bytes),
            Self::Ack(state) => {
                out.put_u64(state.received);
                out.put_u64(state.limit);
            }
            Self::Ping(opaque) | Self::Pong(opaque) => out.put_u64(*opaque),
        }
        None
    }

    /// Takes one frame off the front of `buf`; `None` until it is whole. The payload shares `buf`'s memory.
    ///
    /// # Errors
    /// [`FrameError`] as soon as the bytes at hand cannot become a frame; the leg cannot be read on.
    pub fn decode(buf: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some(head) = buf.get(..HEADER) else { return Ok(None) };
        let (kind, flags) = (head[0], head[1]);
        let length = u16::from_be_bytes([head[2], head[3]]);
        let channel = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        check_head(kind, flags, length, channel)?;
        if buf.len() < HEADER + usize::from(length) {
            return Ok(None);
        }
        buf.advance(HEADER);
        let body = buf.split_to(usize::from(length)).freeze();
        decode_body(kind, flags, channel, body).map(Some)
    }

    fn body_len(&self) -> usize {
        match self {
            Self::Hello(hello) => HELLO_FIXED + hello.session.len() + STATE * hello.channels.len(),
            Self::Data { bytes, .. } => 8 + bytes.len(),
            Self::Datagram { bytes, .. } => bytes.len(),
            Self::Ack(_) | Self::Seen { .. } => 16,
            Self::Reset { .. } => 2,
            Self::Close { .. } => 10,
            Self::Open { .. } | Self::Fin { .. } | Self::Ping(_) | Self::Pong(_) => 8,
        }
    }

    fn head(&self) -> (u8, u8, u32) {
        match self {
            Self::Hello(hello) => (HELLO, if hello.sole { SOLE } else { 0 }, 0),
            Self::Open { channel, datagrams, .. } => {
                (OPEN, u8::from(*datagrams) * DATAGRAMS, channel.get())
            }
            Self::Data { channel, mark, .. } => (DATA, mark.flags(), channel.get()),
            Self::Datagram { channel, loose, .. } => {
                (DATAGRAM, u8::from(*loose) * LOOSE, channel.get())
            }
            Self::Fin { channel, .. } => (FIN, 0, channel.get()),
            Self::Reset { channel, .. } => (RESET, 0, channel.get()),
            Self::Ack(state) => (ACK, state.flags(), state.channel.get()),
            Self::Ping(_) => (PING, 0, 0),
            Self::Pong(_) => (PONG, 0, 0),
            Self::Close { .. } => (CLOSE, 0, 0),
            Self::Seen { .. } => (SEEN, 0, 0),
        }
    }
}

impl Mark {
    fn flags(self) -> u8 {
        match self {
            Self::Original => 0,
            Self::Copy => COPY,
            Self::Loose => COPY | LOOSE,
        }
    }

    fn decode(flags: u8) -> Result<Self, FrameError> {
        match flags {
            0 => Ok(Self::Original),
            COPY => Ok(Self::Copy),
            flags if flags == COPY | LOOSE => Ok(Self::Loose),
            _ => Err(FrameError::Flags(DATA, flags)),
        }
    }
}

impl Hello {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u16(self.version);
        out.put_u64(self.instance);
        out.put_u64(self.expects);
        out.put_u32(self.opened);
        out.put_u32(self.seen);
        // `Session::new` cuts the id at ID_MAX.
        out.put_u8(u8::try_from(self.session.len()).unwrap_or(u8::MAX));
        out.put_slice(&self.session);
        for state in &self.channels {
            out.put_u32(state.channel.get());
            out.put_u8(state.flags());
            out.put_u64(state.received);
            out.put_u64(state.limit);
        }
    }

    fn decode(flags: u8, mut body: Bytes) -> Result<Self, FrameError> {
        let wrong = FrameError::Length(HELLO, u16::try_from(body.len()).unwrap_or(u16::MAX));
        let version = body.get_u16();
        let (instance, expects) = (body.get_u64(), body.get_u64());
        let (opened, seen) = (body.get_u32(), body.get_u32());
        let id_len = usize::from(body.get_u8());
        if body.len() < id_len {
            return Err(wrong);
        }
        let session = Bytes::copy_from_slice(&body.split_to(id_len));
        if !body.len().is_multiple_of(STATE) {
            return Err(wrong);
        }
        let mut channels = Vec::with_capacity(body.len() / STATE);
        while body.has_remaining() {
            let (id, flags) = (body.get_u32(), body.get_u8());
            let channel = ChannelId::new(id).ok_or(FrameError::Channel(HELLO, id))?;
            channels.push(Received::decode(channel, flags, &mut body)?);
        }
        let sole = flags & SOLE != 0;
        Ok(Self { version, instance, expects, session, sole, opened, seen, channels })
    }
}

impl Received {
    fn flags(&self) -> u8 {
        u8::from(self.fin_seen) * FIN_SEEN
            + u8::from(self.reset_seen) * RESET_SEEN
            + u8::from(self.opens) * OPENS
    }

    fn decode(channel: ChannelId, flags: u8, body: &mut Bytes) -> Result<Self, FrameError> {
        if flags & !(FIN_SEEN | RESET_SEEN | OPENS) != 0 {
            return Err(FrameError::Flags(ACK, flags));
        }
        Ok(Self {
            channel,
            received: offset(body)?,
            limit: offset(body)?,
            fin_seen: flags & FIN_SEEN != 0,
            reset_seen: flags & RESET_SEEN != 0,
            opens: flags & OPENS != 0,
        })
    }
}

/// Refuses a frame by its header alone, before its body is waited for.
fn check_head(kind: u8, flags: u8, length: u16, channel: u32) -> Result<(), FrameError> {
    let len = usize::from(length);
    let (length_fits, on_channel, known) = match kind {
        HELLO => (len >= HELLO_FIXED, false, SOLE),
        OPEN => (len == 8, true, DATAGRAMS),
        FIN => (len == 8, true, 0),
        DATA => (len > 8 && len <= 8 + PAYLOAD_TAKEN, true, COPY | LOOSE),
        DATAGRAM => (len <= DATAGRAM_MAX, true, LOOSE),
        RESET => (len == 2, true, 0),
        ACK => (len == 16, true, FIN_SEEN | RESET_SEEN | OPENS),
        SEEN => (len == 16, false, 0),
        PING | PONG => (len == 8, false, 0),
        CLOSE => (len == 10, false, 0),
        _ => return Err(FrameError::Type(kind)),
    };
    if !length_fits {
        return Err(FrameError::Length(kind, length));
    }
    if on_channel != (channel != 0) {
        return Err(FrameError::Channel(kind, channel));
    }
    if flags & !known != 0 {
        return Err(FrameError::Flags(kind, flags));
    }
    Ok(())
}

fn decode_body(kind: u8, flags: u8, id: u32, mut body: Bytes) -> Result<Frame, FrameError> {
    match kind {
        HELLO => return Hello::decode(flags, body).map(Frame::Hello),
        PING => return Ok(Frame::Ping(body.get_u64())),
        PONG => return Ok(Frame::Pong(body.get_u64())),
        CLOSE => return Ok(Frame::Close { code: body.get_u16(), after: body.get_u64() }),
        SEEN => return Ok(Frame::Seen { bytes: body.get_u64(), won: body.get_u64() }),
        _ => {}
    }
    let channel = ChannelId::new(id).ok_or(FrameError::Channel(kind, id))?;
    Ok(match kind {
        OPEN => {
            Frame::Open { channel, limit: offset(&mut body)?, datagrams: flags & DATAGRAMS != 0 }
        }
        DATAGRAM => Frame::Datagram { channel, bytes: body, loose: flags & LOOSE != 0 },
        FIN => Frame::Fin { channel, offset: offset(&mut body)? },
        RESET => Frame::Reset { channel, code: body.get_u16() },
        ACK => Frame::Ack(Received::decode(channel, flags, &mut body)?),
        _ => {
            let mark = Mark::decode(flags)?;
            Frame::Data { channel, offset: offset(&mut body)?, bytes: body, mark }
        }
    })
}

fn offset(body: &mut Bytes) -> Result<u64, FrameError> {
    let offset = body.get_u64();
    if offset < OFFSET_MAX { Ok(offset) } else { Err(FrameError::Offset) }
}
