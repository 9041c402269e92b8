//! From a topology to indices and routing tables; all checks of a topology are here.
//!
//! Routes follow from the addresses: a link's `to` end is nearer to the core, so a node reaches
//! whatever is behind the links that come in to it, and everything else over its first link out.
//! What is behind a NAT is not announced to the outside.

use std::collections::HashSet;

use super::device::{InterfacePlan, default_routes};
use super::nat::Mapping;
use super::subnet::Subnet;
use super::topology::{KernelRouter, Topology};

/// Most nodes and links: each host costs a namespace and a few milliseconds.
const NODES_MAX: usize = 64;

/// Longest name of anything.
const NAME_BYTES_MAX: usize = 32;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// Index into the topology's hosts.
    Host(usize),
    /// Index into the topology's routers.
    Router(usize),
}

/// A topology, checked.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Per link: the nodes at `from` and `to`.
    pub(super) ends: Vec<[Node; 2]>,
    /// Per host: its interfaces.
    pub(super) interfaces: Vec<Vec<Interface>>,
    /// Per router: where its packets go.
    pub(super) routes: Vec<Vec<Route>>,
    /// Per router: its first link out.
    pub(super) uplinks: Vec<Option<usize>>,
}

/// A host's end of a link.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    /// Index of the link.
    pub(super) link: usize,
    /// 0: the host is at the link's `from`, 1: at its `to`.
    pub(super) end: usize,
    pub(super) device: InterfacePlan,
}

/// Packets for `network` leave by `link`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) network: Subnet,
    pub(super) link: usize,
}

impl Plan {
    /// Checks a topology and works out its routes, longest prefix first.
    ///
    /// # Errors
    /// What is wrong, by name, and what would be right.
    pub(super) fn of(topology: &Topology) -> Result<Plan, String> {
        check_names(topology)?;
        let ends = topology
            .links
            .iter()
            .map(|link| Ok([node(topology, &link.from.at)?, node(topology, &link.to.at)?]));
        let ends = ends.collect::<Result<Vec<_>, String>>()?;
        let graph = Graph { topology, ends: &ends };
        for (link, _) in topology.links.iter().enumerate() {
            graph.check_link(link)?;
        }
        let hosts = (0..topology.hosts.len()).map(|host| graph.interfaces(host));
        let routers = (0..topology.routers.len()).map(Node::Router);
        Ok(Plan {
            interfaces: hosts.collect(),
            routes: routers.clone().map(|router| graph.routes(router)).collect(),
            uplinks: routers.map(|router| graph.links_at(router, 0).next()).collect(),
            ends: ends.clone(),
        })
    }
}

fn check_names(topology: &Topology) -> Result<(), String> {
    let hosts = topology.hosts.iter().map(|host| &host.name);
    let routers = topology.routers.iter().map(|router| &router.name);
    let nodes: Vec<&String> = hosts.chain(routers).collect();
    let links: Vec<&String> = topology.links.iter().map(|link| &link.name).collect();
    for (kind, names) in [("host or router", nodes), ("link", links)] {
        if names.len() > NODES_MAX {
            return Err(format!("more than {NODES_MAX} of the kind {kind}"));
        }
        let mut seen = HashSet::new();
        for name in names {
            let proper = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(proper) {
                let most = NAME_BYTES_MAX;
                return Err(format!("{kind} {name:?}: use 1 to {most} letters, digits and dashes"));
            }
            if !seen.insert(name) {
                return Err(format!("two of the name {name:?}: every {kind} needs one of its own"));
            }
        }
    }
    Ok(())
}

fn node(topology: &Topology, name: &str) -> Result<Node, String> {
    let host = topology.hosts.iter().position(|host| host.name == name).map(Node::Host);
    let router = || topology.routers.iter().position(|router| router.name == name);
    host.or_else(|| router().map(Node::Router))
        .ok_or_else(|| format!("no host or router is called {name:?}, but a link ends there"))
}

struct Graph<'a> {
    topology: &'a Topology,
    ends: &'a [[Node; 2]],
}

