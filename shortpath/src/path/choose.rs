//! Which pair the finder uses, and which it gives up.
//!
//! The lowest round-trip time wins; priority decides among equals. A change needs a gain of 5 ms or 15 %, so that two
//! equal pairs do not take turns. A pair that ends soon, as a mapping comes of age, is left for any good one. The controlling end nominates what it selects with USE-CANDIDATE on every check there;
//! the controlled end selects what the peer nominated last, once its own check has been answered.
use std::time::{Duration, Instant};

use super::finder::Finder;
use super::pair::{Pair, PairState};
use super::settings::FinderEvent;
use super::{CandidateKind, CauseText, Route};

/// A gain below that is no reason to move.
const GAIN: Duration = Duration::from_millis(5);

impl Finder {
    /// Whether checks go on: failed pairs only while they may matter, and only the best of them; of the good pairs the
    /// selected one and a few standbys.
    pub(super) fn wants_check(&self, pair: &Pair) -> bool {
        if pair.triggered || self.selected == Some(pair.route) {
            return true;
        }
        match pair.state {
            PairState::Waiting | PairState::Checking => true,
            PairState::Succeeded => pair.tries > 0 || self.is_standby(pair),
            PairState::Failed => self.is_worth_a_retry(pair),
        }
    }

    /// One of the best good pairs of its base besides the selected one.
    fn is_standby(&self, pair: &Pair) -> bool {
        let of_base = self.pairs.iter().filter(|other| other.route.local == pair.route.local);
        let good = of_base.filter(|other| other.state == PairState::Succeeded);
        let besides = good.filter(|other| self.selected != Some(other.route));
        let before = |other: &&Pair| (other.priority, other.route) > (pair.priority, pair.route);
        besides.filter(before).count() < self.timing.standbys
    }

    /// One of the likeliest pairs that failed, and better by priority than what is in use.
    pub(super) fn is_worth_a_retry(&self, pair: &Pair) -> bool {
        let rank = |pair: &Pair| (retry_rank(pair.remote_kind), pair.priority, pair.route);
        let failed = |other: &&Pair| other.rounds > 0 && other.state != PairState::Succeeded;
        let before = self.pairs.iter().filter(failed).filter(|other| rank(other) > rank(pair));
        self.selected_pair().is_none_or(|used| used.priority < pair.priority)
            && before.count() < self.timing.retry_pairs
    }

    /// Worth a retry, and its last round is long enough ago.
    pub(super) fn is_rested(&self, now: Instant, pair: &Pair) -> bool {
        let pause = self.timing.retry_first;
        let rested = |at: Instant| now.saturating_duration_since(at) >= pause;
        pair.failed.is_some_and(rested) && self.is_worth_a_retry(pair)
    }

    /// Fails pairs that answered none of a round's checks, and those whose consent has expired.
    pub(super) fn give_up(&mut self, now: Instant) {
        let timing = self.timing.clone();
        for at in 0..self.pairs.len() {
            if self.pairs[at].due > now {
                continue;
            }
            let retry = self.is_worth_a_retry(&self.pairs[at]);
            let pair = &mut self.pairs[at];
            let tries = if pair.rounds == 0 { timing.tries } else { timing.retry_tries };
            let silent = || pair.alive().is_none_or(|at| at + timing.consent_lost <= now);
            match pair.state {
                PairState::Checking if pair.tries >= tries => pair.fail(now, &timing),
                PairState::Succeeded if pair.tries >= timing.retry_tries && silent() => {
                    pair.fail(now, &timing);
                }
                PairState::Failed if retry => pair.again(now),
                _ => {}
            }
        }
        if self.selected.is_some()
            && self.selected_pair().is_none_or(|pair| pair.state != PairState::Succeeded)
        {
            self.replace_selected(now, "consent_expired");
        }
        self.tell_failure();
    }

