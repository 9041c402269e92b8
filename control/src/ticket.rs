//! Tickets: one-time admission of one leg to one gateway, small enough for a DNS label. Pure.
//!
//! A ticket is 37 bytes, written as 60 lower-case base32 characters, and travels as the first label of the TLS server
//! name `TICKET.SIDE.switchback.internal`:
//!
//! | bytes | what |
//! |---|---|
//! | 0..16 | pair id |
//! | 16..20 | expiry, Unix seconds, big-endian |
//! | 20 | bit 0: side (1 = agent), bit 1: the leg waits warm; the others are zero |
//! | 21..37 | HMAC-SHA-256 of bytes 0..21, truncated to 16 bytes (RFC 2104 section 5) |
//!
//! The key is made anew at each gateway start, so a ticket of an earlier run, whose replay cache is gone with it, is
//! [`Refusal::TicketInvalid`]. That each ticket is used once is the admission's business, not this module's.
use std::time::Duration;

use aws_lc_rs::{constant_time, hmac};
use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use switchback_engine::{LegSide, PairId, Refusal};

use crate::secret::Secret;

/// Parent of every ticket's server name. `.internal` is reserved for private use (ICANN resolution 2024.07.29.06).
pub const TICKET_ZONE: &str = "switchback.internal";
/// Characters of a ticket: 37 bytes in base32. A DNS label holds 63 (RFC 1035 section 2.3.4).
pub const TICKET_CHARS: usize = 60;
/// From minting to expiry. An endpoint dials at once; a minute also covers a TCP connect that retransmits its SYN
/// five times (1 + 2 + 4 + 8 + 16 s).
pub const TICKET_TTL: Duration = Duration::from_secs(60);
/// How long a dialled leg waits for its mate: the mate was told at the same moment, so three SYN retransmissions
/// (1 + 2 + 4 s) and a slow handshake fit.
pub const DIAL_PATIENCE: Duration = Duration::from_secs(15);
/// How long a warm leg waits to be used. Under the shortest idle timeouts of common NATs and firewalls it is kept
/// alive by TCP keepalive; after five minutes the agent replaces it.
pub const WARM_PATIENCE: Duration = Duration::from_secs(300);

const BODY_BYTES: usize = 21;
const TICKET_BYTES: usize = 37;
const FLAG_AGENT: u8 = 1;
const FLAG_WARM: u8 = 2;

/// What a ticket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// Unix seconds after which it is worth nothing. First, so that tickets sort by expiry.
    pub expiry: u32,
    /// The meeting.
    pub pair: PairId,
    /// Whether the agent's leg is admitted; else the client's.
    agent: bool,
    /// Whether the leg is to wait until it is needed.
    pub warm: bool,
}

impl Ticket {
    /// Admission of `side`'s leg to `pair`, until `expiry` (Unix seconds).
    #[must_use]
    pub const fn new(pair: PairId, side: LegSide, warm: bool, expiry: u32) -> Self {
        Self { expiry, pair, agent: matches!(side, LegSide::Agent), warm }
    }

    /// The end that may use it.
    #[must_use]
    pub const fn side(&self) -> LegSide {
        if self.agent { LegSide::Agent } else { LegSide::Client }
    }

    /// How long its leg may wait for the mate.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        if self.warm { WARM_PATIENCE } else { DIAL_PATIENCE }
    }

    fn body(&self) -> [u8; BODY_BYTES] {
        let mut body = [0; BODY_BYTES];
        body[..16].copy_from_slice(&self.pair.0);
        body[16..20].copy_from_slice(&self.expiry.to_be_bytes());
        body[20] = u8::from(self.agent) * FLAG_AGENT + u8::from(self.warm) * FLAG_WARM;
        body
    }

    fn from_body(body: &[u8; BODY_BYTES]) -> Option<Self> {
        let [pair @ .., e0, e1, e2, e3, flags] = *body;
        (flags & !(FLAG_AGENT | FLAG_WARM) == 0).then_some(Self {
            expiry: u32::from_be_bytes([e0, e1, e2, e3]),
            pair: PairId(pair),
            agent: flags & FLAG_AGENT != 0,
            warm: flags & FLAG_WARM != 0,
        })
    }
}

