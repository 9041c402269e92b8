//! Legs arrive, wait, meet or leave.
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::inbox::{MovedLeg, MovedPair, NewLeg};
use super::readiness::Event;
use super::slots::{Joined, Leg, Place, Spill, Tube};
use super::turn::Worker;
use crate::gateway::{Arrival, Waiting};
use crate::relay::{Direction, Pair, PairMeter, Readiness};
use crate::rtt::Spot;
use crate::{GatewayEvent, LegSide, PairId, Refusal};

impl Worker {
    /// An admitted leg is here: accepted by this worker, or sent by the desk or by another worker.
    pub(crate) fn arrive(&mut self, new: NewLeg) {
        let (pair, side) = (new.admitted.pair, new.admitted.side);
        if self.draining {
            return self.turn_away(new.socket, pair, side, Refusal::Draining);
        }
        let home = self.crew.homes.claim(pair, self.index);
        if home == self.index {
            self.take_in(new);
        } else if let Err(leg) = self.crew.send_leg(home, new) {
            self.turn_away(leg.socket, pair, side, Refusal::LegLimit);
        }
    }

    /// Two legs that met on another worker are to be relayed here.
    pub(crate) fn settle(&mut self, moved: MovedPair) {
        let MovedPair { pair, legs } = moved;
        let [client, agent] = legs.map(|leg| {
            self.legs.insert(|token| Leg {
                socket: leg.socket,
                token,
                peer: leg.peer,
                place: Place::Waiting(pair),
                said: leg.said,
                ready: Readiness::default(),
                tuning: leg.tuning,
            })
        });
        let refusal = if self.stopping {
            Some(Refusal::Draining)
        } else {
            let watched = self.watch(client).and_then(|()| self.watch(agent));
            watched.is_err().then_some(Refusal::PairLimit)
        };
        match refusal {
            None => self.join(pair, client, agent),
            Some(refusal) => self.undo_pair(pair, [client, agent], refusal),
        }
    }

    /// A leg has come home: it waits, meets its mate, or is refused.
    fn take_in(&mut self, new: NewLeg) {
        let admitted = new.admitted;
        let pair = admitted.pair;
        if self.active.contains_key(&pair) || self.room.side(pair) == Some(admitted.side) {
            // The pair's own leg stays and its owner is not told: this one never belonged to the meeting.
            return self.send_away(new.socket, Refusal::LegDuplicate);
        }
        if self.room.side(pair).is_none() && !self.shared.enter_waiting() {
            self.turn_away(new.socket, pair, admitted.side, Refusal::LegLimit);
            return self.crew.homes.release(pair);
        }
        let slot = self.legs.insert(|token| Leg {
            socket: new.socket,
            token,
            peer: new.peer,
            place: Place::Waiting(pair),
            said: new.said,
            ready: Readiness::default(),
            tuning: admitted.tuning,
        });
        match self.room.arrive(Instant::now(), pair, admitted.side, admitted.patience, slot) {
            Arrival::Meets(mate) => {
                self.shared.leave_waiting();
                self.meet(pair, admitted.side, slot, mate);
            }
            Arrival::Waits => {
                self.tell(GatewayEvent::LegWaiting { pair, side: admitted.side });
                self.watch_waiting(pair, slot);
            }
            Arrival::Duplicate => self.dismiss(slot, Refusal::LegDuplicate),
        }
    }

    /// An event of a leg.
    pub(crate) fn note_leg(&mut self, slot: usize, event: Event) {
        let Some(leg) = self.legs.get_mut(slot) else { return };
        match leg.place {
            Place::Joined { pair, side } => self.note_joined(pair, side, event),
            Place::Waiting(pair) if event.ready.hangup => self.hung_up(pair),
            Place::Waiting(_) => leg.ready.add(event.ready),
        }
    }

