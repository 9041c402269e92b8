//! Promises of the underlay, over real sockets on loopback.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::*;
use crate::path::CandidateKind;
use crate::{Channel, LegKind, SessionConfig, SessionEvent};

mod relays;

/// Far beyond what anything here takes, for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

struct End {
    underlay: Underlay,
    session: SessionHandle,
    events: mpsc::Receiver<SessionEvent>,
    key: Vec<u8>,
    plan: Option<ShortpathPlan>,
    shortpath: Option<Shortpath>,
}

struct Ends {
    client: End,
    agent: End,
}

fn underlay(config: UnderlayConfig) -> Underlay {
    // One address, so that a test which takes a path away takes all of them.
    let allow = vec!["127.0.0.1".parse().unwrap()];
    let networks = NetworkFilter { allow, deny: Vec::new() };
    Underlay::start(UnderlayConfig { loopback: true, ipv6: false, networks, ..config }).unwrap()
}

fn credentials(name: &str) -> IceCredentials {
    IceCredentials {
        ufrag: format!("{name}{:08x}", rand::random::<u32>()),
        password: "p".repeat(24),
    }
}

/// Two ends whose session runs over a TCP leg in memory, with everything agreed upon and no search begun.
fn ends(client: &Underlay, agent: &Underlay, policy: UdpPolicy) -> Ends {
    let (client_key, agent_key) =
        (SessionKey::generate().unwrap(), SessionKey::generate().unwrap());
    let (client_public, agent_public) = (client_key.public(), agent_key.public());
    let (ours, theirs) = (credentials("client"), credentials("agent"));
    let token = rand::random();
    let plan = |role,
                key,
                peer_key: &[u8],
                local: &IceCredentials,
                remote: &IceCredentials,
                candidates| {
        ShortpathPlan {
            role,
            local: local.clone(),
            remote: remote.clone(),
            remote_candidates: candidates,
            relay: None,
            key,
            peer_key: peer_key.to_vec(),
            token,
            policy,
            dscp: None,
            standby: true,
        }
    };
    let client_plan =
        plan(Role::Client, client_key, &agent_public, &ours, &theirs, agent.candidates());
    let agent_plan =
        plan(Role::Agent, agent_key, &client_public, &theirs, &ours, client.candidates());
    let end = |underlay: &Underlay, role, key, plan| {
        let (session, events) = SessionHandle::start(role, "s", SessionConfig::default());
        let (underlay, plan) = (underlay.clone(), Some(plan));
        End { underlay, session, events, key, plan, shortpath: None }
    };
    Ends {
        client: end(client, Role::Client, client_public, client_plan),
        agent: end(agent, Role::Agent, agent_public, agent_plan),
    }
}

