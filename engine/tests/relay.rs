//! What a pair promises, with real sockets on both backends. The half-close and reset tests walk the truth table in
//! `src/relay/pair.rs`.
mod support;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{Lab, Noise, expect_reset, pair_id, read_all, read_exactly, reset};
use switchback_engine::{
    Cause, EngineConfig, GatewayEvent, IoChoice, LegSide, Limits, PairMeter, Phase, Slow,
};

on_both_backends![
    legs_pair_in_both_orders,
    events_come_in_order,
    bytes_arrive_exactly_in_both_directions,
    bytes_behind_both_hellos_are_delivered,
    client_fin_first_delivers_both_tails,
    agent_fin_first_delivers_both_tails,
    client_reset_resets_the_agent,
    agent_reset_resets_the_client,
    client_reset_after_its_fin_resets_the_agent,
    agent_reset_after_its_fin_resets_the_client,
    client_reset_after_the_agents_fin_resets_the_agent,
    slow_reader_stops_its_sender_and_nobody_else,
    killed_pair_is_reset_at_both_ends,
    killed_waiting_leg_leaves,
    interactive_bytes_pass_beside_bulk,
    round_trips_are_measured,
    idle_pair_is_no_longer_sampled_and_called_idle,
    agent_that_does_not_read_is_named,
    client_that_does_not_read_is_named,
    sampling_many_busy_pairs_stays_within_its_share,
    five_hundred_pairs_at_once,
    busy_polling_follows_bytes_and_ends_with_them,
];

fn lab(io: IoChoice) -> Option<Lab> {
    Lab::start(io, Limits::default())
}

fn legs_pair_in_both_orders(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut client, hello) = lab.client(1);
    lab.eventually("the client waits", |gateway| gateway.metrics().legs_waiting == 1);
    let mut agent = lab.agent(1);
    assert_eq!(read_exactly(&mut agent, hello.len()), hello);
    agent.write_all(b"welcome").unwrap();
    assert_eq!(read_exactly(&mut client, 7), b"welcome");

    let mut agent = lab.agent(2);
    lab.eventually("the agent waits", |gateway| gateway.metrics().legs_waiting == 1);
    let (mut client, hello) = lab.client(2);
    assert_eq!(read_exactly(&mut agent, hello.len()), hello);
    agent.write_all(b"welcome").unwrap();
    assert_eq!(read_exactly(&mut client, 7), b"welcome");
    assert_eq!(lab.gateway.metrics().pairs_active, 2);
}

fn events_come_in_order(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (client, hello) = lab.client(9);
    let first = lab.event();
    assert!(
        matches!(first, GatewayEvent::LegWaiting { pair, side: LegSide::Client } if pair == pair_id(9)),
        "{first:?}"
    );
    let mut agent = lab.agent(9);
    let GatewayEvent::PairStarted { pair, client: client_peer, agent: agent_peer, meter } =
        lab.event()
    else {
        panic!("no start")
    };
    assert_eq!(pair, pair_id(9));
    assert_eq!(
        (client_peer, agent_peer),
        (client.local_addr().unwrap(), agent.local_addr().unwrap())
    );
    read_exactly(&mut agent, hello.len());
    lab.eventually("the meter shows the hello", |_| {
        meter.figures().client_to_agent == hello.len() as u64
    });
    drop((client, agent));
    let outcome = lab.expect_end_either();
    assert_eq!(outcome.client_to_agent, hello.len() as u64);
    let metrics = lab.gateway.metrics();
    assert_eq!((metrics.pairs_started, metrics.pairs_active, metrics.pairs_ended.len()), (1, 0, 1));
}

/// Sends `total` bytes of `seed`'s noise in pieces of random size.
fn send_noise(mut stream: &TcpStream, seed: u64, total: usize) {
    let (mut noise, mut dice) = (Noise::new(seed), Noise::new(seed + 1000));
    let bytes = noise.bytes(total);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let bound = [10, 1000, 20_000, 300_000][usize::try_from(dice.number() % 4).unwrap()];
        let size = usize::try_from(dice.number() % bound).unwrap().clamp(1, rest.len());
        stream.write_all(&rest[..size]).unwrap();
        rest = &rest[size..];
    }
}

