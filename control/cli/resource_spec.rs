//! `NAME=tcp:HOST:PORT`: what an agent offers, as people write it.
use std::str::FromStr;

use serde::Deserialize;
use switchback_control::wire::{Resource, ResourceKind};

/// Longest name: a DNS label, so that it can become a host name one day.
const NAME_CHARS_MAX: usize = 63;
/// Longest host: a DNS name (RFC 1035 section 2.3.4).
const HOST_CHARS_MAX: usize = 253;

/// A resource that was written correctly.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ResourceSpec(pub(crate) Resource);

impl FromStr for ResourceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, target) =
            text.split_once('=').ok_or("expected NAME=tcp:HOST:PORT, there is no `=`")?;
        check_name(name)?;
        let target = parse_target(target)?;
        Ok(Self(Resource { name: name.into(), kind: ResourceKind::Tcp, target }))
    }
}

impl TryFrom<String> for ResourceSpec {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Reads `tcp:HOST:PORT` and returns `HOST:PORT`.
pub(crate) fn parse_target(text: &str) -> Result<String, String> {
    let address = match text.split_once(':') {
        Some(("tcp", address)) => address,
        Some(("udp", _)) => return Err("udp: is not offered yet, only tcp:HOST:PORT".into()),
        _ => return Err(format!("`{text}` must be tcp:HOST:PORT")),
    };
    let (host, port) =
        address.rsplit_once(':').ok_or_else(|| format!("`{address}` has no :PORT"))?;
    check_host(host)?;
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(format!("{host}:{port}")),
        _ => Err(format!("`{port}` is no port: it must be 1 to 65535")),
    }
}

/// Checks the name of a resource or an agent: 1 to 63 of `a-z 0-9 - _ .`.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_CHARS_MAX {
        return Err(format!("a name has 1 to {NAME_CHARS_MAX} characters"));
    }
    match name.chars().find(|&c| !is_name_char(c)) {
        Some(wrong) => {
            Err(format!("a name is made of a-z 0-9 - _ . and {wrong:?} is none of them"))
        }
        None => Ok(()),
    }
}

/// Makes a name of a host name: lower case, and `-` for whatever a name may not hold.
pub(crate) fn sanitise_name(text: &str) -> String {
    let lower = text.trim().to_ascii_lowercase();
    let name: String =
        lower.chars().take(NAME_CHARS_MAX).map(|c| if is_name_char(c) { c } else { '-' }).collect();
    match name.trim_matches(['-', '.']) {
        "" => "agent".into(),
        name => name.into(),
    }
}

fn is_name_char(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.')
}

fn check_host(host: &str) -> Result<(), String> {
    if let Some(inner) = host.strip_prefix('[') {
        let address = inner.strip_suffix(']').ok_or("an IPv6 address must end with `]`")?;
        return match address.parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("`{address}` is no IPv6 address")),
        };
    }
    if host.contains(':') {
        return Err(format!("write an IPv6 address in brackets: tcp:[{host}]:PORT"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if host.is_empty() || host.len() > HOST_CHARS_MAX || !host.chars().all(fits) {
        return Err(format!("`{host}` is no host name or address"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        text.parse::<ResourceSpec>().unwrap_err()
    }

    #[test]
    fn names_addresses_and_bracketed_ipv6_are_understood() {
        for (text, name, target) in [
            ("ssh=tcp:127.0.0.1:22", "ssh", "127.0.0.1:22"),
            ("web-1.a_b=tcp:intra.example:8080", "web-1.a_b", "intra.example:8080"),
            ("six=tcp:[::1]:65535", "six", "[::1]:65535"),
        ] {
            let ResourceSpec(resource) = text.parse().unwrap();
            assert_eq!((resource.name.as_str(), resource.target.as_str()), (name, target));
        }
    }

    #[test]
    fn every_mistake_is_named() {
        for (text, wanted) in [
            ("ssh", "there is no `=`"),
            ("=tcp:h:1", "1 to 63"),
            ("SSH=tcp:h:1", "'S'"),
            ("a b=tcp:h:1", "' '"),
            ("ssh=127.0.0.1:22", "must be tcp:HOST:PORT"),
            ("dns=udp:127.0.0.1:53", "not offered yet"),
            ("ssh=tcp:host", "no :PORT"),
            ("ssh=tcp:host:0", "no port"),
            ("ssh=tcp:host:65536", "no port"),
            ("ssh=tcp:host:", "no port"),
            ("ssh=tcp::22", "no host name"),
            ("ssh=tcp:a/b:22", "no host name"),
            ("ssh=tcp:::1:22", "in brackets"),
            ("ssh=tcp:[::1:22", "end with `]`"),
            ("ssh=tcp:[1.2.3.4]:22", "no IPv6 address"),
        ] {
            let said = fault(text);
            assert!(said.contains(wanted), "{text}: {said}");
        }
        assert!(fault(&format!("{}=tcp:h:1", "a".repeat(64))).contains("1 to 63"));
    }

    #[test]
    fn a_host_name_becomes_a_name() {
        assert_eq!(sanitise_name("Web Server_1.LAN\n"), "web-server_1.lan");
        assert_eq!(sanitise_name("münchen"), "m-nchen");
        assert_eq!(sanitise_name("..."), "agent");
        let long = sanitise_name(&"x".repeat(200));
        assert!(check_name(&long).is_ok());
    }
}
