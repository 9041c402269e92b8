//! The clocks and the randomness that the shells read, so that the pure modules need none.
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::BASE32_NOPAD;

/// Unix time in milliseconds.
pub(crate) fn unix_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Unix time in seconds.
pub(crate) fn unix_seconds() -> u64 {
    unix_ms() / 1000
}

/// Unix time in seconds as it was when this process first asked, moved on by the monotonic clock: for what this process
/// alone makes and judges, like tickets. A wall clock that jumps neither makes them expire nor brings used ones to life.
pub(crate) fn steady_seconds() -> u64 {
    SINCE.seconds(now())
}

/// How far the wall clock was set since this process first asked, in seconds; forward is positive.
pub(crate) fn wall_clock_set_by() -> i64 {
    SINCE.wall_clock_set_by(unix_seconds(), now())
}

static SINCE: LazyLock<Steady> = LazyLock::new(|| Steady { unix_s: unix_seconds(), at: now() });

/// What the wall clock showed at one moment.
struct Steady {
    unix_s: u64,
    at: Instant,
}

impl Steady {
    fn seconds(&self, now: Instant) -> u64 {
        self.unix_s.saturating_add(now.saturating_duration_since(self.at).as_secs())
    }

    fn wall_clock_set_by(&self, wall_s: u64, now: Instant) -> i64 {
        let steady = i64::try_from(self.seconds(now)).unwrap_or(i64::MAX);
        let ahead = i64::try_from(wall_s).unwrap_or(i64::MAX).saturating_sub(steady);
        // Both are whole seconds.
        if ahead.abs() <= 1 { 0 } else { ahead }
    }
}

/// Bytes nobody can guess (a ChaCha generator seeded and reseeded by the kernel).
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes
}

/// `chars` (at most 16) random lower-case base32 characters, 5 bits each.
pub(crate) fn random_name(chars: usize) -> String {
    let mut name = BASE32_NOPAD.encode(&random::<10>());
    name.make_ascii_lowercase();
    name.truncate(chars);
    name
}

/// The monotonic clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_jumps_moves_no_ticket() {
        let at = now();
        for unix_s in [0, 1_800_000_000, u64::MAX - 9] {
            let steady = Steady { unix_s, at };
            let after = |seconds| steady.seconds(at + Duration::from_secs(seconds)) - unix_s;
            assert_eq!([after(0), after(1), after(9)], [0, 1, 9]);
        }
        let steady = Steady { unix_s: 1_800_000_000, at };
        let later = at + Duration::from_secs(60);
        let set_by = [1_800_000_061, 1_800_000_060, 1_800_003_660, 1_799_996_460, 0]
            .map(|wall| steady.wall_clock_set_by(wall, later));
        assert_eq!(set_by, [0, 0, 3600, -3600, -1_800_000_060]);
        let [first, second] = [steady_seconds(), steady_seconds()];
        assert!(first <= second && first.abs_diff(unix_seconds()) < 3600);
    }
}
