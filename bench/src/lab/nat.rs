//! A NAT box or stateful firewall with any behaviour of RFC 4787, and a policy.
//!
//! [`Nat::outbound`] takes what inside hosts send, [`Nat::inbound`] what comes from outside; both
//! rewrite the packet in place and say what to do with it. Only outbound packets create state:
//! unsolicited inbound ones are dropped and leave nothing behind (no "port poisoning"). IPv4 is
//! translated; IPv6, and IPv4 with mapping `none`, is filtered by the same state, untranslated.
//! Pure: the caller gives the time since the lab's start, chance comes from the seed.

mod counters;
mod entry;
mod fragments;
mod policy;
mod portmap;
#[cfg(test)]
mod protocols;
#[cfg(test)]
mod punching;
mod settings;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod traffic;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

pub use self::counters::{NatStats, Reason};
use self::entry::Segment;
use self::fragments::{Fragments, Way};
pub use self::policy::{Blackhole, Policy, TcpPolicy, UdpPolicy};
use self::portmap::Forwards;
pub use self::settings::{Filtering, Mapping, NAMED, NatSettings, PortAssignment, PortMapping};
pub use self::table::MappingView;
use self::table::Table;
use crate::lab::packet::{
    self, Flow, PacketView, Part, Protocol, RouterAddresses, Unreachable, stays_on_its_link,
};

/// What to do with a packet the box has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it, as rewritten, out of the other side.
    Forward,
    /// Send it, as rewritten, back to the inside.
    Hairpin,
    /// Send this back to the side it came from instead.
    Reply(Vec<u8>),
    /// Discard it.
    Drop(Reason),
}

/// The box.
#[derive(Debug)]
pub struct Nat {
    settings: NatSettings,
    policy: Policy,
    /// The external IPv4 address; without one IPv4 is not translated.
    external: Option<Ipv4Addr>,
    router: RouterAddresses,
    table: Table,
    forwards: Forwards,
    fragments: Fragments,
    stats: NatStats,
}

