//! The first bytes of a leg: one TLS ClientHello, read far enough to find its server name.
//!
//! Pure: bytes in, verdict out. [`parse`] follows RFC 8446 sections 4.1.2 and 5.1 and RFC 6066 section 3; it looks
//! at lengths and at the server name and believes nothing else, because the hello is forwarded unread to whoever owns
//! the keys. [`encode`] writes the hello with which an agent presents its ticket: it is consumed by the gateway, so it
//! only has to look like TLS 1.3 to middleboxes on the way.
use thiserror::Error;

use crate::Refusal;

/// A complete ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The host name of the server_name extension, as sent; `None` if the extension is absent.
    pub server_name: Option<String>,
    /// Bytes that the hello occupies, record headers included. What follows belongs to the next flight.
    pub length: usize,
}

/// How far the bytes read so far go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Well-formed so far, and more is needed.
    Incomplete {
        /// Lower bound of the hello's total length in bytes, from the lengths it declares.
        at_least: usize,
    },
    /// The hello is complete.
    Complete(Hello),
}

/// Why bytes are no ClientHello. Reading on cannot mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HelloError {
    /// The first byte is not that of a TLS handshake record.
    #[error("not a TLS handshake record")]
    NotTls,
    /// A TLS handshake record that holds no well-formed ClientHello.
    #[error("malformed ClientHello")]
    Malformed,
}

/// Reads the ClientHello at the start of `bytes`.
///
/// # Errors
/// [`HelloError`] as soon as the bytes cannot become a ClientHello, however many follow.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HelloError> {
    let Some(&first) = bytes.first() else {
        return Ok(Parsed::Incomplete { at_least: RECORD_HEADER + MESSAGE_HEADER });
    };
    if first != RECORD_HANDSHAKE {
        return Err(HelloError::NotTls);
    }
    let flight = Flight::gather(bytes)?;
    let Some(header) = flight.message.first_chunk::<MESSAGE_HEADER>() else {
        return match flight.message.first() {
            Some(&kind) if kind != CLIENT_HELLO => Err(HelloError::Malformed),
            _ => Ok(Parsed::Incomplete { at_least: flight.at_least(MESSAGE_HEADER, bytes.len()) }),
        };
    };
    if header[0] != CLIENT_HELLO {
        return Err(HelloError::Malformed);
    }
    let length = MESSAGE_HEADER + u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    if flight.message.len() < length {
        return Ok(Parsed::Incomplete { at_least: flight.at_least(length, bytes.len()) });
    }
    // RFC 8446 section 5.1: records carry this flight's only message; nothing may share its last one.
    if flight.message.len() > length || flight.open {
        return Err(HelloError::Malformed);
    }
    let server_name = body(&flight.message[MESSAGE_HEADER..])?;
    Ok(Parsed::Complete(Hello { server_name, length: flight.consumed }))
}

/// The hello at the start of `bytes`, if it is complete; `None` if more is needed and may come.
///
/// # Errors
/// What its sender is turned away with: it is no hello, or larger than `bytes_max`.
pub(crate) fn judge(bytes: &[u8], bytes_max: usize) -> Result<Option<Hello>, Refusal> {
    match parse(bytes) {
        Ok(Parsed::Complete(hello)) if hello.length <= bytes_max => Ok(Some(hello)),
        Ok(Parsed::Incomplete { at_least }) if at_least <= bytes_max => Ok(None),
        Ok(_) => Err(Refusal::HelloTooLarge),
        Err(HelloError::NotTls) => Err(Refusal::HelloNotTls),
        Err(HelloError::Malformed) => Err(Refusal::HelloMalformed),
    }
}

