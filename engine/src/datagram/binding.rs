//! What a Binding request is answered (RFC 8489), NAT behaviour discovery included (RFC 5780).
//!
//! Pure. **Sizes:** a reply, IP and UDP headers included, is at most 1.5 times the request with its own, except where RFC 5780
//! demands more: a server with four sites tells two more addresses, and a bare request over IPv4 then gets 1.75 times its
//! bytes. PADDING is answered with no more than came, RESPONSE-PORT (replies to a port that did not ask) is refused.
use std::net::SocketAddr;

use super::wire::{FINGERPRINT, Stun, Writer, attribute, kind};

/// One of the up to four sockets that RFC 5780 knows: bit 0 set for the alternate port, bit 1 for the alternate address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Site(pub(crate) u8);

impl Site {
    pub(crate) const PRIMARY: Self = Self(0);
    pub(crate) const COUNT: usize = 4;

    pub(crate) fn index(self) -> usize {
        usize::from(self.0) % Self::COUNT
    }
}

/// The addresses that there are, by [`Site`]. The primary one always is.
pub(crate) type Sites = [Option<SocketAddr>; Site::COUNT];

/// What to do with a Binding request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The reflexive address, from this site.
    Success(Vec<u8>, Site),
    /// 420 Unknown Attribute, from where the request came to.
    UnknownAttributes(Vec<u8>),
}

/// Answers `request` from `source`, which came to `at`, there to the address `reached`.
pub(crate) fn answer(
    request: &Stun<'_>,
    source: SocketAddr,
    at: Site,
    reached: SocketAddr,
    sites: &Sites,
) -> Answer {
    let mut unknown: Vec<u16> = request.unknown(&UNDERSTOOD).take(UNKNOWN_MAX).collect();
    let change = request.word(attribute::CHANGE_REQUEST).map_or(0, |[.., flags]| flags >> 1 & 3);
    // The bits of CHANGE-REQUEST (A: address, B: port) are those of a site.
    let from = Site(at.0 ^ change);
    let Some(own) = sites[from.index()] else {
        unknown = vec![attribute::CHANGE_REQUEST];
        return refuse(request, &unknown);
    };
    if !unknown.is_empty() {
        return refuse(request, &unknown);
    }
    let own =
        if own.ip().is_unspecified() { SocketAddr::new(reached.ip(), own.port()) } else { own };
    let other = match (other(at, sites), request.word(attribute::OTHER_PORT)) {
        (Some(address), _) => Other::Address(address),
        (None, Some(_)) => {
            sites[Site(at.0 ^ 1).index()].map_or(Other::None, |site| Other::Port(site.port()))
        }
        (None, None) => Other::None,
    };
    Answer::Success(success(request, source, own, other), from)
}

/// Where else this server answers, as far as it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    None,
    /// Only to who asks for it: stock clients would take it for more than it is.
    Port(u16),
    Address(SocketAddr),
}

/// Comprehension-required attributes that a Binding request may carry. Credentials mean nothing here, and RFC 8489 section
/// 9 lets a server without authentication ignore them; ICE's (RFC 8445 section 16.1) as connectivity checks are answered
/// like any request.
const UNDERSTOOD: [u16; 7] = [
    attribute::CHANGE_REQUEST,
    attribute::USERNAME,
    attribute::MESSAGE_INTEGRITY,
    attribute::MESSAGE_INTEGRITY_SHA256,
    attribute::PRIORITY,
    attribute::USE_CANDIDATE,
    attribute::PADDING,
];

/// Listed in one error reply; two fit the size rule for the shortest request that can carry one.
const UNKNOWN_MAX: usize = 2;

/// RFC 5780 section 7.4: told only by a server that has both another address and another port.
fn other(at: Site, sites: &Sites) -> Option<SocketAddr> {
    sites.iter().all(Option::is_some).then_some(())?;
    sites[Site(at.0 ^ 3).index()]
}

