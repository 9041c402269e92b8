//! Carries an application's socket, or standard streams, over a channel.
//!
//! | what happens | the other side sees |
//! |---|---|
//! | socket reads end of file | FIN; the peer's socket is shut for writing after the last byte |
//! | channel reads its end | the socket is shut for writing; the other direction goes on |
//! | both have ended | clean close |
//! | socket fails | RESET ([`RESET_SOCKET`]); the peer's socket is closed with RST |
//! | channel is reset, or the session ends in mid-stream | the socket is closed with RST, never with a false end of file |
//! | session is closed as done after the peer's FIN | all of it is written, however slow the socket, then it is closed |
//! | session ends otherwise after the peer's FIN | what had arrived is written for 5 s, then the socket is closed |
use std::future::{Future, pending, ready};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::channel::{Channel, ChannelReader, ChannelWriter};
use super::rope::Rope;
use crate::session::frame::PAYLOAD_MAX;
use crate::session::{ChannelError, RESET_SOCKET};

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
#[derive(Debug, thiserror::Error)]
pub enum CarryEnd {
    /// Both directions reached their end.
    #[error("both directions ended")]
    Finished,
    /// The channel failed.
    #[error("{0}")]
    Channel(ChannelError),
    /// The socket failed; the channel was reset.
    #[error("socket: {0}")]
    Socket(io::Error),
}

/// Watches, steers and paces what is carried. `()` does none of it, and costs nothing.
pub trait Tap: Sync {
    /// Bytes from the socket, about to go into the channel.
    fn inward(&self, _bytes: &Bytes) {}

    /// Bytes from the channel or from [`Self::injected`], about to go to the socket.
    fn outward(&self, _bytes: &Bytes) {}

    /// Returns when bytes may pass; what was read before waits, and so does whoever sends more.
    fn pass(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Whether bytes may not pass now: datagrams are dropped meanwhile.
    fn is_held(&self) -> bool {
        false
    }

    /// How long to wait after this many bytes from the socket before more are read, so that whoever sends them slows down;
    /// `None`: not at all.
    fn pace_inward(&self, _bytes: usize) -> Option<Duration> {
        None
    }

    /// How long to wait before this many bytes go to the socket.
    fn pace_outward(&self, _bytes: usize) -> Option<Duration> {
        None
    }

    /// Bytes to go to the socket as if the channel had brought them. Dropping the future loses nothing.
    fn injected(&self) -> impl Future<Output = Bytes> + Send {
        pending()
    }
}

impl Tap for () {}

/// Carries a socket's bytes over a channel until both directions have ended or one side failed.
pub async fn carry(channel: Channel, socket: TcpStream) -> CarryOutcome {
    carry_with(channel, socket, &()).await
}

/// As [`carry`], under a `tap`. What it injects goes between two reads of the channel: neither a frame of the peer's nor one of
/// its pieces is cut in two.
pub async fn carry_with(channel: Channel, mut socket: TcpStream, tap: &impl Tap) -> CarryOutcome {
    let (input, output) = socket.split();
    let (mut reader, mut writer) = channel.split();
    let (outcome, delivered) = pump(&mut reader, &mut writer, (input, output), tap).await;
    if !delivered && let Err(error) = socket.set_zero_linger() {
        tracing::debug!(%error, "a carried socket could not be reset");
    }
    outcome
}

/// [`carry`] for two streams, such as standard input and output. They cannot be reset: a failure shows in the outcome.
/// Finished, the peer's session has all of `input`, and the session may be closed; a peer that has ended its direction
/// and then resets the channel wants no more of it, which is an end as well.
pub async fn carry_stdio<R, W>(channel: Channel, input: R, output: W) -> CarryOutcome
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = channel.split();
    let (mut outcome, _) = pump(&mut reader, &mut writer, (input, output), &()).await;
    if matches!(outcome.end, CarryEnd::Finished)
        && let Err(error @ (ChannelError::Closed | ChannelError::Lost)) = writer.delivered().await
    {
        outcome.end = CarryEnd::Channel(error);
    }
    outcome
}

/// Read buffer per direction: full frames for one writing round of a leg, so that none is cut short.
const BUFFER: usize = 4 * PAYLOAD_MAX;
/// And for one of the longest, once reads fill the buffer.
const BUFFER_MOST: usize = 16 * PAYLOAD_MAX;
/// Bytes written to the socket at once: as much.
const WRITE: usize = BUFFER_MOST;
/// How long bytes that had arrived may still be written after the channel failed.
const DRAIN: Duration = Duration::from_secs(5);
/// After a session that ended as it should, the peer's whole tail is written as long as a frame of it (16 KiB at most)
/// is taken within this: the default resume window, so a slow service gets what a paused one would.
const STALL: Duration = Duration::from_secs(60);

