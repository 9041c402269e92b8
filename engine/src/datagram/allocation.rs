//! One allocation: whom it may talk to (RFC 8656 sections 3.3, 9 and 12).
//!
//! Pure. Lists are short and searched in their order: a session has a handful of peers, and a scan of 64 entries costs less
//! than hashing an address.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::peers::Standing;
use super::shared::Owner;
use super::wire::Key;

/// Who talks to us and where: the 5-tuple, but for our port and protocol, which there is only one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    /// The client, in the form of the socket's family.
    pub(crate) client: SocketAddr,
    /// The address of ours that it reached, in the same form.
    pub(crate) reached: IpAddr,
}

/// A relayed transport address and what goes through it.
pub(crate) struct Allocation {
    pub(crate) made: Made,
    pub(crate) expires: Instant,
    permissions: Vec<Permission>,
    channels: Vec<Channel>,
}

#[derive(Clone, Copy)]
struct Permission {
    ip: IpAddr,
    standing: Standing,
    expires: Instant,
}

#[derive(Clone, Copy)]
struct Channel {
    number: u16,
    peer: SocketAddr,
    standing: Standing,
    expires: Instant,
}

/// Why a channel or a permission was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unbound {
    /// The number is another peer's, or the peer has another number.
    Conflict,
    /// The allocation has as many as it may.
    Full,
}

/// RFC 8656 section 3.3.
const PERMISSION: Duration = Duration::from_secs(300);
/// RFC 8656 section 12.
const CHANNEL: Duration = Duration::from_secs(600);
/// Peers of one allocation: a session's candidates, with room for addresses that change.
pub(crate) const PEERS_MAX: usize = 64;

/// How an allocation was made; nothing of it changes.
pub(crate) struct Made {
    pub(crate) tuple: Tuple,
    pub(crate) username: String,
    pub(crate) owner: Owner,
    pub(crate) key: Key,
    /// The Allocate request that made it: a retransmission is answered alike.
    pub(crate) transaction: [u8; 16],
    /// The address that its socket is bound to.
    pub(crate) bind: IpAddr,
    /// What peers see, on the port of its socket.
    pub(crate) relayed: SocketAddr,
    /// Of the port that is kept for another.
    pub(crate) token: Option<[u8; 8]>,
    pub(crate) lifetime: Duration,
}

impl Allocation {
    pub(crate) fn new(now: Instant, made: Made) -> Self {
        let expires = now + made.lifetime;
        Self { made, expires, permissions: Vec::new(), channels: Vec::new() }
    }

    pub(crate) fn is_v4(&self) -> bool {
        self.made.relayed.is_ipv4()
    }

    /// Permits these addresses of peers for five minutes; none of them if there is no room for all.
    pub(crate) fn permit(
        &mut self,
        now: Instant,
        wanted: &[(IpAddr, Standing)],
    ) -> Result<(), Unbound> {
        self.permissions.retain(|permission| permission.expires > now);
        let held = self.permissions.len();
        for &(ip, standing) in wanted {
            if !self.permissions.iter().any(|known| known.ip == ip) {
                self.permissions.push(Permission { ip, standing, expires: now });
            }
        }
        if self.permissions.len() > PEERS_MAX {
            self.permissions.truncate(held);
            return Err(Unbound::Full);
        }
        for known in &mut self.permissions {
            if wanted.iter().any(|(ip, _)| *ip == known.ip) {
                known.expires = now + PERMISSION;
            }
        }
        Ok(())
    }

    /// What the peer's address is, if it is permitted.
    pub(crate) fn permitted(&self, now: Instant, ip: IpAddr) -> Option<Standing> {
        let known = self.permissions.iter().find(|known| known.ip == ip && known.expires > now);
        known.map(|known| known.standing)
    }

    /// Binds a channel for ten minutes, or renews it, and permits the peer's address.
    pub(crate) fn bind(
        &mut self,
        now: Instant,
        number: u16,
        peer: SocketAddr,
        standing: Standing,
    ) -> Result<(), Unbound> {
        self.channels.retain(|channel| channel.expires > now);
        let taken = |channel: &Channel| channel.number == number || channel.peer == peer;
        let place = self.channels.iter().position(taken);
        let bound = Channel { number, peer, standing, expires: now + CHANNEL };
        match place.and_then(|place| self.channels.get(place)) {
            Some(known) if known.number != number || known.peer != peer => {
                return Err(Unbound::Conflict);
            }
            None if self.channels.len() >= PEERS_MAX => return Err(Unbound::Full),
            _ => {}
        }
        self.permit(now, &[(peer.ip(), standing)])?;
        self.channels.extend(place.is_none().then_some(bound));
        if let Some(known) = place.and_then(|place| self.channels.get_mut(place)) {
            *known = bound;
        }
        Ok(())
    }

    /// The peer of a channel, and what its address is.
    pub(crate) fn peer_of(&self, now: Instant, number: u16) -> Option<(SocketAddr, Standing)> {
        let bound =
            self.channels.iter().find(|known| known.number == number && known.expires > now);
        bound.map(|known| (known.peer, known.standing))
    }

