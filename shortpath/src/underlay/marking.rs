//! QUIC packets with a differentiated services code point (RFC 2474).
//!
//! quinn-udp sends each packet with a control message for ECN, which overrides the whole byte that a socket's IP_TOS or
//! IPV6_TCLASS has set. So packets to be marked are sent from here, with both in one control message.
use std::io;

use quinn::udp::Transmit;
use tokio::net::UdpSocket;

/// The byte of the header: code point, then ECN (RFC 3168 section 5).
fn class(dscp: u8, transmit: &Transmit<'_>) -> u8 {
    (dscp & 0x3F) << 2 | transmit.ecn.map_or(0, |ecn| ecn as u8)
}

/// Sends a batch, marked. [`UdpSocketState::send`](quinn::udp::UdpSocketState::send) is its unmarked kin.
///
/// # Errors
/// Those of sendmsg(2), among them EIO and EINVAL where the kernel cannot split a batch (GSO, Linux 4.18).
#[cfg(target_os = "linux")]
pub(super) fn send(socket: &UdpSocket, transmit: &Transmit<'_>, dscp: u8) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

    let class = class(dscp, transmit);
    let wide = i32::from(class);
    let mark = if transmit.destination.is_ipv4() {
        ControlMessage::Ipv4Tos(&class)
    } else {
        ControlMessage::Ipv6TClass(&wide)
    };
    let size = transmit.segment_size.filter(|size| *size < transmit.contents.len());
    let size = size.map(u16::try_from).transpose().map_err(io::Error::other)?;
    let mut all = vec![mark];
    all.extend(size.as_ref().map(ControlMessage::UdpGsoSegments));
    let to = SockaddrStorage::from(transmit.destination);
    let contents = [io::IoSlice::new(transmit.contents)];
    sendmsg(socket.as_raw_fd(), &contents, &all, MsgFlags::empty(), Some(&to))?;
    Ok(())
}

/// Only Linux is known to take both in one message.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub(super) fn send(_: &UdpSocket, transmit: &Transmit<'_>, dscp: u8) -> io::Result<()> {
    let _unused = class(dscp, transmit);
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::SocketAddr;
    use std::os::fd::AsRawFd;

    use nix::cmsg_space;
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
    use quinn::udp::EcnCodepoint;
    use socket2::SockRef;

    use super::*;
    use crate::path::LocalId;
    use crate::underlay::sockets::Bound;

    /// The lengths and the header's byte of the packets that came.
    async fn received(socket: &UdpSocket, count: usize) -> Vec<(usize, u8)> {
        let mut seen = Vec::new();
        while seen.len() < count {
            socket.readable().await.unwrap();
            let mut bytes = [0; 2048];
            let mut buffers = [io::IoSliceMut::new(&mut bytes)];
            let mut control = cmsg_space!(i32);
            let read = socket.try_io(tokio::io::Interest::READABLE, || {
                let fd = socket.as_raw_fd();
                let message = recvmsg::<SockaddrStorage>(
                    fd,
                    &mut buffers,
                    Some(&mut control),
                    MsgFlags::empty(),
                )?;
                let class = message.cmsgs()?.find_map(|it| match it {
                    ControlMessageOwned::Ipv4Tos(class) => Some(class),
                    ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
                    _ => None,
                });
                Ok((message.bytes, class.expect("the kernel tells")))
            });
            seen.extend(read.ok());
        }
        seen
    }

    #[tokio::test]
    async fn a_batch_leaves_with_code_point_and_ecn_on_each_packet() {
        const EF: u8 = 46;
        for (ipv6, host) in [(false, "127.0.0.1"), (true, "::1")] {
            let Ok(receiver) = std::net::UdpSocket::bind((host, 0)) else { continue };
            receiver.set_nonblocking(true).unwrap();
            let receiver = UdpSocket::from_std(receiver).unwrap();
            let options = SockRef::from(&receiver);
            if ipv6 {
                options.set_recv_tclass_v6(true).unwrap();
            } else {
                options.set_recv_tos_v4(true).unwrap();
            }
            let to: SocketAddr = receiver.local_addr().unwrap();
            let sender = Bound::open(LocalId(0), ipv6, 0, None).unwrap();
            sender.io.writable().await.unwrap();
            let transmit = |ecn| Transmit {
                destination: to,
                ecn,
                contents: &[7; 2500],
                segment_size: Some(1000),
                src_ip: None,
            };
            sender.transmit(&transmit(Some(EcnCodepoint::Ect0)), Some(EF)).unwrap();
            let marked = (EF << 2) | 2;
            let expected = [(1000, marked), (1000, marked), (500, marked)];
            assert_eq!(received(&receiver, 3).await, expected);
            sender.transmit(&transmit(None), Some(EF)).unwrap();
            assert_eq!(received(&receiver, 3).await[0], (1000, EF << 2));
            sender.transmit(&transmit(Some(EcnCodepoint::Ect0)), None).unwrap();
            assert_eq!(received(&receiver, 3).await[0], (1000, 2), "unmarked as ever");
        }
    }
}
