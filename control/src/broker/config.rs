//! What `serve` can be told, and the address that invitations carry.
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use switchback_engine::{IoChoice, Limits, RelayAddress, Tuning, UdpConfig};

use crate::broker::identity::{TlsFiles, is_host};
use crate::broker::locations::Location;
use crate::broker::orchestrator::SessionLimits;
use crate::code::{Code, Fault};
use crate::oidc::OidcConfig;
use crate::secret::Secret;

/// Where the ends of sessions relay their UDP (TURN, RFC 8656).
#[derive(Clone, Debug, Default)]
pub enum Relay {
    /// At this gateway, on the UDP port of STUN.
    #[default]
    Own,
    /// At another server that believes time-limited credentials made with `secret` (coturn: `use-auth-secret`).
    Foreign {
        /// Its `HOST:PORT`, UDP.
        address: String,
        /// coturn's `static-auth-secret`.
        secret: Secret,
    },
    /// Nowhere.
    Off,
}

/// Configuration of a [`crate::broker::Broker`].
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// TCP address of gateway and HTTPS, and UDP address of STUN. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Data directory; made if missing, private to its owner.
    pub data: PathBuf,
    /// Where the gateway's readiness comes from. Default: io_uring if the kernel has it, else epoll.
    pub io: IoChoice,
    /// Relay workers. Default: one per core this process may use.
    pub workers: Option<usize>,
    /// How long relay workers spin after bytes moved before they sleep, up to 10 ms. Default: they sleep at once.
    pub busy_poll: Option<Duration>,
    /// The operator's certificate. Default: one made at the first start.
    pub tls: Option<TlsFiles>,
    /// `HOST` or `HOST:PORT` that agents and clients shall dial. Default: the listen address, or for a wildcard the
    /// address this machine sends from.
    pub public: Option<String>,
    /// Socket options of the gateway's listener and the legs it accepts, over [`Tuning::base`]. Default: none.
    pub tuning: Tuning,
    /// What the gateway holds at most.
    pub gateway_limits: Limits,
    /// How many sessions are granted.
    pub session_limits: SessionLimits,
    /// Where UDP is relayed. Default: here.
    pub relay: Relay,
    /// Ports of this gateway's relay. Default: 49152 to 65535.
    pub turn_ports: Option<RangeInclusive<u16>>,
    /// More addresses to answer STUN on, so that ends can tell what kind of NAT they are behind (RFC 5780): another port,
    /// another address, and both. Default: one of the relay's ports.
    pub stun_alternates: Vec<SocketAddr>,
    /// The OIDC provider that users may sign in by. Default: none, login strings only.
    pub oidc: Option<OidcConfig>,
    /// A Cedar file, or a directory of them, in place of the built-in policies. Default: none.
    pub policy: Option<PathBuf>,
    /// Names for networks, for policies. Default: none.
    pub locations: Vec<Location>,
}

impl ServeConfig {
    /// Everything by default but the address and the data directory.
    pub fn new(listen: SocketAddr, data: impl Into<PathBuf>) -> Self {
        Self {
            listen,
            data: data.into(),
            io: IoChoice::default(),
            workers: None,
            busy_poll: None,
            tls: None,
            public: None,
            tuning: Tuning::default(),
            gateway_limits: Limits::default(),
            session_limits: SessionLimits::default(),
            relay: Relay::default(),
            turn_ports: None,
            stun_alternates: Vec::new(),
            oidc: None,
            policy: None,
            locations: Vec::new(),
        }
    }
}

impl ServeConfig {
    /// Where the relay has addresses that others reach it by, if the configuration tells: behind a 1:1 NAT, as clouds have
    /// them, the address that a packet arrived at is not one of those.
    pub(crate) fn public_relay(&self) -> Option<RelayAddress> {
        let public = Authority::parse(self.public.as_deref()?, 1)?.host.parse::<IpAddr>().ok()?;
        let bind = self.listen.ip();
        let same_family = bind.is_unspecified() || bind.is_ipv4() == public.is_ipv4();
        let any = if public.is_ipv4() { "0.0.0.0" } else { "::" }.parse().ok()?;
        let bind = if bind.is_unspecified() { reachable(any) } else { bind };
        same_family.then_some(RelayAddress { bind, public })
    }
}

impl ServeConfig {
    /// The relay's `HOST:PORT`, if it is another server, and this gateway's relay ports, first and last, if it relays.
    pub(crate) fn relay_places(&self) -> (Option<String>, Option<(u16, u16)>) {
        match &self.relay {
            Relay::Foreign { address, .. } => (Some(address.clone()), None),
            Relay::Off => (None, None),
            Relay::Own => {
                let ports = self.turn_ports.clone();
                let ports = ports.unwrap_or_else(|| UdpConfig::default().relay_ports);
                (None, Some((*ports.start(), *ports.end())))
            }
        }
    }
}

