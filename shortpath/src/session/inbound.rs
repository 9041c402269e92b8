//! What arriving frames change.
use std::time::Instant;

use bytes::Bytes;

use super::channel::{AckDue, Channel, Nature, Told};
use super::close::{CLOSE_RESTARTED, CloseReason, ProtocolError, RESET_LIMIT};
use super::core::{Event, Session};
use super::frame::{Frame, FrameError, Hello, Mark, Received, VERSION};
use super::leg::Leg;
use super::receive::Arrival;
use super::words::{ChannelError, ChannelId, LegId};

/// Forgotten channels remembered for an answer. A correct peer asks about no more than it holds; beyond, the lowest
/// (oldest) go, and its next HELLO settles them.
const OVER_MAX: usize = 4096;

impl Session {
    /// Takes a frame that arrived on `leg`. A peer that breaks the protocol ends the session. Frames of unknown legs and
    /// of closed sessions are ignored.
    pub fn handle_frame(&mut self, now: Instant, leg: LegId, frame: Frame) {
        if self.is_closed() {
            return;
        }
        let Some(state) = self.legs.get_mut(&leg) else { return };
        state.heard(now);
        if !state.ready && !matches!(frame, Frame::Hello(_) | Frame::Close { .. }) {
            return self.before_hello(now, leg, frame);
        }
        if state.ready && matches!(frame, Frame::Hello(_)) {
            return self.fail(ProtocolError::Hello);
        }
        self.take(now, leg, frame);
    }

    /// A UDP leg has several streams, so frames of channels may overtake its HELLO: they wait for it. What is about the leg
    /// itself comes in order, and a datagram may as well be lost.
    fn before_hello(&mut self, now: Instant, leg: LegId, frame: Frame) {
        let Some(state) = self.legs.get_mut(&leg) else { return };
        if !state.kind.is_udp() || frame.channel().is_none() {
            return self.fail(ProtocolError::Hello);
        }
        if !frame.is_loose() && !state.keep_early(frame) {
            self.detach(now, leg, "too much came before the leg's HELLO");
        }
    }

    fn take(&mut self, now: Instant, leg: LegId, frame: Frame) {
        let (counted, len) = (frame.is_counted(), frame.wire_len() as u64);
        let channel = frame.channel();
        if let Err(error) = self.apply(now, leg, frame) {
            return self.fail(error);
        }
        let selected = self.selected() == Some(leg);
        let Some(state) = self.legs.get_mut(&leg) else { return };
        if let Some(id) = channel {
            state.bytes_received += len;
            if counted {
                state.arrives(len, now + self.config.ack_delay);
                let due = |one: &Channel| one.ack == AckDue::Now || one.receive.owes_ack();
                let at_once = self.channels.get(&id).is_none_or(due);
                if at_once {
                    state.seen_due = AckDue::Now;
                }
                if !selected {
                    state.echoes(id);
                }
            }
        }
        self.finish_close(leg);
        self.close_if_brought();
    }

    /// A CLOSE has come on the leg, and waits for bytes that it has overtaken.
    #[must_use]
    pub(crate) fn is_being_closed(&self, leg: LegId) -> bool {
        !self.is_closed() && self.legs.get(&leg).is_some_and(|leg| leg.closing.is_some())
    }

    /// A CLOSE that overtook bytes takes effect once they have come.
    fn finish_close(&mut self, leg: LegId) {
        let Some(leg) = self.legs.get(&leg) else { return };
        if let Some((code, after)) = leg.closing
            && leg.arrived >= after
        {
            self.end(CloseReason::ByPeer(code), None);
        }
    }

    /// Takes word that the bytes on a leg were no frame.
    pub fn handle_garbage(&mut self, error: FrameError) {
        self.fail(error.into());
    }

