//! Sessions that never rest, and notice every byte that is lost, doubled or changed.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::Value;
use switchback_control::client::{Client, ClientSession};
use switchback_control::invite::{Invite, InviteKind};
use tokio::runtime::Runtime;

use super::{Bed, Bytes};

/// Threads that drive pairs, each many.
const DRIVERS: usize = 8;
/// Bytes per round and direction: they fit the socket buffers, so one thread can be both ends.
const ROUND: usize = 2048;

/// Pairs of bare legs, whose bytes are checked at both ends.
pub(crate) struct BusyPairs {
    stop: Arc<AtomicBool>,
    rounds: Arc<Vec<AtomicUsize>>,
    drivers: Vec<JoinHandle<()>>,
}

impl BusyPairs {
    /// Dials `count` pairs and keeps them busy until [`BusyPairs::finish`].
    pub(crate) fn start(bed: &Bed, count: usize) -> Self {
        let tickets = bed.run(&["pairs", "--count", &count.to_string()]).ok().json();
        let tickets = tickets.as_array().expect("a list").clone();
        let pairs: Vec<_> = tickets.iter().map(|ticket| Pair::dial(bed.addr, ticket)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let rounds: Arc<Vec<_>> = Arc::new((0..count).map(|_| AtomicUsize::new(0)).collect());
        let mut shares: Vec<Vec<(usize, Pair)>> = (0..DRIVERS).map(|_| Vec::new()).collect();
        for (number, pair) in pairs.into_iter().enumerate() {
            shares[number % DRIVERS].push((number, pair));
        }
        let drive = |mut share: Vec<(usize, Pair)>| {
            let (stop, rounds) = (stop.clone(), rounds.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for (number, pair) in &mut share {
                        pair.round();
                        rounds[*number].fetch_add(1, Ordering::Relaxed);
                    }
                }
                share.into_iter().for_each(|(_, pair)| pair.finish());
            })
        };
        let drivers = shares.into_iter().map(drive).collect();
        Self { stop, rounds, drivers }
    }

    /// Rounds of the pair that made fewest.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    /// Ends every pair with FIN both ways; panics if any end saw anything but what the other sent.
    pub(crate) fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for driver in self.drivers {
            driver.join().expect("every byte arrived in order");
        }
    }
}

/// A pair of bare legs.
pub(crate) struct Pair {
    client: TcpStream,
    agent: TcpStream,
    sent: [Bytes; 2],
    expected: [Bytes; 2],
}

impl Pair {
    pub(crate) fn open(bed: &Bed) -> Self {
        let tickets = bed.run(&["pairs", "--count", "1"]).ok().json();
        Self::dial(bed.addr, &tickets[0])
    }

    fn dial(addr: SocketAddr, ticket: &Value) -> Self {
        let leg = |hello: &str| {
            let hello = BASE64.decode(ticket[hello].as_str().expect("a hello").as_bytes()).unwrap();
            let mut leg = TcpStream::connect(addr).expect("the port accepts");
            leg.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            leg.set_nodelay(true).unwrap();
            leg.write_all(&hello).unwrap();
            (leg, hello.len())
        };
        let (mut agent, _) = leg("agent_hello");
        let (client, hello) = leg("client_hello");
        // The client's hello is the agent's to read.
        agent.read_exact(&mut vec![0; hello]).expect("the legs are joined");
        let seed = u64::from(client.local_addr().unwrap().port());
        let streams = || [Bytes::seeded(seed), Bytes::seeded(seed + 65_536)];
        Self { client, agent, sent: streams(), expected: streams() }
    }

    /// Bytes both ways.
    pub(crate) fn round(&mut self) {
        let Self { client, agent, sent, expected } = self;
        for (number, (from, to)) in [(&*client, &*agent), (&*agent, &*client)].iter().enumerate() {
            let (mut from, mut to) = (*from, *to);
            let (mut bytes, mut wanted, mut got) = ([0; ROUND], [0; ROUND], [0; ROUND]);
            sent[number].fill(&mut bytes);
            expected[number].fill(&mut wanted);
            from.write_all(&bytes).expect("the leg is whole");
            to.read_exact(&mut got).expect("the leg is whole");
            assert!(got == wanted, "bytes changed on the way");
        }
    }

    fn finish(mut self) {
        self.client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(self.agent.read(&mut [0; 1]).expect("a FIN, no reset"), 0);
        self.agent.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(self.client.read(&mut [0; 1]).expect("a FIN, no reset"), 0);
    }

    /// Waits for the gateway to cut the pair; panics if that looks like an end of the stream.
    pub(crate) fn cut(self) {
        for mut leg in [self.client, self.agent] {
            let error = leg.read(&mut [0; 1]).expect_err("a reset, no FIN");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}

/// Real sessions to an echo, each with one channel that is kept busy; and, all the time, new ones.
pub(crate) struct BusySessions {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    sessions: Vec<(ClientSession, tokio::task::JoinHandle<()>)>,
    opener: tokio::task::JoinHandle<()>,
    opened: Arc<AtomicUsize>,
}

impl BusySessions {
    /// Opens `count` sessions to `echo`, and then keeps opening and closing another, with a sign-in of its own.
    pub(crate) fn start(bed: &Bed, count: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let invite = || Invite::parse(&bed.login, InviteKind::Login).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let opened = Arc::new(AtomicUsize::new(0));
        let sessions = runtime.block_on(async {
            let client = Client::connect(invite()).await.unwrap();
            let mut sessions = Vec::new();
            for number in 0..count {
                let session = client.open("echo").await.unwrap();
                let (stop, carried) = (stop.clone(), session.clone());
                let busy = tokio::spawn(async move {
                    let again = || !stop.load(Ordering::Relaxed);
                    keep_busy(&carried, number as u64, again).await;
                });
                sessions.push((session, busy));
            }
            sessions
        });
        let (invite, stopped, count) = (invite(), stop.clone(), opened.clone());
        let opener = runtime.spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let client = Client::connect(invite.clone()).await.expect("a sign-in");
                let session = client.open("echo").await.expect("a session");
                keep_busy(&session, count.load(Ordering::Relaxed) as u64, || false).await;
                session.close().await;
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { runtime, stop, sessions, opener, opened }
    }

    /// Sessions that were opened and closed so far.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.sessions.iter().map(|(session, _)| session.id().0.clone()).collect()
    }

    /// Ends all of them; panics if a byte went wrong anywhere, or one could not be opened.
    pub(crate) fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.runtime.block_on(async {
            self.opener.await.expect("every session could be opened");
            for (session, busy) in self.sessions {
                busy.await.expect("every byte came back in order");
                session.close().await;
            }
        });
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

/// Echoes through one channel of the session, for as long as `again` says.
async fn keep_busy(session: &ClientSession, seed: u64, again: impl Fn() -> bool) {
    let mut channel = session.open_channel().expect("a channel");
    let mut bytes = Bytes::seeded(seed);
    loop {
        let mut message = [0; ROUND];
        bytes.fill(&mut message);
        let sent = bytes::Bytes::copy_from_slice(&message);
        channel.write(sent).await.expect("the channel lives");
        let mut got = Vec::new();
        while got.len() < message.len() {
            let some = channel.read().await.expect("the channel lives");
            got.extend_from_slice(&some.expect("no end"));
        }
        assert!(got == message, "bytes changed on the way");
        if !again() {
            return;
        }
    }
}
