//! Asks the router for a port: the edge of [`PortMapper`], by PCP and NAT-PMP through the crate `crab_nat`, else by UPnP.
//!
//! IPv4 only: what IPv6 firewalls need, a punch gives them.
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crab_nat::{
    GATEWAY_PORT, InternetProtocol, MappingFailure as Failure, PortMapping, PortMappingOptions,
    PortMappingType, TimeoutConfig, natpmp, pcp,
};

use super::Inner;
use super::interfaces::source_to;
use super::keeping::Known;
use super::upnp;
use crate::path::{
    Candidate, CandidateKind, LocalId, MAPPING_LIFETIME, MappingFailure, MappingGrant,
    MappingProtocol, PortMapper,
};
use crate::time::{now, sleep_until};

/// Waits of 250, 500, 1000 and 2000 ms: RFC 6886 section 3.1's, cut short, as routers are near.
const PATIENCE: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 3,
    max_retry_timeout: None,
};
/// What PCP has ahead of UPnP: its first two tries. A router that knows it answers in milliseconds.
const HEAD_START: Duration = Duration::from_millis(750);
/// UPnP's share: searching takes 2.25 s, asking some tens of milliseconds.
const UPNP_WITHIN: Duration = Duration::from_secs(7);
/// For giving a port back: nobody waits longer for a process that ends.
const FAREWELL: Duration = Duration::from_millis(500);
/// The lifetime that [`probe_port_mapping`] asks for: it gives the port back, but the answer may be lost.
const PROBED: Duration = Duration::from_secs(30);

/// What [`probe_port_mapping`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingProbe {
    /// The router.
    pub router: IpAddr,
    /// How it was asked.
    pub protocol: MappingProtocol,
    /// The address it gave.
    pub external: SocketAddr,
}

/// Asks the router for a port for `local_port` and gives it back. Takes 9 s at most.
///
/// # Errors
/// Why there is none.
pub async fn probe_port_mapping(local_port: u16) -> Result<MappingProbe, MappingFailure> {
    let place = Place::find().ok_or(MappingFailure::NoRouter)?;
    let held = place.ask(local_port, None, PROBED).await?;
    let probe = MappingProbe {
        router: place.router.into(),
        protocol: held.protocol(),
        external: held.external(),
    };
    held.give_back().await;
    Ok(probe)
}

/// Keeps a port for the process's IPv4 socket, as long as the underlay lives.
pub(super) async fn keep(inner: Arc<Inner>) {
    let socket = inner.wire.sockets.iter().find(|socket| !socket.ipv6 && !socket.managed);
    let Some((id, port)) = socket.map(|socket| (socket.id, socket.port)) else { return };
    let mut keeping = Keeping { id, port, mapper: PortMapper::default(), held: None, place: None };
    let stop = inner.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = keeping.run(&inner) => {}
    }
    if let Some(held) = keeping.held {
        held.give_back().await;
    }
}

struct Keeping {
    id: LocalId,
    port: u16,
    mapper: PortMapper,
    held: Option<Held>,
    place: Option<Place>,
}

impl Keeping {
    async fn run(&mut self, inner: &Inner) {
        let mut known = inner.known.subscribe();
        let mut rebounds = 0;
        loop {
            let (behind_nat, rebounds_now) = {
                let known = known.borrow_and_update();
                (is_behind_nat(&known), known.nats.iter().map(|nat| nat.rebounds).sum::<u64>())
            };
            let now = now();
            // A port there would lead to an address that is not to be used.
            let place = Place::find().filter(|place| inner.config.networks.allows(place.own));
            if place != self.place {
                (self.place, self.held) = (place, None);
                self.mapper.network_changed(now);
            } else if std::mem::replace(&mut rebounds, rebounds_now) != rebounds_now {
                self.mapper.rebound(now);
            }
            self.mapper.behind_nat(now, behind_nat);
            let asks = self.mapper.poll(now);
            self.publish(inner);
            if asks {
                self.ask().await;
                continue;
            }
            let due = self.mapper.poll_timeout();
            tokio::select! {
                changed = known.changed() => if changed.is_err() { return },
                () = sleep_until(due) => {}
            }
        }
    }

