//! What the broker is yet to be told of where an agent and its sessions' relays are, and which sessions ended.
//!
//! An agent may have more sessions than its link takes messages at once, so what is to be told of them waits here by their
//! ids, and what holds then is said when its turn comes.
use std::collections::BTreeSet;

use super::Agent;
use crate::link::PLACES_LEFT;
use crate::wire::{FromAgent, SessionId};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Untold {
    /// Where this agent is.
    network: bool,
    /// Sessions whose clients are to hear where their relay is.
    relays: BTreeSet<SessionId>,
}

impl Agent {
    /// Where this agent is by UDP, for the sessions to come and those that are.
    pub(super) fn tell_network(&mut self) {
        self.untold.network = self.reach.is_some();
        self.tell_untold();
    }

    /// The client of a session is told where its relay is.
    pub(super) fn tell_relayed(&mut self, session: SessionId) {
        self.untold.relays.insert(session);
        self.tell_untold();
    }

    /// The clients of all sessions are told where their relays are.
    pub(super) fn tell_all_relayed(&mut self) {
        self.untold.relays = self.sessions.relayed().cloned().collect();
        self.tell_untold();
    }

    /// Whether the link is to be looked at again after [`TELL_PAUSE`](crate::link::TELL_PAUSE).
    pub(super) fn has_untold(&self) -> bool {
        let some = self.untold.network || !self.untold.relays.is_empty();
        let ended = !self.link.unsaid.is_empty() && self.state.borrow().registered;
        self.link.queue.is_some() && (some || ended)
    }

    /// Tells as much as the link has room for.
    pub(super) fn tell_untold(&mut self) {
        let Some(queue) = self.link.queue.clone() else { return };
        if self.untold.network
            && let Some(reach) = &self.reach
        {
            let candidates = reach.candidates();
            self.untold.network = !self.link.say(FromAgent::Network { candidates });
        }
        if self.state.borrow().registered {
            self.link.catch_up();
        }
        while queue.capacity() > PLACES_LEFT
            && let Some(session) = self.untold.relays.pop_first()
        {
            // It may be over by now.
            let Some(relayed) = self.sessions.relayed_at(&session) else { continue };
            let told =
                FromAgent::Candidates { session: session.clone(), candidates: vec![relayed] };
            if !self.link.say(told) {
                self.untold.relays.insert(session);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};
    use std::sync::Arc;

    use switchback_shortpath::{SessionConfig, SessionKey};
    use tokio::sync::{Semaphore, mpsc, watch};

    use super::*;
    use crate::agent::pool::WarmPool;
    use crate::agent::session::{Sessions, offer};
    use crate::agent::{AgentState, Link};
    use crate::api::TokenKind;
    use crate::code::Code;
    use crate::enrol::Enrolment;
    use crate::invite::{Invite, InviteKind};
    use crate::link::report::Reporter;
    use crate::link::{Doubt, LinkEvent, OUTGOING_MAX};
    use crate::secret::Secret;
    use crate::survey::Survey;
    use crate::udp::UdpOptions;
    use crate::udp::reach::Reach;
    use crate::wire::{Candidate, CandidateKind, Resource, ToAgent};

    /// Of nobody, at no broker.
    fn enrolment() -> Arc<Enrolment> {
        let (url, pin) = ("https://127.0.0.1:1".into(), "pin".into());
        let invite = Invite { kind: InviteKind::Join, url, pin, token: Secret::new("t") };
        Enrolment::open(None, &invite, TokenKind::Agent, "lab").unwrap()
    }

    /// An agent with so many sessions, each with a relay there.
    fn agent(sessions: usize, relayed: Candidate) -> Agent {
        let resources = vec![Resource::tcp("ssh", "127.0.0.1:22")];
        let options = UdpOptions { port_mapping: false, ..UdpOptions::default() };
        let reach = Reach::start(&options, "127.0.0.1:1").unwrap();
        let (key, config) = (SessionKey::generate().unwrap(), SessionConfig::default());
        let limits = (sessions, None, crate::shadow::Budget::new(0, 0));
        let news = mpsc::channel(1).0;
        let mut live = Sessions::new(key, &resources, config, limits, news, Doubt::default());
        let client = SessionKey::generate().unwrap();
        for number in 0..sessions {
            live.accept(offer(&format!("{number:012}"), &client)).unwrap();
        }
        live.relay_at(relayed);
        Agent {
            name: "lab".into(),
            resources,
            home: "127.0.0.1:1".into(),
            sessions: live,
            pool: WarmPool::new(0),
            warm: HashMap::new(),
            gone: mpsc::channel(1).0,
            in_flight: Arc::new(Semaphore::new(1)),
            link: Link { queue: None, unsaid: VecDeque::new(), reporter: Reporter::default() },
            untold: Untold::default(),
            reach,
            survey: Survey::start("127.0.0.1:1".into(), false),
            enrolment: enrolment(),
            was_registered: false,
            state: watch::Sender::new(AgentState::default()),
        }
    }

    fn drain(queue: &mut mpsc::Receiver<FromAgent>) -> Vec<FromAgent> {
        std::iter::from_fn(|| queue.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn the_clients_of_all_sessions_are_told_of_their_relays_on_a_new_link_however_many() {
        let relayed = Candidate::new(CandidateKind::Relayed, ([192, 0, 2, 1], 4007).into());
        let mut agent = agent(700, relayed);
        let (sender, mut queue) = mpsc::channel(OUTGOING_MAX);
        agent.handle_link(LinkEvent::Up(sender)).unwrap();
        agent.handle_link(LinkEvent::Message(ToAgent::Registered)).unwrap();
        let mut told = BTreeSet::new();
        for _ in 0..20 {
            for message in drain(&mut queue) {
                if let FromAgent::Candidates { session, candidates } = message {
                    assert_eq!(candidates, [relayed]);
                    assert!(told.insert(session), "once is enough");
                }
            }
            assert_eq!(agent.has_untold(), told.len() < 700);
            agent.tell_untold();
        }
        assert_eq!(told.len(), 700);
    }

    #[tokio::test]
    async fn what_a_full_link_could_not_take_is_said_when_it_has_room() {
        let relayed = Candidate::new(CandidateKind::Relayed, ([192, 0, 2, 1], 4007).into());
        let mut agent = agent(1, relayed);
        let (sender, mut queue) = mpsc::channel(OUTGOING_MAX);
        agent.handle_link(LinkEvent::Up(sender)).unwrap();
        agent.handle_link(LinkEvent::Message(ToAgent::Registered)).unwrap();
        drain(&mut queue);
        while agent.link.say(FromAgent::WarmLegs { count: 1 }) {}
        let (moved, ended) = (SessionId(format!("{:012}", 0)), SessionId("over".into()));
        agent.tell_network();
        agent.tell_relayed(moved.clone());
        agent.link.say_surely(ended.clone(), Code::SessionClosed);
        assert!(agent.has_untold());
        drain(&mut queue);
        agent.tell_untold();
        let said = drain(&mut queue);
        let is = |told: &dyn Fn(&FromAgent) -> bool| said.iter().filter(|it| told(it)).count() == 1;
        assert!(is(&|it| matches!(it, FromAgent::Network { .. })), "{said:?}");
        assert!(is(&|it| matches!(it, FromAgent::Candidates { session, .. } if *session == moved)));
        assert!(is(&|it| matches!(it, FromAgent::Ended { session, .. } if *session == ended)));
        assert!(!agent.has_untold());
    }
}
