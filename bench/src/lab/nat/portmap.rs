//! The box's port mapping service for inside hosts: PCP (RFC 6887) or NAT-PMP (RFC 6886), each without the other.
//!
//! A port that was given is endpoint-independent in both directions, whatever the box does otherwise:
//! anyone may send to it, and what its inside endpoint sends leaves from it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::settings::PortMapping;

/// Where requests are sent to.
pub(super) const PORT: u16 = 5351;

/// Most ports given.
const FORWARDS_MAX: usize = 256;

/// Longest lifetime given.
const LIFETIME_MAX: u32 = 7200;

/// PCP's result codes (RFC 6887, section 7.4).
const UNSUPP_VERSION: u8 = 1;
const NOT_AUTHORIZED: u8 = 2;
const UNSUPP_OPCODE: u8 = 4;
const NO_RESOURCES: u8 = 8;
const UNSUPP_PROTOCOL: u8 = 9;
const ADDRESS_MISMATCH: u8 = 12;

/// PCP's MAP request and response.
const PCP_BYTES: usize = 60;

/// The ports given, by inside endpoint. UDP only.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    by_inside: BTreeMap<SocketAddr, Forward>,
}

#[derive(Clone, Copy, Debug)]
struct Forward {
    port: u16,
    until: Duration,
    nonce: [u8; 12],
}

impl Forwards {
    /// As after a restart.
    pub(super) fn clear(&mut self) {
        self.by_inside.clear();
    }

    /// The external port of an inside endpoint.
    pub(super) fn port_of(&self, now: Duration, inside: SocketAddr) -> Option<u16> {
        self.by_inside.get(&inside).filter(|held| held.until > now).map(|held| held.port)
    }

    /// The inside endpoint of an external port.
    pub(super) fn inside_of(&self, now: Duration, port: u16) -> Option<SocketAddr> {
        let mut held = self.by_inside.iter().filter(|(_, held)| held.until > now);
        held.find(|(_, held)| held.port == port).map(|(inside, _)| *inside)
    }

    /// The answer to a request of `from`, if it gets one.
    pub(super) fn answer(
        &mut self,
        now: Duration,
        service: PortMapping,
        external: Ipv4Addr,
        from: SocketAddrV4,
        request: &[u8],
    ) -> Option<Vec<u8>> {
        match (service, request.first()?) {
            (PortMapping::Pcp, 2) => self.answer_pcp(now, external, from, request),
            (PortMapping::NatPmp, 0) => self.answer_nat_pmp(now, external, from, request),
            // RFC 6886, section 3.5: what NAT-PMP tells whoever speaks another version.
            (PortMapping::NatPmp, _) => {
                Some([&[0, 0x80 | request.get(1)?, 0, UNSUPP_VERSION][..], &epoch(now)].concat())
            }
            (PortMapping::Pcp, _) => None,
        }
    }

    fn answer_pcp(
        &mut self,
        now: Duration,
        external: Ipv4Addr,
        from: SocketAddrV4,
        request: &[u8],
    ) -> Option<Vec<u8>> {
        let body = request.get(24..PCP_BYTES)?;
        let nonce = body[..12].try_into().ok()?;
        let wanted = Wanted {
            inside: SocketAddr::new(IpAddr::V4(*from.ip()), word(body, 16)),
            port: word(body, 18),
            lifetime: u32::from_be_bytes(request[4..8].try_into().ok()?),
            nonce,
        };
        let result = if request[1] != 1 {
            Err(UNSUPP_OPCODE)
        } else if body[12] != 17 {
            Err(UNSUPP_PROTOCOL)
        } else if request[8..24] != from.ip().to_ipv6_mapped().octets() {
            Err(ADDRESS_MISMATCH)
        } else {
            self.give(now, wanted)
        };
        let (code, port, lifetime) = match result {
            Ok((port, lifetime)) => (0, port, lifetime),
            Err(code) => (code, 0, 30),
        };
        let mut answer = vec![2, 0x80 | request[1], 0, code];
        answer.extend(lifetime.to_be_bytes());
        answer.extend(epoch(now));
        answer.extend([0; 12]);
        answer.extend(&body[..18]);
        answer.extend(port.to_be_bytes());
        answer.extend(external.to_ipv6_mapped().octets());
        Some(answer)
    }

    fn answer_nat_pmp(
        &mut self,
        now: Duration,
        external: Ipv4Addr,
        from: SocketAddrV4,
        request: &[u8],
    ) -> Option<Vec<u8>> {
        let head = |result: u8| [&[0, 0x80 | request[1], 0, result][..], &epoch(now)].concat();
        match request.get(1)? {
            0 => Some([head(0), external.octets().to_vec()].concat()),
            1 if request.len() >= 12 => {
                let wanted = Wanted {
                    inside: SocketAddr::new(IpAddr::V4(*from.ip()), word(request, 4)),
                    port: word(request, 6),
                    lifetime: u32::from_be_bytes(request[8..12].try_into().ok()?),
                    nonce: [0; 12],
                };
                let (result, (port, lifetime)) = match self.give(now, wanted) {
                    Ok(given) => (0, given),
                    Err(_) => (4, (0, 0)),
                };
                let inside = &request[4..6];
                let (port, lifetime) = (port.to_be_bytes(), lifetime.to_be_bytes());
                Some([&head(result)[..], inside, &port, &lifetime].concat())
            }
            _ => Some(head(5)),
        }
    }