/// Writes a TLS 1.3 ClientHello in one record that carries `server_name` (1 to 255 ASCII bytes, else it cannot be
/// parsed again). `random` fills the client random, the session id and the X25519 share, 32 bytes each.
#[must_use]
pub fn encode(server_name: &str, random: [u8; 96]) -> Vec<u8> {
    let (client_random, rest) = random.split_at(32);
    let (session_id, key_share) = rest.split_at(32);
    let mut extensions = Vec::with_capacity(192);
    extension(&mut extensions, EXT_SERVER_NAME, |out| {
        sized(out, |list| {
            list.push(NAME_HOST);
            sized(list, |name| name.extend_from_slice(server_name.as_bytes()));
        });
    });
    extension(&mut extensions, 23, |_| {}); // extended_master_secret, RFC 7627
    extension(&mut extensions, 0xff01, |out| out.push(0)); // renegotiation_info, RFC 5746
    extension(&mut extensions, 10, |out| {
        sized(out, |g| g.extend_from_slice(&[0, 29, 0, 23, 0, 24]))
    }); // x25519, P-256, P-384
    extension(&mut extensions, 11, |out| out.extend_from_slice(&[1, 0])); // uncompressed points
    extension(&mut extensions, 16, |out| {
        sized(out, |list| list.extend_from_slice(b"\x02h2\x08http/1.1"))
    });
    extension(&mut extensions, 13, |out| sized(out, |list| list.extend_from_slice(&SIGNATURES)));
    extension(&mut extensions, 51, |out| {
        sized(out, |shares| {
            shares.extend_from_slice(&[0, 29]);
            sized(shares, |share| share.extend_from_slice(key_share));
        });
    });
    extension(&mut extensions, 45, |out| out.extend_from_slice(&[1, 1])); // psk_dhe_ke
    extension(&mut extensions, 43, |out| out.extend_from_slice(&[4, 3, 4, 3, 3])); // TLS 1.3, then 1.2

    let mut record = vec![RECORD_HANDSHAKE, 3, 1];
    sized(&mut record, |message| {
        message.extend_from_slice(&[CLIENT_HELLO, 0]);
        sized(message, |body| {
            body.extend_from_slice(&[3, 3]);
            body.extend_from_slice(client_random);
            body.push(32);
            body.extend_from_slice(session_id);
            sized(body, |suites| suites.extend_from_slice(&CIPHER_SUITES));
            body.extend_from_slice(&[1, 0]); // null compression
            sized(body, |out| out.extend_from_slice(&extensions));
        });
    });
    record
}

const RECORD_HANDSHAKE: u8 = 22;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
const CLIENT_HELLO: u8 = 1;
/// RFC 8446 section 5.1: a plaintext record holds at most 2^14 bytes.
const RECORD_MAX: usize = 1 << 14;
const EXT_SERVER_NAME: u16 = 0;
const NAME_HOST: u8 = 0;
/// Longest DNS name in text form, RFC 1035 section 3.1.
const SERVER_NAME_MAX: usize = 255;

/// What a current browser-like stack offers, so that the hello stands out nowhere: the TLS 1.3 suites, then ECDHE AEADs.
const CIPHER_SUITES: [u8; 18] = [
    0x13, 0x02, 0x13, 0x01, 0x13, 0x03, 0xc0, 0x2c, 0xc0, 0x2b, 0xcc, 0xa9, 0xc0, 0x30, 0xc0, 0x2f,
    0xcc, 0xa8,
];

/// ECDSA and RSA-PSS with SHA-256 to SHA-512, Ed25519, RSA PKCS#1.
const SIGNATURES: [u8; 18] = [5, 3, 4, 3, 8, 7, 8, 6, 8, 5, 8, 4, 6, 1, 5, 1, 4, 1];

/// The handshake bytes of the records received so far, headers removed.
struct Flight {
    message: Vec<u8>,
    /// Bytes of input that `message` came from.
    consumed: usize,
    /// The last record is not complete, or its header is not.
    open: bool,
    /// Bytes the open record still lacks.
    lacking: usize,
}

impl Flight {
    /// Joins records until the ClientHello is complete or the bytes end.
    fn gather(bytes: &[u8]) -> Result<Self, HelloError> {
        let mut flight = Self { message: Vec::new(), consumed: 0, open: false, lacking: 0 };
        while !flight.complete() && flight.consumed < bytes.len() {
            let rest = &bytes[flight.consumed..];
            check_header(rest)?;
            let Some(header) = rest.first_chunk::<RECORD_HEADER>() else {
                flight.open = true;
                flight.lacking = RECORD_HEADER - rest.len();
                break;
            };
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let payload = &rest[RECORD_HEADER..];
            let here = payload.len().min(length);
            flight.message.extend_from_slice(&payload[..here]);
            flight.consumed += RECORD_HEADER + here;
            if here < length {
                flight.open = true;
                flight.lacking = length - here;
                break;
            }
        }
        Ok(flight)
    }