    /// Sends away every leg whose patience is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((pair, gone)) = self.room.expire(now) {
            self.leave(pair, gone, Some(Refusal::LegUnpaired));
        }
    }

    /// A waiting leg, already taken out of the room, goes.
    pub(crate) fn leave(&mut self, pair: PairId, gone: Waiting<usize>, refusal: Option<Refusal>) {
        self.shared.leave_waiting();
        match refusal {
            Some(refusal) => self.dismiss(gone.leg, refusal),
            None => drop(self.take_socket(gone.leg)),
        }
        self.tell(GatewayEvent::LegGone { pair, side: gone.side, refusal });
        self.crew.homes.release(pair);
    }

    /// Unregisters a leg and returns its socket.
    pub(crate) fn take_socket(&mut self, slot: usize) -> Option<OwnedFd> {
        self.take_leg(slot).map(|leg| leg.socket)
    }

    /// Tells the others how many pairs are relayed here.
    pub(crate) fn publish_pairs(&self) {
        if !self.stopping {
            self.crew.publish_pairs(self.index, self.pairs.len());
        }
    }

    fn take_leg(&mut self, slot: usize) -> Option<Leg> {
        let leg = self.legs.remove(slot)?;
        self.readiness.deregister(leg.socket.as_fd(), leg.token);
        Some(leg)
    }

    pub(crate) fn tell(&self, event: GatewayEvent) {
        (self.events)(event);
    }

    fn watch_waiting(&mut self, pair: PairId, slot: usize) {
        if self.watch(slot).is_err()
            && let Some(gone) = self.room.leave(pair)
        {
            self.leave(pair, gone, Some(Refusal::LegLimit));
        }
    }

    fn watch(&mut self, slot: usize) -> std::io::Result<()> {
        let Some(leg) = self.legs.get(slot) else { return Ok(()) };
        self.readiness.register(leg.socket.as_fd(), leg.token)
    }

    fn hung_up(&mut self, pair: PairId) {
        if let Some(gone) = self.room.leave(pair) {
            self.leave(pair, gone, None);
        }
    }

    /// `slot` arrived and `mate` was waiting; it is out of the room already.
    fn meet(&mut self, pair: PairId, side: LegSide, slot: usize, mate: usize) {
        if !self.shared.enter_pair() {
            return self.dismiss_both(pair, side, [slot, mate], Refusal::PairLimit);
        }
        let [client, agent] = match side {
            LegSide::Client => [slot, mate],
            LegSide::Agent => [mate, slot],
        };
        let place = self.crew.place(self.index);
        if place != self.index {
            self.give_away(pair, [client, agent], place);
        } else if self.watch(slot).is_err() {
            self.undo_pair(pair, [client, agent], Refusal::PairLimit);
        } else {
            self.join(pair, client, agent);
        }
    }

    /// Another worker has more time for this pair.
    fn give_away(&mut self, pair: PairId, slots: [usize; 2], worker: usize) {
        let [Some(client), Some(agent)] = slots.map(|slot| self.take_leg(slot)) else {
            return self.undo_pair(pair, slots, Refusal::PairLimit);
        };
        let moved = |leg: Leg| MovedLeg {
            socket: leg.socket,
            peer: leg.peer,
            said: leg.said,
            tuning: leg.tuning,
        };
        let moved = Box::new(MovedPair { pair, legs: [client, agent].map(moved) });
        if let Err(unsent) = self.crew.move_pair(worker, moved) {
            self.settle(*unsent);
        }
    }

    /// Two legs that have a pair's place do not become one.
    fn undo_pair(&mut self, pair: PairId, legs: [usize; 2], refusal: Refusal) {
        self.shared.leave_pair();
        self.dismiss_both(pair, LegSide::Client, legs, refusal);
    }

    fn dismiss_both(&mut self, pair: PairId, side: LegSide, legs: [usize; 2], refusal: Refusal) {
        legs.into_iter().for_each(|slot| self.dismiss(slot, refusal));
        self.tell(GatewayEvent::LegGone { pair, side: side.mate(), refusal: Some(refusal) });
        self.tell(GatewayEvent::LegGone { pair, side, refusal: Some(refusal) });
        self.crew.homes.release(pair);
    }

    /// Sets what the client's ticket, or else the agent's, brought for both legs.
    fn tune(&mut self, pair: PairId, client: usize, agent: usize) {
        let mut brought = |slot| self.legs.get_mut(slot).and_then(|leg| leg.tuning.take());
        let (from_client, from_agent) = (brought(client), brought(agent));
        let Some(tuning) = from_client.or(from_agent) else { return };
        for leg in [client, agent].into_iter().filter_map(|slot| self.legs.get(slot)) {
            if let Err(refused) = tuning.apply_to_connection(&leg.socket) {
                // It was tried before the resource was offered, so the kernel has changed its mind since.
                tracing::warn!(%pair, peer = %leg.peer, %refused, "a leg goes without its resource's tuning");
            }
        }
    }

    /// Two legs become a pair. What each has said is pending for the other.
    fn join(&mut self, id: PairId, client: usize, agent: usize) {
        self.tune(id, client, agent);
        let key = self.pairs.vacant_key();
        let mut moved_in = |slot: usize, side| {
            let leg = self.legs.get_mut(slot)?;
            leg.place = Place::Joined { pair: key, side };
            Some((std::mem::take(&mut leg.said), leg.ready, leg.peer))
        };
        let both = (moved_in(client, LegSide::Client), moved_in(agent, LegSide::Agent));
        let (
            Some((client_said, client_ready, client_peer)),
            Some((agent_said, agent_ready, agent_peer)),
        ) = both
        else {
            return self.undo_pair(id, [client, agent], Refusal::PairLimit);
        };
        let mut pair = Pair::new(client_said.len(), agent_said.len());
        pair.signal(LegSide::Client, client_ready);
        pair.signal(LegSide::Agent, agent_ready);
        let meter = Arc::new(PairMeter::default());
        let tube = |said| Tube { spill: Spill::new(said), ..Tube::default() };
        self.pairs.insert(Joined {
            id,
            pair,
            legs: [client, agent],
            tubes: [tube(client_said), tube(agent_said)],
            started: Instant::now(),
            meter: meter.clone(),
            sampling: Spot::default(),
        });
        self.active.insert(id, key);
        self.stats.pair_started();
        self.tell(GatewayEvent::PairStarted {
            pair: id,
            client: client_peer,
            agent: agent_peer,
            meter,
        });
        self.publish_pairs();
        Direction::BOTH.into_iter().for_each(|direction| self.enqueue(key, direction));
    }

    /// Sends away a leg that was admitted but never got into the room.
    fn turn_away(&self, socket: OwnedFd, pair: PairId, side: LegSide, refusal: Refusal) {
        self.send_away(socket, refusal);
        self.tell(GatewayEvent::LegGone { pair, side, refusal: Some(refusal) });
    }

    fn dismiss(&mut self, slot: usize, refusal: Refusal) {
        if let Some(socket) = self.take_socket(slot) {
            self.send_away(socket, refusal);
        }
    }
}
