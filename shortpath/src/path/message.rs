//! STUN messages (RFC 8489) as this module needs them, over the `stun-types` codec.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stun_types::attribute::{AttributeType, RawAttribute};
use stun_types::message::{
    IntegrityAlgorithm, IntegrityKey, Message, MessageClass, MessageType, MessageWrite,
    MessageWriteExt, MessageWriteVec, Method, ShortTermCredentials, TransactionId,
};

/// Attribute numbers (IANA "STUN Attributes").
pub(super) mod attribute {
    pub(in crate::path) const MAPPED_ADDRESS: u16 = 0x0001;
    pub(in crate::path) const CHANGE_REQUEST: u16 = 0x0003;
    pub(in crate::path) const USERNAME: u16 = 0x0006;
    pub(in crate::path) const ERROR_CODE: u16 = 0x0009;
    pub(in crate::path) const CHANNEL_NUMBER: u16 = 0x000c;
    pub(in crate::path) const LIFETIME: u16 = 0x000d;
    pub(in crate::path) const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub(in crate::path) const DATA: u16 = 0x0013;
    pub(in crate::path) const REALM: u16 = 0x0014;
    pub(in crate::path) const NONCE: u16 = 0x0015;
    pub(in crate::path) const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub(in crate::path) const REQUESTED_FAMILY: u16 = 0x0017;
    pub(in crate::path) const REQUESTED_TRANSPORT: u16 = 0x0019;
    pub(in crate::path) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub(in crate::path) const PRIORITY: u16 = 0x0024;
    pub(in crate::path) const USE_CANDIDATE: u16 = 0x0025;
    pub(in crate::path) const PADDING: u16 = 0x0026;
    pub(in crate::path) const OTHER_ADDRESS: u16 = 0x802c;
    /// Our gateways' own: another port of theirs that answers Binding requests, told to who asks with the same attribute.
    pub(in crate::path) const OTHER_PORT: u16 = 0xf5b7;
    pub(in crate::path) const ICE_CONTROLLED: u16 = 0x8029;
    pub(in crate::path) const ICE_CONTROLLING: u16 = 0x802a;
}

/// Whether a datagram is STUN at all: two zero bits, the magic cookie, and a length that fits (RFC 8489 section 5).
#[must_use]
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= 20
        && datagram[0] < 4
        && datagram[4..8] == [0x21, 0x12, 0xa4, 0x42]
        && usize::from(u16::from_be_bytes([datagram[2], datagram[3]])) + 20 == datagram.len()
}

/// The transaction of a STUN datagram.
pub(super) fn transaction(datagram: &[u8]) -> Option<TransactionId> {
    let bytes: [u8; 12] = datagram.get(8..20)?.try_into().ok()?;
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&bytes);
    Some(TransactionId::from(u128::from_be_bytes(wide)))
}

/// Parses a whole STUN message. A wrong FINGERPRINT is damage, too.
pub(super) fn parse(datagram: &[u8]) -> Option<Message<'_>> {
    if is_stun(datagram) { Message::from_bytes(datagram).ok() } else { None }
}

/// The key of short-term credentials (RFC 8489 section 9.1).
pub(super) fn short_term_key(password: &str) -> IntegrityKey {
    ShortTermCredentials::new(password.to_owned()).make_key()
}

/// Whether MESSAGE-INTEGRITY (SHA-1) is there and right under the key.
pub(super) fn is_signed(message: &Message<'_>, key: &IntegrityKey) -> bool {
    message.validate_integrity_with_key(key).is_ok()
}

/// Writes one message; attributes come in the order they are added.
pub(super) struct Writer {
    out: MessageWriteVec,
    id: TransactionId,
}

impl Writer {
    pub(super) fn new(class: MessageClass, method: Method, id: TransactionId) -> Self {
        let kind = MessageType::from_class_method(class, method);
        Self { out: Message::builder(kind, id, MessageWriteVec::with_capacity(160)), id }
    }

    /// Adds an attribute. Values here are short, and none is added twice or after the signature, so none is refused.
    pub(super) fn add(mut self, kind: u16, value: &[u8]) -> Self {
        let attribute = RawAttribute::new(AttributeType::new(kind), value);
        let added = self.out.add_attribute(&attribute);
        debug_assert!(added.is_ok(), "{added:?}");
        self
    }

    pub(super) fn add_address(self, kind: u16, address: SocketAddr) -> Self {
        let (bytes, len) = xored(address, self.id);
        self.add(kind, &bytes[..len])
    }

    /// Signs it (when there is a key), adds FINGERPRINT, and hands out the bytes.
    pub(super) fn finish(mut self, key: Option<&IntegrityKey>) -> Vec<u8> {
        if let Some(key) = key {
            let signed = self.out.add_message_integrity_with_key(key, IntegrityAlgorithm::Sha1);
            debug_assert!(signed.is_ok(), "{signed:?}");
        }
        let stamped = self.out.add_fingerprint();
        debug_assert!(stamped.is_ok(), "{stamped:?}");
        self.out.finish()
    }

    /// For servers that need every byte of the request to be an attribute they know: no FINGERPRINT.
    pub(super) fn finish_bare(self) -> Vec<u8> {
        self.out.finish()
    }
}

