//! Socket options that network engineers expect to set, per listener and per resource.
//!
//! A [`Tuning`] is plain data: what is `None` is left as it is. It is read from text (its `FromStr`, [`Tuning::set`]),
//! laid over another ([`Tuning::over`]), tried on a socket of its own before it is needed ([`Tuning::probe_listener`],
//! [`Tuning::probe_connection`]), and applied. Accepted connections inherit everything from their listener, so a leg costs no
//! system call for it.
//!
//! | option | Linux | unit, range | since | listener | connection |
//! |---|---|---|---|---|---|
//! | `congestion` | `TCP_CONGESTION` | name of an algorithm the kernel has | 2.6.13 | yes | yes |
//! | `dscp` | `IP_TOS`, `IPV6_TCLASS` | 0 to 63, or a name (RFC 2474, 2597, 3246, 8622) | 2.6.14 | yes | yes |
//! | `user-timeout` | `TCP_USER_TIMEOUT` (RFC 5482) | 100 ms to 1 h | 2.6.37 | yes | yes |
//! | `keepalive` | `SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT` | 1 to 32767 s, 1 to 32767 s, 1 to 127 | 2.4 | yes | yes |
//! | `notsent-lowat` | `TCP_NOTSENT_LOWAT` | 1 KiB to 16 MiB | 3.12 | yes | yes |
//! | `max-pacing-rate` | `SO_MAX_PACING_RATE` | 64 kbit/s to 400 Gbit/s, per connection | 3.13, without the fq qdisc 4.13, above 34 Gbit/s 4.20 | yes | yes |
//! | `mss` | `TCP_MAXSEG` | 88 to 32767 bytes | 2.2 | yes | before it connects |
//! | `fast-open` | `TCP_FASTOPEN` (RFC 7413) | 1 to 65535 pending requests | 3.7, IPv6 3.16 | yes | no |
mod probe;
mod text;
mod units;

pub use probe::{TuningRefused, congestion_controls};
pub use text::TuningInvalid;

use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use crate::ring;

/// Socket options; those that are `None` stay as they are. The table of the module says where each applies.
///
/// # Defaults
/// Nothing. What legs have unless told otherwise is [`Tuning::base`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// Congestion control algorithm, as in `net.ipv4.tcp_available_congestion_control`: 1 to 15 of `a-z 0-9 _ -`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// Differentiated services code point of sent packets, 0 to 63.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<u8>,
    /// Milliseconds that sent data may stay unacknowledged, or the peer's window shut, before the connection is given up;
    /// 100 to 3,600,000. Larger survives longer outages and notices dead peers later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_timeout_ms: Option<u32>,
    /// How a silent peer is probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Keepalive>,
    /// Bytes that may wait unsent in the kernel before we stop writing, 1,024 to 16,777,216. Larger costs latency under
    /// bulk, smaller costs wake-ups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notsent_lowat_bytes: Option<u32>,
    /// Bits per second that one connection sends at most, 64,000 to 400,000,000,000. The kernel's pacing keeps it, so it
    /// holds for spliced bytes as well. The first 10 segments of a connection leave unpaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pacing_rate_bps: Option<u64>,
    /// Largest segment in bytes, 88 to 32,767, sent and announced; TCP options such as timestamps (12 bytes) come off it.
    /// Takes effect on listeners and before a connection is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mss_bytes: Option<u16>,
    /// TCP Fast Open requests that may be pending on a listener, 1 to 65,535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_open: Option<u16>,
}

/// Keepalive probes: after `idle_s` of silence, every `interval_s`, given up after `probes` without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keepalive {
    /// Seconds of silence before the first probe, 1 to 32,767.
    pub idle_s: u16,
    /// Seconds between probes, 1 to 32,767.
    pub interval_s: u16,
    /// Unanswered probes before the connection is given up, 1 to 127.
    pub probes: u8,
}

/// The options of a [`Tuning`], by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TuningOption {
    /// [`Tuning::congestion`].
    Congestion,
    /// [`Tuning::dscp`].
    Dscp,
    /// [`Tuning::user_timeout_ms`].
    UserTimeout,
    /// [`Tuning::keepalive`].
    Keepalive,
    /// [`Tuning::notsent_lowat_bytes`].
    NotsentLowat,
    /// [`Tuning::max_pacing_rate_bps`].
    MaxPacingRate,
    /// [`Tuning::mss_bytes`].
    Mss,
    /// [`Tuning::fast_open`].
    FastOpen,
}

impl TuningOption {
    /// Every option, in the order they are shown and applied.
    pub const ALL: [Self; 8] = [
        Self::Congestion,
        Self::Dscp,
        Self::UserTimeout,
        Self::Keepalive,
        Self::NotsentLowat,
        Self::MaxPacingRate,
        Self::Mss,
        Self::FastOpen,
    ];

