//! How a NAT behaves (RFC 4787's words), and its text: `symmetric`, `eim/apdf/keep,timeout=2s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::lab::wire::{duration_text, parse_duration};

/// UDP mappings unless told otherwise: short enough to wait for in a test, as long as the impatient
/// home routers of RFC 4787's survey.
const UDP_TIMEOUT: Duration = Duration::from_secs(30);

/// Idle established TCP connections (RFC 5382, REQ-5: at least 2 hours 4 minutes).
const TCP_TIMEOUT: Duration = Duration::from_secs(7440);

/// Most mappings unless told otherwise.
const MAPPINGS: usize = 8192;

/// Most mappings: with as many ports shunned after a rebinding there is still always a free one.
pub(super) const MAPPINGS_MAX: usize = 30_000;

/// Longest timeout.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// When the same inside endpoint gets another external one (RFC 4787, section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// No translation.
    None,
    /// Never.
    #[default]
    EndpointIndependent,
    /// For another remote address.
    AddressDependent,
    /// For another remote address or port ("symmetric").
    AddressAndPortDependent,
}

/// Who may send to a mapping (RFC 4787, section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// No filter at all, not even a mapping is needed; only without translation.
    Open,
    /// Anyone.
    EndpointIndependent,
    /// Addresses the inside endpoint has sent to.
    AddressDependent,
    /// Endpoints the inside endpoint has sent to.
    #[default]
    AddressAndPortDependent,
}

/// Which external port a new mapping gets (RFC 4787, section 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortAssignment {
    /// The inside one; a random one if that is taken.
    #[default]
    Keep,
    /// A random one.
    Random,
    /// The one after the last given out, whoever got that.
    Sequential,
}

/// Which service gives inside hosts ports of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortMapping {
    /// Port Control Protocol (RFC 6887).
    Pcp,
    /// NAT Port Mapping Protocol (RFC 6886).
    NatPmp,
}

/// How the box behaves.
///
/// Text: a name of [`NAMED`] or `MAPPING/FILTERING/PORTS`, then options: `hairpin`, `inbound-refresh`
/// (each also `=off`), `timeout=2s`, `tcp-timeout=2h`-like times in seconds, `lifetime=60s` or `off`,
/// `mappings=100`, `portmap=pcp`, `nat-pmp` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatSettings {
    /// Mapping behaviour.
    pub mapping: Mapping,
    /// Filtering behaviour.
    pub filtering: Filtering,
    /// Port assignment.
    pub ports: PortAssignment,
    /// Inside hosts reach each other by their external endpoints, source external, filter obeyed.
    pub hairpin: bool,
    /// Inbound UDP refreshes a mapping, too (allowed by RFC 4787, REQ-6; Linux does). TCP always.
    pub inbound_refresh: bool,
    /// An idle UDP mapping or filter entry ends after this.
    pub udp_timeout: Duration,
    /// An idle established TCP connection ends after this.
    pub tcp_timeout: Duration,
    /// A mapping ends this long after it was made, however busy, and its port is not given out again.
    pub lifetime: Option<Duration>,
    /// Most mappings at once; the one idle longest makes room. At least 1, at most
    /// 30,000.
    pub mappings_max: usize,
    /// Inside hosts may ask for ports.
    pub port_mapping: Option<PortMapping>,
}

/// The names that stand for settings, with their explicit form and what they are.
pub const NAMED: [(&str, &str, &str); 8] = [
    ("none", "none/open", "a plain router: no translation, no filter"),
    ("firewall", "none/apdf", "no translation; inbound only as the answer to outbound"),
    ("full-cone", "eim/eif/keep", "anyone may answer: a DMZ host, a game console's dream"),
    ("address-restricted", "eim/adf/keep", "only addresses sent to may answer"),
    ("port-restricted", "eim/apdf/keep", "what most home routers are, Linux masquerade among them"),
    ("symmetric", "apdm/apdf/random", "another port for each destination: company firewalls"),
    ("symmetric-sequential", "apdm/apdf/sequential", "the same, but the next port is predictable"),
    ("cgn", "eim/apdf/random,hairpin", "a carrier's NAT as RFC 6888 wants it, with its own ports"),
];

impl NatSettings {
    /// These behaviours, everything else by default.
    pub const fn new(mapping: Mapping, filtering: Filtering, ports: PortAssignment) -> Self {
        NatSettings {
            mapping,
            filtering,
            ports,
            hairpin: false,
            inbound_refresh: false,
            udp_timeout: UDP_TIMEOUT,
            tcp_timeout: TCP_TIMEOUT,
            lifetime: None,
            mappings_max: MAPPINGS,
            port_mapping: None,
        }
    }

