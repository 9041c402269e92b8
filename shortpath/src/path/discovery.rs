//! The NAT behaviour tests of RFC 5780 on one socket, for `switchback netcheck`.
//!
//! Three stages. First, a Binding request to each server; the first to answer is the one that is asked further. Second,
//! at the same time, as none of it opens the NAT for the others: "answer from your other address and port", "answer from
//! your other port" (filtering, section 4.4), and a request to our own mapped address (hairpin). Third, requests to the
//! server's other addresses (mapping, section 4.3): last, because they do open the NAT.
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use stun_types::message::{BINDING, Message, MessageClass, TransactionId};

use super::candidate::canonical;
use super::message::{self, Writer, attribute};
use super::predict::{Mapping, Observation, Ports, judge_mapping, judge_ports};

/// Filtering behaviour (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filtering {
    /// The server has no second address, or nothing came back.
    #[default]
    Unknown,
    /// Anybody may send to a mapping.
    EndpointIndependent,
    /// Addresses we have sent to may.
    AddressDependent,
    /// Exact addresses and ports we have sent to may.
    AddressAndPortDependent,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoveryReport {
    /// Whether any server answered over UDP.
    pub udp: bool,
    /// The server that was asked further: the first to answer.
    pub server: Option<SocketAddr>,
    /// What it sees of us.
    pub mapped: Option<SocketAddr>,
    /// RTT to each server that answered, microseconds.
    pub rtt_us: Vec<(SocketAddr, u64)>,
    /// Mapping behaviour.
    pub mapping: Mapping,
    /// How external ports are chosen.
    pub ports: Ports,
    /// Filtering behaviour.
    pub filtering: Filtering,
    /// Whether the NAT lets us reach our own mapped address; `None` without NAT.
    pub hairpin: Option<bool>,
    /// Whether the server has the second address that the filtering test needs.
    pub full_test: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Reach,
    ChangeBoth,
    ChangePort,
    Hairpin,
    Map,
}

#[derive(Debug)]
struct Probe {
    test: Test,
    to: SocketAddr,
    sent: Vec<(TransactionId, Instant)>,
    due: Instant,
    answered: bool,
}

impl Probe {
    fn is_done(&self, now: Instant) -> bool {
        self.answered || (self.sent.len() >= TRIES && self.due <= now)
    }
}

/// CHANGE-REQUEST flags (RFC 5780 section 7.2).
const CHANGE_PORT: u32 = 2;
const CHANGE_BOTH: u32 = 6;
/// Five tries, 200 ms apart, and as long again for the last answer: with 20 % loss each way silence is wrong once in 160.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_millis(600);
const SERVERS_MAX: usize = 8;

/// See the [module](self).
#[derive(Debug)]
pub struct Discovery {
    local: Option<SocketAddr>,
    rng: StdRng,
    probes: Vec<Probe>,
    stage: u8,
    other: Option<SocketAddr>,
    /// The server's other port, if it has no other address.
    other_port: Option<u16>,
    seen: Vec<Observation>,
    report: DiscoveryReport,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
}

impl Discovery {
    /// Asks the servers. `local` is the socket's own address if it is bound to one; the socket must be a fresh one.
    #[must_use]
    pub fn new(
        now: Instant,
        local: Option<SocketAddr>,
        servers: &[SocketAddr],
        seed: [u8; 32],
    ) -> Self {
        let mut discovery = Self {
            local,
            rng: StdRng::from_seed(seed),
            probes: Vec::new(),
            stage: 1,
            other: None,
            other_port: None,
            seen: Vec::new(),
            report: DiscoveryReport::default(),
            transmits: VecDeque::new(),
        };
        for server in servers.iter().take(SERVERS_MAX) {
            discovery.probe(now, Test::Reach, canonical(*server));
        }
        discovery.handle_timeout(now);
        discovery
    }

    fn probe(&mut self, now: Instant, test: Test, to: SocketAddr) {
        self.probes.push(Probe { test, to, sent: Vec::new(), due: now, answered: false });
    }

