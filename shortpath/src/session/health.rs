//! Whether a leg is trusted: suspicion, quarantine that doubles with each fall and is forgotten with time, and demotion of
//! what proved slow. Pure, and knows nothing of frames.
use std::time::{Duration, Instant};

use super::words::LegKind;

/// Copies of what a newly suspected leg carries unseen, in bytes; what others deliver of them is added twice, as a
/// congestion window grows.
pub(super) const RESCUE_FIRST: u64 = 64 * 1024;
/// Silence after which a UDP leg is given up at least: its own recovery has tried at 1 and 3 probe timeouts by then. Copies
/// keep interactive bytes moving meanwhile, so patience costs only bulk.
const UDP_SUSTAINED: Duration = Duration::from_millis(250);
/// The same for TCP, whose first two retransmissions after a lost tail come at 200 and 600 ms.
const TCP_SUSTAINED: Duration = Duration::from_millis(700);
/// First quarantine. A NAT that rebinds and a radio that hands over are back within it.
const QUARANTINE: Duration = Duration::from_secs(2);
/// Longest quarantine and demotion. Only a leg that fell, or was left, six times in as many minutes comes to this; a minute in
/// trust halves it, and a change of the network ends it at once.
const QUARANTINE_MAX: Duration = Duration::from_secs(64);
/// Time in trust after which one fall is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// PONGs in a row before a quarantined leg may carry again.
const PONGS: u32 = 3;
/// First demotion of a leg that was left for a better one: the least after which its network is worth another look.
const DEMOTION: Duration = Duration::from_secs(10);

/// A leg owes word of what it carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspicion {
    /// Since when nothing has come.
    pub(super) silent_since: Instant,
    /// When it is given up, if another leg answers meanwhile.
    pub(super) sustained_at: Instant,
    /// Bytes that may still be copied.
    pub(super) room: u64,
    /// When another leg first brought copies.
    pub(super) rescued_at: Option<Instant>,
}

impl Suspicion {
    /// How long bytes were held up, if they are not any more at `now`.
    pub(super) fn stall(&self, now: Instant) -> Duration {
        self.rescued_at.unwrap_or(now).saturating_duration_since(self.silent_since)
    }
}

#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) suspicion: Option<Suspicion>,
    quarantined_until: Option<Instant>,
    pongs: u32,
    falls: u32,
    fell_at: Option<Instant>,
    demoted_until: Option<Instant>,
    demoted_at: Option<Instant>,
    demotions: u32,
}

impl Health {
    pub(super) fn suspect(
        &mut self,
        now: Instant,
        silent_since: Instant,
        kind: LegKind,
        timeout: Duration,
    ) {
        let least = if kind.is_udp() { UDP_SUSTAINED } else { TCP_SUSTAINED };
        let sustained_at = now.max(silent_since + (timeout * 3).max(least));
        let room = RESCUE_FIRST;
        self.suspicion = Some(Suspicion { silent_since, sustained_at, room, rescued_at: None });
    }

    /// The leg let the session down.
    pub(super) fn quarantine(&mut self, now: Instant) {
        self.falls = self.falls.saturating_sub(forgotten(self.fell_at, now)) + 1;
        self.fell_at = Some(now);
        self.quarantined_until = Some(now + doubled(QUARANTINE, self.falls));
        self.pongs = 0;
        self.suspicion = None;
    }

    /// The leg answered a PING.
    pub(super) fn pong(&mut self, now: Instant) {
        self.pongs += 1;
        let over = self.quarantined_until.is_some_and(|until| until <= now);
        if over && self.pongs >= PONGS {
            self.quarantined_until = None;
        }
    }

    /// The answer was the first since the leg fell: it says how long the leg was gone, not how far away the peer is.
    pub(super) fn is_first_pong(&self) -> bool {
        self.is_quarantined() && self.pongs == 1
    }

    pub(super) fn is_quarantined(&self) -> bool {
        self.quarantined_until.is_some()
    }

    /// The network has changed: no time need pass any more, but answers are still needed. What happened is remembered.
    pub(super) fn look_anew(&mut self, now: Instant) {
        self.quarantined_until = self.quarantined_until.map(|until| until.min(now));
        self.demoted_until = None;
    }

