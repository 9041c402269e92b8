//! A gateway under test: real sockets, either backend, an admission that reads its verdict from the server name.
#![allow(dead_code)] // each test binary uses its part

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use switchback_engine::{
    Admission, Admitted, BackendKind, Cause, EngineConfig, ForeignConnection, Gateway,
    GatewayEvent, IoChoice, LegSide, Limits, Outcome, PairId, Phase, Refusal, StartError, Tuning,
    Verdict, bind_listeners, hello,
};

/// Longer than anything a test waits for; only a failure takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const ANY_PORT: &str = "127.0.0.1:0";

/// A running gateway and everything it says.
pub(crate) struct Lab {
    pub(crate) gateway: Gateway,
    pub(crate) address: SocketAddr,
    pub(crate) events: Receiver<GatewayEvent>,
    pub(crate) foreign: Receiver<ForeignConnection>,
}

/// Verdicts by server name: `c-N-MS.t` admits a client of pair N with MS milliseconds of patience, `a-N-MS.t` an agent,
/// `c-N-MS-NAME.t` brings [`tuning_named`] NAME, `refused.t` is an expired ticket, everything else is foreign.
pub(crate) struct ByName;

impl Admission for ByName {
    fn admit(&self, server_name: &str, _peer: SocketAddr) -> Verdict {
        if server_name == "refused.t" {
            return Verdict::Refuse(Refusal::TicketExpired);
        }
        let Some(ticket) = server_name.strip_suffix(".t") else { return Verdict::Foreign };
        let mut parts = ticket.split('-');
        let (side, number, patience) =
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        Verdict::Admit(Admitted {
            pair: pair_id(number.parse().unwrap()),
            side: if side == "c" { LegSide::Client } else { LegSide::Agent },
            patience: Duration::from_millis(patience.parse().unwrap()),
            tuning: parts.next().map(|name| Arc::new(tuning_named(name))),
        })
    }
}

/// A tuning that a ticket brings.
pub(crate) fn tuning_named(name: &str) -> Tuning {
    let text = match name {
        "video" => "congestion=reno,dscp=af41,user-timeout=7s,keepalive=5s/2s/4,notsent-lowat=64k",
        "8mbit" => "max-pacing-rate=8mbit",
        other => panic!("no tuning {other}"),
    };
    text.parse().unwrap()
}

pub(crate) fn pair_id(number: u32) -> PairId {
    PairId(u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_le_bytes())
}

impl Lab {
    /// Starts with `limits` and two workers, or says why io_uring cannot be tested here.
    pub(crate) fn start(io: IoChoice, limits: Limits) -> Option<Self> {
        Self::start_with(EngineConfig { io, workers: 2, limits, ..EngineConfig::default() })
    }

    /// Starts with `config`, each worker with a listener, or says why io_uring cannot be tested here.
    pub(crate) fn start_with(config: EngineConfig) -> Option<Self> {
        let listeners = bind_listeners(ANY_PORT.parse().unwrap(), config.workers).unwrap();
        Self::on(listeners, config)
    }

    /// Starts with `config` on `listeners`, dealt out in turn.
    pub(crate) fn on(listeners: Vec<TcpListener>, config: EngineConfig) -> Option<Self> {
        let io = config.io;
        let address = listeners[0].local_addr().unwrap();
        let (event_sender, events) = channel();
        let (foreign_sender, foreign) = channel();
        let (event_sender, foreign_sender) = (shared(event_sender), shared(foreign_sender));
        let started = Gateway::start(
            listeners,
            config,
            Arc::new(ByName),
            Box::new(move |connection| drop(foreign_sender.lock().unwrap().send(connection))),
            Arc::new(move |event| drop(event_sender.lock().unwrap().send(event))),
        );
        let gateway = match started {
            Err(StartError::UringUnavailable(reason)) => {
                println!("skipped: {reason}");
                return None;
            }
            started => started.unwrap(),
        };
        let wanted = if io == IoChoice::Epoll { BackendKind::Epoll } else { BackendKind::Uring };
        assert_eq!(gateway.backend().kind, wanted);
        Some(Self { gateway, address, events, foreign })
    }

    /// A connection that has sent nothing.
    pub(crate) fn dial(&self) -> TcpStream {
        dial(self.address)
    }