/// Passes bytes on, 10 ms after they came.
async fn late(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        sleep(Duration::from_millis(10)).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

impl End {
    fn search(&mut self) {
        let plan = self.plan.take().unwrap();
        self.shortpath = Some(self.underlay.connect(plan, &self.session));
    }

    async fn carried_by(&self, kind: Option<LegKind>) {
        let carried = async {
            while self.session.stats().leg != kind {
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(PATIENCE, carried).await.is_err() {
            panic!("not on {kind:?} but on {:?}: {:#?}", self.session.stats(), self.view());
        }
    }

    fn view(&self) -> ShortpathView {
        self.shortpath.as_ref().map(Shortpath::view).unwrap_or_default()
    }

    async fn viewed(&self, seen: impl Fn(&ShortpathView) -> bool) {
        let wait = async {
            while !seen(&self.view()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("never seen; now {:#?}", self.view());
        }
    }

    async fn incoming(&mut self) -> Channel {
        loop {
            match self.events.recv().await.expect("the session ended") {
                SessionEvent::Incoming(channel) => return channel,
                SessionEvent::Closed(reason) => panic!("closed: {reason:?}"),
                _ => {}
            }
        }
    }
}

impl Ends {
    /// A TCP leg in memory, 10 ms each way: on merit, loopback's UDP is better.
    fn tcp(&self) -> JoinHandle<()> {
        let (client, client_far) = tokio::io::duplex(256 * 1024);
        let (agent, agent_far) = tokio::io::duplex(256 * 1024);
        self.client.session.attach(client, LegKind::TcpReverse);
        self.agent.session.attach(agent, LegKind::TcpReverse);
        let (client_reads, client_writes) = tokio::io::split(client_far);
        let (agent_reads, agent_writes) = tokio::io::split(agent_far);
        tokio::spawn(async move {
            tokio::join!(late(client_reads, agent_writes), late(agent_reads, client_writes));
        })
    }

    async fn carried_by(&self, kind: LegKind) {
        self.client.carried_by(Some(kind)).await;
        self.agent.carried_by(Some(kind)).await;
    }

    /// One small message there and back.
    async fn echo(&mut self) {
        let mut channel = self.client.session.open().unwrap();
        channel.write(Bytes::from_static(b"ping")).await.unwrap();
        let mut theirs = timeout(PATIENCE, self.agent.incoming()).await.unwrap();
        let got = timeout(PATIENCE, theirs.read()).await.unwrap().unwrap().unwrap();
        theirs.write(got).await.unwrap();
        let back = timeout(PATIENCE, channel.read()).await.unwrap().unwrap().unwrap();
        assert_eq!(back, "ping");
        channel.finish();
        theirs.finish();
    }
}

/// Bytes that tell their place, so that a lost, doubled or swapped one shows.
fn pattern(channel: u64, offset: u64) -> u8 {
    let mixed = (offset / 7 + channel * 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}

async fn send(channel: &mut crate::shell::ChannelWriter, seed: u64, length: u64) {
    let mut offset = 0;
    while offset < length {
        let count = (length - offset).min(40_000);
        let chunk: Vec<u8> = (offset..offset + count).map(|at| pattern(seed, at)).collect();
        channel.write(chunk.into()).await.unwrap();
        offset += count;
    }
    channel.finish();
}

async fn receive(channel: &mut crate::shell::ChannelReader, seed: u64, length: u64) {
    let mut offset = 0;
    while let Some(bytes) = channel.read().await.unwrap() {
        for byte in &bytes {
            assert_eq!(*byte, pattern(seed, offset), "channel {seed} at {offset}");
            offset += 1;
        }
    }
    assert_eq!(offset, length, "channel {seed}");
}

/// Sends `length` bytes both ways on each of `count` channels, checked byte by byte.
async fn transfer(ends: &mut Ends, count: u64, length: u64) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for seed in 0..count {
        let mut channel = ends.client.session.open().unwrap();
        channel.write(Bytes::copy_from_slice(&seed.to_be_bytes())).await.unwrap();
        let (mut reader, mut writer) = channel.split();
        tasks.spawn(async move {
            tokio::join!(
                send(&mut writer, seed, length),
                receive(&mut reader, seed + 1000, length)
            );
        });
        let Ok(theirs) = timeout(PATIENCE, ends.agent.incoming()).await else {
            panic!("stuck: {:#?} {:#?}", ends.client, ends.agent);
        };
        tasks.spawn(async move {
            let (mut reader, mut writer) = theirs.split();
            let head = reader.read().await.unwrap().unwrap();
            assert!(head.len() >= 8);
            let seed = u64::from_be_bytes(head[..8].try_into().unwrap());
            let (early, mut offset) = (head.slice(8..), 0);
            for byte in &early {
                assert_eq!(*byte, pattern(seed, offset));
                offset += 1;
            }
            let read = async {
                while let Some(bytes) = reader.read().await.unwrap() {
                    for byte in &bytes {
                        assert_eq!(*byte, pattern(seed, offset), "channel {seed} at {offset}");
                        offset += 1;
                    }
                }
                assert_eq!(offset, length, "channel {seed}");
            };
            tokio::join!(read, send(&mut writer, seed + 1000, length));
        });
    }
    tasks
}

async fn all_done(ends: &Ends, mut tasks: JoinSet<()>) {
    let done = async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    };
    if timeout(PATIENCE, done).await.is_err() {
        panic!("stuck: {:#?} {:#?}", ends.client, ends.agent);
    }
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (stats, ignored) = (self.session.stats(), self.underlay.ignored());
        f.debug_struct("End")
            .field("stats", &stats)
            .field("ignored", &ignored)
            .field("legs", &self.view().legs)
            .finish_non_exhaustive()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_moves_to_udp_and_every_byte_arrives_once() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy::ALL);
    let _tcp = ends.tcp();
    ends.carried_by(LegKind::TcpReverse).await;
    let tasks = transfer(&mut ends, 20, 1_250_000).await;
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpDirect).await;
    all_done(&ends, tasks).await;
    ends.client.viewed(|view| view.reasons.is_empty()).await;
    assert_eq!(one.ignored().garbage, 0);
}

#[tokio::test]
async fn the_agents_fixed_port_serves_a_network_that_routes() {
    let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let one = underlay(UnderlayConfig::default());
    let two = underlay(UnderlayConfig { managed_port: Some(free), ..UnderlayConfig::default() });
    let managed = |candidate: &Candidate| candidate.kind == CandidateKind::Managed;
    assert!(two.candidates().iter().any(|c| managed(c) && c.address.port() == free));
    let mut ends = ends(&one, &two, UdpPolicy { managed: true, ..UdpPolicy::NONE });
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpManaged).await;
    ends.echo().await;
}

