//! Promises of the session, kept in virtual time.
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::frame::{Frame, FrameError, Hello, OFFSET_MAX, PAYLOAD_MAX, Received, VERSION};
use super::pair::{AGENT, CLIENT, Pair, ms};
use super::{
    CLOSE_PROTOCOL, ChannelError, ChannelId, CloseReason, LegKind, OpenError, ReadOutcome, Role,
    Session, SessionConfig,
};

fn pair() -> Pair {
    Pair::new(&SessionConfig::default())
}

fn id(id: u32) -> ChannelId {
    ChannelId::new(id).unwrap()
}

// === random stories ===

#[derive(Clone, Debug)]
enum Op {
    Link { delay: u64, skew: u64 },
    Cut { link: usize, end: usize, both: bool },
    Blackhole { link: usize, end: usize },
    Open { end: usize },
    Write { end: usize, channel: usize, count: u64 },
    Read { end: usize, channel: usize },
    Finish { end: usize, channel: usize },
    Reset { end: usize, channel: usize },
    Release { end: usize, channel: usize },
    Run { time: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let (end, channel) = (0..2_usize, 0..8_usize);
    let at = (end.clone(), channel);
    prop_oneof![
        3 => (0..200_u64, prop_oneof![Just(0), 0..3_000_u64]).prop_map(|(delay, skew)| Op::Link { delay, skew }),
        2 => (0..6_usize, end.clone(), any::<bool>()).prop_map(|(link, end, both)| Op::Cut { link, end, both }),
        1 => (0..6_usize, end.clone()).prop_map(|(link, end)| Op::Blackhole { link, end }),
        2 => end.prop_map(|end| Op::Open { end }),
        8 => (at.clone(), prop_oneof![1..20_u64, 1_000..300_000_u64])
            .prop_map(|((end, channel), count)| Op::Write { end, channel, count }),
        6 => at.clone().prop_map(|(end, channel)| Op::Read { end, channel }),
        2 => at.clone().prop_map(|(end, channel)| Op::Finish { end, channel }),
        1 => at.clone().prop_map(|(end, channel)| Op::Reset { end, channel }),
        1 => at.prop_map(|(end, channel)| Op::Release { end, channel }),
        6 => prop_oneof![0..50_u64, 50..4_000_u64].prop_map(|time| Op::Run { time }),
    ]
}

fn play(pair: &mut Pair, op: &Op) {
    let nth = |pair: &Pair, end: usize, n: usize| {
        let streams = &pair.ends[end].streams;
        streams.keys().nth(n % streams.len().max(1)).copied()
    };
    let recent = |pair: &Pair, n: usize| pair.links.len().checked_sub(1 + n);
    match *op {
        Op::Link { delay, skew } => {
            pair.skewed_link(ms(delay), ms(skew));
        }
        Op::Cut { link, end, both } => {
            if let Some(link) = recent(pair, link) {
                pair.cut(link, end);
                if both {
                    pair.cut(link, 1 - end);
                }
            }
        }
        Op::Blackhole { link, end } => {
            if let Some(link) = recent(pair, link) {
                pair.blackhole(link, end);
            }
        }
        Op::Open { end } => drop(pair.open(end)),
        Op::Run { time } => pair.run(ms(time)),
        Op::Write { end, channel, count } => {
            if let Some(id) = nth(pair, end, channel) {
                pair.write(end, id, count);
            }
        }
        Op::Read { end, channel } => {
            if let Some(id) = nth(pair, end, channel) {
                pair.read(end, id);
            }
        }
        Op::Finish { end, channel } => {
            if let Some(id) = nth(pair, end, channel) {
                pair.finish(end, id);
            }
        }
        Op::Reset { end, channel } => {
            if let Some(id) = nth(pair, end, channel) {
                pair.reset(end, id, 7);
            }
        }
        Op::Release { end, channel } => {
            if let Some(id) = nth(pair, end, channel) {
                pair.release(end, id);
            }
        }
    }
}

/// A last leg comes and stays: every stream must reach its end, and both ends must forget every channel.
fn finish_all(pair: &mut Pair) {
    pair.link(ms(20));
    for end in [CLIENT, AGENT] {
        let ids: Vec<_> = pair.ends[end].streams.keys().copied().collect();
        ids.into_iter().for_each(|id| pair.finish(end, id));
    }
    for _ in 0..600 {
        pair.run(ms(100));
        // Channels the peer opened while no leg was there arrive only now.
        for end in [CLIENT, AGENT] {
            let ids: Vec<_> = pair.ends[end].streams.keys().copied().collect();
            for id in ids {
                if !pair.ends[end].streams[&id].finished {
                    pair.finish(end, id);
                }
            }
        }
        pair.read_all();
    }
    for end in [CLIENT, AGENT] {
        assert_eq!(pair.ends[end].closed, None);
        for (id, stream) in &pair.ends[end].streams {
            assert!(
                stream.ended || stream.released || stream.error.is_some(),
                "{id:?} hangs: {stream:?}"
            );
        }
        let ids: Vec<_> = pair.ends[end].streams.keys().copied().collect();
        ids.into_iter().for_each(|id| pair.release(end, id));
    }
    pair.run(Duration::from_secs(40));
    for end in &pair.ends {
        assert_eq!(end.session.figures().channels, 0, "a channel is never forgotten");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_and_in_order_whatever_legs_come_and_go(ops in prop::collection::vec(op(), 1..120)) {
        let config = SessionConfig {
            // No story here is about losing the session.
            resume_window: Duration::from_secs(1_000_000),
            ..SessionConfig::default()
        };
        let mut pair = Pair::new(&config);
        ops.iter().for_each(|op| play(&mut pair, op));
        finish_all(&mut pair);
    }

    #[test]
    fn tight_limits_only_slow_a_session_down(ops in prop::collection::vec(op(), 1..80)) {
        let config = SessionConfig {
            resume_window: Duration::from_secs(1_000_000),
            replay_bytes_max: 40_000,
            receive_bytes_max: 300_000,
            ..SessionConfig::default()
        };
        let mut pair = Pair::new(&config);
        ops.iter().for_each(|op| play(&mut pair, op));
        finish_all(&mut pair);
    }

    #[test]
    fn a_session_fed_any_frames_never_panics(frames in prop::collection::vec(frame(), 1..60)) {
        let now = std::time::Instant::now();
        let mut session = Session::new(now, Role::Agent, "session", SessionConfig::default());
        let leg = session.attach(now, LegKind::TcpReverse);
        session.handle_frame(now, leg, Frame::Hello(hello()));
        let mut out = Vec::new();
        for frame in frames {
            session.handle_frame(now, leg, frame);
            while session.poll_event().is_some() {}
            session.poll_transmit(now, leg, 10_000, &mut out);
            session.poll_timeout();
            session.check_bounds();
        }
    }

    #[test]
    fn frames_survive_the_wire(frame in frame()) {
        let bytes = encode(&frame);
        prop_assert_eq!(bytes.len(), frame.wire_len());
        let mut whole = bytes.clone();
        prop_assert_eq!(Frame::decode(&mut whole), Ok(Some(frame)));
        prop_assert!(whole.is_empty());
        for cut in (0..bytes.len()).take(64).chain(bytes.len().saturating_sub(64)..bytes.len()) {
            let mut part = BytesMut::from(&bytes[..cut]);
            prop_assert_eq!(Frame::decode(&mut part), Ok(None));
            prop_assert_eq!(part.len(), cut);
        }
    }

    #[test]
    fn random_bytes_are_refused_or_read_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000), kind in 0..12_u8) {
        let mut buffer = BytesMut::from(&bytes[..]);
        if let Some(first) = buffer.first_mut() {
            *first = kind;
        }
        while let Ok(Some(_)) = Frame::decode(&mut buffer) {}
    }
}

