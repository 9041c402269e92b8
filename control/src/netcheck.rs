//! What the network of this machine lets through to a gateway: UDP, kinds of NAT, sizes, round trips, and who is in between.

mod portal;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use switchback_shortpath::path::{Discovery, DiscoveryReport, Filtering, Mapping};
pub use switchback_shortpath::path::{MappingFailure, MappingProtocol};
use switchback_shortpath::underlay::{open_udp, probe_path_mtu, probe_port_mapping, source_to};
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::{sleep, timeout};

use crate::code::{Code, Fault};
use crate::dial::{BrokerAddress, connect_broker};
use crate::invite::Invite;

/// A TCP connection that takes longer is none: two lost SYNs (1 + 2 s) still connect.
const TCP_TIMEOUT: Duration = Duration::from_secs(4);
/// TCP connections per address; the fastest counts, as the first may have waited for a neighbour's hardware address.
const TCP_TRIES: usize = 3;
/// Addresses of a gateway that are tried.
const ADDRESSES_MAX: usize = 4;
/// The NAT tests give up by themselves after 4 s.
const UDP_TIMEOUT: Duration = Duration::from_secs(6);

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetReport {
    /// `HOST:PORT` of the gateway.
    pub gateway: String,
    /// Each of its addresses.
    pub addresses: Vec<AddressReport>,
    /// What is between this machine and the gateway for UDP over IPv4; absent if the gateway has no IPv4 address.
    pub nat_v4: Option<DiscoveryReport>,
    /// The same for IPv6.
    pub nat_v6: Option<DiscoveryReport>,
    /// The largest IPv4 packet, bytes, that reaches the gateway and is answered, unfragmented: at most 1500, rounded down to
    /// four; absent without UDP.
    pub mtu_v4: Option<u16>,
    /// The same for IPv6.
    pub mtu_v6: Option<u16>,
    /// Whether the router opens a port when asked; absent without IPv4.
    pub port_mapping: Option<PortMappingReport>,
    /// Whether this machine has a route to the IPv6 Internet.
    pub ipv6_route: bool,
    /// Whether the broker is who the login string says; `Some(false)`: something in between answers in its place.
    pub broker_is_genuine: Option<bool>,
    /// Whether something answers HTTP in the broker's place, or redirects port 80 of its address where its own port is
    /// closed; absent if nothing answers at all.
    pub captive_portal: Option<bool>,
    /// What stands out, as codes: `tls_intercepted`, `captive_portal`, `gateway_unreachable`, `mtu_too_small`, and those of [`crate::path_reason`].
    pub hints: Vec<String>,
}

/// What the router said when it was asked for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMappingReport {
    /// The router.
    pub router: Option<IpAddr>,
    /// How it was asked, if it gave one.
    pub protocol: Option<MappingProtocol>,
    /// The address it gave. The port was given back.
    pub external: Option<SocketAddr>,
    /// Why it gave none.
    pub failure: Option<MappingFailure>,
}

/// One address of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressReport {
    /// The address.
    pub address: SocketAddr,
    /// Time to connect by TCP, microseconds; absent if it did not.
    pub tcp_us: Option<u64>,
    /// Round trip to its STUN, microseconds; absent if nothing came back.
    pub udp_us: Option<u64>,
}