fn success(request: &Stun<'_>, source: SocketAddr, own: SocketAddr, other: Other) -> Vec<u8> {
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    let mut out = Writer::new(kind::BINDING + kind::SUCCESS, request.transaction())
        .put_xor(attribute::XOR_MAPPED_ADDRESS, source);
    match other {
        Other::None => {}
        Other::Port(port) => {
            let [high, low] = port.to_be_bytes();
            out = out.put(attribute::OTHER_PORT, &[high, low, 0, 0]);
        }
        Other::Address(other) => {
            let own = SocketAddr::new(own.ip().to_canonical(), own.port());
            out = out
                .put_plain(attribute::RESPONSE_ORIGIN, own)
                .put_plain(attribute::OTHER_ADDRESS, other);
        }
    }
    // A reply that is over the size rule already is not made longer without need.
    let marked = !matches!(other, Other::Address(_)) || request.has_fingerprint();
    if let Some(padding) = request.get(attribute::PADDING) {
        // Not a byte more than came: whoever measures the path's MTU would find it smaller than it is.
        let rest = 4 + if marked { FINGERPRINT } else { 0 };
        let spare = request.length().saturating_sub(out.length() + rest) / 4 * 4;
        out = out.put(attribute::PADDING, &vec![0; padding.len().min(spare).min(PADDING_MAX)]);
    }
    if marked { out.finish_with_fingerprint() } else { out.finish() }
}

/// More than any link's MTU but jumbo frames.
const PADDING_MAX: usize = 2048;