    /// Changes what the text names (a behaviour first, if at all), or nothing on an error.
    ///
    /// # Errors
    /// The message names the item and what would be right.
    pub fn update(&mut self, text: &str) -> Result<(), String> {
        let mut changed = *self;
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        for (index, item) in items.enumerate() {
            match behaviour(item).filter(|_| index == 0) {
                Some(behaviour) => {
                    let settings = behaviour.map_err(|why| format!("{item:?}: {why}"))?;
                    changed.mapping = settings.mapping;
                    changed.filtering = settings.filtering;
                    changed.ports = settings.ports;
                    changed.hairpin = settings.hairpin;
                }
                None => changed.set_option(item).map_err(|why| format!("{item:?}: {why}"))?,
            }
        }
        *self = changed;
        Ok(())
    }

    fn set_option(&mut self, item: &str) -> Result<(), String> {
        let (key, value) = item.split_once('=').unwrap_or((item, "on"));
        match key {
            "hairpin" => self.hairpin = switch(value)?,
            "inbound-refresh" => self.inbound_refresh = switch(value)?,
            "timeout" => self.udp_timeout = timeout(value)?,
            "tcp-timeout" => self.tcp_timeout = timeout(value)?,
            "lifetime" if value == "off" => self.lifetime = None,
            "lifetime" => self.lifetime = Some(timeout(value)?),
            "mappings" => {
                let most = value.parse().ok().filter(|most| (1..=MAPPINGS_MAX).contains(most));
                self.mappings_max = most.ok_or(format!("needs 1 to {MAPPINGS_MAX}"))?;
            }
            "portmap" => {
                self.port_mapping = match value {
                    "pcp" => Some(PortMapping::Pcp),
                    "nat-pmp" => Some(PortMapping::NatPmp),
                    "off" => None,
                    _ => return Err("is pcp, nat-pmp or off".into()),
                }
            }
            _ => {
                let names: Vec<_> = NAMED.iter().map(|(name, ..)| *name).collect();
                return Err(format!(
                    "unknown; first one of {} or MAPPING/FILTERING/PORTS, then hairpin, \
                     inbound-refresh, timeout, tcp-timeout, lifetime, mappings, portmap",
                    names.join(", ")
                ));
            }
        }
        Ok(())
    }

    fn behaviour_text(&self) -> String {
        let ports = match (self.mapping, self.ports) {
            (Mapping::None, _) => "",
            (_, PortAssignment::Keep) => "/keep",
            (_, PortAssignment::Random) => "/random",
            (_, PortAssignment::Sequential) => "/sequential",
        };
        let mapping = match self.mapping {
            Mapping::None => "none",
            Mapping::EndpointIndependent => "eim",
            Mapping::AddressDependent => "adm",
            Mapping::AddressAndPortDependent => "apdm",
        };
        let filtering = match self.filtering {
            Filtering::Open => "open",
            Filtering::EndpointIndependent => "eif",
            Filtering::AddressDependent => "adf",
            Filtering::AddressAndPortDependent => "apdf",
        };
        format!("{mapping}/{filtering}{ports}")
    }
}

impl Default for NatSettings {
    /// `port-restricted`: what most home routers are.
    fn default() -> Self {
        NatSettings::new(Mapping::default(), Filtering::default(), PortAssignment::default())
    }
}

impl FromStr for NatSettings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let first = text.split(',').next().unwrap_or_default().trim();
        if behaviour(first).is_none() {
            return Err(format!(
                "{first:?}: start with {} or MAPPING/FILTERING/PORTS as in eim/apdf/keep",
                NAMED.map(|(name, ..)| name).join(", ")
            ));
        }
        let mut settings = NatSettings::default();
        settings.update(text)?;
        Ok(settings)
    }
}

impl fmt::Display for NatSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.behaviour_text();
        if self.hairpin {
            text.push_str(",hairpin");
        }
        if let Some((name, ..)) = NAMED.iter().find(|(_, explicit, _)| *explicit == text) {
            text = (*name).to_owned();
        }
        if self.inbound_refresh {
            text.push_str(",inbound-refresh");
        }
        if self.udp_timeout != UDP_TIMEOUT {
            text.push_str(&format!(",timeout={}", duration_text(self.udp_timeout)));
        }
        if self.tcp_timeout != TCP_TIMEOUT {
            text.push_str(&format!(",tcp-timeout={}", duration_text(self.tcp_timeout)));
        }
        if let Some(lifetime) = self.lifetime {
            text.push_str(&format!(",lifetime={}", duration_text(lifetime)));
        }
        if self.mappings_max != MAPPINGS {
            text.push_str(&format!(",mappings={}", self.mappings_max));
        }
        match self.port_mapping {
            Some(PortMapping::Pcp) => text.push_str(",portmap=pcp"),
            Some(PortMapping::NatPmp) => text.push_str(",portmap=nat-pmp"),
            None => {}
        }
        f.write_str(&text)
    }
}

