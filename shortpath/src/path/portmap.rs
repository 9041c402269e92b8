//! When to ask the router for a port of its own (PCP, RFC 6887; NAT-PMP, RFC 6886; UPnP), and how long its answer is good.
//!
//! A port that the router forwards makes us reachable whatever its mapping and filtering. It is asked for once a NAT is
//! known to be there, renewed at half its lifetime, asked for again when the network changes or the NAT binds our socket
//! anew (it may have been restarted), and given up quietly, for a while, when nothing answers.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Who gave us a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MappingProtocol {
    /// Port Control Protocol, RFC 6887.
    Pcp,
    /// NAT Port Mapping Protocol, RFC 6886.
    NatPmp,
    /// Universal Plug and Play, an Internet Gateway Device's service.
    Upnp,
}

/// Why there is no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MappingFailure {
    /// No IPv4 default route through a router, or we cannot tell.
    NoRouter,
    /// The router does not answer.
    Silent,
    /// It answers, and gives none.
    Refused,
}

/// What the router gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingGrant {
    /// The address that leads to our socket.
    pub external: SocketAddr,
    /// How long, unless it is renewed.
    pub lifetime: Duration,
}

/// The lifetime to ask for. RFC 6887 section 15 leaves it to the client; a port of a process that is gone should not stay
/// open for the two hours of RFC 6886, and a packet in ten minutes costs nothing.
pub const MAPPING_LIFETIME: Duration = Duration::from_secs(20 * 60);
/// The longest lifetime believed (RFC 6887 section 15: servers should give no more).
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two requests for one port (RFC 6887 section 11.2.1).
const REQUEST_PAUSE: Duration = Duration::from_secs(4);
/// Pause after a failure; doubles with each.
const RETRY_FIRST: Duration = Duration::from_secs(10 * 60);
const RETRY_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// One socket's port at the router.
#[derive(Clone, Debug, Default)]
pub struct PortMapper {
    /// A NAT is there, so a port at it is of use.
    needed: bool,
    asking: bool,
    asked: Option<Instant>,
    due: Option<Instant>,
    failures: u32,
    /// The port, and until when it is ours.
    held: Option<(SocketAddr, Instant)>,
}

impl PortMapper {
    /// Whether a NAT is before the socket, as far as is known now.
    pub fn behind_nat(&mut self, now: Instant, yes: bool) {
        if yes && !self.needed && self.due.is_none() && !self.asking {
            self.due = Some(now);
        }
        // A NAT that does not answer for a moment is still there.
        self.needed |= yes;
    }

    /// Another network: what the old router gave or refused means nothing. An answer that is still awaited must not be
    /// told here any more.
    pub fn network_changed(&mut self, now: Instant) {
        *self = Self { needed: self.needed, ..Self::default() };
        self.due = self.needed.then_some(now);
    }

    /// The NAT bound our socket anew: if it was restarted, the port is gone. Where nothing answered before nothing is asked.
    pub fn rebound(&mut self, now: Instant) {
        if self.held.is_some() && !self.asking {
            self.due = Some(now.max(self.asked.map_or(now, |at| at + REQUEST_PAUSE)));
        }
    }

    /// Whether to ask now; [`Self::granted`] or [`Self::failed`] must follow, or a change of network.
    pub fn poll(&mut self, now: Instant) -> bool {
        if self.held.is_some_and(|(_, until)| until <= now) {
            self.held = None;
        }
        if !self.needed || self.asking || self.due.is_none_or(|due| due > now) {
            return false;
        }
        (self.asking, self.asked, self.due) = (true, Some(now), None);
        true
    }

    /// When [`Self::poll`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due.filter(|_| self.needed);
        [due, self.held.map(|(_, until)| until)].into_iter().flatten().min()
    }

    /// The router gave a port.
    pub fn granted(&mut self, now: Instant, grant: MappingGrant) {
        let lifetime = grant.lifetime.min(LIFETIME_MAX);
        if lifetime.is_zero() || !is_somewhere(grant.external) {
            return self.failed(now);
        }
        (self.asking, self.failures) = (false, 0);
        self.held = Some((grant.external, now + lifetime));
        self.due = Some(now + (lifetime / 2).max(REQUEST_PAUSE));
    }

    /// It did not. A port that is still ours is asked for again at half of the time left (RFC 6887 section 11.2.1).
    pub fn failed(&mut self, now: Instant) {
        self.asking = false;
        let left = self.held.map(|(_, until)| until.saturating_duration_since(now));
        let pause = match left {
            Some(left) if left >= REQUEST_PAUSE * 2 => left / 2,
            _ => {
                self.failures = self.failures.saturating_add(1);
                (RETRY_FIRST * 2_u32.pow((self.failures - 1).min(8))).min(RETRY_MAX)
            }
        };
        self.due = Some(now + pause);
    }

    /// The address that leads to our socket.
    #[must_use]
    pub fn external(&self) -> Option<SocketAddr> {
        self.held.map(|(external, _)| external)
    }
}

