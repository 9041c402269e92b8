//! Whom the relay sends to.
//!
//! Pure. A relay reaches what its host reaches, so it must not become a way in: addresses that belong to the host itself or
//! to everybody on a link are refused. Private networks are allowed, because that is where peers live; so is every port from
//! 1024 up. Ports below are services (DNS, NTP, SNMP), never a peer: NATs keep mapped ports out of that range (RFC 4787
//! REQ-3), and our endpoints do not bind there.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What is refused, and what is allowed in spite of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers {
    /// Every address of this host, broadcast addresses included.
    local: Vec<IpAddr>,
    /// Networks that are allowed whatever they are.
    allowed: Vec<Network>,
}

/// An IP network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Any address in it.
    pub address: IpAddr,
    /// Leading bits that count, 0 to 32 or 128.
    pub prefix: u8,
}

/// What an address is to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A peer.
    Peer,
    /// A peer on any port, by configuration.
    Allowed,
    /// This host: nothing of it may be reached but other allocations, which are how two relayed ends meet.
    Own,
    /// Nobody a relay should talk to.
    Forbidden,
}

impl Peers {
    pub(crate) fn new(mut local: Vec<IpAddr>, allowed: Vec<Network>) -> Self {
        local.sort_unstable();
        local.dedup();
        Self { local, allowed }
    }

    pub(crate) fn standing(&self, ip: IpAddr) -> Standing {
        if self.allowed.iter().any(|network| network.contains(ip)) {
            return Standing::Allowed;
        }
        if self.local.binary_search(&ip).is_ok() && !is_nobody(ip) {
            return Standing::Own;
        }
        if is_nobody(ip) || embedded(ip).is_some() { Standing::Forbidden } else { Standing::Peer }
    }

    /// The port of `peer`, whose address is of this standing, may be sent to. Of this host's only what `is_relayed`.
    pub(crate) fn port_is_open(
        standing: Standing,
        peer: SocketAddr,
        is_relayed: impl Fn(SocketAddr) -> bool,
    ) -> bool {
        match standing {
            Standing::Peer => peer.port() >= 1024,
            Standing::Allowed => peer.port() > 0,
            Standing::Own => is_relayed(peer),
            Standing::Forbidden => false,
        }
    }
}

impl Network {
    /// `ip` is in it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let shared = |a: u128, b: u128, bits: u32| {
            let differ = u32::from(self.prefix).min(bits);
            differ == 0 || (a ^ b) >> (bits - differ) == 0
        };
        match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shared(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => shared(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

/// Loopback, this network (0/8), link-local (cloud metadata lives there), multicast, reserved and broadcast.
fn is_nobody(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let first = ip.octets()[0];
            first == 0 || ip.is_loopback() || ip.is_link_local() || first >= 224
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
        }
    }
}

/// IPv6 addresses that stand for an IPv4 address: mapped, compatible, NAT64 (RFC 6052) and 6to4. A peer has a plain one.
fn embedded(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let of =
        |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0 | 0xffff] if ip != Ipv6Addr::UNSPECIFIED => of(g, h),
        [0x64, 0xff9b, 0, 0, 0, 0] => of(g, h),
        [0x2002, high, low, ..] => of(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(ip: &str) -> Standing {
        let local = ["203.0.113.1", "203.0.113.255", "2001:db8::1", "127.0.0.1"];
        let local = local.iter().map(|ip| ip.parse().unwrap()).collect();
        let allowed = Network { address: "127.5.0.0".parse().unwrap(), prefix: 16 };
        Peers::new(local, vec![allowed]).standing(ip.parse().unwrap())
    }

    #[test]
    fn private_and_public_addresses_are_peers() {
        for ip in
            ["10.0.0.1", "192.168.1.9", "100.64.0.1", "198.51.100.7", "fd00::1", "2001:db8::2"]
        {
            assert_eq!(standing(ip), Standing::Peer, "{ip}");
        }
    }

    #[test]
    fn addresses_of_nobody_and_of_everybody_are_forbidden() {
        for ip in [
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
        ] {
            assert_eq!(standing(ip), Standing::Forbidden, "{ip}");
        }
    }

    #[test]
    fn the_hosts_own_addresses_lead_to_allocations_only() {
        for ip in ["203.0.113.1", "203.0.113.255", "2001:db8::1"] {
            assert_eq!(standing(ip), Standing::Own, "{ip}");
        }
        let own = |port| SocketAddr::from(([203, 0, 113, 1], port));
        let open = |port| Peers::port_is_open(Standing::Own, own(port), |it| it == own(50_000));
        assert!(open(50_000) && !open(50_001) && !open(443));
    }

    #[test]
    fn services_below_1024_are_no_peers() {
        let at = |port| SocketAddr::from(([198, 51, 100, 1], port));
        let open = |standing, port| Peers::port_is_open(standing, at(port), |_| true);
        assert!(
            open(Standing::Peer, 1024) && !open(Standing::Peer, 53) && !open(Standing::Peer, 0)
        );
        assert!(open(Standing::Allowed, 53) && !open(Standing::Allowed, 0));
        assert!(!open(Standing::Forbidden, 5000));
    }

    #[test]
    fn a_network_is_its_prefix() {
        assert_eq!(standing("127.5.255.1"), Standing::Allowed);
        assert_eq!(standing("127.6.0.1"), Standing::Forbidden);
        let all = Network { address: "::".parse().unwrap(), prefix: 0 };
        assert!(
            all.contains("2001:db8::9".parse().unwrap())
                && !all.contains("192.0.2.1".parse().unwrap())
        );
    }
}
