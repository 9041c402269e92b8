//! What ends at linked gateways by one thing that happened, told together: it may be thousands of sessions, and a link's queue
//! has room for a bounded number of messages.
use std::collections::BTreeMap;

use switchback_engine::PairId;

use crate::broker::hub::{Core, Hub};
use crate::broker::orchestrator::{GatewayId, LinkId};
use crate::broker::udp::relay_users;
use crate::wire::{
    GATEWAY_PAIRS_MAX, LOCAL_GATEWAY, PairName, RELAY_USERS_MAX, SessionId, ToGateway,
};

/// What gateways are still to be told.
#[derive(Debug, Default)]
pub(in crate::broker) struct Ending {
    /// Users of relays, of every gateway: both ends of a session may have used several.
    users: Vec<String>,
    pairs: BTreeMap<LinkId, Vec<PairName>>,
}

impl Hub {
    /// Cuts a pair wherever it is: one that is no longer known may be anywhere.
    pub(in crate::broker) fn end_pair(&self, core: &mut Core, pair: PairId) {
        let gateway = core.orchestrator.gateway_of(pair).cloned();
        if let Some(gateway) = gateway {
            return self.end_pair_at(core, &gateway, pair);
        }
        self.data_plane.end_pair(pair);
        for link in core.members.links() {
            core.ending.pairs.entry(link).or_default().push(PairName(pair));
        }
    }

    pub(in crate::broker) fn end_pair_at(
        &self,
        core: &mut Core,
        gateway: &GatewayId,
        pair: PairId,
    ) {
        if let Some(link) = core.members.get(gateway).map(|member| member.link) {
            core.ending.pairs.entry(link).or_default().push(PairName(pair));
        } else if &**gateway == LOCAL_GATEWAY {
            self.data_plane.end_pair(pair);
        }
    }

    pub(in crate::broker) fn end_relay(&self, core: &mut Core, session: &SessionId) {
        let users = relay_users(session);
        self.data_plane.end_relay(&users);
        core.ending.users.extend(users);
    }

    /// Tells what was put aside.
    pub(in crate::broker) fn tell_ending(&self, core: &mut Core) {
        let Ending { users, pairs } = std::mem::take(&mut core.ending);
        for users in users.chunks(RELAY_USERS_MAX) {
            self.tell_members(core, &ToGateway::EndRelay { users: users.to_vec() });
        }
        for (link, pairs) in pairs {
            for pairs in pairs.chunks(GATEWAY_PAIRS_MAX) {
                self.send(core, link, &ToGateway::EndPairs { pairs: pairs.to_vec() });
            }
        }
    }

