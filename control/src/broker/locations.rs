//! Named networks, so that policies can say `office` instead of numbers. Pure.
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::code::{Code, Fault};

/// Named locations; each is looked at for every decision.
const LOCATIONS_MAX: usize = 256;
/// Networks of one location.
const NETWORKS_MAX: usize = 256;

/// A name for some networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// As policies write it.
    name: String,
    networks: Vec<Network>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Location {
    /// `NAME=NETWORK,NETWORK...`, each network `ADDRESS/PREFIX` or one address.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`].
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let wrong = |why: &str| {
            Err(Code::ConfigInvalid.because(format!(
                "location `{text}`: {why}; write NAME=192.0.2.0/24,2001:db8::/32"
            )))
        };
        let Some((name, networks)) = text.split_once('=') else { return wrong("there is no `=`") };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 63 || !name.chars().all(is_plain) {
            return wrong("the name is 1 to 63 of A-Z a-z 0-9 - _ .");
        }
        let networks: Option<Vec<_>> = networks.split(',').map(Network::parse).collect();
        match networks {
            Some(networks) if networks.len() > NETWORKS_MAX => wrong("too many networks"),
            Some(networks) => Ok(Self { name: name.to_owned(), networks }),
            None => wrong("that is no network"),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Judges them together.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] if there are too many.
    pub(crate) fn judge(locations: &[Self]) -> Result<(), Fault> {
        if locations.len() > LOCATIONS_MAX {
            return Err(Code::ConfigInvalid.because(format!("more than {LOCATIONS_MAX} locations")));
        }
        Ok(())
    }

    /// Names of those that `source` is in.
    #[must_use]
    pub fn of(locations: &[Self], source: IpAddr) -> BTreeSet<String> {
        let source = source.to_canonical();
        let holds = |it: &&Self| it.networks.iter().any(|network| network.holds(source));
        locations.iter().filter(holds).map(|it| it.name.clone()).collect()
    }
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/').unwrap_or((text.trim(), ""));
        let address = address.parse::<IpAddr>().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = if text.contains('/') { prefix.parse().ok()? } else { bits };
        (prefix <= bits).then_some(Self { address, prefix })
    }

    fn holds(self, source: IpAddr) -> bool {
        let differs = match (self.address, source) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits() ^ b.to_bits())) << 96,
            (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
            _ => return false,
        };
        differs.leading_zeros() >= u32::from(self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_where_its_networks_say() {
        let texts = ["office=192.0.2.0/24,2001:db8::/32", "desk=192.0.2.7", "all=0.0.0.0/0"];
        let locations = texts.map(|text| Location::parse(text).unwrap());
        for (source, expected) in [
            ("192.0.2.7", vec!["all", "desk", "office"]),
            ("::ffff:192.0.2.9", vec!["all", "office"]),
            ("192.0.3.7", vec!["all"]),
            ("2001:db8:1::", vec!["office"]),
            ("2001:db9::", vec![]),
        ] {
            let found = Location::of(&locations, source.parse().unwrap());
            assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{source}");
        }
    }

    #[test]
    fn what_is_no_location_is_refused() {
        for text in
            ["", "office", "=192.0.2.0/24", "a b=::1", "x=192.0.2.0/33", "x=", "x=::/129", "x=1/"]
        {
            assert_eq!(Location::parse(text).unwrap_err().code, Code::ConfigInvalid, "{text}");
        }
    }
}
