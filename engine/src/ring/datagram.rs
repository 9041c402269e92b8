//! UDP in batches: `recvmmsg(2)` with GRO, `sendmmsg(2)` with GSO (udp(7), Linux 5.0 and 4.18), addresses of this machine
//! by `IP_PKTINFO`.
//!
//! Nothing is allocated per datagram: an [`Inbox`] and an [`Outbox`] own what the kernel reads and writes.
use std::ffi::c_void;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, SockRef};

use super::options::set;

/// Asks for what [`Inbox`] understands: coalesced datagrams (GRO) and, with `addresses`, the address that each came to.
///
/// # Errors
/// `setsockopt(2)`; a kernel without GRO is none.
pub(crate) fn prepare_datagrams(socket: impl AsFd, addresses: bool) -> io::Result<()> {
    let socket = socket.as_fd();
    let on = 1i32.to_ne_bytes();
    // Without it datagrams come one by one.
    let _ = set(socket, libc::SOL_UDP, libc::UDP_GRO, &on);
    if addresses {
        match SockRef::from(&socket).domain()? {
            Domain::IPV6 => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &on)?,
            _ => set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, &on)?,
        }
    }
    Ok(())
}

/// Sets DF on every datagram, whatever the kernel has learnt about the path (`IP_PMTUDISC_PROBE`).
///
/// # Errors
/// `setsockopt(2)`.
pub(crate) fn dont_fragment(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    match SockRef::from(&socket).domain()? {
        Domain::IPV6 => {
            let probe = libc::IPV6_PMTUDISC_PROBE.to_ne_bytes();
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &probe)
        }
        _ => {
            let probe = libc::IP_PMTUDISC_PROBE.to_ne_bytes();
            set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &probe)
        }
    }
}

/// Longest UDP payload, and what GRO coalesces at most.
pub(crate) const DATAGRAM_MAX: usize = 65_535;

/// Room for datagrams as they came.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    envelopes: Box<[Envelope]>,
    /// Their pointers are set before each call; the array is kept for its room only.
    headers: Box<[libc::mmsghdr]>,
}

/// Where a received datagram came from and went to.
pub(crate) struct Received {
    /// The sender.
    pub(crate) from: SocketAddr,
    /// The address of this machine that it was sent to, if the socket asks.
    pub(crate) to: Option<IpAddr>,
    /// Where it lies in [`Inbox::bytes`].
    pub(crate) start: usize,
    /// Bytes, of all segments together.
    pub(crate) length: usize,
    /// Bytes of each datagram but perhaps the last, if several were coalesced; else `length`.
    pub(crate) segment: usize,
}

impl Received {
    /// Start and length of each datagram in it.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (start, end, step) = (self.start, self.start + self.length, self.segment.max(1));
        (start..end.max(start + 1)).step_by(step).map(move |at| (at, step.min(end - at)))
    }
}

struct Envelope {
    name: libc::sockaddr_storage,
    control: Control,
    vector: libc::iovec,
}

/// Room for the control messages of one datagram: the longest are an `in6_pktinfo` and a GSO or GRO size.
#[repr(align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

const CONTROL: usize = 96;

/// Bytes from one datagram's room to the next. Not a multiple of the page size, or all headers share a few cache sets.
const STRIDE: usize = DATAGRAM_MAX.next_multiple_of(64) + 1600;

// SAFETY: the raw pointers inside are set from the boxes beside them right before each system call and mean nothing
// between calls, so moving the whole to another thread moves all they could point to.
unsafe impl Send for Inbox {}

impl Inbox {
    /// Room for `slots` receptions. Pages are taken from the kernel as they are used.
    pub(crate) fn new(slots: usize) -> Self {
        let envelope = || {
            // SAFETY: all-zero bytes are valid values of these plain C structs.
            let (name, vector) = unsafe { (zeroed(), zeroed()) };
            Envelope { name, control: Control([0; CONTROL]), vector }
        };
        Self {
            bytes: vec![0; slots * STRIDE].into_boxed_slice(),
            envelopes: (0..slots).map(|_| envelope()).collect(),
            // SAFETY: as above.
            headers: (0..slots).map(|_| unsafe { zeroed() }).collect(),
        }
    }

    pub(crate) fn slots(&self) -> usize {
        self.envelopes.len()
    }

