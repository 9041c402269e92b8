//! Pairs end, and everything they held is given back.
use super::inbox::Message;
use super::turn::Worker;
use crate::relay::Direction;
use crate::ring::close_abruptly;
use crate::{Cause, GatewayEvent, Outcome, PairId, Refusal};
use std::time::Duration;

impl Worker {
    /// Ends a pair whose two flows say that it is over.
    pub(crate) fn end_if_over(&mut self, key: usize) {
        let Some(ending) = self.pairs.get(key).and_then(|joined| joined.pair.ending()) else {
            return;
        };
        let joined = self.pairs.remove(key);
        self.active.remove(&joined.id);
        for slot in joined.legs {
            let Some(socket) = self.take_socket(slot) else { continue };
            if ending.abrupt {
                close_abruptly(socket);
            }
        }
        for (direction, tube) in Direction::BOTH.into_iter().zip(joined.tubes) {
            match tube.pipe {
                Some(pipe) if joined.pair.pipe_empty(direction) => self.pipes.give_back(pipe),
                Some(pipe) => self.pipes.discard(pipe),
                None => {}
            }
        }
        let outcome = Outcome {
            cause: ending.cause,
            phase: ending.phase,
            client_to_agent: joined.pair.delivered(Direction::ClientToAgent),
            agent_to_client: joined.pair.delivered(Direction::AgentToClient),
            duration: joined.started.elapsed(),
        };
        self.shared.leave_pair();
        self.stats.pair_ended(outcome.cause, outcome.phase);
        self.tell(GatewayEvent::PairEnded { pair: joined.id, outcome });
        self.crew.homes.release(joined.id);
        self.publish_pairs();
    }

    /// The owner wants a pair, or the leg that waits for it, to end.
    pub(crate) fn end_on_request(&mut self, pair: PairId, cause: Cause) {
        if let Some(&key) = self.active.get(&pair) {
            self.break_off(key, cause);
        } else if let Some(gone) = self.room.leave(pair) {
            self.leave(pair, gone, Some(Refusal::LegUnpaired));
        } else if let Some(home) = self.crew.homes.of(pair).filter(|&home| home != self.index) {
            // It moved while the message was on its way.
            self.crew.tell(home, Message::End { pair, cause });
        }
    }

    /// Ends all there is; the thread ends next.
    pub(crate) fn end_everything(&mut self, cause: Cause) {
        (self.draining, self.stopping) = (true, true);
        self.crew.publish_end(self.index);
        while let Some((pair, gone)) = self.room.evict() {
            self.leave(pair, gone, Some(Refusal::Draining));
        }
        let keys: Vec<usize> = self.pairs.iter().map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.break_off(key, cause));
        // Legs still on their way here are turned away.
        while let Ok(message) = self.inbox.messages.try_recv() {
            match message {
                Message::Leg(leg) => self.arrive(leg),
                Message::Pair(pair) => self.settle(*pair),
                Message::StopAccepting(ack) => self.stop_accepting(ack),
                Message::End { .. } | Message::Stop => {}
            }
        }
        self.stats.pipes(0, 0);
        // Lets the kernel drop its references to the sockets, so that their last segments leave now.
        let _ = self.readiness.wait(Some(Duration::ZERO), &mut Vec::new());
    }

    fn break_off(&mut self, key: usize, cause: Cause) {
        if let Some(joined) = self.pairs.get_mut(key) {
            joined.pair.break_off(cause);
        }
        self.end_if_over(key);
    }
}