fn frame() -> impl Strategy<Value = Frame> {
    let channel = || prop_oneof![(1..12_u32), any::<u32>().prop_map(|id| id.max(1))].prop_map(id);
    let offset = || prop_oneof![0..70_000_u64, 0..OFFSET_MAX];
    let received = move || {
        (channel(), offset(), offset(), any::<bool>(), any::<bool>()).prop_map(
            |(channel, received, limit, fin_seen, reset_seen)| Received {
                channel,
                received,
                limit,
                fin_seen,
                reset_seen,
            },
        )
    };
    let bytes = prop::collection::vec(any::<u8>(), 1..3_000).prop_map(Bytes::from);
    prop_oneof![
        (any::<bool>(), any::<u32>(), any::<u32>(), prop::collection::vec(received(), 0..20))
            .prop_map(|(sole, opened, seen, channels)| Frame::Hello(Hello {
                sole,
                opened,
                seen,
                channels,
                ..hello()
            })),
        (channel(), offset()).prop_map(|(channel, limit)| Frame::Open { channel, limit }),
        (channel(), offset(), bytes).prop_map(|(channel, offset, bytes)| Frame::Data {
            channel,
            offset,
            bytes
        }),
        (channel(), offset()).prop_map(|(channel, offset)| Frame::Fin { channel, offset }),
        (channel(), any::<u16>()).prop_map(|(channel, code)| Frame::Reset { channel, code }),
        received().prop_map(Frame::Ack),
        any::<u64>().prop_map(Frame::Ping),
        any::<u64>().prop_map(Frame::Pong),
        any::<u16>().prop_map(|code| Frame::Close { code }),
    ]
}