    /// A change of network meanwhile is noticed afterwards: the answer of a router that is gone is not awaited for long.
    async fn ask(&mut self) {
        let answer = match &self.place {
            Some(place) => place.ask(self.port, self.held.as_ref(), MAPPING_LIFETIME).await,
            None => Err(MappingFailure::NoRouter),
        };
        match answer {
            Ok(held) => {
                self.mapper.granted(now(), held.grant());
                tracing::debug!(external = %held.external(), protocol = ?held.protocol(), "a port at the router");
                self.held = Some(held);
            }
            Err(failure) => {
                self.mapper.failed(now());
                tracing::debug!(?failure, "no port at the router");
            }
        }
    }

    fn publish(&self, inner: &Inner) {
        let external = self.mapper.external();
        let mapped =
            external.map(|address| (Candidate::new(CandidateKind::Mapped, address), self.id));
        inner.known.send_if_modified(|known| known.set_mapped(mapped));
    }
}

/// Whether a server sees our IPv4 socket at an address that is none of the machine's.
fn is_behind_nat(known: &Known) -> bool {
    let own = |ip: IpAddr| {
        let host = |kind| matches!(kind, CandidateKind::Host | CandidateKind::Managed);
        known.locals.iter().any(|(it, _)| host(it.kind) && it.address.ip() == ip)
    };
    let mut seen = known.nats.iter().flat_map(|nat| &nat.servers).filter_map(|(_, seen, _)| *seen);
    seen.any(|seen| seen.is_ipv4() && !own(seen.ip()))
}

/// A port of ours at the router.
#[derive(Clone, Debug)]
enum Held {
    Asked { mapping: PortMapping, external: SocketAddr },
    Upnp(upnp::Port),
}

impl Held {
    fn protocol(&self) -> MappingProtocol {
        match self {
            Held::Upnp(_) => MappingProtocol::Upnp,
            Held::Asked { mapping, .. } => match mapping.mapping_type() {
                PortMappingType::NatPmp => MappingProtocol::NatPmp,
                PortMappingType::Pcp { .. } => MappingProtocol::Pcp,
            },
        }
    }

    fn external(&self) -> SocketAddr {
        match self {
            Held::Upnp(port) => port.external.into(),
            Held::Asked { external, .. } => *external,
        }
    }

    fn grant(&self) -> MappingGrant {
        let lifetime = match self {
            // What is asked for: the answer does not tell.
            Held::Upnp(_) => MAPPING_LIFETIME,
            Held::Asked { mapping, .. } => Duration::from_secs(mapping.lifetime().into()),
        };
        MappingGrant { external: self.external(), lifetime }
    }

    async fn give_back(self) {
        let giving = async {
            match self {
                Held::Upnp(port) => port.give_back().await,
                Held::Asked { mapping, .. } => drop(mapping.try_drop().await),
            }
        };
        // It runs out by itself.
        let _ = timeout(FAREWELL, giving).await;
    }
}

/// The router, and us as it sees us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    router: Ipv4Addr,
    own: IpAddr,
}

impl Place {
    fn find() -> Option<Self> {
        let router = default_router(&fs::read_to_string(ROUTES).ok()?)?;
        Some(Self { router, own: source_to((router, GATEWAY_PORT).into())? })
    }

    /// Asks by PCP, and by NAT-PMP where PCP is not known or not answered; by UPnP beside them once they are late. The first
    /// port that is given is taken.
    async fn ask(
        &self,
        port: u16,
        held: Option<&Held>,
        lifetime: Duration,
    ) -> Result<Held, MappingFailure> {
        let port = NonZeroU16::new(port).ok_or(MappingFailure::Refused)?;
        let mapping = match held {
            Some(Held::Upnp(held)) => {
                if let Ok(renewed) = held.renew(lifetime).await {
                    return Ok(Held::Upnp(renewed));
                }
                None
            }
            Some(Held::Asked { mapping, .. }) => Some(mapping),
            None => None,
        };
        let by_request = self.ask_pcp(port, mapping, lifetime);
        let by_upnp = async {
            sleep(HEAD_START).await;
            self.ask_upnp(port, lifetime).await
        };
        tokio::pin!(by_request, by_upnp);
        let (first, other) = tokio::select! {
            first = &mut by_request => match first {
                Ok(held) => return Ok(held),
                Err(failure) => (failure, by_upnp.await),
            },
            first = &mut by_upnp => match first {
                Ok(held) => return Ok(held),
                Err(failure) => (failure, by_request.await),
            },
        };
        // Silence tells less.
        other.map_err(|failure| if failure == MappingFailure::Silent { first } else { failure })
    }

