//! What became of requests for sessions: who answered, when, and from which moment it counts. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use switchback_control::Code;
use switchback_control::wire::SessionId;

/// What a client was told about its request, and when.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The place of the request in the order of all.
    pub(crate) request: u64,
    pub(crate) outcome: Result<SessionId, Code>,
    pub(crate) at: Instant,
}

/// An agent was told to expect a session.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) session: SessionId,
    pub(crate) at: Instant,
}

/// All that was asked, and what came back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// When each request was meant to leave.
    due: Vec<Instant>,
    answered: usize,
    by_session: HashMap<SessionId, u64>,
    /// Offers that came before the client's answer was seen.
    early: HashMap<SessionId, Instant>,
    /// From a request's time to the client's answer, and to the agent's offer, in nanoseconds.
    pub(crate) grants: Vec<u64>,
    pub(crate) offers: Vec<u64>,
    /// How often each refusal came.
    pub(crate) refused: BTreeMap<&'static str, usize>,
}

impl Tally {
    /// Nothing has come back yet.
    pub(crate) fn new(due: Vec<Instant>) -> Tally {
        Tally { due, ..Tally::default() }
    }

    /// A client's answer.
    pub(crate) fn answered(&mut self, answer: Answer) {
        let Some(since) = self.since(answer.request, answer.at) else { return };
        self.answered += 1;
        match answer.outcome {
            Err(code) => *self.refused.entry(code.as_str()).or_default() += 1,
            Ok(session) => {
                self.grants.push(since);
                if let Some(at) = self.early.remove(&session) {
                    self.offers.extend(self.since(answer.request, at));
                } else {
                    self.by_session.insert(session, answer.request);
                }
            }
        }
    }

    /// An agent's offer.
    pub(crate) fn offered(&mut self, Offer { session, at }: Offer) {
        match self.by_session.remove(&session) {
            Some(request) => self.offers.extend(self.since(request, at)),
            None => drop(self.early.insert(session, at)),
        }
    }

    /// Requests so far.
    pub(crate) fn asked(&self) -> usize {
        self.due.len()
    }

    /// Requests without an answer.
    pub(crate) fn unanswered(&self) -> usize {
        self.due.len() - self.answered
    }

    /// Whether everything has come back.
    pub(crate) fn is_complete(&self) -> bool {
        self.unanswered() == 0 && self.by_session.is_empty()
    }

    fn since(&self, request: u64, at: Instant) -> Option<u64> {
        let due = self.due.get(usize::try_from(request).ok()?)?;
        u64::try_from(at.saturating_duration_since(*due).as_nanos()).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: u64 = 1_000_000;

    fn session(name: &str) -> SessionId {
        SessionId(name.to_owned())
    }

    #[test]
    fn times_count_from_when_a_request_was_meant_to_leave_in_whatever_order_they_come() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut tally = Tally::new(vec![at(0), at(10), at(20)]);
        tally.offered(Offer { session: session("b"), at: at(14) });
        let answer =
            |request, name: &str, ms| Answer { request, outcome: Ok(session(name)), at: at(ms) };
        tally.answered(answer(1, "b", 15));
        tally.answered(answer(0, "a", 3));
        assert!(!tally.is_complete() && tally.unanswered() == 1);
        let refusal = Answer { request: 2, outcome: Err(Code::RateLimited), at: at(21) };
        tally.answered(refusal);
        assert!(!tally.is_complete(), "an offer is missing");
        tally.offered(Offer { session: session("a"), at: at(4) });
        assert!(tally.is_complete());
        assert_eq!(
            (tally.grants.clone(), tally.offers.clone()),
            (vec![5 * MS, 3 * MS], vec![4 * MS, 4 * MS])
        );
        assert_eq!(tally.refused.get("RATE_LIMITED"), Some(&1));
    }
}