    fn apply(&mut self, now: Instant, leg: LegId, frame: Frame) -> Result<(), ProtocolError> {
        match frame {
            Frame::Hello(hello) => self.hello(now, leg, &hello),
            Frame::Open { channel, limit, datagrams } => {
                let nature = if datagrams { Nature::Datagrams } else { Nature::Stream };
                self.peer_open(channel, limit, nature)
            }
            Frame::Data { channel, offset, bytes, mark } => {
                self.data(now, leg, channel, offset, bytes, mark)
            }
            Frame::Datagram { channel, bytes, .. } => self.datagram(channel, bytes),
            Frame::Seen { bytes, won } => self.peer_saw(now, leg, bytes, won),
            Frame::Fin { channel, offset } => self.fin(channel, offset),
            Frame::Reset { channel, code } => self.peer_reset(channel, code),
            Frame::Ack(state) => self.peer_state(&state),
            Frame::Ping(opaque) => {
                if let Some(leg) = self.legs.get_mut(&leg) {
                    leg.pong = Some(opaque);
                }
                Ok(())
            }
            Frame::Pong(opaque) => {
                if self.legs.get_mut(&leg).is_some_and(|leg| leg.pong(now, opaque)) {
                    self.leave_suspects(now);
                    self.choose(now);
                }
                Ok(())
            }
            Frame::Close { code, after } => {
                if let Some(leg) = self.legs.get_mut(&leg) {
                    leg.closing = Some((code, after));
                }
                Ok(())
            }
        }
    }

    fn peer_saw(
        &mut self,
        now: Instant,
        id: LegId,
        bytes: u64,
        won: u64,
    ) -> Result<(), ProtocolError> {
        let Some(leg) = self.legs.get_mut(&id) else { return Ok(()) };
        let suspicion = leg.health.suspicion;
        let progress = leg.peer_saw(now, bytes).map_err(|()| ProtocolError::Ack)?;
        if won > self.dup_sent {
            return Err(ProtocolError::Ack);
        }
        if won > self.dup_won {
            self.note_won(now, won - self.dup_won);
        }
        let Some(progress) = progress else { return Ok(()) };
        if let Some(suspicion) = suspicion {
            self.recovered(now, id, &suspicion);
            for channel in self.channels.values_mut() {
                channel.send.forget_copies(id);
            }
            self.choose(now);
        }
        self.brought(now, id, progress.bytes);
        self.compare_rates(now);
        Ok(())
    }

    fn hello(&mut self, now: Instant, leg: LegId, hello: &Hello) -> Result<(), ProtocolError> {
        if hello.version != VERSION {
            return Err(ProtocolError::Version(hello.version));
        }
        if hello.session != self.id {
            // Not this peer's fault: somebody attached the wrong stream.
            self.detach(now, leg, "the leg's HELLO names another session");
            return Ok(());
        }
        if !self.knows_each_other(hello) {
            self.end(CloseReason::Restarted, Some(CLOSE_RESTARTED));
            return Ok(());
        }
        if hello.seen > self.opened {
            return Err(ProtocolError::Channel);
        }
        self.forget_what_the_peer_forgot(hello)?;
        for state in &hello.channels {
            if self.held(state.channel)? {
                self.apply_state(state)?;
            }
        }
        let first = !std::mem::replace(&mut self.begun, true);
        let kind = self.legs.get(&leg).map(|leg| leg.kind);
        for (id, other) in &mut self.legs {
            other.acquainted = true;
            // First legs of different kinds are made at once and come in any order: that says nothing of the other.
            let replaces = hello.expects != 0 || kind == Some(other.kind);
            if *id == leg {
                other.ready = true;
            } else if hello.sole && *id < leg && replaces {
                other.forsaken = true;
            }
        }
        if self.down_since.take().is_some() {
            self.events.push_back(Event::Resumed);
        }
        self.leave_forsaken(now);
        self.leave_suspects(now);
        if first {
            self.leave_unbegun();
        }
        let early = self.legs.get_mut(&leg).map(Leg::take_early).unwrap_or_default();
        for frame in early {
            self.handle_frame(now, leg, frame);
        }
        Ok(())
    }

    /// What other legs were given before any had begun leaves again on the first that has: they may never begin.
    fn leave_unbegun(&mut self) {
        let given = self.legs.iter().filter(|(_, leg)| !leg.ready && leg.meter.sent() > 0);
        let given: Vec<_> = given.map(|(id, _)| *id).collect();
        given.into_iter().for_each(|id| self.reclaim(id));
    }

