//! Topologies with names and parameters, as in `pair:client-nat=symmetric,client-link=4g,loss=1%`.
//!
//! All have the hosts `client`, `agent` and `server` (two addresses, for gateways and STUN), each with
//! a link of its name, and for each router a link out: `client-wan` and so on. Addresses are private
//! ones and documentation ranges only. A parameter's value goes on until the next one's
//! name, so that settings of several items need no quotes.

use super::LabError;
use super::topology::{KernelRouter, Topology};

/// A topology with a name.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// What it is asked for by.
    pub name: &'static str,
    /// In words.
    pub summary: &'static str,
    /// Its parameters: name, default, what it is.
    pub parameters: &'static [(&'static str, &'static str, &'static str)],
    build: fn(&Parameters) -> Result<Topology, LabError>,
}

const NAT: &str = "a NAT's name or MAPPING/FILTERING/PORTS, with options";
const LINK: &str = "a link preset or items, seen from the host: up is its upload";

/// Parameters that every topology has.
const LINKS: [(&str, &str, &str); 3] = [
    ("client-link", "perfect", LINK),
    ("agent-link", "perfect", LINK),
    ("server-link", "perfect", LINK),
];

/// All topologies with names.
pub const NAMED: [Named; 6] = [
    Named {
        name: "pair",
        summary: "client - client-nat - internet - agent-nat - agent, and a server",
        parameters: &[
            ("client-nat", "port-restricted", NAT),
            ("agent-nat", "port-restricted", NAT),
            LINKS[0],
            LINKS[1],
            LINKS[2],
        ],
        build: |with| pair(with, Families::V4),
    },
    Named {
        name: "double-nat",
        summary: "as pair, with a carrier's NAT (client-cgn) between client-nat and the internet",
        parameters: &[
            ("client-nat", "port-restricted", NAT),
            ("client-cgn", "cgn", NAT),
            ("agent-nat", "port-restricted", NAT),
            LINKS[0],
            LINKS[1],
            LINKS[2],
        ],
        build: double_nat,
    },
    Named {
        name: "same-lan",
        summary: "client and agent behind one NAT, lan-nat, in one network",
        parameters: &[("lan-nat", "port-restricted", NAT), LINKS[0], LINKS[1], LINKS[2]],
        build: same_lan,
    },
    Named {
        name: "routed",
        summary: "as pair, with routers that translate and filter nothing",
        parameters: &[
            ("client-nat", "none", NAT),
            ("agent-nat", "none", NAT),
            LINKS[0],
            LINKS[1],
            LINKS[2],
        ],
        build: |with| pair(with, Families::V4),
    },
    Named {
        name: "ipv6",
        summary: "as pair, and IPv6 without translation behind each NAT's stateful firewall",
        parameters: &[
            ("client-nat", "port-restricted", NAT),
            ("agent-nat", "port-restricted", NAT),
            LINKS[0],
            LINKS[1],
            LINKS[2],
        ],
        build: |with| pair(with, Families::Both),
    },
    Named {
        name: "kernel",
        summary: "as pair, with the Linux kernel's own NAT: nftables in a namespace (needs nft)",
        parameters: &[
            ("client-nat", "masquerade", KERNEL),
            ("agent-nat", "masquerade", KERNEL),
            LINKS[0],
            LINKS[1],
            LINKS[2],
        ],
        build: kernel,
    },
];

const KERNEL: &str = "masquerade, masquerade-random (symmetric), firewall or plain";

/// The topology that `NAME` or `NAME:PARAMETER=VALUE,...` asks for.
///
/// # Errors
/// No such name, parameter or value; the message says what there is.
pub(super) fn topology(text: &str) -> Result<Topology, LabError> {
    let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
    let Some(named) = NAMED.iter().find(|named| named.name == name) else {
        let names = NAMED.map(|named| named.name).join(", ");
        return Err(LabError::topology(&format!("{name:?}: no such topology; there are {names}")));
    };
    let parameters = Parameters::read(named, parameters).map_err(|why| LabError::topology(&why))?;
    let mut topology = (named.build)(&parameters)?;
    text.clone_into(&mut topology.name);
    Ok(topology)
}