/// Mints and verifies the tickets of one run of one gateway.
pub struct TicketKey(hmac::Key);

impl TicketKey {
    /// A key from 32 random bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The server name that presents `ticket`.
    #[must_use]
    pub fn mint(&self, ticket: &Ticket) -> Secret {
        let body = ticket.body();
        let mut bytes = [0; TICKET_BYTES];
        bytes[..BODY_BYTES].copy_from_slice(&body);
        bytes[BODY_BYTES..].copy_from_slice(&self.mac(&body));
        let mut name = BASE32_NOPAD.encode(&bytes);
        name.make_ascii_lowercase();
        Secret::new(format!("{name}.{}.{TICKET_ZONE}", ticket.side().as_str()))
    }

    /// The ticket in a server name: `None` if the name is not of a ticket's form and so belongs to someone else.
    ///
    /// # Errors
    /// [`Refusal::TicketInvalid`], [`Refusal::TicketWrongSide`] or [`Refusal::TicketExpired`], checked in this order.
    /// `now` is in Unix seconds; a ticket is good through the second of its expiry.
    pub fn verify(&self, server_name: &str, now: u64) -> Option<Result<Ticket, Refusal>> {
        let (label, side) = split(server_name)?;
        let mut bytes = [0; TICKET_BYTES];
        let decoded = lower_or_upper().decode_mut(label.as_bytes(), &mut bytes).ok()?;
        debug_assert_eq!(decoded, TICKET_BYTES);
        Some(self.judge(&bytes, side, now))
    }

    fn judge(&self, bytes: &[u8; TICKET_BYTES], side: &str, now: u64) -> Result<Ticket, Refusal> {
        let (body, mac) = bytes.split_first_chunk::<BODY_BYTES>().ok_or(Refusal::TicketInvalid)?;
        constant_time::verify_slices_are_equal(&self.mac(body), mac)
            .map_err(|_| Refusal::TicketInvalid)?;
        let ticket = Ticket::from_body(body).ok_or(Refusal::TicketInvalid)?;
        if !side.eq_ignore_ascii_case(ticket.side().as_str()) {
            return Err(Refusal::TicketWrongSide);
        }
        if now > u64::from(ticket.expiry) {
            return Err(Refusal::TicketExpired);
        }
        Ok(ticket)
    }

    fn mac(&self, body: &[u8; BODY_BYTES]) -> [u8; TICKET_BYTES - BODY_BYTES] {
        let tag = hmac::sign(&self.0, body);
        let mut mac = [0; TICKET_BYTES - BODY_BYTES];
        mac.copy_from_slice(&tag.as_ref()[..TICKET_BYTES - BODY_BYTES]);
        mac
    }
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey(***)")
    }
}

/// A server name of a ticket's form: first label of the right length, then one label for the side, then the zone.
fn split(server_name: &str) -> Option<(&str, &str)> {
    let (label, rest) = server_name.split_once('.')?;
    let (side, zone) = rest.split_once('.')?;
    (label.len() == TICKET_CHARS && zone.eq_ignore_ascii_case(TICKET_ZONE)).then_some((label, side))
}

