//! What a permit obliges to: annotations that narrow what a session may do.
//!
//! `@no_udp`, `@relay_only`, `@direct_required` say what may carry it, `@max_session("8h")` and `@reauthenticate("4h")` for how
//! long, `@rate("10mbit")` how fast, and `@consent("required")` or `@consent("notify")` whether its user is asked before it is
//! shadowed. Where several permits decide, the strictest of all binds: one more permit never lifts what another obliges to.
use std::fmt;

use cedar_policy::Effect;
use serde::{Deserialize, Serialize};

use crate::wire::{TransportPolicy, UdpUse};

/// Annotations that are for people only.
const FOR_PEOPLE: [&str; 3] = ["id", "description", "advice"];
/// The obligations, for people who mistype them.
const KNOWN: &str =
    "no_udp, relay_only, direct_required, max_session, reauthenticate, consent, rate";
/// A year; longer is no limit.
const SECONDS_MAX: u64 = 366 * 24 * 3600;
/// Below this not even the session's own control frames would flow, bit/s.
const RATE_MIN: u64 = 8_000;
/// No path is faster, bit/s.
const RATE_MAX: u64 = 1_000_000_000_000;

/// Whether the user of a session is asked before it is shadowed.
#[derive(
    utoipa::ToSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Consent {
    /// They are told.
    Notify,
    /// They must agree.
    Required,
}

impl Consent {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Required => "required",
        }
    }
}

/// What a session is obliged to. The default obliges to nothing.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Obligations {
    /// TCP only.
    #[serde(skip_serializing_if = "is_false")]
    pub no_udp: bool,
    /// Through the gateway only.
    #[serde(skip_serializing_if = "is_false")]
    pub relay_only: bool,
    /// Only over a direct path.
    #[serde(skip_serializing_if = "is_false")]
    pub direct_required: bool,
    /// Longest session, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_session_s: Option<u64>,
    /// Oldest sign-in, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reauthenticate_s: Option<u64>,
    /// Before it is shadowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consent: Option<Consent>,
    /// Most bits a second in each direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bits: Option<u64>,
}

const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Obligations {
    /// Whether it obliges to nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The strictest of both.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            no_udp: self.no_udp || other.no_udp,
            relay_only: self.relay_only || other.relay_only,
            direct_required: self.direct_required || other.direct_required,
            max_session_s: least(self.max_session_s, other.max_session_s),
            reauthenticate_s: least(self.reauthenticate_s, other.reauthenticate_s),
            consent: self.consent.max(other.consent),
            rate_bits: least(self.rate_bits, other.rate_bits),
        }
    }

    /// What may carry a session whose resource allows `transport`: what both allow, never more; `None` if that is nothing.
    #[must_use]
    pub fn narrow(&self, transport: TransportPolicy) -> Option<TransportPolicy> {
        let limits = [
            (self.no_udp, UdpUse::Off),
            (self.relay_only, UdpUse::RelayOnly),
            (self.direct_required, UdpUse::Require),
        ];
        let bound = limits.into_iter().filter(|(binds, _)| *binds);
        let left = bound.fold(ways(transport.udp), |left, (_, limit)| left & ways(limit));
        let all = [UdpUse::Prefer, UdpUse::Require, UdpUse::RelayOnly, UdpUse::Off];
        let udp = all.into_iter().find(|udp| ways(*udp) == left)?;
        Some(TransportPolicy { udp, ..transport })
    }

    /// Reads the annotations of one policy.
    ///
    /// # Errors
    /// What is wrong with them, a line each: an obligation that is not known is not silently void.
    pub(super) fn read<'a>(
        annotations: impl Iterator<Item = (&'a str, &'a str)>,
        effect: Effect,
    ) -> Result<Self, Vec<String>> {
        let (mut read, mut wrong) = (Self::default(), Vec::new());
        for (name, value) in annotations {
            if FOR_PEOPLE.contains(&name) || name.starts_with("x_") {
                continue;
            }
            if let Err(error) = read.take(name, value) {
                wrong.push(format!("@{name}: {error}"));
            } else if effect == Effect::Forbid {
                wrong.push(format!("@{name}: only a permit can oblige to something"));
            }
        }
        if wrong.is_empty() { Ok(read) } else { Err(wrong) }
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "no_udp" => self.no_udp = flag(value)?,
            "relay_only" => self.relay_only = flag(value)?,
            "direct_required" => self.direct_required = flag(value)?,
            "max_session" => self.max_session_s = Some(seconds(value)?),
            "reauthenticate" => self.reauthenticate_s = Some(seconds(value)?),
            "rate" => self.rate_bits = Some(rate(value)?),
            "consent" => {
                self.consent = Some(match value {
                    "required" => Consent::Required,
                    "notify" => Consent::Notify,
                    _ => return Err("is \"required\" or \"notify\"".into()),
                });
            }
            _ => {
                return Err(format!(
                    "no such obligation; there are {KNOWN}; notes of your own begin with x_"
                ));
            }
        }
        Ok(())
    }
}

/// What may carry a session: a bit each for TCP, the relay and a direct path.
const fn ways(udp: UdpUse) -> u8 {
    match udp {
        UdpUse::Prefer => 0b111,
        UdpUse::RelayOnly => 0b011,
        UdpUse::Off => 0b001,
        UdpUse::Require => 0b100,
    }
}

fn flag(value: &str) -> Result<bool, String> {
    if value.is_empty() { Ok(true) } else { Err("takes no value".into()) }
}

/// `8h`, `1h30m`, `45s`, `7d`.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "is a time such as \"8h\", \"1h30m\" or \"7d\", 1 s to 366 days".to_owned();
    let (mut sum, mut number) = (0_u64, None::<u64>);
    for c in text.chars() {
        if let Some(digit) = c.to_digit(10) {
            let more =
                number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit.into()));
            number = Some(more.ok_or_else(wrong)?);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let part = number.take().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)?;
        sum = sum.checked_add(part).ok_or_else(wrong)?;
    }
    if number.is_some() || !(1..=SECONDS_MAX).contains(&sum) { Err(wrong()) } else { Ok(sum) }
}

/// `10mbit`, `500kbit`, `1gbit`: bit/s.
fn rate(text: &str) -> Result<u64, String> {
    let wrong = || "is a rate such as \"500kbit\", \"10mbit\" or \"1gbit\", from 8kbit".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "bit" => 1,
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let bits = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)?;
    if (RATE_MIN..=RATE_MAX).contains(&bits) { Ok(bits) } else { Err(wrong()) }
}

/// As annotations are written, without `@`; nothing for none.
impl fmt::Display for Obligations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(" "))
    }
}

impl Obligations {
    /// Each as one word: `no_udp`, `max_session=28800s`, `consent=required`, `rate=10000000bit`.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let flags = [
            (self.no_udp, "no_udp"),
            (self.relay_only, "relay_only"),
            (self.direct_required, "direct_required"),
        ];
        let flags = flags.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned());
        let figures = [
            ("max_session", self.max_session_s, "s"),
            ("reauthenticate", self.reauthenticate_s, "s"),
            ("rate", self.rate_bits, "bit"),
        ];
        let figures = figures
            .into_iter()
            .filter_map(|(name, value, unit)| Some(format!("{name}={}{unit}", value?)));
        let consent = self.consent.map(|consent| format!("consent={}", consent.as_str()));
        flags.chain(figures).chain(consent).collect()
    }

    /// Reads [`Self::words`] back, also with times and rates as annotations have them.
    ///
    /// # Errors
    /// What is wrong with the first word that is.
    pub fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut read = Self::default();
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            read.take(name, value).map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(read)
    }
}
