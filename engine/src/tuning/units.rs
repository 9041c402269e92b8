//! Numbers with units, and names of code points, as people write them. Pure.
use super::Keepalive;

/// RFC 2474, 2597, 3246, 5865, 8622. Where a point has two names, the one that is shown comes first.
const DSCP_NAMES: [(&str, u8); 24] = [
    ("default", 0),
    ("cs0", 0),
    ("le", 1),
    ("cs1", 8),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("cs2", 16),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("cs3", 24),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("cs4", 32),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("cs5", 40),
    ("va", 44),
    ("ef", 46),
    ("cs6", 48),
    ("cs7", 56),
];

/// Units and their factors, largest first. A value without unit is only allowed where the empty one is listed.
type Units = [(&'static str, u64)];
pub(super) const TIMES: [(&str, u64); 4] =
    [("h", 3_600_000), ("m", 60_000), ("ms", 1), ("s", 1000)];
pub(super) const SIZES: [(&str, u64); 3] = [("m", 1 << 20), ("k", 1 << 10), ("", 1)];
pub(super) const RATES: [(&str, u64); 4] =
    [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000), ("bit", 1)];
pub(super) const PLAIN: [(&str, u64); 1] = [("", 1)];

/// A whole number and one of `units`.
pub(super) fn scaled<T: TryFrom<u64>>(text: &str, units: &Units) -> Option<T> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    T::try_from(number.parse::<u64>().ok()?.checked_mul(*factor)?).ok()
}

pub(super) fn dscp(text: &str) -> Option<u8> {
    let named = DSCP_NAMES.iter().find(|(name, _)| *name == text);
    named.map(|(_, point)| *point).or_else(|| scaled(text, &PLAIN))
}

pub(super) fn dscp_text(point: u8) -> String {
    let named = DSCP_NAMES.iter().find(|(_, known)| *known == point);
    named.map_or_else(|| point.to_string(), |(name, _)| (*name).to_owned())
}

pub(super) fn keepalive(text: &str) -> Option<Keepalive> {
    let mut parts = text.split('/');
    let (idle, interval, probes) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let seconds = |text| {
        let ms: u64 = scaled(text, &TIMES)?;
        ms.is_multiple_of(1000).then(|| u16::try_from(ms / 1000).ok()).flatten()
    };
    let (idle_s, interval_s) = (seconds(idle)?, seconds(interval)?);
    Some(Keepalive { idle_s, interval_s, probes: scaled(probes, &PLAIN)? })
}

pub(super) fn time_text(ms: u32) -> String {
    if ms.is_multiple_of(1000) { format!("{}s", ms / 1000) } else { format!("{ms}ms") }
}

pub(super) fn size_text(bytes: u32) -> String {
    with_unit(bytes.into(), &SIZES)
}

pub(super) fn rate_text(bps: u64) -> String {
    with_unit(bps, &RATES)
}

/// In the largest unit that leaves a whole number.
fn with_unit(value: u64, units: &Units) -> String {
    let fits = |(_, factor): &&(&str, u64)| value.is_multiple_of(*factor);
    let (unit, factor) = units.iter().find(fits).copied().unwrap_or(("", 1));
    format!("{}{unit}", value / factor)
}
