//! How far the gateways are from here: measured again and again, by STUN and by the time that TCP takes to connect.
//!
//! Each round asks all of them at once, from a socket of its own: a round trip is the path's, whichever port it leaves from.
//! Rounds come about every 30 s, and at once when the list or the network changes.
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::wire::{GATEWAYS_MAX, GatewayPlace, GatewayRtt};

/// Between rounds, give or take a third: ends that started together do not stay together.
const ROUND: Duration = Duration::from_secs(30);
/// A connection that takes longer is none: one lost SYN (1 s) still connects.
const TCP_PATIENCE: Duration = Duration::from_secs(3);
/// Between STUN requests, of which one may be lost.
const UDP_PATIENCE: Duration = Duration::from_secs(1);
/// Tries of each kind in a round; the fastest counts, as a first packet may wait for a neighbour's hardware address.
const TRIES: usize = 3;
/// Changes of less than this, and of less than a tenth, are not told.
const CHANGE_US: u32 = 2_000;

/// Measures until it is dropped.
#[derive(Debug)]
pub(crate) struct Survey {
    places: watch::Sender<Vec<GatewayPlace>>,
    again: Arc<Notify>,
    found: watch::Receiver<Vec<GatewayRtt>>,
}

impl Survey {
    /// Has nothing to measure yet. `home`: where a gateway is that has no address; `udp`: whether this end does UDP.
    pub(crate) fn start(home: String, udp: bool) -> Self {
        let (places, listed) = watch::channel(Vec::new());
        let (telling, found) = watch::channel(Vec::new());
        let again = Arc::new(Notify::new());
        tokio::spawn(keep(home, udp, listed, again.clone(), telling));
        Self { places, again, found }
    }

    /// These are the gateways.
    pub(crate) fn set(&self, mut places: Vec<GatewayPlace>) {
        places.truncate(GATEWAYS_MAX);
        self.places.send_if_modified(|known| {
            let changed = *known != places;
            *known = places;
            changed
        });
    }

    /// The network changed.
    pub(crate) fn again(&self) {
        self.again.notify_one();
    }

    /// What was found last; changes when that changed much.
    pub(crate) fn found(&self) -> watch::Receiver<Vec<GatewayRtt>> {
        self.found.clone()
    }
}

async fn keep(
    home: String,
    udp: bool,
    mut listed: watch::Receiver<Vec<GatewayPlace>>,
    again: Arc<Notify>,
    telling: watch::Sender<Vec<GatewayRtt>>,
) {
    loop {
        let places = listed.borrow_and_update().clone();
        // With one there is no choice.
        let round = (places.len() > 1).then(|| ROUND.mul_f64(rand::random_range(0.67..1.33)));
        if round.is_some() {
            let found = tokio::select! {
                found = measure_all(places, &home, udp) => found,
                changed = listed.changed() => match changed {
                    Ok(()) => {
                        listed.mark_changed();
                        continue;
                    }
                    Err(_) => return,
                },
            };
            telling.send_if_modified(|known| {
                let changed = differ(known, &found);
                if changed {
                    *known = found;
                }
                changed
            });
        }
        tokio::select! {
            changed = listed.changed() => match changed {
                Ok(()) => listed.mark_changed(),
                Err(_) => return,
            },
            () = again.notified() => {}
            () = sleep(round.unwrap_or(ROUND)), if round.is_some() => {}
        }
    }
}

/// Every gateway at once, in the order of the list.
pub async fn measure_all(places: Vec<GatewayPlace>, home: &str, udp: bool) -> Vec<GatewayRtt> {
    let mut measuring = JoinSet::new();
    for (place, GatewayPlace { name, address, .. }) in places.into_iter().enumerate() {
        let address = address.unwrap_or_else(|| home.to_owned());
        measuring.spawn(async move { (place, measure(name, &address, udp).await) });
    }
    let mut found: Vec<_> = measuring.join_all().await;
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, rtt)| rtt).collect()
}

async fn measure(gateway: String, address: &str, udp: bool) -> GatewayRtt {
    let nothing = GatewayRtt { gateway: gateway.clone(), udp_us: None, tcp_us: None };
    let Ok(Ok(mut found)) = timeout(TCP_PATIENCE, lookup_host(address)).await else {
        return nothing;
    };
    let Some(address) = found.next() else { return nothing };
    let stun = async { if udp { best(|| stun_rtt(address)).await } else { None } };
    let (tcp_us, udp_us) = tokio::join!(best(|| tcp_rtt(address)), stun);
    GatewayRtt { gateway, udp_us, tcp_us }
}

