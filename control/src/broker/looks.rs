//! Looks at feeds: small ones at once, big ones apart from everybody else's work and a few at a time.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::code::{Code, Fault};

/// Judgements (see `Sight::judgements`) that are made where they are asked for: a millisecond or so at most.
const AT_ONCE_MAX: usize = 1000;
/// Between two looks of one who follows a feed: a fleet of agents that comes back is one change, not a thousand.
const CALM: Duration = Duration::from_millis(100);
/// However much looks cost, a change is seen after this.
const CALM_MAX: Duration = Duration::from_secs(2);
/// All who follow feeds together rest so many times as long as they look: they take a fifth of a CPU.
const REST: u32 = 4;

/// The places where big looks are made.
#[derive(Debug)]
pub(crate) struct Looks {
    /// Half of the CPUs: links and grants have the others.
    places: Arc<Semaphore>,
    /// Users who look now. Each has one turn, so that who looks often waits for himself.
    turns: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Default for Looks {
    fn default() -> Self {
        let cpus = available_parallelism().map_or(1, usize::from);
        Self { places: Arc::new(Semaphore::new((cpus / 2).max(1))), turns: Mutex::default() }
    }
}

impl Looks {
    /// Looks for `user`; also says how long that took.
    ///
    /// # Errors
    /// [`Code::Internal`] if looking panicked.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        user: &str,
        judgements: usize,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Duration), Fault> {
        let timed = move || {
            let begun = Instant::now();
            let seen = look();
            (seen, begun.elapsed())
        };
        if judgements <= AT_ONCE_MAX {
            return Ok(timed());
        }
        let broken =
            |error: &dyn std::error::Error| Code::Internal.because(format!("a look: {error}"));
        let turn = self.turn(user).acquire_owned().await.map_err(|error| broken(&error))?;
        let place = self.places.clone().acquire_owned().await.map_err(|error| broken(&error))?;
        // They are held until it has ended, even if nobody waits for it any more.
        let looking = tokio::task::spawn_blocking(move || {
            let seen = timed();
            drop((turn, place));
            seen
        });
        looking.await.map_err(|error| broken(&error))
    }

    fn turn(&self, user: &str) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for these or has them.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(user.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }
}

/// How long one of so many followers rests after a look that took this long.
pub(crate) fn calm(took: Duration, followers: usize) -> Duration {
    let followers = u32::try_from(followers).unwrap_or(u32::MAX);
    took.saturating_mul(REST.saturating_mul(followers)).clamp(CALM, CALM_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const BIG: usize = AT_ONCE_MAX + 1;

    fn looks(places: usize) -> Arc<Looks> {
        Arc::new(Looks { places: Arc::new(Semaphore::new(places)), ..Looks::default() })
    }

    #[tokio::test]
    async fn who_looks_often_waits_for_himself_and_others_do_not() {
        let looks = looks(2);
        let (end, until) = channel::<()>();
        let [first, second] = [Some(until), None].map(|until| {
            let looks = looks.clone();
            tokio::spawn(async move {
                // Until the sender is dropped.
                let look = move || until.is_none_or(|until| until.recv().is_err());
                looks.look("ada", BIG, look).await.unwrap()
            })
        });
        tokio::task::yield_now().await;
        assert!(looks.look("bob", BIG, || true).await.unwrap().0);
        assert!(looks.look("ada", AT_ONCE_MAX, || true).await.unwrap().0, "a small one");
        assert!(!first.is_finished() && !second.is_finished());
        drop(end);
        first.await.unwrap();
        second.await.unwrap();
        drop(looks.turn("bob"));
        assert_eq!(looks.turns.lock().unwrap().len(), 1, "who does not look is forgotten");
    }

    #[tokio::test]
    async fn a_look_that_nobody_waits_for_any_more_holds_its_place_until_it_ends() {
        let looks = looks(1);
        let (end, until) = channel::<()>();
        let (begin, mut begun) = tokio::sync::mpsc::channel(1);
        let abandoned = looks.clone();
        let abandoned = tokio::spawn(async move {
            let look = move || {
                begin.blocking_send(()).unwrap();
                until.recv().is_err()
            };
            abandoned.look("ada", BIG, look).await.unwrap()
        });
        begun.recv().await.unwrap();
        abandoned.abort();
        assert!(abandoned.await.unwrap_err().is_cancelled());
        assert_eq!(looks.places.available_permits(), 0);
        drop(end);
        looks.look("bob", BIG, || ()).await.unwrap();
        assert_eq!(looks.places.available_permits(), 1);
    }

    #[test]
    fn followers_together_take_a_bounded_share_and_each_sees_a_change_in_time() {
        let ms = Duration::from_millis;
        assert_eq!(calm(ms(0), 1), CALM);
        assert_eq!(calm(ms(5), 1), CALM);
        assert_eq!(calm(ms(5), 10), ms(200));
        assert_eq!(calm(ms(5), 100_000_000), CALM_MAX);
        assert_eq!(calm(Duration::MAX, usize::MAX), CALM_MAX);
        let (took, followers) = (ms(5), 50);
        let share = took.as_secs_f64() * 50.0 / calm(took, followers).as_secs_f64();
        assert!(share <= 0.25, "{share}");
    }
}
