//! The finder's messages: checks out and in, their answers, role conflicts (RFC 8445 sections 7.2 and 7.3).
use std::time::Instant;

use rand::Rng;
use stun_types::message::{BINDING, Message, MessageClass, TransactionId};

use super::candidate::{CandidateKind, Route, priority};
use super::finder::{Finder, PAIRS_MAX};
use super::message::{self, Writer, attribute, is_signed};
use super::pair::{Check, Pair, PairState};
use super::remote::reachable;
use super::settings::FinderEvent;

/// Peer-reflexive pairs that have not answered, at most; the oldest makes room. A peer whose NAT gives it a port per
/// destination shows one per socket of ours; a peer that makes addresses up gets no further.
const STRANGERS_MAX: usize = 8;
/// PRIORITY of a check from a base that its end would rather not use any more: the least that the attribute may say.
const RETIRING: u32 = 1;
/// Requests remembered to tell a replay from elsewhere.
const SEEN_MAX: usize = 64;

impl Finder {
    /// Whether a request's USERNAME is ours and the peer's (RFC 8445 section 7.2.2): `OURS:THEIRS`.
    pub(super) fn is_named(&self, message: &Message<'_>) -> bool {
        message.has_class(MessageClass::Request)
            && message.has_method(BINDING)
            && message::value(message, attribute::USERNAME).is_some_and(|name| {
                let (ours, theirs) = (self.local.ufrag.as_bytes(), self.remote.ufrag.as_bytes());
                let rest = name.value.strip_prefix(ours).and_then(|rest| rest.strip_prefix(b":"));
                rest == Some(theirs)
            })
    }

    pub(super) fn send_check(&mut self, now: Instant, at: usize) {
        let id = TransactionId::from(self.rng.random::<u128>());
        let route = self.pairs[at].route;
        let role =
            if self.controlling { attribute::ICE_CONTROLLING } else { attribute::ICE_CONTROLLED };
        let name = format!("{}:{}", self.remote.ufrag, self.local.ufrag);
        // What a pair by this check would be worth (RFC 8445 section 7.1.1); nothing, as it will not last.
        let reflexive = match self.retiring == Some(route.local) {
            true => RETIRING,
            false => priority(CandidateKind::PeerReflexive, route.remote.is_ipv6(), 0),
        };
        let mut out = Writer::new(MessageClass::Request, BINDING, id)
            .add(attribute::USERNAME, name.as_bytes())
            .add(role, &self.tie_breaker.to_be_bytes())
            .add(attribute::PRIORITY, &reflexive.to_be_bytes());
        if self.controlling && self.selected == Some(route) {
            out = out.add(attribute::USE_CANDIDATE, &[]);
        }
        let bytes = out.finish(Some(&self.remote_key));
        self.transmits.push_back((route, bytes));
        self.counters.checks += 1;
        let check = Check { id, at: now, controlling: self.controlling };
        self.pairs[at].note_sent(now, check, &self.timing);
    }

    pub(super) fn handle_message(&mut self, now: Instant, route: Route, message: &Message<'_>) {
        if !message.has_method(BINDING) {
            return;
        }
        match message.class() {
            MessageClass::Request => self.handle_request(now, route, message),
            MessageClass::Success | MessageClass::Error => self.handle_answer(now, route, message),
            MessageClass::Indication => {}
        }
    }

    fn handle_request(&mut self, now: Instant, route: Route, message: &Message<'_>) {
        if !self.is_named(message) {
            return;
        }
        if !is_signed(message, &self.local_key) {
            self.counters.forged += 1;
            return;
        }
        let id = message.transaction_id();
        match self.seen.iter().find(|(seen, _)| *seen == id) {
            Some((_, from)) if *from != route => {
                self.counters.replayed += 1;
                return;
            }
            Some(_) => {}
            None => {
                if self.seen.len() == SEEN_MAX {
                    self.seen.pop_front();
                }
                self.seen.push_back((id, route));
            }
        }
        if self.answering.ready() > now || reachable(&self.limits, route.remote).is_err() {
            self.counters.refused += 1;
            return;
        }
        self.answering.take(now);
        if self.is_conflict_lost(now, route, message) {
            return;
        }
        self.answer(route, id);
        self.note_request(now, route, message);
    }

    fn answer(&mut self, route: Route, id: TransactionId) {
        let bytes = Writer::new(MessageClass::Success, BINDING, id)
            .add_address(attribute::XOR_MAPPED_ADDRESS, route.remote)
            .finish(Some(&self.local_key));
        self.transmits.push_back((route, bytes));
        self.counters.requests += 1;
    }

    /// A check that is signed and answered: the peer is there. Check back at once, unless that is known to work.
    fn note_request(&mut self, now: Instant, route: Route, message: &Message<'_>) {
        if !self.pairs.iter().any(|pair| pair.route == route) && !self.add_stranger(now, route) {
            self.counters.refused += 1;
            return;
        }
        let nominating = message::value(message, attribute::USE_CANDIDATE).is_some();
        let Some(pair) = self.pairs.iter_mut().find(|pair| pair.route == route) else { return };
        let news = pair.heard.is_none();
        pair.heard = Some(now);
        pair.requests = pair.requests.saturating_add(1);
        pair.peer_retires = message::number_u32(message, attribute::PRIORITY) == Some(RETIRING);
        if nominating && !self.controlling {
            self.nominations += 1;
            pair.nominated = Some(self.nominations);
        }
        let recent = self.timing.first_rto / 4;
        let just_sent = pair
            .in_flight
            .back()
            .is_some_and(|check| news && now.saturating_duration_since(check.at) < recent);
        // Anything but a fresh success: also a pair that failed, and one whose consent checks stay unanswered.
        if pair.state != PairState::Succeeded || pair.tries > 0 {
            if !just_sent || news {
                pair.again(now);
                pair.triggered = true;
            }
        } else if news {
            pair.due = now;
        }
        if news {
            self.events.push_back(FinderEvent::PeerAt(route));
            self.verify_selected(now, route);
        }
    }