    /// The name people write.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Congestion => "congestion",
            Self::Dscp => "dscp",
            Self::UserTimeout => "user-timeout",
            Self::Keepalive => "keepalive",
            Self::NotsentLowat => "notsent-lowat",
            Self::MaxPacingRate => "max-pacing-rate",
            Self::Mss => "mss",
            Self::FastOpen => "fast-open",
        }
    }

    /// What may be written for it.
    #[must_use]
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Congestion => "the name of an algorithm, e.g. cubic",
            Self::Dscp => "0 to 63, or default, le, cs0 to cs7, af11 to af43, va, ef",
            Self::UserTimeout => "a time from 100ms to 1h, e.g. 30s",
            Self::Keepalive => {
                "IDLE/INTERVAL/PROBES, e.g. 30s/10s/3: whole seconds up to 32767s, and 1 to 127 probes"
            }
            Self::NotsentLowat => "bytes from 1k to 16m, e.g. 128k",
            Self::MaxPacingRate => "a rate from 64kbit to 400gbit per second, e.g. 50mbit",
            Self::Mss => "88 to 32767 bytes",
            Self::FastOpen => "1 to 65535 pending requests",
        }
    }
}

impl std::fmt::Display for TuningOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Tuning {
    /// What every leg has unless told otherwise.
    ///
    /// * `keepalive` 30 s / 10 s / 3: NAT entries for TCP live at least 2 h by RFC 5382, in practice often 5 min; and a
    ///   vanished peer should be noticed within a minute.
    /// * `user-timeout` 30 s: half of the default resume window of a session. Linux also applies it to a window that stays
    ///   shut: a peer that reads nothing for 30 s is given up.
    /// * `notsent-lowat` 128 KiB: without it the send buffer grows to megabytes and an interactive byte waits behind all of
    ///   them; at 128 KiB bulk is as fast as without.
    #[must_use]
    pub fn base() -> Self {
        Self {
            user_timeout_ms: Some(30_000),
            keepalive: Some(Keepalive { idle_s: 30, interval_s: 10, probes: 3 }),
            notsent_lowat_bytes: Some(128 * 1024),
            ..Self::default()
        }
    }

    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This tuning, with what it leaves open taken from `base`: resource over listener over defaults.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        Self {
            congestion: self.congestion.clone().or_else(|| base.congestion.clone()),
            dscp: self.dscp.or(base.dscp),
            user_timeout_ms: self.user_timeout_ms.or(base.user_timeout_ms),
            keepalive: self.keepalive.or(base.keepalive),
            notsent_lowat_bytes: self.notsent_lowat_bytes.or(base.notsent_lowat_bytes),
            max_pacing_rate_bps: self.max_pacing_rate_bps.or(base.max_pacing_rate_bps),
            mss_bytes: self.mss_bytes.or(base.mss_bytes),
            fast_open: self.fast_open.or(base.fast_open),
        }
    }

    /// This tuning of a resource, with its rate cut to the listener's: a limit that an agent could lift would be none.
    #[must_use]
    pub fn within_rate_of(mut self, listener: &Self) -> Self {
        self.max_pacing_rate_bps = match (self.max_pacing_rate_bps, listener.max_pacing_rate_bps) {
            (Some(wanted), Some(allowed)) => Some(wanted.min(allowed)),
            (wanted, _) => wanted,
        };
        self
    }

    /// Sets the options on a listening socket; connections it accepts from now on inherit them.
    ///
    /// # Errors
    /// The first option that the kernel refuses. Those before it are set.
    pub fn apply_to_listener(&self, socket: impl AsFd) -> Result<(), TuningRefused> {
        self.apply_where(socket, |_| true)
    }

    /// Sets the options on a connection, made or about to be made, but for `fast-open`, which only listeners have. `mss`
    /// counts only before it is made.
    ///
    /// # Errors
    /// The first option that the kernel refuses. Those before it are set.
    pub fn apply_to_connection(&self, socket: impl AsFd) -> Result<(), TuningRefused> {
        self.apply_where(socket, |option| option != TuningOption::FastOpen)
    }

    fn apply_where(
        &self,
        socket: impl AsFd,
        applies: impl Fn(TuningOption) -> bool,
    ) -> Result<(), TuningRefused> {
        for option in TuningOption::ALL.into_iter().filter(|option| applies(*option)) {
            if let Err(error) = ring::set_option(socket.as_fd(), self, option) {
                return Err(self.refused(option, &error));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_goes_over_listener_over_defaults() {
        let resource: Tuning = "dscp=ef,user-timeout=5s".parse().unwrap();
        let listener: Tuning = "dscp=cs1,congestion=reno".parse().unwrap();
        let merged = resource.over(&listener).over(&Tuning::base());
        let expected =
            "congestion=reno,dscp=ef,user-timeout=5s,keepalive=30s/10s/3,notsent-lowat=128k";
        assert_eq!(merged, expected.parse().unwrap());
        assert_eq!(Tuning::default().over(&merged), merged);
        assert_eq!(merged.over(&Tuning::default()), merged);
    }

    #[test]
    fn a_resource_cannot_lift_the_listeners_rate() {
        let rate = |text: &str| -> Tuning { text.parse().unwrap() };
        let listener = rate("max-pacing-rate=100mbit");
        for (wanted, kept) in [
            ("max-pacing-rate=1gbit", "max-pacing-rate=100mbit"),
            ("max-pacing-rate=50mbit", "max-pacing-rate=50mbit"),
            ("dscp=ef", "dscp=ef"),
        ] {
            assert_eq!(rate(wanted).within_rate_of(&listener), rate(kept));
            assert_eq!(rate(wanted).within_rate_of(&Tuning::base()), rate(wanted));
        }
    }
}
