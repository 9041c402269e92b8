//! The seam under the desk: wait for bytes, on tokio-uring or on tokio.
//!
//! Everything else the desk does to a socket is a plain non-blocking call on its descriptor. Rule for tokio-uring 0.5: a
//! read future is never dropped before it is done (the kernel would go on and its result be lost), so whoever wants to stop
//! one shuts the socket's receiving side down instead, here as there.
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::ring::borrow_uring;

/// A connection whose hello is being read.
pub(crate) trait Stream: Sized + 'static {
    fn adopt(socket: OwnedFd) -> io::Result<Self>;

    /// Reads into `chunk` from its start, up to its capacity; the chunk comes back with what was read.
    async fn read(&self, chunk: Vec<u8>) -> (io::Result<usize>, Vec<u8>);

    fn socket(&self) -> BorrowedFd<'_>;

    /// Gives the socket away, non-blocking. No read is pending.
    fn release(self) -> io::Result<OwnedFd>;
}

impl Stream for tokio::net::TcpStream {
    fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let socket = TcpStream::from(socket);
        socket.set_nonblocking(true)?;
        Self::from_std(socket)
    }

    async fn read(&self, mut chunk: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        loop {
            chunk.clear();
            if let Err(error) = self.readable().await {
                return (Err(error), chunk);
            }
            match self.try_read_buf(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return (result, chunk),
            }
        }
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn release(self) -> io::Result<OwnedFd> {
        Ok(self.into_std()?.into())
    }
}

impl Stream for tokio_uring::net::TcpStream {
    fn adopt(socket: OwnedFd) -> io::Result<Self> {
        // On a non-blocking socket the kernel answers EAGAIN at once instead of waiting.
        let socket = TcpStream::from(socket);
        socket.set_nonblocking(false)?;
        Ok(Self::from_std(socket))
    }

    async fn read(&self, mut chunk: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        chunk.clear();
        Self::read(self, chunk).await
    }

    fn socket(&self) -> BorrowedFd<'_> {
        borrow_uring(self)
    }

    fn release(self) -> io::Result<OwnedFd> {
        // tokio-uring does not part with a descriptor; the duplicate outlives its stream.
        let socket = TcpStream::from(self.socket().try_clone_to_owned()?);
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }
}
