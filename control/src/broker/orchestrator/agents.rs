//! Agents that are connected now, what they offer, and their warm legs.
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchback_engine::{PairId, Tuning};

use super::io::{LinkId, Registration};
use super::udp::Network;
use crate::code::Code;
use crate::wire::{
    GatewayRtt, PoolShare, PublicKey, Resource, ResourceKind, TargetHealth, TransportPolicy,
};

/// Warm legs of one agent, asked for and waiting together. A warm leg saves one session start its dial, so it takes 64
/// sessions started within one round trip to use them up.
pub(crate) const WARM_LEGS_MAX: usize = 64;

/// One registered agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) key: PublicKey,
    pub(super) token: String,
    pub(super) resources: HashMap<String, Service>,
    pub(super) network: Network,
    /// How far the gateways are from it.
    pub(super) rtts: Vec<GatewayRtt>,
    /// It gets no new sessions.
    pub(super) draining: bool,
    /// Of its machine's cores, over the last minute.
    pub(super) load_percent: u32,
    /// Of its link, smoothed.
    pub(super) link_rtt: Option<Duration>,
    since: Instant,
    /// Warm pairs whose ticket was sent and whose leg has not come.
    asked: HashSet<PairId>,
    /// Warm pairs whose leg waits at the gateway, oldest first.
    waiting: VecDeque<PairId>,
}

/// What is special about a resource.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// For both legs of its sessions' pairs.
    pub(super) tuning: Option<Arc<Tuning>>,
    /// The service is told its clients' addresses.
    pub(super) told_client: bool,
    /// What may carry its sessions.
    pub(super) transport: TransportPolicy,
    pub(super) kind: ResourceKind,
    /// Watches have a target of their own, which only shows or (false) does more.
    pub(super) shadow_view_only: Option<bool>,
    pub(super) pool: PoolShare,
    /// Why the agent does not reach it; `None`: it does, as far as is known.
    pub(super) fault: Option<Code>,
}

/// An agent as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentSnapshot {
    pub(crate) draining: bool,
    pub(crate) load_percent: u32,
    pub(crate) link_rtt: Option<Duration>,
    pub(crate) connected: Duration,
    pub(crate) sessions: usize,
    /// By resource, in order: why its target is not reached.
    pub(crate) resources: BTreeMap<String, Option<Code>>,
}

impl From<Resource> for Service {
    fn from(resource: Resource) -> Self {
        let tuning = (!resource.tuning.is_empty()).then(|| Arc::new(resource.tuning));
        let Resource { transport, kind, pool, proxy, shadow, .. } = resource;
        let shadow_view_only = shadow.map(|shadow| shadow.view_only);
        let (told_client, fault) = (proxy.is_some(), None);
        Self { tuning, told_client, transport, kind, shadow_view_only, pool, fault }
    }
}

impl Agent {
    pub(super) fn service(&self, resource: &str) -> Option<&Service> {
        self.resources.get(resource)
    }

    pub(super) fn snapshot(&self, sessions: usize, now: Instant) -> AgentSnapshot {
        let state = |(name, service): (&String, &Service)| (name.clone(), service.fault);
        AgentSnapshot {
            draining: self.draining,
            load_percent: self.load_percent,
            link_rtt: self.link_rtt,
            connected: now.saturating_duration_since(self.since),
            sessions,
            resources: self.resources.iter().map(state).collect(),
        }
    }

    /// Warm legs it may still ask for.
    pub(super) fn warm_room(&self) -> usize {
        WARM_LEGS_MAX.saturating_sub(self.asked.len() + self.waiting.len())
    }

    pub(super) fn warm_asked(&mut self, pair: PairId) {
        self.asked.insert(pair);
    }

    /// The leg of `pair` came.
    pub(super) fn warm_arrived(&mut self, pair: PairId) {
        if self.asked.remove(&pair) {
            self.waiting.push_back(pair);
        }
    }

    /// The leg of `pair` left, or its ticket expired.
    pub(super) fn warm_gone(&mut self, pair: PairId) {
        self.asked.remove(&pair);
        self.waiting.retain(|waiting| *waiting != pair);
    }

    /// The youngest leg that waits where it is wanted: the one least likely to have died unnoticed.
    pub(super) fn take_warm(&mut self, wanted: impl Fn(PairId) -> bool) -> Option<PairId> {
        let place = self.waiting.iter().rposition(|pair| wanted(*pair))?;
        self.waiting.remove(place)
    }

    /// Every warm pair, waiting or not.
    pub(super) fn warm_pairs(&self) -> impl Iterator<Item = PairId> {
        self.asked.iter().chain(&self.waiting).copied()
    }

    pub(super) fn waiting_legs(&self) -> usize {
        self.waiting.len()
    }
}

/// Agents by link and by name; a name belongs to one link at a time.
#[derive(Debug, Default)]
pub(super) struct Agents {
    links: BTreeMap<LinkId, Agent>,
    names: HashMap<String, LinkId>,
    /// Who offers a resource: a session is asked of few among thousands of agents.
    offering: HashMap<String, BTreeSet<LinkId>>,
}

