//! Tuning as people write it: `congestion=cubic,dscp=ef,notsent-lowat=64k`. Pure.
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::units::{
    PLAIN, RATES, SIZES, TIMES, dscp, dscp_text, keepalive, rate_text, scaled, size_text, time_text,
};
use super::{Keepalive, Tuning, TuningOption};

/// Why a text or a message is no tuning. The same text will always be refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TuningInvalid {
    /// There is no option of this name.
    #[error("there is no option `{0}`; there are {all}", all = all_options())]
    Unknown(String),
    /// An option without `=`.
    #[error("`{0}` is no KEY=VALUE")]
    NoValue(String),
    /// The option cannot have this value.
    #[error("{option}: `{value}` is not allowed; expected {}", option.expected())]
    Value {
        /// Which.
        option: TuningOption,
        /// As it was written.
        value: String,
    },
    /// The option was given before.
    #[error("{0} is given twice")]
    Twice(TuningOption),
    /// The option has no meaning for a resource.
    #[error("{0} is for the gateway's listener, not for a resource")]
    ListenerOnly(TuningOption),
}

impl FromStr for Tuning {
    type Err = TuningInvalid;

    /// Reads `KEY=VALUE,...`.
    fn from_str(text: &str) -> Result<Self, TuningInvalid> {
        let mut tuning = Self::default();
        for part in text.split(',') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| TuningInvalid::NoValue(part.trim().into()))?;
            tuning.set(key.trim(), value.trim())?;
        }
        Ok(tuning)
    }
}

impl fmt::Display for Tuning {
    /// As it can be read again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = TuningOption::ALL
            .into_iter()
            .filter_map(|option| self.value_of(option).map(|value| format!("{option}={value}")));
        f.write_str(&values.collect::<Vec<_>>().join(","))
    }
}

impl Tuning {
    /// Sets one option from its name and value.
    ///
    /// # Errors
    /// Unknown name, value out of range, or set before. Then nothing changes.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), TuningInvalid> {
        let option = TuningOption::ALL.into_iter().find(|option| option.as_str() == key);
        let option = option.ok_or_else(|| TuningInvalid::Unknown(key.into()))?;
        if self.value_of(option).is_some() {
            return Err(TuningInvalid::Twice(option));
        }
        let invalid = || TuningInvalid::Value { option, value: value.into() };
        let mut changed = self.clone();
        changed.read(option, value).ok_or_else(invalid)?;
        if !changed.is_in_range(option) {
            return Err(invalid());
        }
        *self = changed;
        Ok(())
    }

    /// Checks every range; for a tuning that did not come as text.
    ///
    /// # Errors
    /// The first option out of range.
    pub fn check(&self) -> Result<(), TuningInvalid> {
        let wrong = TuningOption::ALL.into_iter().find(|option| !self.is_in_range(*option));
        wrong.map_or(Ok(()), |option| {
            let value = self.value_of(option).unwrap_or_default();
            Err(TuningInvalid::Value { option, value })
        })
    }

    /// Checks what a resource may have: every range, and nothing that only listeners have.
    ///
    /// # Errors
    /// The first option at fault.
    pub fn check_for_resource(&self) -> Result<(), TuningInvalid> {
        if self.fast_open.is_some() {
            return Err(TuningInvalid::ListenerOnly(TuningOption::FastOpen));
        }
        self.check()
    }

    /// What is set for `option`, as it is written.
    #[must_use]
    pub fn value_of(&self, option: TuningOption) -> Option<String> {
        match option {
            TuningOption::Congestion => self.congestion.clone(),
            TuningOption::Dscp => self.dscp.map(dscp_text),
            TuningOption::UserTimeout => self.user_timeout_ms.map(time_text),
            TuningOption::Keepalive => {
                self.keepalive.map(|Keepalive { idle_s, interval_s, probes }| {
                    format!("{idle_s}s/{interval_s}s/{probes}")
                })
            }
            TuningOption::NotsentLowat => self.notsent_lowat_bytes.map(size_text),
            TuningOption::MaxPacingRate => self.max_pacing_rate_bps.map(rate_text),
            TuningOption::Mss => self.mss_bytes.map(|bytes| bytes.to_string()),
            TuningOption::FastOpen => self.fast_open.map(|requests| requests.to_string()),
        }
    }

    fn read(&mut self, option: TuningOption, value: &str) -> Option<()> {
        match option {
            TuningOption::Congestion => self.congestion = Some(value.into()),
            TuningOption::Dscp => self.dscp = Some(dscp(value)?),
            TuningOption::UserTimeout => self.user_timeout_ms = Some(scaled(value, &TIMES)?),
            TuningOption::Keepalive => self.keepalive = Some(keepalive(value)?),
            TuningOption::NotsentLowat => self.notsent_lowat_bytes = Some(scaled(value, &SIZES)?),
            TuningOption::MaxPacingRate => self.max_pacing_rate_bps = Some(scaled(value, &RATES)?),
            TuningOption::Mss => self.mss_bytes = Some(scaled(value, &PLAIN)?),
            TuningOption::FastOpen => self.fast_open = Some(scaled(value, &PLAIN)?),
        }
        Some(())
    }

    fn is_in_range(&self, option: TuningOption) -> bool {
        match option {
            TuningOption::Congestion => self.congestion.as_deref().is_none_or(is_algorithm),
            TuningOption::Dscp => self.dscp.is_none_or(|dscp| dscp <= DSCP_MAX),
            TuningOption::UserTimeout => {
                self.user_timeout_ms.is_none_or(|ms| (100..=3_600_000).contains(&ms))
            }
            TuningOption::Keepalive => self.keepalive.is_none_or(|keepalive| {
                let Keepalive { idle_s, interval_s, probes } = keepalive;
                let seconds = 1..=KEEPALIVE_S_MAX;
                seconds.contains(&idle_s)
                    && seconds.contains(&interval_s)
                    && (1..=KEEPALIVE_PROBES_MAX).contains(&probes)
            }),
            TuningOption::NotsentLowat => {
                self.notsent_lowat_bytes.is_none_or(|bytes| (1 << 10..=16 << 20).contains(&bytes))
            }
            TuningOption::MaxPacingRate => {
                self.max_pacing_rate_bps.is_none_or(|bps| (64_000..=400_000_000_000).contains(&bps))
            }
            TuningOption::Mss => {
                self.mss_bytes.is_none_or(|bytes| (MSS_MIN..=MSS_MAX).contains(&bytes))
            }
            TuningOption::FastOpen => self.fast_open.is_none_or(|requests| requests > 0),
        }
    }
}

