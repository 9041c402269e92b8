//! Policy changes while a session lives: fewer kinds of legs may carry it.
use std::time::Instant;

use super::LegKind;
use super::core::Session;

impl Session {
    /// From now on only legs of `kinds` carry the session, of those that could before. Others that are attached stand by; what
    /// they had under way is sent again.
    pub fn allow_only(&mut self, now: Instant, kinds: &[LegKind]) {
        self.config.allowed.retain(|kind| kinds.contains(kind));
        if !self.is_closed() {
            self.choose(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::LegKind::{TcpReverse, UdpDirect};
    use super::super::SessionConfig;
    use super::super::pair::{AGENT, CLIENT, Pair, Weather, ms};

    #[test]
    fn a_live_session_leaves_what_policy_takes_away_without_losing_a_byte() {
        let mut pair = Pair::new(&SessionConfig::default());
        pair.link_of(TcpReverse, Weather::fair(ms(20)), Duration::ZERO);
        pair.link_of(UdpDirect, Weather::fair(ms(5)), Duration::ZERO);
        let channel = pair.open(CLIENT).unwrap();
        pair.write(CLIENT, channel, 10_000);
        pair.run(Duration::from_secs(2));
        let carried = |pair: &Pair, end: usize| pair.ends[end].session.figures(pair.now).leg;
        assert_eq!([CLIENT, AGENT].map(|end| carried(&pair, end)), [Some(UdpDirect); 2]);
        pair.write(CLIENT, channel, 50_000);
        let now = pair.now;
        pair.ends.iter_mut().for_each(|end| end.session.allow_only(now, &[TcpReverse]));
        pair.settle();
        assert_eq!([CLIENT, AGENT].map(|end| carried(&pair, end)), [Some(TcpReverse); 2]);
        pair.run(Duration::from_secs(2));
        pair.read_all();
        assert_eq!(pair.ends[AGENT].session.figures(pair.now).bytes_received, 60_000);
        let now = pair.now;
        pair.ends.iter_mut().for_each(|end| end.session.allow_only(now, &[UdpDirect, TcpReverse]));
        pair.run(Duration::from_secs(2));
        assert_eq!(carried(&pair, CLIENT), Some(TcpReverse), "nothing is given back");
    }
}
