//! The bookkeeping that the parts of a session share: queues, sums against limits, wake-ups, forgetting.
use super::channel::{AckDue, Channel, Lane, Nature, Told};
use super::close::{CLOSE_PROTOCOL, CloseReason, ProtocolError};
use super::core::{Event, Session, Stage};
use super::limits::{CHUNK_COST, INTERACTIVE_BYTES, WINDOW_IMPLIED};
use super::receive::ReceiveHalf;
use super::send::SendHalf;
use super::words::{ChannelError, ChannelId, LegId};

impl Session {
    /// The session is over; with a code, legs may still say so.
    pub(super) fn end(&mut self, reason: CloseReason, code: Option<u16>) {
        if self.is_closed() {
            return;
        }
        self.stage = Stage::Closed(reason.clone(), code);
        self.wake_all();
        let ids: Vec<_> = self.channels.keys().copied().collect();
        for id in ids {
            if let Some(error) = self.closed_error() {
                self.note_failed(id, error);
            }
            self.with_send(id, SendHalf::drop_bytes);
            self.forget_if_done(id);
        }
        self.events.push_back(Event::Closed(reason));
    }

    /// Ends a session that is being closed once nothing holds its CLOSE back.
    pub(super) fn close_if_brought(&mut self) {
        if let Stage::Closing(code, _) = self.stage
            && self.is_brought()
            && !self.has_queued()
            && self.selected().is_none_or(|leg| !self.has_transmit(leg))
        {
            self.end(CloseReason::ByUs(code), Some(code));
        }
    }

    /// CLOSE may leave on every leg. Each keeps it behind its own bytes only, so where there are several, one that is idle
    /// would cut off what is on its way on another.
    pub(super) fn is_brought(&self) -> bool {
        self.legs.len() < 2
            || self.channels.values().all(|channel| !channel.is_live() || channel.send.is_brought())
    }

    pub(super) fn fail(&mut self, error: ProtocolError) {
        self.end(CloseReason::Protocol(error.to_string()), Some(CLOSE_PROTOCOL));
    }

    pub(super) fn insert_channel(&mut self, id: ChannelId, open: Told, nature: Nature) {
        let room = self.config.receive_bytes_max.saturating_sub(self.windows);
        let initial = self.config.window_initial.max(WINDOW_IMPLIED);
        let window = if initial - WINDOW_IMPLIED <= room { initial } else { WINDOW_IMPLIED };
        let receive = ReceiveHalf::new(window, self.config.window_max);
        self.windows += receive.window_extra();
        let channel = Channel::new(SendHalf::new(WINDOW_IMPLIED), receive, open, nature);
        self.channels.insert(id, channel);
    }

    /// Changes a sending half and keeps the sum over all of them.
    pub(super) fn with_send<T>(
        &mut self,
        id: ChannelId,
        change: impl FnOnce(&mut SendHalf) -> T,
    ) -> Option<T> {
        let send = &mut self.channels.get_mut(&id)?.send;
        let before = send.retained();
        let result = change(send);
        self.replay = self.replay + send.retained() - before;
        Some(result)
    }

    /// As [`Self::with_send`], for changes to the whole channel.
    pub(super) fn with_channel<T>(
        &mut self,
        id: ChannelId,
        change: impl FnOnce(&mut Channel) -> T,
    ) -> Option<T> {
        let channel = self.channels.get_mut(&id)?;
        let before = channel.send.retained();
        let result = change(channel);
        self.replay = self.replay + channel.send.retained() - before;
        Some(result)
    }

    pub(super) fn enqueue_control(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.get_mut(&id)
            && channel.has_control()
            && !std::mem::replace(&mut channel.in_control, true)
        {
            self.control.push_back(id);
        }
    }

    pub(super) fn enqueue_data(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.lane != Lane::None || !channel.is_live() || !channel.send.has_output() {
            return;
        }
        if channel.send.pending() <= INTERACTIVE_BYTES {
            channel.lane = Lane::Interactive;
            self.interactive.push_back(id);
        } else {
            channel.lane = Lane::Bulk;
            self.bulk.push_back(id);
        }
    }