fn bytes_arrive_exactly_in_both_directions(io: IoChoice) {
    const TOTAL: usize = 12 << 20;
    let Some(lab) = lab(io) else { return };
    let (client, agent) = lab.pair(1);
    std::thread::scope(|scope| {
        for (stream, seed) in [(&client, 1), (&agent, 2)] {
            scope.spawn(move || {
                send_noise(stream, seed, TOTAL);
                stream.shutdown(Shutdown::Write).unwrap();
            });
        }
        for (stream, seed) in [(&client, 2), (&agent, 1)] {
            scope.spawn(move || {
                let got = read_all(&mut stream.try_clone().unwrap());
                assert_eq!(got.len(), TOTAL);
                assert!(got == Noise::new(seed).bytes(TOTAL), "damaged");
            });
        }
    });
    let outcome = lab.until_ended();
    assert_eq!(outcome.phase, Phase::Finished);
    assert_eq!(outcome.agent_to_client, TOTAL as u64);
    let metrics = lab.gateway.metrics();
    assert_eq!(metrics.client_to_agent + metrics.agent_to_client, metrics.spliced + metrics.copied);
    assert!(
        metrics.spliced > 0 && metrics.copied > 0,
        "both ways of moving were used: {metrics:?}"
    );
    assert_eq!(metrics.pipes_in_use, 0);
}

fn bytes_behind_both_hellos_are_delivered(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut client, hello) = lab.client(1);
    client.write_all(b"early client").unwrap();
    let mut agent = lab.dial();
    let mut bytes = switchback_engine::hello::encode("a-1-20000.t", [3; 96]);
    bytes.extend_from_slice(b"early agent");
    agent.write_all(&bytes).unwrap();
    assert_eq!(read_exactly(&mut client, 11), b"early agent");
    assert_eq!(read_exactly(&mut agent, hello.len() + 12), [&hello[..], b"early client"].concat());
}

fn half_close(io: IoChoice, first_is_client: bool) {
    let Some(lab) = lab(io) else { return };
    let (client, agent) = lab.pair(1);
    let (mut first, mut second) = if first_is_client { (client, agent) } else { (agent, client) };
    let tail = Noise::new(5).bytes(3 << 20);
    let writer = {
        let (mut first, tail) = (first.try_clone().unwrap(), tail.clone());
        std::thread::spawn(move || {
            first.write_all(&tail).unwrap();
            first.shutdown(Shutdown::Write).unwrap();
        })
    };
    assert!(read_all(&mut second) == tail, "the tail arrives before FIN");
    writer.join().unwrap();
    // The other direction is open still, in both ways of moving.
    second.write_all(b"answer").unwrap();
    assert_eq!(read_exactly(&mut first, 6), b"answer");
    let answer = Noise::new(6).bytes(1 << 20);
    let reader = std::thread::spawn(move || (read_all(&mut first), first));
    second.write_all(&answer).unwrap();
    second.shutdown(Shutdown::Write).unwrap();
    let (got, _first) = reader.join().unwrap();
    assert!(got == answer);
    let cause = if first_is_client { Cause::ClientFinished } else { Cause::AgentFinished };
    lab.expect_end(cause, Phase::Finished);
}

fn client_fin_first_delivers_both_tails(io: IoChoice) {
    half_close(io, true);
}

fn agent_fin_first_delivers_both_tails(io: IoChoice) {
    half_close(io, false);
}

fn client_reset_resets_the_agent(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (client, mut agent) = lab.pair(1);
    reset(client);
    expect_reset(&mut agent);
    lab.expect_end(Cause::ClientReset, Phase::Relaying);
}

fn agent_reset_resets_the_client(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut client, agent) = lab.pair(1);
    reset(agent);
    expect_reset(&mut client);
    lab.expect_end(Cause::AgentReset, Phase::Relaying);
}