impl Graph<'_> {
    /// Links whose `from` (0) or `to` (1) is this node.
    fn links_at(&self, node: Node, end: usize) -> impl Iterator<Item = usize> + '_ {
        self.ends.iter().enumerate().filter(move |(_, ends)| ends[end] == node).map(|(l, _)| l)
    }

    /// Following links upwards from any must come to an end.
    fn check_link(&self, link: usize) -> Result<(), String> {
        let mut above: Vec<usize> = vec![link];
        for _ in 0..=self.ends.len() {
            above = above
                .iter()
                .flat_map(|link| self.links_at(self.ends[*link][1], 0))
                .take(NODES_MAX)
                .collect();
            if above.is_empty() {
                return Ok(());
            }
        }
        let name = &self.topology.links[link].name;
        Err(format!("link {name:?} leads in a circle; `to` must be the end nearer to the core"))
    }

    fn translates(&self, node: Node) -> bool {
        match node {
            Node::Host(host) => matches!(
                self.topology.hosts[host].router,
                Some(KernelRouter::Masquerade | KernelRouter::MasqueradeRandom)
            ),
            Node::Router(router) => {
                let nat = &self.topology.routers[router].nat;
                nat.is_some_and(|nat| nat.mapping != Mapping::None)
            }
        }
    }

    /// What the `to` end of a link reaches over it: the other end's addresses each, its networks,
    /// and what is behind it.
    fn behind(&self, link: usize) -> Vec<Subnet> {
        let below = self.ends[link][0];
        let own = &self.topology.links[link].from.addresses;
        let mut networks: Vec<Subnet> = own.iter().map(|own| host_route(*own)).collect();
        networks.extend(own.iter().map(Subnet::network));
        for further in self.links_at(below, 1) {
            let hidden = |net: &Subnet| net.ip.is_ipv4() && self.translates(below);
            networks.extend(self.behind(further).into_iter().filter(|net| !hidden(net)));
        }
        networks
    }

    /// Longest prefix first; of equal ones the first link's.
    fn routes(&self, node: Node) -> Vec<Route> {
        let down = self.links_at(node, 1).flat_map(|link| {
            self.behind(link).into_iter().map(move |network| Route { network, link })
        });
        let up = self.links_at(node, 0).flat_map(|link| {
            let LinkAddresses { near, far } = self.addresses(link);
            let defaults = default_routes(near);
            let far = far.iter().map(|far| host_route(*far));
            let all = near.iter().map(Subnet::network).chain(far).chain(defaults);
            all.map(move |network| Route { network, link }).collect::<Vec<_>>()
        });
        let mut routes: Vec<Route> = down.chain(up).collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.network.prefix));
        let mut seen = HashSet::new();
        routes.retain(|route| seen.insert(route.network));
        routes
    }

    fn addresses(&self, link: usize) -> LinkAddresses<'_> {
        let link = &self.topology.links[link];
        LinkAddresses { near: &link.from.addresses, far: &link.to.addresses }
    }

    /// Links out are `wan` (a router's) or `eth0`, `eth1`, ...; links in to it `lan0`, `lan1`, ...
    fn interfaces(&self, host: usize) -> Vec<Interface> {
        let node = Node::Host(host);
        let out = if self.topology.hosts[host].router.is_some() { "wan" } else { "eth" };
        let routes = self.routes(node);
        let named = [(0, out), (1, "lan")].into_iter().flat_map(|(end, kind)| {
            self.links_at(node, end).enumerate().map(move |(nth, link)| (end, kind, nth, link))
        });
        named
            .map(|(end, kind, nth, link)| {
                let LinkAddresses { near, far } = self.addresses(link);
                let addresses = if end == 0 { near } else { far }.to_vec();
                // The kernel makes the route to an interface's own network itself.
                let connected: Vec<Subnet> = addresses.iter().map(Subnet::network).collect();
                let mine = routes.iter().filter(|route| route.link == link);
                let routes = mine.map(|route| route.network);
                let routes = routes.filter(|network| !connected.contains(network)).collect();
                let gateway = far.iter().map(|far| far.ip).find(|ip| end == 0 && ip.is_ipv4());
                let name = format!("{kind}{nth}");
                let device = InterfacePlan { name, addresses, routes, gateway };
                Interface { link, end, device }
            })
            .collect()
    }
}

struct LinkAddresses<'a> {
    near: &'a [Subnet],
    far: &'a [Subnet],
}

fn host_route(own: Subnet) -> Subnet {
    Subnet { ip: own.ip, prefix: if own.ip.is_ipv4() { 32 } else { 128 } }
}
