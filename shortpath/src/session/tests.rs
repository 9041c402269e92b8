//! Promises of the session, kept in virtual time.
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::frame::{Frame, FrameError, Hello, Mark, PAYLOAD_TAKEN, Received, VERSION};
use super::pair::{AGENT, CLIENT, Pair, ms};
use super::{
    CLOSE_PROTOCOL, CLOSE_RESTARTED, ChannelError, ChannelId, CloseReason, LegKind, OpenError,
    RESET_LIMIT, ReadOutcome, Role, Session, SessionConfig,
};

fn pair() -> Pair {
    Pair::new(&SessionConfig::default())
}

pub(super) fn id(id: u32) -> ChannelId {
    ChannelId::new(id).unwrap()
}

pub(super) fn hello() -> Hello {
    let session = Bytes::from_static(b"session");
    Hello {
        version: VERSION,
        instance: 7,
        expects: 0,
        session,
        sole: true,
        opened: 1,
        seen: 2,
        channels: vec![],
    }
}

fn open(channel: u32) -> Frame {
    Frame::Open { channel: id(channel), limit: 0, datagrams: false }
}

pub(super) fn agent() -> Session {
    let instance = std::num::NonZeroU64::new(2).unwrap();
    let now = std::time::Instant::now();
    Session::new(now, Role::Agent, "session", instance, SessionConfig::default())
}