fn client_reset_after_its_fin_resets_the_agent(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (client, mut agent) = lab.pair(1);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut agent), b"");
    reset(client);
    lab.expect_end(Cause::ClientReset, Phase::HalfClosed);
    // The agent's receiving side has ended already; the RST shows when it sends.
    expect_broken_pipe(&mut agent);
}

fn agent_reset_after_its_fin_resets_the_client(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut client, agent) = lab.pair(1);
    agent.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), b"");
    reset(agent);
    lab.expect_end(Cause::AgentReset, Phase::HalfClosed);
    expect_broken_pipe(&mut client);
}

fn client_reset_after_the_agents_fin_resets_the_agent(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut client, mut agent) = lab.pair(1);
    agent.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), b"");
    reset(client);
    lab.expect_end(Cause::ClientReset, Phase::HalfClosed);
    expect_reset(&mut agent);
}

fn expect_broken_pipe(stream: &mut TcpStream) {
    let give_up = Instant::now() + support::PATIENCE;
    while stream.write_all(b"x").is_ok() {
        assert!(Instant::now() < give_up, "still writable");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn slow_reader_stops_its_sender_and_nobody_else(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (client, agent) = lab.pair(1);
    client.set_nonblocking(true).unwrap();
    let piece = vec![1; 1 << 20];
    let (mut accepted, mut blocked_since) = (0u64, Instant::now());
    while blocked_since.elapsed() < Duration::from_millis(500) {
        match (&client).write(&piece) {
            Ok(bytes) => (accepted, blocked_since) = (accepted + bytes as u64, Instant::now()),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // Four socket buffers (up to 32 MiB receive and 4 MiB send each by sysctl) and one pipe, never all of it.
        assert!(accepted < 200 << 20, "no backpressure");
    }
    // The other direction is not held up, and what was accepted is delivered once the reader wakes.
    (&agent).write_all(b"still here").unwrap();
    client.set_nonblocking(false).unwrap();
    assert_eq!(read_exactly(&mut client.try_clone().unwrap(), 10), b"still here");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut agent.try_clone().unwrap()).len() as u64, accepted);
    let metrics = lab.gateway.metrics();
    assert_eq!(metrics.pipes_in_use, 0);
}

fn killed_pair_is_reset_at_both_ends(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (mut client, mut agent) = lab.pair(1);
    lab.gateway.end_pair(pair_id(1), Cause::Killed);
    expect_reset(&mut client);
    expect_reset(&mut agent);
    lab.expect_end(Cause::Killed, Phase::Relaying);
    lab.gateway.end_pair(pair_id(1), Cause::Killed);
    lab.gateway.end_pair(pair_id(77), Cause::Killed);
    lab.pair(2);
}

fn killed_waiting_leg_leaves(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let mut agent = lab.agent(1);
    assert!(matches!(lab.event(), GatewayEvent::LegWaiting { .. }));
    lab.gateway.end_pair(pair_id(1), Cause::Killed);
    support::expect_alert(&mut agent, switchback_engine::Refusal::LegUnpaired);
    assert!(matches!(lab.event(), GatewayEvent::LegGone { side: LegSide::Agent, .. }));
}

fn interactive_bytes_pass_beside_bulk(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let bulk: Vec<_> = (0..6).map(|n| lab.pair(n)).collect();
    let (mut client, mut agent) = lab.pair(100);
    let enough = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (client, agent) in &bulk {
            let enough = &enough;
            scope.spawn(move || {
                let piece = vec![9; 256 << 10];
                let mut client = client;
                while !enough.load(std::sync::atomic::Ordering::Relaxed) {
                    client.write_all(&piece).unwrap();
                }
                client.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || std::io::copy(&mut &*agent, &mut std::io::sink()).unwrap());
        }
        for round in 0..300u32 {
            client.write_all(&round.to_le_bytes()).unwrap();
            assert_eq!(read_exactly(&mut agent, 4), round.to_le_bytes());
            agent.write_all(&round.to_be_bytes()).unwrap();
            assert_eq!(read_exactly(&mut client, 4), round.to_be_bytes());
        }
        enough.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A pair that has started, and its meter.
fn metered_pair(lab: &Lab, number: u32) -> (TcpStream, TcpStream, Arc<PairMeter>) {
    let (client, hello) = lab.client(number);
    let mut agent = lab.agent(number);
    read_exactly(&mut agent, hello.len());
    loop {
        if let GatewayEvent::PairStarted { meter, .. } = lab.event() {
            return (client, agent, meter);
        }
    }
}

fn round_trips_are_measured(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (_client, _agent, meter) = metered_pair(&lab, 1);
    lab.eventually("both legs have figures", |_| {
        let figures = meter.figures();
        [figures.client, figures.agent]
            .iter()
            .all(|leg| leg.is_some_and(|leg| leg.rtt.smoothed_us > 0))
    });
    lab.eventually("the second sample came", |gateway| gateway.metrics().client_rtt_us.len() >= 2);
    let rtt = meter.figures().agent.unwrap().rtt;
    assert!(rtt.min_us <= rtt.smoothed_us && rtt.p50_us <= rtt.p99_us, "{rtt:?}");
    let metrics = lab.gateway.metrics();
    assert!(metrics.samples >= 4 && metrics.sampling_time > Duration::ZERO, "{metrics:?}");
}

fn idle_pair_is_no_longer_sampled_and_called_idle(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let (_client, _agent, meter) = metered_pair(&lab, 1);
    lab.eventually("it is idle", |_| meter.figures().who_is_slow().slow == Slow::Idle);
    let samples = lab.gateway.metrics().samples;
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(lab.gateway.metrics().samples, samples);
}

fn agent_that_does_not_read_is_named(io: IoChoice) {
    reader_that_does_not_read(io, LegSide::Agent);
}

fn client_that_does_not_read_is_named(io: IoChoice) {
    reader_that_does_not_read(io, LegSide::Client);
}

fn reader_that_does_not_read(io: IoChoice, reader: LegSide) {
    let Some(lab) = lab(io) else { return };
    let (client, agent, meter) = metered_pair(&lab, 1);
    let (writer, sleeper) =
        if reader == LegSide::Agent { (&client, &agent) } else { (&agent, &client) };
    writer.set_nonblocking(true).unwrap();
    let piece = vec![1; 1 << 20];
    lab.eventually("the reader is found out", |_| {
        while (&*writer).write(&piece).is_ok() {}
        meter.figures().who_is_slow().slow == Slow::Receiver(reader)
    });
    let figures = meter.figures();
    let [client, agent] = [figures.client, figures.agent].map(|leg| leg.unwrap());
    let (full, other) = if reader == LegSide::Agent { (agent, client) } else { (client, agent) };
    let sending = full.sending.unwrap();
    assert!(sending.busy_share * sending.rwnd_limited_share >= 0.25, "{full:?}");
    assert!(other.sending.unwrap().busy_share < 0.25, "{other:?}");
    // It stays so although not one byte moves, and ends when the reader reads.
    std::thread::sleep(Duration::from_millis(1500));
    let stalled = meter.figures();
    assert_eq!(stalled.who_is_slow().slow, Slow::Receiver(reader), "{stalled:?}");
    writer.shutdown(Shutdown::Write).unwrap();
    read_all(&mut sleeper.try_clone().unwrap());
    lab.eventually("nobody is to blame", |_| {
        matches!(meter.figures().who_is_slow().slow, Slow::Idle | Slow::Sender)
    });
}

/// What it costs: `SAMPLING_PAIRS=2000 cargo test --release -p switchback-engine --test relay -- --nocapture sampling_many`.
fn sampling_many_busy_pairs_stays_within_its_share(io: IoChoice) {
    let Some(lab) = lab(io) else { return };
    let count = std::env::var("SAMPLING_PAIRS").map_or(100, |count| count.parse().unwrap());
    let mut pairs: Vec<_> = (0..count).map(|number| lab.pair(number)).collect();
    let (start, before) = (Instant::now(), lab.gateway.metrics());
    let time = if count > 100 { Duration::from_secs(15) } else { Duration::from_secs(2) };
    while start.elapsed() < time {
        let round = Instant::now();
        for (client, agent) in &mut pairs {
            client.write_all(b"x").unwrap();
            read_exactly(agent, 1);
        }
        std::thread::sleep(Duration::from_millis(500).saturating_sub(round.elapsed()));
    }
    let (after, elapsed) = (lab.gateway.metrics(), start.elapsed());
    let samples = after.samples - before.samples;
    let spent = after.sampling_time - before.sampling_time;
    let share = spent.as_secs_f64() / elapsed.as_secs_f64();
    println!(
        "{io:?}: {count} pairs, {samples} legs sampled in {elapsed:.1?}, {:.0} ns each, {:.3} % of a core",
        spent.as_nanos() as f64 / samples as f64,
        share * 100.0
    );
    assert!(samples >= u64::from(count) * 2, "every leg was sampled: {samples}");
    assert!(share < 0.01, "{share}");
}

fn five_hundred_pairs_at_once(io: IoChoice) {
    const PAIRS: u32 = 500;
    let Some(lab) = lab(io) else { return };
    let mut pairs: Vec<_> = (0..PAIRS)
        .map(|n| {
            if n % 2 == 0 {
                (lab.agent(n), lab.client(n).0)
            } else {
                (lab.client(n).0, lab.agent(n))
            }
        })
        .collect();
    lab.eventually("all are paired", |gateway| gateway.metrics().pairs_active == PAIRS as usize);
    for (n, (one, other)) in pairs.iter_mut().enumerate() {
        let (client, agent) = if n % 2 == 0 { (other, one) } else { (one, other) };
        let message = u32::try_from(n).unwrap().to_le_bytes();
        agent.write_all(&message).unwrap();
        assert_eq!(read_exactly(client, 4), message);
    }
    drop(pairs);
    lab.eventually("all have ended", |gateway| gateway.metrics().pairs_active == 0);
    let ended: u64 = lab.gateway.metrics().pairs_ended.iter().map(|(_, _, count)| count).sum();
    assert_eq!(ended, u64::from(PAIRS));
}

impl Lab {
    /// The end of a pair whose legs were both dropped: FIN or RST, as the timing has it.
    fn expect_end_either(&self) -> switchback_engine::Outcome {
        let outcome = self.until_ended();
        assert!(
            !matches!(outcome.cause, Cause::Internal | Cause::Killed | Cause::Shutdown),
            "{outcome:?}"
        );
        outcome
    }
}

fn busy_polling_follows_bytes_and_ends_with_them(io: IoChoice) {
    let spin = Duration::from_millis(5);
    let config = EngineConfig { io, busy_poll: Some(spin), ..EngineConfig::default() };
    let Some(lab) = Lab::start_with(config) else {
        return;
    };
    let spun = || lab.gateway.metrics().busy_poll_time;
    assert_eq!(spun(), Duration::ZERO, "nothing has moved");
    let (mut client, mut agent) = lab.pair(1);
    for _ in 0..50 {
        client.write_all(b"ping").unwrap();
        assert_eq!(read_exactly(&mut agent, 4), b"ping");
        agent.write_all(b"pong").unwrap();
        assert_eq!(read_exactly(&mut client, 4), b"pong");
    }
    assert!(lab.gateway.metrics().busy_polls > 0);
    let mut before = Duration::MAX;
    // A spin is counted when it ends, so a reading must stand for several of them.
    lab.eventually("the worker sleeps", |_| {
        std::thread::sleep(10 * spin);
        std::mem::replace(&mut before, spun()) == spun()
    });
    // Rest is for good: samples are still taken, but nothing moves any more.
    let rested = spun();
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(spun(), rested);
    client.write_all(b"ping").unwrap();
    assert_eq!(read_exactly(&mut agent, 4), b"ping");
}
