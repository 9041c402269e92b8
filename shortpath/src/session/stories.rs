//! Random stories: whatever happens to the legs, every byte arrives once and in order; whatever frames come, no panic.
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::frame::{Frame, Hello, Mark, OFFSET_MAX, Received};
use super::pair::{AGENT, CLIENT, Pair, ms};
use super::tests::{hello, id};
use super::{LegKind, SessionConfig};

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
        assert_eq!(end.session.figures(pair.now).channels, 0, "a channel is never forgotten");
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
        let mut session = super::tests::agent();
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
        (channel(), offset(), offset(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(channel, received, limit, fin_seen, reset_seen, opens)| Received {
                opens,
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
        (channel(), offset(), any::<bool>()).prop_map(|(channel, limit, datagrams)| Frame::Open {
            channel,
            limit,
            datagrams
        }),
        (channel(), offset(), bytes.clone(), mark()).prop_map(|(channel, offset, bytes, mark)| {
            Frame::Data { channel, offset, bytes, mark }
        }),
        (channel(), bytes, any::<bool>()).prop_map(|(channel, bytes, loose)| Frame::Datagram {
            channel,
            bytes,
            loose
        }),
        (0..500_u64, 0..3_u64).prop_map(|(bytes, won)| Frame::Seen { bytes, won }),
        (channel(), offset()).prop_map(|(channel, offset)| Frame::Fin { channel, offset }),
        (channel(), any::<u16>()).prop_map(|(channel, code)| Frame::Reset { channel, code }),
        received().prop_map(Frame::Ack),
        any::<u64>().prop_map(Frame::Ping),
        any::<u64>().prop_map(Frame::Pong),
        (any::<u16>(), 0..1_000_u64).prop_map(|(code, after)| Frame::Close { code, after }),
    ]
}

fn mark() -> impl Strategy<Value = Mark> {
    prop_oneof![Just(Mark::Original), Just(Mark::Copy), Just(Mark::Loose)]
}

fn encode(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    if let Some(payload) = frame.encode_head(&mut bytes) {
        bytes.extend_from_slice(payload);
    }
    bytes
}
