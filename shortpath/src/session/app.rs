//! What the application may ask: open, write, read, finish, reset, release.
use bytes::Bytes;

use super::channel::{Nature, Told};
use super::close::{CLOSE_NORMAL, CloseReason, RESET_DROPPED};
use super::core::{ReadOutcome, Session, Stage};
use super::limits::CHUNK_COST;
use super::send::Fin;
use super::words::{ChannelError, ChannelId, OpenError};

impl Session {
    /// Opens a channel; bytes may be written at once, leg or not.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&mut self) -> Result<ChannelId, OpenError> {
        self.open_as(Nature::Stream)
    }

    pub(super) fn open_as(&mut self, nature: Nature) -> Result<ChannelId, OpenError> {
        if !matches!(self.stage, Stage::Open) {
            return Err(OpenError::Closed);
        }
        let next = self.opened.checked_add(2).ok_or(OpenError::ChannelLimit)?;
        let id = ChannelId::new(self.opened).ok_or(OpenError::ChannelLimit)?;
        if self.own_held >= self.config.own_channels_max() {
            return Err(OpenError::ChannelLimit);
        }
        self.opened = next;
        self.own_held += 1;
        self.insert_channel(id, Told::Wanted, nature);
        self.enqueue_control(id);
        Ok(id)
    }

    /// Takes what may be taken from the front of `bytes`. What is left must wait for [`Event::Writable`](super::Event::Writable).
    ///
    /// # Errors
    /// [`ChannelError`] once nothing more can be written.
    pub fn write(&mut self, id: ChannelId, bytes: &mut Bytes) -> Result<(), ChannelError> {
        let budget = self.config.replay_bytes_max.saturating_sub(self.replay + CHUNK_COST) as u64;
        let closed = self.closed_error();
        let channel = self.channels.get_mut(&id).ok_or(closed.unwrap_or(ChannelError::Finished))?;
        if let Some(error) = channel.write_error().or(closed) {
            return Err(error);
        }
        let taken = channel.send.room().min(budget).min(bytes.len() as u64);
        let part = bytes.split_to(usize::try_from(taken).unwrap_or(usize::MAX).min(bytes.len()));
        channel.send.blocked = !bytes.is_empty();
        if channel.send.blocked && budget <= taken {
            self.starved.insert(id);
        }
        if !part.is_empty() {
            self.bytes_sent += taken;
            self.rescued.earn(taken);
            if let Some(limits) = &self.config.redundancy {
                self.budget.earn(limits, taken);
            }
            self.with_send(id, |send| send.write(part));
            self.enqueue_data(id);
        }
        Ok(())
    }

    /// Ends our direction after what was written. Does nothing on a channel that has ended.
    pub fn finish(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.send.fin == Fin::None && channel.is_live() {
            channel.send.fin = Fin::Wanted;
            self.enqueue_data(id);
        }
    }

    /// Whether the peer has everything that was written, and its end. If not yet,
    /// [`Event::Writable`](super::Event::Writable) will come.
    ///
    /// # Errors
    /// [`ChannelError`] once it never will be known: the peer reset the channel, the session is over, or this end was
    /// never finished.
    pub fn delivered(&mut self, id: ChannelId) -> Result<bool, ChannelError> {
        let closed = self.closed_error();
        let channel = self.channels.get_mut(&id).ok_or(closed.unwrap_or(ChannelError::Finished))?;
        if channel.send.fin == Fin::Acked {
            return Ok(true);
        }
        if let Some(code) = channel.reset_by_peer {
            return Err(ChannelError::Reset(code));
        }
        if channel.reset != Told::Nothing || channel.send.fin == Fin::None {
            return Err(ChannelError::Finished);
        }
        closed.map_or(Ok(()), Err)?;
        channel.send.blocked = true;
        Ok(false)
    }

    /// The session was closed as done, after all of the peer's direction had arrived: what is unread is the whole tail.
    #[must_use]
    pub fn closed_after_end(&self, id: ChannelId) -> bool {
        let normal = match &self.stage {
            Stage::Closed(CloseReason::ByPeer(code) | CloseReason::ByUs(code), _)
            | Stage::Closing(code, _) => *code == CLOSE_NORMAL,
            _ => false,
        };
        normal && self.channels.get(&id).is_some_and(|channel| channel.receive.is_complete())
    }

    /// Ends both directions at once; bytes still on their way are dropped at both ends. Does nothing on a channel that
    /// has ended.
    pub fn reset(&mut self, id: ChannelId, code: u16) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.is_live() && !channel.is_settled() {
            channel.reset = Told::Wanted;
            channel.reset_code = code;
            self.drop_bytes(id);
            self.wake(id);
            self.enqueue_control(id);
        }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// [`ChannelError`] once nothing more will come; bytes that had arrived before the session closed come first.
    pub fn read(&mut self, id: ChannelId) -> Result<ReadOutcome, ChannelError> {
        let closed = self.closed_error();
        let channel = self.channels.get_mut(&id).ok_or(closed.unwrap_or(ChannelError::Finished))?;
        if let Some(code) = channel.reset_by_peer.filter(|_| !channel.receive.is_complete()) {
            return Err(ChannelError::Reset(code));
        }
        if channel.reset != Told::Nothing {
            return Err(ChannelError::Finished);
        }
        if let Some(bytes) = channel.receive.read() {
            self.bytes_received += bytes.len() as u64;
            self.open_window(id);
            return Ok(ReadOutcome::Bytes(bytes));
        }
        if channel.receive.is_complete() {
            return Ok(ReadOutcome::End);
        }
        if let Some(error) = closed {
            return Err(error);
        }
        channel.receive.waiting = true;
        Ok(ReadOutcome::Wait)
    }

    /// The application is done with the channel. One whose own direction is unfinished is reset; one that is finished is
    /// delivered, and whatever the peer still sends is dropped.
    pub fn release(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        channel.released = true;
        let unread = channel.send.fin == Fin::Acked && !channel.receive.is_complete();
        if channel.send.fin == Fin::None || unread {
            self.reset(id, RESET_DROPPED);
        } else {
            channel.receive.discard();
        }
        self.forget_if_done(id);
    }

    /// Why the application gets no further, if the session is ending.
    pub(super) fn closed_error(&self) -> Option<ChannelError> {
        match self.stage {
            Stage::Open => None,
            Stage::Closed(CloseReason::Lost, _) => Some(ChannelError::Lost),
            Stage::Closing(..) | Stage::Closed(..) => Some(ChannelError::Closed),
        }
    }
}
