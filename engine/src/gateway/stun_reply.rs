//! What the STUN responder answers.
//!
//! Pure: datagram in, datagram or silence out. Binding requests only (RFC 8489 section 6.3): no authentication, no
//! alternate servers, no classic RFC 3489. **Sizes:** a reply, IPv4 and UDP headers included (28 bytes), is at most 1.5 times
//! the request with its own, so that nobody gains by sending us requests in somebody else's name. A bare request (20 bytes,
//! 48 on the wire) gets 40 (68) over IPv4 and 52 (80) over IPv6, where the headers are 48 bytes each; SOFTWARE is added
//! when the request is long enough to pay for it (from 28 bytes over IPv4).
use std::net::SocketAddr;

use stun_types::attribute::{Attribute, ErrorCode, Software, UnknownAttributes, XorMappedAddress};
use stun_types::message::{
    BINDING, Message, MessageClass, MessageWrite, MessageWriteExt, MessageWriteVec,
};

/// What to do with a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The reflexive address.
    Success(Vec<u8>),
    /// 420 Unknown Attribute.
    UnknownAttributes(Vec<u8>),
    /// Nothing: not STUN, not a binding request, or damaged.
    Silence,
}

/// Answers the datagram `request` that came from `source`.
pub(crate) fn reply(request: &[u8], source: SocketAddr) -> Reply {
    let Ok(message) = Message::from_bytes(request) else { return Reply::Silence };
    if !message.has_class(MessageClass::Request) || !message.has_method(BINDING) {
        return Reply::Silence;
    }
    let budget = reply_max(request.len(), source);
    let unknown: Vec<_> = message
        .iter_attributes()
        .map(|(_, attribute)| attribute.get_type())
        .filter(|kind| kind.comprehension_required() && !UNDERSTOOD.contains(&kind.value()))
        .take(UNKNOWN_MAX)
        .collect();
    if unknown.is_empty() {
        success(&message, source, budget).map_or(Reply::Silence, Reply::Success)
    } else {
        unknown_attributes(&message, &unknown).map_or(Reply::Silence, Reply::UnknownAttributes)
    }
}

/// Comprehension-required attributes that a binding request may carry without meaning anything to us: credentials, which
/// RFC 8489 section 9 lets a server without authentication ignore, and ICE's (RFC 8445 section 16.1), as connectivity
/// checks are answered like any request.
const UNDERSTOOD: [u16; 5] = [
    0x0006, // USERNAME
    0x0008, // MESSAGE-INTEGRITY
    0x001c, // MESSAGE-INTEGRITY-SHA256
    0x0024, // PRIORITY
    0x0025, // USE-CANDIDATE
];

/// Listed in one error reply; two fit the size rule for the shortest request that can carry one.
const UNKNOWN_MAX: usize = 2;
const NAME: &str = "switchback";

/// Most bytes a reply may have.
fn reply_max(request: usize, source: SocketAddr) -> usize {
    let headers = if source.ip().to_canonical().is_ipv4() { 28 } else { 48 };
    (request + headers) * 3 / 2 - headers
}

fn success(request: &Message<'_>, source: SocketAddr, budget: usize) -> Option<Vec<u8>> {
    let address = SocketAddr::new(source.ip().to_canonical(), source.port());
    let mut out = Message::builder_success(request, MessageWriteVec::new());
    out.add_attribute(&XorMappedAddress::new(address, request.transaction_id())).ok()?;
    let software = Software::new(NAME).ok()?;
    if out.len() + padded(NAME.len()) + FINGERPRINT <= budget {
        out.add_attribute(&software).ok()?;
    }
    out.add_fingerprint().ok()?;
    Some(out.finish())
}

fn unknown_attributes(
    request: &Message<'_>,
    unknown: &[stun_types::attribute::AttributeType],
) -> Option<Vec<u8>> {
    let mut out = Message::builder_error(request, MessageWriteVec::new());
    // The reason phrase is for people only (section 14.8) and would break the size rule.
    out.add_attribute(&ErrorCode::new(420, "").ok()?).ok()?;
    out.add_attribute(&UnknownAttributes::new(unknown)).ok()?;
    out.add_fingerprint().ok()?;
    Some(out.finish())
}