/// Host and port of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Authority {
    /// What peers dial: the public address if given, else what `bound` looks like from outside.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] if `public` is no `HOST[:PORT]`.
    pub(crate) fn choose(public: Option<&str>, bound: SocketAddr) -> Result<Self, Fault> {
        match public {
            Some(text) => Self::parse(text, bound.port()).ok_or_else(|| {
                Code::ConfigInvalid.because(format!("public address {text:?} is no HOST:PORT"))
            }),
            None => Ok(Self { host: reachable(bound.ip()).to_string(), port: bound.port() }),
        }
    }

    pub(crate) fn parse(text: &str, default_port: u16) -> Option<Self> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return (address.port() > 0)
                .then(|| Self { host: address.ip().to_string(), port: address.port() });
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_ok() {
            return Some(Self { host: bare.to_owned(), port: default_port });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
            None => (text, default_port),
        };
        is_host(host).then(|| Self { host: host.to_owned(), port })
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{self}")
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// `HOST:PORT` that ends dial, as [`Authority::choose`] has it.
///
/// # Errors
/// [`Code::ConfigInvalid`].
pub(crate) fn advertised(public: Option<&str>, bound: SocketAddr) -> Result<String, Fault> {
    Authority::choose(public, bound).map(|chosen| chosen.to_string())
}

/// An address that others may dial to reach `bound`.
fn reachable(bound: IpAddr) -> IpAddr {
    if !bound.is_unspecified() {
        return bound;
    }
    let (loopback, any): (IpAddr, IpAddr) = if bound.is_ipv4() {
        ([127, 0, 0, 1].into(), [0, 0, 0, 0].into())
    } else {
        (std::net::Ipv6Addr::LOCALHOST.into(), std::net::Ipv6Addr::UNSPECIFIED.into())
    };
    // Connecting a UDP socket sends nothing; it makes the kernel choose the source address. Both destinations are
    // reserved for documentation (RFC 5737, RFC 3849) and routed like any other.
    let outbound = |from: IpAddr, to: &str| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to.parse::<IpAddr>().ok()?, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
    };
    // A wildcard IPv6 listener takes IPv4 too (`net.ipv6.bindv6only` is 0 by default), which more peers have.
    outbound([0, 0, 0, 0].into(), "192.0.2.1")
        .or_else(|| bound.is_ipv6().then(|| outbound(any, "2001:db8::1")).flatten())
        .unwrap_or(loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(public: Option<&str>) -> Result<String, Code> {
        let bound = "127.0.0.1:4430".parse().unwrap();
        Authority::choose(public, bound).map(|found| found.url()).map_err(|fault| fault.code)
    }

    #[test]
    fn the_public_address_wins_and_lends_its_port() {
        for (public, url) in [
            (None, "https://127.0.0.1:4430"),
            (Some("gate.example"), "https://gate.example:4430"),
            (Some("gate.example:443"), "https://gate.example:443"),
            (Some("192.0.2.7:443"), "https://192.0.2.7:443"),
            (Some("[2001:db8::7]:443"), "https://[2001:db8::7]:443"),
            (Some("2001:db8::7"), "https://[2001:db8::7]:4430"),
        ] {
            assert_eq!(choose(public).as_deref(), Ok(url));
        }
    }

    #[test]
    fn behind_a_nat_the_relay_tells_its_public_address() {
        let relay = |listen: &str, public: Option<&str>| {
            let mut config = ServeConfig::new(listen.parse().unwrap(), "/");
            config.public = public.map(str::to_owned);
            config.public_relay().map(|relay| (relay.bind, relay.public.to_string()))
        };
        let ten = "10.0.0.5".parse().unwrap();
        let there = Some((ten, "192.0.2.7".to_owned()));
        assert_eq!(relay("10.0.0.5:443", Some("192.0.2.7:443")), there);
        assert_eq!(relay("10.0.0.5:443", Some("gate.example")), None);
        assert_eq!(relay("10.0.0.5:443", None), None);
        let (bind, _) = relay("0.0.0.0:443", Some("192.0.2.7")).unwrap();
        assert!(!bind.is_unspecified());
    }

    #[test]
    fn a_public_address_must_be_one() {
        for bad in ["", "a b:443", "gate:0", "gate:65536", "https://gate", "gate/path"] {
            assert_eq!(choose(Some(bad)), Err(Code::ConfigInvalid), "{bad:?}");
        }
    }

    #[test]
    fn a_wildcard_is_never_given_out() {
        for wildcard in ["0.0.0.0:1", "[::]:1"] {
            let found = Authority::choose(None, wildcard.parse().unwrap()).unwrap();
            assert!(!found.host.parse::<IpAddr>().unwrap().is_unspecified(), "{wildcard}");
        }
    }
}
