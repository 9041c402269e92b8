//! An address with the length of its network's prefix, as in `192.168.1.2/24`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An interface's address and the network it is in. Text and TOML: `192.168.1.2/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    /// The address of the interface; of a network, any address in it.
    pub ip: IpAddr,
    /// Bits that all addresses of the network share: at most 32 for IPv4, 128 for IPv6.
    pub prefix: u8,
}

impl Subnet {
    /// Whether `ip` is in this network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.ip.is_ipv4() == ip.is_ipv4() && masked(ip, self.prefix) == masked(self.ip, self.prefix)
    }

    /// The network alone: all other bits zero.
    pub fn network(&self) -> Subnet {
        Subnet { ip: masked(self.ip, self.prefix), prefix: self.prefix }
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (ip, prefix) = text.split_once('/')?;
            let (ip, prefix): (IpAddr, u8) = (ip.parse().ok()?, prefix.parse().ok()?);
            (prefix <= bits(ip)).then_some(Subnet { ip, prefix })
        };
        parse().ok_or_else(|| {
            format!("{text:?} is no address with prefix length, as in 192.168.1.2/24")
        })
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    let host_bits = u32::from(bits(ip).saturating_sub(prefix));
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_what_shares_its_prefix_and_nothing_of_the_other_family() {
        let net: Subnet = "192.168.1.2/24".parse().unwrap();
        assert!(net.contains("192.168.1.255".parse().unwrap()));
        assert!(!net.contains("192.168.2.1".parse().unwrap()));
        assert!(!net.contains("::1".parse().unwrap()));
        assert_eq!(net.network().to_string(), "192.168.1.0/24");
        let all: Subnet = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        let v6: Subnet = "2001:db8::1/64".parse().unwrap();
        assert!(v6.contains("2001:db8::ffff".parse().unwrap()));
        assert!(!v6.contains("2001:db8:0:1::1".parse().unwrap()));
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["", "192.0.2.1", "192.0.2.1/33", "2001:db8::/129", "x/8", "192.0.2.1/-1"] {
            let error = text.parse::<Subnet>().unwrap_err();
            assert!(error.contains("192.168.1.2/24"), "{text}: {error}");
        }
    }
}