/// The value of an attribute.
pub(super) fn value<'a>(message: &'a Message<'_>, kind: u16) -> Option<RawAttribute<'a>> {
    message.raw_attribute(AttributeType::new(kind))
}

pub(super) fn number_u32(message: &Message<'_>, kind: u16) -> Option<u32> {
    let raw = value(message, kind)?;
    Some(u32::from_be_bytes((*raw.value).try_into().ok()?))
}

pub(super) fn number_u64(message: &Message<'_>, kind: u16) -> Option<u64> {
    let raw = value(message, kind)?;
    Some(u64::from_be_bytes((*raw.value).try_into().ok()?))
}

/// An XORed address attribute (RFC 8489 section 14.2).
pub(super) fn address(message: &Message<'_>, kind: u16) -> Option<SocketAddr> {
    let raw = value(message, kind)?;
    let plain = read_address(&raw.value)?;
    let mut bytes = [0_u8; 20];
    let len = write_address(plain, &mut bytes);
    xor(&mut bytes[..len], message.transaction_id());
    read_address(&bytes[..len])
}

/// A plain address attribute (RFC 8489 section 14.1).
pub(super) fn plain_address(message: &Message<'_>, kind: u16) -> Option<SocketAddr> {
    let raw = value(message, kind)?;
    read_address(&raw.value)
}

/// Where the value of an attribute lies in a well-formed datagram.
pub(super) fn place_of(datagram: &[u8], kind: u16) -> Option<std::ops::Range<usize>> {
    let mut at = 20;
    while let Some(&[a, b, c, d]) = datagram.get(at..)?.first_chunk() {
        let len = usize::from(u16::from_be_bytes([c, d]));
        if u16::from_be_bytes([a, b]) == kind {
            return datagram.get(at + 4..at + 4 + len).map(|_| at + 4..at + 4 + len);
        }
        at += 4 + len.next_multiple_of(4);
    }
    None
}

/// The reflexive address of a Binding success; servers of RFC 3489's days send it plain.
pub(super) fn mapped_address(message: &Message<'_>) -> Option<SocketAddr> {
    address(message, attribute::XOR_MAPPED_ADDRESS)
        .or_else(|| plain_address(message, attribute::MAPPED_ADDRESS))
        .map(super::candidate::canonical)
}

/// ERROR-CODE of an error response (RFC 8489 section 14.8).
pub(super) fn error_code(message: &Message<'_>) -> Option<u16> {
    let raw = value(message, attribute::ERROR_CODE)?;
    let bytes: &[u8] = &raw.value;
    let (class, number) = (bytes.get(2)? & 7, bytes.get(3)?);
    Some(u16::from(class) * 100 + u16::from(*number))
}

/// An XORed address and its length, as an attribute value.
pub(super) fn xored(address: SocketAddr, id: TransactionId) -> ([u8; 20], usize) {
    let mut bytes = [0; 20];
    let len = write_address(address, &mut bytes);
    xor(&mut bytes[..len], id);
    (bytes, len)
}

/// Its own inverse: port and address with the magic cookie, IPv6 with the transaction behind it.
fn xor(bytes: &mut [u8], id: TransactionId) {
    let mut mask = [0_u8; 16];
    mask.copy_from_slice(&u128::from(id).to_be_bytes());
    mask[..4].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
    for (at, byte) in bytes.iter_mut().enumerate().skip(2) {
        *byte ^= if at < 4 { mask[at - 2] } else { mask[at - 4] };
    }
}

fn write_address(address: SocketAddr, bytes: &mut [u8; 20]) -> usize {
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes[1] = 1;
            bytes[4..8].copy_from_slice(&ip.octets());
            8
        }
        IpAddr::V6(ip) => {
            bytes[1] = 2;
            bytes[4..20].copy_from_slice(&ip.octets());
            20
        }
    }
}

fn read_address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
    let ip: IpAddr = match (bytes.get(1)?, bytes.len()) {
        (1, 8) => Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[4..8]).ok()?).into(),
        (2, 20) => Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[4..20]).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use stun_types::message::BINDING;

    use super::*;

    #[test]
    fn addresses_survive_the_xor_of_either_family() {
        for text in ["192.0.2.7:4711", "[2001:db8::7]:65535"] {
            let (id, wanted) = (TransactionId::from(0x1234_5678_9abc_def0), text.parse().unwrap());
            let bytes = Writer::new(MessageClass::Success, BINDING, id)
                .add_address(attribute::XOR_MAPPED_ADDRESS, wanted)
                .finish(None);
            let message = parse(&bytes).unwrap();
            assert_eq!(mapped_address(&message), Some(wanted));
            assert_eq!(transaction(&bytes), Some(id));
        }
    }

    #[test]
    fn damage_and_strangers_are_no_stun() {
        let bytes =
            Writer::new(MessageClass::Request, BINDING, TransactionId::from(1)).finish(None);
        assert!(parse(&bytes).is_some());
        // All but the type of FINGERPRINT: an unknown optional attribute in its place is nobody's damage.
        for at in (0..bytes.len()).filter(|at| !(20..22).contains(at)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert!(parse(&damaged).is_none(), "byte {at}");
        }
        assert!(parse(&bytes[..19]).is_none());
        assert!(!is_stun(b"\x40 a QUIC short header, say"));
    }
}
