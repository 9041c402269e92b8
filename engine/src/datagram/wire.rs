//! STUN and TURN bytes (RFC 8489 sections 5 and 14, RFC 8656 sections 12 and 18).
//!
//! Pure, and own code for a reason: `stun-types` logs a warning for each malformed datagram, which any stranger may send,
//! accepts bytes behind a message, and allocates per message, and the data path must read Send indications without. The
//! tests use it as judge.
use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::{constant_time, hmac};
use md5::{Digest, Md5};

/// Message types (RFC 8489 section 5, RFC 8656 section 17): method and class in one number.
pub(crate) mod kind {
    pub(crate) const BINDING: u16 = 0x0001;
    pub(crate) const ALLOCATE: u16 = 0x0003;
    pub(crate) const REFRESH: u16 = 0x0004;
    pub(crate) const CREATE_PERMISSION: u16 = 0x0008;
    pub(crate) const CHANNEL_BIND: u16 = 0x0009;
    pub(crate) const SEND_INDICATION: u16 = 0x0016;
    pub(crate) const DATA_INDICATION: u16 = 0x0017;
    /// Added to a request's type.
    pub(crate) const SUCCESS: u16 = 0x0100;
    /// Added to a request's type.
    pub(crate) const ERROR: u16 = 0x0110;
}

/// Attribute types (IANA "STUN Attributes").
pub(crate) mod attribute {
    pub(crate) const CHANGE_REQUEST: u16 = 0x0003;
    pub(crate) const USERNAME: u16 = 0x0006;
    pub(crate) const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub(crate) const ERROR_CODE: u16 = 0x0009;
    pub(crate) const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    pub(crate) const CHANNEL_NUMBER: u16 = 0x000c;
    pub(crate) const LIFETIME: u16 = 0x000d;
    pub(crate) const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub(crate) const DATA: u16 = 0x0013;
    pub(crate) const REALM: u16 = 0x0014;
    pub(crate) const NONCE: u16 = 0x0015;
    pub(crate) const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub(crate) const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    pub(crate) const EVEN_PORT: u16 = 0x0018;
    pub(crate) const REQUESTED_TRANSPORT: u16 = 0x0019;
    pub(crate) const DONT_FRAGMENT: u16 = 0x001a;
    pub(crate) const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    pub(crate) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub(crate) const RESERVATION_TOKEN: u16 = 0x0022;
    pub(crate) const PRIORITY: u16 = 0x0024;
    pub(crate) const USE_CANDIDATE: u16 = 0x0025;
    pub(crate) const PADDING: u16 = 0x0026;
    pub(crate) const FINGERPRINT: u16 = 0x8028;
    pub(crate) const RESPONSE_ORIGIN: u16 = 0x802b;
    pub(crate) const OTHER_ADDRESS: u16 = 0x802c;
    /// Our own, of the numbers that whoever does not know them ignores (RFC 8489 section 14): four bytes, of which the first
    /// two are another port of the same address that answers Binding requests; in a request, the wish to be told.
    pub(crate) const OTHER_PORT: u16 = 0xf5b7;
}

/// Bytes of a STUN header.
pub(crate) const HEADER: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// MESSAGE-INTEGRITY with its header.
const INTEGRITY: usize = 24;
/// FINGERPRINT with its header.
pub(super) const FINGERPRINT: usize = 8;

/// A datagram that is one whole STUN message: every attribute fits, a FINGERPRINT is right, nothing follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stun<'a> {
    bytes: &'a [u8],
    /// Where the first MESSAGE-INTEGRITY starts.
    integrity: Option<usize>,
    fingerprint: bool,
}

