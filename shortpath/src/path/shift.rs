//! Two sockets in shifts, where a NAT ends mappings at an age however busy they are: make before break, in pure code.
//!
//! The *twin* begins to speak when the mapping of the *first* socket is middle-aged. Both mappings then end in turns, half a
//! life apart, and are made anew by the next packet. So before one ends the other is young: the old one retires, and
//! whatever uses it moves over while both still work.
use std::time::Duration;

/// How old mappings become: they were seen to live for `least`, and none was seen older than `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgeLimit {
    /// Lived through.
    pub least: Duration,
    /// Not outlived.
    pub most: Duration,
}

impl AgeLimit {
    /// Long enough for anything to be done in time. Shorter lives are not worth the traffic: sessions recover from each end
    /// as from any rebinding.
    #[must_use]
    pub fn is_worth_shifting(&self) -> bool {
        self.least >= LIMIT_MIN
    }
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// The socket that always speaks.
    First,
    /// The one that speaks only where it is needed.
    Twin,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// The twin speaks. Otherwise it must not send anything: its next mapping is to be born in time.
    pub twin: bool,
    /// The mapping of this one ends soon, and the other's is young.
    pub retiring: Option<Shift>,
}

/// What is shifted lives that long.
const LIMIT_MIN: Duration = Duration::from_secs(4);
/// Of `least`: then a mapping is old. The rest is for candidates to be told and checked, and for packets under way.
const OLD: f64 = 0.85;
/// Of `most`: where in the first's life the twin's begins, and where it may end and begin anew without being shifted. Packets
/// that come late make both drift.
const BIRTH: std::ops::Range<f64> = 0.4..0.6;
const BIRTH_AGAIN: std::ops::Range<f64> = 0.28..0.75;
/// Of `least`: then the retired twin's mapping is nearly over.
const OVER: f64 = 0.97;
/// Clocks of NATs tick in seconds.
const TICK: Duration = Duration::from_secs(1);
/// Of `most`: by so much is the one younger that takes over.
const YOUNGER: f64 = 0.2;

/// See the module.
#[derive(Debug, Default)]
pub struct Shifts {
    twin: bool,
    /// The first's age at which the silent twin's mapping has surely ended.
    rests_until: Duration,
}

impl Shifts {
    /// Ages of both sockets' mappings at the most; `None` where there is none.
    pub fn arrange(
        &mut self,
        limit: Option<AgeLimit>,
        first: Option<Duration>,
        twin: Option<Duration>,
    ) -> Roster {
        let Some(limit) = limit.filter(AgeLimit::is_worth_shifting) else {
            self.twin = false;
            return Roster::default();
        };
        // Until the server speaks again, all stays as it is.
        let Some(first) = first else { return Roster { twin: self.twin, retiring: None } };
        let part = |age: Duration| age.as_secs_f64() / limit.most.as_secs_f64();
        let old = |age: Duration| age >= limit.least.mul_f64(OLD);
        let younger = |age: Duration, than| age + limit.most.mul_f64(YOUNGER) <= than;
        // Nobody uses it, or it has ended anyway.
        let over = |age: &Duration| {
            *age >= limit.most || younger(first, *age) && *age >= limit.least.mul_f64(OVER)
        };
        if !self.twin {
            self.twin = BIRTH.contains(&part(first)) && first >= self.rests_until;
        } else if let Some(age) = twin.filter(over) {
            self.twin = BIRTH_AGAIN.contains(&part(first));
            // Beyond the middle it waits for the first's next life anyway.
            let early = part(first) < BIRTH.start;
            let rest = first + limit.most.saturating_sub(age) + TICK;
            self.rests_until = if early { rest } else { Duration::ZERO };
        }
        let retiring = twin.filter(|_| self.twin).and_then(|twin| {
            let first_goes = old(first) && younger(twin, first);
            let twin_goes = old(twin) && younger(first, twin);
            first_goes.then_some(Shift::First).or(twin_goes.then_some(Shift::Twin))
        });
        Roster { twin: self.twin, retiring }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// A socket behind a NAT that ends mappings at 600 s: its packets come some seconds apart.
    struct Socket {
        born: Option<u64>,
    }

    impl Socket {
        fn speak(&mut self, now: u64, life: u64) {
            if self.born.is_none_or(|born| now >= born + life) {
                self.born = Some(now);
            }
        }

        fn lives(&self, now: u64, life: u64) -> bool {
            self.born.is_some_and(|born| now < born + life)
        }
    }

    #[test]
    fn from_the_second_life_on_what_does_not_retire_has_a_mapping_that_lasts() {
        const LIFE: u64 = 600;
        let limit = AgeLimit {
            least: Duration::from_secs(LIFE - 15),
            most: Duration::from_secs(LIFE + 15),
        };
        for seed in 0..50 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut first, mut twin) = (Socket { born: None }, Socket { born: None });
            let (mut shifts, mut used) = (Shifts::default(), Shift::First);
            let (mut broken, mut moves, mut speaks) = (0, 0, false);
            for now in 0..200 * LIFE {
                if random.random_bool(0.2) {
                    first.speak(now, LIFE);
                }
                let age = |of: &Socket| of.born.map(|born| Duration::from_secs(now - born));
                let heard = age(&twin).filter(|_| speaks);
                let roster = shifts.arrange(Some(limit), age(&first), heard);
                if roster.twin && !speaks {
                    // A fresh keeper asks at once.
                    twin.speak(now, LIFE);
                }
                speaks = roster.twin;
                if roster.twin && random.random_bool(0.2) {
                    twin.speak(now, LIFE);
                }
                if roster.retiring == Some(used) {
                    used = if used == Shift::First { Shift::Twin } else { Shift::First };
                    moves += 1;
                }
                let socket = if used == Shift::First { &first } else { &twin };
                broken += u64::from(now > LIFE && !socket.lives(now, LIFE));
            }
            assert!((390..=402).contains(&moves), "seed {seed}: {moves} moves in 200 lives");
            assert_eq!(broken, 0, "seed {seed}: seconds without a mapping");
        }
    }

    #[test]
    fn twins_that_were_born_together_are_shifted_apart() {
        let limit = AgeLimit { least: Duration::from_secs(100), most: Duration::from_secs(100) };
        let s = |seconds| Some(Duration::from_secs(seconds));
        let mut shifts = Shifts { twin: true, ..Shifts::default() };
        let silent = Roster { twin: false, retiring: None };
        assert_eq!(shifts.arrange(Some(limit), s(99), s(100)), silent);
        assert_eq!(shifts.arrange(Some(limit), s(10), s(111)), silent);
        assert!(shifts.arrange(Some(limit), s(45), None).twin);
        let roster = shifts.arrange(Some(limit), s(90), s(45));
        assert_eq!(roster.retiring, Some(Shift::First));
    }

    #[test]
    fn without_a_limit_or_with_one_too_short_the_twin_is_silent() {
        let s = Duration::from_secs;
        let mut shifts = Shifts::default();
        assert_eq!(shifts.arrange(None, Some(s(50)), None), Roster::default());
        let short = AgeLimit { least: s(2), most: s(3) };
        assert_eq!(
            shifts.arrange(Some(short), Some(Duration::from_millis(1500)), None),
            Roster::default()
        );
    }
}
