//! `NAME=tcp:HOST:PORT;OPTION=VALUE...`, or `udp:`: what an agent offers, as people write it.
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use switchback_control::wire::{
    Balance, ProxyHeader, Resource, ResourceKind, ShadowTarget, Standby, UdpUse,
};
use switchback_engine::{TuningInvalid, TuningOption};

use crate::tuning::Scalar;

/// Longest name: a DNS label, so that it can become a host name one day.
const NAME_CHARS_MAX: usize = 63;
/// Longest host: a DNS name (RFC 1035 section 2.3.4).
const HOST_CHARS_MAX: usize = 253;

/// A resource that was written correctly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceSpec(pub(crate) Resource);

impl FromStr for ResourceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, target) =
            text.split_once('=').ok_or("expected NAME=tcp:HOST:PORT, there is no `=`")?;
        let mut parts = target.split(';').map(str::trim);
        let target = parts.next().unwrap_or_default();
        let mut options = Vec::new();
        for option in parts {
            let (key, value) =
                option.split_once('=').ok_or_else(|| format!("`{option}` is no OPTION=VALUE"))?;
            options.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        from_parts(name, target, &options)
    }
}

impl<'de> Deserialize<'de> for ResourceSpec {
    /// From the text of the flag, or from a table with `name`, `target` and options.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Spec;
        impl<'de> Visitor<'de> for Spec {
            type Value = ResourceSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("NAME=tcp:HOST:PORT, or a table with name and target")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ResourceSpec, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ResourceSpec, A::Error> {
                let (mut name, mut target, mut options) = (None, None, Vec::new());
                while let Some(key) = map.next_key::<String>()? {
                    let Scalar(value) = map.next_value()?;
                    match key.as_str() {
                        "name" => name = Some(value),
                        "target" => target = Some(value),
                        _ => options.push((key, value)),
                    }
                }
                let name = name.ok_or_else(|| A::Error::missing_field("name"))?;
                let target = target.ok_or_else(|| A::Error::missing_field("target"))?;
                from_parts(&name, &target, &options).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(Spec)
    }
}

fn from_parts(
    name: &str,
    target: &str,
    options: &[(String, String)],
) -> Result<ResourceSpec, String> {
    check_name(name)?;
    let (kind, target) = parse_target(target)?;
    let mut resource = Resource { kind, ..Resource::tcp(name, target) };
    let mut set = HashSet::new();
    for (key, value) in options {
        if !set.insert(key) {
            return Err(format!("{key} is given twice"));
        }
        set_option(&mut resource, key, value)?;
    }
    resource.look.check()?;
    let Resource { kind, proxy, transport, .. } = &resource;
    if *kind == ResourceKind::Udp && proxy.is_some() {
        return Err("proxy=v2 is for tcp: services; a datagram has no first byte".into());
    }
    match (transport.udp, transport.standby) {
        (UdpUse::Off, Standby::Cold) => Err("standby=cold with udp=off leaves nothing".into()),
        (UdpUse::Require, Standby::TwoGateways) => {
            Err("standby=two-gateways with udp=require carries nothing".into())
        }
        _ => Ok(ResourceSpec(resource)),
    }
}

/// Sets an option of a resource by name.
fn set_option(resource: &mut Resource, key: &str, value: &str) -> Result<(), String> {
    let wrong = |expected: &str| format!("{key}: `{value}` is not allowed; expected {expected}");
    match key {
        PROXY if value == "v2" => resource.proxy = Some(ProxyHeader::V2),
        PROXY => return Err(wrong("v2")),
        SHADOW | SHADOW_VIEW => {
            if resource.shadow.is_some() {
                return Err(format!("only one of {SHADOW} and {SHADOW_VIEW}"));
            }
            let target = tcp_target(value).map_err(|why| format!("{key}: {why}"))?;
            resource.shadow = Some(ShadowTarget { target, view_only: key == SHADOW_VIEW });
        }
        UDP => {
            let udp = UdpUse::from_text(value);
            resource.transport.udp =
                udp.ok_or_else(|| wrong("prefer, require, relay-only or off"))?;
        }
        STANDBY => {
            let standby = Standby::from_text(value);
            resource.transport.standby =
                standby.ok_or_else(|| wrong("warm, cold or two-gateways"))?;
        }
        TITLE => resource.look.title = Some(value.to_owned()),
        ICON => resource.look.icon = Some(value.to_owned()),
        FOLDER => resource.look.folder = Some(value.to_owned()),
        TAGS => resource.look.tags = value.split('+').map(|tag| tag.trim().to_owned()).collect(),
        POOL => {
            let balance = Balance::from_text(value);
            resource.pool.balance = balance.ok_or_else(|| wrong("breadth or depth"))?;
        }
        SESSIONS_MAX => {
            let most = value.parse().ok().filter(|most| *most > 0);
            resource.pool.sessions_max = Some(most.ok_or_else(|| wrong("1 or more"))?);
        }
        HEALTH => {
            resource.probe = match value {
                "probe" => true,
                "use" => false,
                _ => return Err(wrong("probe or use")),
            };
        }
        _ => return set_tuning(resource, key, value),
    }
    Ok(())
}

fn set_tuning(resource: &mut Resource, key: &str, value: &str) -> Result<(), String> {
    let set = resource.tuning.set(key, value).and_then(|()| resource.tuning.check_for_resource());
    set.map_err(|invalid| match invalid {
        TuningInvalid::Unknown(key) => {
            format!("there is no option `{key}`; a resource may have {}", options_of_resources())
        }
        invalid => invalid.to_string(),
    })
}

const PROXY: &str = "proxy";
const UDP: &str = "udp";
const STANDBY: &str = "standby";
const SHADOW: &str = "shadow";
const SHADOW_VIEW: &str = "shadow-view";
const TITLE: &str = "title";
const ICON: &str = "icon";
const FOLDER: &str = "folder";
const TAGS: &str = "tags";
const POOL: &str = "pool";
const SESSIONS_MAX: &str = "max-sessions";
const HEALTH: &str = "health";
/// Every option but the tuning's, as they are listed.
const OPTIONS: [&str; 12] = [
    UDP,
    STANDBY,
    PROXY,
    SHADOW,
    SHADOW_VIEW,
    TITLE,
    ICON,
    FOLDER,
    TAGS,
    POOL,
    SESSIONS_MAX,
    HEALTH,
];

fn options_of_resources() -> String {
    let of_listeners_only = |option: &TuningOption| *option == TuningOption::FastOpen;
    let tuning = TuningOption::ALL.into_iter().filter(|option| !of_listeners_only(option));
    let names: Vec<_> = OPTIONS.into_iter().chain(tuning.map(TuningOption::as_str)).collect();
    names.join(", ")
}

/// Reads `tcp:HOST:PORT` or `udp:HOST:PORT` and returns the kind and `HOST:PORT`.
fn parse_target(text: &str) -> Result<(ResourceKind, String), String> {
    let (kind, address) = match text.split_once(':') {
        Some(("tcp", address)) => (ResourceKind::Tcp, address),
        Some(("udp", address)) => (ResourceKind::Udp, address),
        _ => return Err(format!("`{text}` must be tcp:HOST:PORT or udp:HOST:PORT")),
    };
    let (host, port) =
        address.rsplit_once(':').ok_or_else(|| format!("`{address}` has no :PORT"))?;
    check_host(host)?;
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((kind, format!("{host}:{port}"))),
        _ => Err(format!("`{port}` is no port: it must be 1 to 65535")),
    }
}