fn hello() -> Hello {
    let session = Bytes::from_static(b"session");
    Hello { version: VERSION, session, sole: true, opened: 1, seen: 2, channels: vec![] }
}

fn encode(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    if let Some(payload) = frame.encode_head(&mut bytes) {
        bytes.extend_from_slice(payload);
    }
    bytes
}

// === single promises ===

#[test]
fn the_first_bytes_travel_with_the_hello() {
    let mut pair = pair();
    let channel = pair.open(CLIENT).unwrap();
    pair.write(CLIENT, channel, 5);
    pair.link(ms(50));
    pair.run(ms(50));
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, 5);
}

#[test]
fn a_resumed_session_sends_only_what_is_missing() {
    let mut pair = pair();
    let link = pair.link(ms(10));
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(100));
    for _ in 0..50 {
        pair.write(CLIENT, channel, 20_000);
        pair.run(ms(25));
        pair.read(AGENT, channel);
    }
    let before = pair.carried;
    pair.write(CLIENT, channel, 20_000);
    pair.cut(link, CLIENT);
    pair.cut(link, AGENT);
    pair.run(ms(1_000));
    pair.link(ms(10));
    pair.run(ms(1_000));
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, 51 * 20_000);
    assert_eq!(pair.carried - before, 40_000);
    assert_eq!((pair.ends[CLIENT].downs, pair.ends[CLIENT].resumes), (1, 2));
}

#[test]
fn a_silent_leg_is_suspected_once_kept_and_replaced_without_loss() {
    let mut pair = pair();
    let old = pair.link(ms(10));
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(500));
    pair.blackhole(old, CLIENT);
    pair.blackhole(old, AGENT);
    pair.write(CLIENT, channel, 1_000);
    pair.run(ms(1_900));
    assert!(pair.ends[CLIENT].suspects.is_empty());
    pair.run(ms(5_000));
    assert_eq!(pair.ends[CLIENT].suspects.len(), 1);
    assert!(pair.leg(old, CLIENT).is_some(), "suspicion alone drops no leg");
    pair.link(ms(10));
    pair.run(ms(100));
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, 1_000);
    assert_eq!(pair.ends[CLIENT].downs, 0);
}

#[test]
fn an_idle_leg_is_never_suspected() {
    let mut pair = pair();
    pair.link(ms(300));
    pair.run(Duration::from_secs(600));
    assert!(pair.ends.iter().all(|end| end.suspects.is_empty() && end.lost.is_empty()));
}