    /// Another leg is better. One that is demoted has only stepped in meanwhile: it has not failed again, and its time runs on.
    pub(super) fn demote(&mut self, now: Instant) {
        if self.is_demoted(now) {
            return;
        }
        self.demotions = self.demotions.saturating_sub(forgotten(self.demoted_at, now)) + 1;
        self.demoted_at = Some(now);
        self.demoted_until = Some(now + doubled(DEMOTION, self.demotions));
    }

    /// It was left for a better one, once at least.
    pub(super) fn was_left(&self) -> bool {
        self.demoted_at.is_some()
    }

    /// It proved better after all.
    pub(super) fn promote(&mut self) {
        self.demoted_until = None;
    }

    pub(super) fn is_demoted(&self, now: Instant) -> bool {
        self.demoted_until.is_some_and(|until| until > now)
    }

    /// Until when another leg is preferred, as it moves bulk faster.
    pub(super) fn demoted_until(&self) -> Option<Instant> {
        self.demoted_until
    }

    /// Ends a demotion that is over. True when it was.
    pub(super) fn forgive(&mut self, now: Instant) -> bool {
        self.demoted_until.take_if(|until| *until <= now).is_some()
    }
}

/// Falls forgotten since the last one.
fn forgotten(last: Option<Instant>, now: Instant) -> u32 {
    let since = last.map_or(0, |at| now.saturating_duration_since(at).as_secs());
    u32::try_from(since / FORGET.as_secs()).unwrap_or(u32::MAX)
}

/// `base` doubled for every time but the first.
fn doubled(base: Duration, times: u32) -> Duration {
    (base * 2_u32.pow(times.saturating_sub(1).min(6))).min(QUARANTINE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    /// How long after `at` a leg that answers every 100 ms is trusted again.
    fn served(health: &mut Health, at: Instant) -> Duration {
        health.quarantine(at);
        let step = Duration::from_millis(100);
        (1..)
            .map(|n| step * n)
            .find(|after| {
                health.pong(at + *after);
                !health.is_quarantined()
            })
            .unwrap()
    }

    #[test]
    fn quarantine_doubles_with_each_fall_and_is_forgotten_with_time() {
        let (mut health, start) = (Health::default(), Instant::now());
        assert_eq!(served(&mut health, start), s(2));
        assert_eq!(served(&mut health, start + s(10)), s(4));
        assert_eq!(served(&mut health, start + s(20)), s(8));
        assert_eq!(served(&mut health, start + s(20 + 125)), s(4));
        assert_eq!(served(&mut health, start + s(10_000)), s(2));
        for fall in 0..20 {
            assert!(served(&mut health, start + s(20_000 + fall)) <= QUARANTINE_MAX);
        }
    }

    #[test]
    fn time_alone_ends_no_quarantine() {
        let (mut health, start) = (Health::default(), Instant::now());
        health.quarantine(start);
        for pong in 0..PONGS - 1 {
            health.pong(start + s(100 + u64::from(pong)));
            assert!(health.is_quarantined());
        }
        health.pong(start + s(200));
        assert!(!health.is_quarantined());
    }

    #[test]
    fn tcp_is_given_the_time_of_its_retransmission_timeouts() {
        let (mut health, now) = (Health::default(), Instant::now());
        let timeout = Duration::from_millis(30);
        health.suspect(now, now, LegKind::UdpDirect, timeout);
        assert_eq!(health.suspicion.unwrap().sustained_at, now + UDP_SUSTAINED);
        health.suspect(now, now, LegKind::TcpReverse, timeout);
        assert_eq!(health.suspicion.unwrap().sustained_at, now + TCP_SUSTAINED);
    }

    #[test]
    fn a_slow_leg_is_looked_at_again_ever_more_rarely() {
        let (mut health, now) = (Health::default(), Instant::now());
        health.demote(now);
        assert!(health.is_demoted(now + s(9)) && !health.is_demoted(now + s(10)));
        health.demote(now + s(10));
        assert!(health.is_demoted(now + s(29)) && !health.is_demoted(now + s(30)));
    }

    #[test]
    fn a_slow_leg_that_steps_in_for_a_lost_one_is_not_held_back_for_longer() {
        let (mut health, now) = (Health::default(), Instant::now());
        for again in 0..10 {
            health.demote(now + s(again));
        }
        assert!(!health.is_demoted(now + s(10)));
        health.demote(now + s(11));
        assert!(!health.is_demoted(now + s(11 + 20)), "left twice, not ten times");
    }
}