/// The outcome, and whether `output` received all the peer sent, up to its end.
async fn pump(
    reader: &mut ChannelReader,
    writer: &mut ChannelWriter,
    (input, output): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    tap: &impl Tap,
) -> (CarryOutcome, bool) {
    let (bytes_in, bytes_out) = (AtomicU64::new(0), AtomicU64::new(0));
    let (inward_end, outward_end) = {
        let inward = inward(writer, input, &bytes_in, tap);
        let outward = async {
            tokio::select! {
                end = outward(reader, output, &bytes_out, tap) => Some(end),
                () = out_of_time(reader, &bytes_out) => None,
            }
        };
        tokio::pin!(inward, outward);
        tokio::select! {
            end = &mut inward => match end {
                // If the channel failed, the peer's last bytes may have arrived before.
                Ok(()) | Err(CarryEnd::Channel(_)) => (end, outward.await),
                Err(CarryEnd::Socket(_) | CarryEnd::Finished) => (end, None),
            },
            end = &mut outward => match end {
                Some(Ok(())) => (inward.await, end),
                Some(Err(_)) => (Ok(()), end),
                None => (Err(CarryEnd::Channel(reader.failed().await)), None),
            },
        }
    };
    let delivered = matches!(outward_end, Some(Ok(())));
    let cut_short = outward_end.is_none() && inward_end.is_ok();
    let mut end = inward_end.and(outward_end.unwrap_or(Ok(()))).err().unwrap_or(CarryEnd::Finished);
    if cut_short {
        end = CarryEnd::Channel(reader.failed().await);
    }
    if matches!(end, CarryEnd::Socket(_)) {
        writer.reset(RESET_SOCKET);
    }
    let (bytes_in, bytes_out) = (bytes_in.into_inner(), bytes_out.into_inner());
    (CarryOutcome { bytes_in, bytes_out, end }, delivered)
}

/// Returns once the channel has failed and `output` has had its time for what had arrived.
async fn out_of_time(reader: &ChannelReader, written: &AtomicU64) {
    reader.failed().await;
    if !reader.closed_after_end() {
        return sleep(DRAIN).await;
    }
    loop {
        let before = written.load(Ordering::Relaxed);
        sleep(STALL).await;
        if written.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

async fn inward(
    writer: &mut ChannelWriter,
    mut input: impl AsyncRead + Unpin,
    count: &AtomicU64,
    tap: &impl Tap,
) -> Result<(), CarryEnd> {
    let mut buffer = BytesMut::new();
    let mut room = BUFFER;
    loop {
        if buffer.capacity() < PAYLOAD_MAX {
            buffer = BytesMut::with_capacity(room);
        }
        let spare = buffer.capacity();
        let read = tokio::select! {
            read = input.read_buf(&mut buffer) => read.map_err(CarryEnd::Socket)?,
            error = writer.failed() => return Err(CarryEnd::Channel(error)),
        };
        tokio::select! {
            biased;
            () = tap.pass() => {}
            error = writer.failed() => return Err(CarryEnd::Channel(error)),
        }
        if read == 0 {
            writer.finish();
            return Ok(());
        }
        if read == spare {
            room = (2 * room).min(BUFFER_MOST);
        } else if read < PAYLOAD_MAX {
            room = BUFFER;
        }
        let bytes = buffer.split().freeze();
        tap.inward(&bytes);
        writer.write(bytes).await.map_err(CarryEnd::Channel)?;
        count.fetch_add(read as u64, Ordering::Relaxed);
        if let Some(wait) = tap.pace_inward(read) {
            tokio::select! {
                () = sleep(wait) => {}
                error = writer.failed() => return Err(CarryEnd::Channel(error)),
            }
        }
    }
}

async fn outward(
    reader: &ChannelReader,
    mut output: impl AsyncWrite + Unpin,
    count: &AtomicU64,
    tap: &impl Tap,
) -> Result<(), CarryEnd> {
    let mut waiting = Rope::default();
    loop {
        tokio::select! {
            biased;
            gathered = reader.gather(&mut waiting, WRITE) => {
                if !gathered.map_err(CarryEnd::Channel)? {
                    break;
                }
            }
            bytes = tap.injected() => waiting.append(bytes),
        }
        let allowed = async {
            if let Some(wait) = tap.pace_outward(waiting.remaining()) {
                sleep(wait).await;
            }
            tap.pass().await;
        };
        tokio::select! {
            biased;
            () = allowed => {}
            error = reader.cut() => return Err(CarryEnd::Channel(error)),
        }
        waiting.each().for_each(|bytes| tap.outward(bytes));
        let write = async {
            while waiting.has_remaining() {
                let written = output.write_buf(&mut waiting).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                count.fetch_add(written as u64, Ordering::Relaxed);
            }
            output.flush().await
        };
        tokio::select! {
            written = write => written.map_err(CarryEnd::Socket)?,
            error = reader.cut() => return Err(CarryEnd::Channel(error)),
        }
    }
    output.shutdown().await.map_err(CarryEnd::Socket)
}