/// Reads `tcp:HOST:PORT` and returns `HOST:PORT`.
pub(crate) fn tcp_target(text: &str) -> Result<String, String> {
    match parse_target(text)? {
        (ResourceKind::Tcp, target) => Ok(target),
        (ResourceKind::Udp, _) => Err("only tcp:HOST:PORT here".into()),
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
    use switchback_control::wire::TransportPolicy;

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
    fn looks_and_pools_are_understood() {
        let text = "rdp=tcp:h:3389;title=Desk 7;icon=screen;folder=Berlin/Desks;tags=prod+win;\
            pool=depth;max-sessions=4;health=probe";
        let ResourceSpec(resource) = text.parse().unwrap();
        assert_eq!(resource.look.title.as_deref(), Some("Desk 7"));
        assert_eq!(resource.look.tags.len(), 2);
        assert_eq!((resource.pool.balance, resource.pool.sessions_max), (Balance::Depth, Some(4)));
        assert!(resource.probe);
    }

    #[test]
    fn every_mistake_is_named() {
        for (text, wanted) in [
            ("ssh", "there is no `=`"),
            ("=tcp:h:1", "1 to 63"),
            ("SSH=tcp:h:1", "'S'"),
            ("a b=tcp:h:1", "' '"),
            ("ssh=127.0.0.1:22", "must be tcp:HOST:PORT or udp:HOST:PORT"),
            ("dns=udp:127.0.0.1", "no :PORT"),
            ("dns=udp:127.0.0.1:53;proxy=v2", "for tcp: services"),
            ("ssh=tcp:h:22;udp=on", "udp: `on` is not allowed; expected prefer, require"),
            (
                "ssh=tcp:h:22;standby=hot",
                "standby: `hot` is not allowed; expected warm, cold or two-gateways",
            ),
            ("ssh=tcp:h:22;udp=off;udp=off", "udp is given twice"),
            ("ssh=tcp:h:22;udp=off;standby=cold", "leaves nothing"),
            ("ssh=tcp:h:22;udp=require;standby=two-gateways", "carries nothing"),
            ("ssh=tcp:h:22;pool=widest", "breadth or depth"),
            ("ssh=tcp:h:22;max-sessions=0", "1 or more"),
            ("ssh=tcp:h:22;health=maybe", "probe or use"),
            ("ssh=tcp:h:22;tags=Prod", "an icon or tag"),
            ("ssh=tcp:host", "no :PORT"),
            ("ssh=tcp:host:0", "no port"),
            ("ssh=tcp:host:65536", "no port"),
            ("ssh=tcp:host:", "no port"),
            ("ssh=tcp::22", "no host name"),
            ("ssh=tcp:a/b:22", "no host name"),
            ("ssh=tcp:::1:22", "in brackets"),
            ("ssh=tcp:[::1:22", "end with `]`"),
            ("ssh=tcp:[1.2.3.4]:22", "no IPv6 address"),
            ("ssh=tcp:h:22;", "`` is no OPTION=VALUE"),
            ("ssh=tcp:h:22;dscp", "`dscp` is no OPTION=VALUE"),
            ("ssh=tcp:h:22;dscp=64", "dscp: `64` is not allowed; expected 0 to 63"),
            ("ssh=tcp:h:22;dscp=ef;dscp=ef", "dscp is given twice"),
            ("ssh=tcp:h:22;proxy=v1", "expected v2"),
            ("ssh=tcp:h:22;proxy=v2;proxy=v2", "proxy is given twice"),
            ("ssh=tcp:h:22;fast-open=5", "for the gateway's listener"),
            (
                "ssh=tcp:h:22;colour=red",
                "a resource may have udp, standby, proxy, shadow, shadow-view, title",
            ),
        ] {
            let said = fault(text);
            assert!(said.contains(wanted), "{text}: {said}");
        }
        assert!(fault(&format!("{}=tcp:h:1", "a".repeat(64))).contains("1 to 63"));
    }

    #[test]
    fn options_are_understood_in_text_and_in_tables() {
        #[derive(Debug, serde::Deserialize)]
        struct File {
            resource: Vec<ResourceSpec>,
        }
        let text =
            "rdp=tcp:10.0.0.5:3389;dscp=ef; max-pacing-rate=50mbit;proxy=v2;keepalive=5s/2s/4";
        let ResourceSpec(resource) = text.parse().unwrap();
        assert_eq!(
            (resource.target.as_str(), resource.proxy),
            ("10.0.0.5:3389", Some(ProxyHeader::V2))
        );
        let tuning = "dscp=ef,keepalive=5s/2s/4,max-pacing-rate=50mbit";
        assert_eq!(resource.tuning.to_string(), tuning);
        let table = "[[resource]]\nname = \"rdp\"\ndscp = 46\nproxy = \"v2\"\ntarget = \"tcp:10.0.0.5:3389\"\n\
                     max-pacing-rate = \"50mbit\"\nkeepalive = \"5s/2s/4\"\n";
        let file: File = toml::from_str(table).unwrap();
        assert_eq!(file.resource, [ResourceSpec(resource.clone())]);
        let file: File = toml::from_str(&format!("resource = [{text:?}]")).unwrap();
        assert_eq!(file.resource, [ResourceSpec(resource)]);
        for (table, wanted) in [
            ("[[resource]]\nname = \"rdp\"\n", "missing field `target`"),
            ("[[resource]]\nname = \"rdp\"\ntarget = \"10.0.0.5:3389\"\n", "must be tcp:"),
            ("[[resource]]\nname = \"rdp\"\ntarget = \"tcp:h:1\"\ndcsp = 46\n", "no option `dcsp`"),
        ] {
            let said = toml::from_str::<File>(table).unwrap_err().to_string();
            assert!(said.contains(wanted), "{table}: {said}");
        }
    }

    #[test]
    fn a_policy_and_a_kind_are_understood() {
        let ResourceSpec(game) =
            "game=udp:127.0.0.1:9000;udp=require;standby=cold".parse().unwrap();
        assert_eq!((game.kind, &*game.target), (ResourceKind::Udp, "127.0.0.1:9000"));
        let transport = TransportPolicy { udp: UdpUse::Require, standby: Standby::Cold };
        assert_eq!(game.transport, transport);
        let ResourceSpec(plain) = "ssh=tcp:h:22".parse().unwrap();
        assert_eq!((plain.kind, plain.transport), Default::default());
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