    /// A datagram that came to the socket. What is no answer to a test is ignored.
    pub fn handle_packet(&mut self, now: Instant, source: SocketAddr, datagram: &[u8]) {
        let (Some(message), source) = (message::parse(datagram), canonical(source)) else { return };
        let id = message.transaction_id();
        let find =
            |probe: &Probe| probe.sent.iter().find(|(sent, _)| *sent == id).map(|(_, at)| *at);
        let found = self.probes.iter().enumerate().find_map(|(n, probe)| Some((n, find(probe)?)));
        let Some((at, sent)) = found else { return };
        let (test, to) = (self.probes[at].test, self.probes[at].to);
        let success = message.has_class(MessageClass::Success);
        let fits = match test {
            Test::Reach | Test::Map => success && source == to,
            Test::ChangePort => success && source.ip() == to.ip() && source != to,
            Test::ChangeBoth => success && source.ip() != to.ip(),
            Test::Hairpin => message.has_class(MessageClass::Request),
        };
        if !fits || std::mem::replace(&mut self.probes[at].answered, true) {
            return;
        }
        match test {
            Test::Reach => self.note_reached(now, source, sent, &message),
            Test::Map => self.observe(source, &message),
            Test::ChangeBoth => self.report.filtering = Filtering::EndpointIndependent,
            Test::ChangePort if self.report.filtering == Filtering::Unknown => {
                self.report.filtering = Filtering::AddressDependent;
            }
            Test::ChangePort => {}
            Test::Hairpin => self.report.hairpin = Some(true),
        }
        self.handle_timeout(now);
    }

    fn observe(&mut self, server: SocketAddr, message: &Message<'_>) {
        if let Some(mapped) = message::mapped_address(message) {
            self.seen.push(Observation { server, mapped });
        }
    }

    fn note_reached(
        &mut self,
        now: Instant,
        server: SocketAddr,
        sent: Instant,
        message: &Message<'_>,
    ) {
        self.observe(server, message);
        let rtt = now.saturating_duration_since(sent).as_micros();
        self.report.rtt_us.push((server, u64::try_from(rtt).unwrap_or(u64::MAX)));
        if self.report.server.is_none() {
            self.report.udp = true;
            self.report.server = Some(server);
            self.report.mapped = message::mapped_address(message);
            let other = message::plain_address(message, attribute::OTHER_ADDRESS).map(canonical);
            self.other = other.filter(|other| {
                other.is_ipv4() == server.is_ipv4()
                    && other.ip() != server.ip()
                    && other.port() != server.port()
            });
            let port = message::number_u32(message, attribute::OTHER_PORT);
            let port = port.and_then(|told| u16::try_from(told >> 16).ok());
            self.other_port = port.filter(|port| ![0, server.port()].contains(port));
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.stage < DONE && self.probes.iter().all(|probe| probe.is_done(now)) {
            self.stage += 1;
            match self.stage {
                2 => self.ask_filtering(now),
                3 => self.ask_mapping(now),
                _ => self.conclude(),
            }
        }
        for at in 0..self.probes.len() {
            let probe = &self.probes[at];
            if !probe.answered && probe.due <= now && probe.sent.len() < TRIES {
                self.send(now, at);
            }
        }
    }

    fn send(&mut self, now: Instant, at: usize) {
        let id = TransactionId::from(self.rng.random::<u128>());
        let probe = &mut self.probes[at];
        let out = Writer::new(MessageClass::Request, BINDING, id);
        let out = match probe.test {
            Test::ChangeBoth => out.add(attribute::CHANGE_REQUEST, &CHANGE_BOTH.to_be_bytes()),
            Test::ChangePort => out.add(attribute::CHANGE_REQUEST, &CHANGE_PORT.to_be_bytes()),
            Test::Reach => out.add(attribute::OTHER_PORT, &[0; 4]),
            Test::Hairpin | Test::Map => out,
        };
        self.transmits.push_back((probe.to, out.finish(None)));
        probe.sent.push((id, now));
        probe.due = now + if probe.sent.len() == TRIES { LAST_WAIT } else { PAUSE };
    }

    fn ask_filtering(&mut self, now: Instant) {
        self.probes.clear();
        let Some(server) = self.report.server else { return };
        if self.other.is_some() {
            self.report.full_test = true;
            self.probe(now, Test::ChangeBoth, server);
            self.probe(now, Test::ChangePort, server);
        }
        if let Some(mapped) = self.report.mapped.filter(|mapped| Some(*mapped) != self.local) {
            self.report.hairpin = Some(false);
            self.probe(now, Test::Hairpin, mapped);
        }
    }

    fn ask_mapping(&mut self, now: Instant) {
        if self.report.full_test && self.report.filtering == Filtering::Unknown {
            self.report.filtering = Filtering::AddressAndPortDependent;
        }
        self.probes.clear();
        let Some(server) = self.report.server else { return };
        let port = self.other.map(|other| other.port()).or(self.other_port);
        if let Some(port) = port {
            self.probe(now, Test::Map, SocketAddr::new(server.ip(), port));
        }
        let Some(other) = self.other else { return };
        self.probe(now, Test::Map, SocketAddr::new(other.ip(), server.port()));
        self.probe(now, Test::Map, other);
    }

    fn conclude(&mut self) {
        self.probes.clear();
        self.report.mapping = judge_mapping(self.local, &self.seen);
        self.report.ports = judge_ports(self.local.map(|local| local.port()), &self.seen);
    }

    /// When [`Discovery::handle_timeout`] is due; `None`: all is done, see [`Discovery::report`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.probes.iter().filter(|probe| !probe.answered).map(|probe| probe.due).min()
    }

