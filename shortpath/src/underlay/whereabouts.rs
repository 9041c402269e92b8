//! Where a server is: names and their addresses, and which of several addresses is asked.
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::path::TURN_TRIES;

/// Where a relay is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayServer {
    /// At the addresses of [`Underlay::set_servers`](super::Underlay::set_servers), whatever they are by then.
    Gateway,
    /// At this `HOST:PORT`, UDP. The name is looked up beside the search, and anew when all its addresses have failed.
    Named(String),
}

/// A name that takes longer is asked for again when it is next needed.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of each family that are used. One may be without UDP; more would only be asked in vain.
const OF_FAMILY_MAX: usize = 2;

/// The addresses of a `HOST:PORT` in the resolver's order (RFC 6724), two of each family at most.
///
/// # Errors
/// The name does not resolve within 5 s.
pub async fn look_up(name: &str) -> io::Result<Vec<SocketAddr>> {
    let found = timeout(LOOKUP_TIMEOUT, lookup_host(name)).await??;
    let found = of_both_families(found);
    if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
}

fn of_both_families(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut counts = [0; 2];
    found
        .filter(|address| {
            let count = &mut counts[usize::from(address.is_ipv6())];
            *count += 1;
            *count <= OF_FAMILY_MAX
        })
        .collect()
}

/// Which of a relay's addresses is asked: each in its turn, until one works.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// In vain since one worked last.
    failed: Vec<SocketAddr>,
}

/// An address to ask, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) server: SocketAddr,
    pub(super) tries: u32,
}

/// Tries at an address that may well be without UDP while there is another one: 1.4 s, which is more than most paths' RTT.
const TRIES_FEW: u32 = 3;

impl Turns {
    /// Of the addresses that were not asked in vain, one that has `answered` STUN, else one of a family that passes.
    pub(super) fn next(&self, all: &[SocketAddr], answered: &[SocketAddr]) -> Option<Choice> {
        let doubt = |server: &SocketAddr| {
            let passes = answered.iter().any(|other| other.is_ipv6() == server.is_ipv6());
            if answered.contains(server) { 0 } else { 2 - u8::from(passes) }
        };
        let left = || all.iter().filter(|server| !self.failed.contains(server));
        let server = *left().min_by_key(|server| doubt(server)).or_else(|| all.first())?;
        let sole = doubt(&server) == 0 || left().count() <= 1;
        Some(Choice { server, tries: if sole { TURN_TRIES } else { TRIES_FEW } })
    }

    /// That one was asked in vain. True if another one is to be asked at once; otherwise all were, and it is the first one's
    /// turn again.
    pub(super) fn fail(&mut self, server: SocketAddr, all: &[SocketAddr]) -> bool {
        self.failed.push(server);
        self.failed.retain(|failed| all.contains(failed));
        let left = all.iter().any(|server| !self.failed.contains(server));
        if !left {
            self.failed.clear();
        }
        left
    }

    /// One works.
    pub(super) fn work(&mut self) {
        self.failed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses<const N: usize>(of: [&str; N]) -> [SocketAddr; N] {
        of.map(|address| address.parse().unwrap())
    }

    #[test]
    fn a_relay_whose_first_address_has_no_udp_is_asked_at_the_next_at_once() {
        let all @ [v6, v4] = addresses(["[2001:db8::1]:443", "192.0.2.1:443"]);
        let mut turns = Turns::default();
        assert_eq!(turns.next(&all, &[]), Some(Choice { server: v6, tries: TRIES_FEW }));
        assert!(turns.fail(v6, &all));
        assert_eq!(turns.next(&all, &[]), Some(Choice { server: v4, tries: TURN_TRIES }));
        assert!(!turns.fail(v4, &all), "all failed: a pause");
        assert_eq!(turns.next(&all, &[]), Some(Choice { server: v6, tries: TRIES_FEW }));
        turns.fail(v6, &all);
        turns.work();
        assert_eq!(turns.next(&all, &[]).map(|choice| choice.server), Some(v6));
    }

    #[test]
    fn a_relay_is_asked_first_where_stun_is_answered() {
        let all @ [v6, one, two] =
            addresses(["[2001:db8::1]:443", "192.0.2.1:443", "192.0.2.2:443"]);
        let mut turns = Turns::default();
        assert_eq!(turns.next(&all, &[two]), Some(Choice { server: two, tries: TURN_TRIES }));
        assert!(turns.fail(two, &all));
        assert_eq!(turns.next(&all, &[two]), Some(Choice { server: one, tries: TRIES_FEW }));
        assert!(turns.fail(one, &all));
        assert_eq!(turns.next(&all, &[two]), Some(Choice { server: v6, tries: TURN_TRIES }));
        // A foreign relay, which nobody asks by STUN: the family tells.
        let other = addresses(["192.0.2.9:443"]);
        assert_eq!(Turns::default().next(&all, &other).map(|choice| choice.server), Some(one));
    }

    #[test]
    fn a_relay_with_one_address_or_with_others_than_before_is_asked_again() {
        let all @ [old, new] = addresses(["192.0.2.1:443", "192.0.2.2:443"]);
        let mut turns = Turns::default();
        assert!(!turns.fail(old, &all[..1]), "a pause");
        assert_eq!(turns.next(&all[..1], &[]), Some(Choice { server: old, tries: TURN_TRIES }));
        assert!(turns.fail(old, &all));
        assert_eq!(turns.next(&all[..1], &[]).map(|choice| choice.server), Some(old));
        assert_eq!(turns.next(&all[1..], &[]).map(|choice| choice.server), Some(new));
        assert_eq!(turns.next(&[], &[]), None);
    }

    #[test]
    fn a_name_with_many_addresses_of_one_family_does_not_hide_the_other() {
        let many = (1..=9).map(|n| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 443)));
        let [v4] = addresses(["192.0.2.1:443"]);
        let few = of_both_families(many.clone().chain([v4]));
        assert_eq!(few, many.take(2).chain([v4]).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver_and_what_is_no_name_is_an_error() {
        let [address] = addresses(["192.0.2.1:443"]);
        assert_eq!(look_up("192.0.2.1:443").await.unwrap(), [address]);
        assert!(look_up("no port").await.is_err());
    }
}