#[test]
fn an_end_that_was_started_anew_ends_the_session_for_both_before_it_opens_a_channel() {
    let now = std::time::Instant::now();
    // Ours is the new one: the client met another instance before.
    let mut fresh = agent();
    let leg = fresh.attach(now, LegKind::TcpReverse);
    fresh.handle_frame(now, leg, Frame::Hello(Hello { expects: 99, opened: 9, ..hello() }));
    assert_eq!(fresh.poll_event(), Some(super::Event::Closed(CloseReason::Restarted)));
    // The peer is the new one.
    let mut old = agent();
    for instance in [7, 8] {
        let leg = old.attach(now, LegKind::TcpReverse);
        old.handle_frame(now, leg, Frame::Hello(Hello { instance, ..hello() }));
    }
    let events: Vec<_> = std::iter::from_fn(|| old.poll_event()).collect();
    assert_eq!(events.last(), Some(&super::Event::Closed(CloseReason::Restarted)));
}

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
    pair.run(ms(250));
    assert!(pair.ends[CLIENT].suspects.is_empty());
    // Nothing else carries the session: it does not wait for `suspect_after`.
    pair.run(ms(150));
    assert_eq!(pair.ends[CLIENT].suspects.len(), 1);
    pair.run(ms(6_500));
    assert_eq!(pair.ends[CLIENT].suspects.len(), 1);
    assert!(pair.leg(old, CLIENT).is_some(), "suspicion alone drops no leg");
    pair.link(ms(10));
    pair.run(ms(100));
    pair.read(AGENT, channel);
    assert_eq!(pair.ends[AGENT].streams[&channel].read, 1_000);
    assert_eq!(pair.ends[CLIENT].downs, 0);
    let (_, _, stall) = *pair.ends[CLIENT].moves.last().unwrap();
    assert!((ms(6_900)..ms(7_000)).contains(&stall), "{stall:?} is what the bytes waited");
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
fn close_of_an_idle_session_reaches_the_peer_in_one_trip() {
    let mut pair = pair();
    pair.link(ms(10));
    pair.run(ms(100));
    let now = pair.now;
    pair.ends[CLIENT].session.close(now, 9);
    pair.settle();
    assert_eq!(pair.ends[CLIENT].closed, Some(CloseReason::ByUs(9)));
    pair.run(ms(11));
    assert_eq!(pair.ends[AGENT].closed, Some(CloseReason::ByPeer(9)));
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
    assert!(pair.ends.iter().all(|end| end.session.figures(pair.now).channels == 0));
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
fn channels_beyond_what_an_end_holds_are_reset_one_by_one_and_the_session_goes_on() {
    // The agent's application lets go of none of those that its peer aborted.
    let config = SessionConfig { channels_max: 3, ..SessionConfig::default() };
    let mut pair = Pair::new(&config);
    pair.link(ms(1));
    let kept: Vec<_> = (0..6)
        .map(|_| {
            let channel = pair.open(CLIENT).unwrap();
            pair.release(CLIENT, channel);
            pair.run(ms(20));
            channel
        })
        .collect();
    for _ in 0..20 {
        let surplus = pair.open(CLIENT).unwrap();
        pair.write(CLIENT, surplus, 100);
        pair.run(ms(20));
        pair.read(CLIENT, surplus);
        let error = pair.ends[CLIENT].streams[&surplus].error;
        assert_eq!(error, Some(ChannelError::Reset(RESET_LIMIT)));
        assert!(!pair.ends[AGENT].streams.contains_key(&surplus));
        pair.release(CLIENT, surplus);
        pair.run(ms(20));
    }
    assert_eq!(pair.ends[AGENT].session.figures(pair.now).channels, 6);
    pair.release(AGENT, kept[0]);
    let again = pair.open(CLIENT).unwrap();
    pair.write(CLIENT, again, 100);
    pair.run(ms(20));
    pair.read(AGENT, again);
    assert_eq!(pair.ends[AGENT].streams[&again].read, 100);
}

#[test]
fn a_peer_that_opens_without_end_loses_the_session() {
    let now = std::time::Instant::now();
    let mut session = agent();
    let leg = session.attach(now, LegKind::TcpReverse);
    session.handle_frame(now, leg, Frame::Hello(hello()));
    let most = SessionConfig::default().channels_max as u32 * 4;
    session.handle_frame(now, leg, open(2 * most - 1));
    assert!(!session.is_closed());
    let mut frames = Vec::new();
    session.poll_transmit(now, leg, usize::MAX, &mut frames);
    // All of them fit the one frame that tells them all.
    assert!(frames.iter().all(|frame| frame.wire_len() < 64 * 1024));
    session.handle_frame(now, leg, open(2 * most + 1));
    assert!(session.is_closed());
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
fn a_close_may_be_the_first_word_of_a_leg() {
    let now = std::time::Instant::now();
    let mut session = agent();
    let leg = session.attach(now, LegKind::TcpReverse);
    session.handle_frame(now, leg, Frame::Close { code: CLOSE_RESTARTED, after: 0 });
    let events: Vec<_> = std::iter::from_fn(|| session.poll_event()).collect();
    let closed = CloseReason::ByPeer(CLOSE_RESTARTED);
    assert!(matches!(events.last(), Some(super::Event::Closed(reason)) if *reason == closed));
}

#[test]
fn broken_rules_close_the_session_with_a_code() {
    let ack = |received, fin_seen| {
        Frame::Ack(Received {
            channel: id(2),
            received,
            limit: 0,
            fin_seen,
            reset_seen: false,
            opens: false,
        })
    };
    let data = |channel, offset| Frame::Data {
        channel: id(channel),
        offset,
        bytes: Bytes::from_static(b"x"),
        mark: Mark::Original,
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
        let mut session = agent();
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
        assert_eq!(out, [Frame::Close { code: CLOSE_PROTOCOL, after: 0 }]);
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
    let long = (8 + PAYLOAD_TAKEN + 1) as u16;
    let mut data = BytesMut::from(&[3, 0, (long >> 8) as u8, long as u8, 0, 0, 0, 1][..]);
    assert_eq!(Frame::decode(&mut data), Err(FrameError::Length(3, long)));
    // Senders of this version once filled 16 KiB.
    let full = long - 1;
    let mut data = BytesMut::from(&[3, 0, (full >> 8) as u8, full as u8, 0, 0, 0, 1][..]);
    assert_eq!(Frame::decode(&mut data), Ok(None), "its body is waited for");
    let mut unknown = BytesMut::from(&[99, 0, 0, 0, 0, 0, 0, 0][..]);
    assert_eq!(Frame::decode(&mut unknown), Err(FrameError::Type(99)));
}

#[test]
fn a_sole_leg_is_to_be_replaced_once_it_is_silent_for_longer_than_tcp_takes_to_repeat_a_packet() {
    for (delay, least) in [(ms(10), ms(300)), (ms(50), ms(400))] {
        let mut pair = Pair::new(&SessionConfig::default());
        let link = pair.link(delay);
        pair.run(ms(500));
        let channel = pair.open(CLIENT).unwrap();
        pair.write(CLIENT, channel, 64);
        pair.run(ms(1000));
        [CLIENT, AGENT].into_iter().for_each(|end| pair.blackhole(link, end));
        pair.write(CLIENT, channel, 64);
        let since = pair.now;
        while pair.ends[CLIENT].suspects.is_empty() && pair.now < since + ms(2000) {
            pair.run(ms(5));
        }
        let took = pair.now - since;
        assert!((least..least + ms(80)).contains(&took), "{took:?} at {delay:?}");
    }
}
