//! What the other end of a session sends: frames one by one, and a whole session that is fed them.
#![no_main]
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use switchback_shortpath::session::frame::Frame;
use switchback_shortpath::session::{Event, ReadOutcome, Session};
use switchback_shortpath::{LegKind, Role, SessionConfig};

fuzz_target!(|bytes: &[u8]| {
    let start = Instant::now();
    let mut session = Session::new(start, Role::Agent, "fuzz", NonZeroU64::MIN, SessionConfig::default());
    let leg = session.attach(start, LegKind::TcpReverse);
    let mut unread = BytesMut::from(bytes);
    for step in 0u32.. {
        let now = start + Duration::from_millis(u64::from(step));
        match Frame::decode(&mut unread) {
            Ok(Some(frame)) => {
                let mut again = BytesMut::new();
                if let Some(payload) = frame.encode_head(&mut again).cloned() {
                    again.extend_from_slice(&payload);
                }
                assert_eq!(again.len(), frame.wire_len());
                assert_eq!(Frame::decode(&mut again).ok().flatten().as_ref(), Some(&frame));
                session.handle_frame(now, leg, frame);
            }
            Ok(None) => break,
            Err(error) => {
                session.handle_garbage(error);
                break;
            }
        }
        session.handle_timeout(now);
        let mut out = Vec::new();
        session.poll_transmit(now, leg, 64 * 1024, &mut out);
        while let Some(event) = session.poll_event() {
            if let Event::Incoming(channel) = event {
                while let Ok(ReadOutcome::Bytes(_)) = session.read(channel) {}
            }
        }
    }
});
