//! Channels that carry datagrams: unreliable, unordered, bounded; over datagrams of a UDP leg, or in the stream where a leg
//! has none or they are too long for one.
use std::time::Instant;

use bytes::Bytes;

use super::channel::Nature;
use super::close::ProtocolError;
use super::core::{Session, Stage};
use super::frame::{DATAGRAM_MAX, Frame, Mark};
use super::outbound::Batch;
use super::words::{ChannelError, ChannelId, DatagramError, LegId, OpenError};

/// What a datagram frame adds to its payload.
const HEADER: usize = 8;

impl Session {
    /// Opens a channel for datagrams. It ends by [`Self::reset`] or [`Self::release`], of either end.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_datagrams(&mut self) -> Result<ChannelId, OpenError> {
        self.open_as(Nature::Datagrams)
    }

    /// Queues a datagram of up to [`DATAGRAM_MAX`] bytes. The oldest waiting ones give way.
    ///
    /// # Errors
    /// [`DatagramError`].
    pub fn send_datagram(&mut self, id: ChannelId, bytes: Bytes) -> Result<(), DatagramError> {
        if bytes.len() > DATAGRAM_MAX {
            return Err(DatagramError::TooLong);
        }
        let ended = self.datagrams_ended(id);
        if let Some(error) = ended {
            return Err(error.into());
        }
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        self.bytes_sent += bytes.len() as u64;
        let before = channel.flow.out.dropped;
        channel.flow.out.push(bytes);
        self.datagrams_dropped += channel.flow.out.dropped - before;
        if !std::mem::replace(&mut channel.flow.queued, true) {
            self.flows.push_back(id);
        }
        Ok(())
    }

    /// The next datagram that has come; `None`: wait for [`Event::Readable`](super::Event::Readable).
    ///
    /// # Errors
    /// [`ChannelError`] once none will come; those that had arrived come first.
    pub fn read_datagram(&mut self, id: ChannelId) -> Result<Option<Bytes>, ChannelError> {
        let ended = self.datagrams_ended(id);
        let Some(channel) = self.channels.get_mut(&id) else {
            return Err(ended.unwrap_or(ChannelError::Finished));
        };
        if let Some(bytes) = channel.flow.arrived.pop() {
            self.bytes_received += bytes.len() as u64;
            return Ok(Some(bytes));
        }
        ended.map_or(Ok(()), Err)?;
        channel.receive.waiting = true;
        Ok(None)
    }

    /// The next frame to leave on a UDP leg as one unreliable datagram. Call until `None` while [`Self::has_datagram`].
    pub fn poll_datagram(&mut self, now: Instant, leg: LegId) -> Option<Frame> {
        if self.is_closed() {
            return None;
        }
        let frame = self.ripe_copy(leg).or_else(|| self.short_datagram(leg))?;
        if let Some(leg) = self.legs.get_mut(&leg) {
            leg.carries(now, &frame);
        }
        Some(frame)
    }

    /// [`Self::poll_datagram`] should be called for `leg`. It may yield nothing when what was queued is moot.
    #[must_use]
    pub fn has_datagram(&self, leg: LegId) -> bool {
        let Some(state) = self.legs.get(&leg).filter(|_| !self.is_closed()) else { return false };
        !state.ripe.is_empty()
            || (self.selected() == Some(leg)
                && self.flows.iter().any(|id| self.fits(*id, state.datagram_max)))
    }

    /// The longest frame a datagram of `leg` holds now; 0: it has no datagrams.
    pub fn set_datagram_max(&mut self, leg: LegId, max: usize) {
        if let Some(leg) = self.legs.get_mut(&leg)
            && leg.kind.is_udp()
        {
            leg.datagram_max = max;
        }
    }

    /// Datagrams in the stream of the selected leg: those too long for its datagrams.
    pub(super) fn long_datagrams(&mut self, batch: &mut Batch<'_>) {
        let max = self.legs.get(&batch.leg).map_or(0, |leg| leg.datagram_max);
        for _ in 0..self.flows.len() {
            let Some(id) = self.flows.pop_front() else { return };
            while batch.room > 0
                && self.next_len(id).is_some_and(|len| len > max)
                && let Some(bytes) = self.next_datagram(id)
            {
                batch.push(Frame::Datagram { channel: id, bytes, loose: false });
            }
            self.requeue_flow(id);
        }
    }

    /// The stream of a leg has datagrams to carry.
    pub(super) fn has_long_datagrams(&self, leg: LegId) -> bool {
        let max = self.legs.get(&leg).map_or(0, |leg| leg.datagram_max);
        self.flows.iter().any(|id| self.next_len(*id).is_some_and(|len| len > max))
    }

    /// A datagram has come. Those of a channel that is over, or that no one reads, are dropped.
    pub(super) fn datagram(&mut self, id: ChannelId, bytes: Bytes) -> Result<(), ProtocolError> {
        if !self.held_as(id, Nature::Datagrams)? {
            return Ok(());
        }
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        if channel.is_live() && !channel.released {
            let before = channel.flow.arrived.dropped;
            channel.flow.arrived.push(bytes);
            self.datagrams_dropped += channel.flow.arrived.dropped - before;
            self.wake_reader(id);
        }
        Ok(())
    }

    fn ripe_copy(&mut self, leg: LegId) -> Option<Frame> {
        loop {
            let state = self.legs.get_mut(&leg)?;
            let max = state.datagram_max;
            let (id, range) = state.ripe.pop_front()?;
            let Some(channel) = self.channels.get_mut(&id).filter(|channel| channel.is_live())
            else {
                continue;
            };
            if let Some((offset, bytes)) = channel.send.peek(&range)
                && bytes.len() + 2 * HEADER <= max
            {
                self.copies_sent(bytes.len());
                return Some(Frame::Data { channel: id, offset, bytes, mark: Mark::Loose });
            }
        }
    }

    fn short_datagram(&mut self, leg: LegId) -> Option<Frame> {
        if self.selected() != Some(leg) {
            return None;
        }
        let max = self.legs.get(&leg)?.datagram_max;
        let at = self.flows.iter().position(|id| self.fits(*id, max))?;
        let id = self.flows.remove(at)?;
        let bytes = self.next_datagram(id)?;
        self.requeue_flow(id);
        Some(Frame::Datagram { channel: id, bytes, loose: true })
    }

    /// The next datagram of a channel fits into one of `max` bytes.
    fn fits(&self, id: ChannelId, max: usize) -> bool {
        self.next_len(id).is_some_and(|len| len <= max)
    }

    /// Length of the frame that the next datagram of a channel makes.
    fn next_len(&self, id: ChannelId) -> Option<usize> {
        self.channels.get(&id)?.flow.out.next_len().map(|len| len + HEADER)
    }

    fn next_datagram(&mut self, id: ChannelId) -> Option<Bytes> {
        self.channels.get_mut(&id)?.flow.out.pop()
    }

    fn requeue_flow(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        channel.flow.queued = channel.flow.out.next_len().is_some();
        if channel.flow.queued {
            self.flows.push_back(id);
        }
    }

    fn datagrams_ended(&self, id: ChannelId) -> Option<ChannelError> {
        let closed = match self.stage {
            Stage::Open => None,
            _ => self.closed_error(),
        };
        let Some(channel) = self.channels.get(&id) else {
            return Some(closed.unwrap_or(ChannelError::Finished));
        };
        let wrong = channel.nature != Nature::Datagrams;
        channel.write_error().or(closed).or(wrong.then_some(ChannelError::Finished))
    }
}
