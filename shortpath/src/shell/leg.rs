//! The two tasks of a leg.
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::room::{Hall, Room};
use super::rope::Rope;
use super::shared::{Port, Shared};
use crate::session::frame::{Frame, FrameError};
use crate::session::{LegId, LegKind};
use crate::time::now;

/// Frames per writing round: enough to make a system call worth it, little enough that an interactive write waits for
/// no more than this (5 ms at 100 Mbit/s).
const ROUND: usize = 64 * 1024;
/// As long as rounds leave within this, the next may be twice as long, up to [`ROUND_BYTES_MAX`]: fewer system calls and
/// wake-ups, here and at the gateway, where the link is so fast that nothing waits longer for it.
const ROUND_TIME: Duration = Duration::from_millis(2);
/// Most bytes of frames that are written to a TCP leg at once: what its TLS should take without a write of its own.
pub const ROUND_BYTES_MAX: usize = 256 * 1024;
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
    read_frames(shared, leg, stream, Hall::default().room()).await?;
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
    mut room: Room,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    let mut turn = 0;
    loop {
        let spare = room.make(&mut buffer);
        let count = fill(&mut stream, &mut buffer).await?;
        if count == 0 && buffer.is_empty() {
            return Ok(());
        }
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer ended in a frame"));
        }
        if count == spare {
            room.was_filled();
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

/// Reads all that is there, until the buffer is full: a decrypting stream yields a record at a time, and each word to the
/// session may wake other threads.
async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<usize> {
    let mut count = stream.read_buf(buffer).await?;
    while count > 0 && buffer.len() < buffer.capacity() {
        let mut more = std::pin::pin!(stream.read_buf(buffer));
        // An error comes again, or the end of the stream in its place.
        match std::future::poll_fn(|cx| Poll::Ready(more.as_mut().poll(cx))).await {
            Poll::Ready(Ok(more)) if more > 0 => count += more,
            _ => break,
        }
    }
    Ok(count)
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
    let mut round = ROUND;
    loop {
        let closed = shared.with(|state, now| {
            state.session.poll_transmit(now, leg, round, &mut frames);
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
        let (full, begun) = (rope.len() >= round, now());
        stream.write_all_buf(&mut rope).await?;
        stream.flush().await?;
        round = next_round(round, full, now() - begun);
    }
    stream.shutdown().await?;
    // Closing a socket with unread bytes would make the kernel reset it and take our CLOSE along: the reader ends the leg
    // once the peer has closed, or the timekeeper does.
    std::future::pending().await
}

/// How much the next round may hold after one that took `took`.
fn next_round(round: usize, full: bool, took: Duration) -> usize {
    match (took < ROUND_TIME, full) {
        (true, true) => (2 * round).min(ROUND_BYTES_MAX),
        (true, false) => round,
        (false, _) => ROUND,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_long_only_while_the_link_takes_them_at_once() {
        let (fast, slow) = (Duration::from_micros(500), Duration::from_millis(5));
        assert_eq!(next_round(ROUND, true, fast), 2 * ROUND);
        assert_eq!(next_round(ROUND_BYTES_MAX, true, fast), ROUND_BYTES_MAX);
        assert_eq!(next_round(2 * ROUND, false, fast), 2 * ROUND);
        assert_eq!(next_round(ROUND_BYTES_MAX, true, slow), ROUND);
        assert_eq!(next_round(ROUND_BYTES_MAX, false, slow), ROUND);
    }

    #[tokio::test]
    async fn records_that_have_come_together_are_read_together_and_the_end_alone() {
        let mut stream = (&b"one"[..]).chain(&b"two"[..]).chain(&b"three"[..]);
        let mut buffer = BytesMut::with_capacity(100);
        assert_eq!(fill(&mut stream, &mut buffer).await.unwrap(), 11);
        assert_eq!(&buffer[..], b"onetwothree");
        assert_eq!(fill(&mut stream, &mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_has_something_does_not_wait_for_more() {
        let (mut far, mut near) = tokio::io::duplex(100);
        far.write_all(b"one").await.unwrap();
        let mut buffer = BytesMut::with_capacity(100);
        assert_eq!(fill(&mut near, &mut buffer).await.unwrap(), 3);
    }
}