    /// What was received, at [`Received::start`].
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Receives without waiting into the slots from `first` on, at most `most`; answers how many it filled.
    ///
    /// # Errors
    /// `recvmmsg(2)`; `WouldBlock` if there is nothing.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        first: usize,
        most: usize,
    ) -> io::Result<usize> {
        let last = self.slots().min(first + most);
        let Some(envelopes) = self.envelopes.get_mut(first..last) else { return Ok(0) };
        let rooms = self.bytes.chunks_exact_mut(STRIDE).skip(first);
        for ((envelope, header), room) in envelopes.iter_mut().zip(&mut self.headers).zip(rooms) {
            envelope.vector =
                libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: DATAGRAM_MAX };
            header.msg_hdr.msg_name = (&raw mut envelope.name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = &raw mut envelope.vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = envelope.control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
        }
        let (headers, count) = (self.headers.as_mut_ptr(), (last - first) as libc::c_uint);
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: `count` headers were just pointed at buffers of the stated lengths, which `self` owns and nobody else
        // touches before the call returns. No timeout is passed.
        let received = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), headers, count, flags, std::ptr::null_mut())
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// The datagram in slot `first + index` after a [`Inbox::receive`] into `first`; `None` if it was cut or its sender has
    /// no IP address.
    pub(crate) fn get(&self, first: usize, index: usize) -> Option<Received> {
        let (envelope, header) = (self.envelopes.get(first + index)?, self.headers.get(index)?);
        let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        let from = socket_address(&envelope.name)?;
        let length = header.msg_len as usize;
        let mut received =
            Received { from, to: None, start: (first + index) * STRIDE, length, segment: length };
        for (level, kind, value) in
            control_messages(&envelope.control, header.msg_hdr.msg_controllen)
        {
            match (level, kind, value) {
                (libc::SOL_UDP, libc::UDP_GRO, [a, b, c, d, ..]) => {
                    let segment = usize::try_from(i32::from_ne_bytes([*a, *b, *c, *d]));
                    received.segment = segment.ok().filter(|size| *size > 0).unwrap_or(length);
                }
                // struct in_pktinfo: interface (4), local address (4), address in the header (4).
                (libc::IPPROTO_IP, libc::IP_PKTINFO, [_, _, _, _, _, _, _, _, a, b, c, d]) => {
                    received.to = Some(IpAddr::from([*a, *b, *c, *d]));
                }
                // struct in6_pktinfo: address (16), interface (4).
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, value) if value.len() == 20 => {
                    received.to = value.first_chunk::<16>().map(|octets| IpAddr::from(*octets));
                }
                _ => {}
            }
        }
        (!truncated).then_some(received)
    }
}

/// One datagram to be sent: up to [`HEAD_MAX`] bytes of its own, bytes from somewhere else, and padding.
#[derive(Clone, Copy)]
pub(crate) struct Parcel {
    /// Where to.
    pub(crate) to: SocketAddr,
    /// The address of this machine to send from; `None` leaves it to the route.
    pub(crate) from: Option<IpAddr>,
    /// What comes first.
    pub(crate) head: [u8; HEAD_MAX],
    /// How much of `head`.
    pub(crate) head_length: u8,
    /// Zero bytes at the end, at most 3.
    pub(crate) padding: u8,
    /// Where the rest begins in the bytes given to [`Outbox::send`].
    pub(crate) start: usize,
    /// How long it is.
    pub(crate) length: usize,
}

/// The header of a TURN Data indication from an IPv6 peer: 20 + 24 + 4 bytes.
pub(crate) const HEAD_MAX: usize = 48;

impl Parcel {
    fn size(&self) -> usize {
        usize::from(self.head_length) + self.length + usize::from(self.padding)
    }
}

/// What came of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Datagrams that the kernel took.
    pub(crate) datagrams: usize,
    /// Datagrams that it did not take: no room, no route, too long. UDP may lose them.
    pub(crate) lost: usize,
}

/// Room for what the kernel wants to know about a batch.
pub(crate) struct Outbox {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    envelopes: Vec<(libc::sockaddr_storage, Control)>,
    /// Parcels per message.
    counts: Vec<usize>,
    /// Some interfaces refuse GSO (`EIO`: no checksum offload); then everything goes one by one, for good.
    segmenting: bool,
}

// SAFETY: as for `Inbox`: the pointers are set before each call, from what the call borrows.
unsafe impl Send for Outbox {}

