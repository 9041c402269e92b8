//! What the broker is told of sessions' moves and stalls, for its metrics.
//!
//! A link is often lost with the path that a session leaves, so what cannot be told waits for the next one. Stalls without a
//! move are told once a second: a path that loses packets makes many, on many sessions at once.
use std::collections::VecDeque;

use switchback_shortpath::MoveCause;

use super::{Desk, LinkState, lock};
use crate::link::PLACES_LEFT;
use crate::wire::{FromClient, PathMove, SessionId};

/// Moves and stalls that wait to be told; the oldest go. A quarter of what a broker takes from a link in a second.
const MOVES_MAX: usize = 256;

/// What waits to be told.
#[derive(Debug, Default)]
pub(super) struct Moves(VecDeque<(SessionId, PathMove)>);

impl Moves {
    fn push(&mut self, session: SessionId, moved: PathMove) {
        if self.0.len() >= MOVES_MAX {
            let stall = self.0.iter().position(|(_, moved)| is_stall(moved));
            self.0.remove(stall.unwrap_or(0));
        }
        self.0.push_back((session, moved));
    }
}

impl Desk {
    /// A session of ours went over to another transport, or waited for its own. One that nobody uses yet is told nothing of.
    pub(in crate::client) fn moved(&self, session: SessionId, moved: PathMove) {
        if lock(&self.sessions).get(&session).is_some_and(|live| live.ready) {
            return;
        }
        let can_wait = is_stall(&moved);
        lock(&self.moves).push(session, moved);
        if !can_wait {
            self.tell_moves();
        }
    }

    /// Tells as many as the link has room for.
    pub(super) fn tell_moves(&self) {
        let LinkState::Up(queue) = &*self.link.borrow() else { return };
        let mut moves = lock(&self.moves);
        while queue.capacity() > PLACES_LEFT
            && let Some((session, moved)) = moves.0.pop_front()
        {
            let message =
                FromClient::Moved { session: session.clone(), moved: Box::new(moved.clone()) };
            if queue.try_send(message).is_err() {
                return moves.0.push_front((session, moved));
            }
        }
    }
}

fn is_stall(moved: &PathMove) -> bool {
    moved.cause == MoveCause::Recovered.as_str()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use switchback_shortpath::{Role, SessionConfig, SessionHandle};
    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    use super::super::Live;
    use super::*;
    use crate::dial::BrokerAddress;
    use crate::invite::InviteKind;
    use crate::link::fake_broker::{FakeBroker, FakeLink};
    use crate::secret::Secret;
    use crate::udp::session::SessionUdp;
    use crate::wire::TransportPolicy;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn moved(cause: &str, at_ms: u64) -> PathMove {
        let (to, cause) = ("TCP (Reverse-Connect)".into(), cause.into());
        PathMove { at_ms, from: None, to, cause, stall_us: 100_000, rtt_us: None }
    }

    fn id() -> SessionId {
        SessionId("s".into())
    }

    async fn told(link: &mut FakeLink) -> u64 {
        loop {
            if let FromClient::Moved { moved, .. } =
                timeout(PATIENCE, link.receive()).await.unwrap()
            {
                return moved.at_ms;
            }
        }
    }

    #[tokio::test]
    async fn moves_made_without_a_link_are_told_on_the_next_one_and_bounded() {
        let broker = FakeBroker::start().await;
        let invite = broker.invite(InviteKind::Login);
        let home = BrokerAddress::of(&invite).unwrap().host_port();
        let desk = Desk::new(invite, home);
        let (first, last) = (MOVES_MAX as u64, 2 * MOVES_MAX as u64);
        (0..last).for_each(|at| desk.moved(id(), moved("lost", at)));
        let stop = CancellationToken::new();
        let running = tokio::spawn(desk.clone().run(stop.clone(), None));
        let mut link = broker.link().await;
        for at in first..last {
            assert_eq!(told(&mut link).await, at);
        }
        drop(link);
        let mut state = desk.link();
        timeout(PATIENCE, state.wait_for(|it| matches!(it, LinkState::Down(_))))
            .await
            .unwrap()
            .unwrap();
        desk.moved(id(), moved("silent", last));
        let mut link = broker.link().await;
        assert_eq!(told(&mut link).await, last);
        desk.moved(id(), moved("recovered", last + 1));
        assert_eq!(told(&mut link).await, last + 1, "with the next report");
        stop.cancel();
        timeout(PATIENCE, running).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_session_held_ready_tells_of_no_move_and_stalls_push_out_no_move() {
        let invite = FakeBroker::start().await.invite(InviteKind::Login);
        let home = BrokerAddress::of(&invite).unwrap().host_port();
        let desk = Desk::new(invite, home);
        let (handle, _) = SessionHandle::start(Role::Client, &id().0, SessionConfig::default());
        let (grant, end) = (Secret::new("sealed"), mpsc::channel(1).0);
        let udp = SessionUdp::new(TransportPolicy::default(), None);
        desk.admit(
            id(),
            Live { handle, grant, end, udp, relocate: std::sync::Arc::default(), ready: true },
        );
        desk.moved(id(), moved("better", 1));
        assert!(lock(&desk.moves).0.is_empty());
        desk.begin(&id());
        desk.moved(id(), moved("better", 2));
        (3..1000).for_each(|at| desk.moved(id(), moved("recovered", at)));
        let moves = lock(&desk.moves);
        assert_eq!((moves.0.len(), moves.0[0].1.at_ms), (MOVES_MAX, 2));
        assert_eq!(moves.0.back().unwrap().1.at_ms, 999);
    }
}
