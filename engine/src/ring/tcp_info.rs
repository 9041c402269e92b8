//! `getsockopt(TCP_INFO)`, 0.4 to 0.6 us a call.
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::rtt::{INFO_BYTES, TcpInfo};

/// What the kernel knows about a TCP connection. Works in every state; figures are as of now.
///
/// # Errors
/// `getsockopt(2)`; `InvalidData` if the kernel returns less than Linux 2.6 did.
pub(crate) fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let mut info = [0; INFO_BYTES];
    let length = raw_tcp_info(&socket, &mut info)?;
    TcpInfo::parse(&info[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Fills `info` and returns how many bytes of it the kernel wrote.
fn raw_tcp_info(socket: &impl AsFd, info: &mut [u8; INFO_BYTES]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(INFO_BYTES).unwrap_or(0);
    // SAFETY: `info` is writable for `length` bytes and both outlive the call; the kernel writes at most `length` bytes
    // and updates it; the descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok((length as usize).min(INFO_BYTES))
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn connected_socket_tells_its_round_trip_and_what_was_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[7; 5000]).unwrap();
        far.read_exact(&mut [0; 5000]).unwrap();
        far.write_all(b"x").unwrap();
        near.read_exact(&mut [0]).unwrap();
        let info = tcp_info(&near).unwrap();
        assert!(info.rtt_us > 0 && info.rtt_us < 10_000_000, "{info:?}");
        let Some(transfer) = info.transfer else { return }; // a kernel before 4.19
        assert!(transfer.min_rtt_us.is_some_and(|min| min <= info.rtt_us), "{info:?}");
        // The SYN counts as one.
        assert_eq!((transfer.acked_bytes, transfer.sent_bytes), (5001, 5000), "{info:?}");
        assert!(!info.outstanding());
    }

    #[test]
    fn other_sockets_are_an_error() {
        assert!(tcp_info(UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
    }
}
