//! What a link does to packets, and its text: `delay=20ms,jitter=5ms,loss=1%,burst=3,rate=20mbit`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::Rng;

use super::loss;

/// Longest delay or jitter: beyond a minute no protocol under test is still waiting.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// Fastest rate, in bits per second: beyond it a packet takes less than the clock's resolution.
const RATE_MAX: u64 = 1_000_000_000_000;

/// Slowest rate, in bits per second: a modem of 1985.
const RATE_MIN: u64 = 300;

/// Queue in front of a rate when none is set: 200 kB, 80 ms at 20 Mbit/s, as home routers have.
const QUEUE_DEFAULT: u64 = 200_000;

/// Largest queue, in bytes.
const QUEUE_MAX: u64 = 64_000_000;

/// Smallest MTU: the least an IPv4 host must forward whole (RFC 791, section 3.2).
const MTU_MIN: u16 = 68;

/// Longest mean burst, in packets.
const BURST_MAX: u32 = 10_000;

/// The keys of the text, for messages.
const KEYS: &str = "delay, jitter, loss, burst, rate, queue, udp-rate, reorder, duplicate, \
                    corrupt, mtu, udp-delay, blackhole";

/// A probability in millionths, so that its text is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance(u32);

impl Chance {
    /// It never happens.
    pub const NEVER: Chance = Chance(0);
    /// It always happens.
    pub const ALWAYS: Chance = Chance(1_000_000);

    /// So many in a million; more than a million is always.
    pub const fn per_million(millionths: u32) -> Chance {
        if millionths > 1_000_000 { Chance::ALWAYS } else { Chance(millionths) }
    }

    /// The share, 0.0 to 1.0.
    pub fn share(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    pub(super) fn happens(self, rng: &mut impl Rng) -> bool {
        self.0 > 0 && rng.random_range(0..1_000_000) < self.0
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", decimal(u64::from(self.0), 10_000))
    }
}

/// The largest packet a link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MtuLimit {
    /// Largest packet in bytes, IP header included.
    pub mtu: u16,
    /// No ICMP error for what is larger: a path-MTU black hole.
    pub silent: bool,
}

impl MtuLimit {
    pub(super) fn bytes(self) -> usize {
        usize::from(self.mtu)
    }
}

/// What one direction of a link does. The default does nothing: packets pass at once.
///
/// Text: `key=value` separated by commas; what is not named stays as it is ([`LinkSettings::update`])
/// or does nothing ([`FromStr`]). `rate`, `queue`, `udp-rate`, `burst`, `mtu` and `blackhole` take
/// `off`, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkSettings {
    /// Time in the medium, one way, at most a minute.
    pub delay: Duration,
    /// Added to the delay, evenly from zero to this; order is kept.
    pub jitter: Duration,
    /// Share of packets lost.
    pub loss: Chance,
    /// Mean number of packets lost in a row; `None`: losses are independent.
    pub burst: Option<u32>,
    /// Bits per second of whole IP packets; `None`: no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate; `None`: 200 kB.
    pub queue: Option<u64>,
    /// Bits per second of whole IP packets with UDP, beyond which they are dropped, as networks
    /// that mistrust UDP police it; `None`: no such limit.
    pub udp_rate: Option<u64>,
    /// Share of packets held back so that later ones overtake them.
    pub reorder: Chance,
    /// Share of packets delivered twice.
    pub duplicate: Chance,
    /// Share of packets with one flipped bit.
    pub corrupt: Chance,
    /// Largest packet.
    pub mtu: Option<MtuLimit>,
    /// Added to the delay of UDP: a network that serves other traffic first, or leads UDP another way.
    pub udp_delay: Duration,
    /// Nothing comes out.
    pub blackhole: bool,
}

