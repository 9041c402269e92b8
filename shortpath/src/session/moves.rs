//! Choosing the leg, moving to it, and trying others for bulk. A move is only "next frames go there": what another leg
//! carries stays with it, unless it is given up.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::core::{Event, Session, Stage};
use super::health::Suspicion;
use super::leg::Leg;
use super::meter::LOADED;
use super::select::{Candidate, Standing, select, tie};
use super::words::{LegId, LegKind, MoveCause};

/// Moves and stalls without one that are remembered.
const TIMELINE: usize = 32;
/// As many of them may be stalls that ended without a move: a path that loses packets makes many, and moves say more.
const RECOVERIES: usize = TIMELINE / 2;
/// Bulk without a pause on the selected leg before another is tried for it.
const BUSY: Duration = Duration::from_secs(1);
/// How long another leg is tried beside the selected one: long enough for a new connection to leave its slow start on most
/// paths. Legs that lack different things, as networks, show their rates so.
const TRIAL: Duration = Duration::from_millis(800);
/// Then it has all bulk to itself, if it may be as good: legs that lack the same, as a processor or an access link, only show
/// so what each would achieve. Before that counts, this passes,
const SETTLE: Duration = Duration::from_millis(200);
/// and a round trip and what the other needs to bring what it was given, at most this: bytes wait for those before them.
const SETTLE_MORE: Duration = Duration::from_secs(1);
/// Over this its rate is then taken: longer than hiccups of schedulers and queues.
const ALONE: Duration = Duration::from_millis(400);
/// Pause after a trial in vain, doubled with each, up to [`TRIAL_PAUSE_MAX`]: a trial takes bulk from the faster leg for up to
/// 2.4 s, which costs a long transfer less than a fiftieth then. A change of the network ends the pause.
const TRIAL_PAUSE: Duration = Duration::from_secs(10);
const TRIAL_PAUSE_MAX: Duration = Duration::from_secs(160);
/// A leg's rate is worth comparing for this long.
const RATE_FRESH: Duration = Duration::from_secs(30);
/// What a leg that moves bulk more slowly still has on its way may hold up the rest for this long, beyond two round trips.
const BACKLOG: Duration = Duration::from_millis(100);
/// Ten segments, rounded up.
const FIRST_FLIGHT: u64 = 16 * 1024;

/// One move of a session from leg to leg, or a stall that ended without one: from a kind to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// When.
    pub at: Instant,
    /// From which kind of leg; `None`: the first.
    pub from: Option<LegKind>,
    /// To which kind.
    pub to: LegKind,
    /// Why.
    pub cause: MoveCause,
    /// How long bytes that were on their way came to nothing.
    pub stall: Duration,
}

/// Which leg carries the session, which is tried for bulk, and what came before.
#[derive(Debug, Default)]
pub(super) struct Course {
    pub(super) selected: Option<LegId>,
    /// What the owner was told last.
    announced: Option<(LegId, LegKind)>,
    /// Why the session is about to leave its leg, and since when it stalls.
    leaving: Option<(MoveCause, Option<Duration>)>,
    stalled_since: Option<Instant>,
    /// Since when another leg seems to be better than the selected one.
    wish_since: Option<Instant>,
    trial: Option<Trial>,
    pub(super) timeline: VecDeque<Move>,
}

/// Another leg is tried for bulk.
#[derive(Clone, Copy, Debug)]
struct Trial {
    leg: LegId,
    part: Part,
    until: Instant,
    /// The selected leg when it began, and the bytes a second that one achieved before.
    against: LegId,
    to_beat: u64,
}

/// How far a trial has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The selected leg carries bulk, too: since when, and what the leg on trial had brought by then.
    Beside(Instant, u64),
    /// It carries none any more, but what it was given before.
    Settling,
    /// Nor that: since when, and what the leg on trial had brought by then.
    Alone(Instant, u64),
}

impl Course {
    /// The leg the session is on is given up: `stall` if that is known already.
    pub(super) fn leaves(&mut self, leg: LegId, cause: MoveCause, stall: Option<Duration>) {
        if self.selected == Some(leg) {
            self.leaving = Some((cause, stall));
        }
        self.trial.take_if(|trial| trial.leg == leg);
    }