/// The kernel's `UDP_MAX_SEGMENTS` was 64 before Linux 6.9.
const SEGMENTS_MAX: usize = 64;
/// A GSO message is one IP datagram for the kernel: 65,535 less IPv4 and UDP headers, and IPv6 has no less room.
const GSO_MAX: usize = 65_507;
static PADDING: [u8; 3] = [0; 3];

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            headers: Vec::new(),
            vectors: Vec::new(),
            envelopes: Vec::new(),
            counts: Vec::new(),
            segmenting: true,
        }
    }

    /// Sends `parcels`, whose bodies lie in `bytes`, in their order and without waiting. Neighbours of one size for one
    /// destination become one message (GSO). Parcels whose body does not lie in `bytes` are lost.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
        parcels: &[Parcel],
    ) -> Sent {
        let mut sent = Sent::default();
        let mut rest = parcels;
        let mut segmenting = self.segmenting;
        while !rest.is_empty() {
            self.prepare(bytes, rest, segmenting);
            match self.call(socket) {
                Ok(messages) => {
                    let taken = self.counts.iter().take(messages.max(1)).sum::<usize>();
                    sent.datagrams += taken;
                    rest = rest.get(taken..).unwrap_or_default();
                }
                Err(libc::EINTR) => {}
                // An interface without checksum offload says EIO; EINVAL may be about this message alone.
                Err(error @ (libc::EIO | libc::EINVAL)) if self.counts.first() > Some(&1) => {
                    segmenting = false;
                    self.segmenting &= error != libc::EIO;
                }
                // The socket's buffer is full: what is left would find it full as well.
                Err(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                    sent.lost += rest.len();
                    break;
                }
                Err(_) => {
                    let refused = self.counts.first().copied().unwrap_or(1);
                    sent.lost += refused;
                    rest = rest.get(refused..).unwrap_or_default();
                }
            }
        }
        sent
    }

    /// Fills the arrays for `parcels`, then points the headers at them.
    fn prepare(&mut self, bytes: &[u8], parcels: &[Parcel], segmenting: bool) {
        self.counts.clear();
        self.vectors.clear();
        self.envelopes.clear();
        self.headers.clear();
        let mut rest = parcels;
        while let [first, ..] = rest {
            let count = if segmenting { run_length(rest) } else { 1 };
            let (run, after) = rest.split_at(count);
            let vectors = self.vectors.len();
            for parcel in run {
                let body = bytes.get(parcel.start..).and_then(|bytes| bytes.get(..parcel.length));
                let head = &parcel.head[..usize::from(parcel.head_length).min(HEAD_MAX)];
                let padding = &PADDING[..usize::from(parcel.padding).min(PADDING.len())];
                for part in [head, body.unwrap_or_default(), padding] {
                    if !part.is_empty() {
                        let iov_base = part.as_ptr().cast_mut().cast::<c_void>();
                        self.vectors.push(libc::iovec { iov_base, iov_len: part.len() });
                    }
                }
            }
            self.envelopes.push((storage(first.to), Control([0; CONTROL])));
            // SAFETY: all-zero bytes are a valid header: no name, no vectors, no control.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            header.msg_hdr.msg_iovlen = (self.vectors.len() - vectors) as _;
            header.msg_hdr.msg_namelen = name_length(first.to);
            self.headers.push(header);
            self.counts.push(count);
            rest = after;
        }
        self.point(parcels);
    }

    /// The arrays do not grow any more, so their elements stay where they are.
    fn point(&mut self, parcels: &[Parcel]) {
        let (mut at_vector, mut at_parcel) = (0, 0);
        for ((header, (name, control)), &count) in
            self.headers.iter_mut().zip(&mut self.envelopes).zip(&self.counts)
        {
            let parcel = &parcels[at_parcel];
            let message = &mut header.msg_hdr;
            message.msg_name = (&raw mut *name).cast();
            message.msg_iov = self.vectors[at_vector..].as_mut_ptr();
            let mut length = 0;
            if let Some(from) = parcel.from {
                length = put_source(control, from, parcel.to);
            }
            if count > 1 {
                let size = (parcel.size() as u16).to_ne_bytes();
                length = put_control(control, length, libc::SOL_UDP, libc::UDP_SEGMENT, &size);
            }
            if length > 0 {
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = length as _;
            }
            at_vector += message.msg_iovlen;
            at_parcel += count;
        }
    }

    fn call(&mut self, socket: BorrowedFd<'_>) -> Result<usize, i32> {
        let (headers, count) = (self.headers.as_mut_ptr(), self.headers.len() as libc::c_uint);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `count` headers point at names, vectors and control messages in `self`, and the vectors at the bytes and
        // parcels that the caller's borrow keeps alive over this call; the kernel only reads them and writes `msg_len`.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count, flags) };
        usize::try_from(sent)
            .map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))
    }
}