    /// The peer turned up somewhere new: perhaps its NAT gave it a new address, so look at once whether the old one
    /// still answers.
    fn verify_selected(&mut self, now: Instant, new: Route) {
        if self.selected.is_some_and(|route| route != new) {
            let selected = self.selected;
            if let Some(pair) = self.pairs.iter_mut().find(|pair| Some(pair.route) == selected) {
                pair.due = pair.due.min(now);
            }
        }
    }

    /// A pair for a peer-reflexive address (RFC 8445 section 7.3.1.3).
    fn add_stranger(&mut self, now: Instant, route: Route) -> bool {
        let is_stranger = |pair: &Pair| {
            pair.remote_kind == CandidateKind::PeerReflexive && pair.state != PairState::Succeeded
        };
        let strangers = self.pairs.iter().filter(|pair| is_stranger(pair)).count();
        if strangers >= STRANGERS_MAX || self.pairs.len() >= PAIRS_MAX {
            let Some(oldest) = self.pairs.iter().position(is_stranger) else { return false };
            self.pairs.remove(oldest);
        }
        self.pair_up(now, route.local, route.remote, CandidateKind::PeerReflexive);
        self.pairs.iter().any(|pair| pair.route == route)
    }

    fn handle_answer(&mut self, now: Instant, route: Route, message: &Message<'_>) {
        let id = message.transaction_id();
        let Some(at) =
            self.pairs.iter().position(|pair| pair.in_flight.iter().any(|check| check.id == id))
        else {
            return;
        };
        if !is_signed(message, &self.remote_key) {
            self.counters.forged += 1;
            return;
        }
        // RFC 8445 section 7.2.5.2.1: the answer must come the way the check went.
        if self.pairs[at].route != route {
            self.counters.astray += 1;
            return;
        }
        let Some(check) = self.pairs[at].settle(id) else { return };
        if message.has_class(MessageClass::Error) {
            self.handle_error(now, at, &check, message);
        } else if message::mapped_address(message).is_some() {
            self.counters.answers += 1;
            self.note_success(now, at, &check);
        }
    }

    fn note_success(&mut self, now: Instant, at: usize, check: &Check) {
        let pair = &mut self.pairs[at];
        pair.note_answer(now, check.at);
        let (route, rtt) = (pair.route, pair.rtt.unwrap_or_default());
        let pause = if self.selected == Some(route) {
            self.timing.consent.mul_f64(self.rng.random_range(0.8..1.2))
        } else {
            self.timing.standby
        };
        self.pairs[at].due = now + pause;
        if !self.reached {
            self.reached = true;
            self.told_failure = false;
            self.events.push_back(FinderEvent::Reachable(route));
        }
        if self.controlling && self.selected.is_none() && self.settle.is_none() {
            self.settle = Some(now + rtt.clamp(SETTLE_MIN, SETTLE_MAX));
        }
    }

    fn handle_error(&mut self, now: Instant, at: usize, check: &Check, message: &Message<'_>) {
        if message::error_code(message) != Some(ROLE_CONFLICT) {
            self.counters.errors += 1;
            return;
        }
        if check.controlling == self.controlling {
            self.switch_role();
        }
        self.pairs[at].due = now;
        self.pairs[at].triggered = true;
    }

    /// RFC 8445 section 7.3.1.1: the larger tie-breaker keeps its role. Returns whether the request ends here.
    fn is_conflict_lost(&mut self, now: Instant, route: Route, message: &Message<'_>) -> bool {
        let claimed =
            if self.controlling { attribute::ICE_CONTROLLING } else { attribute::ICE_CONTROLLED };
        let Some(theirs) = message::number_u64(message, claimed) else { return false };
        // Both kinds resolve alike: who has the larger number controls.
        let we_control = self.tie_breaker >= theirs;
        if we_control != self.controlling {
            self.switch_role();
            return false;
        }
        let error = [0, 0, 4, 87];
        let bytes = Writer::new(MessageClass::Error, BINDING, message.transaction_id())
            .add(attribute::ERROR_CODE, &error)
            .finish(Some(&self.local_key));
        self.transmits.push_back((route, bytes));
        if let Some(pair) = self.pairs.iter_mut().find(|pair| pair.route == route) {
            pair.due = pair.due.min(now);
        }
        true
    }

    fn switch_role(&mut self) {
        self.counters.conflicts += 1;
        self.controlling = !self.controlling;
        for pair in &mut self.pairs {
            pair.nominated = None;
        }
    }
}

/// RFC 8445 section 7.3.1.1.
const ROLE_CONFLICT: u16 = 487;
/// The first choice waits for the answers of about one more round trip: a pair of a nearer network may be slower to
/// answer its first check by a lost packet, not by more.
const SETTLE_MIN: std::time::Duration = std::time::Duration::from_millis(10);
const SETTLE_MAX: std::time::Duration = std::time::Duration::from_millis(200);