impl Agents {
    /// Adds an agent whose name is free.
    pub(super) fn insert(&mut self, now: Instant, link: LinkId, registration: Registration) {
        let Registration { name, key, token, resources, sessions: _, draining } = registration;
        self.names.insert(name.clone(), link);
        let service = |resource: Resource| (resource.name.clone(), Service::from(resource));
        let resources: HashMap<_, _> = resources.into_iter().map(service).collect();
        for resource in resources.keys() {
            self.offering.entry(resource.clone()).or_default().insert(link);
        }
        let (asked, waiting) = (HashSet::new(), VecDeque::new());
        let network = Network::unknown(now);
        let (load_percent, link_rtt, since) = (0, None, now);
        let agent = Agent {
            name,
            key,
            token,
            resources,
            network,
            rtts: Vec::new(),
            draining,
            load_percent,
            link_rtt,
            since,
            asked,
            waiting,
        };
        self.links.insert(link, agent);
    }

    pub(super) fn remove(&mut self, link: LinkId) -> Option<Agent> {
        let agent = self.links.remove(&link)?;
        self.names.remove(&agent.name);
        for resource in agent.resources.keys() {
            if let Some(links) = self.offering.get_mut(resource) {
                links.remove(&link);
                if links.is_empty() {
                    self.offering.remove(resource);
                }
            }
        }
        Some(agent)
    }

    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut Agent> {
        self.links.get_mut(&link)
    }

    pub(super) fn get(&self, link: LinkId) -> Option<&Agent> {
        self.links.get(&link)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<(LinkId, &Agent)> {
        let link = *self.names.get(name)?;
        Some((link, self.links.get(&link)?))
    }

    /// Those that offer `resource`, the longest connected first.
    pub(super) fn that_offer(&self, resource: &str) -> impl Iterator<Item = (LinkId, &Agent)> {
        let links = self.offering.get(resource).into_iter().flatten();
        links.filter_map(|link| Some((*link, self.links.get(link)?)))
    }

    /// Takes in what an agent says of its targets and its machine; of what it does not offer nothing is known.
    pub(super) fn health(&mut self, link: LinkId, targets: &[TargetHealth], load_percent: u32) {
        let Some(agent) = self.links.get_mut(&link) else { return };
        agent.load_percent = load_percent;
        for target in targets {
            if let Some(service) = agent.resources.get_mut(&target.resource) {
                service.fault = target.fault;
            }
        }
    }

    /// A link's round trip; the eighth part of a new one counts, as in RFC 6298.
    pub(super) fn measured(&mut self, link: LinkId, rtt: Duration) {
        if let Some(agent) = self.links.get_mut(&link) {
            agent.link_rtt = Some(agent.link_rtt.map_or(rtt, |before| (before * 7 + rtt) / 8));
        }
    }

    pub(super) fn drain(&mut self, name: &str, draining: bool) {
        let link = self.names.get(name);
        if let Some(agent) = link.and_then(|link| self.links.get_mut(link)) {
            agent.draining = draining;
        }
    }

    /// Links of the enrolment `token`.
    pub(super) fn with_token(&self, token: &str) -> Vec<LinkId> {
        let of_token = self.links.iter().filter(|(_, agent)| agent.token == token);
        of_token.map(|(link, _)| *link).collect()
    }

    /// What `agent` offers under this name, if it is connected.
    pub(super) fn service(&self, agent: &str, resource: &str) -> Option<&Service> {
        self.by_name(agent)?.1.service(resource)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.links.values()
    }

    pub(super) fn links(&self) -> impl Iterator<Item = LinkId> {
        self.links.keys().copied()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Agent> {
        self.links.values_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_offers_a_resource_is_known_by_its_name_until_the_link_ends() {
        let mut agents = Agents::default();
        let now = Instant::now();
        let mut up = |link, name: &str, offered: &[&str]| {
            let registration = Registration {
                name: name.into(),
                key: PublicKey("key".into()),
                token: "token".into(),
                resources: offered.iter().map(|it| Resource::tcp(*it, "127.0.0.1:22")).collect(),
                sessions: Vec::new(),
                draining: false,
            };
            agents.insert(now, LinkId(link), registration);
        };
        up(7, "ada", &["ssh", "web"]);
        up(3, "bob", &["ssh"]);
        let offering = |agents: &Agents, resource| {
            agents.that_offer(resource).map(|(link, _)| link.0).collect::<Vec<_>>()
        };
        assert_eq!(offering(&agents, "ssh"), [3, 7], "the longest connected first");
        assert_eq!((offering(&agents, "web"), offering(&agents, "vnc")), (vec![7], vec![]));
        agents.remove(LinkId(7));
        assert_eq!((offering(&agents, "ssh"), offering(&agents, "web")), (vec![3], vec![]));
        agents.remove(LinkId(3));
        assert!(agents.offering.is_empty(), "nothing is left of who is gone");
    }
}