    /// Both ends are those that met first. One that was started anew cannot go on where the other stopped.
    fn knows_each_other(&mut self, hello: &Hello) -> bool {
        if self.peer_instance == 0 {
            self.peer_instance = hello.instance;
        }
        self.peer_instance == hello.instance
            && (hello.expects == 0 || hello.expects == self.instance)
    }

    /// Channels that began before this HELLO and are not in it are over at the peer.
    fn forget_what_the_peer_forgot(&mut self, hello: &Hello) -> Result<(), ProtocolError> {
        let mut listed: Vec<_> = hello.channels.iter().map(|state| state.channel).collect();
        listed.sort_unstable();
        let role = self.role;
        let known =
            |id: ChannelId| id.get() < if id.opened_by(role) { hello.seen } else { hello.opened };
        let gone =
            self.channels.keys().filter(|id| known(**id) && listed.binary_search(id).is_err());
        let gone: Vec<_> = gone.copied().collect();
        for id in gone {
            self.with_channel(id, Channel::peer_forgot).transpose()?;
            self.after_peer_state(id);
        }
        Ok(())
    }

    fn peer_open(
        &mut self,
        id: ChannelId,
        limit: u64,
        nature: Nature,
    ) -> Result<(), ProtocolError> {
        if id.opened_by(self.role) {
            return Err(ProtocolError::Channel);
        }
        if !self.held_as(id, nature)? {
            return Ok(());
        }
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.send.raise_limit(limit);
            // The opener must learn that its OPEN came, and how far the window reaches.
            channel.ack = AckDue::Now;
        }
        self.enqueue_control(id);
        self.wake_writer(id);
        Ok(())
    }

    fn data(
        &mut self,
        now: Instant,
        leg: LegId,
        id: ChannelId,
        offset: u64,
        bytes: Bytes,
        mark: Mark,
    ) -> Result<(), ProtocolError> {
        if !self.held_as(id, Nature::Stream)? {
            return Ok(());
        }
        let selected = self.selected() == Some(leg);
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        if !channel.is_live() {
            return Ok(());
        }
        if mark == Mark::Loose && channel.receive.is_torn() {
            // Its original is on its way, on a leg that loses nothing.
            return Ok(());
        }
        let arrival = channel.receive.data(offset, bytes)?;
        if mark != Mark::Original && arrival == Arrival::InOrder {
            self.won_here += 1;
        }
        // What another leg brings is acknowledged there at once; here too, but bulk need not pay for every word of it twice.
        let at_once = arrival != Arrival::InOrder
            || (selected && channel.receive.owes_ack())
            || channel.receive.is_complete();
        if at_once {
            channel.ack = AckDue::Now;
            self.enqueue_control(id);
        } else if channel.ack == AckDue::No {
            channel.ack = AckDue::Delayed;
            self.delayed.push_back((now + self.config.ack_delay, id));
        }
        if arrival == Arrival::InOrder {
            self.wake_reader(id);
            self.forget_if_done(id);
        }
        Ok(())
    }

    fn fin(&mut self, id: ChannelId, size: u64) -> Result<(), ProtocolError> {
        if !self.held_as(id, Nature::Stream)? {
            return Ok(());
        }
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        if !channel.is_live() {
            return Ok(());
        }
        channel.receive.fin(size)?;
        channel.ack = AckDue::Now;
        if channel.receive.is_complete() {
            self.wake_reader(id);
        }
        self.enqueue_control(id);
        self.forget_if_done(id);
        Ok(())
    }

    fn peer_reset(&mut self, id: ChannelId, code: u16) -> Result<(), ProtocolError> {
        if !self.held(id)? {
            return Ok(());
        }
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.reset_by_peer.get_or_insert(code);
            channel.ack = AckDue::Now;
            // Over before the application heard of it: it never will.
            channel.released |= channel.nature == Nature::Untold;
        }
        self.with_channel(id, |channel| {
            channel.send.drop_bytes();
            channel.flow.out.clear();
            // A direction that arrived whole stays readable: RESET then only says that the peer is done.
            if !channel.receive.is_complete() {
                channel.receive.drop_bytes();
            }
        });
        self.wake_starved();
        self.note_failed(id, ChannelError::Reset(code));
        self.wake(id);
        self.enqueue_control(id);
        self.forget_if_done(id);
        Ok(())
    }

    fn peer_state(&mut self, state: &Received) -> Result<(), ProtocolError> {
        // No answer for a forgotten channel: two ends that both forgot would answer each other for ever.
        if self.find(state.channel)? { self.apply_state(state) } else { Ok(()) }
    }

    fn apply_state(&mut self, state: &Received) -> Result<(), ProtocolError> {
        let id = state.channel;
        self.with_channel(id, |channel| channel.peer_state(state)).transpose()?;
        self.after_peer_state(id);
        Ok(())
    }

    fn after_peer_state(&mut self, id: ChannelId) {
        self.wake_starved();
        let closed = self.is_closed();
        let Some(channel) = self.channels.get(&id) else { return };
        if channel.send.room() > 0 || channel.write_error().is_some() {
            self.wake_writer(id);
        }
        let Some(channel) = self.channels.get(&id) else { return };
        let delivered = channel.send.fin == super::send::Fin::Acked;
        if channel.released && delivered && !channel.is_settled() && !closed {
            // Ours is delivered and nobody reads the peer's: tell it to stop.
            self.reset(id, super::close::RESET_DROPPED);
        }
        self.forget_if_done(id);
    }

    /// As [`Self::find`], for frames that want an answer: the peer is told if the channel is over.
    fn held(&mut self, id: ChannelId) -> Result<bool, ProtocolError> {
        let held = self.find(id)?;
        if !held {
            self.note_over(id);
        }
        Ok(held)
    }

    /// As [`Self::held`], for frames that tell what the channel carries: the application hears of it at the first.
    pub(super) fn held_as(&mut self, id: ChannelId, nature: Nature) -> Result<bool, ProtocolError> {
        if !self.held(id)? {
            return Ok(false);
        }
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(false) };
        if channel.nature == Nature::Untold {
            channel.nature = nature;
            if !channel.released {
                self.events.push_back(match nature {
                    Nature::Datagrams => Event::IncomingDatagrams(id),
                    Nature::Stream | Nature::Untold => Event::Incoming(id),
                });
            }
        } else if channel.nature != nature {
            return Err(ProtocolError::Channel);
        }
        Ok(true)
    }

    /// Whether the channel is held; opens it (and those before it) if the peer just did, as OPEN may come on another leg.
    fn find(&mut self, id: ChannelId) -> Result<bool, ProtocolError> {
        if id.opened_by(self.role) {
            return if id.get() < self.opened {
                Ok(self.channels.contains_key(&id))
            } else {
                Err(ProtocolError::Channel)
            };
        }
        while self.seen <= id.get() {
            if self.peers_held >= self.config.peer_channels_told_max() {
                return Err(ProtocolError::ChannelLimit);
            }
            let surplus = self.peers_held >= self.config.peer_channels_held_max();
            let next = self.seen.checked_add(2).ok_or(ProtocolError::ChannelLimit)?;
            let Some(opened) = ChannelId::new(self.seen) else { return Ok(false) };
            self.seen = next;
            self.peers_held += 1;
            self.insert_channel(opened, Told::Nothing, Nature::Untold);
            if surplus {
                self.turn_away(opened);
            }
        }
        Ok(self.channels.contains_key(&id))
    }

    /// Resets a channel the application never hears of; it is held until the peer knows.
    fn turn_away(&mut self, id: ChannelId) {
        self.reset(id, RESET_LIMIT);
        self.release(id);
    }

    /// The peer must learn that a channel is over.
    pub(super) fn note_over(&mut self, id: ChannelId) {
        self.over.insert(id);
        if self.over.len() > OVER_MAX {
            self.over.pop_first();
        }
    }
}