/// Looks around, for some 10 s at most; by UDP from `ports`, if given, as sessions told so do.
///
/// # Errors
/// [`Code::InviteInvalid`]; [`Code::BrokerUnreachable`] if the gateway's name does not resolve.
pub async fn check(
    invite: &Invite,
    ports: Option<RangeInclusive<u16>>,
) -> Result<NetReport, Fault> {
    let gateway = BrokerAddress::of(invite)?.host_port();
    let found = lookup_host(&gateway).await;
    let found =
        found.map_err(|error| Code::BrokerUnreachable.because(format!("{gateway}: {error}")))?;
    let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.iter().copied().partition(SocketAddr::is_ipv4);
    let tcp = async {
        let mut times = Vec::new();
        for address in &addresses {
            times.push((*address, connect_time(*address).await));
        }
        times
    };
    // Sizes after kinds: many packets at once would delay each other on a slow link.
    let look = async |servers: &[SocketAddr]| {
        let nat = discover(servers, ports.clone()).await;
        let mtu = path_mtu(nat.as_ref(), ports.clone()).await;
        (nat, mtu)
    };
    let (times, (nat_v4, mtu_v4), (nat_v6, mtu_v6), genuine, port_mapping) =
        tokio::join!(tcp, look(&v4), look(&v6), is_genuine(invite), port_mapping(!v4.is_empty()));
    let connected = times.iter().find(|(_, time)| time.is_some()).map(|(address, _)| *address);
    let captive_portal = match genuine {
        Some(true) => Some(false),
        _ => portal::look(connected, addresses.first().map(SocketAddr::ip)).await,
    };
    let mut report = NetReport {
        gateway,
        addresses: Vec::new(),
        nat_v4,
        nat_v6,
        mtu_v4,
        mtu_v6,
        port_mapping,
        ipv6_route: has_ipv6_route(),
        broker_is_genuine: genuine,
        captive_portal,
        hints: Vec::new(),
    };
    for (address, tcp_us) in times {
        let udp_us = report.udp_time(address);
        report.addresses.push(AddressReport { address, tcp_us, udp_us });
    }
    report.hints = report.judge().into_iter().map(str::to_owned).collect();
    Ok(report)
}

impl NetReport {
    fn nats(&self) -> impl Iterator<Item = &DiscoveryReport> {
        self.nat_v4.iter().chain(&self.nat_v6)
    }

    fn udp_time(&self, address: SocketAddr) -> Option<u64> {
        let mut times = self.nats().flat_map(|nat| &nat.rtt_us);
        times.find(|(server, _)| *server == address).map(|(_, us)| *us)
    }

    /// What stands out.
    fn judge(&self) -> Vec<&'static str> {
        let mut hints = Vec::new();
        if self.broker_is_genuine == Some(false) {
            hints.push("tls_intercepted");
        }
        if self.captive_portal == Some(true) {
            hints.push("captive_portal");
        }
        let tcp = self.addresses.iter().any(|it| it.tcp_us.is_some());
        if !tcp {
            hints.push("gateway_unreachable");
        }
        let udp = self.nats().any(|nat| nat.udp);
        if tcp && !udp {
            hints.push("udp_egress_blocked");
        }
        let small = |mtu: Option<u16>, least| mtu.is_some_and(|mtu| mtu < least);
        if small(self.mtu_v4, QUIC_MTU_V4) || small(self.mtu_v6, QUIC_MTU_V6) {
            hints.push("mtu_too_small");
        }
        if udp && self.nats().filter(|nat| nat.udp).all(|nat| is_hard(nat.mapping)) {
            hints.push("hard_nat");
        }
        if udp && self.nats().any(|nat| nat.filtering == Filtering::Unknown && !nat.full_test) {
            hints.push("one_stun_address");
        }
        hints
    }
}

/// What QUIC's datagrams of 1200 bytes need (RFC 9000 section 14), with the headers of UDP and IP.
const QUIC_MTU_V4: u16 = 1228;
const QUIC_MTU_V6: u16 = 1248;

async fn path_mtu(
    nat: Option<&DiscoveryReport>,
    ports: Option<RangeInclusive<u16>>,
) -> Option<u16> {
    let server = nat?.server?;
    probe_path_mtu(server, ports).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "no UDP socket for the path MTU");
        None
    })
}

async fn port_mapping(ipv4: bool) -> Option<PortMappingReport> {
    // Holds the port that is asked for, so that nobody else's is opened.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok().filter(|_| ipv4)?;
    let nothing = PortMappingReport { router: None, protocol: None, external: None, failure: None };
    Some(match probe_port_mapping(socket.local_addr().ok()?.port()).await {
        Ok(probe) => PortMappingReport {
            router: Some(probe.router),
            protocol: Some(probe.protocol),
            external: Some(probe.external),
            ..nothing
        },
        Err(failure) => PortMappingReport { failure: Some(failure), ..nothing },
    })
}

/// Whether a peer cannot know which port it will see.
fn is_hard(mapping: Mapping) -> bool {
    matches!(
        mapping,
        Mapping::AddressDependent | Mapping::AddressAndPortDependent | Mapping::Dependent
    )
}

