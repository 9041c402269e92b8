//! The largest packet that reaches a STUN server and comes back, by padded requests that must not be fragmented
//! (RFC 8899's idea with RFC 5780's PADDING), for `switchback netcheck`.
//!
//! Three rounds, each of several sizes at once: between the largest that was answered and the smallest that was not, the
//! next round looks closer.
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stun_types::message::{BINDING, MessageClass, TransactionId};

use super::candidate::canonical;
use super::message::{self, Writer, attribute};
use super::probe::Probe;

/// Sizes of the first round, bytes of IP packets: what IPv4 hosts must take (RFC 791), what IPv6 links must carry (RFC
/// 8200), tunnels, PPPoE, Ethernet. Multiples of four, as STUN's attributes are.
const FIRST: [u16; 5] = [576, 1280, 1400, 1492, 1500];
/// Sizes at once in the rounds that follow.
const CLOSER: u16 = 9;
/// Requests of one size, 200 ms apart, and the wait for the last answer.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_millis(500);
/// STUN's header, PADDING's, and FINGERPRINT.
const STUN_HEADERS: u16 = 20 + 4 + 8;

/// See the module.
#[derive(Debug)]
pub struct MtuProbe {
    server: SocketAddr,
    rng: StdRng,
    sizes: Vec<Size>,
    rounds: u8,
    largest: Option<u16>,
    /// The smallest size above that which was not answered.
    lost: Option<u16>,
    transmits: VecDeque<Vec<u8>>,
    due: Option<Instant>,
    tries: u32,
}

#[derive(Debug)]
struct Size {
    bytes: u16,
    ids: Vec<TransactionId>,
    answered: bool,
}

impl MtuProbe {
    /// Starts with its first requests; the socket must send them with "don't fragment", whatever the kernel believes.
    #[must_use]
    pub fn new(now: Instant, server: SocketAddr, seed: [u8; 32]) -> Self {
        let mut probe = Self {
            server: canonical(server),
            rng: StdRng::from_seed(seed),
            sizes: Vec::new(),
            rounds: 0,
            largest: None,
            lost: None,
            transmits: VecDeque::new(),
            due: Some(now),
            tries: 0,
        };
        probe.begin(&FIRST);
        probe.handle_timeout(now);
        probe
    }

    fn begin(&mut self, sizes: &[u16]) {
        let size = |bytes: &u16| Size { bytes: *bytes, ids: Vec::new(), answered: false };
        self.sizes = sizes.iter().map(size).collect();
        (self.tries, self.rounds) = (0, self.rounds + 1);
    }

    /// A round is over.
    fn conclude(&mut self, now: Instant) {
        let answered = self.sizes.iter().filter(|size| size.answered).map(|size| size.bytes).max();
        self.largest = self.largest.max(answered);
        let lost = self.sizes.iter().filter(|size| !size.answered).map(|size| size.bytes);
        self.lost = lost.chain(self.lost).filter(|bytes| Some(*bytes) > self.largest).min();
        let range = self.largest.zip(self.lost);
        let closer = range.map_or(Vec::new(), |(good, bad)| between(good, bad));
        if closer.is_empty() || self.rounds == 3 {
            self.due = None;
            return;
        }
        self.begin(&closer);
        self.due = Some(now);
        self.handle_timeout(now);
    }

    /// The largest IP packet that was answered, bytes, at most 1500, rounded down to four (below 1280 to eight); `None` if
    /// none was.
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        self.largest
    }
}

impl Probe for MtuProbe {
    fn handle_packet(&mut self, now: Instant, source: SocketAddr, datagram: &[u8]) {
        let Some(message) = message::parse(datagram) else { return };
        if canonical(source) != self.server || !message.has_class(MessageClass::Success) {
            return;
        }
        let id = message.transaction_id();
        if let Some(size) = self.sizes.iter_mut().find(|size| size.ids.contains(&id)) {
            size.answered = true;
        }
        if self.sizes.iter().all(|size| size.answered) {
            self.conclude(now);
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        if self.tries == TRIES {
            return self.conclude(now);
        }
        self.tries += 1;
        self.due = Some(now + if self.tries == TRIES { LAST_WAIT } else { PAUSE });
        let headers = if self.server.is_ipv4() { 28 } else { 48 } + STUN_HEADERS;
        for size in self.sizes.iter_mut().filter(|size| !size.answered) {
            let id = TransactionId::from(self.rng.random::<u128>());
            let padding = vec![0; usize::from(size.bytes.saturating_sub(headers))];
            let request = Writer::new(MessageClass::Request, BINDING, id);
            self.transmits.push_back(request.add(attribute::PADDING, &padding).finish(None));
            size.ids.push(id);
        }
    }

    /// All is done in 3 s at most.
    fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        Some((self.server, self.transmits.pop_front()?))
    }
}

/// Sizes between one that passed and one that did not, evenly spaced, multiples of four.
fn between(good: u16, bad: u16) -> Vec<u16> {
    let step = (bad.saturating_sub(good) / (CLOSER + 1)).next_multiple_of(4).max(4);
    (1..).map(|n| good + n * step).take_while(|size| *size < bad).collect()
}

#[cfg(test)]
mod tests {
    use super::super::message::mapped_address;
    use super::*;

    /// What a probe finds where packets up to `mtu` pass, and how long that takes; `loss`: of four requests, how many are
    /// lost besides.
    fn found(server: &str, mtu: usize, loss: u64) -> (Option<u16>, Duration) {
        let server: SocketAddr = server.parse().unwrap();
        let start = Instant::now();
        let (mut now, mut sent) = (start, 0_u64);
        let mut probe = MtuProbe::new(now, server, [3; 32]);
        loop {
            while let Some((to, datagram)) = probe.poll_transmit() {
                assert_eq!(to, server);
                sent += 1;
                let headers = if server.is_ipv4() { 28 } else { 48 };
                assert!(message::is_stun(&datagram));
                if datagram.len() + headers <= mtu && sent % 4 >= loss {
                    let id = message::transaction(&datagram).unwrap();
                    let answer = Writer::new(MessageClass::Success, BINDING, id)
                        .add_address(attribute::XOR_MAPPED_ADDRESS, server)
                        .finish(None);
                    assert!(mapped_address(&message::parse(&answer).unwrap()).is_some());
                    probe.handle_packet(now, "198.51.100.9:9".parse().unwrap(), &answer);
                    probe.handle_packet(now, server, &answer);
                }
            }
            let Some(due) = probe.poll_timeout() else { break };
            now = now.max(due);
            probe.handle_timeout(now);
        }
        (probe.mtu(), now - start)
    }

    #[test]
    fn the_largest_packet_that_passes_is_found_to_four_bytes() {
        for mtu in [576, 1280, 1281, 1340, 1400, 1420, 1472, 1491, 1492, 1499, 1500, 9000] {
            for server in ["192.0.2.1:443", "[2001:db8::1]:443"] {
                let (found, took) = found(server, usize::from(mtu), 0);
                assert_eq!(found, Some((mtu / 4 * 4).min(1500)), "{server} {mtu}");
                assert!(took <= Duration::from_secs(3));
            }
        }
    }

    #[test]
    fn loss_is_not_taken_for_a_limit_and_silence_for_none() {
        assert_eq!(found("192.0.2.1:443", 1400, 1).0, Some(1400));
        assert_eq!(found("192.0.2.1:443", 0, 0).0, None);
    }
}