/// How many parcels from the first on can be one GSO message: same destination, same size, the last perhaps shorter.
fn run_length(parcels: &[Parcel]) -> usize {
    let Some(first) = parcels.first() else { return 0 };
    let size = first.size();
    let most = SEGMENTS_MAX.min(GSO_MAX / size.max(1)).max(1);
    let alike = |other: &&Parcel| other.to == first.to && other.from == first.from;
    let full = parcels
        .iter()
        .take(most)
        .take_while(alike)
        .take_while(|other| other.size() == size)
        .count();
    let shorter =
        parcels.get(full).filter(alike).is_some_and(|next| next.size() < size && next.size() > 0);
    if full < most && shorter { full + 1 } else { full.max(1) }
}

fn control_messages(control: &Control, length: usize) -> impl Iterator<Item = (i32, i32, &[u8])> {
    let mut rest = control.0.get(..length.min(CONTROL)).unwrap_or_default();
    std::iter::from_fn(move || {
        let (header, _) = rest.split_first_chunk::<CMSG_HEADER>()?;
        let length = usize::from_ne_bytes(*header.first_chunk::<8>()?);
        let level = i32::from_ne_bytes(*header[8..].first_chunk::<4>()?);
        let kind = i32::from_ne_bytes(*header[12..].first_chunk::<4>()?);
        let value = rest.get(CMSG_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
        Some((level, kind, value))
    })
}

/// `struct cmsghdr` of a 64-bit Linux: length (8), level (4), type (4); the value follows, the next starts at a multiple
/// of 8.
const CMSG_HEADER: usize = 16;
const _: () = assert!(size_of::<libc::cmsghdr>() == CMSG_HEADER);

/// Appends a control message at `at`; answers where it ends.
fn put_control(control: &mut Control, at: usize, level: i32, kind: i32, value: &[u8]) -> usize {
    let length = CMSG_HEADER + value.len();
    let end = at + length.next_multiple_of(8);
    let Some(room) = control.0.get_mut(at..end) else { return at };
    room[..8].copy_from_slice(&length.to_ne_bytes());
    room[8..12].copy_from_slice(&level.to_ne_bytes());
    room[12..16].copy_from_slice(&kind.to_ne_bytes());
    room[16..length].copy_from_slice(value);
    end
}

/// The source address, in the form of the socket's family, which the destination tells.
fn put_source(control: &mut Control, from: IpAddr, to: SocketAddr) -> usize {
    match (from, to) {
        (IpAddr::V4(ip), SocketAddr::V4(_)) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&ip.octets());
            put_control(control, 0, libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
        }
        (IpAddr::V6(ip), SocketAddr::V6(_)) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&ip.octets());
            put_control(control, 0, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
        }
        _ => 0,
    }
}