#[tokio::test]
async fn a_peer_with_another_key_is_refused_and_tcp_carries_on() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy::ALL);
    let _tcp = ends.tcp();
    let impostor = SessionKey::generate().unwrap();
    assert_ne!(impostor.public(), ends.client.key);
    ends.client.plan.as_mut().unwrap().key = impostor;
    ends.client.search();
    ends.agent.search();
    let refused = async {
        while two.refused_peers() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, refused).await.expect("the impostor was not refused");
    ends.client.viewed(|view| view.reasons.contains(&"quic_failed")).await;
    ends.carried_by(LegKind::TcpReverse).await;
    ends.echo().await;
}

#[tokio::test]
async fn a_token_nobody_announced_is_ignored_in_silence() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy::ALL);
    let _tcp = ends.tcp();
    ends.client.plan.as_mut().unwrap().token = [7; 16];
    ends.client.search();
    ends.agent.search();
    let ignored = async {
        while two.ignored().quic_unknown_token == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ignored).await.expect("the token was not looked at");
    ends.client.viewed(|view| view.reasons.contains(&"quic_failed")).await;
    assert_eq!(two.refused_peers(), 0);
    ends.echo().await;
}

#[tokio::test]
async fn a_stranger_gets_no_answer_to_anything() {
    let two = underlay(UnderlayConfig::default());
    let to = two.candidates()[0].address;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut initial = vec![0xC3, 0, 0, 0, 1, 20];
    initial.resize(1200, 5);
    let mut version = initial.clone();
    version[4] = 99;
    let mut check = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    check.resize(20, 3);
    let short = vec![0x41; 60];
    let mut oversized = check.clone();
    oversized.resize(4000, 0);
    for packet in [&initial, &version, &check, &short, &vec![9; 30], &oversized] {
        stranger.send_to(packet, to).await.unwrap();
    }
    let mut buffer = [0; 1500];
    let answer = timeout(Duration::from_millis(300), stranger.recv(&mut buffer)).await;
    assert!(answer.is_err(), "{answer:?}");
    let ignored = two.ignored();
    assert_eq!((ignored.garbage, ignored.stun_unclaimed), (2, 1), "{ignored:?}");
    assert_eq!((ignored.quic_unknown_token, ignored.quic_unknown_id), (2, 1), "{ignored:?}");
}

/// A packet that begins as one of a connection between the two underlays would.
fn packet_for(id: [u8; super::demux::CID_LEN]) -> Vec<u8> {
    let mut packet = vec![0x41];
    packet.extend(id);
    packet.resize(60, 7);
    packet
}

#[tokio::test]
async fn nobody_makes_the_sessions_of_an_end_send_checks_to_a_victim() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let mut ends = ends(&one, &two, UdpPolicy { direct: true, ..UdpPolicy::NONE });
        ends.client.search();
        ends.agent.search();
        ends.carried_by(LegKind::UdpDirect).await;
        sessions.push(ends);
    }
    // An id such as the agent gives to all its peers, in a packet that seems to come from the victim.
    let victim = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let packet = packet_for(two.0.inner.wire.ids.make(None, 7));
    victim.send_to(&packet, two.candidates()[0].address).await.unwrap();
    let check = timeout(Duration::from_millis(300), victim.recv(&mut [0; 1500])).await;
    assert!(check.is_err(), "{check:?}");
    assert_eq!(two.ignored().quic_stranger, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_between_the_same_two_ends_get_their_packets_as_the_kernel_gives_them() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let mut ends = ends(&one, &two, UdpPolicy { direct: true, ..UdpPolicy::NONE });
        ends.client.search();
        ends.agent.search();
        ends.carried_by(LegKind::UdpDirect).await;
        ends.echo().await;
        sessions.push(ends);
    }
    // A server may still be about to change to another id.
    sleep(Duration::from_millis(300)).await;
    let before = [one.0.inner.wire.copied(), two.0.inner.wire.copied()];
    for ends in &mut sessions {
        let tasks = transfer(ends, 2, 500_000).await;
        all_done(ends, tasks).await;
    }
    assert_eq!([one.0.inner.wire.copied(), two.0.inner.wire.copied()], before);
}

