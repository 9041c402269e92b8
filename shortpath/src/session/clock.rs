//! Everything that happens because time passes.
use std::time::{Duration, Instant};

use super::channel::AckDue;
use super::close::CloseReason;
use super::core::{Event, Session, Stage};
use super::words::LegId;

/// [`super::SessionConfig::suspect_after`] at most while nothing else carries the session. A healthy TCP leg has sent a lost
/// packet again after 200 ms and a round trip, and four round trips are waited for anyway; another leg made for nothing, as
/// two losses in a row happen, costs a few packets.
const SUSPECT_SOLE_AFTER: Duration = Duration::from_millis(300);

impl Session {
    /// When [`Self::handle_timeout`] is due next; it may lie in the past. `None`: nothing is waited for.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        if self.is_closed() {
            return None;
        }
        self.trim_delayed();
        let mut next = self.delayed.front().map(|(at, _)| *at);
        let mut consider = |at: Option<Instant>| {
            if let Some(at) = at {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        };
        for (id, leg) in &self.legs {
            consider(leg.suspect_at(&self.config));
            consider(self.sustained_at(*id));
            consider(leg.alarm_at(self.alarm_after(*id), self.config.suspect_after));
            consider(leg.dead_at(&self.config).map(|(at, _)| at));
            consider(leg.ping_at(&self.config).filter(|_| !leg.ping_wanted));
            consider(leg.seen_at());
            consider(leg.spaced.front().map(|(at, ..)| *at));
            consider(leg.health.demoted_until());
        }
        consider(self.trial_timeout());
        consider(self.down_since.map(|since| since + self.config.resume_window));
        consider(self.doubt.map(|(at, _)| at));
        if let Stage::Closing(_, deadline) = self.stage {
            consider(Some(deadline));
        }
        next
    }

    /// Does what is due at `now`. Calling it early or often is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.is_closed() {
            return;
        }
        if let Stage::Closing(code, deadline) = self.stage
            && deadline <= now
        {
            return self.end(CloseReason::ByUs(code), Some(code));
        }
        if self.down_since.is_some_and(|since| since + self.config.resume_window <= now) {
            return self.end(CloseReason::Lost, None);
        }
        self.release_acks(now);
        self.ripen(now);
        let legs: Vec<_> = self.legs.keys().copied().collect();
        legs.into_iter().for_each(|leg| self.check_leg(now, leg));
        self.compare_rates(now);
        self.repeat_doubt(now);
    }

    fn release_acks(&mut self, now: Instant) {
        while self.delayed.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, id)) = self.delayed.pop_front() else { return };
            if let Some(channel) = self.channels.get_mut(&id)
                && channel.ack == AckDue::Delayed
            {
                channel.ack = AckDue::Now;
                self.enqueue_control(id);
            }
        }
    }

    fn check_leg(&mut self, now: Instant, id: LegId) {
        let Some(leg) = self.legs.get_mut(&id) else { return };
        if let Some((at, error)) = leg.dead_at(&self.config)
            && at <= now
        {
            return self.give_up(now, id, error);
        }
        if leg.ping_at(&self.config).is_some_and(|at| at <= now) {
            leg.ping_wanted = true;
        }
        if leg.seen_at().is_some_and(|at| at <= now) {
            leg.seen_due = AckDue::Now;
        }
        let (least, unmet) = (self.alarm_after(id), self.config.suspect_after);
        if let Some(leg) = self.legs.get_mut(&id)
            && leg.alarm_at(least, unmet).is_some_and(|at| at <= now)
        {
            leg.alarmed = true;
            self.alarm(id);
        }
        self.watch(now, id);
        if self.legs.get_mut(&id).is_some_and(|leg| leg.health.forgive(now)) {
            self.choose(now);
        }
    }

    /// Least silence before the owner is told.
    fn alarm_after(&self, id: LegId) -> Duration {
        let least = self.config.suspect_after;
        if self.has_other(id) { least } else { least.min(SUSPECT_SOLE_AFTER) }
    }

    /// Another leg is well.
    fn has_other(&self, id: LegId) -> bool {
        self.legs.iter().any(|(other, leg)| *other != id && leg.is_well())
    }

    /// Tells the owner to make another leg, unless a UDP leg fell silent that others stand in for.
    fn alarm(&mut self, id: LegId) {
        let udp = self.legs.get(&id).is_some_and(|leg| leg.kind.is_udp());
        if !udp || !self.has_other(id) {
            self.events.push_back(Event::LegSuspect(id));
        }
    }

    /// Drops entries whose acknowledgement has left with other frames.
    fn trim_delayed(&mut self) {
        while let Some((_, id)) = self.delayed.front() {
            if self.channels.get(id).is_some_and(|channel| channel.ack == AckDue::Delayed) {
                return;
            }
            self.delayed.pop_front();
        }
    }
}
