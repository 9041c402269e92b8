//! One candidate pair: its checks in flight, its round-trip time, and when the next check is due.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;
use stun_types::message::TransactionId;

use super::candidate::{CandidateKind, Route};
use super::settings::FinderTiming;

/// Where a pair stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PairState {
    /// Not yet checked.
    Waiting,
    /// Checked, not yet answered.
    Checking,
    /// Answered, and consent is fresh.
    Succeeded,
    /// Not answered; probed again every 10-30 s.
    Failed,
}

/// What is shown of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PairView {
    /// Number of the local socket or allocation.
    pub local: u16,
    /// Kind of our best candidate on it.
    pub local_kind: CandidateKind,
    /// Its address; of an interface's, the one that packets to the peer leave from. Absent if that is not among those offered,
    /// or not known.
    pub local_address: Option<std::net::SocketAddr>,
    /// The peer's address.
    pub remote: std::net::SocketAddr,
    /// How we know it.
    pub remote_kind: CandidateKind,
    /// Where it stands.
    pub state: PairState,
    /// Smoothed round-trip time of its checks, microseconds.
    pub rtt_us: Option<u64>,
    /// Checks sent on it.
    pub checks: u32,
    /// Of those answered.
    pub answers: u32,
    /// Authenticated checks of the peer that came in on it.
    pub requests: u32,
    /// Whether it is the selected one.
    pub selected: bool,
}

/// A check in flight.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) id: TransactionId,
    pub(super) at: Instant,
    /// Our role when it was sent: a 487 to an older role is stale.
    pub(super) controlling: bool,
}

/// Checks remembered per pair: at 40 ms first and times 1.5 after, eight cover about 2 s of round-trip time.
const IN_FLIGHT: usize = 8;

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) route: Route,
    pub(super) local_kind: CandidateKind,
    pub(super) remote_kind: CandidateKind,
    pub(super) priority: u64,
    pub(super) state: PairState,
    /// When the next check is wanted; pacing may make it later.
    pub(super) due: Instant,
    /// A request of the peer asked for this check: it goes before all others.
    pub(super) triggered: bool,
    /// Checks since the last answer, in this round.
    pub(super) tries: u32,
    /// Rounds that failed.
    pub(super) rounds: u32,
    /// When the last of them ended.
    pub(super) failed: Option<Instant>,
    pub(super) in_flight: VecDeque<Check>,
    pub(super) rtt: Option<Duration>,
    pub(super) answered: Option<Instant>,
    /// Last authenticated request of the peer.
    pub(super) heard: Option<Instant>,
    /// The number of the peer's last USE-CANDIDATE for it, if that stands.
    pub(super) nominated: Option<u64>,
    /// The peer's last check said that its side of the pair ends soon.
    pub(super) peer_retires: bool,
    pub(super) checks: u32,
    pub(super) answers: u32,
    pub(super) requests: u32,
}

impl Pair {
    pub(super) fn new(
        now: Instant,
        route: Route,
        local_kind: CandidateKind,
        remote_kind: CandidateKind,
        priority: u64,
    ) -> Self {
        Self {
            route,
            local_kind,
            remote_kind,
            priority,
            state: PairState::Waiting,
            due: now,
            triggered: false,
            tries: 0,
            rounds: 0,
            failed: None,
            in_flight: VecDeque::new(),
            rtt: None,
            answered: None,
            heard: None,
            nominated: None,
            peer_retires: false,
            checks: 0,
            answers: 0,
            requests: 0,
        }
    }

    /// A check leaves now; sets when the next one is due.
    pub(super) fn note_sent(&mut self, now: Instant, check: Check, timing: &FinderTiming) {
        if self.in_flight.len() == IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back(check);
        self.checks = self.checks.saturating_add(1);
        self.triggered = false;
        if self.state == PairState::Waiting {
            self.state = PairState::Checking;
        }
        self.due = now + self.patience(timing);
        self.tries += 1;
    }

    /// How long an answer to the check sent now is waited for before the next.
    fn patience(&self, timing: &FinderTiming) -> Duration {
        let mut grows = self.tries.min(16);
        if self.rounds == 0 && self.alive().is_none() {
            if let Some(early) = timing.early.get(self.tries as usize) {
                return *early;
            }
            grows -= timing.early.len() as u32;
        }
        let first = self.rtt.map_or(timing.first_rto, |rtt| (rtt * 3 / 2).max(timing.first_rto));
        // Factor 1.5: under 20 % loss each way a pair that works is found within five tries, 530 ms, 99 times of 100.
        let grown = first.mul_f64(1.5_f64.powi(grows.cast_signed()));
        grown.min(timing.max_rto.max(first))
    }

    /// The check that this answers, if it was ours and is not answered yet. Older ones are settled with it.
    pub(super) fn settle(&mut self, id: TransactionId) -> Option<Check> {
        let place = self.in_flight.iter().position(|check| check.id == id)?;
        self.in_flight.drain(..=place).next_back()
    }

    pub(super) fn note_answer(&mut self, now: Instant, sent: Instant) {
        let sample = now.saturating_duration_since(sent);
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        self.answered = Some(now);
        self.answers = self.answers.saturating_add(1);
        (self.tries, self.rounds) = (0, 0);
        self.state = PairState::Succeeded;
    }

    /// Since when a check waits for its answer.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.in_flight.front().map(|check| check.at)
    }

    /// The latest sign that the peer is at the other end.
    pub(super) fn alive(&self) -> Option<Instant> {
        self.answered.max(self.heard)
    }

    /// Starts another round of checks.
    pub(super) fn again(&mut self, now: Instant) {
        self.tries = 0;
        self.due = now;
        if self.state == PairState::Failed {
            self.state = PairState::Waiting;
        }
    }

    pub(super) fn fail(&mut self, now: Instant, timing: &FinderTiming) {
        self.state = PairState::Failed;
        self.failed = Some(now);
        self.tries = 0;
        self.nominated = None;
        self.triggered = false;
        self.in_flight.clear();
        let wait = timing.retry_first.mul_f64(1.5_f64.powi(self.rounds.min(8).cast_signed()));
        // The peer was there once: a path that heals is found within the first pause, however long it was dead.
        let last = if self.answers > 0 { timing.retry_first } else { timing.retry_last };
        self.due = now + wait.min(last);
        self.rounds = self.rounds.saturating_add(1);
    }

    pub(super) fn view(&self, selected: bool) -> PairView {
        PairView {
            local: self.route.local.0,
            local_kind: self.local_kind,
            local_address: None,
            remote: self.route.remote,
            remote_kind: self.remote_kind,
            state: self.state,
            rtt_us: self.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            checks: self.checks,
            answers: self.answers,
            requests: self.requests,
            selected,
        }
    }
}