/// Six bits (RFC 2474 section 3).
const DSCP_MAX: u8 = 63;
/// `MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL` and `MAX_TCP_KEEPCNT` of Linux's include/net/tcp.h.
const KEEPALIVE_S_MAX: u16 = 32_767;
const KEEPALIVE_PROBES_MAX: u8 = 127;
/// `TCP_MIN_MSS` and `MAX_TCP_WINDOW` of the same: TCP_MAXSEG refuses anything else.
const MSS_MIN: u16 = 88;
const MSS_MAX: u16 = 32_767;
/// `TCP_CA_NAME_MAX` is 16 with the final zero.
const ALGORITHM_CHARS_MAX: usize = 15;

fn is_algorithm(name: &str) -> bool {
    (1..=ALGORITHM_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
}

fn all_options() -> String {
    TuningOption::ALL.map(TuningOption::as_str).join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Tuning {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_option_is_understood_in_its_units() {
        let all = read(
            "congestion=cubic, dscp=ef, user-timeout=1m, keepalive=1m/500s/3, notsent-lowat=64k, \
             max-pacing-rate=50mbit, mss=1400, fast-open=256",
        );
        let expected = Tuning {
            congestion: Some("cubic".into()),
            dscp: Some(46),
            user_timeout_ms: Some(60_000),
            keepalive: Some(Keepalive { idle_s: 60, interval_s: 500, probes: 3 }),
            notsent_lowat_bytes: Some(65_536),
            max_pacing_rate_bps: Some(50_000_000),
            mss_bytes: Some(1400),
            fast_open: Some(256),
        };
        assert_eq!(all, expected);
        for (text, same) in [
            ("dscp=0", "dscp=default"),
            ("dscp=cs0", "dscp=default"),
            ("dscp=34", "dscp=af41"),
            ("dscp=63", "dscp=63"),
            ("user-timeout=100ms", "user-timeout=100ms"),
            ("user-timeout=1h", "user-timeout=3600s"),
            ("notsent-lowat=1048576", "notsent-lowat=1m"),
            ("notsent-lowat=1025", "notsent-lowat=1025"),
            ("max-pacing-rate=64kbit", "max-pacing-rate=64kbit"),
            ("max-pacing-rate=400gbit", "max-pacing-rate=400gbit"),
            ("max-pacing-rate=1234567bit", "max-pacing-rate=1234567bit"),
            ("mss=88", "mss=88"),
            ("mss=32767", "mss=32767"),
        ] {
            assert_eq!(read(text).to_string(), same);
        }
    }

    #[test]
    fn bad_values_and_values_out_of_range_are_refused_with_what_is_allowed() {
        for text in [
            "congestion=",
            "congestion=Cubic",
            "congestion=a23456789012345x",
            "congestion=../x",
            "dscp=64",
            "dscp=-1",
            "dscp=EF",
            "dscp=af44",
            "user-timeout=30",
            "user-timeout=99ms",
            "user-timeout=61m",
            "user-timeout=99999999999999999999h",
            "keepalive=30",
            "keepalive=30s/10s",
            "keepalive=30s/10s/3/1",
            "keepalive=0s/10s/3",
            "keepalive=30s/1500ms/3",
            "keepalive=30s/10s/128",
            "keepalive=32768s/10s/3",
            "notsent-lowat=1023",
            "notsent-lowat=17m",
            "notsent-lowat=64kb",
            "notsent-lowat=4g",
            "max-pacing-rate=50",
            "max-pacing-rate=50mbps",
            "max-pacing-rate=63kbit",
            "max-pacing-rate=401gbit",
            "max-pacing-rate=99999999999gbit",
            "mss=87",
            "mss=32768",
            "mss=1k",
            "fast-open=0",
            "fast-open=65536",
        ] {
            let (key, value) = text.split_once('=').unwrap();
            let error = text.parse::<Tuning>().unwrap_err();
            let option = TuningOption::ALL.into_iter().find(|option| option.as_str() == key);
            let expected = TuningInvalid::Value { option: option.unwrap(), value: value.into() };
            assert_eq!(error, expected, "{text}");
            assert!(error.to_string().contains(option.unwrap().expected()), "{error}");
        }
    }

    #[test]
    fn unknown_repeated_and_unfinished_options_are_refused() {
        let unknown = "colour=red".parse::<Tuning>().unwrap_err();
        assert_eq!(unknown, TuningInvalid::Unknown("colour".into()));
        assert!(unknown.to_string().contains("congestion, dscp, user-timeout, keepalive"));
        let twice = "dscp=ef,dscp=cs1".parse::<Tuning>().unwrap_err();
        assert_eq!(twice, TuningInvalid::Twice(TuningOption::Dscp));
        for text in ["", "dscp", "dscp=ef,", "dscp=ef,,mss=88"] {
            assert!(matches!(text.parse::<Tuning>(), Err(TuningInvalid::NoValue(_))), "{text}");
        }
    }

    #[test]
    fn a_message_is_held_to_the_same_ranges() {
        let good = Tuning::base();
        assert_eq!(good.check_for_resource(), Ok(()));
        for wrong in [
            Tuning { dscp: Some(64), ..good.clone() },
            Tuning { congestion: Some("a b".into()), ..good.clone() },
            Tuning { mss_bytes: Some(1), ..good.clone() },
            Tuning { max_pacing_rate_bps: Some(u64::MAX), ..good.clone() },
            Tuning {
                keepalive: Some(Keepalive { idle_s: 1, interval_s: 1, probes: 0 }),
                ..good.clone()
            },
        ] {
            assert!(matches!(wrong.check(), Err(TuningInvalid::Value { .. })), "{wrong:?}");
        }
        let listener = Tuning { fast_open: Some(1), ..good };
        assert_eq!(listener.check(), Ok(()));
        let refused = TuningInvalid::ListenerOnly(TuningOption::FastOpen);
        assert_eq!(listener.check_for_resource(), Err(refused));
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read_again(
            dscp in proptest::option::of(0u8..64),
            timeout in 100u32..3_600_001,
            lowat in 1024u32..(16 << 20) + 1,
            rate in 64_000u64..400_000_000_001,
        ) {
            let tuning = Tuning {
                dscp,
                user_timeout_ms: Some(timeout),
                notsent_lowat_bytes: Some(lowat),
                max_pacing_rate_bps: Some(rate),
                ..Tuning::base()
            };
            prop_assert_eq!(tuning.to_string().parse::<Tuning>(), Ok(tuning));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,80}", value in ".{0,20}") {
            let _ = text.parse::<Tuning>();
            for option in TuningOption::ALL {
                let _ = Tuning::default().set(option.as_str(), &value);
            }
        }
    }
}
