//! How many unfinished hellos each source address holds.
//!
//! Pure. A source is an IPv4 address or an IPv6 /64, the smallest block that one subscriber usually gets.
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Unfinished hellos per source.
#[derive(Debug)]
pub(crate) struct Sources {
    counts: HashMap<Source, usize>,
    per_source_max: usize,
    total: usize,
    total_max: usize,
}

/// Where a connection comes from, as far as limits care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    V4([u8; 4]),
    /// The /64.
    V6([u8; 8]),
}

impl Source {
    /// The source of `peer`. IPv4-mapped IPv6 addresses count as the IPv4 address they are.
    pub(crate) fn of(peer: SocketAddr) -> Self {
        match peer.ip().to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl Sources {
    pub(crate) fn new(per_source_max: usize, total_max: usize) -> Self {
        Self { counts: HashMap::new(), per_source_max, total: 0, total_max }
    }

    /// Counts one more hello of `source`; `false`, and nothing counted, if that would exceed a limit.
    pub(crate) fn enter(&mut self, source: Source) -> bool {
        let count = self.counts.get(&source).copied().unwrap_or(0);
        if count >= self.per_source_max || self.total >= self.total_max {
            return false;
        }
        self.counts.insert(source, count + 1);
        self.total += 1;
        true
    }

    /// A hello of `source` is finished, well or badly.
    pub(crate) fn leave(&mut self, source: Source) {
        if let Some(count) = self.counts.get_mut(&source) {
            *count -= 1;
            self.total -= 1;
            if *count == 0 {
                self.counts.remove(&source);
            }
        }
    }

    /// Unfinished hellos over all sources.
    #[cfg(test)]
    pub(crate) fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    #[test]
    fn one_source_cannot_take_the_place_of_others() {
        let mut sources = Sources::new(2, 100);
        let (a, b) = (source("192.0.2.1:1"), source("192.0.2.2:1"));
        assert!(sources.enter(a) && sources.enter(a));
        assert!(!sources.enter(a));
        assert!(sources.enter(b));
        sources.leave(a);
        assert!(sources.enter(a));
    }

    #[test]
    fn total_is_limited_over_all_sources() {
        let mut sources = Sources::new(10, 3);
        assert_eq!((0..5).filter(|n| sources.enter(source(&format!("192.0.2.{n}:1")))).count(), 3);
    }

    #[test]
    fn ports_and_the_lower_half_of_v6_do_not_matter() {
        assert_eq!(source("192.0.2.1:1"), source("192.0.2.1:2"));
        assert_eq!(source("[2001:db8:0:1::1]:1"), source("[2001:db8:0:1:ffff::2]:1"));
        assert_ne!(source("[2001:db8:0:1::1]:1"), source("[2001:db8:0:2::1]:1"));
        assert_eq!(source("[::ffff:192.0.2.1]:1"), source("192.0.2.1:9"));
    }

    #[test]
    fn finished_sources_leave_nothing_behind() {
        let mut sources = Sources::new(2, 100);
        for n in 0..50 {
            let source = source(&format!("192.0.2.{n}:1"));
            assert!(sources.enter(source));
            sources.leave(source);
            sources.leave(source);
        }
        assert!(sources.counts.is_empty());
        assert_eq!(sources.total(), 0);
    }
}
