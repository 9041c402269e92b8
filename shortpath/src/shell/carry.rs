//! Carries an application's socket, or standard streams, over a channel.
//!
//! | what happens | the other side sees |
//! |---|---|
//! | socket reads end of file | FIN; the peer's socket is shut for writing after the last byte |
//! | channel reads its end | the socket is shut for writing; the other direction goes on |
//! | both have ended | clean close |
//! | socket fails | RESET ([`RESET_SOCKET`]); the peer's socket is closed with RST |
//! | channel is reset, or the session ends in mid-stream | the socket is closed with RST, never with a false end of file |
//! | session ends after the peer's FIN | what had arrived is written, then the socket is closed |
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::channel::{Channel, ChannelReader, ChannelWriter};
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

/// Carries a socket's bytes over a channel until both directions have ended or one side failed.
pub async fn carry(channel: Channel, mut socket: TcpStream) -> CarryOutcome {
    let (input, output) = socket.split();
    let (outcome, delivered) = pump(channel, input, output).await;
    if !delivered && let Err(error) = socket.set_zero_linger() {
        tracing::debug!(%error, "a carried socket could not be reset");
    }
    outcome
}

/// [`carry`] for two streams, such as standard input and output. They cannot be reset: a failure shows in the outcome.
pub async fn carry_stdio<R, W>(channel: Channel, input: R, output: W) -> CarryOutcome
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    pump(channel, input, output).await.0
}

/// Read buffer per direction: a DATA frame's worth and room to fill while it is sent.
const BUFFER: usize = 32 * 1024;
/// How long bytes that had arrived may still be written after the channel failed.
const DRAIN: Duration = Duration::from_secs(5);

/// The outcome, and whether `output` received all the peer sent, up to its end.
async fn pump(
    channel: Channel,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
) -> (CarryOutcome, bool) {
    let (mut reader, mut writer) = channel.split();
    let (bytes_in, bytes_out) = (AtomicU64::new(0), AtomicU64::new(0));
    let (inward_end, outward_end) = {
        let inward = inward(&mut writer, input, &bytes_in);
        let outward = outward(&mut reader, output, &bytes_out);
        tokio::pin!(inward, outward);
        tokio::select! {
            end = &mut inward => match end {
                Ok(()) => (Ok(()), Some(outward.await)),
                // The peer's last bytes may have arrived before the failure did.
                Err(CarryEnd::Channel(error)) => {
                    let tail = tokio::time::timeout(DRAIN, outward).await.ok();
                    (Err(CarryEnd::Channel(error)), tail)
                }
                Err(error) => (Err(error), None),
            },
            end = &mut outward => match end {
                Ok(()) => (inward.await, Some(Ok(()))),
                Err(error) => (Ok(()), Some(Err(error))),
            },
        }
    };
    let delivered = matches!(outward_end, Some(Ok(())));
    let end = inward_end.and(outward_end.unwrap_or(Ok(()))).err().unwrap_or(CarryEnd::Finished);
    if matches!(end, CarryEnd::Socket(_)) {
        writer.reset(RESET_SOCKET);
    }
    let (bytes_in, bytes_out) = (bytes_in.into_inner(), bytes_out.into_inner());
    (CarryOutcome { bytes_in, bytes_out, end }, delivered)
}

async fn inward(
    writer: &mut ChannelWriter,
    mut input: impl AsyncRead + Unpin,
    count: &AtomicU64,
) -> Result<(), CarryEnd> {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    loop {
        buffer.reserve(BUFFER / 2);
        let read = tokio::select! {
            read = input.read_buf(&mut buffer) => read.map_err(CarryEnd::Socket)?,
            error = writer.failed() => return Err(CarryEnd::Channel(error)),
        };
        if read == 0 {
            writer.finish();
            return Ok(());
        }
        writer.write(buffer.split().freeze()).await.map_err(CarryEnd::Channel)?;
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
}

async fn outward(
    reader: &mut ChannelReader,
    mut output: impl AsyncWrite + Unpin,
    count: &AtomicU64,
) -> Result<(), CarryEnd> {
    while let Some(bytes) = reader.read().await.map_err(CarryEnd::Channel)? {
        let write = async {
            output.write_all(&bytes).await?;
            output.flush().await
        };
        tokio::select! {
            written = write => written.map_err(CarryEnd::Socket)?,
            error = reader.cut() => return Err(CarryEnd::Channel(error)),
        }
        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
    output.shutdown().await.map_err(CarryEnd::Socket)
}