    fn complete(&self) -> bool {
        self.message.first_chunk::<MESSAGE_HEADER>().is_some_and(|header| {
            self.message.len()
                >= MESSAGE_HEADER
                    + u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize
        })
    }

    /// Least total input that can hold `wanted` message bytes, given `have` input bytes.
    fn at_least(&self, wanted: usize, have: usize) -> usize {
        have + wanted.saturating_sub(self.message.len()).max(self.lacking).max(1)
    }
}

/// Judges a record header of which perhaps only the first bytes are here.
fn check_header(header: &[u8]) -> Result<(), HelloError> {
    let type_ok = header.first().is_none_or(|&kind| kind == RECORD_HANDSHAKE);
    // Version 3.x; RFC 8446 tells receivers to ignore it, but nothing else has ever been sent by a TLS stack.
    let version_ok = header.get(1).is_none_or(|&major| major == 3);
    let length_ok = header.first_chunk::<RECORD_HEADER>().is_none_or(|header| {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        (1..=RECORD_MAX).contains(&length)
    });
    if type_ok && version_ok && length_ok { Ok(()) } else { Err(HelloError::Malformed) }
}

/// The server name in the body of a ClientHello.
fn body(bytes: &[u8]) -> Result<Option<String>, HelloError> {
    let mut reader = Reader(bytes);
    reader.take(2 + 32)?; // legacy_version, random
    let session_id = reader.vector8()?;
    let suites = reader.vector16()?;
    let compression = reader.vector8()?;
    if session_id.len() > 32
        || suites.is_empty()
        || !suites.len().is_multiple_of(2)
        || compression.is_empty()
    {
        return Err(HelloError::Malformed);
    }
    if reader.0.is_empty() {
        return Ok(None); // TLS 1.2 without extensions
    }
    let mut extensions = Reader(reader.vector16()?);
    if !reader.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        if kind == EXT_SERVER_NAME && name.replace(host_name(data)?).is_some() {
            return Err(HelloError::Malformed);
        }
    }
    Ok(name)
}

/// The only host name in a server_name extension. RFC 6066 section 3: at most one name per type, and only one type exists.
fn host_name(data: &[u8]) -> Result<String, HelloError> {
    let mut reader = Reader(data);
    let mut list = Reader(reader.vector16()?);
    let kind = list.take(1)?[0];
    let name = list.vector16()?;
    let clean =
        (1..=SERVER_NAME_MAX).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    if kind != NAME_HOST || !clean || !list.0.is_empty() || !reader.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    Ok(name.iter().map(|&byte| char::from(byte)).collect())
}

/// Takes length-prefixed pieces off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HelloError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], HelloError> {
        let length = usize::from(self.take(1)?[0]);
        self.take(length)
    }

    fn vector16(&mut self) -> Result<&'a [u8], HelloError> {
        let length = usize::from(self.u16()?);
        self.take(length)
    }
}

/// Appends what `fill` writes, prefixed with its length in two bytes.
fn sized(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0, 0]);
    fill(out);
    let length = u16::try_from(out.len() - at - 2).unwrap_or(u16::MAX);
    out[at..at + 2].copy_from_slice(&length.to_be_bytes());
}

