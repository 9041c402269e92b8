//! Legs arrive, wait, meet or leave.
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::inbox::{Farewell, NewLeg};
use super::readiness::Event;
use super::slots::{Joined, Leg, Place, Spill, Tube};
use super::turn::Worker;
use crate::gateway::{Arrival, Waiting};
use crate::relay::{Direction, Pair, PairMeter, Readiness};
use crate::rtt::Window;
use crate::{GatewayEvent, LegSide, PairId, Refusal};

impl Worker {
    /// An admitted leg came from the front.
    pub(crate) fn arrive(&mut self, new: NewLeg) {
        let admitted = new.admitted;
        let pair = admitted.pair;
        if self.stopping {
            return self.turn_away(new.socket, pair, admitted.side, Refusal::Draining);
        }
        if self.active.contains_key(&pair) || self.room.side(pair) == Some(admitted.side) {
            // The pair's own leg stays and its owner is not told: this one never belonged to the meeting.
            return self.send_away(new.socket, Refusal::LegDuplicate);
        }
        if self.room.side(pair).is_none() && !self.shared.enter_waiting() {
            return self.turn_away(new.socket, pair, admitted.side, Refusal::LegLimit);
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
    }

    /// Unregisters a leg and returns its socket.
    pub(crate) fn take_socket(&mut self, slot: usize) -> Option<OwnedFd> {
        let leg = self.legs.remove(slot)?;
        self.readiness.deregister(leg.socket.as_fd(), leg.token);
        Some(leg.socket)
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
        let refusal = if !self.shared.enter_pair() {
            Some(Refusal::PairLimit)
        } else if self.watch(slot).is_err() {
            self.shared.leave_pair();
            Some(Refusal::PairLimit)
        } else {
            None
        };
        match (refusal, side) {
            (Some(refusal), _) => self.dismiss_both(pair, side, [slot, mate], refusal),
            (None, LegSide::Client) => self.join(pair, slot, mate),
            (None, LegSide::Agent) => self.join(pair, mate, slot),
        }
    }

    fn dismiss_both(&mut self, pair: PairId, side: LegSide, legs: [usize; 2], refusal: Refusal) {
        legs.into_iter().for_each(|slot| self.dismiss(slot, refusal));
        self.tell(GatewayEvent::LegGone { pair, side: side.mate(), refusal: Some(refusal) });
        self.tell(GatewayEvent::LegGone { pair, side, refusal: Some(refusal) });
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
        let Some((client_said, client_ready, client_peer)) = moved_in(client, LegSide::Client)
        else {
            return;
        };
        let Some((agent_said, agent_ready, agent_peer)) = moved_in(agent, LegSide::Agent) else {
            return;
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
            windows: [Window::default(), Window::default()],
            moved: false,
        });
        self.active.insert(id, key);
        self.stats.pair_started();
        self.tell(GatewayEvent::PairStarted {
            pair: id,
            client: client_peer,
            agent: agent_peer,
            meter,
        });
        self.sample_pair(key);
        Direction::BOTH.into_iter().for_each(|direction| self.queue_fresh(key, direction));
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

    fn send_away(&self, socket: OwnedFd, refusal: Refusal) {
        self.shared.refused(refusal);
        // Without a front (it ends after the workers, so only if it failed) the socket is closed without its alert.
        let _ = self.farewells.send(Farewell { socket, refusal });
    }
}
