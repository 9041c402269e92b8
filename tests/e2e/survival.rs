//! Sessions outlive what carries them.
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{
    Bed, Bytes, EchoTarget, FreezingProxy, IOS, Io, Process, SinkTarget, eventually,
};

/// A steady stream of numbered messages through an echo; fails on any byte lost, doubled or reordered.
pub(crate) struct Stream(JoinHandle<Duration>);

impl Stream {
    /// Runs for `length`; the handle gives the longest silence the application saw.
    pub(crate) fn start(addr: SocketAddr, length: Duration) -> Self {
        Self(thread::spawn(move || {
            let stream = TcpStream::connect(addr).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let sending = thread::spawn(move || {
                let (mut bytes, started, mut sent) = (Bytes::seeded(3), Instant::now(), 0usize);
                let mut message = [0; 4096];
                while started.elapsed() < length {
                    bytes.fill(&mut message);
                    writer.write_all(&message).unwrap();
                    sent += message.len();
                    thread::sleep(Duration::from_millis(2));
                }
                writer.shutdown(Shutdown::Write).unwrap();
                sent
            });
            let (mut expected, mut reader) = (Bytes::seeded(3), stream);
            let (mut want, mut got) = ([0; 4096], [0; 4096]);
            let (mut received, mut longest, mut last) = (0usize, Duration::ZERO, Instant::now());
            loop {
                let count = read_fully(&mut reader, &mut got);
                if count == 0 {
                    break;
                }
                expected.fill(&mut want);
                assert_eq!(want[..count], got[..count], "at byte {received}");
                received += count;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            assert_eq!(sending.join().unwrap(), received, "every byte came back");
            longest
        }))
    }

    pub(crate) fn longest_silence(self) -> Duration {
        self.0.join().expect("the stream stayed whole")
    }
}

fn read_fully(reader: &mut TcpStream, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]).expect("the application's socket never fails") {
            0 => break,
            count => filled += count,
        }
    }
    filled
}

#[test]
fn a_stream_survives_broker_and_gateway_restarts_and_keeps_its_session_id() {
    for io in IOS {
        let echo = EchoTarget::start();
        let mut bed = Bed::start(io, &[echo.resource("echo")]);
        let (_connect, local) = bed.forward("echo");
        let stream = Stream::start(local, Duration::from_secs(6));
        let id = eventually("the session to be active", Duration::from_secs(5), || {
            let sessions = bed.sessions();
            let first = sessions.first()?;
            (first["state"] == "active").then(|| first["id"].clone())
        });
        for _ in 0..2 {
            thread::sleep(Duration::from_secs(1));
            bed.kill_server();
            thread::sleep(Duration::from_millis(500));
            bed.restart_server();
        }
        eventually("the registry to be rebuilt", Duration::from_secs(15), || {
            let sessions = bed.sessions();
            let known =
                sessions.iter().any(|session| session["id"] == id && session["state"] == "active");
            known.then_some(())
        });
        println!("{io:?}: longest silence {:?}", stream.longest_silence());
        assert_eq!(echo.accepted(), 1, "the target saw one connection");
    }
}

#[test]
fn a_leg_that_goes_silent_is_replaced_without_losing_a_byte() {
    let proxy = FreezingProxy::start();
    let echo = EchoTarget::start();
    let mut bed = Bed::without_agent(Io::Uring, Some(proxy.addr().to_string()));
    proxy.forward_to(bed.addr);
    bed.offer(&[echo.resource("echo")]);
    let (_connect, local) = bed.forward("echo");
    let stream = Stream::start(local, Duration::from_secs(4));
    thread::sleep(Duration::from_secs(1));
    proxy.freeze();
    println!("longest silence {:?}", stream.longest_silence());
}

#[test]
fn a_session_ends_with_its_code_when_nothing_carries_it_within_the_resume_window() {
    let echo = EchoTarget::start();
    let mut bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    let mut command = bed.command(&[
        "connect",
        "echo",
        "--listen",
        "127.0.0.1:0",
        "--json",
        "--resume-window",
        "2s",
    ]);
    let mut connect = crate::support::Process::start(&mut command);
    let local: SocketAddr = connect.first_json()["listen"].as_str().unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(local).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    bed.kill_server();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "the application's socket ends");
    assert_ne!(connect.wait(Duration::from_secs(30)), 0);
    assert!(connect.stderr().contains("SESSION_LOST"), "{}", connect.stderr());
}

