//! The two tasks of a leg.
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::rope::Rope;
use super::shared::{Port, Shared};
use crate::session::frame::{Frame, FrameError};
use crate::session::{LegId, LegKind};

/// Frames per writing round: enough to make a system call worth it, little enough that an interactive write waits for
/// no more than this (5 ms at 100 Mbit/s).
const ROUND: usize = 64 * 1024;
/// Read buffer; frames are cut out of it without copying. It starts small, for streams that carry little, and doubles
/// whenever it was filled.
const READ_BUFFER_FIRST: usize = 4 * 1024;
const READ_BUFFER: usize = 64 * 1024;
/// Bytes read in a row before the task lets others run, its own writer with acknowledgements above all.
const READ_TURN: usize = 256 * 1024;
pub(super) fn attach<S>(shared: &Arc<Shared>, stream: S, kind: LegKind) -> LegId
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (leg, port) = admit(shared, kind);
    if port.gone.is_cancelled() {
        return leg;
    }
    let (reader, writer) = tokio::io::split(stream);
    tokio::spawn(until_gone(Arc::clone(shared), leg, port.clone(), {
        let shared = Arc::clone(shared);
        async move { read(&shared, leg, reader).await }
    }));
    tokio::spawn(until_gone(Arc::clone(shared), leg, port.clone(), {
        let shared = Arc::clone(shared);
        async move { write(&shared, leg, &port, writer).await }
    }));
    leg
}

/// Adds a leg to the session; its port is cancelled at once when the session is over.
pub(super) fn admit(shared: &Arc<Shared>, kind: LegKind) -> (LegId, Port) {
    let port = Port::default();
    let leg = shared.with(|state, now| {
        let leg = state.session.attach(now, kind);
        if state.session.is_closed() {
            port.gone.cancel();
        } else {
            state.ports.insert(leg, port.clone());
        }
        leg
    });
    (leg, port)
}

/// Closes a leg that the session does without.
pub(super) fn let_go(shared: &Arc<Shared>, leg: LegId) -> bool {
    shared.with(|state, now| {
        let gone = state.session.let_go(now, leg);
        if gone && let Some(port) = state.ports.remove(&leg) {
            port.gone.cancel();
        }
        gone
    })
}

/// Runs one of a leg's tasks; when it ends, so does the leg, and with it the other task.
pub(super) async fn until_gone(
    shared: Arc<Shared>,
    leg: LegId,
    port: Port,
    task: impl Future<Output = io::Result<()>>,
) {
    let ended = tokio::select! {
        () = port.gone.cancelled() => return,
        ended = task => ended,
    };
    let silent = ended.as_ref().is_err_and(is_silence);
    let error = ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string());
    shared.with(|state, now| {
        if silent {
            state.session.give_up(now, leg, &error);
        } else {
            state.session.detach(now, leg, &error);
        }
        state.ports.remove(&leg);
    });
    port.gone.cancel();
}

/// Nobody ended the transport: nothing came through any more.
fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut};
    matches!(error.kind(), TimedOut | NetworkUnreachable | HostUnreachable | NetworkDown)
}

/// Reads the stream that is the leg: its end is the leg's.
pub(super) async fn read(
    shared: &Arc<Shared>,
    leg: LegId,
    stream: impl AsyncRead + Unpin,
) -> io::Result<()> {
    read_frames(shared, leg, stream).await?;
    if shared.with(|state, _| state.session.is_being_closed(leg)) {
        // The CLOSE before the stream's end has overtaken bytes on others. They end the session, or their loss the leg.
        return std::future::pending().await;
    }
    leg_ended(shared)
}

/// Hands the frames of a stream to the session, up to the stream's end.
pub(super) async fn read_frames(
    shared: &Arc<Shared>,
    leg: LegId,
    mut stream: impl AsyncRead + Unpin,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let mut room = READ_BUFFER_FIRST;
    let mut frames = Vec::new();
    let mut turn = 0;
    loop {
        if buffer.capacity() - buffer.len() < room / 4 {
            buffer.reserve(room);
        }
        let spare = buffer.capacity() - buffer.len();
        let count = stream.read_buf(&mut buffer).await?;
        if count == 0 && buffer.is_empty() {
            return Ok(());
        }
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer ended in a frame"));
        }
        if count == spare {
            room = (2 * room).min(READ_BUFFER);
        }
        let parsed = parse(&mut buffer, &mut frames);
        shared.with(|state, now| {
            for frame in frames.drain(..) {
                state.session.handle_frame(now, leg, frame);
            }
            if let Err(error) = parsed {
                state.session.handle_garbage(error);
                buffer.clear();
            }
        });
        turn += count;
        if turn >= READ_TURN {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
}

fn parse(buffer: &mut BytesMut, frames: &mut Vec<Frame>) -> Result<(), FrameError> {
    while let Some(frame) = Frame::decode(buffer)? {
        frames.push(frame);
    }
    Ok(())
}

/// The peer closed the stream: a lost leg, or the proper end of one whose session is over.
fn leg_ended(shared: &Arc<Shared>) -> io::Result<()> {
    if shared.with(|state, _| state.session.is_closed()) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the leg"))
}

async fn write(
    shared: &Arc<Shared>,
    leg: LegId,
    port: &Port,
    mut stream: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut frames = Vec::new();
    let mut rope = Rope::default();
    loop {
        let closed = shared.with(|state, now| {
            state.session.poll_transmit(now, leg, ROUND, &mut frames);
            state.session.is_closed()
        });
        if frames.is_empty() {
            if closed {
                break;
            }
            port.wake.notified().await;
            continue;
        }
        frames.drain(..).for_each(|frame| rope.push(&frame));
        rope.seal();
        stream.write_all_buf(&mut rope).await?;
        stream.flush().await?;
    }
    stream.shutdown().await?;
    // Closing a socket with unread bytes would make the kernel reset it and take our CLOSE along: the reader ends the leg
    // once the peer has closed, or the timekeeper does.
    std::future::pending().await
}
