//! Standard input that ends with the other side: a terminal or a parent process need not close it first.
//!
//! Once the target has finished and its last byte is out, input reads as ended. What was read before still travels,
//! and FIN after it, so nothing is cut off.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Couples `input` to `output`: when `output` is shut down, `input` ends.
pub(super) fn couple<R, W>(input: R, output: W) -> (Input<R>, Output<W>) {
    let done = CancellationToken::new();
    let input = Input { input, done: Box::pin(done.clone().cancelled_owned()) };
    (input, Output { output, done })
}

pub(super) struct Input<R> {
    input: R,
    done: Pin<Box<WaitForCancellationFutureOwned>>,
}

pub(super) struct Output<W> {
    output: W,
    done: CancellationToken,
}

impl<R: AsyncRead + Unpin> AsyncRead for Input<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.done.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.input).poll_read(cx, buf)
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Output<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.output).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.output).poll_shutdown(cx);
        if shut.is_ready() {
            self.done.cancel();
        }
        shut
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn input_ends_when_the_other_side_has_finished_and_not_before() {
        let (mut user, terminal) = duplex(64);
        let (mut input, mut output) = couple(terminal, tokio::io::sink());
        user.write_all(b"typed").await.unwrap();
        let mut typed = [0; 5];
        input.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"typed");
        let rest = tokio::spawn(async move { input.read_to_end(&mut Vec::new()).await });
        tokio::task::yield_now().await;
        assert!(!rest.is_finished());
        output.shutdown().await.unwrap();
        assert_eq!(rest.await.unwrap().unwrap(), 0);
    }
}
