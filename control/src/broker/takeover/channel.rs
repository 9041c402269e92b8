//! A local connection that carries messages with descriptors: a Unix socket of type SEQPACKET, one JSON text per packet.
//!
//! The socket lives in the data directory, which is private to its owner; both ends also check that the other runs as the
//! same user.
use std::fs::{self, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    bind, connect, listen, recvmsg, sendmsg, socket_with,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// Bytes of a message: a few numbers, or a refusal of two sentences.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Descriptors of a message, see `LISTENERS_MAX` of the gateway.
const DESCRIPTORS_MAX: usize = 160;
/// New processes that wait to be heard. One is served, the others are refused at once.
const BACKLOG: i32 = 8;

/// The serving process's end: where new processes call.
#[derive(Debug)]
pub(super) struct Doorbell {
    socket: UnixListener,
}

/// A conversation between the two processes.
#[derive(Debug)]
pub(super) struct Channel {
    /// A stream to tokio, which only waits for it.
    socket: UnixStream,
    peer: i32,
}

impl Doorbell {
    /// Listens at `path`. What lies there is a server's that is gone: the caller holds the data directory's lock.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = seqpacket()?;
        bind(&socket, &address(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket: UnixListener::from_std(socket.into())? })
    }

    /// The next process of the same user that calls. Safe to drop and call again.
    pub(super) async fn accept(&self) -> io::Result<Channel> {
        let (socket, _) = self.socket.accept().await?;
        Channel::new(socket)
    }
}

impl Channel {
    /// Calls the process that listens at `path`.
    pub(super) fn call(path: &Path) -> io::Result<Self> {
        let socket = seqpacket()?;
        connect(&socket, &address(path)?)?;
        Self::new(UnixStream::from_std(socket.into())?)
    }

    fn new(socket: UnixStream) -> io::Result<Self> {
        let peer = socket.peer_cred()?;
        if peer.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another user's"));
        }
        Ok(Self { socket, peer: peer.pid().unwrap_or(0) })
    }

    /// The process at the other end.
    pub(super) const fn peer(&self) -> i32 {
        self.peer
    }

    /// Sends a message with descriptors, which stay open here.
    pub(super) async fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let send = || {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fits = descriptors.len() <= DESCRIPTORS_MAX
                && (descriptors.is_empty()
                    || control.push(SendAncillaryMessage::ScmRights(descriptors)));
            if !fits {
                return Err(io::Error::other("too many descriptors for one message"));
            }
            sendmsg(&self.socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        };
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    /// Waits for a message and the descriptors that come with it. An error of kind `UnexpectedEof`: the other process ended
    /// the conversation, or itself.
    pub(super) async fn receive<M: DeserializeOwned>(&self) -> io::Result<(M, Vec<OwnedFd>)> {
        let receive = || receive(self.socket.as_fd());
        let (text, descriptors) = self.socket.async_io(Interest::READABLE, receive).await?;
        if text.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other process is gone"));
        }
        let message = serde_json::from_slice(&text)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((message, descriptors))
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        let error = "the message is too long, or there are no descriptors to spare";
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    text.truncate(received.bytes);
    Ok((text, descriptors))
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The socket's address. A path longer than the 107 bytes that one holds is refused.
fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, "the data directory's path is too long")
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::path::PathBuf;

    use super::*;

    fn socket_in(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("takeover.sock")
    }

    #[tokio::test]
    async fn messages_and_descriptors_arrive_together_and_the_socket_is_private() {
        let temp = tempfile::tempdir().unwrap();
        let path = socket_in(&temp);
        fs::write(&path, "left over").unwrap();
        let doorbell = Doorbell::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let near = Channel::call(&path).unwrap();
        let far = doorbell.accept().await.unwrap();
        assert_eq!(far.peer(), i32::try_from(std::process::id()).unwrap());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through a descriptor").unwrap();
        file.rewind().unwrap();
        near.send(&"hello", &[file.as_fd(), file.as_fd()]).await.unwrap();
        near.send(&"again", &[]).await.unwrap();
        let (text, mut descriptors) = far.receive::<String>().await.unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("hello", 2));
        let mut read = String::new();
        std::fs::File::from(descriptors.remove(0)).read_to_string(&mut read).unwrap();
        assert_eq!(read, "through a descriptor");
        let (text, descriptors) = far.receive::<String>().await.unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("again", 0));
        drop(near);
        let end = far.receive::<String>().await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_is_no_message_or_does_not_fit_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let path = socket_in(&temp);
        let doorbell = Doorbell::open(&path).unwrap();
        let near = Channel::call(&path).unwrap();
        let far = doorbell.accept().await.unwrap();
        near.send(&"x".repeat(2 * MESSAGE_BYTES_MAX), &[]).await.unwrap();
        near.send(&17, &[]).await.unwrap();
        for _ in 0..2 {
            let error = far.receive::<String>().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let file = tempfile::tempfile().unwrap();
        let many = vec![file.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(near.send(&"many", &many).await.is_err());
        assert!(Doorbell::open(&temp.path().join("d".repeat(100))).is_err());
    }
}