    pub(super) fn stalls(&mut self, since: Instant) {
        self.stalled_since.get_or_insert(since);
    }
}

impl Session {
    pub(super) fn selected(&self) -> Option<LegId> {
        self.course.selected
    }

    /// Selects anew after anything that selection depends on has changed.
    pub(super) fn choose(&mut self, now: Instant) {
        let selected = self.course.selected;
        let allowed = |kind: LegKind| self.config.allowed.contains(&kind);
        let legs = self.legs.iter().filter(|(_, leg)| allowed(leg.kind));
        let mut candidates: Vec<_> =
            legs.map(|(id, leg)| leg.candidate(now, *id, Some(*id) == selected)).collect();
        self.spare_bulk(now, &mut candidates);
        let mut best = select(selected, &candidates, !self.begun);
        match planned(selected, best, &candidates) {
            None => self.course.wish_since = None,
            Some(cost) => {
                let since = *self.course.wish_since.get_or_insert(now);
                let shows =
                    |leg| self.legs.get(&leg).is_some_and(|leg| shows(now, leg, since, cost));
                if !best.is_some_and(shows) {
                    candidates.retain(|one| Some(one.leg) == selected || shows(one.leg));
                    best = select(selected, &candidates, !self.begun);
                    self.ask_others(now, since);
                }
            }
        }
        self.course.selected = best;
        self.announce(now);
        self.leave_nothing(now, selected);
    }

    /// What the leg that the session leaves still carries leaves again where it goes, if the leg is not to be trusted with it.
    fn leave_nothing(&mut self, now: Instant, before: Option<LegId>) {
        let Some(left) = before.filter(|id| self.course.selected != Some(*id)) else { return };
        if self.had_to_carry(left) || self.may_hold_back(now, left) {
            self.reclaim(left);
        }
    }

    /// It is in quarantine, and there was no other: it is not suspected a second time.
    fn had_to_carry(&self, leg: LegId) -> bool {
        self.legs.get(&leg).is_some_and(|leg| leg.health.is_quarantined())
    }

