//! What stands for a QUIC connection: frames in order, sent again until they are acknowledged, over whatever loses them.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use switchback_shortpath::PathFigures;

use super::{KEEPALIVE, QUIC_HANDSHAKE, QUIC_IDLE};

/// First byte of its packets: with a frame, with one that need not come, with none, a keepalive and its answer, and the end.
const FRAME: u8 = 0xC0;
const LOOSE: u8 = 0xC1;
const ACK: u8 = 0xC2;
const PING: u8 = 0xC3;
const PONG: u8 = 0xC4;
pub(super) const CLOSE: u8 = 0xC5;
const HEAD: usize = 13;

/// How long it waits before anything is known of the round trip, and at least (RFC 9002 sections 6.2.2 and 6.2.1).
const RTO_FIRST: Duration = Duration::from_millis(333);
const RTO_LEAST: Duration = Duration::from_millis(20);
/// The pause between two attempts does not grow beyond: the endpoints poke a connection that hears nothing.
const RTO_MOST: Duration = Duration::from_millis(1_500);
const REPORT: Duration = Duration::from_millis(100);
/// Between two looks whether what sends also receives.
const LOOK: Duration = Duration::from_millis(250);

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
    /// A keepalive is to be answered.
    pinged: Option<Instant>,
    pong: bool,
    ack: bool,
    /// Packets sent and received by the last look.
    seen: (u64, u64),
    received: u64,
    look_at: Instant,
}

/// A packet's kind, connection, number and frame.
pub(super) type Packet<'a> = (u8, u32, u64, &'a [u8]);

pub(super) fn read(bytes: &[u8]) -> Option<Packet<'_>> {
    let (head, frame) = bytes.split_first_chunk::<HEAD>()?;
    let &[kind @ FRAME..=CLOSE, a, b, c, d, ..] = head else { return None };
    let number = u64::from_be_bytes(head[5..].try_into().ok()?);
    Some((kind, u32::from_be_bytes([a, b, c, d]), number, frame))
}

fn packet(kind: u8, connection: u32, number: u64, frame: &[u8]) -> Vec<u8> {
    [&[kind][..], &connection.to_be_bytes(), &number.to_be_bytes(), frame].concat()
}

/// What an end that gave the connection up says, then and whenever it is spoken to on it.
pub(super) fn close(connection: u32) -> Vec<u8> {
    packet(CLOSE, connection, 0, &[])
}

impl Connection {
    /// One whose handshake took as long as a check of its path, if that is known.
    pub(super) fn new(now: Instant, number: u32, rtt: Option<Duration>) -> Self {
        let (sent, expected, tries, unacknowledged) = (0, 0, 0, VecDeque::new());
        let (again_at, alive_at, heard) = (now, now, now);
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
            rtt,
            packets: 0,
            lost: 0,
            told: 0,
            tell_at: now,
            pinged: None,
            pong: false,
            ack: false,
            seen: (0, 0),
            received: 0,
            look_at: now + LOOK,
        }
    }

    /// Probe timeouts double (RFC 9002 section 6.2.1).
    fn rto(&self) -> Duration {
        let first = self.rtt.map_or(RTO_FIRST, |rtt| rtt + (rtt / 2).max(RTO_LEAST));
        (first * 2_u32.pow(self.tries.min(4))).min(RTO_MOST.max(first))
    }

    fn sample(&mut self, rtt: Duration) {
        self.rtt = Some(self.rtt.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
    }

    fn packet(&self, kind: u8, number: u64, frame: &[u8]) -> Vec<u8> {
        packet(kind, self.number, number, frame)
    }

    pub(super) fn loose(&self, frame: &[u8]) -> Vec<u8> {
        self.packet(LOOSE, 0, frame)
    }

    pub(super) fn send(&mut self, now: Instant, frame: Bytes) -> Vec<u8> {
        if self.unacknowledged.is_empty() {
            self.again_at = now + self.rto();
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
        self.received += 1;
        match kind {
            LOOSE => return Some(frame),
            PING => self.pong = true,
            PONG => {
                if let Some(at) = self.pinged.take() {
                    self.sample(now - at);
                }
            }
            ACK => {
                let before = self.unacknowledged.len();
                self.unacknowledged.retain(|(sent, _)| *sent >= number);
                let come = before - self.unacknowledged.len();
                if come > 0 {
                    // What had to leave again was lost before.
                    self.lost += if self.tries > 0 { come as u64 } else { 0 };
                    self.tries = 0;
                    self.again_at = now + self.rto();
                }
                if let Some((_, at)) = self.timed.take_if(|(timed, _)| *timed < number) {
                    self.sample(now - at);
                }
            }
            _ => {
                self.ack = true;
                if number == self.expected {
                    self.expected += 1;
                    return Some(frame);
                }
            }
        }
        None
    }

    pub(super) fn timeout(&self) -> Instant {
        let next = self.alive_at.min(self.look_at);
        if self.unacknowledged.is_empty() { next } else { next.min(self.again_at) }
    }

    /// Whether it has sent something since the last look and received nothing.
    pub(super) fn is_deaf(&mut self, now: Instant) -> bool {
        if self.look_at > now {
            return false;
        }
        self.look_at = now + LOOK;
        let before = std::mem::replace(&mut self.seen, (self.packets, self.received));
        self.packets > before.0 && self.received == before.1
    }

    /// Acknowledgements, keepalives, and what goes again.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        if std::mem::take(&mut self.pong) {
            packets.push(self.packet(PONG, 0, &[]));
        }
        if self.ack {
            self.ack = false;
            packets.push(self.packet(ACK, self.expected, &[]));
        }
        if self.alive_at <= now {
            self.alive_at = now + KEEPALIVE;
            self.pinged = Some(now);
            packets.push(self.packet(PING, 0, &[]));
        }
        self.packets += packets.len() as u64;
        if self.again_at <= now && !self.unacknowledged.is_empty() {
            self.tries += 1;
            self.timed = None;
            self.packets += self.unacknowledged.len() as u64;
            self.again_at = now + self.rto();
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
