//! Tuning on real sockets: what legs have from their listener, what a ticket brings them, and that a rate is kept.
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::Socket;
use support::{Lab, read_exactly, tuning_named};
use switchback_engine::{
    EngineConfig, Gateway, IoChoice, StartError, Tuning, TuningOption, bind_listeners,
};

on_both_backends![
    legs_inherit_the_defaults,
    legs_inherit_what_their_listener_was_told,
    a_tickets_tuning_reaches_both_legs_whoever_waits,
    a_capped_leg_keeps_its_rate_while_splicing,
];

fn lab(io: IoChoice, tuning: &str) -> Option<Lab> {
    let tuning = if tuning.is_empty() { Tuning::default() } else { tuning.parse().unwrap() };
    Lab::start_with(EngineConfig { io, workers: 2, tuning, ..EngineConfig::default() })
}

/// The gateway's end of `stream`: the gateway runs in this process, so its sockets are ours to look at.
fn gateways_end(stream: &TcpStream) -> Socket {
    let (local, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let is_it = |socket: &Socket| {
        let address = |found: std::io::Result<socket2::SockAddr>| found.ok()?.as_socket();
        address(socket.local_addr()) == Some(peer) && address(socket.peer_addr()) == Some(local)
    };
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|number| pidfd_getfd(&own, number, PidfdGetfdFlags::empty()).ok())
        .map(Socket::from)
        .find(is_it)
        .expect("the gateway has the other end")
}

/// The options of a socket that can be read back, in the order of [`TuningOption::ALL`]; no rate, and no fast open.
fn options(socket: &Socket) -> String {
    let congestion = socket.tcp_congestion().unwrap();
    let congestion = String::from_utf8(congestion).unwrap();
    format!(
        "{} {} {:?} {:?}/{:?}/{} {}",
        congestion.trim_end_matches('\0'),
        socket.tos_v4().unwrap() >> 2,
        socket.tcp_user_timeout().unwrap().unwrap_or_default(),
        socket.tcp_keepalive_time().unwrap(),
        socket.tcp_keepalive_interval().unwrap(),
        socket.tcp_keepalive_retries().unwrap(),
        socket.tcp_notsent_lowat().unwrap(),
    )
}

fn legs_inherit_the_defaults(io: IoChoice) {
    let Some(lab) = lab(io, "") else { return };
    let (client, agent) = lab.pair(1);
    for leg in [client, agent] {
        let leg = gateways_end(&leg);
        let got = options(&leg);
        assert!(got.ends_with(" 0 30s 30s/10s/3 131072"), "{got}");
        assert!(leg.keepalive().unwrap() && leg.tcp_nodelay().unwrap());
    }
}

fn legs_inherit_what_their_listener_was_told(io: IoChoice) {
    let told = "congestion=reno,dscp=cs1,user-timeout=9s,notsent-lowat=32k,mss=1000";
    let Some(lab) = lab(io, told) else { return };
    let (client, agent) = lab.pair(1);
    for leg in [&client, &agent] {
        assert_eq!(options(&gateways_end(leg)), "reno 8 9s 30s/10s/3 32768");
        // Announced in the SYN-ACK, so the peer keeps it too; less 12 bytes if timestamps are on.
        let announced = Socket::from(leg.try_clone().unwrap()).tcp_mss().unwrap();
        assert!((988..=1000).contains(&announced), "{announced}");
    }
}

fn a_tickets_tuning_reaches_both_legs_whoever_waits(io: IoChoice) {
    let Some(lab) = lab(io, "congestion=cubic,dscp=cs1,user-timeout=9s") else { return };
    let tuned = "reno 34 7s 5s/2s/4 65536";
    assert!(tuning_named("video").to_string().starts_with("congestion=reno,dscp=af41"));
    for (number, client_first) in [(1, true), (2, false)] {
        let name = format!("c-{number}-20000-video.t");
        let wait = || lab.eventually("a leg waits", |gateway| gateway.metrics().legs_waiting == 1);
        let (mut agent, client) = if client_first {
            let client = lab.present(&name);
            wait();
            (lab.agent(number), client)
        } else {
            let agent = lab.agent(number);
            wait();
            (agent, lab.present(&name))
        };
        let (client, hello) = client;
        read_exactly(&mut agent, hello.len());
        lab.until_started(number);
        for leg in [client, agent] {
            assert_eq!(options(&gateways_end(&leg)), tuned, "client first: {client_first}");
        }
    }
    // Another pair has what the listener says.
    let (client, _agent) = lab.pair(3);
    assert_eq!(options(&gateways_end(&client)), "cubic 8 9s 30s/10s/3 131072");
}

/// A paced socket sends its first 10 segments at once, hence the ordinary segments here: those of loopback have 64 KiB.
fn a_capped_leg_keeps_its_rate_while_splicing(io: IoChoice) {
    const BYTES_PER_SECOND: f64 = 1_000_000.0;
    let Some(lab) = lab(io, "mss=1448") else { return };
    for (number, from_client) in [(1, true), (2, false)] {
        let (client, hello) = lab.present(&format!("c-{number}-20000-8mbit.t"));
        let mut agent = lab.agent(number);
        let started = Instant::now();
        read_exactly(&mut agent, hello.len());
        let (source, sink) = if from_client { (client, agent) } else { (agent, client) };
        let sender = std::thread::spawn(move || flood(source));
        let received = read_for(Duration::from_millis(600), sink);
        let most = BYTES_PER_SECOND * started.elapsed().as_secs_f64() * 1.5 + 200_000.0;
        assert!(received > 20_000 && (received as f64) < most, "{received} bytes, at most {most}");
        sender.join().unwrap();
    }
    assert!(lab.gateway.metrics().spliced > 0, "{:?}", lab.gateway.metrics());
}

/// Writes until the connection breaks.
fn flood(mut stream: TcpStream) {
    let chunk = [7; 64 * 1024];
    while stream.write_all(&chunk).is_ok() {}
}

/// Counts what comes within `duration`, then closes.
fn read_for(duration: Duration, mut stream: TcpStream) -> usize {
    let (started, mut total, mut chunk) = (Instant::now(), 0, [0; 64 * 1024]);
    while started.elapsed() < duration {
        total += stream.read(&mut chunk).unwrap();
    }
    total
}

#[test]
fn a_tuning_that_the_kernel_refuses_does_not_start() {
    let listeners = bind_listeners("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let tuning: Tuning = "congestion=nosuch".parse().unwrap();
    let config = EngineConfig { tuning, ..EngineConfig::default() };
    let started = Gateway::start(
        listeners,
        config,
        Arc::new(support::ByName),
        Box::new(|_| {}),
        Arc::new(|_| {}),
    );
    let Err(StartError::Tuning(refused)) = started else { panic!("{started:?}") };
    assert_eq!(refused.option, TuningOption::Congestion);
    assert!(refused.why.contains("reno"), "{refused}");
}
