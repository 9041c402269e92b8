//! Every router and every wire of a lab: where a packet goes next, and when.
//!
//! Pure: hosts' packets come in with the time, what hosts receive goes out into a list.

use std::net::IpAddr;
use std::time::Duration;

use super::nat::{Nat, NatSettings, Verdict};
use super::packet::{RouterAddresses, flow_of};
use super::plan::{Node, Plan, Route};
use super::topology::{Link, Topology};
use super::wire::{Pushed, Wire};

/// A packet for a host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) device: usize,
    pub(super) packet: Vec<u8>,
}

/// Wires and routers, joined.
#[derive(Debug)]
pub(super) struct Network {
    links: Vec<Wires>,
    routers: Vec<Router>,
    /// Per device: its link, and the end of it that it is (0: `from`).
    ports: Vec<(usize, usize)>,
    /// Packets between two steps, empty afterwards.
    moving: Vec<Moving>,
    drops: Drops,
}

/// Packets that ended outside of wires and NATs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drops {
    /// No router knows the destination, or the packet is malformed.
    pub(super) unroutable: u64,
    /// A host's kernel would not take them.
    pub(super) refused: u64,
}

#[derive(Debug)]
struct Wires {
    /// By the end that sends.
    from_end: [Wire; 2],
    ends: [Port; 2],
}

#[derive(Clone, Copy, Debug)]
enum Port {
    Device(usize),
    Router(usize),
}

#[derive(Debug)]
struct Router {
    nat: Nat,
    routes: Vec<Route>,
    uplink: Option<usize>,
    /// Its own addresses on links in to it.
    inside: Vec<IpAddr>,
}

/// A packet that reaches the other end of the link than `sender`.
#[derive(Debug)]
struct Moving {
    link: usize,
    sender: usize,
    packet: Vec<u8>,
}

impl Network {
    /// The network of a topology. Devices count through the plan's interfaces, host by host.
    pub(super) fn new(topology: &Topology, plan: &Plan, seed: u64) -> Network {
        let interfaces = plan.interfaces.iter().flatten();
        let ports: Vec<_> = interfaces.map(|here| (here.link, here.end)).collect();
        let port = |link: usize, end: usize| match plan.ends[link][end] {
            Node::Router(router) => Port::Router(router),
            // Every host's end of a link is among its interfaces.
            Node::Host(_) => {
                Port::Device(ports.iter().position(|at| *at == (link, end)).unwrap_or_default())
            }
        };
        let links = topology.links.iter().enumerate().map(|(link, data)| Wires {
            from_end: [0, 1].map(|end| wire(data, end, seed_of(seed, link * 2 + end))),
            ends: [0, 1].map(|end| port(link, end)),
        });
        let links = links.collect();
        let routers = topology.routers.iter().enumerate().map(|(router, data)| {
            let uplink = plan.uplinks[router];
            let own = uplink.map(|link| addresses(&topology.links[link], 0)).unwrap_or_default();
            let settings = data.nat.unwrap_or(OPEN);
            let nat = Nat::new(settings, own.v4, own, seed_of(!seed, router));
            let inward = topology.links.iter().filter(|link| link.to.at == data.name);
            let inside = inward.flat_map(|link| &link.to.addresses).map(|own| own.ip).collect();
            Router { nat, routes: plan.routes[router].clone(), uplink, inside }
        });
        let routers = routers.collect();
        Network { links, routers, ports, moving: Vec::new(), drops: Drops::default() }
    }

    /// A host sends a packet.
    pub(super) fn send(
        &mut self,
        now: Duration,
        device: usize,
        packet: Vec<u8>,
        arrivals: &mut Vec<Arrival>,
    ) {
        let (link, end) = self.ports[device];
        self.put(now, link, end, packet);
        self.settle(now, arrivals);
    }

    /// Moves on everything that is due.
    pub(super) fn advance(&mut self, now: Duration, arrivals: &mut Vec<Arrival>) {
        for link in 0..self.links.len() {
            for sender in [0, 1] {
                while let Some(packet) = self.links[link].from_end[sender].pop_due(now) {
                    self.moving.push(Moving { link, sender, packet });
                    self.settle(now, arrivals);
                }
            }
        }
    }

