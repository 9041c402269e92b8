//! Admission to the gateway: a good ticket, once.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use switchback_engine::{Admission, Admitted, LegSide, PairId, Refusal, Verdict};

use crate::broker::clock;
use crate::broker::tuning::Tunings;
use crate::ticket::{Ticket, TicketKey};

/// Tickets remembered until they expire, about 100 bytes each. A ticket lives a minute, so this admits 4,000 legs a
/// second without ever forgetting one, at 25 MiB.
const REPLAY_MAX: usize = 262_144;

/// Judges legs by their tickets alone: no database, no lock that anyone holds for long. A client's leg also brings what its
/// resource asks for both legs of the pair.
pub(crate) struct TicketAdmission {
    key: Arc<TicketKey>,
    tunings: Arc<Tunings>,
    used: Mutex<ReplayCache>,
    /// Legs turned away because the cache was full.
    overflow: AtomicU64,
}

impl TicketAdmission {
    pub(crate) fn new(key: Arc<TicketKey>, tunings: Arc<Tunings>) -> Self {
        let used = Mutex::new(ReplayCache::new(REPLAY_MAX));
        Self { key, tunings, used, overflow: AtomicU64::new(0) }
    }

    pub(crate) fn overflow(&self) -> u64 {
        self.overflow.load(Ordering::Relaxed)
    }

    fn judge(&self, server_name: &str, now: u64) -> Verdict {
        let ticket = match self.key.verify(server_name, now) {
            None => return Verdict::Foreign,
            Some(Err(refusal)) => return Verdict::Refuse(refusal),
            Some(Ok(ticket)) => ticket,
        };
        let used =
            self.used.lock().unwrap_or_else(PoisonError::into_inner).admit_once(&ticket, now);
        match used {
            Ok(()) => {
                let (pair, side): (PairId, _) = (ticket.pair, ticket.side());
                let tuning = if side == LegSide::Client { self.tunings.take(pair) } else { None };
                Verdict::Admit(Admitted { pair, side, patience: ticket.patience(), tuning })
            }
            Err(refusal) => {
                if refusal == Refusal::LegLimit {
                    self.overflow.fetch_add(1, Ordering::Relaxed);
                }
                Verdict::Refuse(refusal)
            }
        }
    }
}

impl Admission for TicketAdmission {
    fn admit(&self, server_name: &str, _peer: SocketAddr) -> Verdict {
        self.judge(server_name, clock::steady_seconds())
    }
}

/// Tickets that were presented, until they expire. Ordered by expiry, so forgetting the old is one split.
struct ReplayCache {
    used: BTreeSet<Ticket>,
    max: usize,
    swept_at: u64,
}

impl ReplayCache {
    const fn new(max: usize) -> Self {
        Self { used: BTreeSet::new(), max, swept_at: 0 }
    }

    /// Remembers `ticket`, which is good at `now`; refuses it if it is remembered, or if nothing more fits: forgetting
    /// one that still lives would admit it twice.
    fn admit_once(&mut self, ticket: &Ticket, now: u64) -> Result<(), Refusal> {
        self.sweep(now);
        if self.used.contains(ticket) {
            return Err(Refusal::TicketReplayed);
        }
        if self.used.len() >= self.max {
            return Err(Refusal::LegLimit);
        }
        self.used.insert(*ticket);
        Ok(())
    }

    fn sweep(&mut self, now: u64) {
        if now == self.swept_at {
            return;
        }
        self.swept_at = now;
        while self.used.first().is_some_and(|ticket| u64::from(ticket.expiry) < now) {
            self.used.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use switchback_engine::Tuning;

    use super::*;
    use crate::ticket::{DIAL_PATIENCE, WARM_PATIENCE};

    const NOW: u64 = 1_800_000_000;

    fn admission() -> TicketAdmission {
        let tunings = Tunings::new("127.0.0.1:0".parse().unwrap(), Tuning::default());
        TicketAdmission::new(Arc::new(TicketKey::new(&[1; 32])), Arc::new(tunings))
    }

    fn mint(admission: &TicketAdmission, pair: u8, side: LegSide, warm: bool) -> String {
        let ticket = Ticket::new(PairId([pair; 16]), side, warm, NOW as u32 + 60);
        admission.key.mint(&ticket).reveal().to_owned()
    }

    #[test]
    fn a_ticket_admits_one_leg_once() {
        let admission = admission();
        let name = mint(&admission, 1, LegSide::Client, false);
        assert!(matches!(admission.judge(&name, NOW), Verdict::Admit(_)));
        assert_eq!(admission.judge(&name, NOW), Verdict::Refuse(Refusal::TicketReplayed));
        assert_eq!(admission.judge(&name, NOW + 60), Verdict::Refuse(Refusal::TicketReplayed));
        assert_eq!(admission.judge(&name, NOW + 61), Verdict::Refuse(Refusal::TicketExpired));
    }

    #[test]
    fn both_sides_of_a_pair_enter_and_wait_as_their_tickets_say() {
        let admission = admission();
        for (side, warm, patience) in
            [(LegSide::Client, false, DIAL_PATIENCE), (LegSide::Agent, true, WARM_PATIENCE)]
        {
            let name = mint(&admission, 1, side, warm);
            let pair = PairId([1; 16]);
            let expected = Verdict::Admit(Admitted { pair, side, patience, tuning: None });
            assert_eq!(admission.judge(&name, NOW), expected);
        }
    }

    #[test]
    fn the_clients_leg_brings_its_resources_tuning_and_the_agents_does_not() {
        let admission = admission();
        let tuning: Arc<Tuning> = Arc::new("dscp=ef".parse().unwrap());
        admission.tunings.expect(PairId([1; 16]), tuning.clone(), NOW);
        for (side, brings) in [(LegSide::Agent, None), (LegSide::Client, Some(tuning))] {
            let name = mint(&admission, 1, side, false);
            let Verdict::Admit(admitted) = admission.judge(&name, NOW) else { panic!("refused") };
            assert_eq!(admitted.tuning, brings);
        }
    }

    #[test]
    fn a_full_cache_refuses_rather_than_forgets() {
        let mut cache = ReplayCache::new(2);
        let ticket = |pair, expiry: u64| {
            Ticket::new(PairId([pair; 16]), LegSide::Client, false, expiry as u32)
        };
        cache.admit_once(&ticket(1, NOW), NOW).unwrap();
        cache.admit_once(&ticket(2, NOW + 9), NOW).unwrap();
        assert_eq!(cache.admit_once(&ticket(3, NOW + 9), NOW), Err(Refusal::LegLimit));
        cache.admit_once(&ticket(3, NOW + 9), NOW + 1).unwrap();
        assert_eq!(cache.admit_once(&ticket(2, NOW + 9), NOW + 1), Err(Refusal::TicketReplayed));
    }

    #[test]
    fn names_that_are_no_tickets_go_to_https() {
        assert_eq!(admission().judge("gate.example", NOW), Verdict::Foreign);
    }
}
