//! The peers of one allocation: who has a place and a channel, and who gives them up when all are taken. Pure.
//!
//! A peer whose NAT binds it anew each minute has another address each minute, for as long as the session lasts. The
//! address that was neither asked for nor heard for longest gives its place to the newest.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::turn_words::TurnFailure;

/// Places. A session has one peer with a few addresses.
const PLACES: usize = 32;
/// Channel numbers (RFC 8656 section 12).
const FIRST: u16 = 0x4000;
const LAST: u16 = 0x4FFF;
/// Whoever was asked for or heard this lately keeps its place: all its pairs have been checked by then.
const KEEPS: Duration = Duration::from_secs(10);
/// A server keeps a channel for ten minutes after it was last bound, and wants five more before its number goes to another
/// peer, or its peer to another number (RFC 8656 section 12).
const RESTS: Duration = Duration::from_secs(15 * 60);
/// Channels that may be at rest: the server still holds most of them, and ours holds 64 in all. An address each half a minute
/// stays within it.
const RESTING_MAX: usize = 32;

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) channel: u16,
    pub(super) bound: bool,
    /// When the channel is to be refreshed, or asked for again.
    pub(super) refresh: Option<Instant>,
    /// The server will never send to that address.
    pub(super) refused: bool,
    /// When it was last asked for or heard.
    seen: Instant,
}

/// What became of a peer that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Known,
    New,
    /// In place of this one.
    Instead(SocketAddr),
    /// There is no place for now.
    Full,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Peers {
    list: Vec<Peer>,
    resting: Vec<Resting>,
    /// The last channel given.
    last: Option<u16>,
}

/// The channel of a peer that gave up its place.
#[derive(Debug)]
struct Resting {
    address: SocketAddr,
    channel: u16,
    until: Instant,
}

impl Peer {
    /// Its ChannelBind failed. Only what the server says of the address itself (403; 443 is another family) is for good: else
    /// the channel may live on, and is asked for `again`.
    pub(super) fn lose(&mut self, again: Instant, failure: TurnFailure) {
        if matches!(failure, TurnFailure::Forbidden | TurnFailure::Refused(443)) {
            (self.bound, self.refused, self.refresh) = (false, true, None);
        } else {
            self.refresh = Some(again);
        }
    }
}

impl Peers {
    /// Gives the peer a place, and a channel of its own.
    pub(super) fn admit(&mut self, now: Instant, address: SocketAddr) -> Admission {
        if self.hear(now, address) {
            return Admission::Known;
        }
        self.resting.retain(|resting| resting.until > now);
        let mut admission = Admission::New;
        if self.list.len() >= PLACES {
            let Some(gone) = self.evict(now, address) else { return Admission::Full };
            admission = Admission::Instead(gone);
        }
        let channel = self.channel_for(address);
        let (bound, refresh, refused) = (false, None, false);
        self.list.push(Peer { address, channel, bound, refresh, refused, seen: now });
        admission
    }

    /// Whoever is unheard of for longest gives up its place; `None` if all are lively, or too many gave theirs up lately.
    fn evict(&mut self, now: Instant, heir: SocketAddr) -> Option<SocketAddr> {
        let returns = self.resting.iter().any(|resting| resting.address == heir);
        if self.resting.len() >= RESTING_MAX + usize::from(returns) {
            return None;
        }
        let old = |peer: &Peer| now.saturating_duration_since(peer.seen) >= KEEPS;
        let candidates = self.list.iter().enumerate().filter(|(_, peer)| old(peer));
        let (at, _) = candidates.min_by_key(|(_, peer)| peer.seen)?;
        let Peer { address, channel, .. } = self.list.remove(at);
        self.resting.push(Resting { address, channel, until: now + RESTS });
        Some(address)
    }

    /// The channel it had, or else the next that is free: there are 4096, of which 64 are taken or at rest.
    fn channel_for(&mut self, address: SocketAddr) -> u16 {
        if let Some(at) = self.resting.iter().position(|resting| resting.address == address) {
            return self.resting.swap_remove(at).channel;
        }
        let after = |channel| if channel < LAST { channel + 1 } else { FIRST };
        let mut channel = self.last.map_or(FIRST, after);
        while self.of_channel(channel).is_some() {
            channel = after(channel);
        }
        self.last = Some(channel);
        channel
    }

    /// The peer is there; false if it has no place.
    pub(super) fn hear(&mut self, now: Instant, address: SocketAddr) -> bool {
        let known = self.get_mut(address);
        known.map(|peer| peer.seen = now).is_some()
    }

    pub(super) fn get(&self, address: SocketAddr) -> Option<&Peer> {
        self.list.iter().find(|peer| peer.address == address)
    }