/// Whether anybody could be there. A private address can be right: behind a second NAT its neighbours reach it.
fn is_somewhere(external: SocketAddr) -> bool {
    let ip = external.ip();
    let nowhere = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    external.port() != 0 && !nowhere && ip != IpAddr::from([255, 255, 255, 255])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn grant(external: &str, lifetime: Duration) -> MappingGrant {
        MappingGrant { external: external.parse().unwrap(), lifetime }
    }

    /// A mapper that has a port for 20 minutes since `now`.
    fn holding(now: Instant) -> PortMapper {
        let mut mapper = PortMapper::default();
        mapper.behind_nat(now, true);
        assert!(mapper.poll(now));
        mapper.granted(now, grant("203.0.113.2:5000", MAPPING_LIFETIME));
        mapper
    }

    #[test]
    fn nothing_is_asked_before_a_nat_is_seen_and_one_thing_at_a_time_afterwards() {
        let now = Instant::now();
        let mut mapper = PortMapper::default();
        mapper.behind_nat(now, false);
        assert!(!mapper.poll(now) && mapper.poll_timeout().is_none());
        mapper.behind_nat(now, true);
        assert_eq!(mapper.poll_timeout(), Some(now));
        assert!(mapper.poll(now));
        assert!(!mapper.poll(now) && mapper.poll_timeout().is_none());
    }

    #[test]
    fn a_port_is_renewed_at_half_its_lifetime_and_then_at_half_of_what_is_left() {
        let now = Instant::now();
        let mut mapper = holding(now);
        assert_eq!(mapper.external(), Some("203.0.113.2:5000".parse().unwrap()));
        assert_eq!(mapper.poll_timeout(), Some(now + 10 * MINUTE));
        assert!(!mapper.poll(now + 9 * MINUTE));
        let mut asked = Vec::new();
        while let Some(due) = mapper.poll_timeout().filter(|due| *due < now + 20 * MINUTE) {
            assert!(mapper.poll(due));
            asked.push(due.duration_since(now).as_secs());
            mapper.failed(due);
        }
        assert_eq!(asked[..3], [600, 900, 1050]);
        assert!(asked.len() < 12, "{asked:?}");
        assert!(mapper.external().is_some());
        assert!(!mapper.poll(now + 20 * MINUTE));
        assert_eq!(mapper.external(), None, "it has run out");
    }

    #[test]
    fn where_nothing_answers_it_is_asked_ever_more_rarely() {
        let start = Instant::now();
        let mut mapper = PortMapper::default();
        mapper.behind_nat(start, true);
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..20 {
            assert!(mapper.poll(now));
            mapper.failed(now);
            let due = mapper.poll_timeout().unwrap();
            pauses.push((due - now).as_secs() / 60);
            now = due;
        }
        assert_eq!(pauses[..6], [10, 20, 40, 80, 120, 120]);
        mapper.rebound(now - MINUTE);
        assert!(
            !mapper.poll(now - MINUTE),
            "a NAT that gives no ports is not asked at every rebinding"
        );
        mapper.network_changed(now);
        assert!(mapper.poll(now), "another network, another router");
    }

    #[test]
    fn a_nat_that_was_restarted_is_asked_again_but_not_at_every_packet() {
        let now = Instant::now();
        let mut mapper = holding(now);
        mapper.rebound(now + Duration::from_secs(1));
        assert_eq!(mapper.poll_timeout(), Some(now + REQUEST_PAUSE));
        assert!(mapper.poll(now + REQUEST_PAUSE));
        mapper.granted(now + REQUEST_PAUSE, grant("203.0.113.2:6000", MAPPING_LIFETIME));
        assert_eq!(mapper.external(), Some("203.0.113.2:6000".parse().unwrap()));
    }

    #[test]
    fn answers_that_cannot_be_true_are_failures() {
        let now = Instant::now();
        for (external, lifetime) in [
            ("0.0.0.0:5000", MINUTE),
            ("127.0.0.1:5000", MINUTE),
            ("224.0.0.1:5000", MINUTE),
            ("255.255.255.255:5000", MINUTE),
            ("203.0.113.2:0", MINUTE),
            ("203.0.113.2:5000", Duration::ZERO),
        ] {
            let mut mapper = PortMapper::default();
            mapper.behind_nat(now, true);
            assert!(mapper.poll(now));
            mapper.granted(now, grant(external, lifetime));
            assert_eq!(mapper.external(), None, "{external}");
            assert_eq!(mapper.poll_timeout(), Some(now + RETRY_FIRST));
        }
        let mut mapper = holding(now);
        mapper.granted(now, grant("203.0.113.2:1", Duration::from_secs(u64::from(u32::MAX))));
        assert_eq!(mapper.poll_timeout(), Some(now + LIFETIME_MAX / 2));
        let mut hasty = holding(now);
        hasty.granted(now, grant("203.0.113.2:1", Duration::from_secs(1)));
        assert!(!hasty.poll(now + Duration::from_secs(3)), "no lifetime makes us ask every second");
    }
}