async fn connect_time(address: SocketAddr) -> Option<u64> {
    let mut best = None;
    for _ in 0..TCP_TRIES {
        let start = Instant::now();
        match timeout(TCP_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                let took = micros(start.elapsed());
                best = Some(best.map_or(took, |best: u64| best.min(took)));
            }
            Ok(Err(_)) | Err(_) => return best,
        }
    }
    best
}

/// `None` if the broker cannot be reached at all, which says nothing about who it is.
async fn is_genuine(invite: &Invite) -> Option<bool> {
    match connect_broker(invite).await {
        Ok(_) => Some(true),
        Err(fault) if fault.code == Code::BrokerPinMismatch => Some(false),
        Err(_) => None,
    }
}

/// The address is for documentation (RFC 3849).
fn has_ipv6_route() -> bool {
    source_to((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into()).is_some()
}

/// The NAT tests of RFC 5780 against servers of one family.
async fn discover(
    servers: &[SocketAddr],
    ports: Option<RangeInclusive<u16>>,
) -> Option<DiscoveryReport> {
    let first = servers.first()?;
    let mut discovery = None;
    let run = async {
        let socket = open_udp(first.is_ipv6(), ports)?;
        let port = socket.local_addr()?.port();
        let local = source_to(*first).map(|own| SocketAddr::new(own, port));
        let discovery =
            discovery.insert(Discovery::new(Instant::now(), local, servers, rand::random()));
        drive(discovery, &socket).await
    };
    match timeout(UDP_TIMEOUT, run).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "no UDP socket for the NAT tests"),
    }
    Some(discovery.map(|it| it.report().clone()).unwrap_or_default())
}

async fn drive(discovery: &mut Discovery, socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 2048];
    while let Some(due) = discovery.poll_timeout() {
        while let Some((to, datagram)) = discovery.poll_transmit() {
            // A network that does not let it out has answered the question.
            let _ = socket.send_to(&datagram, to).await;
        }
        tokio::select! {
            read = socket.recv_from(&mut buffer) => {
                // Errors are ICMP's answers to what was sent.
                if let Ok((length, from)) = read {
                    discovery.handle_packet(Instant::now(), from, &buffer[..length]);
                }
            }
            () = sleep(due.saturating_duration_since(Instant::now())) => {
                discovery.handle_timeout(Instant::now());
            }
        }
    }
    Ok(())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(tcp_us: Option<u64>, nat: DiscoveryReport) -> NetReport {
        let address = "192.0.2.1:443".parse().unwrap();
        NetReport {
            addresses: vec![AddressReport { address, tcp_us, udp_us: None }],
            nat_v4: Some(nat),
            ..NetReport::default()
        }
    }

    #[tokio::test]
    async fn the_nat_tests_ask_from_the_ports_that_firewalls_let_out() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        // Bound and let go: most likely free.
        let port = open_udp(false, None).unwrap().local_addr().unwrap().port();
        let asked = async {
            let (_, from) = server.recv_from(&mut [0; 2048]).await.unwrap();
            from.port()
        };
        let servers = [at];
        tokio::select! {
            from = asked => assert_eq!(from, port),
            report = discover(&servers, Some(port..=port)) => panic!("{report:?}"),
        }
    }

    #[test]
    fn what_stands_out_is_named() {
        let quiet = DiscoveryReport::default();
        assert_eq!(report(None, quiet.clone()).judge(), ["gateway_unreachable"]);
        assert_eq!(report(Some(9), quiet).judge(), ["udp_egress_blocked"]);
        let hard = DiscoveryReport {
            udp: true,
            mapping: Mapping::AddressAndPortDependent,
            full_test: true,
            ..DiscoveryReport::default()
        };
        assert_eq!(report(Some(9), hard).judge(), ["hard_nat"]);
        let easy = DiscoveryReport {
            udp: true,
            mapping: Mapping::EndpointIndependent,
            ..DiscoveryReport::default()
        };
        let mut proxied = report(Some(9), easy);
        proxied.broker_is_genuine = Some(false);
        assert_eq!(proxied.judge(), ["tls_intercepted", "one_stun_address"]);
        proxied.captive_portal = Some(true);
        proxied.mtu_v4 = Some(1200);
        let all = ["tls_intercepted", "captive_portal", "mtu_too_small", "one_stun_address"];
        assert_eq!(proxied.judge(), all);
        proxied.mtu_v4 = Some(1280);
        assert!(!proxied.judge().contains(&"mtu_too_small"));
    }
}
