//! A thousand sessions at once, and nothing left of them afterwards.
use std::time::{Duration, Instant};

use switchback_control::client::Client;
use switchback_control::invite::{Invite, InviteKind};

use crate::support::{Bed, EchoTarget, IOS, Io, eventually, resident_of};

/// Carried by TCP alone; and with UDP, where each has two QUIC connections and two relays.
const SESSIONS: usize = 1000;
const UDP_SESSIONS: usize = 500;

#[test]
fn a_thousand_sessions_carry_bytes_at_once_and_leave_no_descriptor_or_thread() {
    for io in IOS {
        come_and_go(io, (SESSIONS, 0), |echo| echo.resource("echo"));
    }
}

/// The relay's sockets are the gateway's, so they must go with the sessions, whether or not their ends say goodbye to it.
#[test]
fn sessions_with_udp_leave_no_allocation_behind() {
    // Another number of them, for measurements: what a session costs is printed.
    let count = std::env::var("SWITCHBACK_TEST_UDP_SESSIONS").ok();
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(UDP_SESSIONS);
    come_and_go(Io::Uring, (count, 2 * count), |echo| echo.resource_with("echo", ""));
}

/// Opens `count` sessions, which come to have `relays` TURN allocations, and closes them.
fn come_and_go(io: Io, (count, relays): (usize, usize), resource: impl Fn(&EchoTarget) -> String) {
    let echo = EchoTarget::start();
    let bed = Bed::start(io, &[resource(&echo)]);
    // One session first, so that what is made lazily and kept (pipes, pools, threads) is not mistaken for a leak.
    with_sessions(&bed, 1, |_| ());
    settled(&bed);
    let before = (bed.server().open_files(), bed.agent().open_files());
    let threads = (bed.server().threads(), bed.agent().threads());
    let resident = || [bed.server().resident(), bed.agent().resident(), resident_here()];
    let (at_first, began) = (resident(), Instant::now());

    with_sessions(&bed, count, |bed| {
        let opened = began.elapsed();
        assert_eq!(bed.sessions().len(), count);
        eventually("every session's relays", Duration::from_secs(60), || {
            (bed.metric("switchback_relay_allocations", "") >= relays as f64).then_some(())
        });
        let grown = std::array::from_fn::<_, 3, _>(|at| {
            resident()[at].saturating_sub(at_first[at]) / count as u64
        });
        let [server, agent, client] = grown.map(|bytes| bytes / 1024);
        println!(
            "{io:?}: {count} sessions opened and used after {opened:.1?}, all their {relays} allocations after {:.1?}; KiB \
             resident per session: {server} in broker and gateway together, {agent} in the agent, {client} in the client",
            began.elapsed()
        );
        assert!(grown[0] < 40 * 1024, "{} bytes per session", grown[0]);
    });
    settled(&bed);
    eventually("descriptors to be back where they were", Duration::from_secs(30), || {
        let now = (bed.server().open_files(), bed.agent().open_files());
        // Warm legs and links come and go: a handful of slack, nothing that grows with the sessions.
        (now.0 <= before.0 + 16 && now.1 <= before.1 + 16).then_some(())
    });
    eventually("the relay's allocations to be gone", Duration::from_secs(10), || {
        (bed.metric("switchback_relay_allocations", "") < 1.0).then_some(())
    });
    assert!(bed.server().threads() <= threads.0 + 2 && bed.agent().threads() <= threads.1 + 2);
}

/// Of this process, which is the client: other tests at the same time count in.
fn resident_here() -> u64 {
    resident_of(std::process::id())
}

/// Opens `count` sessions from one process, echoes through each, runs `meanwhile`, closes them.
fn with_sessions(bed: &Bed, count: usize, meanwhile: impl FnOnce(&Bed)) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let invite = Invite::parse(&bed.login, InviteKind::Login).unwrap();
    let (client, sessions) = runtime.block_on(async {
        let client = Client::connect(invite).await.unwrap();
        let mut sessions = Vec::new();
        // In tens: a thousand at the same instant is an attack that limits may refuse.
        for batch in 0..count.div_ceil(10) {
            let opening = (0..10.min(count - batch * 10)).map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.open("echo").await.unwrap() })
            });
            for session in opening.collect::<Vec<_>>() {
                sessions.push(session.await.unwrap());
            }
        }
        for (number, session) in sessions.iter().enumerate() {
            let mut channel = session.open_channel().unwrap();
            let message = bytes::Bytes::from(format!("message {number}"));
            channel.write(message.clone()).await.unwrap();
            let mut got = Vec::new();
            while got.len() < message.len() {
                got.extend_from_slice(&channel.read().await.unwrap().expect("the echo"));
            }
            assert_eq!(got, message);
        }
        (client, sessions)
    });
    meanwhile(bed);
    runtime.block_on(async {
        for session in &sessions {
            session.close().await;
        }
        drop(sessions);
        drop(client);
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

fn settled(bed: &Bed) {
    eventually("all sessions to be gone", Duration::from_secs(60), || {
        bed.sessions().is_empty().then_some(())
    });
}