#[tokio::test]
async fn packets_of_relays_do_not_wait_for_a_busy_socket_to_rest() {
    use quinn::AsyncUdpSocket;
    let config = UnderlayConfig { loopback: true, ipv6: false, ..UnderlayConfig::default() };
    let wire = super::wire::Wire::new(super::sockets::open_all(&config).unwrap());
    let busy = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], wire.sockets[0].port));
    let (slot, relayed) =
        wire.paths(|paths| (paths.open(None).unwrap(), paths.open(None).unwrap()));
    let (id, from) = (wire.ids.make(Some(slot), 1), busy.local_addr().unwrap());
    wire.paths(|paths| {
        paths.admit(slot, crate::path::Route { local: wire.sockets[0].id, remote: from })
    });
    let far = crate::path::Route { local: crate::path::LocalId(9), remote: from };
    wire.paths(|paths| paths.admit(relayed, far));
    for _ in 0..64 {
        busy.send_to(&packet_for(id), to).await.unwrap();
    }
    wire.unwrapped(far, &packet_for(wire.ids.make(Some(relayed), 2)));
    let mut seen = Vec::new();
    for _ in 0..16 {
        let mut buffer = [0; 2048];
        let mut metas = [quinn::udp::RecvMeta::default()];
        let count = std::future::poll_fn(|cx| {
            wire.poll_recv(cx, &mut [io::IoSliceMut::new(&mut buffer)], &mut metas)
        });
        assert_eq!(timeout(PATIENCE, count).await.unwrap().unwrap(), 1);
        seen.push(super::paths::slot_at(metas[0].addr));
    }
    assert!(seen.contains(&Some(slot)) && seen.contains(&Some(relayed)), "{seen:?}");
}

/// A UDP relay between two ports that can change its own port, and fall silent for some or all.
struct Middle {
    /// Where the client sends.
    front: SocketAddr,
    rebind: Arc<AtomicBool>,
    drop_quic: Arc<AtomicBool>,
    drop_all: Arc<AtomicBool>,
    /// Everything goes out twice, and back to its sender as well, and QUIC once more with a changed byte. That comes last:
    /// quinn gives up a connection whose very first packet is broken, and waits for another.
    replay: Arc<AtomicBool>,
    /// Nobody listens at `front`: the kernel answers with ICMP errors.
    closed: Arc<AtomicBool>,
    _task: JoinHandle<()>,
}

/// A QUIC packet with its last byte changed; anything else as it is.
fn changed(packet: &[u8]) -> Vec<u8> {
    let mut changed = packet.to_vec();
    if let Some(last) = changed.last_mut().filter(|_| packet[0] > 3) {
        *last ^= 1;
    }
    changed
}

impl Middle {
    /// Passes on between a client, who is told to send here, and `agent`, who sees the packets come from a port of ours
    /// that changes when asked, as that of a NAT does.
    async fn before(agent: SocketAddr) -> Self {
        let mut front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let flags: [Arc<AtomicBool>; 5] = Default::default();
        let [rebind, drop_quic, drop_all, replay, closed] = flags.clone();
        let task = tokio::spawn(async move {
            let (mut there, mut here) = (vec![0; 65536], vec![0; 65536]);
            let mut client = None;
            loop {
                if flags[0].swap(false, Ordering::Relaxed) {
                    back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                }
                if flags[4].load(Ordering::Relaxed) {
                    drop(front);
                    while flags[4].load(Ordering::Relaxed) {
                        sleep(Duration::from_millis(10)).await;
                    }
                    front = UdpSocket::bind(address).await.unwrap();
                }
                let drops = |packet: &[u8]| {
                    flags[2].load(Ordering::Relaxed)
                        || flags[1].load(Ordering::Relaxed) && packet[0] > 3
                };
                tokio::select! {
                    Ok((count, from)) = front.recv_from(&mut there) => {
                        client = Some(from);
                        if !drops(&there[..count]) {
                            drop(back.send_to(&there[..count], agent).await);
                        }
                        if flags[3].load(Ordering::Relaxed) {
                            drop(back.send_to(&there[..count], agent).await);
                            drop(front.send_to(&there[..count], from).await);
                            drop(back.send_to(&changed(&there[..count]), agent).await);
                        }
                    }
                    Ok((count, from)) = back.recv_from(&mut here) => {
                        if let Some(client) = client.filter(|_| !drops(&here[..count])) {
                            drop(front.send_to(&here[..count], client).await);
                        }
                        if let Some(client) = client.filter(|_| flags[3].load(Ordering::Relaxed)) {
                            drop(front.send_to(&here[..count], client).await);
                            drop(back.send_to(&here[..count], from).await);
                            drop(front.send_to(&changed(&here[..count]), client).await);
                        }
                    }
                    () = sleep(Duration::from_millis(10)) => {}
                }
            }
        });
        Self { front: address, rebind, drop_quic, drop_all, replay, closed, _task: task }
    }