    /// It has hardly begun, and what it carries is little enough to be sent twice: a new TCP connection holds back what is beyond
    /// its first ten segments (RFC 6928) for a round trip, and what left elsewhere since then would wait for that.
    fn may_hold_back(&mut self, now: Instant, leg: LegId) -> bool {
        let Some(limits) = self.config.redundancy else { return false };
        let Some(leg) = self.legs.get(&leg).filter(|leg| leg.rtt.is_young()) else { return false };
        let bytes = leg.meter.outstanding();
        let worth = bytes > 0 && bytes <= FIRST_FLIGHT && self.budget.take(now, &limits, bytes);
        if worth {
            self.copies_sent(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        worth
    }

    /// While there is bulk, a leg that is known to be slower than the selected one is no better for being nearer: queues of bulk
    /// are most of what the selected one's round trips take.
    fn spare_bulk(&self, now: Instant, candidates: &mut [Candidate]) {
        let Some(selected) = self.selected() else { return };
        let loaded = self.legs.get(&selected).is_some_and(|leg| leg.meter.is_loaded());
        if !loaded && self.course.trial.is_none() {
            return;
        }
        let to_beat = self.rate(selected);
        let slower = |one: &&mut Candidate| {
            let rate = self.known_rate(now, one.leg);
            one.leg != selected && rate.is_some_and(|rate| is_faster(to_beat, rate))
        };
        let well = candidates.iter_mut().filter(|one| one.standing == Standing::Well);
        well.filter(slower).for_each(|one| one.standing = Standing::Demoted);
    }

    /// Bulk has kept the selected leg busy for long enough to judge.
    fn is_busy(&self, now: Instant) -> bool {
        let since = self.selected_leg().and_then(|leg| leg.meter.busy_since(now));
        since.is_some_and(|since| since + BUSY <= now)
    }

    /// Bytes a second a leg achieved lately.
    fn known_rate(&self, now: Instant, leg: LegId) -> Option<u64> {
        let (rate, at) = self.legs.get(&leg)?.meter.rate()?;
        (now.saturating_duration_since(at) < RATE_FRESH).then_some(rate)
    }

    /// Measures the legs that stand by: their answers decide.
    fn ask_others(&mut self, now: Instant, since: Instant) {
        let selected = self.selected();
        let others = self.legs.iter_mut().filter(|(id, _)| Some(**id) != selected);
        let unasked = others.filter(|(_, leg)| leg.took_since(now, since).is_none());
        unasked.for_each(|(_, leg)| leg.wants_ping());
    }

    fn announce(&mut self, now: Instant) {
        let Some((id, leg)) = self.course.selected.and_then(|id| Some((id, self.legs.get(&id)?)))
        else {
            return;
        };
        let carries = leg.ready || leg.is_eager();
        if !carries || self.course.announced.is_some_and(|(told, _)| told == id) {
            return;
        }
        let before = self.course.announced.replace((id, leg.kind));
        let from = before.map(|(_, kind)| kind);
        let (cause, stall) = match self.course.leaving.take() {
            _ if from.is_none() => (MoveCause::First, Some(Duration::ZERO)),
            Some(leaving) => leaving,
            // Planned, unless the one before was silent when it came.
            None => (MoveCause::Better, Some(self.held_up(now, before.map(|(id, _)| id)))),
        };
        let since = self.course.stalled_since.take();
        let stall = stall
            .or_else(|| since.map(|since| now.saturating_duration_since(since)))
            .unwrap_or_default();
        let to = leg.kind;
        if cause == MoveCause::Better
            && let Some(left) = before.and_then(|(id, _)| self.legs.get_mut(&id))
            && !left.rtt.is_young()
        {
            // Coming back at once would be flapping between two that are as bad as each other. One that is hardly known may
            // have been left too soon.
            left.health.demote(now);
        }
        self.remember(Move { at: now, from, to, cause, stall });
    }

    /// For how long `leg` holds bytes up.
    fn held_up(&self, now: Instant, leg: Option<LegId>) -> Duration {
        let suspicion = leg.and_then(|id| self.legs.get(&id)?.health.suspicion);
        suspicion.map_or(Duration::ZERO, |suspicion| suspicion.stall(now))
    }

    /// The leg answers again that was suspected: what it carries was held up until then, or until others brought copies.
    pub(super) fn recovered(&mut self, now: Instant, id: LegId, suspicion: &Suspicion) {
        let Some(leg) = self.legs.get(&id).filter(|_| self.selected() == Some(id)) else { return };
        let (from, to, cause) = (Some(leg.kind), leg.kind, MoveCause::Recovered);
        let stall = suspicion.stall(now);
        self.remember(Move { at: now, from, to, cause, stall });
    }

    fn remember(&mut self, moved: Move) {
        let timeline = &mut self.course.timeline;
        let without = |moved: &Move| moved.cause == MoveCause::Recovered;
        if without(&moved) && timeline.iter().filter(|it| without(it)).count() >= RECOVERIES {
            let oldest = timeline.iter().position(without);
            oldest.and_then(|oldest| timeline.remove(oldest));
        } else if timeline.len() >= TIMELINE {
            timeline.pop_front();
        }
        timeline.push_back(moved);
        let Move { from, to, cause, stall, .. } = moved;
        self.events.push_back(Event::Moved { from, to, cause, stall });
    }

    /// Bulk may leave on `leg`.
    pub(super) fn takes_bulk(&self, leg: LegId) -> bool {
        match &self.course.trial {
            Some(trial) if trial.leg == leg => true,
            Some(trial) if self.is_alone(trial) => false,
            _ => self.selected() == Some(leg),
        }
    }

    /// The trial has all bulk: only as long as nothing depends on that.
    fn is_alone(&self, trial: &Trial) -> bool {
        let brings = |leg: &Leg| leg.may_carry() && leg.health.suspicion.is_none();
        !matches!(trial.part, Part::Beside(..))
            && matches!(self.stage, Stage::Open)
            && self.legs.get(&trial.leg).is_some_and(brings)
    }

    /// When a trial begins or ends.
    pub(super) fn trial_timeout(&self) -> Option<Instant> {
        if let Some(trial) = &self.course.trial {
            return Some(trial.until);
        }
        let busy = self.selected_leg()?.meter.loaded_since()? + BUSY;
        let next = self.rivals().filter_map(|id| self.legs.get(&id)?.trial_at).min();
        let untried = self.rivals().any(|id| self.legs[&id].trial_at.is_none());
        if untried { Some(busy) } else { next.map(|at| at.max(busy)) }
    }

    /// While bulk keeps the selected leg busy: moves to one that is known to be faster, or tries one that is not known.
    pub(super) fn compare_rates(&mut self, now: Instant) {
        if let Some(trial) = self.course.trial {
            if trial.until <= now {
                self.go_on_with(now, trial);
            }
            return;
        }
        if !self.is_busy(now) {
            return;
        }
        let Some(against) = self.selected() else { return };
        let to_beat = self.rate(against);
        let beats =
            |id: &LegId| self.known_rate(now, *id).is_some_and(|rate| is_faster(rate, to_beat));
        let faster = self.rivals().find(beats);
        if let Some(rival) = faster {
            return self.move_bulk(now, rival);
        }
        let due = |id: &LegId| self.legs[id].trial_at.is_none_or(|at| at <= now);
        let untried = self.rivals().find(due);
        if let Some(rival) = untried {
            let brought = self.legs[&rival].meter.brought();
            let (until, part) = (now + TRIAL, Part::Beside(now, brought));
            self.course.trial = Some(Trial { leg: rival, part, until, against, to_beat });
        }
    }

    fn selected_leg(&self) -> Option<&Leg> {
        self.selected().and_then(|id| self.legs.get(&id))
    }

    /// Legs that may carry bulk instead of the selected one.
    fn rivals(&self) -> impl Iterator<Item = LegId> {
        let selected = self.selected();
        self.legs
            .iter()
            .filter(move |(id, leg)| {
                let trusted =
                    leg.ready && !leg.forsaken && !leg.left && !leg.health.is_quarantined();
                Some(**id) != selected && trusted && leg.health.suspicion.is_none()
            })
            .filter(|(_, leg)| self.config.allowed.contains(&leg.kind))
            .map(|(id, _)| *id)
    }

    /// Bytes a second a leg achieved when last busy.
    fn rate(&self, leg: LegId) -> u64 {
        self.legs.get(&leg).and_then(|leg| leg.meter.rate()).map_or(0, |(rate, _)| rate)
    }

    /// What comes after a part of a trial: the move, the next part, or the end.
    fn go_on_with(&mut self, now: Instant, trial: Trial) {
        let trusted = self.rivals().any(|id| id == trial.leg);
        let backlog = self.backlog(trial.against);
        let Some(leg) = self.legs.get_mut(&trial.leg).filter(|_| trusted) else {
            return self.end_trial(now, trial);
        };
        let (part, lasts) = match trial.part {
            Part::Beside(since, before) if may_be_as_good(leg, since, before, trial.to_beat) => {
                let trip = leg.rtt.smoothed().unwrap_or_default();
                (Part::Settling, SETTLE + (trip + backlog).min(SETTLE_MORE))
            }
            Part::Settling => (Part::Alone(now, leg.meter.brought()), ALONE),
            Part::Alone(since, brought) => {
                leg.meter.takes_rate(now, since, brought);
                return self.end_trial(now, trial);
            }
            Part::Beside(..) => return self.end_trial(now, trial),
        };
        self.course.trial = Some(Trial { part, until: now + lasts, ..trial });
    }

    fn end_trial(&mut self, now: Instant, Trial { leg: trial, against, to_beat, .. }: Trial) {
        self.course.trial = None;
        if self.rivals().any(|rival| rival == trial) && is_faster(self.rate(trial), to_beat) {
            return self.move_bulk(now, trial);
        }
        if let Some(leg) = self.legs.get_mut(&trial) {
            leg.rest_from_trials(now);
        }
        if let Some(leg) = self.legs.get_mut(&against) {
            leg.meter.resumes(now, to_beat);
        }
        // What it was given must not hold up what the selected leg brings.
        if self.selected() != Some(trial) && self.backlog(trial) > BACKLOG {
            self.reclaim(trial);
        }
    }

    fn move_bulk(&mut self, now: Instant, rival: LegId) {
        let Some(slow) = self.selected() else { return };
        let trip = self.legs.get(&rival).and_then(|leg| leg.rtt.smoothed()).unwrap_or_default();
        let backlog = self.backlog(slow);
        self.course.leaves(slow, MoveCause::Throttled, Some(Duration::ZERO));
        if let Some(leg) = self.legs.get_mut(&slow) {
            leg.health.demote(now);
            leg.rest_from_trials(now);
        }
        if let Some(leg) = self.legs.get_mut(&rival) {
            leg.trials = 0;
            leg.trial_at = Some(now + TRIAL_PAUSE);
            leg.health.promote();
        }
        // Others would take over by preference, and have not shown that they are as fast.
        let best = self.rate(rival);
        let others = self.legs.iter_mut().filter(|(id, _)| **id != rival && **id != slow);
        let slower = others.filter(|(_, leg)| {
            let shown = leg.meter.rate().is_some_and(|(rate, _)| rate >= best);
            !shown && !leg.health.is_demoted(now)
        });
        slower.for_each(|(_, leg)| leg.health.demote(now));
        self.choose(now);
        if self.selected() != Some(slow) && backlog > trip * 2 + BACKLOG {
            self.reclaim(slow);
        }
    }

    /// How long a leg takes to bring what it was given, at the rate it achieved.
    fn backlog(&self, leg: LegId) -> Duration {
        let Some(leg) = self.legs.get(&leg) else { return Duration::ZERO };
        let rate = leg.meter.rate().map_or(1, |(rate, _)| rate.max(1));
        let micros = u128::from(leg.meter.outstanding()) * 1_000_000 / u128::from(rate);
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX).min(1 << 40))
    }
}