impl<'a> Stun<'a> {
    /// Reads a datagram; `None` if it is no such message.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] & 0xc0 != 0
            || header[4..8] != COOKIE
            || length != body.len()
            || length % 4 != 0
        {
            return None;
        }
        let mut stun = Self { bytes, integrity: None, fingerprint: false };
        let mut at = HEADER;
        while at < bytes.len() {
            let [a, b, c, d] = *bytes.get(at..)?.first_chunk::<4>()?;
            let next = at + 4 + usize::from(u16::from_be_bytes([c, d])).next_multiple_of(4);
            if next > bytes.len() {
                return None;
            }
            let kind = u16::from_be_bytes([a, b]);
            match kind {
                attribute::MESSAGE_INTEGRITY if stun.integrity.is_none() => {
                    stun.integrity = Some(at);
                }
                attribute::FINGERPRINT => {
                    let value = bytes.get(at + 4..next)?;
                    let right = next == bytes.len() && value == fingerprint(&bytes[..at]);
                    stun.fingerprint = true;
                    return right.then_some(stun);
                }
                _ => {}
            }
            at = next;
        }
        Some(stun)
    }

    /// The message type: one of [`kind`], or another.
    pub(crate) fn kind(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The magic cookie and the transaction id.
    pub(crate) fn transaction(&self) -> [u8; 16] {
        self.bytes.get(4..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or_default()
    }

    /// Types and values in their order. What follows MESSAGE-INTEGRITY is left out, as nobody vouches for it (RFC 8489
    /// section 14.5), MESSAGE-INTEGRITY-SHA256 and FINGERPRINT are known.
    pub(crate) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let end = self.integrity.map_or(self.bytes.len(), |at| at + INTEGRITY);
        let mut rest = self.bytes.get(HEADER..end).unwrap_or_default();
        std::iter::from_fn(move || {
            let ([a, b, c, d], after) = rest.split_first_chunk::<4>()?;
            let length = usize::from(u16::from_be_bytes([*c, *d]));
            let value = after.get(..length)?;
            rest = after.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((u16::from_be_bytes([*a, *b]), value))
        })
    }

    /// The first attribute of a type.
    pub(crate) fn get(&self, wanted: u16) -> Option<&'a [u8]> {
        self.attributes().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }

    /// The first attribute of a type, if it is text.
    pub(crate) fn text(&self, wanted: u16) -> Option<&'a str> {
        self.get(wanted).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Four bytes, as many attributes have them.
    pub(crate) fn word(&self, wanted: u16) -> Option<[u8; 4]> {
        self.get(wanted).and_then(|value| value.try_into().ok())
    }

    /// Has a FINGERPRINT, which is then its last attribute and right.
    pub(crate) fn has_fingerprint(&self) -> bool {
        self.fingerprint
    }

    /// Has a MESSAGE-INTEGRITY, right or wrong.
    pub(crate) fn is_signed(&self) -> bool {
        self.integrity.is_some()
    }

    /// Its MESSAGE-INTEGRITY was made with `key`.
    pub(crate) fn verify(&self, key: &Key) -> bool {
        let Some(at) = self.integrity else { return false };
        let (Some(before), Some(value)) =
            (self.bytes.get(..at), self.bytes.get(at + 4..at + INTEGRITY))
        else {
            return false;
        };
        constant_time::verify_slices_are_equal(key.sign(before).as_ref(), value).is_ok()
    }

    /// Comprehension-required attributes (RFC 8489 section 14) that are not among `known`.
    pub(crate) fn unknown(&self, known: &[u16]) -> impl Iterator<Item = u16> {
        self.attributes()
            .map(|(kind, _)| kind)
            .filter(|kind| *kind < 0x8000 && !known.contains(kind))
    }
}

/// What signs the messages of one user: HMAC-SHA1 under MD5(user ":" realm ":" password) (RFC 8489 section 9.2.2).
#[derive(Clone)]
pub(crate) struct Key(hmac::Key);

impl Key {
    pub(crate) fn long_term(username: &str, realm: &str, password: &str) -> Self {
        let digest = Md5::digest(format!("{username}:{realm}:{password}"));
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &digest))
    }

    /// Over a message up to its MESSAGE-INTEGRITY, with the length it has with it.
    fn sign(&self, before: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(before.get(..2).unwrap_or_default());
        context.update(&length_with(before, INTEGRITY));
        context.update(before.get(4..).unwrap_or_default());
        context.sign()
    }
}

/// The length field of a message that grows by `more` bytes.
fn length_with(message: &[u8], more: usize) -> [u8; 2] {
    u16::try_from(message.len() + more - HEADER).unwrap_or(u16::MAX).to_be_bytes()
}

