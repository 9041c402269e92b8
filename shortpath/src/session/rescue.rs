//! What happens when a leg owes word of what it carries. At first suspicion others carry copies of it, the oldest first,
//! and the leg stays selected; when they answer and it does not, the session leaves it.
use std::time::{Duration, Instant};

use super::core::{Event, Session};
use super::leg::Copy;
use super::words::{ChannelId, LegId, MoveCause};

/// Bytes of copies made for suspects, over all of a session's life: this many at once, and as many a second as this and
/// a quarter of what is sent. Suspicion is often wrong on a path that loses packets.
pub(super) const RESCUE_BURST: f64 = 256.0 * 1024.0;
const RESCUE_RATE: f64 = 64.0 * 1024.0;
const RESCUE_SHARE: f64 = 0.25;
/// Between doubts while trouble lasts: first, and most; it doubles. Each costs a PING on a link that all sessions of an end
/// share, and half a dozen of them fit the time after which a paused session is lost.
const DOUBT_AGAIN: Duration = Duration::from_secs(1);
const DOUBT_MOST: Duration = Duration::from_secs(8);

/// What may be spent on copies for suspects.
#[derive(Debug)]
pub(super) struct RescueBudget {
    left: f64,
    at: Option<Instant>,
}

impl RescueBudget {
    pub(super) fn new() -> Self {
        Self { left: RESCUE_BURST, at: None }
    }

    pub(super) fn earn(&mut self, bytes: u64) {
        self.left = (self.left + bytes as f64 * RESCUE_SHARE).min(RESCUE_BURST);
    }

    fn refill(&mut self, now: Instant) -> u64 {
        if let Some(at) = self.at.replace(now) {
            let since = now.saturating_duration_since(at).as_secs_f64();
            self.left = (self.left + since * RESCUE_RATE).min(RESCUE_BURST);
        }
        self.left as u64
    }

    fn spend(&mut self, bytes: u64) {
        self.left = (self.left - bytes as f64).max(0.0);
    }
}

impl Session {
    /// Suspects, copies and leaves what is due at `now`.
    pub(super) fn watch(&mut self, now: Instant, id: LegId) {
        let Some(leg) = self.legs.get_mut(&id) else { return };
        if leg.suspect_at(&self.config).is_some_and(|at| at <= now)
            && let Some(since) = leg.meter.silent_since()
        {
            let timeout = leg.timeout(&self.config);
            leg.health.suspect(now, since, leg.kind, timeout);
            self.raise_doubt(now);
            let channels = self.channels.iter().filter(|(_, channel)| channel.takes_state_from(id));
            let told: Vec<_> = channels.map(|(channel, _)| *channel).collect();
            told.into_iter().for_each(|channel| self.copy_state(id, channel));
            self.rescue(now, id);
            for (other, leg) in &mut self.legs {
                if *other != id {
                    leg.wants_ping();
                }
            }
        }
        self.leave_if_sustained(now, id);
    }

    /// Has the owner look at all paths now, and again while trouble lasts: what a first look missed, as the network was not
    /// back yet or broke once more, a later one finds.
    pub(super) fn raise_doubt(&mut self, now: Instant) {
        self.events.push_back(Event::Doubt);
        self.doubt = Some((now + DOUBT_AGAIN, DOUBT_AGAIN));
    }

    /// Doubts again if that is due at `now`, and what carries the session is still in doubt.
    pub(super) fn repeat_doubt(&mut self, now: Instant) {
        let Some((_, pause)) = self.doubt.take_if(|(at, _)| *at <= now) else { return };
        if self.is_troubled() {
            let pause = (pause * 2).min(DOUBT_MOST);
            self.events.push_back(Event::Doubt);
            self.doubt = Some((now + pause, pause));
        }
    }

    /// What carries the session is in doubt, and nothing has taken its place.
    pub fn is_troubled(&self) -> bool {
        let sound = |leg: &super::leg::Leg| leg.ready && !leg.is_doubtful();
        !self.selected().and_then(|id| self.legs.get(&id)).is_some_and(sound)
    }

    /// When a suspect is left, if another leg has answered.
    pub(super) fn sustained_at(&self, id: LegId) -> Option<Instant> {
        let suspicion = self.legs.get(&id)?.health.suspicion?;
        self.rescuer(id).map(|_| suspicion.sustained_at)
    }

