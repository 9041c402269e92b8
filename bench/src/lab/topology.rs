//! What a lab consists of, as data: built in Rust, or read from TOML.
//!
//! ```toml
//! name = "office"
//! hosts = [{ name = "client" }, { name = "server" }]
//! routers = [{ name = "home", nat = "symmetric" }, { name = "internet" }]
//!
//! [[links]]
//! name = "client"
//! from = { at = "client", addresses = ["192.168.1.2/24"] }
//! to = { at = "home", addresses = ["192.168.1.1/24"] }
//! settings = "wifi,loss=1%"
//!
//! [[links]]
//! name = "home"
//! from = { at = "home", addresses = ["203.0.113.2/24"] }
//! to = { at = "internet", addresses = ["203.0.113.1/24"] }
//!
//! [[links]]
//! name = "server"
//! from = { at = "server", addresses = ["192.0.2.1/24", "192.0.2.2/24"] }
//! to = { at = "internet", addresses = ["192.0.2.254/24"] }
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::nat::NatSettings;
use super::subnet::Subnet;
use super::{LabError, named, plan, presets};

/// Hosts, routers and the links between them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Topology {
    /// For people.
    pub name: String,
    /// A network namespace each.
    pub hosts: Vec<Host>,
    /// Routers of the lab's own, without a namespace.
    #[serde(default)]
    pub routers: Vec<Router>,
    /// An interface of a host, or a port of a router, at each end.
    pub links: Vec<Link>,
}

/// A network namespace with an interface per link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Host {
    /// Letters, digits and dashes, at most 32; no other host or router has it.
    pub name: String,
    /// If it is a router: the kernel forwards, with these nftables rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<KernelRouter>,
}

/// What the kernel does in a namespace that forwards. Needs the program `nft`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelRouter {
    /// nftables `masquerade` and a stateful firewall: what a Linux home router does.
    Masquerade,
    /// nftables `masquerade fully-random`: the classic symmetric NAT.
    MasqueradeRandom,
    /// A stateful firewall, no translation.
    Firewall,
    /// Forwarding only; needs no `nft`.
    Plain,
}

impl FromStr for KernelRouter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "masquerade" => KernelRouter::Masquerade,
            "masquerade-random" => KernelRouter::MasqueradeRandom,
            "firewall" => KernelRouter::Firewall,
            "plain" => KernelRouter::Plain,
            _ => {
                let known = "masquerade, masquerade-random, firewall or plain";
                return Err(format!("{text:?} is none of {known}"));
            }
        })
    }
}

/// A router of the lab's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Router {
    /// As [`Host::name`].
    pub name: String,
    /// What stands between its first link out (the outside) and all others. The public address is
    /// the first IPv4 address at this end of that link. `None`: everything passes.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatSettings>,
}

/// A wire in each direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Link {
    /// Letters, digits and dashes, at most 32; no other link has it.
    pub name: String,
    /// The end further from the core; its default route is a node's first link out.
    pub from: End,
    /// The end nearer to the core.
    pub to: End,
    /// What happens on the way: `up` is from `from` to `to`.
    #[serde(default, with = "text")]
    pub settings: presets::Link,
}

/// One end of a link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct End {
    /// Name of a host or router.
    pub at: String,
    /// Addresses of the interface there.
    #[serde(default)]
    pub addresses: Vec<Subnet>,
}

impl Topology {
    /// Nothing yet.
    pub fn new(name: &str) -> Self {
        Topology { name: name.to_owned(), ..Topology::default() }
    }

    /// Adds a host.
    #[must_use]
    pub fn host(mut self, name: &str) -> Self {
        self.hosts.push(Host { name: name.to_owned(), router: None });
        self
    }

    /// Adds a host whose kernel forwards.
    #[must_use]
    pub fn kernel_router(mut self, name: &str, rules: KernelRouter) -> Self {
        self.hosts.push(Host { name: name.to_owned(), router: Some(rules) });
        self
    }

    /// Adds a router of the lab's own.
    #[must_use]
    pub fn router(mut self, name: &str, nat: Option<NatSettings>) -> Self {
        self.routers.push(Router { name: name.to_owned(), nat });
        self
    }

    /// Adds a link from `from` to `to`, which is nearer to the core. Addresses are as in
    /// `192.168.1.2/24 2001:db8::2/64`.
    ///
    /// # Errors
    /// An address that is none.
    pub fn link(
        mut self,
        name: &str,
        from: (&str, &str),
        to: (&str, &str),
        settings: presets::Link,
    ) -> Result<Self, LabError> {
        let end = |(at, addresses): (&str, &str)| {
            let addresses = addresses.split_whitespace().map(str::parse).collect::<Result<_, _>>();
            let addresses = addresses.map_err(|why: String| LabError::topology(&why))?;
            Ok(End { at: at.to_owned(), addresses })
        };
        let (from, to) = (end(from)?, end(to)?);
        self.links.push(Link { name: name.to_owned(), from, to, settings });
        Ok(self)
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// What is wrong and where, or that it makes no network.
    pub fn from_toml(text: &str) -> Result<Self, LabError> {
        let read: Topology =
            toml::from_str(text).map_err(|error| LabError::topology(&error.to_string()))?;
        plan::Plan::of(&read).map_err(|why| LabError::topology(&why))?;
        Ok(read)
    }

    /// As TOML, which [`Topology::from_toml`] reads.
    ///
    /// # Errors
    /// None that is known of.
    pub fn to_toml(&self) -> Result<String, LabError> {
        toml::to_string(self).map_err(|error| LabError::topology(&error.to_string()))
    }
}

/// A named topology with its parameters, as in `pair:client-nat=symmetric,agent-link=4g`.
impl FromStr for Topology {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        named::topology(text)
    }
}

/// A value by its text.
mod text {
    use super::{Deserialize, Deserializer, FromStr, Serializer, fmt};

    pub(super) fn serialize<S: Serializer, T: fmt::Display>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A value by its text, if there is one.
mod optional_text {
    use super::{Deserialize, Deserializer, FromStr, Serialize, Serializer, fmt};

    pub(super) fn serialize<S: Serializer, T: fmt::Display>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}
