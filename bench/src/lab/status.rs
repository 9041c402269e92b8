//! A lab at one moment, for people and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::network::Network;
use super::packet::Protocol;
use super::topology::Topology;
use super::wire::{Wire, WireStats};

/// Settings and counters of everything. Counters are packets since the lab's start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// As the lab was asked for.
    pub topology: String,
    /// Of all chance in it.
    pub seed: u64,
    /// Time since its start.
    pub up_s: f64,
    /// In the order of the topology.
    pub links: Vec<LinkStatus>,
    /// The lab's own routers, in the order of the topology.
    pub nats: Vec<NatStatus>,
    /// Packets to where nobody is.
    pub unroutable: u64,
    /// Packets that a host's kernel would not take.
    pub refused: u64,
}

/// Both directions of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The link.
    pub name: String,
    /// Away from the host.
    pub up: WireStatus,
    /// Towards the host.
    pub down: WireStatus,
}

/// One direction of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireStatus {
    /// As they are set; empty when nothing is.
    pub settings: String,
    /// Packets given to it.
    pub pushed: u64,
    /// Packets that came out.
    pub delivered: u64,
    /// What else became of packets, by its symbolic name, where there were any.
    pub events: BTreeMap<String, u64>,
}

/// A router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NatStatus {
    /// The router.
    pub name: String,
    /// How it behaves.
    pub settings: String,
    /// What it forbids; empty when nothing.
    pub policy: String,
    /// Its public IPv4 address, if it translates.
    pub external: Option<String>,
    /// Packets forwarded to the outside.
    pub outbound: u64,
    /// Packets forwarded to the inside.
    pub inbound: u64,
    /// Packets from inside to inside by public addresses.
    pub hairpinned: u64,
    /// Packets answered by an ICMP error.
    pub replied: u64,
    /// Packets dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Mappings made.
    pub mappings_created: u64,
    /// Mappings that ran out of time.
    pub mappings_expired: u64,
    /// The live mappings, as `udp 192.168.1.2:5000 as 203.0.113.2:5000, 1 peers, 29.5 s left`.
    pub mappings: Vec<String>,
}

impl Status {
    pub(super) fn read(topology: &Topology, seed: u64, network: &Network, now: Duration) -> Status {
        let links = topology.links.iter().enumerate();
        let nats = 0..topology.routers.len();
        let drops = network.drops();
        Status {
            topology: topology.name.clone(),
            seed,
            up_s: now.as_secs_f64(),
            links: links.map(|(index, link)| link_status(&link.name, index, network)).collect(),
            nats: nats.map(|index| nat_status(topology, index, network, now)).collect(),
            unroutable: drops.unroutable,
            refused: drops.refused,
        }
    }
}

fn link_status(name: &str, index: usize, network: &Network) -> LinkStatus {
    let [up, down] = [0, 1].map(|sender| wire_status(network.wire(index, sender)));
    LinkStatus { name: name.to_owned(), up, down }
}

fn wire_status(wire: &Wire) -> WireStatus {
    let stats = wire.stats();
    let WireStats { pushed, delivered, .. } = stats;
    let events = [
        ("lost", stats.lost),
        ("queue_full", stats.queue_full),
        ("policed", stats.policed),
        ("blackholed", stats.blackholed),
        ("too_big", stats.too_big),
        ("duplicated", stats.duplicated),
        ("reordered", stats.reordered),
        ("corrupted", stats.corrupted),
        ("overflowed", stats.overflowed),
    ];
    let occurred = events.into_iter().filter(|(_, packets)| *packets > 0);
    let events = occurred.map(|(event, packets)| (event.to_owned(), packets)).collect();
    WireStatus { settings: wire.settings().to_string(), pushed, delivered, events }
}

fn nat_status(topology: &Topology, index: usize, network: &Network, now: Duration) -> NatStatus {
    let nat = network.nat(index);
    let stats = nat.stats();
    let mappings = nat.mappings(now).into_iter().map(|mapping| {
        let protocol = match mapping.protocol {
            Protocol::Udp => "udp",
            Protocol::Tcp => "tcp",
            _ => "echo",
        };
        format!(
            "{protocol} {} as {}, {} peers, {:.1} s left",
            mapping.inside,
            mapping.external,
            mapping.peers,
            mapping.left.as_secs_f64()
        )
    });
    NatStatus {
        name: topology.routers[index].name.clone(),
        settings: nat.settings().to_string(),
        policy: nat.policy().to_string(),
        external: nat.external().map(|address| address.to_string()),
        outbound: stats.outbound,
        inbound: stats.inbound,
        hairpinned: stats.hairpinned,
        replied: stats.replied,
        dropped: stats.drops().map(|(reason, packets)| (reason.to_string(), packets)).collect(),
        mappings_created: stats.mappings_created,
        mappings_expired: stats.mappings_expired,
        mappings: mappings.collect(),
    }
}