    /// Ends that know each other through the middle only.
    async fn between() -> (Ends, Self) {
        let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
        let mut ends = ends(&one, &two, UdpPolicy { direct: true, ..UdpPolicy::NONE });
        let middle = Self::before(two.candidates()[0].address).await;
        let plan = ends.client.plan.as_mut().unwrap();
        plan.remote_candidates = vec![Candidate::new(CandidateKind::Host, middle.front)];
        ends.agent.plan.as_mut().unwrap().remote_candidates = Vec::new();
        (ends, middle)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replayed_and_reflected_packets_change_nothing_and_are_counted() {
    let (mut ends, middle) = Middle::between().await;
    middle.replay.store(true, Ordering::Relaxed);
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpDirect).await;
    let tasks = transfer(&mut ends, 4, 300_000).await;
    all_done(&ends, tasks).await;
    assert_eq!(ends.client.session.stats().legs_lost, 0);
    for end in [&ends.client, &ends.agent] {
        let ignored = end.underlay.ignored();
        // Our own checks name the peer, and our own packets its connection.
        assert!(ignored.stun_unclaimed > 0 && ignored.quic_unknown_id > 0, "{ignored:?}");
        assert!(ignored.quic_undecryptable > 0, "{ignored:?}");
    }
}

#[tokio::test]
async fn icmp_errors_of_closed_ports_stop_neither_socket_nor_search() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy { direct: true, ..UdpPolicy::NONE });
    // Ports that were somebody's a moment ago: the kernel answers for them.
    let mut closed = Vec::new();
    for _ in 0..8 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        closed.push(Candidate::new(CandidateKind::Host, socket.local_addr().unwrap()));
    }
    for end in [&mut ends.client, &mut ends.agent] {
        end.plan.as_mut().unwrap().remote_candidates.splice(0..0, closed.clone());
        end.search();
    }
    ends.carried_by(LegKind::UdpDirect).await;
    ends.echo().await;
    assert_eq!(one.ignored().garbage + two.ignored().garbage, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_survives_that_nobody_listens_for_a_moment() {
    let (mut ends, middle) = Middle::between().await;
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpDirect).await;
    let selected = |view: &ShortpathView| {
        let pairs = view.legs.iter().flat_map(|leg| &leg.pairs);
        pairs.filter(|pair| pair.selected).map(|pair| pair.remote).collect::<Vec<_>>()
    };
    ends.client.viewed(|view| selected(view) == [middle.front]).await;
    middle.closed.store(true, Ordering::Relaxed);
    // Every packet there brings an ICMP port unreachable, until the port is open again.
    let mut channel = ends.client.session.open().unwrap();
    channel.write(Bytes::from_static(b"?")).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    middle.closed.store(false, Ordering::Relaxed);
    timeout(PATIENCE, ends.agent.incoming()).await.expect("nothing arrived");
    assert_eq!(ends.client.session.stats().legs_lost, 0);
    assert_eq!(selected(&ends.client.view()), [middle.front]);
}

/// A STUN server that sees everybody at 203.0.113.5:4000, as behind a NAT; it tells when it has answered.
async fn natted() -> (SocketAddr, mpsc::Receiver<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let (tell, answered) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut request = [0; 500];
        while let Ok((20.., from)) = socket.recv_from(&mut request).await {
            // RFC 8489 section 14.2: port and address xored with the magic cookie.
            let seen = [0, 0x20, 0, 8, 0, 1, 0x2E, 0xB2, 0xEA, 0x12, 0xD5, 0x47];
            let answer = [&[1, 1, 0, 12], &request[4..20], &seen[..]].concat();
            socket.send_to(&answer, from).await.unwrap();
            // Once is enough.
            let _ = tell.try_send(());
        }
    });
    (at, answered)
}