    fn tell_members(&self, core: &mut Core, message: &ToGateway) {
        let links: Vec<_> = core.members.links().collect();
        links.into_iter().for_each(|link| self.send(core, link, message));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use data_encoding::HEXLOWER;
    use tokio::sync::mpsc::Receiver;

    use super::*;
    use crate::broker::audit::Audit;
    use crate::broker::config::Relay;
    use crate::broker::data::DataDir;
    use crate::broker::gateways::Member;
    use crate::broker::hub::Outgoing;
    use crate::broker::limits::LINK_QUEUE_MAX;
    use crate::broker::orchestrator::{GatewayUp, Input, Registration, SessionLimits, Wish};
    use crate::broker::seal::SealKey;
    use crate::broker::tuning::Tunings;
    use crate::broker::udp::UdpKeys;
    use crate::secret::Secret;
    use crate::ticket::TicketKey;
    use crate::wire::{MESSAGE_BYTES_MAX, PublicKey, Resource, SessionPurpose};

    /// More than a link's queue has room for; a user holds fewer.
    const SESSIONS: usize = LINK_QUEUE_MAX + 952;
    const SESSIONS_PER_LINK: usize = 500;

    fn hub(data: &std::path::Path) -> Hub {
        let keys = (SealKey::new(&[1; 32]), UdpKeys::new(&[2; 32], Relay::Own));
        let tickets = Arc::new(TicketKey::new(&[3; 32]));
        let tunings = Arc::new(Tunings::new("[::1]:1".parse().unwrap(), Default::default()));
        let audit = Arc::new(Audit::new(&DataDir::open(data).unwrap()));
        let told = (Arc::default(), audit);
        Hub::new(SessionLimits::default(), keys.0, keys.1, tickets, tunings, told)
    }

    fn gateway(hub: &Hub) -> Receiver<Outgoing> {
        let (link, queue) = hub.attach();
        let key = Secret::new(HEXLOWER.encode(&[4; 32]));
        let address = "a.example:443".to_owned();
        let member =
            Member::new((link, "g".into()), address.clone(), &key, (None, None), 1).unwrap();
        let up = GatewayUp {
            name: "a".into(),
            address,
            region: None,
            version: "1".into(),
            capacity: 65_536,
            draining: false,
        };
        hub.gateway_up(up, member).unwrap();
        let local: GatewayId = LOCAL_GATEWAY.into();
        hub.apply(Input::GatewayDrains { gateway: local, drain: true });
        queue
    }

    fn agent(hub: &Hub, token: &str) -> Receiver<Outgoing> {
        let (link, queue) = hub.attach();
        let registration = Registration {
            name: "lab".into(),
            key: PublicKey("key".into()),
            token: token.into(),
            resources: vec![Resource::tcp("ssh", "127.0.0.1:22")],
            sessions: Vec::new(),
            draining: false,
        };
        hub.apply(Input::AgentUp { link, registration });
        queue
    }

    fn wish(number: usize) -> Wish {
        let mut pair = [0; 16];
        pair[..8].copy_from_slice(&number.to_be_bytes());
        Wish {
            request: 1,
            resource: "ssh".into(),
            client_key: PublicKey("key".into()),
            ready: false,
            session: SessionId(format!("{number:012}")),
            pair: PairId(pair),
            created_ms: 1,
            udp: None,
            purpose: SessionPurpose::default(),
            consent: false,
            source: None,
            rights: Default::default(),
        }
    }

    /// What waits in a queue; each message must be one that a link takes.
    fn waiting(queue: &mut Receiver<Outgoing>) -> Vec<ToGateway> {
        let mut messages = Vec::new();
        while let Ok(Outgoing::Text(text)) = queue.try_recv() {
            assert!(text.len() <= MESSAGE_BYTES_MAX / 2, "{} bytes", text.len());
            messages.push(serde_json::from_str(&text).unwrap());
        }
        messages
    }

    #[test]
    fn revoking_an_agent_with_thousands_of_sessions_tells_its_gateway_of_each_and_overruns_no_link()
    {
        let temp = tempfile::tempdir().unwrap();
        let hub = hub(temp.path());
        let mut gateway = gateway(&hub);
        let mut agent = agent(&hub, "enrolment");
        let mut clients = Vec::new();
        for number in 0..SESSIONS {
            if number % SESSIONS_PER_LINK == 0 {
                let (link, queue) = hub.attach();
                let (user, token) = (format!("user-{number}"), format!("token-{number}"));
                hub.apply(Input::ClientUp { link, user, token, address: None });
                clients.push((link, queue));
            }
            let (link, _) = clients.last().unwrap();
            hub.apply(Input::Open { link: *link, wish: wish(number) });
            while agent.try_recv().is_ok() {}
            waiting(&mut gateway);
        }
        assert_eq!(hub.sessions(None).len(), SESSIONS);
        let before = hub.counters.links_overrun.get();
        hub.withdraw(Input::TokenRevoked { token: "enrolment".into() });
        assert!(hub.sessions(None).is_empty());
        let (mut users, mut pairs) = (Vec::new(), Vec::new());
        for message in waiting(&mut gateway) {
            match message {
                ToGateway::EndRelay { users: more } => users.extend(more),
                ToGateway::EndPairs { pairs: more } => pairs.extend(more),
                other => panic!("{other:?}"),
            }
        }
        users.sort();
        let all = (0..SESSIONS).flat_map(|number| relay_users(&SessionId(format!("{number:012}"))));
        let mut all: Vec<_> = all.collect();
        all.sort();
        assert_eq!((users == all, pairs.len()), (true, SESSIONS));
        hub.apply(Input::Tick);
        assert!(!gateway.is_closed(), "its link is as it was");
        assert!(clients.iter().all(|(_, queue)| !queue.is_closed()));
        let agents_own = hub.counters.links_overrun.get() - before;
        assert!(agents_own <= 1, "the agent's, which ends anyway");
    }
}