impl Nat {
    /// A box that translates IPv4 to `external` unless the settings say `none`, and sends its ICMP
    /// errors from `router` (without an address of the family: from the external one, or not at all).
    pub fn new(
        settings: NatSettings,
        external: Option<Ipv4Addr>,
        router: RouterAddresses,
        seed: u64,
    ) -> Self {
        Nat {
            settings,
            policy: Policy::default(),
            external,
            router,
            table: Table::new(seed),
            forwards: Forwards::default(),
            fragments: Fragments::default(),
            stats: NatStats::default(),
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &NatSettings {
        &self.settings
    }

    /// Changes the settings. Mappings stay unless the mapping behaviour itself changes.
    pub fn set(&mut self, settings: NatSettings) {
        if settings.mapping != self.settings.mapping {
            self.table.clear();
        }
        self.settings = settings;
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Changes the policy; existing flows obey it from the next packet on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The external IPv4 address now.
    pub fn external(&self) -> Option<Ipv4Addr> {
        self.external
    }

    /// Counters since the start.
    pub fn stats(&self) -> NatStats {
        NatStats {
            mappings_created: self.table.created,
            mappings_expired: self.table.expired,
            mappings_evicted: self.table.evicted,
            ..self.stats
        }
    }

    /// The live mappings, ordered by inside address.
    pub fn mappings(&self, now: Duration) -> Vec<MappingView> {
        self.table.view(now, &self.settings)
    }

    /// Forgets everything, as after a restart. With a new external address ports may stay; without
    /// one the ports in use are not given out again, so that every flow visibly moves.
    pub fn rebind(&mut self, new_external: Option<Ipv4Addr>) {
        match new_external {
            Some(address) => self.external = Some(address),
            None => self.table.shun_ports_in_use(),
        }
        self.table.clear();
        self.forwards.clear();
        self.fragments = Fragments::default();
    }

    /// A packet from an inside host, destined elsewhere; rewritten in place.
    pub fn outbound(&mut self, now: Duration, packet: &mut [u8]) -> Verdict {
        let verdict = self.decide_outbound(now, packet).unwrap_or_else(Verdict::Drop);
        self.stats.count(&verdict, true);
        verdict
    }

    /// A packet from outside; rewritten in place.
    pub fn inbound(&mut self, now: Duration, packet: &mut [u8]) -> Verdict {
        let verdict = self.decide_inbound(now, packet).unwrap_or_else(Verdict::Drop);
        self.stats.count(&verdict, false);
        verdict
    }

    /// The answer to a packet from inside that is addressed to the box itself, which has this
    /// address there: port mapping is all it offers.
    pub fn serve(&mut self, now: Duration, packet: &[u8]) -> Option<Vec<u8>> {
        let flow = packet::flow_of(packet)?;
        let (SocketAddr::V4(from), SocketAddr::V4(own)) = (flow.source, flow.destination) else {
            return None;
        };
        let service = self.settings.port_mapping?;
        if flow.protocol != Protocol::Udp || own.port() != portmap::PORT {
            return None;
        }
        let request = packet::udp_payload(packet)?;
        let answer = self.forwards.answer(now, service, self.external?, from, request)?;
        packet::udp_v4(SocketAddrV4::new(*own.ip(), portmap::PORT), from, &answer)
    }

    fn decide_outbound(&mut self, now: Duration, packet: &mut [u8]) -> Result<Verdict, Reason> {
        let mut view = PacketView::parse(packet).ok_or(Reason::Malformed)?;
        let flow = forwardable(&view)?;
        let to_ourselves = self.external_for(&flow).is_some_and(|own| own == flow.destination.ip());
        if self.external_for(&flow).is_some_and(|own| own == flow.source.ip()) {
            return Err(Reason::Martian);
        }
        if let Err(reason) = self.policy.outbound(&flow) {
            return self.refuse(&view, reason);
        }
        if to_ourselves && !self.settings.hairpin {
            return Err(Reason::HairpinOff);
        }
        if !view.outlives_a_hop() {
            return self.expire(&view);
        }
        if self.is_open(&flow) {
            view.decrement_ttl();
            return Ok(Verdict::Forward);
        }
        self.translate_out(now, &mut view, flow)?;
        if to_ourselves {
            let flow = view.flow();
            self.translate_in(now, &mut view, flow)?;
        }
        view.decrement_ttl();
        Ok(if to_ourselves { Verdict::Hairpin } else { Verdict::Forward })
    }

    fn decide_inbound(&mut self, now: Duration, packet: &mut [u8]) -> Result<Verdict, Reason> {
        let mut view = PacketView::parse(packet).ok_or(Reason::Malformed)?;
        let flow = forwardable(&view)?;
        self.policy.inbound(&flow)?;
        if !self.is_open(&flow) {
            if !view.outlives_a_hop() {
                // The error would be about the packet as rewritten; silence tells outsiders less.
                return Err(Reason::TtlExpired);
            }
            self.translate_in(now, &mut view, flow)?;
        } else if !view.outlives_a_hop() {
            return self.expire(&view);
        }
        view.decrement_ttl();
        Ok(Verdict::Forward)
    }

    fn translate_out(
        &mut self,
        now: Duration,
        view: &mut PacketView<'_>,
        flow: Flow,
    ) -> Result<(), Reason> {
        let own = self.external_for(&flow);
        match (flow.protocol, view.part()) {
            (_, Part::Later(id)) => {
                let source = self.fragments.find(now, Way::Out, &flow, id)?;
                view.set_source(SocketAddr::new(source, 0));
            }
            (Protocol::Error, _) => {
                let about = view.embedded().ok_or(Reason::IcmpUnrelated)?;
                let external = self
                    .table
                    .external_of(now, &self.settings, about.reversed())
                    .ok_or(Reason::IcmpUnrelated)?;
                view.set_source(SocketAddr::new(own.unwrap_or(flow.source.ip()), 0));
                view.set_embedded_destination(external);
            }
            (Protocol::Other(_), _) => return Err(Reason::UnsupportedProtocol),
            (_, part) => {
                if let Some(external) = self.forwarded_from(now, own, &flow) {
                    view.set_source(external);
                    return Ok(());
                }
                let segment = Segment::of(view);
                let external = self.table.map(now, &self.settings, own, flow, segment)?;
                if let Part::First(id) = part {
                    self.fragments.remember(now, Way::Out, &flow, id, external.ip());
                }
                view.set_source(external);
            }
        }
        Ok(())
    }

    fn translate_in(
        &mut self,
        now: Duration,
        view: &mut PacketView<'_>,
        flow: Flow,
    ) -> Result<(), Reason> {
        match (flow.protocol, view.part()) {
            (_, Part::Later(id)) => {
                let inside = self.fragments.find(now, Way::In, &flow, id)?;
                view.set_destination(SocketAddr::new(inside, 0));
            }
            (Protocol::Error, _) => {
                let about = view.embedded().ok_or(Reason::IcmpUnrelated)?;
                let inside = self
                    .table
                    .inside_of(now, &self.settings, about)
                    .ok_or(Reason::IcmpUnrelated)?;
                view.set_destination(SocketAddr::new(inside.ip(), 0));
                view.set_embedded_source(inside);
            }
            (Protocol::Other(_), _) => return Err(Reason::UnsupportedProtocol),
            (_, part) => {
                if let Some(inside) = self.forwarded_to(now, &flow) {
                    view.set_destination(inside);
                    return Ok(());
                }
                let filtering = self.filtering(&flow);
                let segment = Segment::of(view);
                let inside = self.table.admit(now, &self.settings, filtering, flow, segment)?;
                if let Part::First(id) = part {
                    self.fragments.remember(now, Way::In, &flow, id, inside.ip());
                }
                view.set_destination(inside);
            }
        }
        Ok(())
    }

    /// The port that an inside endpoint asked for.
    fn forwarded_from(
        &self,
        now: Duration,
        own: Option<IpAddr>,
        flow: &Flow,
    ) -> Option<SocketAddr> {
        let udp = flow.protocol == Protocol::Udp;
        let port = self.forwards.port_of(now, flow.source).filter(|_| udp)?;
        Some(SocketAddr::new(own?, port))
    }

    /// Who asked for the port that this flow is for.
    fn forwarded_to(&self, now: Duration, flow: &Flow) -> Option<SocketAddr> {
        let ours = flow.protocol == Protocol::Udp && flow.destination.is_ipv4();
        self.forwards.inside_of(now, flow.destination.port()).filter(|_| ours)
    }

    /// The address that sources of this flow's family are rewritten to.
    fn external_for(&self, flow: &Flow) -> Option<IpAddr> {
        let translates = self.settings.mapping != Mapping::None && flow.source.is_ipv4();
        self.external.filter(|_| translates).map(IpAddr::V4)
    }

    /// A plain router for this flow: no translation and no filter.
    fn is_open(&self, flow: &Flow) -> bool {
        self.external_for(flow).is_none() && self.filtering(flow) == Filtering::Open
    }

    /// What filters this flow. A translating box is, for IPv6, the firewall that home routers have.
    fn filtering(&self, flow: &Flow) -> Filtering {
        if flow.source.is_ipv6() && self.settings.mapping != Mapping::None {
            return Filtering::AddressAndPortDependent;
        }
        self.settings.filtering
    }

    fn router(&self) -> RouterAddresses {
        RouterAddresses { v4: self.router.v4.or(self.external), ..self.router }
    }

    fn expire(&self, view: &PacketView<'_>) -> Result<Verdict, Reason> {
        packet::time_exceeded(view.bytes(), self.router())
            .map(Verdict::Reply)
            .ok_or(Reason::TtlExpired)
    }

    fn refuse(&self, view: &PacketView<'_>, reason: Reason) -> Result<Verdict, Reason> {
        let rejects = reason == Reason::UdpPolicy && self.policy.udp == UdpPolicy::Reject;
        rejects
            .then(|| packet::unreachable(view.bytes(), Unreachable::Port, self.router()))
            .flatten()
            .map(Verdict::Reply)
            .ok_or(reason)
    }
}

/// The flow of a packet that a router may forward at all.
fn forwardable(view: &PacketView<'_>) -> Result<Flow, Reason> {
    let flow = view.flow();
    if stays_on_its_link(flow.source.ip()) || stays_on_its_link(flow.destination.ip()) {
        return Err(Reason::Martian);
    }
    Ok(flow)
}
