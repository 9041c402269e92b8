//! What happens when the network below has changed, at either end: whatever was rejected may be good by now, so nothing waits
//! for its time to be looked at again.
use std::time::{Duration, Instant};

use super::core::Session;
use crate::tokens::Tokens;

/// Second looks at once: a machine that changes networks tells of it several times, for each family, as addresses go and come
/// and when it has learnt what it is seen as.
const LOOKS: u32 = 8;
/// One more after this long: the least after which what was rejected is looked at again without any change. A network that
/// changes for ever, as behind a NAT that forgets every few seconds, so brings no more trials and moves than time does.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What is left of the second looks.
pub(super) fn second_looks(now: Instant) -> Tokens {
    Tokens::new(now, LOOKS, LOOK_AGAIN)
}

impl Session {
    /// This end's network has changed, or that of the peer. Every leg is asked at once how it does. One in quarantine is
    /// trusted again when it has answered as often as ever, without its time having to pass; one that was left for a better
    /// one is measured anew, and one that was tried for bulk in vain may be tried again. How often a leg fell is remembered, so one that
    /// falls again waits for as long as it would have. May be called often; what is too often is ignored.
    pub fn network_changed(&mut self, now: Instant) {
        if self.is_closed() || !self.looks.try_take(now) {
            return;
        }
        let selected = self.selected();
        self.legs.iter_mut().for_each(|(id, leg)| leg.look_anew(now, Some(*id) == selected));
        self.choose(now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::LegKind::{self, TcpReverse, UdpDirect};
    use super::super::pair::{AGENT, CLIENT, Pair, Weather, ms};
    use super::super::{ChannelId, SessionConfig};
    use super::*;

    const DIRECT: usize = 1;

    /// A session that is carried directly, with TCP at `tcp_ms` from end to end beside it.
    fn direct(weather: Weather, tcp_ms: u64) -> (Pair, ChannelId) {
        let mut pair = Pair::new(&SessionConfig::default());
        pair.link_of(TcpReverse, Weather::fair(ms(tcp_ms)), Duration::ZERO);
        pair.link_of(UdpDirect, weather, Duration::ZERO);
        let channel = pair.open(CLIENT).unwrap();
        speak(&mut pair, channel, Duration::from_secs(10));
        assert_eq!(carried(&pair), [Some(UdpDirect); 2]);
        (pair, channel)
    }

    fn carried(pair: &Pair) -> [Option<LegKind>; 2] {
        pair.ends.each_ref().map(|end| end.session.figures(pair.now).leg)
    }

    /// Both ends say something every 20 ms.
    fn speak(pair: &mut Pair, channel: ChannelId, time: Duration) {
        let until = pair.now + time;
        while pair.now < until {
            for end in [CLIENT, AGENT] {
                if pair.ends[end].streams.contains_key(&channel) {
                    pair.write(end, channel, 64);
                }
            }
            pair.run(ms(20));
            pair.read_all();
        }
    }

    /// Until a direct leg carries both ends; `None`: it did not within `most`.
    fn direct_after(pair: &mut Pair, channel: ChannelId, most: Duration) -> Option<Duration> {
        let since = pair.now;
        while pair.now - since < most {
            speak(pair, channel, ms(20));
            if carried(pair) == [Some(UdpDirect); 2] {
                return Some(pair.now - since);
            }
        }
        None
    }

    fn change(pair: &mut Pair) {
        let now = pair.now;
        pair.ends.iter_mut().for_each(|end| end.session.network_changed(now));
        pair.settle();
    }

    #[test]
    fn a_leg_in_a_long_quarantine_carries_again_soon_after_the_network_has_changed() {
        for changes in [true, false] {
            let (mut pair, channel) = direct(Weather::fair(ms(20)), 30);
            // Each fall doubles the time that it is not trusted: 2, 4, 8 and 16 s.
            for fall in 0..4 {
                [CLIENT, AGENT].into_iter().for_each(|end| pair.blackhole(DIRECT, end));
                speak(&mut pair, channel, Duration::from_secs(1));
                assert_eq!(carried(&pair), [Some(TcpReverse); 2]);
                pair.heal(DIRECT, ms(100));
                if fall < 3 {
                    let most = Duration::from_secs(2 << fall);
                    assert!(direct_after(&mut pair, channel, most).is_some(), "fall {fall}");
                }
            }
            speak(&mut pair, channel, Duration::from_secs(1));
            assert_eq!(carried(&pair), [Some(TcpReverse); 2]);
            if changes {
                change(&mut pair);
            }
            let back = direct_after(&mut pair, channel, Duration::from_secs(2)).is_some();
            assert_eq!(back, changes);
        }
    }

    #[test]
    fn a_leg_that_was_left_for_a_nearer_one_is_measured_anew_when_the_network_changes() {
        for changes in [true, false] {
            let (mut pair, channel) = direct(Weather::fair(ms(20)), 30);
            pair.links[DIRECT].weather.delay = ms(100);
            speak(&mut pair, channel, Duration::from_secs(20));
            assert_eq!(carried(&pair), [Some(TcpReverse); 2]);
            pair.links[DIRECT].weather.delay = ms(20);
            if changes {
                change(&mut pair);
            }
            let back = direct_after(&mut pair, channel, Duration::from_secs(1)).is_some();
            assert_eq!(back, changes);
        }
    }

    #[test]
    fn bulk_is_tried_again_at_once_on_a_leg_that_was_too_slow_before_the_network_changed() {
        for changes in [true, false] {
            let mut pair = Pair::new(&SessionConfig::default());
            let rate = |rate, delay| Weather { rate: Some(rate), ..Weather::fair(ms(delay)) };
            pair.link_of(TcpReverse, rate(1_000_000, 20), Duration::ZERO);
            pair.link_of(UdpDirect, rate(250_000, 10), Duration::ZERO);
            let channel = pair.open(CLIENT).unwrap();
            let bulk = |pair: &mut Pair, time: Duration| {
                let until = pair.now + time;
                while pair.now < until {
                    pair.write(CLIENT, channel, 400_000);
                    pair.run(ms(10));
                    pair.read_all();
                }
                pair.ends[CLIENT].session.figures(pair.now).leg
            };
            assert_eq!(bulk(&mut pair, Duration::from_secs(6)), Some(TcpReverse));
            pair.set_rate(DIRECT, 4_000_000);
            if changes {
                change(&mut pair);
            }
            let leg = bulk(&mut pair, Duration::from_secs(3));
            assert_eq!(leg, Some(if changes { UdpDirect } else { TcpReverse }));
        }
    }

    #[test]
    fn a_dead_leg_carries_nothing_however_often_the_network_changes() {
        let (mut pair, channel) = direct(Weather::fair(ms(20)), 30);
        [CLIENT, AGENT].into_iter().for_each(|end| pair.blackhole(DIRECT, end));
        speak(&mut pair, channel, Duration::from_secs(1));
        for _ in 0..20 {
            change(&mut pair);
            speak(&mut pair, channel, ms(200));
            assert_eq!(carried(&pair), [Some(TcpReverse); 2]);
        }
    }

    #[test]
    fn changes_that_never_end_are_heeded_no_more_often_than_time_alone_would() {
        let start = Instant::now();
        let mut looks = second_looks(start);
        let seconds = |from: u64, to: u64| (from..to).map(move |s| start + Duration::from_secs(s));
        assert_eq!(seconds(0, 20).filter(|now| looks.try_take(*now)).count(), 8 + 1);
        assert_eq!(seconds(20, 1_020).filter(|now| looks.try_take(*now)).count(), 100);
        assert_eq!(seconds(10_000, 10_009).filter(|now| looks.try_take(*now)).count(), 8);
    }
}