impl LinkSettings {
    /// Changes what the text names, all of it or, on an error, nothing.
    ///
    /// # Errors
    /// The message names the item and what would be right.
    pub fn update(&mut self, text: &str) -> Result<(), String> {
        let mut changed = *self;
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            changed.set_item(item).map_err(|why| format!("{item:?}: {why}"))?;
        }
        if let Some(burst) = changed.burst
            && changed.loss.share() > loss::most_with(burst)
            && changed.loss != Chance::ALWAYS
        {
            let most = loss::most_with(burst) * 100.0;
            return Err(format!(
                "burst={burst} allows at most loss={most:.1}%: raise burst or lower loss"
            ));
        }
        *self = changed;
        Ok(())
    }

    /// Nothing is set: packets pass at once.
    pub fn is_perfect(&self) -> bool {
        let idle = LinkSettings { burst: self.burst, queue: self.queue, ..Default::default() };
        *self == idle
    }

    /// Time the transmitter needs for a packet.
    pub(super) fn transmission(&self, bytes: usize) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| time_for(bytes, rate))
    }

    pub(super) fn queue_bytes(&self) -> usize {
        usize::try_from(self.queue.unwrap_or(QUEUE_DEFAULT)).unwrap_or(usize::MAX)
    }

    fn set_item(&mut self, item: &str) -> Result<(), String> {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        match key {
            "delay" => self.delay = delay(value)?,
            "jitter" => self.jitter = delay(value)?,
            "loss" => self.loss = chance(value)?,
            "burst" => self.burst = unless_off(value, burst)?,
            "rate" => self.rate = unless_off(value, rate)?,
            "queue" => self.queue = unless_off(value, queue)?,
            "udp-rate" => self.udp_rate = unless_off(value, rate)?,
            "reorder" => self.reorder = chance(value)?,
            "duplicate" => self.duplicate = chance(value)?,
            "corrupt" => self.corrupt = chance(value)?,
            "mtu" => self.mtu = unless_off(value, mtu)?,
            "udp-delay" => self.udp_delay = delay(value)?,
            "blackhole" => self.blackhole = switch(value)?,
            _ => return Err(format!("unknown; the keys are {KEYS}")),
        }
        Ok(())
    }
}

impl FromStr for LinkSettings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut settings = LinkSettings::default();
        settings.update(text)?;
        Ok(settings)
    }
}

impl fmt::Display for LinkSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.items().join(","))
    }
}

impl LinkSettings {
    /// The text of what is set, item by item.
    pub(in crate::lab) fn items(&self) -> Vec<String> {
        let mut items = Vec::new();
        let mut add = |set: bool, key: &str, value: String| {
            if set {
                items.push(format!("{key}={value}"));
            }
        };
        add(!self.delay.is_zero(), "delay", duration_text(self.delay));
        add(!self.jitter.is_zero(), "jitter", duration_text(self.jitter));
        add(self.loss != Chance::NEVER, "loss", self.loss.to_string());
        add(self.burst.is_some(), "burst", self.burst.unwrap_or_default().to_string());
        add(self.rate.is_some(), "rate", rate_text(self.rate.unwrap_or_default()));
        add(self.queue.is_some(), "queue", bytes_text(self.queue.unwrap_or_default()));
        let udp_rate = self.udp_rate.unwrap_or_default();
        add(self.udp_rate.is_some(), "udp-rate", rate_text(udp_rate));
        add(self.reorder != Chance::NEVER, "reorder", self.reorder.to_string());
        add(self.duplicate != Chance::NEVER, "duplicate", self.duplicate.to_string());
        add(self.corrupt != Chance::NEVER, "corrupt", self.corrupt.to_string());
        if let Some(limit) = self.mtu {
            add(true, "mtu", format!("{}{}", limit.mtu, if limit.silent { "/silent" } else { "" }));
        }
        add(!self.udp_delay.is_zero(), "udp-delay", duration_text(self.udp_delay));
        if self.blackhole {
            items.push("blackhole".into());
        }
        items
    }
}