#[tokio::test]
async fn what_a_nat_makes_of_an_address_that_policy_excludes_is_not_offered() {
    let seen = Candidate::new(CandidateKind::ServerReflexive, ([203, 0, 113, 5], 4000).into());
    for (deny, offered) in [("10.0.0.0/8", true), ("127.0.0.0/8", false)] {
        let deny = vec![deny.parse().unwrap(), "::/0".parse().unwrap()];
        let networks = NetworkFilter { allow: Vec::new(), deny };
        let config = UnderlayConfig { loopback: true, ipv6: false, networks, ..Default::default() };
        let underlay = Underlay::start(config).unwrap();
        let (server, mut answered) = natted().await;
        underlay.set_servers(vec![server]);
        timeout(PATIENCE, answered.recv()).await.unwrap().unwrap();
        if offered {
            let told = async {
                while !underlay.candidates().contains(&seen) {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(PATIENCE, told).await.expect("never offered");
        } else {
            sleep(Duration::from_millis(200)).await;
            let candidates = underlay.candidates();
            let denied =
                |it: &Candidate| it.address == seen.address || it.address.ip().is_loopback();
            assert!(!candidates.iter().any(denied), "{candidates:?}");
        }
    }
}

#[tokio::test]
async fn what_a_hostile_peer_names_is_refused_and_told_by_explain() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let gateway = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = gateway.local_addr().unwrap();
    one.set_servers(vec![server]);
    let mut ends = ends(&one, &two, UdpPolicy { direct: true, ..UdpPolicy::NONE });
    let host = |address: &str| Candidate::new(CandidateKind::Host, address.parse().unwrap());
    let mut hostile = vec![Candidate::new(CandidateKind::Host, server)];
    hostile.extend(["224.0.0.1:5000", "255.255.255.255:5000", "0.0.0.0:5000"].map(host));
    hostile.extend((2..40).map(|port| host(&format!("127.0.0.1:{port}"))));
    // Wait until the gateway is known as one: what it is asked as a server is no check.
    timeout(PATIENCE, gateway.recv(&mut [0; 500])).await.unwrap().unwrap();
    ends.client.plan.as_mut().unwrap().remote_candidates = hostile;
    ends.client.search();
    let refused = |view: &ShortpathView, name| view.ignored.iter().any(|(known, _)| *known == name);
    ends.client
        .viewed(|view| {
            refused(view, "candidate_server_address")
                && refused(view, "candidate_not_unicast")
                && refused(view, "candidates_too_many_of_host")
        })
        .await;
}

#[tokio::test]
async fn a_peer_that_answers_checks_but_not_quic_leaves_tcp_alone() {
    let (mut ends, middle) = Middle::between().await;
    middle.drop_quic.store(true, Ordering::Relaxed);
    let _tcp = ends.tcp();
    ends.client.search();
    ends.agent.search();
    ends.client.viewed(|view| view.reasons.contains(&"quic_failed")).await;
    assert_eq!(ends.client.view().legs[0].state, LegState::Reachable);
    ends.client.viewed(|view| view.ignored.contains(&("quic_failed", 1))).await;
    ends.carried_by(LegKind::TcpReverse).await;
    ends.echo().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_udp_the_session_returns_to_tcp() {
    let (mut ends, middle) = Middle::between().await;
    let _tcp = ends.tcp();
    ends.carried_by(LegKind::TcpReverse).await;
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpDirect).await;
    let tasks = transfer(&mut ends, 4, 500_000).await;
    middle.drop_all.store(true, Ordering::Relaxed);
    all_done(&ends, tasks).await;
    ends.echo().await;
    ends.carried_by(LegKind::TcpReverse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebinding_changes_nothing_for_the_connection() {
    let (mut ends, middle) = Middle::between().await;
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpDirect).await;
    for _ in 0..3 {
        middle.rebind.store(true, Ordering::Relaxed);
        sleep(Duration::from_millis(30)).await;
        let tasks = transfer(&mut ends, 3, 200_000).await;
        all_done(&ends, tasks).await;
    }
    // Without another leg, a new connection would show as a lost leg.
    assert_eq!(ends.client.session.stats().legs_lost, 0);
    assert_eq!(ends.agent.session.stats().legs_lost, 0);
    assert!(ends.agent.underlay.ignored().quic_stranger > 0, "the rebindings were seen");
}

#[tokio::test]
async fn letting_go_of_the_search_closes_its_legs() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy::ALL);
    let _tcp = ends.tcp();
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpDirect).await;
    ends.client.shortpath = None;
    ends.carried_by(LegKind::TcpReverse).await;
    ends.echo().await;
}

