//! Agents that are connected now, what they offer, and their warm legs.
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use switchback_engine::{PairId, Tuning};

use super::io::{LinkId, Registration};
use super::udp::Network;
use crate::wire::{PublicKey, Resource, ResourceKind, TransportPolicy};

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
}

impl From<Resource> for Service {
    fn from(resource: Resource) -> Self {
        let tuning = (!resource.tuning.is_empty()).then(|| Arc::new(resource.tuning));
        let (transport, kind) = (resource.transport, resource.kind);
        Self { tuning, told_client: resource.proxy.is_some(), transport, kind }
    }
}

impl Agent {
    pub(super) fn service(&self, resource: &str) -> Option<&Service> {
        self.resources.get(resource)
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

    /// The youngest waiting leg: the one least likely to have died unnoticed.
    pub(super) fn take_warm(&mut self) -> Option<PairId> {
        self.waiting.pop_back()
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
}

impl Agents {
    /// Adds an agent whose name is free.
    pub(super) fn insert(&mut self, now: Instant, link: LinkId, registration: Registration) {
        let Registration { name, key, token, resources, sessions: _ } = registration;
        self.names.insert(name.clone(), link);
        let service = |resource: Resource| (resource.name.clone(), Service::from(resource));
        let resources = resources.into_iter().map(service).collect();
        let (asked, waiting) = (HashSet::new(), VecDeque::new());
        let network = Network::unknown(now);
        let agent = Agent { name, key, token, resources, network, asked, waiting };
        self.links.insert(link, agent);
    }

    pub(super) fn remove(&mut self, link: LinkId) -> Option<Agent> {
        let agent = self.links.remove(&link)?;
        self.names.remove(&agent.name);
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

    /// The agent that offers `resource` and serves the fewest sessions; of equals, the one connected longest.
    pub(super) fn pick(
        &self,
        resource: &str,
        served: impl Fn(&str) -> usize,
    ) -> Option<(LinkId, &Agent)> {
        self.links
            .iter()
            .filter(|(_, agent)| agent.resources.contains_key(resource))
            .min_by_key(|(_, agent)| served(&agent.name))
            .map(|(link, agent)| (*link, agent))
    }

    /// Links that joined with `token`.
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

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Agent> {
        self.links.values_mut()
    }
}