    async fn ask_upnp(&self, port: NonZeroU16, lifetime: Duration) -> Result<Held, MappingFailure> {
        let IpAddr::V4(own) = self.own else { return Err(MappingFailure::NoRouter) };
        let asking = upnp::Port::ask(self.router, SocketAddrV4::new(own, port.get()), lifetime);
        let port = timeout(UPNP_WITHIN, asking).await.unwrap_or(Err(MappingFailure::Silent))?;
        Ok(Held::Upnp(port))
    }

    async fn ask_pcp(
        &self,
        port: NonZeroU16,
        held: Option<&PortMapping>,
        lifetime: Duration,
    ) -> Result<Held, MappingFailure> {
        let options = PortMappingOptions {
            external_port: Some(held.map_or(port, PortMapping::external_port)),
            lifetime_seconds: u32::try_from(lifetime.as_secs()).ok(),
            timeout_config: Some(PATIENCE),
        };
        let nonce = match held.map(PortMapping::mapping_type) {
            Some(PortMappingType::NatPmp) => return self.ask_nat_pmp(port, options).await,
            Some(PortMappingType::Pcp { nonce, .. }) => Some(nonce),
            None => None,
        };
        let us =
            pcp::BaseMapRequest::new(self.router.into(), self.own, InternetProtocol::Udp, port);
        match pcp::port_mapping(us, nonce, None, options).await {
            Ok(mapping) => {
                let PortMappingType::Pcp { external_ip, .. } = mapping.mapping_type() else {
                    return Err(MappingFailure::Refused);
                };
                let external = SocketAddr::new(external_ip, mapping.external_port().get());
                Ok(Held::Asked { mapping, external })
            }
            Err(pcp::Failure::Timeout | pcp::Failure::UnsupportedVersion(_)) => {
                self.ask_nat_pmp(port, options).await
            }
            Err(error) => Err(told(error.into())),
        }
    }

    async fn ask_nat_pmp(
        &self,
        port: NonZeroU16,
        options: PortMappingOptions,
    ) -> Result<Held, MappingFailure> {
        let router = self.router.into();
        let mapping = natpmp::port_mapping(router, InternetProtocol::Udp, port, options);
        let mapping = mapping.await.map_err(|error| told(error.into()))?;
        let ip = natpmp::external_address(router, Some(PATIENCE)).await;
        let ip = ip.map_err(|error| told(error.into()))?;
        let external = SocketAddr::new(ip.into(), mapping.external_port().get());
        Ok(Held::Asked { mapping, external })
    }
}

fn told(error: Failure) -> MappingFailure {
    tracing::debug!(%error, "the router gives no port");
    match error {
        Failure::Pcp(pcp::Failure::Timeout | pcp::Failure::Socket(_))
        | Failure::NatPmp(natpmp::Failure::Timeout | natpmp::Failure::Socket(_)) => {
            MappingFailure::Silent
        }
        Failure::Pcp(_) | Failure::NatPmp(_) => MappingFailure::Refused,
    }
}

/// The IPv4 routes of the calling thread's network (proc(5)); absent elsewhere than on Linux, where no port is asked for.
const ROUTES: &str = "/proc/thread-self/net/route";

/// The router of the default route with the least metric.
fn default_router(routes: &str) -> Option<Ipv4Addr> {
    /// RTF_UP and RTF_GATEWAY of linux/route.h.
    const UP_GATEWAY: u32 = 0x1 | 0x2;
    let router = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Addresses are in hexadecimal, in the machine's byte order.
        let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let metric: u32 = fields.get(6)?.parse().ok()?;
        let is_default = hex(1)? == 0 && hex(7)? == 0 && hex(3)? & UP_GATEWAY == UP_GATEWAY;
        is_default.then_some((metric, Ipv4Addr::from(hex(2)?.to_ne_bytes())))
    };
    let routers = routes.lines().filter_map(router);
    routers.min_by_key(|(metric, _)| *metric).map(|(_, router)| router)
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    #[test]
    fn the_router_is_that_of_the_default_route_with_the_least_metric() {
        let routes = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\tFE02000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0002000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0";
        assert_eq!(default_router(routes), Some(Ipv4Addr::new(10, 0, 2, 254)));
        assert_eq!(default_router("Iface\tDestination\neth0\tzz"), None);
        assert_eq!(default_router(""), None);
    }
}