#[tokio::test]
async fn policy_is_kept_and_named() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy::NONE);
    ends.client.search();
    ends.client.viewed(|view| view.reasons == ["policy_no_udp"] && view.legs.is_empty()).await;
}

#[tokio::test]
async fn a_session_that_ends_on_udp_says_so_to_its_peer() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy::ALL);
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpDirect).await;
    ends.client.session.close(77);
    let closed = async {
        loop {
            if let Some(SessionEvent::Closed(reason)) = ends.agent.events.recv().await {
                return reason;
            }
        }
    };
    let reason = timeout(Duration::from_secs(5), closed).await.expect("the agent was not told");
    assert_eq!(reason, crate::CloseReason::ByPeer(77));
}

#[tokio::test]
async fn what_was_queued_at_the_close_arrives_though_the_search_is_let_go_at_once() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy { direct: true, ..UdpPolicy::NONE });
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpDirect).await;
    let mut channel = ends.client.session.open().unwrap();
    channel.write(vec![5; 60_000].into()).await.unwrap();
    channel.finish();
    ends.client.session.close(0);
    while !matches!(ends.client.events.recv().await, Some(SessionEvent::Closed(_))) {}
    ends.client.shortpath = None;
    let mut theirs = timeout(PATIENCE, ends.agent.incoming()).await.unwrap();
    let (mut came, mut read) = (0, true);
    while read {
        let bytes = timeout(PATIENCE, theirs.read()).await.unwrap().unwrap_or_default();
        came += bytes.as_ref().map_or(0, Bytes::len);
        read = bytes.is_some();
    }
    assert_eq!(came, 60_000);
}

#[tokio::test]
async fn secrets_stay_out_of_debug() {
    let access = RelayAccess {
        server: named("192.0.2.1:3478".parse().unwrap()),
        username: "1:u".into(),
        password: "hunter2".into(),
    };
    assert!(!format!("{access:?}").contains("hunter2"));
    let plan = ends(
        &underlay(UnderlayConfig::default()),
        &underlay(UnderlayConfig::default()),
        UdpPolicy::ALL,
    )
    .client
    .plan;
    let plan = plan.unwrap();
    let token = format!("{:?}", plan.token);
    assert!(!format!("{plan:?}").contains("pppp") && !format!("{plan:?}").contains(&token[1..40]));

    use crate::path::{Finder, FinderConfig, TurnClient, TurnConfig};
    use stun_types::message::{IntegrityKey, ShortTermCredentials};
    let shown = |key: &IntegrityKey| format!("{key:?}");
    let key = ShortTermCredentials::new(plan.local.password.clone()).make_key();
    let bytes = shown(&key);
    let (at, to) = (bytes.find('[').unwrap(), bytes.rfind(']').unwrap());
    let now = std::time::Instant::now();
    let config = FinderConfig::new(LegKind::UdpDirect, true, plan.local.clone(), plan.remote);
    let finder = format!("{:?}", Finder::new(now, config));
    assert!(!finder.contains(&bytes[at..to]) && !finder.contains("key") && finder.len() < 1000);
    let server = "192.0.2.1:3478".parse().unwrap();
    let config = TurnConfig::new(server, access.username, access.password);
    let turn = format!("{:?}", TurnClient::new(now, config));
    assert!(!turn.contains("hunter2") && !turn.contains("key"), "{turn}");
}