/// How long so many bytes take at so many bits per second.
pub(super) fn time_for(bytes: usize, rate: u64) -> Duration {
    let nanos = bytes as u128 * 8 * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Parses `20ms`, `1.5s` or `200us`, to the microsecond.
pub(crate) fn parse_duration(value: &str) -> Result<Duration, String> {
    let micros = quantity(value, &[("us", 1), ("ms", 1_000), ("s", 1_000_000)])
        .ok_or("needs a time with its unit, as in 20ms, 1.5s or 200us")?;
    Ok(Duration::from_micros(micros))
}

/// The text that [`parse_duration`] reads; below a microsecond it is cut off.
pub(crate) fn duration_text(duration: Duration) -> String {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    match micros {
        0 => "0ms".into(),
        _ if micros >= 1_000_000 => format!("{}s", decimal(micros, 1_000_000)),
        _ => format!("{}ms", decimal(micros, 1_000)),
    }
}

fn delay(value: &str) -> Result<Duration, String> {
    let delay = parse_duration(value)?;
    if delay > DELAY_MAX {
        return Err(format!("is more than a minute; give at most {}s", DELAY_MAX.as_secs()));
    }
    Ok(delay)
}

fn chance(value: &str) -> Result<Chance, String> {
    quantity(value, &[("%", 10_000)])
        .and_then(|millionths| u32::try_from(millionths).ok())
        .filter(|millionths| *millionths <= Chance::ALWAYS.0)
        .map(Chance)
        .ok_or_else(|| "needs a percentage of 0% to 100%, as in 1% or 0.1%".into())
}

fn burst(value: &str) -> Result<u32, String> {
    let length = value.parse().ok().filter(|length| (1..=BURST_MAX).contains(length));
    length.ok_or_else(|| format!("needs the mean packets lost in a row, 1 to {BURST_MAX}, or off"))
}

fn rate(value: &str) -> Result<u64, String> {
    let units = [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];
    quantity(value, &units).filter(|rate| (RATE_MIN..=RATE_MAX).contains(rate)).ok_or_else(|| {
        "needs 300bit to 1000gbit per second, as in 20mbit or 512kbit, or off".into()
    })
}

fn rate_text(rate: u64) -> String {
    match rate {
        1_000_000_000.. => format!("{}gbit", decimal(rate, 1_000_000_000)),
        1_000_000.. => format!("{}mbit", decimal(rate, 1_000_000)),
        1_000.. => format!("{}kbit", decimal(rate, 1_000)),
        _ => format!("{rate}bit"),
    }
}

fn queue(value: &str) -> Result<u64, String> {
    quantity(value, &[("MB", 1_000_000), ("kB", 1_000), ("B", 1)])
        .filter(|bytes| (1..=QUEUE_MAX).contains(bytes))
        .ok_or_else(|| "needs 1B to 64MB, as in 200kB, or off".into())
}

fn bytes_text(bytes: u64) -> String {
    match bytes {
        1_000_000.. => format!("{}MB", decimal(bytes, 1_000_000)),
        1_000.. => format!("{}kB", decimal(bytes, 1_000)),
        _ => format!("{bytes}B"),
    }
}

fn mtu(value: &str) -> Result<MtuLimit, String> {
    let (bytes, silent) = match value.strip_suffix("/silent") {
        Some(bytes) => (bytes, true),
        None => (value, false),
    };
    match bytes.parse() {
        Ok(mtu) if mtu >= MTU_MIN => Ok(MtuLimit { mtu, silent }),
        _ => Err(format!(
            "needs {MTU_MIN} to 65535 bytes, as in 1400, 1400/silent (no ICMP error), or off"
        )),
    }
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "" | "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("takes no value, on or off".into()),
    }
}

fn unless_off<T>(
    value: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    if value == "off" { Ok(None) } else { parse(value).map(Some) }
}

/// A decimal number with one of the units, in multiples of the smallest; `None` when it is no such
/// number, finer than that or too large.
fn quantity(value: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = value.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = value.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let mut sum = whole.parse::<u64>().ok()?.checked_mul(*scale)?;
    let mut place = *scale;
    for digit in part.bytes() {
        let digit = u64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        place /= 10;
        if place == 0 && digit != 0 {
            return None;
        }
        sum = sum.checked_add(digit * place)?;
    }
    Some(sum)
}

/// `value / scale` as a decimal number without trailing zeros; `scale` is a power of ten.
fn decimal(value: u64, scale: u64) -> String {
    let (whole, part) = (value / scale, value % scale);
    if part == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    format!("{whole}.{part:0width$}").trim_end_matches('0').to_owned()
}