fn extension(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&kind.to_be_bytes());
    sized(out, fill);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random() -> [u8; 96] {
        std::array::from_fn(|i| u8::try_from(i * 7 % 251).unwrap())
    }

    fn complete(bytes: &[u8]) -> Hello {
        match parse(bytes) {
            Ok(Parsed::Complete(hello)) => hello,
            other => panic!("not complete: {other:?}"),
        }
    }

    /// The same handshake bytes in records of `size` payload bytes.
    fn refragment(record: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in record[RECORD_HEADER..].chunks(size) {
            out.extend_from_slice(&[22, 3, 1]);
            sized(&mut out, |body| body.extend_from_slice(piece));
        }
        out
    }

    #[test]
    fn encoded_hello_parses_back() {
        let bytes = encode("abcdefgh.a.example", random());
        assert!((200..400).contains(&bytes.len()), "{}", bytes.len());
        let hello = complete(&bytes);
        assert_eq!(hello.server_name.as_deref(), Some("abcdefgh.a.example"));
        assert_eq!(hello.length, bytes.len());
    }

    #[test]
    fn every_truncation_is_incomplete_and_asks_for_no_more_than_there_is() {
        let whole = encode("ticket.example", random());
        for bytes in
            [whole.clone(), refragment(&whole, 1), refragment(&whole, 7), refragment(&whole, 100)]
        {
            for cut in 0..bytes.len() {
                match parse(&bytes[..cut]) {
                    Ok(Parsed::Incomplete { at_least }) => {
                        assert!(at_least > cut && at_least <= bytes.len())
                    }
                    other => panic!("{cut}: {other:?}"),
                }
            }
            assert_eq!(complete(&bytes).length, bytes.len());
        }
    }

    #[test]
    fn bytes_after_the_hello_are_not_consumed() {
        let mut bytes = encode("ticket.example", random());
        let length = bytes.len();
        bytes.extend_from_slice(b"early");
        assert_eq!(complete(&bytes).length, length);
    }

    #[test]
    fn other_protocols_are_not_tls() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x", b"\0", b"\x17\x03\x03"] {
            assert_eq!(parse(bytes), Err(HelloError::NotTls));
        }
    }

    #[test]
    fn wrong_records_are_malformed_at_once() {
        let good = encode("ticket.example", random());
        let cases: [(usize, u8); 3] = [(1, 2), (5, 2), (3, 0xff)]; // version, ServerHello, record too long
        for (at, value) in cases {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(parse(&bad), Err(HelloError::Malformed), "byte {at}");
        }
        assert_eq!(parse(&[22, 3, 1, 0, 0]), Err(HelloError::Malformed), "empty record");
    }

    #[test]
    fn second_message_in_the_record_is_malformed() {
        let mut bytes = encode("ticket.example", random());
        bytes.push(9);
        let length = u16::try_from(bytes.len() - RECORD_HEADER).unwrap();
        bytes[3..5].copy_from_slice(&length.to_be_bytes());
        assert_eq!(parse(&bytes), Err(HelloError::Malformed));
    }

    #[test]
    fn name_with_control_bytes_is_malformed() {
        assert_eq!(parse(&encode("a\nb", random())), Err(HelloError::Malformed));
        assert_eq!(parse(&encode("", random())), Err(HelloError::Malformed));
    }

    #[test]
    fn hello_of_openssl_is_understood() {
        let bytes: Vec<u8> = OPENSSL
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let hello = complete(&bytes);
        assert_eq!(hello.server_name.as_deref(), Some("ticket.gw.example"));
        assert_eq!(hello.length, bytes.len());
        assert_eq!(complete(&refragment(&bytes, 3)).server_name, hello.server_name);
    }

    /// `openssl s_client -servername ticket.gw.example`, first flight.
    const OPENSSL: &str = "\
        160301013e0100013a030326273bab09987f2c5c140d732a9d83e5a76abc8ea1d5af4743d0313a849847562031417962850f4aceb647f354\
        7e6e3d1de316a89a23676f92ca61b171b9b4ad51003e130213031301c02cc030009fcca9cca8ccaac02bc02f009ec024c028006bc023c027\
        0067c00ac0140039c009c0130033009d009c003d003c0035002f00ff010000b30000001600140000117469636b65742e67772e6578616d70\
        6c65000b000403000102000a00160014001d0017001e0019001801000101010201030104002300000016000000170000000d002a00280403\
        05030603080708080809080a080b080408050806040105010601030303010302040205020602002b0009080304030303020301002d000201\
        01003300260024001d00206d8ef811aac919de89e733bac0b49e3a5e68cc9f9fd5ce9fc975a74c59c42737";

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), tls in any::<bool>()) {
            if tls && bytes.len() > 2 {
                bytes[0] = 22;
                bytes[1] = 3;
            }
            let _ = parse(&bytes);
        }

        #[test]
        fn damaged_hello_never_panics_and_never_overruns(at in 0usize..250, value in any::<u8>(), cut in 0usize..300) {
            let mut bytes = encode("ticket.example", random());
            let index = at % bytes.len();
            bytes[index] = value;
            bytes.truncate(cut);
            if let Ok(Parsed::Complete(hello)) = parse(&bytes) {
                prop_assert!(hello.length <= bytes.len());
            }
        }

        #[test]
        fn any_name_survives(name in "[a-z0-9]{1,63}(\\.[a-z0-9-]{1,60}){0,3}", size in 1usize..200) {
            let bytes = refragment(&encode(&name, random()), size);
            prop_assert_eq!(complete(&bytes).server_name, Some(name));
        }
    }
}