#[test]
fn an_agent_restart_ends_its_sessions_and_new_ones_work_at_once() {
    let echo = EchoTarget::start();
    let mut bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    let (mut before, local) = bed.forward("echo");
    let mut cut = TcpStream::connect(local).unwrap();
    cut.write_all(b"x").unwrap();
    cut.read_exact(&mut [0]).unwrap();
    bed.kill_agent();
    let refused = bed.run(&["connect", "echo", "--stdio", "--start-timeout", "1s"]);
    assert_eq!(refused.refusal(), "AGENT_OFFLINE");
    bed.start_agent();
    assert_ne!(before.wait(Duration::from_secs(30)), 0);
    assert!(before.stderr().contains("SESSION_LOST"), "{}", before.stderr());
    cut.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(cut.read(&mut [0]), Ok(0) | Err(_)), "the application's socket ends");
    let (_connect, local) = bed.forward("echo");
    let mut stream = TcpStream::connect(local).unwrap();
    stream.write_all(b"again").unwrap();
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"again");
}

#[test]
fn half_close_crosses_the_session_in_both_orders() {
    for io in IOS {
        let (echo, sink) = (EchoTarget::start(), SinkTarget::start());
        let bed = Bed::start(io, &[echo.resource("echo"), sink.resource("sink")]);
        // The client ends first; the answer still arrives whole.
        let (_echo, local) = bed.forward("echo");
        let mut stream = TcpStream::connect(local).unwrap();
        let mut content = vec![0; 3 << 20];
        Bytes::seeded(9).fill(&mut content);
        let mut writer = stream.try_clone().unwrap();
        let sent = content.clone();
        let sending = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        sending.join().unwrap();
        assert!(got == content, "{io:?}: {} of {} bytes", got.len(), content.len());
    }
}

#[test]
fn a_slow_service_slows_its_client_and_nobody_holds_the_difference() {
    for io in IOS {
        let (sink, echo) = (SinkTarget::start(), EchoTarget::start());
        let bed = Bed::start(io, &[sink.resource("sink"), echo.resource("echo")]);
        let (connect, local) = bed.forward("sink");
        let before = (bed.server().resident(), bed.agent().resident(), connect.resident());
        let mut stream = TcpStream::connect(local).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let block = vec![1; 1 << 20];
        let mut pushed = 0u64;
        let refused = loop {
            match stream.write(&block) {
                Ok(count) => pushed += count as u64,
                Err(error) => break error,
            }
            assert!(pushed < 1 << 30, "nothing pushes back");
        };
        assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
        let grown = |now: u64, before: u64| now.saturating_sub(before) >> 20;
        let held = (
            grown(bed.server().resident(), before.0),
            grown(bed.agent().resident(), before.1),
            grown(connect.resident(), before.2),
        );
        println!("{io:?}: pushed {} MiB, resident grew by {held:?} MiB", pushed >> 20);
        assert!(held.0 < 16 && held.1 < 64 && held.2 < 64, "{held:?} MiB");
        // Another session is not held up by the stuck one.
        let (_echo, local) = bed.forward("echo");
        let mut other = TcpStream::connect(local).unwrap();
        other.write_all(b"alive").unwrap();
        other.read_exact(&mut [0; 5]).unwrap();
        // And once the service reads, everything arrives.
        sink.start_reading();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut total = [0; 8];
        stream.read_exact(&mut total).unwrap();
        assert_eq!(u64::from_be_bytes(total), pushed);
    }
}

#[test]
fn a_command_on_demand_outlives_its_session_and_says_goodbye_to_the_next() {
    let echo = EchoTarget::start();
    let mut bed = Bed::start(Io::Epoll, &[echo.resource("echo")]);
    let args = ["connect", "echo", "--listen", "127.0.0.1:0", "--on-demand", "1h", "--json"];
    let mut connect = Process::start(&mut bed.command(&args));
    let local: SocketAddr = connect.first_json()["listen"].as_str().unwrap().parse().unwrap();
    let use_it = || {
        let mut stream = TcpStream::connect(local).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).map(|()| stream)
    };
    let mut carried = use_it().unwrap();
    // An agent that is started anew does not know the session.
    bed.kill_agent();
    bed.start_agent();
    let error = carried.read(&mut [0]).expect_err("a reset, not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let _carried = eventually("another session", Duration::from_secs(30), || use_it().ok());
    assert_eq!(bed.sessions().len(), 1);
    connect.signal("TERM");
    assert_eq!(connect.wait(Duration::from_secs(10)), 0, "{}", connect.stderr());
    // Well within the resume window, which it takes without a word.
    eventually("the session to be gone", Duration::from_secs(10), || {
        bed.sessions().is_empty().then_some(())
    });
}
