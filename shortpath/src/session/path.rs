//! What the transport below a leg tells of its path: packets lost of those sent.
use std::time::{Duration, Instant};

/// What a transport knows of its path, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathFigures {
    /// Its own estimate of the round trip, without queues of the application's.
    pub rtt: Duration,
    /// Packets sent.
    pub sent: u64,
    /// Packets of those it holds lost.
    pub lost: u64,
    /// Times it found that packets of full size vanish, and went back to small ones.
    pub black_holes: u64,
}

/// Packets over which loss is averaged: at 50 a second, and as many acknowledgements, the last few seconds.
const AVERAGED: f64 = 256.0;
/// Or over this much time, whichever is less: a path that stands by carries a few packets a second, and what was lost when it
/// was dead for a moment must not be held against it for minutes.
const AVERAGED_OVER: Duration = Duration::from_secs(5);
/// Packets below which a loss tells little, however long they took: the keepalives of an idle path that was dead for a moment.
const TELLING: f64 = 32.0;
/// Loss was *recently seen* for this long: at 1 % of 100 packets a second it comes once a second.
const RECENT: Duration = Duration::from_secs(10);
/// What finding a loss takes beyond a round trip: the next message reveals it.
const REVEALED: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Path {
    sent: u64,
    lost: u64,
    black_holes: u64,
    loss: f64,
    lost_at: Option<Instant>,
    sent_at: Option<Instant>,
}

impl Path {
    /// Black holes found since the last figures are returned. While the leg is `given_up`, what is lost says how long the path
    /// is dead, and nothing of what it is worth when it is back.
    pub(super) fn note(&mut self, now: Instant, figures: PathFigures, given_up: bool) -> u64 {
        let sent = figures.sent.saturating_sub(self.sent);
        let lost = figures.lost.saturating_sub(self.lost).min(sent.max(1));
        self.sent = self.sent.max(figures.sent);
        self.lost = self.lost.max(figures.lost);
        if lost > 0 && !given_up {
            self.lost_at = Some(now);
        }
        if sent > 0 {
            let before = self.sent_at.replace(now).unwrap_or(now);
            let elapsed = now.saturating_duration_since(before).as_secs_f64();
            let (sent, lost) = (sent as f64, if given_up { 0.0 } else { lost as f64 });
            let worse = lost / sent - self.loss;
            let most = if worse > 0.0 { sent / TELLING } else { 1.0 };
            let by_time = (elapsed / AVERAGED_OVER.as_secs_f64()).min(most);
            self.loss += worse * by_time.max(sent / AVERAGED).min(1.0);
        }
        let before = self.black_holes;
        self.black_holes = before.max(figures.black_holes);
        self.black_holes - before
    }

    /// A copy came before its original: the path delays what it carries.
    pub(super) fn note_late(&mut self, now: Instant) {
        self.lost_at = Some(now);
    }

    /// Lost packets in a million, averaged.
    pub(super) fn loss_ppm(&self) -> u32 {
        (self.loss.clamp(0.0, 1.0) * 1e6) as u32
    }

    /// The transport tells of this path.
    pub(super) fn is_told(&self) -> bool {
        self.sent > 0
    }

    pub(super) fn loses(&self, now: Instant) -> bool {
        self.lost_at.is_some_and(|at| now.saturating_duration_since(at) < RECENT)
    }

    /// What loss adds to a round trip on average: a hit takes another one. Of the peer's losses nothing is known.
    pub(super) fn loss_costs(&self, rtt: Duration) -> Duration {
        (rtt + REVEALED).mul_f64(self.loss.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(path: &mut Path, now: Instant, sent: u64, lost: u64) {
        let rtt = Duration::from_millis(40);
        path.note(now, PathFigures { rtt, sent, lost, black_holes: 0 }, false);
    }

    #[test]
    fn a_path_that_stands_by_is_forgiven_a_dead_moment_within_seconds() {
        let (mut path, start) = (Path::default(), Instant::now());
        note(&mut path, start, 1_000, 0);
        note(&mut path, start + Duration::from_secs(1), 1_100, 80);
        assert!(path.loss_ppm() > 200_000);
        // Keepalives.
        for second in 2..=15 {
            note(&mut path, start + Duration::from_secs(second), 1_100 + 2 * second, 80);
        }
        assert!(path.loss_ppm() < 30_000, "{}", path.loss_ppm());
    }

    #[test]
    fn lost_keepalives_of_an_idle_path_say_little_of_what_it_is_worth() {
        let (mut path, start) = (Path::default(), Instant::now());
        note(&mut path, start, 1_000, 0);
        // A transport finds all that was lost when it hears again.
        for second in 1..=20 {
            note(&mut path, start + Duration::from_secs(second), 1_000 + second, 0);
        }
        note(&mut path, start + Duration::from_secs(22), 1_022, 20);
        assert!(path.loss_ppm() < 70_000, "{}", path.loss_ppm());
    }

    #[test]
    fn what_is_lost_while_a_leg_is_given_up_is_not_held_against_its_path() {
        let (mut path, now) = (Path::default(), Instant::now());
        note(&mut path, now, 1_000, 0);
        let rtt = Duration::from_millis(40);
        path.note(now, PathFigures { rtt, sent: 1_020, lost: 100, black_holes: 0 }, true);
        note(&mut path, now, 1_040, 100);
        assert_eq!((path.loss_ppm(), path.loses(now)), (0, false));
    }

    #[test]
    fn loss_is_averaged_and_forgotten() {
        let (mut path, start) = (Path::default(), Instant::now());
        for step in 1..=100 {
            note(&mut path, start, 100 * step, 5 * step);
        }
        assert!((45_000..=55_000).contains(&path.loss_ppm()), "{}", path.loss_ppm());
        assert!(path.loses(start));
        let costs = path.loss_costs(Duration::from_millis(40));
        assert!((Duration::from_millis(2)..Duration::from_millis(4)).contains(&costs));
        for step in 1..=100 {
            note(&mut path, start + Duration::from_secs(11), 10_000 + 100 * step, 500);
        }
        assert!(path.loss_ppm() < 1_000 && !path.loses(start + Duration::from_secs(11)));
    }

    #[test]
    fn figures_that_run_backwards_are_ignored() {
        let (mut path, now) = (Path::default(), Instant::now());
        note(&mut path, now, 1_000, 0);
        note(&mut path, now, 10, 5);
        assert_eq!((path.sent, path.loss_ppm()), (1_000, 0));
        note(&mut path, now, u64::MAX, u64::MAX);
        assert!(path.loss_ppm() <= 1_000_000);
    }
}