    pub(super) fn get_mut(&mut self, address: SocketAddr) -> Option<&mut Peer> {
        self.list.iter_mut().find(|peer| peer.address == address)
    }

    /// Whose channel it is: also that of a peer without a place, as the server may well pass on what it sends.
    pub(super) fn of_channel(&self, channel: u16) -> Option<SocketAddr> {
        let peer = self.list.iter().find(|peer| peer.channel == channel);
        let resting = || self.resting.iter().find(|resting| resting.channel == channel);
        peer.map(|peer| peer.address).or_else(|| resting().map(|resting| resting.address))
    }

    /// Whether there is one at this address, whatever its port.
    pub(super) fn is_host(&self, ip: IpAddr) -> bool {
        self.list.iter().any(|peer| peer.address.ip() == ip)
    }

    /// Those whose channel is not there.
    pub(super) fn unbound(&self) -> impl Iterator<Item = SocketAddr> {
        self.list.iter().filter(|peer| !peer.bound).map(|peer| peer.address)
    }

    /// Those whose channel is to be asked for now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<SocketAddr> {
        let due = self.list.iter_mut().filter(|peer| peer.refresh.is_some_and(|at| at <= now));
        due.map(|peer| {
            peer.refresh = None;
            peer.address
        })
        .collect()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.list.iter().filter_map(|peer| peer.refresh).min()
    }

    /// The allocation is another one: it has no channels.
    pub(super) fn start_anew(&mut self) {
        self.resting.clear();
        for peer in &mut self.list {
            (peer.bound, peer.refused, peer.refresh) = (false, false, None);
        }
    }

    /// There is no allocation.
    pub(super) fn clear(&mut self) {
        (self.list, self.resting) = (Vec::new(), Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u16) -> SocketAddr {
        ([198, 51, 100, 7], n).into()
    }

    fn minutes(n: u64) -> Duration {
        Duration::from_secs(60 * n)
    }

    fn full(now: Instant) -> Peers {
        let mut peers = Peers::default();
        for n in 0..32 {
            assert_eq!(peers.admit(now, peer(n)), Admission::New);
        }
        peers
    }

    #[test]
    fn the_peer_unheard_of_for_longest_gives_its_place_to_a_new_one_and_lively_ones_keep_theirs() {
        let start = Instant::now();
        let mut peers = full(start);
        assert_eq!(peers.admit(start + KEEPS / 2, peer(100)), Admission::Full);
        let later = start + minutes(1);
        (0..30).for_each(|n| assert!(peers.hear(later, peer(n))));
        assert_eq!(peers.admit(later, peer(31)), Admission::Known);
        assert_eq!(peers.admit(later, peer(100)), Admission::Instead(peer(30)));
        assert_eq!(peers.admit(later, peer(101)), Admission::Full);
        assert!(!peers.hear(later, peer(30)) && peers.get(peer(100)).is_some());
    }

    #[test]
    fn a_channel_is_nobody_elses_until_its_server_has_forgotten_it() {
        let mut now = Instant::now();
        let mut peers = full(now);
        let mut used: Vec<(Instant, u16, SocketAddr)> = Vec::new();
        for n in 32..20_000_u16 {
            now += Duration::from_secs(10);
            assert!(peers.hear(now, peer(0)), "the one that is always there");
            if peers.admit(now, peer(n)) == Admission::Full {
                continue;
            }
            let channel = peers.get(peer(n)).unwrap().channel;
            assert!((FIRST..=LAST).contains(&channel));
            used.retain(|(at, ..)| now - *at < RESTS);
            assert_ne!(channel, FIRST);
            assert!(used.iter().all(|(_, of, _)| *of != channel), "{channel:x} after {n}");
            used.push((now, channel, peer(n)));
            assert!(peers.list.len() + peers.resting.len() <= 64);
        }
        assert!(used.len() > 20, "places are given back");
    }

    #[test]
    fn a_peer_that_returns_finds_its_channel_and_is_heard_on_it_meanwhile() {
        let start = Instant::now();
        let mut peers = full(start);
        let later = start + minutes(1);
        (1..32).for_each(|n| assert!(peers.hear(later, peer(n))));
        assert_eq!(peers.admit(later, peer(100)), Admission::Instead(peer(0)));
        assert_eq!(peers.of_channel(FIRST), Some(peer(0)));
        let again = later + minutes(1);
        assert!(matches!(peers.admit(again, peer(0)), Admission::Instead(_)));
        assert_eq!(peers.get(peer(0)).map(|peer| peer.channel), Some(FIRST));
        let channels: std::collections::BTreeSet<_> =
            peers.list.iter().map(|peer| peer.channel).collect();
        assert_eq!(channels.len(), 32);
    }
}
