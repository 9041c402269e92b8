//! What a network forbids: UDP, TCP ports, a direction. Text: `udp=reject,tcp=443,blackhole=in`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::Reason;
use crate::lab::packet::{Flow, Protocol};

/// Most addresses or ports in a list: each packet is compared with all of them.
const LIST_MAX: usize = 64;

/// What happens to UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UdpPolicy {
    /// It passes.
    #[default]
    Allow,
    /// Both directions are dropped silently.
    Drop,
    /// Outbound is answered by "port unreachable", inbound dropped.
    Reject,
    /// Only inbound is dropped: nothing answers any more.
    DropInbound,
    /// Only outbound is dropped.
    DropOutbound,
    /// Only to and from these remote addresses; the rest is dropped.
    Only(Vec<IpAddr>),
}

/// What happens to TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TcpPolicy {
    /// It passes.
    #[default]
    Allow,
    /// It is dropped.
    Drop,
    /// Only to these remote ports; the rest is dropped.
    Ports(Vec<u16>),
}

/// Whole directions that are swallowed, every protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blackhole {
    /// None.
    #[default]
    Off,
    /// What comes from outside.
    In,
    /// What goes outside.
    Out,
    /// Everything.
    Both,
}

/// What the box forbids, whatever its mappings say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// UDP.
    pub udp: UdpPolicy,
    /// TCP.
    pub tcp: TcpPolicy,
    /// Everything of a direction.
    pub blackhole: Blackhole,
}

impl Policy {
    /// Changes what the text names, all of it or, on an error, nothing.
    ///
    /// # Errors
    /// The message names the item and what would be right.
    pub fn update(&mut self, text: &str) -> Result<(), String> {
        let mut changed = self.clone();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            let set = match key {
                "udp" => udp(value).map(|udp| changed.udp = udp),
                "tcp" => tcp(value).map(|tcp| changed.tcp = tcp),
                "blackhole" => blackhole(value).map(|blackhole| changed.blackhole = blackhole),
                _ => Err("unknown; the keys are udp, tcp, blackhole".into()),
            };
            set.map_err(|why| format!("{item:?}: {why}"))?;
        }
        *self = changed;
        Ok(())
    }

    pub(super) fn outbound(&self, flow: &Flow) -> Result<(), Reason> {
        if matches!(self.blackhole, Blackhole::Out | Blackhole::Both) {
            return Err(Reason::Blackhole);
        }
        self.protocols(flow, flow.destination.ip(), flow.destination.port(), UdpPolicy::DropInbound)
    }

    pub(super) fn inbound(&self, flow: &Flow) -> Result<(), Reason> {
        if matches!(self.blackhole, Blackhole::In | Blackhole::Both) {
            return Err(Reason::Blackhole);
        }
        self.protocols(flow, flow.source.ip(), flow.source.port(), UdpPolicy::DropOutbound)
    }

    /// `harmless` is the one-way policy that does not concern this direction. Later fragments carry
    /// no port and their protocol as a number; without their first they are nothing.
    fn protocols(
        &self,
        flow: &Flow,
        remote: IpAddr,
        port: u16,
        harmless: UdpPolicy,
    ) -> Result<(), Reason> {
        let udp_passes = || match &self.udp {
            UdpPolicy::Allow => true,
            UdpPolicy::Only(addresses) => addresses.contains(&remote),
            other => *other == harmless,
        };
        let tcp_passes = || match &self.tcp {
            TcpPolicy::Allow => true,
            TcpPolicy::Drop => false,
            TcpPolicy::Ports(ports) => ports.contains(&port),
        };
        match flow.protocol {
            Protocol::Udp if !udp_passes() => Err(Reason::UdpPolicy),
            Protocol::Tcp if !tcp_passes() => Err(Reason::TcpPolicy),
            _ => Ok(()),
        }
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut policy = Policy::default();
        policy.update(text)?;
        Ok(policy)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items = Vec::new();
        match &self.udp {
            UdpPolicy::Allow => {}
            UdpPolicy::Drop => items.push("udp=drop".into()),
            UdpPolicy::Reject => items.push("udp=reject".into()),
            UdpPolicy::DropInbound => items.push("udp=drop-in".into()),
            UdpPolicy::DropOutbound => items.push("udp=drop-out".into()),
            UdpPolicy::Only(addresses) => items.push(format!("udp=only:{}", joined(addresses))),
        }
        match &self.tcp {
            TcpPolicy::Allow => {}
            TcpPolicy::Drop => items.push("tcp=drop".into()),
            TcpPolicy::Ports(ports) => items.push(format!("tcp={}", joined(ports))),
        }
        match self.blackhole {
            Blackhole::Off => {}
            Blackhole::In => items.push("blackhole=in".into()),
            Blackhole::Out => items.push("blackhole=out".into()),
            Blackhole::Both => items.push("blackhole=both".into()),
        }
        f.write_str(&items.join(","))
    }
}

fn udp(value: &str) -> Result<UdpPolicy, String> {
    Ok(match value {
        "allow" => UdpPolicy::Allow,
        "drop" => UdpPolicy::Drop,
        "reject" => UdpPolicy::Reject,
        "drop-in" => UdpPolicy::DropInbound,
        "drop-out" => UdpPolicy::DropOutbound,
        _ => UdpPolicy::Only(value.strip_prefix("only:").and_then(list).ok_or(
            "needs allow, drop, reject, drop-in, drop-out or only:ADDRESS+ADDRESS (at most 64)",
        )?),
    })
}

fn tcp(value: &str) -> Result<TcpPolicy, String> {
    Ok(match value {
        "allow" => TcpPolicy::Allow,
        "drop" => TcpPolicy::Drop,
        _ => TcpPolicy::Ports(
            list(value).ok_or("needs allow, drop or ports as in 443+8443 (at most 64)")?,
        ),
    })
}

fn blackhole(value: &str) -> Result<Blackhole, String> {
    Ok(match value {
        "off" => Blackhole::Off,
        "in" => Blackhole::In,
        "out" => Blackhole::Out,
        "both" | "" => Blackhole::Both,
        _ => return Err("needs in, out, both or off".into()),
    })
}

fn list<T: FromStr>(value: &str) -> Option<Vec<T>> {
    let items: Vec<T> = value.split('+').map(|item| item.parse().ok()).collect::<Option<_>>()?;
    (items.len() <= LIST_MAX).then_some(items)
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_survive_their_text_and_refuse_nonsense() {
        for text in [
            "",
            "udp=drop",
            "udp=reject,tcp=443+8443",
            "udp=only:192.0.2.1+2001:db8::1,tcp=drop",
            "udp=drop-in",
            "udp=drop-out,blackhole=both",
            "blackhole=in",
            "blackhole=out",
        ] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        let mut policy: Policy = "udp=drop,tcp=443".parse().unwrap();
        policy.update("udp=allow").unwrap();
        assert_eq!(policy.to_string(), "tcp=443");
        for text in ["udp=only:", "udp=no", "tcp=70000", "blackhole=up", "icmp=drop"] {
            let error = text.parse::<Policy>().unwrap_err();
            assert!(error.contains("needs") || error.contains("the keys are"), "{text}: {error}");
        }
    }
}