/// The fastest of a few tries, microseconds; one that fails is the last.
async fn best<F: Future<Output = Option<Duration>>>(mut attempt: impl FnMut() -> F) -> Option<u32> {
    let mut best: Option<Duration> = None;
    for _ in 0..TRIES {
        let Some(took) = attempt().await else { break };
        best = Some(best.map_or(took, |best| best.min(took)));
    }
    best.map(|best| u32::try_from(best.as_micros()).unwrap_or(u32::MAX))
}

async fn tcp_rtt(address: SocketAddr) -> Option<Duration> {
    let began = Instant::now();
    let stream = timeout(TCP_PATIENCE, TcpStream::connect(address)).await.ok()?.ok()?;
    let took = began.elapsed();
    // Nothing was said and nothing will be: a reset spares both ends the long goodbye.
    drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
    Some(took)
}

async fn stun_rtt(server: SocketAddr) -> Option<Duration> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(server).await.ok()?;
    // One request may be lost.
    for _ in 0..2 {
        if let Ok(Ok(took)) = timeout(UDP_PATIENCE, ask(&socket)).await {
            return Some(took);
        }
    }
    None
}

/// Type, length, magic cookie and transaction id: a Binding request without attributes (RFC 8489 section 5).
async fn ask(socket: &UdpSocket) -> io::Result<Duration> {
    let mut request = [0; 20];
    rand::fill(&mut request[8..]);
    request[1] = 1;
    request[4..8].copy_from_slice(&COOKIE);
    let began = Instant::now();
    socket.send(&request).await?;
    let mut answer = [0; 1500];
    loop {
        let length = socket.recv(&mut answer).await?;
        let is_ours = length >= 20 && answer[..2] == SUCCESS && answer[4..20] == request[4..];
        if is_ours {
            return Ok(began.elapsed());
        }
    }
}

/// RFC 8489 section 5.
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// A Binding success response.
const SUCCESS: [u8; 2] = [1, 1];

/// Whether someone who knows `old` should hear of `new`.
fn differ(old: &[GatewayRtt], new: &[GatewayRtt]) -> bool {
    let known: HashMap<_, _> = old.iter().map(|rtt| (&rtt.gateway, rtt)).collect();
    let same = |rtt: &GatewayRtt| {
        known
            .get(&rtt.gateway)
            .is_some_and(|old| is_near(old.udp_us, rtt.udp_us) && is_near(old.tcp_us, rtt.tcp_us))
    };
    old.len() != new.len() || !new.iter().all(same)
}

fn is_near(old: Option<u32>, new: Option<u32>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old.abs_diff(new) <= CHANGE_US.max(old / 10),
        (old, new) => old == new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtt(udp_us: Option<u32>, tcp_us: Option<u32>) -> Vec<GatewayRtt> {
        vec![GatewayRtt { gateway: "g".into(), udp_us, tcp_us }]
    }

    #[test]
    fn changes_of_a_tenth_or_two_milliseconds_are_told_and_smaller_ones_are_not() {
        let known = rtt(Some(100_000), Some(5_000));
        assert!(!differ(&known, &rtt(Some(110_000), Some(7_000))));
        assert!(differ(&known, &rtt(Some(110_001), Some(5_000))));
        assert!(differ(&known, &rtt(Some(100_000), Some(7_001))));
        assert!(differ(&known, &rtt(None, Some(5_000))), "UDP is blocked now");
        assert!(differ(&known, &[]) && differ(&[], &known));
    }

    #[tokio::test]
    async fn a_gateway_that_answers_nothing_is_out_of_reach_and_the_others_are_measured() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let stun = UdpSocket::bind(there).await.unwrap();
        tokio::spawn(async move {
            let mut request = [0; 64];
            while let Ok((length, from)) = stun.recv_from(&mut request).await {
                request[..2].copy_from_slice(&SUCCESS);
                stun.send_to(&request[..length], from).await.unwrap();
            }
        });
        let survey = Survey::start(there.to_string(), true);
        let mut found = survey.found();
        let place = |name: &str, address: Option<SocketAddr>| GatewayPlace {
            name: name.into(),
            address: address.map(|address| address.to_string()),
            region: None,
        };
        survey.set(vec![place("home", None), place("gone", Some(closed))]);
        timeout(Duration::from_secs(20), found.changed()).await.unwrap().unwrap();
        let found = found.borrow().clone();
        assert!(found[0].udp_us.is_some() && found[0].tcp_us.is_some(), "{found:?}");
        assert_eq!(found[1], GatewayRtt { gateway: "gone".into(), udp_us: None, tcp_us: None });
    }
}