/// A message being written. Values are short, so lengths fit.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(kind: u16, transaction: [u8; 16]) -> Self {
        let mut bytes = Vec::with_capacity(160);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&transaction);
        Self(bytes)
    }

    pub(crate) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&kind.to_be_bytes());
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Attributes that are bytes already.
    pub(crate) fn put_raw(mut self, attributes: &[u8]) -> Self {
        self.0.extend_from_slice(attributes);
        self
    }

    /// An address as XOR-MAPPED-ADDRESS and its like have it.
    pub(crate) fn put_xor(self, kind: u16, address: SocketAddr) -> Self {
        let transaction = self.0.get(4..).and_then(|bytes| bytes.first_chunk()).copied();
        let (value, length) = encode_address(address, &transaction.unwrap_or_default());
        self.put(kind, &value[..length])
    }

    /// An address in clear, as OTHER-ADDRESS has it.
    pub(crate) fn put_plain(self, kind: u16, address: SocketAddr) -> Self {
        let (value, length) = encode_address(address, &[0; 16]);
        self.put(kind, &value[..length])
    }

    /// Without a reason phrase, which is for people only (RFC 8489 section 14.8) and would make refusals larger than what
    /// they refuse.
    pub(crate) fn put_error(self, code: u16) -> Self {
        let (class, number) = ((code / 100) as u8, (code % 100) as u8);
        self.put(attribute::ERROR_CODE, &[0, 0, class, number])
    }

    pub(crate) fn put_unknown(self, kinds: &[u16]) -> Self {
        let value: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_be_bytes()).collect();
        self.put(attribute::UNKNOWN_ATTRIBUTES, &value)
    }

    pub(crate) fn sign(self, key: &Key) -> Self {
        let tag = key.sign(&self.0);
        self.put(attribute::MESSAGE_INTEGRITY, tag.as_ref())
    }

    pub(crate) fn length(&self) -> usize {
        self.0.len()
    }

    /// The message without FINGERPRINT.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = length_with(&self.0, 0);
        self.0[2..4].copy_from_slice(&length);
        self.0
    }

    /// The message with FINGERPRINT.
    pub(crate) fn finish_with_fingerprint(self) -> Vec<u8> {
        let value = fingerprint(&self.0);
        self.put(attribute::FINGERPRINT, &value).finish()
    }
}