    /// When to call [`Network::advance`] next; `None` when nothing is on the way.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.links.iter().flat_map(|link| &link.from_end).filter_map(Wire::next_due).min()
    }

    /// The wire of a link away from its `from` (0) or its `to` (1).
    pub(super) fn wire(&self, link: usize, sender: usize) -> &Wire {
        &self.links[link].from_end[sender]
    }

    /// As [`Network::wire`], to change it.
    pub(super) fn wire_mut(&mut self, link: usize, sender: usize) -> &mut Wire {
        &mut self.links[link].from_end[sender]
    }

    /// A router's box: a NAT, a firewall, or one that lets everything pass.
    pub(super) fn nat(&self, router: usize) -> &Nat {
        &self.routers[router].nat
    }

    /// As [`Network::nat`], to change it.
    pub(super) fn nat_mut(&mut self, router: usize) -> &mut Nat {
        &mut self.routers[router].nat
    }

    /// The routes after a change of addresses.
    pub(super) fn set_routes(&mut self, plan: &Plan) {
        for (router, routes) in self.routers.iter_mut().zip(&plan.routes) {
            router.routes.clone_from(routes);
        }
    }

    /// Hosts did not take so many packets.
    pub(super) fn count_refused(&mut self, packets: u64) {
        self.drops.refused += packets;
    }

    pub(super) fn drops(&self) -> Drops {
        self.drops
    }

    /// Takes packets through routers until they are on a wire, at a host or gone. Routers take one
    /// from each packet's time to live, so this ends.
    fn settle(&mut self, now: Duration, arrivals: &mut Vec<Arrival>) {
        while let Some(Moving { link, sender, packet }) = self.moving.pop() {
            match self.links[link].ends[1 - sender] {
                Port::Device(device) => arrivals.push(Arrival { device, packet }),
                Port::Router(router) => self.route(now, router, link, packet),
            }
        }
    }

    fn put(&mut self, now: Duration, link: usize, sender: usize, packet: Vec<u8>) {
        match self.links[link].from_end[sender].push(now, packet) {
            Pushed::Queued | Pushed::Dropped => {}
            Pushed::Through(packet) => self.moving.push(Moving { link, sender, packet }),
            // As if it came from the other end.
            Pushed::Reply(packet) => self.moving.push(Moving { link, sender: 1 - sender, packet }),
        }
    }

    /// A packet has come to `router` over `link`.
    fn route(&mut self, now: Duration, router: usize, link: usize, mut packet: Vec<u8>) {
        let from_outside = self.routers[router].uplink == Some(link);
        let Some(to) = destination(&packet) else {
            self.drops.unroutable += 1;
            return;
        };
        let here = &mut self.routers[router];
        if !from_outside && here.inside.contains(&to) {
            match here.nat.serve(now, &packet) {
                Some(answer) => self.put_from(now, router, link, answer),
                None => self.drops.unroutable += 1,
            }
            return;
        }
        let next = here.route(to);
        let verdict = if from_outside {
            here.nat.inbound(now, &mut packet)
        } else if here.uplink.is_none() || next == here.uplink {
            here.nat.outbound(now, &mut packet)
        } else {
            // From one inside link to another: a switch, in effect.
            Verdict::Forward
        };
        match verdict {
            Verdict::Drop(_) => {}
            Verdict::Reply(answer) => self.put_from(now, router, link, answer),
            Verdict::Forward | Verdict::Hairpin => {
                // The destination may have been rewritten.
                let next = destination(&packet).and_then(|to| self.routers[router].route(to));
                match next {
                    Some(next) => self.put_from(now, router, next, packet),
                    None => self.drops.unroutable += 1,
                }
            }
        }
    }

    /// `router` sends a packet over `link`.
    fn put_from(&mut self, now: Duration, router: usize, link: usize, packet: Vec<u8>) {
        let at_from = matches!(self.links[link].ends[0], Port::Router(at) if at == router);
        self.put(now, link, usize::from(!at_from), packet);
    }
}

impl Router {
    fn route(&self, to: IpAddr) -> Option<usize> {
        self.routes.iter().find(|route| route.network.contains(to)).map(|route| route.link)
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    flow_of(packet).map(|flow| flow.destination.ip())
}

fn wire(link: &Link, sender: usize, seed: u64) -> Wire {
    let settings = if sender == 0 { link.settings.up } else { link.settings.down };
    // Its errors come from the router that would have to send the packet: the sending end, or, where
    // that is a host whose own interface let it pass, the first router behind.
    let near = addresses(link, sender);
    let far = addresses(link, 1 - sender);
    Wire::new(settings, if sender == 0 { far } else { near }, seed)
}

fn addresses(link: &Link, end: usize) -> RouterAddresses {
    let end = if end == 0 { &link.from } else { &link.to };
    let ips = || end.addresses.iter().map(|own| own.ip);
    RouterAddresses {
        v4: ips().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }),
        v6: ips().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }),
    }
}

