//! When a session dials its next leg. Pure: the clock and the dice are the caller's.
//!
//! One attempt runs at a time. A session without a leg dials at once, and again with growing pauses; a session whose
//! leg is suspect dials a spare while the old one stays; a session with a good leg dials nothing.
use std::time::Duration;

use tokio::time::Instant;

use crate::code::{Code, Fault};
use crate::dial::Backoff;
use crate::link::may_be_interception;

/// Pauses between attempts: an application notices 50 ms less than a broker or gateway under load would notice more.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_CAP: Duration = Duration::from_secs(2);
/// A leg that lived this long was a good one: the next dial follows its loss at once.
const GOOD_LEG: Duration = Duration::from_secs(2);

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Dial a leg, and report how it went.
    Dial,
    /// Do nothing before this instant, or before something happens.
    Wait(Option<Instant>),
    /// The session is over.
    GiveUp(Fault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Spare,
    Leg,
}

/// The dialling of one session.
#[derive(Debug)]
pub(super) struct LegPlan {
    need: Need,
    dialling: bool,
    not_before: Instant,
    backoff: Backoff,
    attached: Option<Instant>,
    start_by: Instant,
    failure: Option<Fault>,
    verdict: Option<Fault>,
}

impl LegPlan {
    /// A session that has no leg yet and must have one at `start_by`. Later the session layer's resume window decides.
    pub(super) fn new(now: Instant, start_by: Instant) -> Self {
        Self {
            need: Need::Leg,
            dialling: false,
            not_before: now,
            backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_CAP),
            attached: None,
            start_by,
            failure: None,
            verdict: None,
        }
    }

    /// A leg is suspect: it may be dead.
    pub(super) fn suspect(&mut self, now: Instant, dice: f64) {
        if self.need == Need::Nothing {
            self.need = Need::Spare;
            self.lost_one(now, dice);
        }
    }

    /// The leg that works is to be replaced. False if another is wanted anyway, for a worse reason.
    pub(super) fn replace(&mut self, now: Instant) -> bool {
        if self.need != Need::Nothing || self.dialling {
            return false;
        }
        self.need = Need::Spare;
        self.not_before = now;
        true
    }

    /// No leg carries the session.
    pub(super) fn down(&mut self, now: Instant, dice: f64) {
        if self.need == Need::Nothing {
            self.lost_one(now, dice);
        }
        self.need = Need::Leg;
    }

    /// The attempt succeeded.
    pub(super) fn attached(&mut self, now: Instant) {
        self.dialling = false;
        self.need = Need::Nothing;
        self.attached = Some(now);
        self.failure = None;
    }

    /// The attempt failed.
    pub(super) fn failed(&mut self, now: Instant, dice: f64, fault: Fault) {
        self.dialling = false;
        let was_up = self.attached.is_some();
        if may_pass(fault.code) || (was_up && may_be_interception(fault.code)) {
            self.not_before = now + self.backoff.pause(dice);
        } else if self.need == Need::Leg {
            self.verdict = Some(fault.clone());
        } else {
            // The present leg may be good yet: judge when it is gone.
            self.need = Need::Nothing;
        }
        self.failure = Some(fault);
    }

    /// What to do now. After [`Action::Dial`] the attempt counts as running.
    pub(super) fn poll(&mut self, now: Instant) -> Action {
        if let Some(fault) = &self.verdict {
            return Action::GiveUp(fault.clone());
        }
        let start_by = self.attached.is_none().then_some(self.start_by);
        if start_by.is_some_and(|deadline| now >= deadline) {
            let fault = self.failure.clone();
            return Action::GiveUp(fault.unwrap_or_else(|| Code::LegFailed.into()));
        }
        if self.dialling || self.need == Need::Nothing {
            return Action::Wait(start_by);
        }
        if now < self.not_before {
            return Action::Wait(Some(
                start_by.map_or(self.not_before, |by| by.min(self.not_before)),
            ));
        }
        self.dialling = true;
        Action::Dial
    }

    fn lost_one(&mut self, now: Instant, dice: f64) {
        if self.attached.is_some_and(|at| now.duration_since(at) >= GOOD_LEG) {
            self.backoff.reset();
            self.not_before = now;
        } else {
            self.not_before = now + self.backoff.pause(dice);
        }
    }
}

