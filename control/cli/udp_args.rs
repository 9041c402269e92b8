//! How commands that open sessions are told about UDP.
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Deserializer};
use switchback_control::client::{Redundancy, SessionConfig};
use switchback_control::udp::{NetworkFilter, UdpOptions};
use switchback_engine::Tuning;

/// Options about UDP.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "UDP options")]
pub(crate) struct UdpArgs {
    /// Do without UDP: no direct path is looked for
    #[arg(long, env = "SWITCHBACK_NO_UDP", conflicts_with_all = ["udp_ports", "udp_networks"])]
    no_udp: bool,
    /// Local UDP ports to use, for firewalls that let only some out [default: any]
    #[arg(long, value_name = "FIRST-LAST", env = "SWITCHBACK_UDP_PORTS")]
    udp_ports: Option<PortRange>,
    /// Networks whose addresses are offered to the other end, as they are or as a NAT shows them, and accepted from it; with
    /// `!` in front, those that are not: 10.0.0.0/8,!10.9.0.0/16 [default: all]
    #[arg(long, value_name = "NETWORK,...", env = "SWITCHBACK_UDP_NETWORKS")]
    udp_networks: Option<Networks>,
    /// Do not ask the router for a port (PCP, NAT-PMP, UPnP)
    #[arg(long, env = "SWITCHBACK_NO_PORT_MAPPING")]
    no_port_mapping: bool,
    /// Mark UDP packets with this code point: ef, af11 to af43, cs0 to cs7, le, va, default or 0-63 [default: none]
    #[arg(long, value_name = "NAME|0-63", env = "SWITCHBACK_DSCP")]
    dscp: Option<Dscp>,
    /// What second copies of small writes may cost while a path is lossy or little known: a share of the session's bytes in
    /// percent or a rate in kbit/s, whichever is more; or `off` [default: 3,64]
    #[arg(long, value_name = "PERCENT,KBIT/S|off", env = "SWITCHBACK_REDUNDANCY")]
    redundancy: Option<Copies>,
}

impl UdpArgs {
    /// How a client's session is held.
    pub(crate) fn session(&self) -> SessionConfig {
        let mut config = SessionConfig::default();
        if let Some(Copies(limits)) = self.redundancy {
            config.redundancy = limits;
        }
        config
    }

    /// What they come to, for a client.
    pub(crate) fn options(&self) -> UdpOptions {
        UdpOptions {
            enabled: !self.no_udp,
            ports: self.udp_ports.clone().map(|PortRange(ports)| ports),
            networks: self.udp_networks.clone().map(|Networks(filter)| filter).unwrap_or_default(),
            port_mapping: !self.no_port_mapping,
            dscp: self.dscp.map(|Dscp(point)| point),
            ..UdpOptions::default()
        }
    }
}

/// `FIRST-LAST`, or one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortRange(pub(crate) RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("`{text}` is no port: it must be 1 to 65535")),
        };
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!("{first} comes after {last}; write FIRST-LAST"));
        }
        Ok(Self(first..=last))
    }
}

/// Networks to use and not to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Networks(pub(crate) NetworkFilter);

impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut filter = NetworkFilter::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (list, network) = match part.strip_prefix('!') {
                Some(network) => (&mut filter.deny, network),
                None => (&mut filter.allow, part),
            };
            list.push(network.parse().map_err(|error| format!("{error}"))?);
        }
        Ok(Self(filter))
    }
}

/// A differentiated services code point, by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dscp(pub(crate) u8);

impl FromStr for Dscp {
    type Err = String;

    /// As the resource option of the same name.
    fn from_str(text: &str) -> Result<Self, String> {
        let tuning = format!("dscp={text}").parse::<Tuning>().map_err(|error| error.to_string())?;
        let only = tuning == Tuning { dscp: tuning.dscp, ..Tuning::default() };
        tuning.dscp.filter(|_| only).map(Self).ok_or_else(|| format!("`{text}` is no code point"))
    }
}

/// What second copies of small writes may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copies(pub(crate) Option<Redundancy>);

impl FromStr for Copies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let wanted = || format!("`{text}` must be `off` or PERCENT,KBIT/S such as 3,64");
        let (percent, kbit) = text.split_once(',').ok_or_else(wanted)?;
        let percent: u8 = percent.trim().parse().map_err(|_| wanted())?;
        let kbit: u32 = kbit.trim().parse().map_err(|_| wanted())?;
        if percent > 100 || kbit > REDUNDANCY_KBIT_MAX {
            return Err(format!("at most 100 percent and {REDUNDANCY_KBIT_MAX} kbit/s"));
        }
        Ok(Self(Some(Redundancy { percent, bytes_per_second: kbit * 125 })))
    }
}

/// Most a user may allow, kbit/s: more than small writes ever come to, and its bytes fit their counter.
const REDUNDANCY_KBIT_MAX: u32 = 1_000_000;

impl<'de> Deserialize<'de> for Copies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Dscp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Networks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_read_and_their_mistakes_named() {
        assert_eq!("50000-50100".parse(), Ok(PortRange(50_000..=50_100)));
        assert_eq!("3390".parse(), Ok(PortRange(3390..=3390)));
        for (text, wanted) in [
            ("0-5", "1 to 65535"),
            ("9-5", "comes after"),
            ("a", "no port"),
            ("1-70000", "no port"),
        ] {
            let said = text.parse::<PortRange>().unwrap_err();
            assert!(said.contains(wanted), "{text}: {said}");
        }
    }

    #[test]
    fn code_points_have_names_and_numbers() {
        assert_eq!("ef".parse(), Ok(Dscp(46)));
        assert_eq!("10".parse(), Ok(Dscp(10)));
        for text in ["64", "best", "", "ef,mss=1400"] {
            assert!(text.parse::<Dscp>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_cost_of_copies_is_a_share_and_a_rate_or_nothing() {
        assert_eq!("3,64".parse(), Ok(Copies(Some(Redundancy::default()))));
        assert_eq!("off".parse(), Ok(Copies(None)));
        let generous = Redundancy { percent: 100, bytes_per_second: 125_000_000 };
        assert_eq!("100, 1000000".parse(), Ok(Copies(Some(generous))));
        for text in ["", "3", "on", "101,64", "3,1000001", "-1,64", "3%,64"] {
            assert!(text.parse::<Copies>().is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_allowed_and_denied() {
        let Networks(filter) = "10.0.0.0/8, !10.9.0.0/16".parse().unwrap();
        assert!(filter.allows([10, 1, 0, 1].into()) && !filter.allows([10, 9, 0, 1].into()));
        assert!(!filter.allows([192, 0, 2, 1].into()));
        assert!("10.0.0.0/33".parse::<Networks>().unwrap_err().contains("no network"));
    }
}
