//! Public face of the session layer's shell; the tasks behind it are being built.
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::session::{
    ChannelError, ChannelId, CloseReason, LegId, LegKind, OpenError, Role, RttFigures,
    SessionConfig,
};

/// What the owner of a session is told.
#[derive(Debug)]
pub enum SessionEvent {
    /// The peer opened a channel.
    Incoming(Channel),
    /// A leg is silent although it owes an answer: make another; the old one stays.
    LegSuspect(LegId),
    /// A leg is gone.
    LegLost {
        /// Which.
        leg: LegId,
        /// What ended it.
        error: String,
    },
    /// No leg carries the session.
    Down,
    /// A leg carries it again.
    Resumed,
    /// The last event.
    Closed(CloseReason),
}

/// Whether a session is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// By a leg.
    Connected,
    /// It waits for one.
    Down,
    /// It is over.
    Closed,
}

/// Figures of a session.
#[derive(Clone, Debug)]
pub struct SessionStats {
    /// Whether it is carried.
    pub state: LinkState,
    /// By what.
    pub leg: Option<LegKind>,
    /// Round-trip time of that leg.
    pub rtt: Option<RttFigures>,
    /// Application bytes taken from all channels.
    pub bytes_sent: u64,
    /// Application bytes given to all channels.
    pub bytes_received: u64,
    /// Channels open now.
    pub channels: u32,
    /// Legs lost so far.
    pub legs_lost: u32,
}

/// One end of a session. Dropping the last clone closes it.
#[derive(Clone, Debug)]
pub struct SessionHandle(Arc<()>);

impl SessionHandle {
    /// Starts an end without legs. Needs a tokio runtime.
    pub fn start(
        _role: Role,
        _id: &str,
        _config: SessionConfig,
    ) -> (Self, mpsc::Receiver<SessionEvent>) {
        (Self(Arc::new(())), mpsc::channel(1).1)
    }

    /// Gives the session an established stream to run over.
    ///
    /// # Errors
    /// [`OpenError::Closed`] when the session is over.
    pub fn attach(
        &self,
        _stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        _kind: LegKind,
    ) -> Result<LegId, OpenError> {
        Err(OpenError::Closed)
    }

    /// Opens a channel; works without a leg.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self) -> Result<Channel, OpenError> {
        Err(OpenError::Closed)
    }

    /// Ends the session for both ends.
    pub fn close(&self, _code: u16) {}

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        SessionStats {
            state: LinkState::Closed,
            leg: None,
            rtt: None,
            bytes_sent: 0,
            bytes_received: 0,
            channels: 0,
            legs_lost: 0,
        }
    }
}

/// A byte stream in both directions. Dropped unfinished, it is reset.
#[derive(Debug)]
pub struct Channel {
    reader: ChannelReader,
    writer: ChannelWriter,
}

/// The receiving direction of a [`Channel`].
#[derive(Debug)]
pub struct ChannelReader(());

/// The sending direction of a [`Channel`].
#[derive(Debug)]
pub struct ChannelWriter(());

impl Channel {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> ChannelId {
        unreachable!("no channel can exist yet")
    }

    /// See [`ChannelReader::read`].
    ///
    /// # Errors
    /// As there.
    pub async fn read(&mut self) -> Result<Option<Bytes>, ChannelError> {
        self.reader.read().await
    }

    /// See [`ChannelWriter::write`].
    ///
    /// # Errors
    /// As there.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), ChannelError> {
        self.writer.write(bytes).await
    }

    /// See [`ChannelWriter::finish`].
    pub fn finish(&mut self) {
        self.writer.finish();
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, _code: u16) {}

    /// Halves for two tasks.
    #[must_use]
    pub fn split(self) -> (ChannelReader, ChannelWriter) {
        (self.reader, self.writer)
    }
}

impl ChannelReader {
    /// Waits for bytes; `None` after the last one.
    ///
    /// # Errors
    /// See [`ChannelError`].
    #[expect(clippy::unused_async, reason = "waits once the core is in")]
    pub async fn read(&mut self) -> Result<Option<Bytes>, ChannelError> {
        Err(ChannelError::Closed)
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, _code: u16) {}
}

impl ChannelWriter {
    /// Waits until all of `bytes` are taken.
    ///
    /// # Errors
    /// See [`ChannelError`].
    #[expect(clippy::unused_async, reason = "waits once the core is in")]
    pub async fn write(&mut self, _bytes: Bytes) -> Result<(), ChannelError> {
        Err(ChannelError::Closed)
    }

    /// Ends this direction after what was written.
    pub fn finish(&mut self) {}

    /// Ends both directions at once.
    pub fn reset(&mut self, _code: u16) {}
}

/// How a carried channel ended.
#[derive(Debug)]
pub struct CarryOutcome {
    /// Bytes from the socket into the channel.
    pub bytes_in: u64,
    /// Bytes from the channel into the socket.
    pub bytes_out: u64,
    /// What ended it.
    pub end: CarryEnd,
}

/// What ended a carried channel.
#[derive(Debug)]
pub enum CarryEnd {
    /// Both directions reached their end.
    Finished,
    /// The channel failed; the socket was closed with a reset.
    Channel(ChannelError),
    /// The socket failed; the channel was reset.
    Socket(io::Error),
}

/// Carries a socket's bytes over a channel until both directions have ended.
#[expect(clippy::unused_async, reason = "waits once the core is in")]
pub async fn carry(_channel: Channel, _socket: TcpStream) -> CarryOutcome {
    CarryOutcome { bytes_in: 0, bytes_out: 0, end: CarryEnd::Channel(ChannelError::Closed) }
}

/// [`carry`] for a pair of streams, such as standard input and output.
#[expect(clippy::unused_async, reason = "waits once the core is in")]
pub async fn carry_stdio<R, W>(_channel: Channel, _input: R, _output: W) -> CarryOutcome
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    CarryOutcome { bytes_in: 0, bytes_out: 0, end: CarryEnd::Channel(ChannelError::Closed) }
}
