//! What leaves on a leg, and in which order: about the leg itself, then control, then interactive bytes, then bulk.
use std::time::Instant;

use super::channel::{AckDue, Lane, Told};
use super::close::CloseReason;
use super::core::{Session, Stage};
use super::frame::{Frame, Hello, OFFSET_MAX, Received, VERSION};
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
                out.push(Frame::Close { code });
            }
            return;
        }
        let mut batch = Batch { now, leg, room: max_bytes, out };
        if !self.about_leg(&mut batch) || self.selected() != Some(leg) {
            return;
        }
        self.control(&mut batch);
        self.bytes(&mut batch);
        if let Stage::Closing(code, _) = self.stage
            && !self.has_transmit(leg)
        {
            self.end(CloseReason::ByUs(code), Some(code));
            self.poll_transmit(now, leg, max_bytes, batch.out);
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
        if !state.hello_sent || state.pong.is_some() || state.ping_wanted {
            return true;
        }
        self.has_queued() && self.selected() == Some(leg)
    }

    /// [`Self::poll_transmit`] would begin with something that goes before bulk.
    #[must_use]
    pub fn has_urgent(&self, leg: LegId) -> bool {
        let Some(state) = self.legs.get(&leg) else { return false };
        let about_leg = state.pong.is_some() || state.ping_wanted || self.is_closed();
        let queued = !self.control.is_empty() || !self.interactive.is_empty();
        self.has_transmit(leg) && (about_leg || queued)
    }

    /// Frames of channels wait for a leg.
    pub(super) fn has_queued(&self) -> bool {
        !self.control.is_empty()
            || !self.over.is_empty()
            || !self.interactive.is_empty()
            || !self.bulk.is_empty()
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
        let channels = self.channels.iter_mut().map(|(id, channel)| channel.tell(*id)).collect();
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
            let (received, limit) = (0, 0);
            batch.push(Frame::Ack(Received {
                channel,
                received,
                limit,
                fin_seen: true,
                reset_seen: true,
            }));
        }
        while batch.room > 0
            && let Some(id) = self.control.pop_front()
        {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            channel.in_control = false;
            if channel.open == Told::Wanted {
                channel.open = Told::Sent(batch.leg);
                let limit = channel.receive.tell().1.min(OFFSET_MAX - 1);
                batch.push(Frame::Open { channel: id, limit });
            }
            if channel.reset == Told::Wanted {
                channel.reset = Told::Sent(batch.leg);
                batch.push(Frame::Reset { channel: id, code: channel.reset_code });
            }
            if channel.ack == AckDue::Now {
                batch.push(Frame::Ack(channel.tell(id)));
            }
            if let Some(leg) = self.legs.get_mut(&batch.leg) {
                leg.moves();
            }
        }
    }

    fn bytes(&mut self, batch: &mut Batch<'_>) {
        while batch.room > 0
            && let Some((id, lane)) = self.next_in_lane()
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
            self.bytes_of(id, batch);
            self.requeue(id, lane);
        }
    }

    /// One frame of bytes, and FIN when they were the last.
    fn bytes_of(&mut self, id: ChannelId, batch: &mut Batch<'_>) {
        let on = batch.leg;
        let next = self.with_send(id, |send| send.next(on)).flatten();
        let mut carried = 0;
        if let Some((offset, bytes)) = next {
            carried = bytes.len() as u64;
            batch.push(Frame::Data { channel: id, offset, bytes });
        }
        if let Some(leg) = self.legs.get_mut(&on) {
            if carried > 0 { leg.carries(batch.now, carried) } else { leg.moves() }
        }
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.send.fin == Fin::Wanted && channel.send.pending() == 0 {
            channel.send.fin = Fin::Sent(on);
            batch.push(Frame::Fin { channel: id, offset: channel.send.end() });
        }
    }

    /// Interactive channels first; bulk gets a turn after [`INTERACTIVE_RUN`] of them.
    fn next_in_lane(&mut self) -> Option<(ChannelId, Lane)> {
        if (self.interactive_run < INTERACTIVE_RUN || self.bulk.is_empty())
            && let Some(id) = self.interactive.pop_front()
        {
            self.interactive_run += 1;
            return Some((id, Lane::Interactive));
        }
        self.interactive_run = 0;
        self.bulk.pop_front().map(|id| (id, Lane::Bulk))
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

/// Frames being gathered for one leg.
struct Batch<'a> {
    now: Instant,
    leg: LegId,
    room: usize,
    out: &'a mut Vec<Frame>,
}

impl Batch<'_> {
    fn push(&mut self, frame: Frame) {
        self.room = self.room.saturating_sub(frame.wire_len());
        self.out.push(frame);
    }
}