    /// The channel of a peer.
    pub(crate) fn channel_of(&self, now: Instant, peer: SocketAddr) -> Option<u16> {
        let bound = self.channels.iter().find(|known| known.peer == peer && known.expires > now);
        bound.map(|known| known.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocation(now: Instant) -> Allocation {
        Allocation::new(
            now,
            Made {
                tuple: Tuple { client: peer(9), reached: peer(9).ip() },
                username: "1:u".into(),
                owner: Owner { name: "u".into(), account: "u".into() },
                key: Key::long_term("1:u", "r", "p"),
                transaction: [0; 16],
                bind: peer(0).ip(),
                relayed: peer(50_000),
                token: None,
                lifetime: Duration::from_secs(600),
            },
        )
    }

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn other(last: u8) -> IpAddr {
        IpAddr::from([198, 51, 100, last])
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_permission_lasts_five_minutes_and_knows_no_ports() {
        let now = Instant::now();
        let mut allocation = allocation(now);
        allocation.permit(now, &[(other(1), Standing::Peer)]).unwrap();
        assert_eq!(allocation.permitted(now + 299 * SECOND, other(1)), Some(Standing::Peer));
        assert_eq!(allocation.permitted(now + 300 * SECOND, other(1)), None);
        assert_eq!(allocation.permitted(now, other(2)), None);
        allocation.permit(now + 200 * SECOND, &[(other(1), Standing::Peer)]).unwrap();
        assert!(allocation.permitted(now + 400 * SECOND, other(1)).is_some(), "renewed");
    }

    #[test]
    fn a_channel_lasts_ten_minutes_and_its_permission_five() {
        let now = Instant::now();
        let mut allocation = allocation(now);
        allocation.bind(now, 0x4000, peer(1), Standing::Peer).unwrap();
        let at = now + 599 * SECOND;
        assert_eq!(allocation.peer_of(at, 0x4000), Some((peer(1), Standing::Peer)));
        assert_eq!(allocation.channel_of(at, peer(1)), Some(0x4000));
        assert_eq!(allocation.permitted(at, peer(1).ip()), None);
        assert_eq!(allocation.peer_of(now + 600 * SECOND, 0x4000), None);
        assert_eq!(allocation.channel_of(now, peer(2)), None);
    }

    #[test]
    fn a_channel_is_rebound_to_another_peer_only_when_it_has_ended() {
        let now = Instant::now();
        let mut allocation = allocation(now);
        allocation.bind(now, 0x4000, peer(1), Standing::Peer).unwrap();
        assert_eq!(allocation.bind(now, 0x4000, peer(2), Standing::Peer), Err(Unbound::Conflict));
        assert_eq!(allocation.bind(now, 0x4001, peer(1), Standing::Peer), Err(Unbound::Conflict));
        allocation.bind(now + 500 * SECOND, 0x4000, peer(1), Standing::Peer).unwrap();
        assert!(allocation.peer_of(now + 1000 * SECOND, 0x4000).is_some(), "renewed");
        let later = now + 1100 * SECOND;
        allocation.bind(later, 0x4000, peer(2), Standing::Peer).unwrap();
        assert_eq!(allocation.peer_of(later, 0x4000), Some((peer(2), Standing::Peer)));
    }

    #[test]
    fn peers_are_bounded_and_ended_ones_make_room() {
        let now = Instant::now();
        let mut allocation = allocation(now);
        let fill = |allocation: &mut Allocation, now| {
            (0..100)
                .filter(|n| allocation.permit(now, &[(other(*n), Standing::Peer)]).is_ok())
                .count()
        };
        assert_eq!(fill(&mut allocation, now), PEERS_MAX);
        assert_eq!(fill(&mut allocation, now + 301 * SECOND), PEERS_MAX);
        let bound = (0..100).filter(|n| {
            allocation.bind(now, 0x4000 + n, peer(2000 + n), Standing::Peer) != Err(Unbound::Full)
        });
        assert_eq!(bound.count(), 0, "no permission to be had, no channel");
    }

    #[test]
    fn permissions_are_installed_and_renewed_all_together_or_not_at_all() {
        let now = Instant::now();
        let mut allocation = allocation(now);
        let peers = |numbers: std::ops::Range<u8>| {
            numbers.map(|n| (other(n), Standing::Peer)).collect::<Vec<_>>()
        };
        allocation.permit(now, &peers(0..60)).unwrap();
        let later = now + 100 * SECOND;
        assert_eq!(allocation.permit(later, &peers(59..65)), Err(Unbound::Full));
        assert!((60..65).all(|n| allocation.permitted(later, other(n)).is_none()));
        let ended = now + 300 * SECOND;
        assert_eq!(allocation.permitted(ended, other(59)), None, "it was not renewed either");
        assert_eq!(allocation.permit(later, &peers(59..64)), Ok(()), "as many as fit");
        assert!((59..64).all(|n| allocation.permitted(ended, other(n)).is_some()));
        let twice = [peers(0..1), peers(0..1)].concat();
        assert_eq!(allocation.permit(later, &twice), Ok(()), "one address is one permission");
    }
}