#[test]
fn the_agent_answers_on_the_new_leg_at_once_when_the_client_lost_the_old_one() {
    let mut pair = pair();
    let old = pair.link(ms(10));
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(100));
    pair.blackhole(old, AGENT);
    pair.write(AGENT, channel, 1_000);
    pair.cut(old, CLIENT);
    pair.link(ms(10));
    pair.run(ms(50));
    pair.read(CLIENT, channel);
    assert_eq!(pair.ends[CLIENT].streams[&channel].read, 1_000);
}

#[test]
fn a_session_without_a_leg_is_lost_after_the_resume_window() {
    let mut pair = pair();
    let link = pair.link(ms(10));
    let channel = pair.open(CLIENT).unwrap();
    pair.run(ms(100));
    pair.cut(link, CLIENT);
    pair.run(ms(59_999));
    assert_eq!(pair.ends[CLIENT].closed, None);
    pair.run(ms(1));
    assert_eq!(pair.ends[CLIENT].closed, Some(CloseReason::Lost));
    pair.read(CLIENT, channel);
    assert_eq!(pair.ends[CLIENT].streams[&channel].error, Some(ChannelError::Lost));
}

#[test]
fn close_lets_queued_bytes_out_first() {
    let mut pair = pair();
    pair.link(ms(10));
    let channel = pair.open(CLIENT).unwrap();
    pair.write(CLIENT, channel, 60_000);
    pair.finish(CLIENT, channel);
    let now = pair.now;
    pair.ends[CLIENT].session.close(now, 9);
    pair.settle();
    pair.run(ms(100));
    assert_eq!(pair.ends[CLIENT].closed, Some(CloseReason::ByUs(9)));
    assert_eq!(pair.ends[AGENT].closed, Some(CloseReason::ByPeer(9)));
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, 60_000);
}

#[test]
fn a_stalled_reader_stops_the_writer_at_its_window_and_no_one_else() {
    let mut pair = pair();
    pair.link(ms(1));
    let (stalled, lively) = (pair.open(CLIENT).unwrap(), pair.open(CLIENT).unwrap());
    for _ in 0..200 {
        pair.write(CLIENT, stalled, 50_000);
        pair.write(CLIENT, lively, 50_000);
        pair.run(ms(10));
        pair.read(AGENT, lively);
    }
    assert_eq!(pair.ends[CLIENT].streams[&stalled].written, 256 * 1024);
    assert!(pair.ends[CLIENT].streams[&lively].written > 9_000_000);
}

#[test]
fn an_interactive_write_waits_behind_one_frame_of_bulk() {
    let mut pair = pair();
    let (bulk, keys) = (pair.open(CLIENT).unwrap(), pair.open(CLIENT).unwrap());
    pair.write(CLIENT, bulk, 60_000);
    pair.write(CLIENT, keys, 3);
    let now = pair.now;
    let session = &mut pair.ends[CLIENT].session;
    let leg = session.attach(now, LegKind::TcpReverse);
    let mut frames = Vec::new();
    session.poll_transmit(now, leg, 1 << 20, &mut frames);
    let order: Vec<_> = frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::Data { channel, .. } => Some(*channel),
            _ => None,
        })
        .collect();
    assert_eq!(order, [keys, bulk, bulk, bulk, bulk]);
}

#[test]
fn a_reset_reaches_both_directions_and_is_forgotten() {
    let mut pair = pair();
    pair.link(ms(10));
    let channel = pair.open(CLIENT).unwrap();
    pair.write(CLIENT, channel, 10);
    pair.run(ms(50));
    pair.reset(AGENT, channel, 77);
    pair.run(ms(50));
    pair.read(CLIENT, channel);
    assert_eq!(pair.ends[CLIENT].streams[&channel].error, Some(ChannelError::Reset(77)));
    pair.release(CLIENT, channel);
    pair.release(AGENT, channel);
    pair.run(ms(50));
    assert!(pair.ends.iter().all(|end| end.session.figures().channels == 0));
}

