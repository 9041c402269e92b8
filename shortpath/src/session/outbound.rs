//! What leaves on a leg, and in which order: about the leg itself, then copies of what other legs carry, then control,
//! datagrams, interactive bytes, bulk, and last what has come on it. Only the selected leg carries the session's own queues;
//! one that is tried for bulk takes its share of that.
use std::time::Instant;

use super::channel::{AckDue, Channel, Lane, Nature, Told};
use super::close::CloseReason;
use super::core::{Session, Stage};
use super::frame::{Frame, Hello, Mark, OFFSET_MAX, Received, VERSION};
use super::leg::Copy;
use super::limits::{INTERACTIVE_BYTES, INTERACTIVE_RUN};
use super::send::Fin;
use super::words::{ChannelId, LegId};

impl Session {
    /// Appends frames for `leg` until they make `max_bytes` on the wire or nothing is left; the last one may exceed it.
    /// Once handed out a frame counts as sent: the caller writes it, or detaches the leg.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        leg: LegId,
        max_bytes: usize,
        out: &mut Vec<Frame>,
    ) {
        if let Stage::Closed(_, code) = &self.stage {
            if let (Some(code), Some(leg)) = (*code, self.legs.get_mut(&leg))
                && !std::mem::replace(&mut leg.close_sent, true)
            {
                out.push(Frame::Close { code, after: leg.meter.sent() });
            }
            return;
        }
        let mut batch = Batch { now, leg, room: max_bytes, out };
        if !self.about_leg(&mut batch) {
            return;
        }
        let first = batch.out.len();
        self.copies(&mut batch);
        if self.selected() == Some(leg) && self.may_carry(leg) {
            self.control(&mut batch);
            self.long_datagrams(&mut batch);
        }
        if (self.selected() == Some(leg) || self.takes_bulk(leg)) && self.may_carry(leg) {
            self.bytes(&mut batch);
        }
        self.word_of_arrivals(&mut batch, first);
        self.count(now, leg, &batch.out[first..]);
        if let Stage::Closing(code, _) = self.stage
            && self.selected() == Some(leg)
            && !self.has_transmit(leg)
            && self.is_brought()
        {
            self.end(CloseReason::ByUs(code), Some(code));
            self.poll_transmit(now, leg, max_bytes, out);
        }
    }

    /// [`Self::poll_transmit`] should be called for `leg`. It may yield nothing when what was queued has been said in
    /// another way since; then this is false.
    #[must_use]
    pub fn has_transmit(&self, leg: LegId) -> bool {
        let Some(state) = self.legs.get(&leg) else { return false };
        if let Stage::Closed(_, code) = self.stage {
            return code.is_some() && !state.close_sent;
        }
        let about = !state.hello_sent || state.pong.is_some() || state.ping_wanted;
        if about || state.seen_due == AckDue::Now || (state.ready && !state.copies.is_empty()) {
            return true;
        }
        if !state.may_carry() {
            return false;
        }
        let first = self.has_queued_before_bulk() || self.has_long_datagrams(leg);
        (self.selected() == Some(leg) && first) || (self.takes_bulk(leg) && !self.bulk.is_empty())
    }

    fn may_carry(&self, leg: LegId) -> bool {
        self.legs.get(&leg).is_some_and(super::leg::Leg::may_carry)
    }

    /// [`Self::poll_transmit`] would begin with something that goes before bulk.
    #[must_use]
    pub fn has_urgent(&self, leg: LegId) -> bool {
        let Some(state) = self.legs.get(&leg) else { return false };
        let about = state.pong.is_some() || state.ping_wanted || state.seen_due == AckDue::Now;
        if about || self.is_closed() || (state.ready && !state.copies.is_empty()) {
            return self.has_transmit(leg);
        }
        state.may_carry()
            && self.selected() == Some(leg)
            && (self.has_queued_before_bulk() || self.has_long_datagrams(leg))
    }

    /// Frames of channels wait for a leg.
    pub(super) fn has_queued(&self) -> bool {
        self.has_queued_before_bulk() || !self.bulk.is_empty()
    }

    fn has_queued_before_bulk(&self) -> bool {
        !self.control.is_empty() || !self.over.is_empty() || !self.interactive.is_empty()
    }

    /// HELLO, PONG and PING. False when the leg is unknown.
    fn about_leg(&mut self, batch: &mut Batch<'_>) -> bool {
        let Some(leg) = self.legs.get_mut(&batch.leg) else { return false };
        if !std::mem::replace(&mut leg.hello_sent, true) {
            let hello = self.own_hello(batch.leg);
            batch.push(Frame::Hello(hello));
        }
        let Some(leg) = self.legs.get_mut(&batch.leg) else { return false };
        if let Some(opaque) = leg.pong.take() {
            batch.push(Frame::Pong(opaque));
        }
        if let Some(opaque) = leg.take_ping(batch.now, &self.config) {
            batch.push(Frame::Ping(opaque));
        }
        leg.ping_wanted = false;
        true
    }

    fn own_hello(&mut self, leg: LegId) -> Hello {
        let sole = self.legs.iter().all(|(id, other)| *id == leg || !other.ready);
        let state = |(id, channel): (&ChannelId, &mut Channel)| Received {
            opens: false,
            ..channel.tell(*id)
        };
        let channels = self.channels.iter_mut().map(state).collect();
        Hello {
            version: VERSION,
            instance: self.instance,
            expects: self.peer_instance,
            session: self.id.clone(),
            sole,
            opened: self.opened,
            seen: self.seen,
            channels,
        }
    }

    fn control(&mut self, batch: &mut Batch<'_>) {
        while batch.room > 0
            && let Some(channel) = self.over.pop_first()
        {
            batch.push(Frame::Ack(over(channel)));
        }
        while batch.room > 0
            && let Some(id) = self.control.pop_front()
        {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            channel.in_control = false;
            if channel.open == Told::Wanted {
                channel.open = Told::Sent(batch.leg);
                batch.push(open_frame(id, channel));
            }
            if channel.reset == Told::Wanted {
                channel.reset = Told::Sent(batch.leg);
                batch.push(Frame::Reset { channel: id, code: channel.reset_code });
            }
            if channel.ack == AckDue::Now {
                batch.push(Frame::Ack(channel.tell(id)));
            }
            self.copy_state(batch.leg, id);
        }
    }

    fn bytes(&mut self, batch: &mut Batch<'_>) {
        let interactive = self.selected() == Some(batch.leg);
        let bulk = self.takes_bulk(batch.leg);
        while batch.room > 0
            && let Some((id, lane)) = self.next_in_lane(interactive, bulk)
        {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            channel.lane = Lane::None;
            if !channel.is_live() {
                continue;
            }
            if lane == Lane::Interactive && channel.send.pending() > INTERACTIVE_BYTES {
                self.enqueue_data(id);
                continue;
            }
            if channel.ack == AckDue::Delayed {
                batch.push(Frame::Ack(channel.tell(id)));
            }
            self.bytes_of(id, lane, batch);
            self.requeue(id, lane);
        }
    }

    /// One frame of bytes, and FIN when they were the last.
    fn bytes_of(&mut self, id: ChannelId, lane: Lane, batch: &mut Batch<'_>) {
        let on = batch.leg;
        let suspect = self.legs.get(&on).is_some_and(|leg| leg.health.suspicion.is_some());
        if let Some((offset, bytes)) = self.with_send(id, |send| send.next(on)).flatten() {
            let range = offset..offset + bytes.len() as u64;
            batch.push(Frame::Data { channel: id, offset, bytes, mark: Mark::Original });
            if suspect {
                self.rescue(batch.now, on);
            } else if lane == Lane::Interactive
                && self.channels.get(&id).is_some_and(|channel| channel.send.pending() == 0)
            {
                self.second_copy(batch.now, on, id, range);
            }
        }
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.send.fin == Fin::Wanted && channel.send.pending() == 0 {
            channel.send.fin = Fin::Sent(on);
            batch.push(Frame::Fin { channel: id, offset: channel.send.end() });
            self.copy_state(on, id);
        }
    }

    /// What other legs carry too, and may not deliver.
    fn copies(&mut self, batch: &mut Batch<'_>) {
        while batch.room > 0
            && let Some(leg) = self.legs.get_mut(&batch.leg).filter(|leg| leg.ready)
            && let Some(copy) = leg.copies.pop_front()
        {
            match copy {
                Copy::State(id) => self.copy_of_state(id, batch),
                Copy::Bytes(id, range) => {
                    let Some(channel) = self.channels.get_mut(&id) else { continue };
                    let Some((offset, bytes)) = channel.send.peek(&range) else { continue };
                    let next = offset + bytes.len() as u64;
                    self.copies_sent(bytes.len());
                    batch.push(Frame::Data { channel: id, offset, bytes, mark: Mark::Copy });
                    if next < range.end
                        && let Some(leg) = self.legs.get_mut(&batch.leg)
                    {
                        leg.copies.push_front(Copy::Bytes(id, next..range.end));
                    }
                }
            }
        }
    }

    fn copy_of_state(&mut self, id: ChannelId, batch: &mut Batch<'_>) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if matches!(channel.open, Told::Sent(_)) {
            batch.push(open_frame(id, channel));
        }
        if matches!(channel.reset, Told::Sent(_)) {
            batch.push(Frame::Reset { channel: id, code: channel.reset_code });
        }
        if matches!(channel.send.fin, Fin::Sent(_)) && channel.is_live() {
            batch.push(Frame::Fin { channel: id, offset: channel.send.end() });
        }
        if matches!(channel.open, Told::Nothing | Told::Known) {
            batch.push(Frame::Ack(channel.state(id)));
        }
    }

    pub(super) fn copies_sent(&mut self, bytes: usize) {
        self.dup_sent += 1;
        self.dup_bytes += bytes as u64;
    }

    /// Word of what has come on the leg: when due, or in company. What it brought is acknowledged on it too, even while
    /// another is selected: so each end can judge a leg by what comes back on it.
    fn word_of_arrivals(&mut self, batch: &mut Batch<'_>, first: usize) {
        let Some(leg) = self.legs.get_mut(&batch.leg).filter(|leg| leg.hello_sent) else { return };
        let due = leg.seen_due == AckDue::Now;
        if !due && batch.out.len() == first {
            return;
        }
        let echo = leg.take_echo();
        let seen = leg.take_seen();
        for id in echo {
            let state = self.channels.get_mut(&id).map(|channel| channel.state(id));
            batch.push(Frame::Ack(state.unwrap_or_else(|| over(id))));
        }
        if let Some(bytes) = seen {
            batch.push(Frame::Seen { bytes, won: self.won_here });
        }
    }

    /// Charges a leg with what it was given.
    fn count(&mut self, now: Instant, on: LegId, frames: &[Frame]) {
        let mut counted = false;
        if let Some(leg) = self.legs.get_mut(&on) {
            for frame in frames {
                counted |= frame.is_counted();
                leg.carries(now, frame);
            }
        }
        if counted {
            let others = self.legs.iter_mut().filter(|(id, _)| **id != on);
            others.for_each(|(_, leg)| leg.stands_by());
        }
    }

    /// Interactive channels first; bulk gets a turn after [`INTERACTIVE_RUN`] of them.
    fn next_in_lane(&mut self, interactive: bool, bulk: bool) -> Option<(ChannelId, Lane)> {
        if interactive
            && (!bulk || self.interactive_run < INTERACTIVE_RUN || self.bulk.is_empty())
            && let Some(id) = self.interactive.pop_front()
        {
            self.interactive_run += 1;
            return Some((id, Lane::Interactive));
        }
        self.interactive_run = 0;
        if bulk { self.bulk.pop_front().map(|id| (id, Lane::Bulk)) } else { None }
    }

    /// A channel stays in its line until it is empty, so that the tail of a bulk transfer does not jump ahead.
    fn requeue(&mut self, id: ChannelId, lane: Lane) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if !channel.send.has_output() {
            return;
        }
        channel.lane = lane;
        match lane {
            Lane::Interactive => self.interactive.push_back(id),
            Lane::Bulk | Lane::None => self.bulk.push_back(id),
        }
    }
}

/// The channel is over and forgotten.
fn over(channel: ChannelId) -> Received {
    let (received, limit) = (0, 0);
    Received { channel, received, limit, fin_seen: true, reset_seen: true, opens: false }
}

fn open_frame(id: ChannelId, channel: &mut Channel) -> Frame {
    let limit = channel.receive.tell().1.min(OFFSET_MAX - 1);
    Frame::Open { channel: id, limit, datagrams: channel.nature == Nature::Datagrams }
}

/// Frames being gathered for one leg.
pub(super) struct Batch<'a> {
    now: Instant,
    pub(super) leg: LegId,
    pub(super) room: usize,
    out: &'a mut Vec<Frame>,
}

impl Batch<'_> {
    pub(super) fn push(&mut self, frame: Frame) {
        self.room = self.room.saturating_sub(frame.wire_len());
        self.out.push(frame);
    }
}