/// A stock TURN server on loopback, which ends with the test; `None` where none is installed.
async fn coturn() -> Option<(SocketAddr, tokio::process::Child)> {
    let address = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let port = address.port().to_string();
    let flags = "-n -m 1 --lt-cred-mech --no-tls --no-dtls --no-cli --no-tcp --log-file=stdout";
    let child = tokio::process::Command::new("turnserver")
        .args(flags.split(' '))
        .args(["-L", "127.0.0.1", "-E", "127.0.0.1", "-p", &port, "-r", "switchback"])
        .args(["-u", "name:secret", "-u", "renewed:fresher", "--allow-loopback-peers"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let child = child.ok()?;
    let probe = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    request.resize(20, 1);
    for _ in 0..100 {
        probe.send_to(&request, address).await.unwrap();
        if timeout(Duration::from_millis(100), probe.recv(&mut [0; 500])).await.is_ok() {
            return Some((address, child));
        }
    }
    panic!("turnserver is installed but does not start");
}

fn named(server: SocketAddr) -> RelayServer {
    RelayServer::Named(server.to_string())
}

fn relay_access(server: SocketAddr, password: &str) -> Option<RelayAccess> {
    Some(RelayAccess { server: named(server), username: "name".into(), password: password.into() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_turn_server_carries_a_session() {
    let Some((server, _turnserver)) = coturn().await else {
        eprintln!("skipped: no turnserver (coturn) is installed");
        return;
    };
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    one.set_servers(vec![server]);
    two.set_servers(vec![server]);
    let mut ends = ends(&one, &two, UdpPolicy { relay: true, ..UdpPolicy::NONE });
    ends.client.plan.as_mut().unwrap().relay = relay_access(server, "secret");
    ends.client.search();
    ends.agent.search();
    let shortpath = ends.client.shortpath.as_ref().unwrap();
    let mut relayed = shortpath.relayed();
    let relayed =
        timeout(PATIENCE, relayed.wait_for(Option::is_some)).await.unwrap().unwrap().unwrap();
    assert_eq!(relayed.kind, CandidateKind::Relayed);
    ends.agent.shortpath.as_ref().unwrap().add_remote_candidates(vec![relayed]);
    ends.carried_by(LegKind::UdpRelay).await;
    let tasks = transfer(&mut ends, 4, 500_000).await;
    all_done(&ends, tasks).await;
    assert!(!one.nats().is_empty() && one.nats()[0].servers[0].1.is_some(), "{:?}", one.nats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_relay_credentials_take_over_without_a_gap() {
    let Some((server, _turnserver)) = coturn().await else {
        eprintln!("skipped: no turnserver (coturn) is installed");
        return;
    };
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy { relay: true, ..UdpPolicy::NONE });
    ends.client.plan.as_mut().unwrap().relay = relay_access(server, "secret");
    ends.client.search();
    ends.agent.search();
    ends.carried_by(LegKind::UdpRelay).await;
    let shortpath = ends.client.shortpath.as_ref().unwrap();
    let first = shortpath.relayed().borrow().unwrap();
    let renewed = |username: &str| {
        let (username, password) = (username.to_owned(), "fresher".to_owned());
        RelayAccess { server: named(server), username, password }
    };
    shortpath.renew_relay(renewed("name"));
    shortpath.renew_relay(renewed("renewed"));
    let mut relayed = shortpath.relayed();
    let fresh = relayed.wait_for(|it| it.is_some_and(|it| it != first));
    let fresh = timeout(PATIENCE, fresh).await.unwrap().unwrap().unwrap();
    let of_fresh = move |view: &ShortpathView| {
        let pairs: Vec<_> = view.legs.iter().flat_map(|leg| &leg.pairs).collect();
        let locals: std::collections::BTreeSet<_> = pairs.iter().map(|pair| pair.local).collect();
        view.local.contains(&fresh) && locals.len() == 1 && pairs.iter().any(|pair| pair.selected)
    };
    let handed_over = async {
        loop {
            ends.echo().await;
            if of_fresh(&ends.client.view()) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, handed_over).await.expect("the old allocation stays");
    for _ in 0..20 {
        ends.echo().await;
    }
    let lost = [&ends.client, &ends.agent].map(|end| end.session.stats().legs_lost);
    assert_eq!(lost, [0, 0]);
}

#[tokio::test]
async fn without_standby_no_relay_is_asked_for_while_a_direct_path_is_up() {
    let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy::ALL);
    for end in [&mut ends.client, &mut ends.agent] {
        let plan = end.plan.as_mut().unwrap();
        plan.relay = relay_access(relay.local_addr().unwrap(), "secret");
        plan.standby = false;
        end.search();
    }
    ends.carried_by(LegKind::UdpDirect).await;
    let asked = timeout(Duration::from_secs(6), relay.recv(&mut [0; 500])).await;
    assert!(asked.is_err(), "a relay was asked for");
}

#[tokio::test]
async fn a_relay_that_does_not_know_us_is_named() {
    let Some((server, _turnserver)) = coturn().await else {
        eprintln!("skipped: no turnserver (coturn) is installed");
        return;
    };
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy { relay: true, ..UdpPolicy::NONE });
    ends.client.plan.as_mut().unwrap().relay = relay_access(server, "wrong");
    ends.client.search();
    ends.client.viewed(|view| view.reasons.contains(&"relay_unauthorized")).await;
}

#[tokio::test]
async fn a_silent_server_means_that_udp_is_blocked() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    one.set_servers(vec![silent.local_addr().unwrap()]);
    let mut ends = ends(&one, &two, UdpPolicy { direct: true, ..UdpPolicy::NONE });
    ends.client.search();
    ends.client.viewed(|view| view.reasons.contains(&"udp_egress_blocked")).await;
}