impl Leg {
    /// It has just shown that it is not the faster one.
    fn rest_from_trials(&mut self, now: Instant) {
        let pause = TRIAL_PAUSE * 2_u32.pow(self.trials.min(4));
        self.trials += 1;
        self.trial_at = Some(now + pause.min(TRIAL_PAUSE_MAX));
    }
}

/// What a trial beside the selected leg has shown, since then and beyond the bytes brought before: not that the leg is faster,
/// nor that it is much slower. One that was without a load brought what it was given: the selected one takes what it can hold,
/// which may be all there is, however slowly it brings that.
fn may_be_as_good(leg: &Leg, since: Instant, before: u64, to_beat: u64) -> bool {
    let starved = leg.meter.was_empty_since(since);
    match leg.meter.rate().filter(|(_, at)| *at > since) {
        Some((rate, _)) => !is_faster(rate, to_beat) && (starved || rate >= to_beat / 4),
        None => starved || leg.meter.brought() - before >= LOADED,
    }
}

/// What the selected leg costs, if going to `best` is a planned move: nothing ails the one that is left.
fn planned(
    selected: Option<LegId>,
    best: Option<LegId>,
    candidates: &[Candidate],
) -> Option<Duration> {
    let find = |leg: Option<LegId>| candidates.iter().find(|one| Some(one.leg) == leg);
    let (from, to) = find(selected).zip(find(best))?;
    let sound = from.standing == to.standing && from.standing >= Standing::Demoted;
    from.cost.filter(|_| sound && from.leg != to.leg)
}

/// What was measured since another leg seemed better bears out that this one is better than one that costs `cost`. What makes
/// the selected leg worse has often made the others that share its way worse, too, and those that stand by are measured rarely.
/// One PING may be late by chance, so it need not be better by a whole margin.
fn shows(now: Instant, leg: &Leg, since: Instant, cost: Duration) -> bool {
    leg.is_new(now) || leg.took_since(now, since).is_some_and(|rtt| rtt <= cost + tie(cost))
}

/// Faster by more than a tenth.
fn is_faster(rate: u64, than: u64) -> bool {
    rate / 11 > than / 10
}