    /// A connection that has presented `server_name`, and the hello it sent.
    pub(crate) fn present(&self, server_name: &str) -> (TcpStream, Vec<u8>) {
        present(self.address, server_name)
    }

    pub(crate) fn client(&self, number: u32) -> (TcpStream, Vec<u8>) {
        self.present(&format!("c-{number}-20000.t"))
    }

    pub(crate) fn agent(&self, number: u32) -> TcpStream {
        self.present(&format!("a-{number}-20000.t")).0
    }

    /// A pair that has started: client, agent. The client's hello is already read at the agent.
    pub(crate) fn pair(&self, number: u32) -> (TcpStream, TcpStream) {
        let (client, hello) = self.client(number);
        let mut agent = self.agent(number);
        assert_eq!(
            read_exactly(&mut agent, hello.len()),
            hello,
            "the client's hello reaches the agent"
        );
        self.until_started(number);
        (client, agent)
    }

    pub(crate) fn event(&self) -> GatewayEvent {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    pub(crate) fn until_started(&self, number: u32) {
        loop {
            if let GatewayEvent::PairStarted { pair, .. } = self.event() {
                assert_eq!(pair, pair_id(number));
                return;
            }
        }
    }

    pub(crate) fn until_ended(&self) -> Outcome {
        loop {
            if let GatewayEvent::PairEnded { outcome, .. } = self.event() {
                return outcome;
            }
        }
    }

    /// The next end is this one.
    pub(crate) fn expect_end(&self, cause: Cause, phase: Phase) -> Outcome {
        let outcome = self.until_ended();
        assert_eq!((outcome.cause, outcome.phase), (cause, phase), "{outcome:?}");
        outcome
    }

    pub(crate) fn refused(&self, refusal: Refusal) -> u64 {
        self.gateway.metrics().refused.iter().find(|(which, _)| *which == refusal).unwrap().1
    }

    /// Waits until `done` holds.
    pub(crate) fn eventually(&self, what: &str, mut done: impl FnMut(&Gateway) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !done(&self.gateway) {
            assert!(Instant::now() < give_up, "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A connection to `address` that has sent nothing.
pub(crate) fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A connection to `address` that has presented `server_name`, and the hello it sent.
pub(crate) fn present(address: SocketAddr, server_name: &str) -> (TcpStream, Vec<u8>) {
    let bytes = hello::encode(server_name, [7; 96]);
    let mut stream = dial(address);
    stream.write_all(&bytes).unwrap();
    (stream, bytes)
}

fn shared<T>(sender: Sender<T>) -> Mutex<Sender<T>> {
    Mutex::new(sender)
}

pub(crate) fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Everything until FIN.
pub(crate) fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The connection must end with the alert of this refusal, then FIN.
pub(crate) fn expect_alert(stream: &mut TcpStream, refusal: Refusal) {
    assert_eq!(read_all(stream), [21, 3, 3, 0, 2, 2, refusal.alert()], "{refusal:?}");
}

/// The connection must end with RST.
pub(crate) fn expect_reset(stream: &mut TcpStream) {
    let mut sink = [0; 65536];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => panic!("FIN instead of RST"),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                return;
            }
        }
    }
}

/// Closes with RST.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// A deterministic stream of bytes, different for every seed.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(length + 8);
        while out.len() < length {
            out.extend_from_slice(&self.number().to_le_bytes());
        }
        out.truncate(length);
        out
    }
}

/// Runs a test in a process of its own: `true` in that one. In the other it is `false`, and the test has passed.
pub(crate) fn alone(test: &str, io: IoChoice) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let backend = if io == IoChoice::Epoll { "epoll" } else { "uring" };
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("{backend}::{test}"), "--exact", "--test-threads=1", "--nocapture"])
        .env(ALONE, "1")
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    false
}

const ALONE: &str = "SWITCHBACK_TEST_ALONE";

/// The same promise for both backends.
#[macro_export]
macro_rules! on_both_backends {
    ($($name:ident),+ $(,)?) => {
        mod uring {
            $(#[test] fn $name() { super::$name(switchback_engine::IoChoice::Uring) })+
        }
        mod epoll {
            $(#[test] fn $name() { super::$name(switchback_engine::IoChoice::Epoll) })+
        }
    };
}
