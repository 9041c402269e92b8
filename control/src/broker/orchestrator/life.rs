//! How a session lives: what moves, who paused it, which lost one it goes on from. Pure.
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::api::SessionLife;
use crate::code::Code;
use crate::wire::{SessionId, SessionReport};

/// A session in which no application byte has moved for this long is idle.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(60);
/// Reports come each second while something changes; a rate older than this is that of a session that fell silent.
const RATE_FRESH: Duration = Duration::from_millis(2500);
/// Reports closer together say nothing of a rate, and one after a long silence is of the last second or two.
const RATE_OVER: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
/// A session that begins this long after a lost one of its user and resource goes on from it: the resume window.
const LINEAGE: Duration = Duration::from_secs(60);
/// Lost sessions remembered for that, about 200 bytes each.
const LOST_MAX: usize = 4096;

/// What one end last counted.
#[derive(Clone, Copy, Debug)]
struct Meter {
    at: Instant,
    bytes: [u64; 2],
    rates: [u64; 2],
}

/// The life of one session.
#[derive(Debug)]
pub(super) struct Life {
    moved_at: Instant,
    /// By the client's reports, by the agent's.
    meters: [Option<Meter>; 2],
    /// Who paused it.
    pub(super) held: Option<String>,
    pub(super) continues: Option<(SessionId, u32)>,
    /// What it watches has been gone since then.
    pub(super) orphan_since: Option<Instant>,
}

impl Life {
    pub(super) const fn new(now: Instant) -> Self {
        Self { moved_at: now, meters: [None; 2], held: None, continues: None, orphan_since: None }
    }

    pub(super) fn report(&mut self, report: &SessionReport, by_client: bool, now: Instant) {
        let bytes = [report.client_to_target, report.target_to_client];
        let slot = &mut self.meters[usize::from(!by_client)];
        let rates = match slot {
            Some(before) => {
                if bytes != before.bytes {
                    self.moved_at = now;
                }
                let over = now.saturating_duration_since(before.at);
                if over < RATE_OVER.0 {
                    return;
                }
                let over_ms = over.min(RATE_OVER.1).as_millis().max(1);
                let rate = |new: u64, old: u64| {
                    let rate = u128::from(new.saturating_sub(old)) * 1000 / over_ms;
                    u64::try_from(rate).unwrap_or(u64::MAX)
                };
                [rate(bytes[0], before.bytes[0]), rate(bytes[1], before.bytes[1])]
            }
            None => [0, 0],
        };
        *slot = Some(Meter { at: now, bytes, rates });
        if !by_client {
            self.held.clone_from(&report.held);
        }
    }

    /// Without watchers, which others know.
    pub(super) fn view(&self, now: Instant) -> SessionLife {
        let fresh = |meter: &&Meter| now.saturating_duration_since(meter.at) < RATE_FRESH;
        let meter = self.meters.iter().rev().flatten().find(fresh);
        let [rate_to_target, rate_to_client] = meter.map(|meter| meter.rates).unwrap_or_default();
        let idle = now.saturating_duration_since(self.moved_at);
        SessionLife {
            paused_by: self.held.clone(),
            idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            rate_to_target,
            rate_to_client,
            continues: self.continues.as_ref().map(|(id, _)| id.clone()),
            reconnects: self.continues.as_ref().map_or(0, |(_, count)| *count),
            ..SessionLife::default()
        }
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved_at) >= IDLE_AFTER
    }
}

/// Sessions lost a short while ago, by user and resource.
#[derive(Debug, Default)]
pub(super) struct Lineage(HashMap<(String, String), (Instant, SessionId, u32)>);

impl Lineage {
    /// A session is over; `count`: the lost ones that it went on from.
    pub(super) fn over(
        &mut self,
        now: Instant,
        (user, resource): (&str, &str),
        (id, count): (&SessionId, u32),
        code: Code,
    ) {
        let intended = matches!(
            code,
            Code::SessionClosed
                | Code::SessionKilled
                | Code::TokenRevoked
                | Code::TokenExpired
                | Code::ResourceNotGranted
                | Code::GrantInvalid
        );
        if intended || self.0.len() >= LOST_MAX {
            return;
        }
        self.0.insert((user.into(), resource.into()), (now, id.clone(), count));
    }

    /// The lost session that a new one goes on from, and how many there were in a row.
    pub(super) fn take(
        &mut self,
        now: Instant,
        user: &str,
        resource: &str,
    ) -> Option<(SessionId, u32)> {
        let (at, id, count) = self.0.remove(&(user.to_owned(), resource.to_owned()))?;
        let in_time = now.saturating_duration_since(at) <= LINEAGE;
        in_time.then(|| (id, count.saturating_add(1)))
    }

    pub(super) fn tick(&mut self, now: Instant) {
        self.0.retain(|_, (at, ..)| now.saturating_duration_since(*at) <= LINEAGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(up: u64, down: u64) -> SessionReport {
        let text = format!(
            r#"{{"session":"s","client_to_target":{up},"target_to_client":{down},"channels":1,"resumes":0}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn rates_are_of_the_last_seconds_and_fall_to_nothing_with_silence() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut life = Life::new(start);
        life.report(&report(0, 0), false, at(0));
        life.report(&report(1000, 5000), false, at(1000));
        let view = life.view(at(1500));
        assert_eq!((view.rate_to_target, view.rate_to_client), (1000, 5000));
        let later = life.view(at(10_000));
        assert_eq!((later.rate_to_target, later.idle_ms), (0, 9000));
        // After a silence without reports the bytes are of the last two seconds.
        life.report(&report(3000, 5000), false, at(120_000));
        assert_eq!(life.view(at(120_000)).rate_to_target, 1000);
    }

    #[test]
    fn a_session_is_idle_after_a_minute_without_bytes_whatever_else_is_reported() {
        let start = Instant::now();
        let mut life = Life::new(start);
        life.report(&report(5, 5), true, start);
        life.report(&report(5, 5), true, start + IDLE_AFTER);
        assert!(life.is_idle(start + IDLE_AFTER));
        life.report(&report(6, 5), true, start + IDLE_AFTER);
        assert!(!life.is_idle(start + IDLE_AFTER));
    }

    #[test]
    fn a_new_session_names_the_lost_one_it_goes_on_from_and_counts() {
        let (now, mut lineage) = (Instant::now(), Lineage::default());
        let id = |name: &str| SessionId(name.into());
        lineage.over(now, ("ada", "ssh"), (&id("a"), 0), Code::SessionLost);
        assert_eq!(lineage.take(now, "bob", "ssh"), None);
        assert_eq!(lineage.take(now, "ada", "ssh"), Some((id("a"), 1)));
        assert_eq!(lineage.take(now, "ada", "ssh"), None, "one goes on from it");
        lineage.over(now, ("ada", "ssh"), (&id("b"), 1), Code::SessionLost);
        assert_eq!(lineage.take(now + LINEAGE, "ada", "ssh"), Some((id("b"), 2)));
        lineage.over(now, ("ada", "ssh"), (&id("c"), 0), Code::SessionClosed);
        assert_eq!(lineage.take(now, "ada", "ssh"), None, "it was meant to end");
    }
}