/// Whether a leg that was refused with this code may be granted later.
pub(super) fn may_pass(code: Code) -> bool {
    code.is_temporary() && !matches!(code, Code::SessionClosed | Code::SessionLost)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn started() -> (LegPlan, Instant) {
        let now = Instant::now();
        (LegPlan::new(now, now + 20 * SECOND), now)
    }

    fn carried() -> (LegPlan, Instant) {
        let (mut plan, now) = started();
        assert_eq!(plan.poll(now), Action::Dial);
        plan.attached(now);
        (plan, now)
    }

    #[test]
    fn one_attempt_runs_at_a_time_and_a_carried_session_dials_nothing() {
        let (mut plan, now) = started();
        assert_eq!(plan.poll(now), Action::Dial);
        assert_eq!(plan.poll(now), Action::Wait(Some(now + 20 * SECOND)));
        plan.attached(now);
        assert_eq!(plan.poll(now + 60 * SECOND), Action::Wait(None));
    }

    #[test]
    fn a_good_leg_is_replaced_at_once_and_a_short_lived_one_after_a_pause() {
        let (mut plan, now) = carried();
        plan.down(now + 5 * SECOND, 1.0);
        assert_eq!(plan.poll(now + 5 * SECOND), Action::Dial);
        plan.attached(now + 5 * SECOND);
        plan.down(now + 5 * SECOND, 1.0);
        assert!(matches!(plan.poll(now + 5 * SECOND), Action::Wait(Some(_))));
        assert_eq!(plan.poll(now + 6 * SECOND), Action::Dial);
    }

    #[test]
    fn failures_are_retried_with_growing_pauses_up_to_two_seconds() {
        let (mut plan, mut now) = carried();
        now += 5 * SECOND;
        plan.down(now, 1.0);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert_eq!(plan.poll(now), Action::Dial);
            plan.failed(now, 1.0, Code::AgentOffline.into());
            let Action::Wait(Some(until)) = plan.poll(now) else { panic!("must wait") };
            pauses.push(until.duration_since(now).as_millis());
            now = until;
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn the_first_leg_has_a_deadline_and_its_last_failure_is_told() {
        let (mut plan, now) = started();
        assert_eq!(plan.poll(now), Action::Dial);
        plan.failed(now, 0.0, Code::AgentOffline.into());
        assert_eq!(plan.poll(now + 20 * SECOND), Action::GiveUp(Code::AgentOffline.into()));
        let (mut silent, now) = started();
        assert_eq!(silent.poll(now), Action::Dial);
        assert_eq!(silent.poll(now + 20 * SECOND), Action::GiveUp(Code::LegFailed.into()));
    }

    #[test]
    fn what_no_retry_mends_ends_a_session_without_a_leg() {
        let (mut plan, now) = carried();
        plan.down(now + 5 * SECOND, 0.0);
        assert_eq!(plan.poll(now + 5 * SECOND), Action::Dial);
        plan.failed(now + 5 * SECOND, 0.0, Code::TokenRevoked.into());
        assert_eq!(plan.poll(now + 5 * SECOND), Action::GiveUp(Code::TokenRevoked.into()));
    }

    #[test]
    fn an_interceptor_ends_no_session_that_was_carried() {
        for code in [Code::PeerKeyMismatch, Code::BrokerPinMismatch] {
            let (mut plan, now) = carried();
            plan.down(now + 5 * SECOND, 0.0);
            assert_eq!(plan.poll(now + 5 * SECOND), Action::Dial);
            plan.failed(now + 5 * SECOND, 0.0, code.into());
            assert_eq!(plan.poll(now + 8 * SECOND), Action::Dial);
            let (mut plan, now) = started();
            assert_eq!(plan.poll(now), Action::Dial);
            plan.failed(now, 0.0, code.into());
            assert!(
                matches!(plan.poll(now), Action::GiveUp(_)),
                "{code}: a first leg must be right"
            );
        }
    }

    #[test]
    fn a_leg_refused_while_another_carries_ends_the_session_only_when_none_does() {
        let (mut plan, now) = carried();
        let later = now + 5 * SECOND;
        plan.suspect(later, 0.0);
        assert_eq!(plan.poll(later), Action::Dial);
        plan.failed(later, 0.0, Code::GrantInvalid.into());
        assert_eq!(plan.poll(later + SECOND), Action::Wait(None));
        plan.down(later + SECOND, 0.0);
        assert_eq!(plan.poll(later + 2 * SECOND), Action::Dial);
        plan.failed(later + 2 * SECOND, 0.0, Code::GrantInvalid.into());
        assert_eq!(plan.poll(later + 2 * SECOND), Action::GiveUp(Code::GrantInvalid.into()));
    }

    #[test]
    fn a_refused_spare_ends_nothing_while_the_suspect_leg_may_be_good() {
        let (mut plan, now) = carried();
        let later = now + 5 * SECOND;
        plan.suspect(later, 0.0);
        assert_eq!(plan.poll(later), Action::Dial);
        plan.suspect(later, 0.0);
        assert_eq!(plan.poll(later), Action::Wait(None));
        plan.failed(later, 0.0, Code::TokenRevoked.into());
        assert_eq!(plan.poll(later), Action::Wait(None));
    }

    #[test]
    fn a_session_that_the_broker_calls_over_is_not_retried() {
        assert!(may_pass(Code::AgentOffline) && may_pass(Code::BrokerUnreachable));
        assert!(may_pass(Code::TicketExpired) && may_pass(Code::LegUnpaired));
        for code in [Code::SessionLost, Code::SessionKilled, Code::GrantInvalid] {
            assert!(!may_pass(code), "{code}");
        }
    }
}