fn refuse(request: &Stun<'_>, unknown: &[u16]) -> Answer {
    Answer::UnknownAttributes(
        Writer::new(kind::BINDING + kind::ERROR, request.transaction())
            .put_error(420)
            .put_unknown(unknown)
            .finish_with_fingerprint(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stun_types::attribute::{ErrorCode, UnknownAttributes, XorMappedAddress};
    use stun_types::message::Message;

    const V4: &str = "192.0.2.7:4242";
    const V6: &str = "[2001:db8::7]:4242";

    fn request(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut transaction = [9; 16];
        transaction[..4].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        let out = Writer::new(kind::BINDING, transaction);
        attributes.iter().fold(out, |out, (kind, value)| out.put(*kind, value)).finish()
    }

    fn site(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    fn one() -> Sites {
        [site("203.0.113.1:443"), None, None, None]
    }

    fn four() -> Sites {
        ["203.0.113.1:443", "203.0.113.1:444", "203.0.113.2:443", "203.0.113.2:444"].map(site)
    }

    fn ask(bytes: &[u8], source: &str, at: u8, sites: &Sites) -> Answer {
        let request = Stun::parse(bytes).unwrap();
        let reached = sites[usize::from(at)].unwrap();
        answer(&request, source.parse().unwrap(), Site(at), reached, sites)
    }

    fn success(answer: Answer) -> (Vec<u8>, Site) {
        match answer {
            Answer::Success(bytes, site) => (bytes, site),
            other => panic!("{other:?}"),
        }
    }

    fn plain(bytes: &[u8], kind: u16) -> Option<SocketAddr> {
        super::super::wire::decode_address(Stun::parse(bytes).unwrap().get(kind)?, &[0; 16])
    }

    fn refused(answer: Answer) -> Vec<u8> {
        match answer {
            Answer::UnknownAttributes(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn binding_request_gets_its_own_address() {
        for source in [V4, V6, "[::ffff:192.0.2.7]:4242"] {
            let (bytes, _) = success(ask(&request(&[]), source, 0, &one()));
            let message = Message::from_bytes(&bytes).unwrap();
            let mapped = message.attribute::<XorMappedAddress>().unwrap();
            let source: SocketAddr = source.parse().unwrap();
            let canonical = SocketAddr::new(source.ip().to_canonical(), source.port());
            assert_eq!(mapped.addr(message.transaction_id()), canonical);
        }
    }

    #[test]
    fn all_four_sites_answer_from_where_they_are_asked_to() {
        for at in 0..4 {
            for change in 0..4 {
                let bytes = request(&[(attribute::CHANGE_REQUEST, &[0, 0, 0, change << 1])]);
                let (reply, from) = success(ask(&bytes, V4, at, &four()));
                assert_eq!(from, Site(at ^ change));
                assert_eq!(plain(&reply, attribute::RESPONSE_ORIGIN), four()[from.index()]);
                assert_eq!(plain(&reply, attribute::OTHER_ADDRESS), four()[usize::from(at ^ 3)]);
            }
        }
    }

    #[test]
    fn an_alternate_port_alone_works_and_no_other_address_is_told() {
        let mut sites = one();
        sites[1] = site("203.0.113.1:444");
        let ask_change =
            |flags| ask(&request(&[(attribute::CHANGE_REQUEST, &[0, 0, 0, flags])]), V4, 0, &sites);
        let (reply, from) = success(ask_change(2));
        assert_eq!((from, plain(&reply, attribute::OTHER_ADDRESS)), (Site(1), None));
        for flags in [4, 6] {
            let bytes = refused(ask_change(flags));
            let message = Message::from_bytes(&bytes).unwrap();
            assert_eq!(message.attribute::<ErrorCode>().unwrap().code(), 420);
            assert!(message.attribute::<UnknownAttributes>().unwrap().has_attribute(3u16.into()));
        }
    }

    #[test]
    fn the_alternate_port_is_told_to_who_asks_for_it() {
        let mut sites = one();
        let wish: (u16, &[u8]) = (attribute::OTHER_PORT, &[0; 4]);
        let told = |sites: &Sites, attributes: &[(u16, &[u8])], at| {
            let (reply, _) = success(ask(&request(attributes), V4, at, sites));
            Stun::parse(&reply).unwrap().word(attribute::OTHER_PORT)
        };
        assert_eq!(told(&sites, &[wish], 0), None, "there is none");
        sites[1] = site("203.0.113.1:444");
        assert_eq!(told(&sites, &[wish], 0), Some([1, 188, 0, 0]));
        assert_eq!(told(&sites, &[wish], 1), Some([1, 187, 0, 0]));
        assert_eq!(told(&sites, &[], 0), None, "nobody asked");
        assert_eq!(told(&four(), &[wish], 0), None, "OTHER-ADDRESS says it");
    }

    #[test]
    fn a_wildcard_socket_tells_the_address_that_was_reached() {
        let sites =
            [site("0.0.0.0:443"), site("0.0.0.0:444"), site("0.0.0.0:445"), site("0.0.0.0:446")];
        let bytes = request(&[(attribute::CHANGE_REQUEST, &[0, 0, 0, 2])]);
        let request = Stun::parse(&bytes).unwrap();
        let reached = "198.51.100.1:443".parse().unwrap();
        let (reply, _) = success(answer(&request, V4.parse().unwrap(), Site(0), reached, &sites));
        assert_eq!(plain(&reply, attribute::RESPONSE_ORIGIN), site("198.51.100.1:444"));
    }

    #[test]
    fn a_port_that_did_not_ask_gets_nothing() {
        let bytes = request(&[(0x0027, &[0x11, 0x11, 0, 0]), (0x7777, &[])]);
        let bytes = refused(ask(&bytes, V4, 0, &four()));
        let message = Message::from_bytes(&bytes).unwrap();
        let unknown = message.attribute::<UnknownAttributes>().unwrap();
        assert!(unknown.has_attribute(0x0027u16.into()) && unknown.has_attribute(0x7777u16.into()));
    }

    #[test]
    fn padding_comes_back_and_not_more_of_it() {
        for (marked, sites) in [(false, one()), (true, one()), (false, four()), (true, four())] {
            let out = Writer::new(kind::BINDING, Stun::parse(&request(&[])).unwrap().transaction());
            let out = out.put(attribute::PADDING, &[0; 1200]);
            let bytes = if marked { out.finish_with_fingerprint() } else { out.finish() };
            let (reply, _) = success(ask(&bytes, V4, 0, &sites));
            let back = Stun::parse(&reply).unwrap().get(attribute::PADDING).unwrap().len();
            assert!(back <= 1200, "{back}");
            assert_eq!(reply.len(), bytes.len(), "what measures a path's MTU must not grow");
        }
    }

    proptest! {
        #[test]
        fn replies_never_amplify(
            mut kinds in proptest::collection::vec((any::<u16>(), 0usize..40), 0..8),
            v6: bool, many: bool, wish: Option<bool>,
        ) {
            kinds.extend(wish.map(|whole| (attribute::OTHER_PORT, if whole { 4 } else { 0 })));
            let values: Vec<_> = kinds.iter().map(|&(kind, length)| (kind, vec![7u8; length])).collect();
            let borrowed: Vec<_> = values.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
            let bytes = request(&borrowed);
            if let Some(message) = Stun::parse(&bytes) {
                let (source, headers) = if v6 { (V6, 48) } else { (V4, 28) };
                let mut sites = if many { four() } else { one() };
                sites[1] = site("203.0.113.1:444");
                let reached = sites[0].unwrap();
                let reply = match answer(&message, source.parse().unwrap(), Site(0), reached, &sites) {
                    Answer::Success(bytes, _) | Answer::UnknownAttributes(bytes) => bytes,
                };
                // The two addresses of RFC 5780: 12 bytes each over IPv4.
                let demanded = if many { 24 } else { 0 };
                prop_assert!(reply.len() + headers <= (bytes.len() + headers) * 3 / 2 + demanded);
            }
        }
    }
}