/// Host names compare without case (RFC 4343), and middleboxes are known to change it.
fn lower_or_upper() -> &'static Encoding {
    static ENCODING: std::sync::LazyLock<Encoding> = std::sync::LazyLock::new(|| {
        let mut specification = Specification::new();
        specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
        specification.translate.from.push_str("ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        specification.translate.to.push_str("abcdefghijklmnopqrstuvwxyz");
        specification.encoding().expect("32 distinct symbols")
    });
    &ENCODING
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key() -> TicketKey {
        TicketKey::new(&[7; 32])
    }

    fn ticket(side: LegSide) -> Ticket {
        Ticket::new(PairId([0xa5; 16]), side, false, NOW as u32)
    }

    #[test]
    fn a_ticket_fits_one_label_and_its_key_is_not_shown() {
        let name = key().mint(&ticket(LegSide::Agent));
        let label = name.reveal().split('.').next().unwrap();
        assert_eq!(label.len(), TICKET_CHARS);
        assert!(name.reveal().ends_with(".agent.switchback.internal"));
        assert_eq!(format!("{:?}", key()), "TicketKey(***)");
    }

    #[test]
    fn no_truncation_is_admitted() {
        let name = key().mint(&ticket(LegSide::Client));
        for end in 0..name.reveal().len() {
            assert!(!matches!(key().verify(&name.reveal()[..end], NOW), Some(Ok(_))), "{end}");
        }
    }

    #[test]
    fn every_bit_flip_is_refused() {
        let good = key().mint(&ticket(LegSide::Client));
        let bytes = lower_or_upper().decode(&good.reveal().as_bytes()[..TICKET_CHARS]).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let label = lower_or_upper().encode(&damaged);
            let verdict = key().verify(&format!("{label}.client.{TICKET_ZONE}"), NOW);
            assert_eq!(verdict, Some(Err(Refusal::TicketInvalid)), "bit {bit}");
        }
    }

    #[test]
    fn a_ticket_of_another_gateway_or_an_earlier_run_is_refused() {
        let name = TicketKey::new(&[8; 32]).mint(&ticket(LegSide::Client));
        assert_eq!(key().verify(name.reveal(), NOW), Some(Err(Refusal::TicketInvalid)));
    }

    #[test]
    fn a_ticket_is_good_through_its_last_second() {
        let name = key().mint(&ticket(LegSide::Client));
        assert!(matches!(key().verify(name.reveal(), NOW), Some(Ok(_))));
        assert_eq!(key().verify(name.reveal(), NOW + 1), Some(Err(Refusal::TicketExpired)));
    }

    #[test]
    fn a_ticket_admits_its_own_side_only() {
        for side in [LegSide::Client, LegSide::Agent] {
            let name = key().mint(&ticket(side));
            let other = name
                .reveal()
                .replace(&format!(".{}.", side.as_str()), &format!(".{}.", side.mate().as_str()));
            assert_eq!(key().verify(&other, NOW), Some(Err(Refusal::TicketWrongSide)));
            let nobody = name.reveal().replace(&format!(".{}.", side.as_str()), ".nobody.");
            assert_eq!(key().verify(&nobody, NOW), Some(Err(Refusal::TicketWrongSide)));
        }
    }

    #[test]
    fn other_names_belong_to_someone_else() {
        let long = "a".repeat(TICKET_CHARS);
        let not_base32 = "0".repeat(TICKET_CHARS);
        for name in [
            String::new(),
            "gate.example".into(),
            TICKET_ZONE.into(),
            format!("short.client.{TICKET_ZONE}"),
            format!("{long}.client.example"),
            format!("{not_base32}.client.{TICKET_ZONE}"),
            format!("{long}.{TICKET_ZONE}"),
        ] {
            assert_eq!(key().verify(&name, NOW), None, "{name}");
        }
    }

    #[test]
    fn case_does_not_matter() {
        let name = key().mint(&ticket(LegSide::Agent)).reveal().to_uppercase();
        assert!(matches!(key().verify(&name, NOW), Some(Ok(_))));
    }

    proptest! {
        #[test]
        fn what_is_minted_is_verified(pair: [u8; 16], agent: bool, warm: bool, expiry: u32) {
            let side = if agent { LegSide::Agent } else { LegSide::Client };
            let ticket = Ticket::new(PairId(pair), side, warm, expiry);
            let name = key().mint(&ticket);
            prop_assert_eq!(key().verify(name.reveal(), u64::from(expiry)), Some(Ok(ticket)));
        }

        #[test]
        fn arbitrary_names_never_panic_and_never_enter(name in ".{0,300}") {
            prop_assert!(!matches!(key().verify(&name, NOW), Some(Ok(_))));
        }
    }
}
