//! What a session knows of one leg: whether it has begun, whether it answers, how far away the peer is.
use std::time::{Duration, Instant};

use super::limits::SessionConfig;
use super::rtt::Rtt;
use super::words::LegKind;

#[derive(Debug)]
pub(super) struct Leg {
    pub(super) kind: LegKind,
    attached_at: Instant,
    pub(super) hello_sent: bool,
    /// The peer's HELLO has come: frames may be sent again from where it says.
    pub(super) ready: bool,
    /// Silent although it owes an answer, or given up by the peer.
    pub(super) suspect: bool,
    pub(super) close_sent: bool,
    /// Latest PING to answer; older ones are moot, so a flood of them costs nothing.
    pub(super) pong: Option<u64>,
    pub(super) ping_wanted: bool,
    pub(super) rtt: Rtt,
    /// Unacknowledged bytes this leg carried last.
    in_flight: u64,
    ping: Option<(u64, Instant)>,
    pings: u64,
    pinged_at: Instant,
    /// Something but PING and PONG has passed since the last PING.
    moved: bool,
    heard_at: Instant,
    owes_since: Option<Instant>,
}

impl Leg {
    pub(super) fn new(now: Instant, kind: LegKind) -> Self {
        Self {
            kind,
            attached_at: now,
            hello_sent: false,
            ready: false,
            suspect: false,
            close_sent: false,
            pong: None,
            ping_wanted: true,
            rtt: Rtt::default(),
            in_flight: 0,
            ping: None,
            pings: 0,
            pinged_at: now,
            moved: false,
            heard_at: now,
            owes_since: None,
        }
    }

    /// Bytes leave on this leg.
    pub(super) fn carries(&mut self, now: Instant, bytes: u64) {
        self.in_flight += bytes;
        self.moved = true;
        self.owes_since.get_or_insert(now);
    }

    /// Bytes are acknowledged, or lost with the claim on this leg.
    pub(super) fn freed(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.settle();
    }

    /// All this leg carried is sent again elsewhere.
    pub(super) fn reclaimed(&mut self) {
        self.in_flight = 0;
        self.settle();
    }

    /// Anything has arrived.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.suspect = false;
    }

    /// Frames that are not about the leg itself pass: RTT is worth knowing.
    pub(super) fn moves(&mut self) {
        self.moved = true;
    }

    /// The PING to send now, if one is due.
    pub(super) fn take_ping(&mut self, now: Instant, config: &SessionConfig) -> Option<u64> {
        let due = self.ping_wanted || self.ping_at(config).is_some_and(|at| at <= now);
        if !due || self.ping.is_some() {
            return None;
        }
        self.ping_wanted = false;
        self.pings += 1;
        self.ping = Some((self.pings, now));
        self.pinged_at = now;
        self.moved = false;
        self.owes_since.get_or_insert(now);
        Some(self.pings)
    }

    /// A PONG: the only source of RTT, as only it surely travelled both ways on this leg.
    pub(super) fn pong(&mut self, now: Instant, opaque: u64) {
        if let Some((_, sent)) = self.ping.take_if(|(pending, _)| *pending == opaque) {
            self.rtt.sample(now.saturating_duration_since(sent));
            self.settle();
        }
    }

    /// When the next PING is due; `None` while one is unanswered.
    pub(super) fn ping_at(&self, config: &SessionConfig) -> Option<Instant> {
        let every = if self.moved { config.ping_active } else { config.ping_idle };
        (self.ping.is_none() && self.hello_sent).then(|| self.pinged_at + every)
    }

    /// When this leg becomes suspect unless heard of.
    pub(super) fn suspect_at(&self, config: &SessionConfig) -> Option<Instant> {
        if self.suspect || !self.ready {
            return None;
        }
        let patience = self.rtt.smoothed().map_or(Duration::ZERO, |smoothed| smoothed * 4);
        Some(self.silent_since()? + patience.max(config.suspect_after))
    }

    /// When this leg is given up unless heard of, and why.
    pub(super) fn dead_at(&self, config: &SessionConfig) -> Option<(Instant, &'static str)> {
        if !self.ready {
            return Some((
                self.attached_at + config.hello_within,
                "the peer sent no HELLO in time",
            ));
        }
        Some((self.silent_since()? + config.silent_after, "the leg fell silent"))
    }

    /// Since when the leg owes an answer and nothing has come.
    fn silent_since(&self) -> Option<Instant> {
        self.owes_since.map(|since| since.max(self.heard_at))
    }

    fn settle(&mut self) {
        if self.in_flight == 0 && self.ping.is_none() {
            self.owes_since = None;
        }
    }
}