    /// What was sent on `leg` may be lost: all of it is to be told again.
    pub(super) fn reclaim(&mut self, leg: LegId) {
        // A leg still to begin will say in its HELLO what acknowledgements say.
        let others = self.legs.iter().any(|(id, other)| *id != leg && other.hello_sent);
        let ids: Vec<_> = self.channels.keys().copied().collect();
        for id in ids {
            if let Some(channel) = self.channels.get_mut(&id) {
                channel.reclaim(leg);
                if others {
                    channel.ack = AckDue::Now;
                }
            }
            self.enqueue_control(id);
            self.enqueue_data(id);
        }
    }

    /// Drops both directions' bytes.
    pub(super) fn drop_bytes(&mut self, id: ChannelId) {
        self.with_channel(id, |channel| {
            channel.send.drop_bytes();
            channel.receive.drop_bytes();
            channel.flow.out.clear();
        });
        self.wake_starved();
    }

    /// Tells those who wait for neither a read nor a write.
    pub(super) fn note_failed(&mut self, channel: ChannelId, error: ChannelError) {
        let Some(state) = self.channels.get(&channel) else { return };
        let cut = matches!(error, ChannelError::Reset(_)) && !state.receive.is_complete();
        self.events.push_back(Event::Failed { channel, error, cut });
    }

    /// Lets writers on that waited for the replay limit.
    pub(super) fn wake_starved(&mut self) {
        if self.replay + CHUNK_COST < self.config.replay_bytes_max {
            for id in std::mem::take(&mut self.starved) {
                self.wake_writer(id);
            }
        }
    }

    pub(super) fn wake_writer(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.get_mut(&id)
            && std::mem::take(&mut channel.send.blocked)
        {
            self.events.push_back(Event::Writable(id));
        }
    }

    pub(super) fn wake_reader(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.get_mut(&id)
            && std::mem::take(&mut channel.receive.waiting)
        {
            self.events.push_back(Event::Readable(id));
        }
    }

    pub(super) fn wake(&mut self, id: ChannelId) {
        self.wake_reader(id);
        self.wake_writer(id);
    }

    /// Removes a channel that neither the peer nor the application needs.
    pub(super) fn forget_if_done(&mut self, id: ChannelId) {
        let closed = self.is_closed();
        let Some(channel) = self.channels.get(&id) else { return };
        if !channel.released || !(channel.is_settled() || closed) {
            return;
        }
        if channel.ack != AckDue::No {
            self.note_over(id);
        }
        self.drop_bytes(id);
        if let Some(channel) = self.channels.remove(&id) {
            self.windows -= channel.receive.window_extra();
            let held =
                if id.opened_by(self.role) { &mut self.own_held } else { &mut self.peers_held };
            *held -= 1;
        }
    }

    pub(super) fn wake_all(&mut self) {
        let ids: Vec<_> = self.channels.keys().copied().collect();
        ids.into_iter().for_each(|id| self.wake(id));
    }

    /// After a read: a larger window for a fast reader, and word to the peer when it matters.
    pub(super) fn open_window(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let room = self.config.receive_bytes_max.saturating_sub(self.windows);
        self.windows += channel.receive.grow(room);
        if channel.receive.owes_limit() {
            channel.ack = AckDue::Now;
            self.enqueue_control(id);
        }
    }
}

#[cfg(test)]
impl Session {
    /// Panics when what a session holds exceeds its limits, or its sums are wrong.
    pub(super) fn check_bounds(&self) {
        let retained: usize = self.channels.values().map(|channel| channel.send.retained()).sum();
        assert_eq!(retained, self.replay);
        assert!(self.replay <= self.config.replay_bytes_max + CHUNK_COST * self.channels.len());
        let windows: u64 = self.channels.values().map(|c| c.receive.window_extra()).sum();
        assert_eq!(windows, self.windows);
        assert!(self.windows <= self.config.receive_bytes_max);
        let held: usize = self.channels.values().map(|channel| channel.receive.held()).sum();
        let bound = self.config.receive_bytes_max + WINDOW_IMPLIED * self.channels.len() as u64;
        assert!(held as u64 <= bound);
        assert!(self.legs.len() <= super::limits::LEGS_MAX);
        assert!(self.flows.len() <= self.channels.len());
        for leg in self.legs.values() {
            leg.check_bounds();
        }
    }
}
