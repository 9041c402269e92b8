//! What the agents of a client's sessions are told of where the client is.
//!
//! A client may have more sessions than its link takes messages at once, so those that are still to be told of wait here
//! by their ids, and hear where the client is when their turn comes.

use super::{Desk, LinkState, Live, lock};
use crate::link::PLACES_LEFT;
use crate::udp::session::SessionUdp;
use crate::wire::{Candidate, FromClient, SessionId};

impl Desk {
    /// The agent of this session is told where this client is now.
    pub(in crate::client) fn tell_candidates(&self, session: &SessionId, udp: &SessionUdp) {
        if let Some(candidates) = udp.candidates() {
            self.tell_where(session, candidates);
        }
    }

    /// The agent of this session is told where its relay is, if there is one.
    pub(in crate::client) fn tell_relayed(&self, session: &SessionId, relayed: Option<Candidate>) {
        if let Some(relayed) = relayed {
            self.tell_where(session, vec![relayed]);
        }
    }

    fn tell_where(&self, session: &SessionId, candidates: Vec<Candidate>) {
        // The next link is told of all.
        let LinkState::Up(queue) = &*self.link.borrow() else { return };
        let message = FromClient::Candidates { session: session.clone(), candidates };
        if queue.try_send(message).is_err() {
            lock(&self.untold).insert(session.clone());
        }
    }

    /// The agents of all sessions are told where this client is now, as the link has room.
    pub(super) fn tell_all(&self) {
        let all = lock(&self.sessions).keys().cloned().collect();
        *lock(&self.untold) = all;
        self.tell_untold();
    }

    /// Whether the link is to be looked at again after [`TELL_PAUSE`](crate::link::TELL_PAUSE).
    pub(super) fn has_untold(&self) -> bool {
        self.is_up() && !lock(&self.untold).is_empty()
    }

    /// Tells as many as the link has room for.
    pub(super) fn tell_untold(&self) {
        let LinkState::Up(queue) = &*self.link.borrow() else { return };
        let (sessions, mut untold) = (lock(&self.sessions), lock(&self.untold));
        while queue.capacity() > PLACES_LEFT
            && let Some(session) = untold.pop_first()
        {
            let Some(candidates) = sessions.get(&session).and_then(whereabouts) else { continue };
            let message = FromClient::Candidates { session: session.clone(), candidates };
            if queue.try_send(message).is_err() {
                untold.insert(session);
                return;
            }
        }
    }
}

/// Where a session's agent can reach this client; `None` if it is not to. Its relay first, as only so many are passed on.
fn whereabouts(live: &Live) -> Option<Vec<Candidate>> {
    let relayed = *live.udp.relayed().borrow();
    let own = if live.udp.is_searching() { live.udp.candidates() } else { None };
    if relayed.is_none() && own.is_none() {
        return None;
    }
    Some(relayed.into_iter().chain(own.into_iter().flatten()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use switchback_shortpath::{Role, SessionConfig, SessionHandle};
    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::dial::BrokerAddress;
    use crate::invite::InviteKind;
    use crate::link::fake_broker::FakeBroker;
    use crate::secret::Secret;
    use crate::wire::CandidateKind;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn live(id: &SessionId, relayed: Candidate) -> Live {
        let (handle, _) = SessionHandle::start(Role::Client, &id.0, SessionConfig::default());
        Live {
            handle,
            grant: Secret::new("sealed"),
            end: mpsc::channel(1).0,
            udp: SessionUdp::relayed_at(relayed),
            relocate: std::sync::Arc::default(),
            ready: true,
        }
    }

    #[tokio::test]
    async fn the_agents_of_all_sessions_are_told_on_a_new_link_however_many() {
        let broker = FakeBroker::start().await;
        let invite = broker.invite(InviteKind::Login);
        let home = BrokerAddress::of(&invite).unwrap().host_port();
        let desk = Desk::new(invite, home);
        let relayed = Candidate::new(CandidateKind::Relayed, ([192, 0, 2, 1], 4007).into());
        let ids: BTreeSet<_> = (0..300).map(|number| SessionId(format!("{number:012}"))).collect();
        for id in &ids {
            desk.admit(id.clone(), live(id, relayed));
        }
        let stop = CancellationToken::new();
        let running = tokio::spawn(desk.run(stop.clone(), None));
        let mut link = broker.link().await;
        let mut told = BTreeSet::new();
        let all = async {
            while told != ids {
                if let FromClient::Candidates { session, candidates } = link.receive().await {
                    assert_eq!(candidates, [relayed]);
                    assert!(told.insert(session), "once is enough");
                }
            }
        };
        timeout(PATIENCE, all).await.expect("all are told");
        stop.cancel();
        timeout(PATIENCE, running).await.unwrap().unwrap();
    }
}
