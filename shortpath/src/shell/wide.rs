//! Reads a stream in large pieces, for a reader that asks for small ones: rustls takes at most one record at a time from its
//! socket, and a system call for each costs more than copying it once.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Read at once. It starts small, doubles whenever it was filled, and is small again once little comes, so that streams which
/// rest hold little.
const READ_FIRST: usize = 4 * 1024;
const READ_MOST: usize = 128 * 1024;
/// A read that brings less than this share of the buffer is little.
const LITTLE: usize = 32;

/// See the module. Writes pass through.
#[derive(Debug)]
pub struct Wide<S> {
    stream: S,
    buffer: Vec<u8>,
    /// The part of `buffer` that was read and not yet taken.
    from: usize,
    to: usize,
    room: usize,
}

impl<S> Wide<S> {
    /// Nothing of `stream` is read yet.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), from: 0, to: 0, room: READ_FIRST }
    }
}

impl<S: AsyncRead + Unpin> Wide<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.resize(self.room, 0);
        let mut into = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut into))?;
        (self.from, self.to) = (0, into.filled().len());
        if self.to == self.room {
            self.room = (2 * self.room).min(READ_MOST);
        } else if self.to < self.room / LITTLE {
            self.room = READ_FIRST;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wide<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.from == self.to {
            if into.remaining() >= READ_MOST {
                return Pin::new(&mut self.stream).poll_read(cx, into);
            }
            ready!(self.poll_fill(cx))?;
        }
        let taken = (self.to - self.from).min(into.remaining());
        into.put_slice(&self.buffer[self.from..self.from + taken]);
        self.from += taken;
        if self.from == self.to && self.buffer.len() > self.room {
            self.buffer = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wide<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const RECORD: usize = 5_000;

    #[tokio::test]
    async fn small_reads_yield_every_byte_in_order_and_few_reads_of_the_stream() {
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        let mut wide = Wide::new(Counted(&sent[..], 0));
        let (mut got, mut record) = (Vec::new(), [0; RECORD]);
        loop {
            let count = wide.read(&mut record).await.unwrap();
            if count == 0 {
                break;
            }
            got.extend_from_slice(&record[..count]);
        }
        assert!(got == sent);
        assert!(wide.stream.1 < 20, "{} reads", wide.stream.1);
    }

    #[tokio::test]
    async fn a_stream_that_has_come_to_rest_holds_little() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut wide = Wide::new(near);
        let mut record = [0; RECORD];
        far.write_all(&[1; 600_000]).await.unwrap();
        for _ in 0..120 {
            wide.read_exact(&mut record).await.unwrap();
        }
        assert!(wide.buffer.capacity() > READ_FIRST);
        far.write_all(b"key").await.unwrap();
        wide.read_exact(&mut record[..3]).await.unwrap();
        assert!(wide.buffer.capacity() <= READ_FIRST);
    }

    /// Counts reads.
    struct Counted<'a>(&'a [u8], usize);

    impl AsyncRead for Counted<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(cx, into)
        }
    }
}