    /// Once per search that ended with nothing.
    fn tell_failure(&mut self) {
        let all_failed = !self.pairs.is_empty()
            && self.pairs.iter().all(|pair| pair.rounds > 0 && pair.state != PairState::Succeeded);
        if all_failed && !self.reached && !self.told_failure {
            self.told_failure = true;
            self.events.push_back(FinderEvent::Lost("checks_unanswered"));
        }
    }

    /// The selected pair is gone: another good one takes its place at once, or the search starts anew.
    pub(super) fn replace_selected(&mut self, now: Instant, cause: CauseText) {
        self.selected = None;
        self.settle = None;
        if let Some(route) = self.best() {
            self.select(now, route);
            return;
        }
        self.reached = false;
        self.told_failure = true;
        self.events.push_back(FinderEvent::Lost(cause));
        for at in 0..self.pairs.len() {
            let pair = &self.pairs[at];
            // No more than a doubt may: a peer could have its own pair expire again and again.
            if pair.answers > 0 || self.is_rested(now, pair) {
                self.pairs[at].again(now);
            }
        }
    }

    pub(super) fn choose(&mut self, now: Instant) {
        if self.settle.is_some_and(|at| now < at) {
            return;
        }
        self.settle = None;
        let Some(best) = self.best() else { return };
        if self.selected != Some(best) && (self.selected.is_some() || self.may_select()) {
            self.select(now, best);
        }
    }

    /// The controlled end waits for a nomination.
    fn may_select(&self) -> bool {
        self.controlling || self.pairs.iter().any(|pair| pair.nominated.is_some())
    }

    fn select(&mut self, now: Instant, route: Route) {
        self.selected = Some(route);
        self.events.push_back(FinderEvent::Selected(route));
        if let Some(pair) = self.pairs.iter_mut().find(|pair| pair.route == route) {
            // The controlling end's check nominates; the other's renews a consent that may be old.
            pair.due = now;
            pair.triggered = self.controlling;
        }
    }

    fn best(&self) -> Option<Route> {
        let good = self.pairs.iter().filter(|pair| pair.state == PairState::Succeeded);
        if !self.controlling {
            let nominated = good.clone().filter(|pair| pair.nominated.is_some());
            return nominated.max_by_key(|pair| pair.nominated).map(|pair| pair.route);
        }
        let selected = self.selected_pair().filter(|pair| pair.state == PairState::Succeeded);
        let best_of = |fits: &dyn Fn(&Pair) -> bool| {
            let mut best = selected.filter(|pair| fits(pair));
            for pair in good.clone().filter(|pair| fits(pair)) {
                if best.is_none_or(|best| is_better(pair, best)) {
                    best = Some(pair);
                }
            }
            best
        };
        let best = best_of(&|pair| !self.is_suspect(pair) && !self.retires(pair));
        let best = best.or_else(|| best_of(&|pair| !self.is_suspect(pair)));
        best.or(selected).map(|pair| pair.route)
    }

    /// One side of it ends soon.
    fn retires(&self, pair: &Pair) -> bool {
        pair.peer_retires || self.retiring == Some(pair.route.local)
    }

    /// A good pair that lets a check wait, while the peer is heard on another one.
    fn is_suspect(&self, pair: &Pair) -> bool {
        let Some(since) = pair.waits_since().filter(|_| pair.tries >= 2) else { return false };
        let elsewhere = self.pairs.iter().filter(|other| other.route != pair.route);
        elsewhere.filter_map(|other| other.answered).any(|answered| answered > since)
    }
}

/// What was seen from outside comes first: a private address that has never answered will hardly begin to.
const fn retry_rank(kind: CandidateKind) -> u32 {
    match kind {
        CandidateKind::Predicted => 0,
        CandidateKind::Host => 1,
        _ => 2,
    }
}

fn is_better(pair: &Pair, than: &Pair) -> bool {
    let (Some(ours), Some(theirs)) = (pair.rtt, than.rtt) else { return pair.rtt.is_some() };
    let margin = GAIN.max(theirs * 3 / 20);
    if ours + margin <= theirs {
        return true;
    }
    pair.priority > than.priority && ours < theirs + margin
}
