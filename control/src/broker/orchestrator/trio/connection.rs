//! What stands for a QUIC connection: frames in order, sent again until they are acknowledged, over whatever loses them.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use switchback_shortpath::PathFigures;

use super::{KEEPALIVE, QUIC_HANDSHAKE, QUIC_IDLE};

/// First byte of its packets: with a frame, with one that need not come, or with none.
const FRAME: u8 = 0xC0;
const LOOSE: u8 = 0xC1;
const ACK: u8 = 0xC2;
const HEAD: usize = 13;

const RTO: Duration = Duration::from_millis(60);
const REPORT: Duration = Duration::from_millis(100);

pub(super) struct Connection {
    pub(super) number: u32,
    sent: u64,
    unacknowledged: VecDeque<(u64, Bytes)>,
    /// The next frame that the application gets.
    expected: u64,
    again_at: Instant,
    tries: u32,
    alive_at: Instant,
    heard: Instant,
    /// The other end has been heard: the handshake is done.
    met: bool,
    /// A frame that shows the round trip, unless it leaves again, and the last that was shown.
    timed: Option<(u64, Instant)>,
    rtt: Option<Duration>,
    packets: u64,
    lost: u64,
    told: u64,
    tell_at: Instant,
}

/// A packet's kind, connection, number and frame.
pub(super) type Packet<'a> = (u8, u32, u64, &'a [u8]);

pub(super) fn read(bytes: &[u8]) -> Option<Packet<'_>> {
    let (head, frame) = bytes.split_first_chunk::<HEAD>()?;
    let &[kind @ FRAME..=ACK, a, b, c, d, ..] = head else { return None };
    let number = u64::from_be_bytes(head[5..].try_into().ok()?);
    Some((kind, u32::from_be_bytes([a, b, c, d]), number, frame))
}

impl Connection {
    pub(super) fn new(now: Instant, number: u32) -> Self {
        let (sent, expected, tries, unacknowledged) = (0, 0, 0, VecDeque::new());
        let (again_at, alive_at, heard) = (now + RTO, now, now);
        Self {
            number,
            sent,
            unacknowledged,
            expected,
            again_at,
            tries,
            alive_at,
            heard,
            met: false,
            timed: None,
            rtt: None,
            packets: 0,
            lost: 0,
            told: 0,
            tell_at: now,
        }
    }

    fn packet(&self, kind: u8, number: u64, frame: &[u8]) -> Vec<u8> {
        [&[kind][..], &self.number.to_be_bytes(), &number.to_be_bytes(), frame].concat()
    }

    pub(super) fn loose(&self, frame: &[u8]) -> Vec<u8> {
        self.packet(LOOSE, 0, frame)
    }

    pub(super) fn send(&mut self, now: Instant, frame: Bytes) -> Vec<u8> {
        if self.unacknowledged.is_empty() {
            self.again_at = now + RTO;
        }
        self.timed.get_or_insert((self.sent, now));
        self.packets += 1;
        let packet = self.packet(FRAME, self.sent, &frame);
        self.unacknowledged.push_back((self.sent, frame));
        self.sent += 1;
        packet
    }

    /// A frame for the session, if one comes with it in its order.
    pub(super) fn receive<'a>(&mut self, now: Instant, packet: Packet<'a>) -> Option<&'a [u8]> {
        let (kind, _, number, frame) = packet;
        (self.heard, self.met) = (now, true);
        match kind {
            LOOSE => return Some(frame),
            ACK => {
                let before = self.unacknowledged.len();
                self.unacknowledged.retain(|(sent, _)| *sent >= number);
                let come = before - self.unacknowledged.len();
                if come > 0 {
                    // What had to leave again was lost before.
                    self.lost += if self.tries > 0 { come as u64 } else { 0 };
                    (self.tries, self.again_at) = (0, now + RTO);
                }
                if let Some((_, at)) = self.timed.take_if(|(timed, _)| *timed < number) {
                    self.rtt = Some(now - at);
                }
            }
            _ => {
                self.alive_at = now;
                if number == self.expected {
                    self.expected += 1;
                    return Some(frame);
                }
            }
        }
        None
    }

    pub(super) fn timeout(&self) -> Instant {
        if self.unacknowledged.is_empty() {
            self.alive_at
        } else {
            self.alive_at.min(self.again_at)
        }
    }

    /// Acknowledgements, keepalives, and what goes again.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        if self.alive_at <= now {
            self.alive_at = now + KEEPALIVE;
            packets.push(self.packet(ACK, self.expected, &[]));
        }
        if self.again_at <= now && !self.unacknowledged.is_empty() {
            self.tries += 1;
            self.timed = None;
            self.packets += self.unacknowledged.len() as u64;
            self.again_at = now + (RTO * 2_u32.pow(self.tries.min(4)));
            packets.extend(self.unacknowledged.iter().map(|(n, it)| self.packet(FRAME, *n, it)));
        }
        packets
    }

    /// What it knows of its path, told as often as the shell asks quinn.
    pub(super) fn figures(&mut self, now: Instant) -> Option<PathFigures> {
        let rtt = self.rtt.filter(|_| self.tell_at <= now && self.told != self.packets)?;
        (self.tell_at, self.told) = (now + REPORT, self.packets);
        Some(PathFigures { rtt, sent: self.packets, lost: self.lost, black_holes: 0 })
    }

    pub(super) fn silence(&self, now: Instant) -> Duration {
        now - self.heard
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.silence(now) > if self.met { QUIC_IDLE } else { QUIC_HANDSHAKE }
    }
}