/// An attribute with its header, padded to 4 bytes.
const fn padded(value: usize) -> usize {
    4 + value.next_multiple_of(4)
}

const FINGERPRINT: usize = padded(4);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: &str = "192.0.2.7:4242";
    const V6: &str = "[2001:db8::7]:4242";

    /// A binding request with raw attributes.
    fn request(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out =
            vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        for (kind, value) in attributes {
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
            out.extend_from_slice(value);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        let length = u16::try_from(out.len() - 20).unwrap();
        out[2..4].copy_from_slice(&length.to_be_bytes());
        out
    }

    fn success(request: &[u8], source: &str) -> Vec<u8> {
        match reply(request, source.parse().unwrap()) {
            Reply::Success(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn binding_request_gets_its_own_address() {
        for source in [V4, V6, "[::ffff:192.0.2.7]:4242"] {
            let bytes = success(&request(&[]), source);
            let message = Message::from_bytes(&bytes).unwrap();
            let mapped =
                message.attribute::<XorMappedAddress>().unwrap().addr(message.transaction_id());
            let source: SocketAddr = source.parse().unwrap();
            assert_eq!(mapped, SocketAddr::new(source.ip().to_canonical(), source.port()));
            assert_eq!(
                message.transaction_id(),
                Message::from_bytes(&request(&[])).unwrap().transaction_id()
            );
        }
    }

    #[test]
    fn software_is_named_when_the_request_pays_for_it() {
        let long = success(&request(&[(0x8022, b"a client")]), V4);
        assert!(Message::from_bytes(&long).unwrap().attribute::<Software>().is_ok());
        assert_eq!(success(&request(&[]), V4).len(), 40);
        assert_eq!(success(&request(&[]), V6).len(), 52);
    }

    #[test]
    fn unknown_required_attributes_get_420_and_their_names() {
        let Reply::UnknownAttributes(bytes) =
            reply(&request(&[(0x0003, &[0; 4]), (0x7777, &[])]), V4.parse().unwrap())
        else {
            panic!("no 420");
        };
        let message = Message::from_bytes(&bytes).unwrap();
        assert_eq!(message.attribute::<ErrorCode>().unwrap().code(), 420);
        let unknown = message.attribute::<UnknownAttributes>().unwrap();
        assert!(unknown.has_attribute(3u16.into()) && unknown.has_attribute(0x7777u16.into()));
    }

    #[test]
    fn everything_else_is_silence() {
        let mut indication = request(&[]);
        indication[1] = 0x11;
        let mut allocate = request(&[]);
        allocate[1] = 3;
        let mut wrong_cookie = request(&[]);
        wrong_cookie[4] = 0;
        let mut wrong_fingerprint = request(&[(0x8028, &[1, 2, 3, 4])]);
        wrong_fingerprint[0] = 0;
        for bytes in [&b"hello"[..], &[], &indication, &allocate, &wrong_cookie, &wrong_fingerprint]
        {
            assert_eq!(reply(bytes, V4.parse().unwrap()), Reply::Silence, "{bytes:?}");
        }
        let answer = success(&request(&[]), V4);
        assert_eq!(
            reply(&answer, V4.parse().unwrap()),
            Reply::Silence,
            "two responders must not talk for ever"
        );
    }

    proptest! {
        #[test]
        fn replies_never_amplify_and_garbage_never_panics(
            kinds in proptest::collection::vec((any::<u16>(), 0usize..40), 0..8),
            noise in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4),
            v6 in any::<bool>(),
        ) {
            let values: Vec<_> = kinds.iter().map(|&(kind, length)| (kind, vec![7u8; length])).collect();
            let borrowed: Vec<_> = values.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
            let mut bytes = request(&borrowed);
            for (at, value) in noise {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let source = if v6 { V6 } else { V4 }.parse().unwrap();
            match reply(&bytes, source) {
                Reply::Success(reply) | Reply::UnknownAttributes(reply) => {
                    prop_assert!(reply.len() <= reply_max(bytes.len(), source));
                }
                Reply::Silence => {}
            }
        }
    }
}