/// Values by parameter.
struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    fn read(named: &Named, text: &str) -> Result<Parameters, String> {
        let defaults = named.parameters.iter().map(|(name, value, _)| (*name, (*value).to_owned()));
        let mut values: Vec<_> = defaults.collect();
        let mut current: Option<usize> = None;
        for item in text.split(',').filter(|item| !item.trim().is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            match (values.iter().position(|(name, _)| *name == key.trim()), current) {
                (Some(known), _) => {
                    values[known].1 = value.to_owned();
                    current = Some(known);
                }
                (None, Some(known)) => values[known].1 += &format!(",{item}"),
                (None, None) => {
                    let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
                    let (topology, names) = (named.name, names.join(", "));
                    return Err(format!("{item:?}: {topology} has the parameters {names}"));
                }
            }
        }
        Ok(Parameters(values))
    }

    /// The value of `name`, which every caller has declared.
    fn get<T: std::str::FromStr<Err = String>>(&self, name: &str) -> Result<T, LabError> {
        let value = self.0.iter().find(|(known, _)| *known == name);
        let value = value.map_or("", |(_, value)| value.trim());
        value.parse().map_err(|why| LabError::topology(&format!("{name}: {why}")))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Families {
    V4,
    Both,
}

fn pair(with: &Parameters, families: Families) -> Result<Topology, LabError> {
    let both = families == Families::Both;
    let addresses = |v4: &str, v6: &str| if both { format!("{v4} {v6}") } else { v4.to_owned() };
    let [client, lan] = ["192.168.1.2/24", "192.168.1.1/24"];
    let [agent, agent_lan] = ["192.168.2.2/24", "192.168.2.1/24"];
    let topology = Topology::new("pair")
        .host("client")
        .host("agent")
        .router("client-nat", Some(with.get("client-nat")?))
        .router("agent-nat", Some(with.get("agent-nat")?))
        .link(
            "client",
            ("client", &addresses(client, "2001:db8:1::2/64")),
            ("client-nat", &addresses(lan, "2001:db8:1::1/64")),
            with.get("client-link")?,
        )?
        .link(
            "agent",
            ("agent", &addresses(agent, "2001:db8:2::2/64")),
            ("agent-nat", &addresses(agent_lan, "2001:db8:2::1/64")),
            with.get("agent-link")?,
        )?;
    internet(topology, with, families)
}

/// Joins `client-nat`, `agent-nat` and a server.
fn internet(
    topology: Topology,
    with: &Parameters,
    families: Families,
) -> Result<Topology, LabError> {
    let both = families == Families::Both;
    let addresses = |v4: &str, v6: &str| if both { format!("{v4} {v6}") } else { v4.to_owned() };
    topology
        .router("internet", None)
        .link(
            "client-wan",
            ("client-nat", &addresses("203.0.113.2/24", "2001:db8:f1::2/64")),
            ("internet", &addresses("203.0.113.1/24", "2001:db8:f1::1/64")),
            Default::default(),
        )?
        .link(
            "agent-wan",
            ("agent-nat", &addresses("198.51.100.2/24", "2001:db8:f2::2/64")),
            ("internet", &addresses("198.51.100.1/24", "2001:db8:f2::1/64")),
            Default::default(),
        )
        .and_then(|topology| server(topology, with, families))
}

fn server(topology: Topology, with: &Parameters, families: Families) -> Result<Topology, LabError> {
    let own = match families {
        Families::V4 => ["192.0.2.1/24 192.0.2.2/24", "192.0.2.254/24"],
        Families::Both => [
            "192.0.2.1/24 192.0.2.2/24 2001:db8:5::1/64 2001:db8:5::2/64",
            "192.0.2.254/24 2001:db8:5::fe/64",
        ],
    };
    topology.host("server").link(
        "server",
        ("server", own[0]),
        ("internet", own[1]),
        with.get("server-link")?,
    )
}

fn double_nat(with: &Parameters) -> Result<Topology, LabError> {
    Topology::new("double-nat")
        .host("client")
        .host("agent")
        .router("client-nat", Some(with.get("client-nat")?))
        .router("client-cgn", Some(with.get("client-cgn")?))
        .router("agent-nat", Some(with.get("agent-nat")?))
        .router("internet", None)
        .link(
            "client",
            ("client", "192.168.1.2/24"),
            ("client-nat", "192.168.1.1/24"),
            with.get("client-link")?,
        )?
        .link(
            "client-wan",
            ("client-nat", "100.64.0.2/24"),
            ("client-cgn", "100.64.0.1/24"),
            Default::default(),
        )?
        .link(
            "cgn-wan",
            ("client-cgn", "203.0.113.2/24"),
            ("internet", "203.0.113.1/24"),
            Default::default(),
        )?
        .link(
            "agent",
            ("agent", "192.168.2.2/24"),
            ("agent-nat", "192.168.2.1/24"),
            with.get("agent-link")?,
        )?
        .link(
            "agent-wan",
            ("agent-nat", "198.51.100.2/24"),
            ("internet", "198.51.100.1/24"),
            Default::default(),
        )
        .and_then(|topology| server(topology, with, Families::V4))
}

fn same_lan(with: &Parameters) -> Result<Topology, LabError> {
    Topology::new("same-lan")
        .host("client")
        .host("agent")
        .router("lan-nat", Some(with.get("lan-nat")?))
        .router("internet", None)
        .link(
            "client",
            ("client", "192.168.1.2/24"),
            ("lan-nat", "192.168.1.1/24"),
            with.get("client-link")?,
        )?
        .link(
            "agent",
            ("agent", "192.168.1.3/24"),
            ("lan-nat", "192.168.1.1/24"),
            with.get("agent-link")?,
        )?
        .link(
            "lan-wan",
            ("lan-nat", "203.0.113.2/24"),
            ("internet", "203.0.113.1/24"),
            Default::default(),
        )
        .and_then(|topology| server(topology, with, Families::V4))
}

fn kernel(with: &Parameters) -> Result<Topology, LabError> {
    let rules = |name: &str| with.get::<KernelRouter>(name);
    let topology = Topology::new("kernel")
        .host("client")
        .host("agent")
        .kernel_router("client-nat", rules("client-nat")?)
        .kernel_router("agent-nat", rules("agent-nat")?)
        .link(
            "client",
            ("client", "192.168.1.2/24"),
            ("client-nat", "192.168.1.1/24"),
            with.get("client-link")?,
        )?
        .link(
            "agent",
            ("agent", "192.168.2.2/24"),
            ("agent-nat", "192.168.2.1/24"),
            with.get("agent-link")?,
        )?;
    internet(topology, with, Families::V4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::Plan;

    #[test]
    fn every_named_topology_makes_a_network_and_survives_its_toml() {
        for named in NAMED {
            let topology: Topology = named.name.parse().unwrap();
            Plan::of(&topology).unwrap_or_else(|why| panic!("{}: {why}", named.name));
            let again = Topology::from_toml(&topology.to_toml().unwrap()).unwrap();
            assert_eq!(again, topology);
            for (parameter, default, _) in named.parameters {
                let text = format!("{}:{parameter}={default}", named.name);
                let explicit: Topology = text.parse().unwrap();
                assert_eq!(explicit.links, topology.links);
                assert_eq!(explicit.routers, topology.routers);
                assert_eq!(explicit.hosts, topology.hosts);
            }
        }
    }

    #[test]
    fn a_parameter_goes_on_until_the_next_ones_name() {
        let text = "pair:client-nat=symmetric,timeout=2s,client-link=4g,loss=1%,agent-nat=cgn";
        let topology: Topology = text.parse().unwrap();
        let nat = topology.routers[0].nat.unwrap();
        assert_eq!(nat, "symmetric,timeout=2s".parse().unwrap());
        assert_eq!(topology.routers[1].nat.unwrap(), "cgn".parse().unwrap());
        assert_eq!(topology.links[0].settings, "4g,loss=1%".parse().unwrap());
    }

    #[test]
    fn what_is_unknown_is_named_with_what_there_is() {
        let refused = |text: &str| text.parse::<Topology>().unwrap_err().to_string();
        assert!(refused("ring").contains("pair"), "{}", refused("ring"));
        assert!(refused("pair:nat=x").contains("client-nat"), "{}", refused("pair:nat=x"));
        let text = "pair:client-nat=conical";
        assert!(refused(text).contains("symmetric"), "{}", refused(text));
    }
}