fn socket_address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let name = &raw const *name;
    // SAFETY: `name` is a whole `sockaddr_storage`, initialised, aligned for and at least as long as either type; both are
    // plain data.
    let (v4, v6) = unsafe {
        (name.cast::<libc::sockaddr_in>().read(), name.cast::<libc::sockaddr_in6>().read())
    };
    match i32::from(v4.sin_family) {
        libc::AF_INET => {
            let ip = u32::from_be(v4.sin_addr.s_addr).into();
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            let (ip, port) = (v6.sin6_addr.s6_addr.into(), u16::from_be(v6.sin6_port));
            Some(SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn storage(address: SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: all-zero bytes are a valid `sockaddr_storage`.
    let mut name: libc::sockaddr_storage = unsafe { zeroed() };
    let place = &raw mut name;
    match address {
        SocketAddr::V4(v4) => {
            let mut octets = [0; 4];
            octets.copy_from_slice(&v4.ip().octets());
            let sin_addr = libc::in_addr { s_addr: u32::from_ne_bytes(octets) };
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr,
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_storage` has room and alignment for every socket address.
            unsafe { place.cast::<libc::sockaddr_in>().write(value) };
        }
        SocketAddr::V6(v6) => {
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(value) };
        }
    }
    name
}

const fn name_length(address: SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V4(_) => size_of::<libc::sockaddr_in>() as libc::socklen_t,
        SocketAddr::V6(_) => size_of::<libc::sockaddr_in6>() as libc::socklen_t,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn parcel(to: SocketAddr, start: usize, length: usize) -> Parcel {
        Parcel { to, from: None, head: [b'h'; HEAD_MAX], head_length: 2, padding: 1, start, length }
    }

    fn pair(address: &str) -> (UdpSocket, UdpSocket) {
        (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap())
    }

    #[test]
    fn a_batch_arrives_whole_and_in_order_for_either_family() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (sender, receiver) = pair(address);
            let to = receiver.local_addr().unwrap();
            let bytes: Vec<u8> = (0..200).collect();
            let mut parcels: Vec<_> = (0..6).map(|n| parcel(to, n * 20, 20)).collect();
            parcels.push(parcel(to, 120, 3));
            parcels.push(parcel(to, 130, 30));
            let sent = Outbox::new().send(sender.as_fd(), &bytes, &parcels);
            assert_eq!(sent, Sent { datagrams: 8, lost: 0 });
            let mut datagram = [0; 100];
            for parcel in &parcels {
                let length = receiver.recv(&mut datagram).unwrap();
                let body = &bytes[parcel.start..parcel.start + parcel.length];
                assert_eq!(&datagram[..length], [b"hh", body, &[0]].concat());
            }
        }
    }

    #[test]
    fn coalesced_datagrams_tell_their_segment_size_and_their_addresses() {
        for (address, ip) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let (sender, receiver) = pair(address);
            prepare_datagrams(&receiver, true).unwrap();
            let to = receiver.local_addr().unwrap();
            let parcels: Vec<_> = (0..4).map(|n| parcel(to, n, 10)).collect();
            Outbox::new().send(sender.as_fd(), &[7; 100], &parcels);
            let mut inbox = Inbox::new(8);
            let mut seen = 0;
            for index in 0..inbox.receive(receiver.as_fd(), 2, 6).unwrap() {
                let received = inbox.get(2, index).unwrap();
                assert_eq!(received.from, sender.local_addr().unwrap());
                assert_eq!(received.to, Some(ip.parse().unwrap()));
                assert_eq!(received.segment, 13);
                seen += received.length / 13;
                assert_eq!(inbox.bytes()[received.start], b'h');
            }
            assert_eq!(seen, 4);
        }
    }

    #[test]
    fn the_source_address_is_chosen_by_the_sender() {
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from: IpAddr = "127.0.0.7".parse().unwrap();
        let parcel = Parcel { from: Some(from), ..parcel(receiver.local_addr().unwrap(), 0, 1) };
        assert_eq!(Outbox::new().send(sender.as_fd(), &[0], &[parcel]).datagrams, 1);
        assert_eq!(receiver.recv_from(&mut [0; 9]).unwrap().1.ip(), from);
    }

    #[test]
    fn what_the_kernel_refuses_is_lost_and_the_rest_goes_out() {
        let (sender, receiver) = pair("127.0.0.1:0");
        let to = receiver.local_addr().unwrap();
        let nowhere = parcel("127.0.0.1:0".parse().unwrap(), 0, 5);
        let too_long = parcel(to, 0, 65_530);
        let bytes = vec![0; 70_000];
        let parcels = [parcel(to, 0, 5), nowhere, too_long, parcel(to, 0, 6)];
        let sent = Outbox::new().send(sender.as_fd(), &bytes, &parcels);
        assert_eq!(sent, Sent { datagrams: 2, lost: 2 });
    }

    #[test]
    fn a_run_is_of_one_size_and_destination_with_a_shorter_last() {
        let (a, b) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let run = |parcels: &[(SocketAddr, usize)]| {
            run_length(&parcels.iter().map(|&(to, size)| parcel(to, 0, size)).collect::<Vec<_>>())
        };
        assert_eq!(run(&[(a, 9), (a, 9), (a, 4), (a, 9)]), 3);
        assert_eq!(run(&[(a, 9), (b, 9)]), 1);
        assert_eq!(run(&[(a, 9), (a, 10)]), 1);
        assert_eq!(run(&[(a, 9); 100]), 64);
        assert_eq!(run(&[(a, 30_000); 3]), 2);
    }
}
