//! The firewall rules that would mend a session's path, from what its ends report and the addresses the broker knows. Pure.
//!
//! They are told as any firewall can take them: whose network, which way the first packet goes, protocol, address and ports;
//! replies pass the other way.
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Where packets of sessions have to get to, as far as the broker knows.
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Places {
    /// Host name or address of the gateway, as ends dial it.
    pub gateway: String,
    /// Its port: TCP, and STUN and TURN by UDP.
    pub gateway_port: u16,
    /// `HOST:PORT` of the relay (TURN, UDP), if that is another server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// UDP ports that the gateway relays on, first and last; absent if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u16>>, min_items = 2, max_items = 2)]
    pub relay_ports: Option<(u16, u16)>,
    /// Where the agent listens on its managed port, unless the resource's policy hides it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub agent_managed: Vec<SocketAddr>,
}

/// A rule for a firewall.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRule {
    /// Whose network: `client`, `agent`, `gateway`; `here`: where the report was made.
    pub at: String,
    /// What it would mend, see [`crate::path_reason`].
    pub reason: String,
    /// `out` or `in`: which way the first packet goes.
    pub direction: String,
    /// `udp` or `tcp`.
    pub protocol: String,
    /// Its destination, a name or an address; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The destination's ports, `443` or `49152-65535`; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
}

/// Codes whose rules say all that would mend them. For others they are one way among several.
const WHOLE: [&str; 3] = ["udp_egress_blocked", "relay_unreachable", "gateway_unreachable"];

/// Whether the rules for `code` say all that would mend it.
#[must_use]
pub fn is_whole(code: &str) -> bool {
    WHOLE.contains(&code)
}

/// What would mend `code`, which `end` (as in [`FirewallRule::at`]) reports; none if no rule can, or its addresses are not
/// known.
#[must_use]
pub fn rules(end: &str, code: &str, places: &Places) -> Vec<FirewallRule> {
    let rule = |at: &str, direction: &str, to: Option<&str>, ports: Option<String>| FirewallRule {
        at: at.to_owned(),
        reason: code.to_owned(),
        direction: direction.to_owned(),
        protocol: "udp".into(),
        to: to.map(str::to_owned),
        ports,
    };
    let gateway = (!places.gateway.is_empty()).then_some(places.gateway.as_str());
    let to_gateway = |at: &str, direction: &str, ports: String| {
        gateway.map(|host| rule(at, direction, Some(host), Some(ports)))
    };
    let port = places.gateway_port.to_string();
    let managed = || {
        let listens = places.agent_managed.iter();
        listens
            .map(|at| rule("agent", "in", Some(&at.ip().to_string()), Some(at.port().to_string())))
    };
    match code {
        "udp_egress_blocked" => to_gateway(end, "out", port).into_iter().collect(),
        "gateway_unreachable" => {
            let tcp = |rule| FirewallRule { protocol: "tcp".into(), ..rule };
            to_gateway(end, "out", port).map(tcp).into_iter().collect()
        }
        "relay_unreachable" => match places.relay.as_deref().and_then(|it| it.rsplit_once(':')) {
            Some((host, port)) => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                vec![rule(end, "out", Some(host), Some(port.to_owned()))]
            }
            None => {
                let relayed = places.relay_ports.map(|(first, last)| format!("{first}-{last}"));
                let ports = || [Some(port.clone()), relayed.clone()].into_iter().flatten();
                let both = ports().map(|ports| to_gateway(end, "out", ports));
                both.chain(ports().map(|ports| to_gateway("gateway", "in", ports)))
                    .flatten()
                    .collect()
            }
        },
        "peer_silent" => ["client", "agent"]
            .map(|at| rule(at, "out", None, None))
            .into_iter()
            .chain(managed())
            .collect(),
        crate::path_reason::HARD_NAT_BOTH_SIDES => managed().collect(),
        "hard_nat" if end == "agent" => managed().collect(),
        _ => Vec::new(),
    }
}

impl fmt::Display for FirewallRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, direction, protocol, to, ports, .. } = self;
        let whose =
            if at == "here" { "this network".into() } else { format!("the {at}'s network") };
        let to = to.as_deref().unwrap_or("any address");
        let protocol = protocol.to_ascii_uppercase();
        if direction == "out" {
            write!(f, "let {protocol} out from {whose} to {to}")?;
        } else {
            write!(f, "let {protocol} in from anywhere, at {whose}, to {to}")?;
        }
        match ports {
            Some(ports) if ports.contains('-') => write!(f, " ports {ports}")?,
            Some(port) => write!(f, " port {port}")?,
            None => {}
        }
        f.write_str(if direction == "out" { ", and replies in" } else { ", and replies out" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places {
            gateway: "198.51.100.7".into(),
            gateway_port: 443,
            relay: None,
            relay_ports: Some((50_000, 50_999)),
            agent_managed: vec!["10.0.0.5:3390".parse().unwrap()],
        }
    }

    fn texts(end: &str, code: &str, places: &Places) -> Vec<String> {
        rules(end, code, places).iter().map(FirewallRule::to_string).collect()
    }

    #[test]
    fn a_blocked_end_is_told_where_to_let_udp_out_to() {
        let rule = "let UDP out from the client's network to 198.51.100.7 port 443, and replies in";
        assert_eq!(texts("client", "udp_egress_blocked", &places()), [rule]);
        let rule = "let TCP out from this network to 198.51.100.7 port 443, and replies in";
        assert_eq!(texts("here", "gateway_unreachable", &places()), [rule]);
        assert!(texts("client", "udp_egress_blocked", &Places::default()).is_empty());
    }

    #[test]
    fn a_relay_that_is_not_reached_is_told_with_its_ports_on_both_sides() {
        let said = [
            "let UDP out from the agent's network to 198.51.100.7 port 443, and replies in",
            "let UDP out from the agent's network to 198.51.100.7 ports 50000-50999, and replies in",
            "let UDP in from anywhere, at the gateway's network, to 198.51.100.7 port 443, and replies out",
            "let UDP in from anywhere, at the gateway's network, to 198.51.100.7 ports 50000-50999, and replies out",
        ];
        assert_eq!(texts("agent", "relay_unreachable", &places()), said);
        for (relay, host) in
            [("turn.example:3478", "turn.example"), ("[2001:db8::7]:3478", "2001:db8::7")]
        {
            let elsewhere = Places { relay: Some(relay.into()), ..places() };
            let said = format!(
                "let UDP out from the client's network to {host} port 3478, and replies in"
            );
            assert_eq!(texts("client", "relay_unreachable", &elsewhere), [said]);
        }
    }

    #[test]
    fn a_managed_port_that_is_known_is_told_where_forwarding_it_would_help() {
        let forward = "let UDP in from anywhere, at the agent's network, to 10.0.0.5 port 3390, and replies out";
        for (end, code) in
            [("client", "hard_nat_both_sides"), ("agent", "hard_nat"), ("client", "peer_silent")]
        {
            assert_eq!(texts(end, code, &places()).last().unwrap(), forward, "{code}");
        }
        let unknown = Places { agent_managed: Vec::new(), ..places() };
        assert!(rules("client", "hard_nat_both_sides", &unknown).is_empty());
        let open = "let UDP out from the client's network to any address, and replies in";
        assert_eq!(texts("agent", "peer_silent", &unknown)[0], open);
        assert!(rules("client", "sunspots", &places()).is_empty());
    }
}