#[test]
fn channels_are_limited_and_one_that_ends_makes_room() {
    let config = SessionConfig { channels_max: 3, ..SessionConfig::default() };
    let mut pair = Pair::new(&config);
    pair.link(ms(1));
    let first = pair.open(CLIENT).unwrap();
    (0..2).for_each(|_| assert!(pair.open(CLIENT).is_some()));
    assert_eq!(pair.ends[CLIENT].session.open(), Err(OpenError::ChannelLimit));
    pair.release(CLIENT, first);
    pair.run(ms(20));
    assert!(pair.open(CLIENT).is_some());
}

#[test]
fn a_hello_of_another_session_costs_the_leg_and_not_the_session() {
    let mut pair = pair();
    let now = pair.now;
    let session = &mut pair.ends[CLIENT].session;
    let leg = session.attach(now, LegKind::TcpReverse);
    let stranger = Hello { session: Bytes::from_static(b"other"), ..hello() };
    session.handle_frame(now, leg, Frame::Hello(stranger));
    pair.settle();
    assert_eq!(pair.ends[CLIENT].lost.len(), 1);
    assert_eq!(pair.ends[CLIENT].closed, None);
}

#[test]
fn broken_rules_close_the_session_with_a_code() {
    let ack = |received, fin_seen| {
        Frame::Ack(Received { channel: id(2), received, limit: 0, fin_seen, reset_seen: false })
    };
    let data = |channel, offset| Frame::Data {
        channel: id(channel),
        offset,
        bytes: Bytes::from_static(b"x"),
    };
    let stories = [
        (vec![Frame::Hello(hello())], "exactly one HELLO"),
        (vec![data(1, 1 << 40)], "window exceeded"),
        (vec![Frame::Fin { channel: id(1), offset: 0 }, data(1, 0)], "final size"),
        (vec![data(2, 0)], "no such channel"),
        (vec![data(1_000_001, 0)], "too many channels"),
        (vec![ack(9, false)], "no such channel"),
    ];
    for (frames, expected) in stories {
        let now = std::time::Instant::now();
        let mut session = Session::new(now, Role::Agent, "session", SessionConfig::default());
        let leg = session.attach(now, LegKind::TcpReverse);
        session.handle_frame(now, leg, Frame::Hello(hello()));
        frames.into_iter().for_each(|frame| session.handle_frame(now, leg, frame));
        let events: Vec<_> = std::iter::from_fn(|| session.poll_event()).collect();
        let Some(super::Event::Closed(CloseReason::Protocol(text))) = events.last() else {
            panic!("{expected}: {events:?}");
        };
        assert!(text.contains(expected), "{text}");
        let mut out = Vec::new();
        session.poll_transmit(now, leg, 1_000, &mut out);
        assert_eq!(out, [Frame::Close { code: CLOSE_PROTOCOL }]);
    }
}

#[test]
fn bytes_that_arrived_before_a_close_are_still_read() {
    let mut pair = pair();
    pair.link(ms(1));
    let channel = pair.open(CLIENT).unwrap();
    pair.write(CLIENT, channel, 4);
    pair.run(ms(10));
    let now = pair.now;
    pair.ends[AGENT].session.close(now, 0);
    pair.settle();
    let session = &mut pair.ends[AGENT].session;
    assert!(matches!(session.read(channel), Ok(ReadOutcome::Bytes(bytes)) if bytes.len() == 4));
    assert_eq!(session.read(channel), Err(ChannelError::Closed));
}

#[test]
fn oversized_and_unknown_frames_are_refused_by_their_header() {
    let long = (8 + PAYLOAD_MAX + 1) as u16;
    let mut data = BytesMut::from(&[3, 0, (long >> 8) as u8, long as u8, 0, 0, 0, 1][..]);
    assert_eq!(Frame::decode(&mut data), Err(FrameError::Length(3, long)));
    let mut unknown = BytesMut::from(&[99, 0, 0, 0, 0, 0, 0, 0][..]);
    assert_eq!(Frame::decode(&mut unknown), Err(FrameError::Type(99)));
}
