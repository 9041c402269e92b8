//! Tuning as people give it: `--tuning KEY=VALUE,...`, or a table of a configuration file.
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use switchback_engine::Tuning;

/// What `serve --help` says.
pub(crate) const LISTENER_HELP: &str = "\
Socket options of the listener and of every connection it accepts, separated by commas:

  congestion=NAME          congestion control, e.g. cubic; must be in the kernel
  dscp=NAME|0-63           ef, af11 to af43, cs0 to cs7, le, va, default
  user-timeout=TIME        give up on unacknowledged data, 100ms to 1h [default: 30s]
  keepalive=IDLE/EVERY/N   probe a silent peer [default: 30s/10s/3]
  notsent-lowat=BYTES      unsent bytes kept in the kernel, 1k to 16m [default: 128k]
  max-pacing-rate=RATE     cap of each connection, 64kbit to 400gbit
  mss=BYTES                largest segment, 88 to 32767
  fast-open=N              pending TCP Fast Open requests; needs net.ipv4.tcp_fastopen=2 or 3

All are tried at the start; one that this kernel refuses is named with the reason. In the configuration file:

  [tuning]
  congestion = \"cubic\"
  notsent-lowat = \"64k\"";

/// What `agent --help` says about options of a resource.
pub(crate) const RESOURCE_HELP: &str = "\
A service and the name users connect to; repeatable. Options follow after `;` and hold for its connections, here and at \
the gateway, over the gateway's own --tuning:

  udp=prefer               what may carry its sessions: the best of all (the default), or
      require              only a direct UDP path; without one the session ends
      relay-only           UDP through the gateway, never direct: the ends do not learn each other's addresses
      off                  TCP only
  standby=warm|cold        keep TCP and a relay ready beside UDP (warm, the default), or (cold) dial TCP anew, and ask
                           for a relay, when UDP falls silent: one pause of some RTTs, and no place at the gateway
      two-gateways         as warm, and TCP through a second gateway where there is one: when a gateway dies, nothing
                           has to be dialled
  shadow=tcp:HOST:PORT     connect watchers to this service instead of showing what passes (they need --control)
  shadow-view=tcp:...      the same for a service that only shows, e.g. x11vnc -viewonly
  title=TEXT               what people see in the feed in place of the name
  icon=NAME folder=A/B tags=prod+ssh   how the feed shows it, and what policies find it by
  pool=breadth|depth       of several agents that offer it, the one with the fewest sessions (breadth, the default) or the
                           most (depth) gets the next
  max-sessions=N           sessions of it at this agent at once; the rest go to other agents
  health=use|probe         new sessions go where the service was reached when it was last used (use, the default), or
                           when the agent last connected to it, every 30s (probe)
  proxy=v2                 send the PROXY protocol's header, so that the service sees the client's address
  congestion=NAME          congestion control, e.g. cubic; in the kernels of both machines
  dscp=NAME|0-63           ef, af11 to af43, cs0 to cs7, le, va, default
  user-timeout=TIME        give up on unacknowledged data, 100ms to 1h
  keepalive=IDLE/EVERY/N   probe a silent peer, e.g. 30s/10s/3
  notsent-lowat=BYTES      unsent bytes kept in the kernel, 1k to 16m
  max-pacing-rate=RATE     cap of each connection, 64kbit to 400gbit; never above the gateway's
  mss=BYTES                largest segment to the service, 88 to 32767

  --resource 'rdp=tcp:10.0.0.5:3389;dscp=ef;max-pacing-rate=50mbit;proxy=v2'
  --resource 'game=udp:127.0.0.1:9000;udp=require'

In the configuration file also as a table:

  [[resource]]
  name = \"rdp\"
  target = \"tcp:10.0.0.5:3389\"
  dscp = \"ef\"
  proxy = \"v2\"";

/// A tuning that was written correctly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TuningSpec(pub(crate) Tuning);

impl TuningSpec {
    /// Option by option, the first where it says something, else the second.
    pub(crate) fn over(first: Option<Self>, second: Option<Self>) -> Option<Self> {
        match (first, second) {
            (Some(Self(first)), Some(Self(second))) => Some(Self(first.over(&second))),
            (first, second) => first.or(second),
        }
    }
}

impl FromStr for TuningSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|invalid: switchback_engine::TuningInvalid| invalid.to_string())
    }
}

impl<'de> Deserialize<'de> for TuningSpec {
    /// From a table, or from the text of the flag.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Spec;
        impl<'de> Visitor<'de> for Spec {
            type Value = TuningSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of socket options")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<TuningSpec, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TuningSpec, A::Error> {
                let mut tuning = Tuning::default();
                while let Some(key) = map.next_key::<String>()? {
                    let Scalar(value) = map.next_value()?;
                    tuning.set(&key, &value).map_err(A::Error::custom)?;
                }
                Ok(TuningSpec(tuning))
            }
        }
        deserializer.deserialize_any(Spec)
    }
}

/// The text of a string or a whole number: `mss = 1400` is `mss = "1400"`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scalar(pub(crate) String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a whole number")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.into()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use switchback_engine::TuningOption;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct File {
        tuning: TuningSpec,
    }

    fn file(text: &str) -> Result<Tuning, String> {
        toml::from_str(text).map(|File { tuning }| tuning.0).map_err(|error| error.to_string())
    }

    #[test]
    fn a_table_and_the_flag_say_the_same() {
        let TuningSpec(flag) = "dscp=ef,mss=1400,notsent-lowat=64k".parse().unwrap();
        let table = "[tuning]\ndscp = \"ef\"\nmss = 1400\nnotsent-lowat = 65536\n";
        assert_eq!(file(table), Ok(flag.clone()));
        assert_eq!(file("tuning = \"dscp=ef,mss=1400,notsent-lowat=64k\""), Ok(flag));
    }

    #[test]
    fn a_wrong_key_or_value_is_named_with_what_is_allowed() {
        for (text, wanted) in [
            ("[tuning]\ncolour = \"red\"", "no option `colour`; there are congestion, dscp"),
            ("[tuning]\nmss = 5", "mss: `5` is not allowed; expected 88 to 32767"),
            ("[tuning]\nmss = -1", "`-1` is not allowed"),
            ("[tuning]\nmss = 1.5", "a string or a whole number"),
            ("tuning = 5", "a table of socket options"),
        ] {
            let said = file(text).unwrap_err();
            assert!(said.contains(wanted), "{text}: {said}");
        }
    }

    #[test]
    fn the_help_names_every_option() {
        for option in TuningOption::ALL {
            let line = format!("\n  {option}=");
            assert!(LISTENER_HELP.contains(&line), "{option}");
            let for_resources = option != TuningOption::FastOpen;
            assert_eq!(RESOURCE_HELP.contains(&line), for_resources, "{option}");
        }
    }
}