/// Different for each wire and router of a lab, the same for the same seed.
fn seed_of(seed: u64, index: usize) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index as u64)
}

/// A plain router.
const OPEN: NatSettings = NatSettings::new(
    super::nat::Mapping::None,
    super::nat::Filtering::Open,
    super::nat::PortAssignment::Keep,
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::packet::samples::udp;
    use std::net::SocketAddr;

    const CLIENT: &str = "192.168.1.2:6000";
    const SERVER: &str = "192.0.2.1:5000";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn network(topology: &str) -> Network {
        let topology: Topology = topology.parse().unwrap();
        Network::new(&topology, &Plan::of(&topology).unwrap(), 1)
    }

    /// Devices of the named topologies: client, agent, server.
    fn sent(network: &mut Network, device: usize, from: &str, to: &str) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        network.send(Duration::ZERO, device, udp(at(from), at(to), b"hello"), &mut arrivals);
        arrivals
    }

    #[test]
    fn a_packet_crosses_the_nat_and_its_answer_finds_back() {
        let mut network = network("pair");
        let [there] = &sent(&mut network, 0, CLIENT, SERVER)[..] else { panic!("one arrives") };
        assert_eq!(there.device, 2);
        let seen = flow_of(&there.packet).unwrap().source;
        assert_eq!(seen, at("203.0.113.2:6000"));
        let [back] = &sent(&mut network, 2, SERVER, &seen.to_string())[..] else { panic!("back") };
        assert_eq!(back.device, 0);
        assert_eq!(flow_of(&back.packet).unwrap().destination, at(CLIENT));
        assert_eq!(network.next_due(), None);
    }

    #[test]
    fn a_delayed_packet_is_due_when_it_arrives_and_not_before() {
        let mut network = network("pair:client-link=delay=3ms,server-link=delay=4ms");
        assert_eq!(sent(&mut network, 0, CLIENT, SERVER), []);
        let mut arrivals = Vec::new();
        for due_ms in [3, 7] {
            assert_eq!(network.next_due(), Some(Duration::from_millis(due_ms)));
            assert_eq!(arrivals, []);
            network.advance(Duration::from_millis(due_ms), &mut arrivals);
        }
        assert_eq!(arrivals.len(), 1);
        assert_eq!(network.next_due(), None);
    }

    #[test]
    fn what_is_for_nobody_ends_and_is_counted() {
        let mut network = network("routed");
        for to in ["10.1.2.3:9", "8.8.8.8:53"] {
            assert_eq!(sent(&mut network, 0, CLIENT, to), []);
        }
        let mut arrivals = Vec::new();
        network.send(Duration::ZERO, 0, vec![0x45, 0, 0], &mut arrivals);
        assert_eq!(arrivals, []);
        assert_eq!(network.drops().unroutable, 3);
    }

    #[test]
    fn an_icmp_error_of_a_wire_behind_the_nat_comes_back_to_the_sender() {
        let mut network = network("pair");
        network.wire_mut(2, 0).set(Duration::ZERO, "mtu=600".parse().unwrap());
        let mut arrivals = Vec::new();
        let mut big = udp(at(CLIENT), at(SERVER), &[0; 900]);
        forbid_fragments(&mut big);
        network.send(Duration::ZERO, 0, big, &mut arrivals);
        let [error] = &arrivals[..] else { panic!("one arrives: {arrivals:?}") };
        assert_eq!(error.device, 0);
        assert_eq!(flow_of(&error.packet).unwrap().destination.ip(), at(CLIENT).ip());
    }

    /// Sets "don't fragment" and corrects the header's checksum.
    fn forbid_fragments(packet: &mut [u8]) {
        packet[6] |= 0x40;
        packet[10..12].fill(0);
        let words =
            packet[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let folded = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[10..12].copy_from_slice(&folded.to_be_bytes());
    }

    #[test]
    fn the_same_seed_loses_the_same_packets() {
        let run = || {
            let mut network = network("pair:client-link=loss=50%");
            let mut fates = Vec::new();
            for nth in 0..64 {
                sent(&mut network, 0, CLIENT, SERVER);
                let mut arrivals = Vec::new();
                network.advance(Duration::from_millis(nth), &mut arrivals);
                fates.push(arrivals.len());
            }
            fates
        };
        assert_eq!(run(), run());
        assert!(run().contains(&0) && run().contains(&1));
    }
}