    /// Gives copies of the bytes that `suspect` carries to other legs, as far as there is room.
    pub(super) fn rescue(&mut self, now: Instant, suspect: LegId) {
        let targets = self.rescue_targets(suspect);
        let Some(suspicion) = self.legs.get(&suspect).and_then(|leg| leg.health.suspicion) else {
            return;
        };
        if targets.is_empty() {
            return;
        }
        let room = suspicion.room.min(self.rescued.refill(now));
        let mut left = room;
        let ids: Vec<_> = self.channels.keys().copied().collect();
        for id in ids {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            while left > 0
                && let Some(range) = channel.send.take_uncopied(suspect, left)
            {
                left -= left.min(range.end - range.start);
                Self::copy_to(&mut self.legs, &targets, &Copy::Bytes(id, range));
            }
        }
        self.rescued.spend(room - left);
        if let Some(suspicion) = self.suspicion_of(suspect) {
            suspicion.room -= (room - left).min(suspicion.room);
        }
    }

    /// Something left on a suspect leg besides bytes: others say it too.
    pub(super) fn copy_state(&mut self, suspect: LegId, id: ChannelId) {
        if self.legs.get(&suspect).is_some_and(|leg| leg.health.suspicion.is_some()) {
            let targets = self.rescue_targets(suspect);
            Self::copy_to(&mut self.legs, &targets, &Copy::State(id));
        }
    }

    /// A leg brought `bytes`: suspects' copies may grow by twice that.
    pub(super) fn brought(&mut self, now: Instant, by: LegId, bytes: u64) {
        let suspects: Vec<_> = self.suspects().filter(|id| *id != by).collect();
        for id in suspects {
            if let Some(suspicion) = self.suspicion_of(id) {
                suspicion.room += bytes * 2;
                suspicion.rescued_at.get_or_insert(now);
            }
            self.rescue(now, id);
            self.leave_if_sustained(now, id);
        }
    }

    /// A leg has shown that it carries both ways.
    pub(super) fn leave_suspects(&mut self, now: Instant) {
        let suspects: Vec<_> = self.suspects().collect();
        suspects.into_iter().for_each(|id| self.leave_if_sustained(now, id));
    }

    /// Legs the peer gave up are left at once, when there is another.
    pub(super) fn leave_forsaken(&mut self, now: Instant) {
        self.choose(now);
        let sound = self.selected().and_then(|id| self.legs.get(&id));
        if sound.is_some_and(|leg| leg.ready && !leg.forsaken) {
            let forsaken: Vec<_> =
                self.legs.iter().filter(|(_, leg)| leg.forsaken).map(|(id, _)| *id).collect();
            forsaken.into_iter().for_each(|id| self.reclaim(id));
        }
    }

    fn leave_if_sustained(&mut self, now: Instant, id: LegId) {
        if self.sustained_at(id).is_none_or(|at| at > now) {
            return;
        }
        let Some(leg) = self.legs.get_mut(&id) else { return };
        let Some(suspicion) = leg.health.suspicion else { return };
        leg.health.quarantine(now);
        self.course.leaves(id, MoveCause::Silent, Some(suspicion.stall(now)));
        self.choose(now);
        self.reclaim(id);
    }

    /// A leg that has answered since `suspect` fell silent, and is no suspect itself.
    fn rescuer(&self, suspect: LegId) -> Option<LegId> {
        let since = self.legs.get(&suspect)?.health.suspicion?.silent_since;
        let sound = |id: &LegId| {
            let leg = &self.legs[id];
            leg.health.suspicion.is_none()
                && !leg.health.is_quarantined()
                && leg.answered_since(since)
        };
        self.others(suspect).find(sound)
    }

    /// All other legs in trust, or, if there are none, all others.
    fn rescue_targets(&self, suspect: LegId) -> Vec<LegId> {
        let sound = |id: &LegId| {
            let health = &self.legs[id].health;
            health.suspicion.is_none() && !health.is_quarantined()
        };
        let trusted: Vec<_> = self.others(suspect).filter(sound).collect();
        if trusted.is_empty() { self.others(suspect).collect() } else { trusted }
    }

    fn others(&self, than: LegId) -> impl Iterator<Item = LegId> {
        let usable = move |(id, leg): &(&LegId, &super::leg::Leg)| {
            **id != than && leg.ready && !leg.forsaken && self.config.allowed.contains(&leg.kind)
        };
        self.legs.iter().filter(usable).map(|(id, _)| *id)
    }

    fn suspects(&self) -> impl Iterator<Item = LegId> {
        self.legs.iter().filter(|(_, leg)| leg.health.suspicion.is_some()).map(|(id, _)| *id)
    }

    fn suspicion_of(&mut self, id: LegId) -> Option<&mut super::health::Suspicion> {
        self.legs.get_mut(&id)?.health.suspicion.as_mut()
    }

    fn copy_to(
        legs: &mut std::collections::BTreeMap<LegId, super::leg::Leg>,
        targets: &[LegId],
        copy: &Copy,
    ) {
        for target in targets {
            if let Some(leg) = legs.get_mut(target) {
                leg.push_copy(copy.clone());
            }
        }
    }
}