    /// The next datagram, and where to.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// What is known; complete when [`Discovery::poll_timeout`] is `None`. 4 s at most.
    #[must_use]
    pub fn report(&self) -> &DiscoveryReport {
        &self.report
    }
}

/// The stage after the last.
const DONE: u8 = 4;

#[cfg(test)]
mod tests {
    use super::super::fixture::{ms, nats};
    use super::super::lab::{Nat, NatKind, Net};
    use super::super::lab_server::Server;
    use super::*;

    fn discover(nat: Option<NatKind>, blocked: bool) -> DiscoveryReport {
        ask(Server::new(), nat, blocked)
    }

    fn ask(mut server: Server, nat: Option<NatKind>, blocked: bool) -> DiscoveryReport {
        let mut net = Net::new(31);
        net.host("10.0.1.2", ms(10), nat.map(|kind| Nat::new(kind, "203.0.113.2")));
        for ip in server.addresses {
            net.host(&ip.to_string(), Duration::ZERO, None);
        }
        if blocked {
            net.blocked.push("10.0.1.2".parse().unwrap());
        }
        let socket: SocketAddr = "10.0.1.2:6000".parse().unwrap();
        let (start, servers) = (net.now, [server.stun()]);
        let mut discovery = Discovery::new(start, Some(socket), &servers, [1; 32]);
        loop {
            while let Some((to, bytes)) = discovery.poll_transmit() {
                net.send(socket, to, bytes);
            }
            let Some(due) = discovery.poll_timeout() else { break };
            net.now = net.now.max(net.next().map_or(due, |next| next.min(due)));
            while let Some(datagram) = net.arrived() {
                if server.owns(datagram.to) {
                    server.handle(&mut net, &datagram);
                } else {
                    discovery.handle_packet(net.now, datagram.from, &datagram.bytes);
                }
            }
            discovery.handle_timeout(net.now);
        }
        assert!(net.now - start <= Duration::from_secs(4));
        discovery.report().clone()
    }

    #[test]
    fn every_nat_is_named_by_mapping_and_filtering() {
        use Filtering as F;
        use Mapping as M;
        let expected = [
            ("fullcone", M::EndpointIndependent, F::EndpointIndependent),
            ("addr-restr", M::EndpointIndependent, F::AddressDependent),
            ("port-restr", M::EndpointIndependent, F::AddressAndPortDependent),
            ("adm-adf", M::AddressDependent, F::AddressDependent),
            ("sym-eif", M::AddressAndPortDependent, F::EndpointIndependent),
            ("sym-seq", M::AddressAndPortDependent, F::AddressAndPortDependent),
        ];
        for (name, mapping, filtering) in expected {
            let kind = nats().into_iter().find(|(known, _)| *known == name).unwrap().1;
            let report = discover(Some(kind), false);
            assert_eq!((report.mapping, report.filtering), (mapping, filtering), "{name}");
            assert_eq!(report.rtt_us, [("192.0.2.1:3478".parse().unwrap(), 20_000)]);
        }
    }

    #[test]
    fn two_ports_of_one_address_name_a_symmetric_nat_and_no_more() {
        for (name, kind, ..) in nats() {
            let mut server = Server::new();
            server.single = true;
            let (all, one) = (discover(Some(kind), false), ask(server, Some(kind), false));
            let named = all.mapping == Mapping::AddressAndPortDependent;
            let wanted = if named { all.mapping } else { Mapping::Unknown };
            assert_eq!((one.mapping, one.full_test), (wanted, false), "{name}");
        }
    }

    #[test]
    fn no_nat_and_no_udp_are_told_apart() {
        let open = discover(None, false);
        assert_eq!((open.mapping, open.hairpin, open.udp), (Mapping::None, None, true));
        let blocked = discover(None, true);
        assert_eq!((blocked.udp, blocked.mapping), (false, Mapping::Unknown));
    }
}