/// The settings a name or an explicit behaviour stands for; `None` when the item is neither.
fn behaviour(item: &str) -> Option<Result<NatSettings, String>> {
    let named = NAMED.iter().find(|(name, ..)| *name == item);
    if let Some((_, explicit, _)) = named {
        let (explicit, hairpin) = match explicit.strip_suffix(",hairpin") {
            Some(explicit) => (explicit, true),
            None => (*explicit, false),
        };
        return Some(parts(explicit).map(|settings| NatSettings { hairpin, ..settings }));
    }
    (item.contains('/') && !item.contains('=')).then(|| parts(item))
}

fn parts(explicit: &str) -> Result<NatSettings, String> {
    let mut parts = explicit.split('/');
    let mapping = match parts.next() {
        Some("none") => Mapping::None,
        Some("eim") => Mapping::EndpointIndependent,
        Some("adm") => Mapping::AddressDependent,
        Some("apdm") => Mapping::AddressAndPortDependent,
        _ => return Err("the mapping is none, eim, adm or apdm".into()),
    };
    let filtering = match parts.next() {
        Some("open") if mapping == Mapping::None => Filtering::Open,
        Some("open") => return Err("open needs mapping none; use eif to admit anyone".into()),
        Some("eif") => Filtering::EndpointIndependent,
        Some("adf") => Filtering::AddressDependent,
        Some("apdf") => Filtering::AddressAndPortDependent,
        _ => return Err("the filtering is eif, adf or apdf (or open, with mapping none)".into()),
    };
    let ports = match parts.next() {
        None if mapping == Mapping::None => PortAssignment::Keep,
        Some("keep") if mapping != Mapping::None => PortAssignment::Keep,
        Some("random") if mapping != Mapping::None => PortAssignment::Random,
        Some("sequential") if mapping != Mapping::None => PortAssignment::Sequential,
        _ if mapping == Mapping::None => return Err("without a mapping there are no ports".into()),
        _ => return Err("the ports are keep, random or sequential".into()),
    };
    match parts.next() {
        None => Ok(NatSettings::new(mapping, filtering, ports)),
        Some(_) => Err("has more than MAPPING/FILTERING/PORTS".into()),
    }
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("takes no value, on or off".into()),
    }
}

fn timeout(value: &str) -> Result<Duration, String> {
    let timeout = parse_duration(value)?;
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err(format!("needs more than 0s and at most {}s", TIMEOUT_MAX.as_secs()));
    }
    Ok(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_names_and_explicit_forms() {
        for (name, explicit, what) in NAMED {
            let named: NatSettings = name.parse().unwrap();
            assert_eq!(explicit.parse(), Ok(named), "{what}");
            assert_eq!(named.to_string(), name);
        }
        let explicit: NatSettings =
            "adm/adf/sequential,hairpin,timeout=2s,lifetime=1.5s,portmap=pcp".parse().unwrap();
        assert_eq!(
            explicit.to_string(),
            "adm/adf/sequential,hairpin,timeout=2s,lifetime=1.5s,portmap=pcp"
        );
        let mut changed = explicit;
        changed.update("lifetime=off,hairpin=off,portmap=off").unwrap();
        assert_eq!(changed.to_string(), "adm/adf/sequential,timeout=2s");
        changed.update("symmetric").unwrap();
        assert_eq!(changed.to_string(), "symmetric,timeout=2s", "the rest stays");
        for (text, remedy) in [
            ("", "start with none, firewall, full-cone"),
            ("cone", "start with none, firewall, full-cone"),
            ("eim/open/keep", "use eif"),
            ("eim/apdf", "keep, random or sequential"),
            ("none/apdf/keep", "no ports"),
            ("xim/apdf/keep", "none, eim, adm or apdm"),
            ("symmetric,timeout=0s", "more than 0s"),
            ("symmetric,portmap=upnp", "pcp, nat-pmp or off"),
            ("symmetric,mappings=0", "1 to 30000"),
            ("symmetric,full-cone", "unknown"),
        ] {
            let error = text.parse::<NatSettings>().unwrap_err();
            assert!(error.contains(remedy), "{text}: {error}");
        }
    }
}