/// Of a message up to its FINGERPRINT, with the length it has with it (RFC 8489 section 14.7).
fn fingerprint(before: &[u8]) -> [u8; 4] {
    let length = length_with(before, FINGERPRINT);
    let mut crc = u32::MAX;
    let parts = [before.get(..2).unwrap_or_default(), &length, before.get(4..).unwrap_or_default()];
    for byte in parts.into_iter().flatten() {
        crc = CRC[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    }
    (!crc ^ 0x5354_554e).to_be_bytes()
}

/// CRC-32 of ISO 3309, reflected.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

/// Reads XOR-PEER-ADDRESS and its like; `None` if it is no address. `mask` is [`Stun::transaction`].
pub(crate) fn decode_address(value: &[u8], mask: &[u8; 16]) -> Option<SocketAddr> {
    let ([_, family, high, low], ip) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([high ^ mask[0], low ^ mask[1]]);
    let ip = match family {
        1 => IpAddr::from(xor::<4>(ip.try_into().ok()?, mask)),
        2 => IpAddr::from(xor::<16>(ip.try_into().ok()?, mask)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// An address attribute's value, and how long it is: 8 or 20 bytes.
pub(crate) fn encode_address(address: SocketAddr, mask: &[u8; 16]) -> ([u8; 20], usize) {
    let mut value = [0; 20];
    let [high, low] = address.port().to_be_bytes();
    value[2..4].copy_from_slice(&[high ^ mask[0], low ^ mask[1]]);
    match address.ip() {
        IpAddr::V4(ip) => {
            value[1] = 1;
            value[4..8].copy_from_slice(&xor(ip.octets(), mask));
            (value, 8)
        }
        IpAddr::V6(ip) => {
            value[1] = 2;
            value[4..20].copy_from_slice(&xor(ip.octets(), mask));
            (value, 20)
        }
    }
}

fn xor<const N: usize>(bytes: [u8; N], mask: &[u8; 16]) -> [u8; N] {
    std::array::from_fn(|index| bytes[index] ^ mask[index])
}

/// Channel number and payload length of a ChannelData message (RFC 8656 section 12.4); `None` if it is none, or shorter
/// than it says. Padding behind the payload is allowed, as some clients pad on UDP too.
pub(crate) fn channel_data(bytes: &[u8]) -> Option<(u16, usize)> {
    let ([a, b, c, d], payload) = bytes.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([*c, *d]));
    let padding = payload.len().checked_sub(length)?;
    (CHANNELS.contains(&u16::from_be_bytes([*a, *b])) && padding < 4)
        .then_some((u16::from_be_bytes([*a, *b]), length))
}

/// Channel numbers as RFC 5766 section 11 has them, because stock clients still choose any of these; RFC 8656 section 12
/// ends at 0x4fff, to leave room for other protocols on a port, which this one does not share.
pub(crate) const CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x7fff;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stun_types::attribute::{ErrorCode, Username, XorMappedAddress};
    use stun_types::message::{
        IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageWrite, MessageWriteExt,
        MessageWriteVec, Method,
    };

    const TRANSACTION: [u8; 16] = [0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    fn theirs() -> stun_types::message::MessageIntegrityCredentials {
        LongTermKeyCredentials::new("1:u".into(), "secret".into(), "here".into()).into()
    }

    #[test]
    fn another_implementations_signature_and_fingerprint_hold_here() {
        let mut out = Message::builder_request(Method::new(3), MessageWriteVec::new());
        out.add_attribute(&Username::new("1:u").unwrap()).unwrap();
        out.add_message_integrity(&theirs(), IntegrityAlgorithm::Sha1).unwrap();
        out.add_fingerprint().unwrap();
        let mut bytes = out.finish();
        let stun = Stun::parse(&bytes).unwrap();
        assert_eq!((stun.kind(), stun.text(attribute::USERNAME)), (kind::ALLOCATE, Some("1:u")));
        assert!(stun.verify(&Key::long_term("1:u", "here", "secret")));
        assert!(!stun.verify(&Key::long_term("1:u", "here", "secreT")));
        bytes[24] ^= 1;
        assert!(Stun::parse(&bytes).is_none(), "a wrong fingerprint");
    }

    #[test]
    fn our_messages_hold_there() {
        for address in ["192.0.2.1:4242", "[2001:db8::7]:443"] {
            let address = address.parse().unwrap();
            let key = Key::long_term("1:u", "here", "secret");
            let bytes = Writer::new(kind::ALLOCATE + kind::ERROR, TRANSACTION)
                .put_error(438)
                .put_xor(attribute::XOR_MAPPED_ADDRESS, address)
                .put(attribute::REALM, b"odd")
                .sign(&key)
                .finish_with_fingerprint();
            let message = Message::from_bytes(&bytes).unwrap();
            assert_eq!(message.attribute::<ErrorCode>().unwrap().code(), 438);
            let mapped = message.attribute::<XorMappedAddress>().unwrap();
            assert_eq!(mapped.addr(message.transaction_id()), address);
            message.validate_integrity(&theirs()).unwrap();
        }
    }

    #[test]
    fn nobody_vouches_for_what_follows_the_signature() {
        let key = Key::long_term("u", "r", "p");
        let bytes = Writer::new(kind::REFRESH, TRANSACTION)
            .put(attribute::LIFETIME, &[0, 0, 0, 9])
            .sign(&key)
            .put(attribute::DATA, b"smuggled")
            .put(attribute::LIFETIME, &[0; 4])
            .finish();
        let stun = Stun::parse(&bytes).unwrap();
        assert!(stun.verify(&key));
        assert_eq!(stun.word(attribute::LIFETIME), Some([0, 0, 0, 9]));
        assert_eq!(stun.get(attribute::DATA), None);
    }

    #[test]
    fn whatever_is_cut_or_longer_than_it_says_is_no_message() {
        let bytes = Writer::new(kind::BINDING, TRANSACTION).put(0x8022, b"a client").finish();
        assert!(Stun::parse(&bytes).is_some());
        for end in 0..bytes.len() {
            assert!(Stun::parse(&bytes[..end]).is_none(), "{end}");
        }
        assert!(Stun::parse(&[&bytes[..], &[0; 4]].concat()).is_none());
        assert!(Stun::parse(&[0x40; 40]).is_none());
    }

    #[test]
    fn channel_data_may_be_padded_but_not_cut() {
        assert_eq!(channel_data(b"\x40\x00\x00\x03abc"), Some((0x4000, 3)));
        assert_eq!(channel_data(b"\x40\x00\x00\x03abc\0"), Some((0x4000, 3)));
        assert_eq!(channel_data(b"\x40\x00\x00\x00"), Some((0x4000, 0)));
        assert_eq!(channel_data(b"\x40\x00\x00\x04abc"), None);
        assert_eq!(channel_data(b"\x40\x00\x00\x03abc\0\0\0\0"), None);
        assert_eq!(channel_data(b"\x80\x00\x00\x00"), None);
        assert_eq!(channel_data(b"\x40"), None);
    }

    proptest! {
        #[test]
        fn addresses_survive_their_encoding(v6: bool, ip: [u8; 16], port: u16, mask: [u8; 16]) {
            let v4 = IpAddr::from([ip[0], ip[1], ip[2], ip[3]]);
            let address = SocketAddr::new(if v6 { IpAddr::from(ip) } else { v4 }, port);
            let (value, length) = encode_address(address, &mask);
            prop_assert_eq!(decode_address(&value[..length], &mask), Some(address));
        }

        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), honest: bool) {
            if honest && bytes.len() >= HEADER {
                let length = length_with(&bytes, 0);
                bytes[0] &= 0x3f;
                bytes[2..4].copy_from_slice(&length);
                bytes[4..8].copy_from_slice(&COOKIE);
            }
            let _ = channel_data(&bytes);
            if let Some(stun) = Stun::parse(&bytes) {
                let _ = stun.verify(&Key::long_term("u", "r", "p"));
                for (_, value) in stun.attributes() {
                    let _ = decode_address(value, &stun.transaction());
                }
            }
        }
    }
}
