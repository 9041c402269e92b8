//! What a UDP payload is: STUN or QUIC (RFC 9443 section 3), in pure code. ChannelData of TURN servers comes on sockets of its
//! own only (see [`super::relay`]), so that the first bytes 64 to 79, which QUIC uses as well, are no riddle here.
//!
//! The kernel hands several datagrams of one sender over as one buffer (GRO), so every *segment* is looked at by itself:
//! a check may sit between two QUIC packets.
use std::ops::Range;

/// Length of the connection ids this process gives itself. See [`super::paths::ConnectionIds`].
pub(super) const CID_LEN: usize = 11;
/// Length of the destination connection id of a client's first packet: token, leg kind, attempt.
pub(super) const TOKEN_CID_LEN: usize = 20;

/// What one datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// A STUN message, by first byte and magic cookie.
    Stun,
    /// A QUIC packet for the connection id it begins with.
    Quic(&'a [u8]),
    /// None of them.
    Other,
}

/// First two bits of a STUN message are zero, and bytes 4 to 8 are this (RFC 8489 section 5).
const COOKIE: [u8; 4] = 0x2112_A442_u32.to_be_bytes();
/// A STUN header.
const STUN_HEADER: usize = 20;
/// Longest STUN message that is looked at: ours and our peers' are below 200 bytes, a server's below 600. A task keeps a few
/// hundred of them waiting.
const STUN_MAX: usize = 2048;

/// Tells what `datagram` is by its first bytes.
pub(super) fn kind(datagram: &[u8]) -> Kind<'_> {
    match datagram.first() {
        Some(0..=3) if is_stun(datagram) => Kind::Stun,
        Some(64..) => quic(datagram),
        _ => Kind::Other,
    }
}

fn is_stun(datagram: &[u8]) -> bool {
    (STUN_HEADER..=STUN_MAX).contains(&datagram.len()) && datagram.get(4..8) == Some(&COOKIE)
}

/// The connection id a QUIC packet is addressed to (RFC 9000 section 17).
fn quic(datagram: &[u8]) -> Kind<'_> {
    let long = datagram[0] & 0x80 != 0;
    let id = if long {
        datagram.get(5).and_then(|length| datagram.get(6..6 + usize::from(*length)))
    } else {
        datagram.get(1..=CID_LEN)
    };
    id.map_or(Kind::Other, Kind::Quic)
}

/// The transaction of a STUN message (RFC 8489 section 5).
pub(super) fn transaction(stun: &[u8]) -> Option<[u8; 12]> {
    stun.get(8..STUN_HEADER)?.try_into().ok()
}

/// Whether a STUN message asks (class request), rather than answers or tells.
pub(super) fn is_request(stun: &[u8]) -> bool {
    stun.len() >= STUN_HEADER && stun[0] & 1 == 0 && stun[1] & 0x10 == 0
}

/// USERNAME of a STUN message up to the colon: the username fragment of the end that is asked (RFC 8445 section 7.2.2).
pub(super) fn asked(stun: &[u8]) -> Option<&[u8]> {
    const USERNAME: u16 = 6;
    let mut rest = stun.get(STUN_HEADER..)?;
    loop {
        let head: [u8; 4] = rest.get(..4)?.try_into().ok()?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = rest.get(4..4 + length)?;
        if u16::from_be_bytes([head[0], head[1]]) == USERNAME {
            return value.split(|byte| *byte == b':').next();
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
}

/// The datagrams in a received buffer of `length` bytes, `stride` bytes each but for the last.
pub(super) fn segments(length: usize, stride: usize) -> impl Iterator<Item = Range<usize>> {
    let stride = stride.max(1);
    (0..length).step_by(stride).map(move |start| start..(start + stride).min(length))
}

/// Keeps the given segments of a buffer, moved together at its front; returns their length. Only a last segment may be
/// shorter than `stride`, so the caller keeps them in order.
pub(super) fn compact(buffer: &mut [u8], keep: &[Range<usize>]) -> usize {
    let mut end = 0;
    for segment in keep {
        buffer.copy_within(segment.clone(), end);
        end += segment.len();
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stun() -> Vec<u8> {
        let mut message = vec![0, 1, 0, 0];
        message.extend(COOKIE);
        message.extend([7; 12]);
        message
    }

    #[test]
    fn each_protocol_is_known_by_its_first_bytes() {
        assert_eq!(kind(&stun()), Kind::Stun);
        let mut short = vec![0x41];
        short.extend([9; 30]);
        assert_eq!(kind(&short), Kind::Quic(&[9; CID_LEN]));
        let mut long = vec![0xC3, 0, 0, 0, 1, 20];
        long.extend([5; 20]);
        long.extend([0; 1100]);
        assert_eq!(kind(&long), Kind::Quic(&[5; 20]));
    }

    #[test]
    fn a_request_names_the_end_it_asks() {
        let mut message = stun();
        message.extend([0x80, 0x22, 0, 3, b'a', b'b', b'c', 0]);
        message.extend([0, 6, 0, 9]);
        message.extend(b"ours:them\0\0\0");
        assert!(is_request(&message));
        assert_eq!(asked(&message), Some(&b"ours"[..]));
        assert_eq!(transaction(&message), Some([7; 12]));
        for length in 20..message.len() - 3 {
            assert_eq!(asked(&message[..length]), None, "cut at {length}");
        }
        message[0] = 1;
        assert!(!is_request(&message));
    }

    #[test]
    fn garbage_is_nothing() {
        for garbage in [
            &[][..],
            &[0],
            &[0, 1, 2],
            &[3; 64],
            &[20; 64],
            &[0x40],
            &[0xFF],
            &[0xC0, 0, 0, 0, 1, 200, 1],
        ] {
            assert_eq!(kind(garbage), Kind::Other, "{garbage:?}");
        }
        let mut long = stun();
        long.resize(STUN_MAX + 1, 0);
        assert_eq!((kind(&long[..STUN_MAX]), kind(&long)), (Kind::Stun, Kind::Other));
        let mut wrong_cookie = stun();
        wrong_cookie[5] ^= 1;
        assert_eq!(kind(&wrong_cookie), Kind::Other);
    }

    #[test]
    fn a_mixed_batch_is_cut_and_what_stays_moves_together() {
        let mut batch = Vec::new();
        let mut quic = vec![0x41; 20];
        quic.extend([1; 0]);
        batch.extend(&quic);
        batch.extend(stun());
        batch.extend(&quic[..12]);
        let ranges: Vec<_> = segments(batch.len(), 20).collect();
        assert_eq!(ranges, [0..20, 20..40, 40..52]);
        let keep: Vec<_> = ranges
            .into_iter()
            .filter(|range| matches!(kind(&batch[range.clone()]), Kind::Quic(_)))
            .collect();
        let length = compact(&mut batch, &keep);
        assert_eq!(length, 32);
        assert!(batch[..32].iter().all(|byte| *byte == 0x41));
        assert_eq!(segments(5, 0).count(), 5);
    }
}