    /// Gives, renews or (lifetime 0) takes back a port; the port and its lifetime in seconds.
    fn give(&mut self, now: Duration, wanted: Wanted) -> Result<(u16, u32), u8> {
        self.by_inside.retain(|_, held| held.until > now);
        let held = self.by_inside.get(&wanted.inside).copied();
        if held.is_some_and(|held| held.nonce != wanted.nonce) {
            return Err(NOT_AUTHORIZED);
        }
        if wanted.lifetime == 0 {
            self.by_inside.remove(&wanted.inside);
            return Ok((0, 0));
        }
        if held.is_none() && self.by_inside.len() >= FORWARDS_MAX {
            return Err(NO_RESOURCES);
        }
        let lifetime = wanted.lifetime.min(LIFETIME_MAX);
        let port = held.map_or_else(|| self.free_port(wanted.port), |held| held.port);
        let until = now + Duration::from_secs(lifetime.into());
        self.by_inside.insert(wanted.inside, Forward { port, until, nonce: wanted.nonce });
        Ok((port, lifetime))
    }

    /// The wanted port or the next one up that nobody has.
    fn free_port(&self, wanted: u16) -> u16 {
        let taken = |port| self.by_inside.values().any(|held| held.port == port);
        let ports = (wanted.max(1024)..=u16::MAX).chain(1024..=u16::MAX);
        // At most FORWARDS_MAX are taken.
        ports.into_iter().find(|port| !taken(*port)).unwrap_or(u16::MAX)
    }
}

/// What a request asks for.
struct Wanted {
    inside: SocketAddr,
    port: u16,
    lifetime: u32,
    nonce: [u8; 12],
}

fn epoch(now: Duration) -> [u8; 4] {
    (now.as_secs() as u32).to_be_bytes()
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
    const INSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 2), 9);

    fn pcp(client: Ipv4Addr, nonce: u8, port: u16, lifetime: u32) -> Vec<u8> {
        let mut request = vec![2, 1, 0, 0];
        request.extend(lifetime.to_be_bytes());
        request.extend(client.to_ipv6_mapped().octets());
        request.extend([nonce; 12]);
        request.extend([17, 0, 0, 0]);
        request.extend(port.to_be_bytes());
        request.extend(port.to_be_bytes());
        request.extend([0; 16]);
        request
    }

    /// Result code, external port, lifetime.
    fn ask(forwards: &mut Forwards, at: u64, request: &[u8]) -> (u8, u16, u32) {
        let now = Duration::from_secs(at);
        let answer = forwards.answer(now, PortMapping::Pcp, EXTERNAL, INSIDE, request).unwrap();
        assert_eq!((answer.len(), &answer[..2]), (PCP_BYTES, &[2, 0x81][..]));
        let lifetime = u32::from_be_bytes(answer[4..8].try_into().unwrap());
        (answer[3], word(&answer, 42), lifetime)
    }

    #[test]
    fn pcp_gives_renews_ends_and_guards_a_port() {
        let mut forwards = Forwards::default();
        let inside = SocketAddr::new(IpAddr::V4(*INSIDE.ip()), 5000);
        let request = pcp(*INSIDE.ip(), 1, 5000, 60);
        assert_eq!(ask(&mut forwards, 0, &request), (0, 5000, 60));
        assert_eq!(forwards.port_of(Duration::from_secs(59), inside), Some(5000));
        assert_eq!(forwards.port_of(Duration::from_secs(60), inside), None);
        assert_eq!(ask(&mut forwards, 30, &request), (0, 5000, 60));
        assert_eq!(forwards.inside_of(Duration::from_secs(89), 5000), Some(inside));
        assert_eq!(ask(&mut forwards, 31, &pcp(*INSIDE.ip(), 2, 5000, 60)).0, NOT_AUTHORIZED);
        let other = Ipv4Addr::new(192, 168, 1, 3);
        assert_eq!(ask(&mut forwards, 31, &pcp(other, 1, 5000, 60)).0, ADDRESS_MISMATCH);
        assert_eq!(ask(&mut forwards, 32, &pcp(*INSIDE.ip(), 1, 5000, 0)), (0, 0, 0));
        assert_eq!(forwards.inside_of(Duration::from_secs(33), 5000), None);
    }

    #[test]
    fn nat_pmp_tells_the_address_gives_ports_and_knows_no_pcp() {
        let mut forwards = Forwards::default();
        let mut ask = |request: &[u8]| {
            forwards.answer(Duration::ZERO, PortMapping::NatPmp, EXTERNAL, INSIDE, request)
        };
        assert_eq!(ask(&[0, 0]).unwrap()[8..], EXTERNAL.octets());
        let given = ask(&[0, 1, 0, 0, 0x13, 0x88, 0x13, 0x88, 0, 0, 0, 60]).unwrap();
        assert_eq!(given[8..], [0x13, 0x88, 0x13, 0x88, 0, 0, 0, 60]);
        assert_eq!(ask(&pcp(*INSIDE.ip(), 1, 5000, 60)).unwrap()[..4], [0, 0x81, 0, 1]);
        assert_eq!(ask(&[]), None);
        let short = forwards.answer(Duration::ZERO, PortMapping::Pcp, EXTERNAL, INSIDE, &[2, 1]);
        assert_eq!(short, None, "cut short");
    }
}
