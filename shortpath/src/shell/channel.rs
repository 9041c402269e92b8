//! Channels as the application holds them.
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::rope::Rope;
use super::shared::{Failure, Shared, Signals};
use crate::session::{ChannelError, ChannelId, RESET_DROPPED, ReadOutcome};

/// A byte stream in both directions. Dropped before [`Self::finish`], it is reset; dropped after, what was written is
/// still delivered.
#[derive(Debug)]
pub struct Channel {
    reader: ChannelReader,
    writer: ChannelWriter,
}

/// The receiving direction of a [`Channel`].
#[derive(Debug)]
pub struct ChannelReader {
    lease: Arc<Lease>,
}

/// The sending direction of a [`Channel`]. Dropped before [`Self::finish`], it resets the channel.
#[derive(Debug)]
pub struct ChannelWriter {
    lease: Arc<Lease>,
    finished: bool,
}

/// The application's claim on a channel; the last half gives it back.
#[derive(Debug)]
struct Lease {
    shared: Arc<Shared>,
    id: ChannelId,
    signals: Arc<Signals>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.with(|state, _| {
            state.session.release(self.id);
            state.forget_signals(self.id);
        });
    }
}

impl Channel {
    pub(super) fn new(shared: Arc<Shared>, id: ChannelId, signals: Arc<Signals>) -> Self {
        let lease = Arc::new(Lease { shared, id, signals });
        let reader = ChannelReader { lease: Arc::clone(&lease) };
        Self { reader, writer: ChannelWriter { lease, finished: false } }
    }

    /// Its id: the same at both ends.
    #[must_use]
    pub fn id(&self) -> ChannelId {
        self.reader.lease.id
    }

    /// See [`ChannelReader::read`].
    ///
    /// # Errors
    /// As there.
    pub async fn read(&mut self) -> Result<Option<Bytes>, ChannelError> {
        self.reader.read().await
    }

    /// See [`ChannelWriter::write`].
    ///
    /// # Errors
    /// As there.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), ChannelError> {
        self.writer.write(bytes).await
    }

    /// See [`ChannelWriter::finish`].
    pub fn finish(&mut self) {
        self.writer.finish();
    }

    /// See [`ChannelWriter::reset`].
    pub fn reset(&mut self, code: u16) {
        self.writer.reset(code);
    }

    /// See [`ChannelWriter::failed`].
    pub async fn failed(&self) -> ChannelError {
        self.writer.failed().await
    }

    /// Halves for two tasks.
    #[must_use]
    pub fn split(self) -> (ChannelReader, ChannelWriter) {
        (self.reader, self.writer)
    }
}

impl ChannelReader {
    /// Waits for bytes; `None` after the last. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ChannelError`] once nothing more will come. Bytes that arrived before the session closed come first.
    pub async fn read(&mut self) -> Result<Option<Bytes>, ChannelError> {
        let Lease { shared, id, signals } = &*self.lease;
        loop {
            match shared.with(|state, _| state.session.read(*id))? {
                ReadOutcome::Bytes(bytes) => return Ok(Some(bytes)),
                ReadOutcome::End => return Ok(None),
                ReadOutcome::Wait => signals.readable.notified().await,
            }
        }
    }

    /// [`Self::read`] for one task that also watches the reader in another way: what is there, until `rope` has `enough`.
    /// False after the last.
    pub(super) async fn gather(
        &self,
        rope: &mut Rope,
        enough: usize,
    ) -> Result<bool, ChannelError> {
        let Lease { shared, id, signals } = &*self.lease;
        loop {
            let end = shared.with(|state, _| {
                while rope.remaining() < enough {
                    match state.session.read(*id) {
                        Ok(ReadOutcome::Bytes(bytes)) => rope.append(bytes),
                        Ok(ReadOutcome::Wait) => return Ok(false),
                        // It comes again once the bytes are written.
                        Ok(ReadOutcome::End) | Err(_) if rope.has_remaining() => return Ok(false),
                        Ok(ReadOutcome::End) => return Ok(true),
                        Err(error) => return Err(error),
                    }
                }
                Ok(false)
            })?;
            if end || rope.has_remaining() {
                return Ok(!end);
            }
            signals.readable.notified().await;
        }
    }

    /// See [`ChannelWriter::reset`].
    pub fn reset(&mut self, code: u16) {
        self.lease.shared.with(|state, _| state.session.reset(self.lease.id, code));
    }

    /// Waits until the peer reset the channel or the session is over; bytes that had arrived may be left to read.
    pub(super) async fn failed(&self) -> ChannelError {
        failure(&self.lease.signals, |_| true).await
    }

    /// See [`crate::session::Session::closed_after_end`].
    pub(super) fn closed_after_end(&self) -> bool {
        self.lease.shared.with(|state, _| state.session.closed_after_end(self.lease.id))
    }

    /// Waits until nothing is left to read because the peer reset the channel.
    pub(super) async fn cut(&self) -> ChannelError {
        failure(&self.lease.signals, |failure| failure.cut).await
    }
}

impl ChannelWriter {
    /// Waits until all of `bytes` are taken; they are kept until the peer has them. Dropping the future may leave a
    /// part of them written.
    ///
    /// # Errors
    /// [`ChannelError`] once nothing more can be written.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), ChannelError> {
        let Lease { shared, id, signals } = &*self.lease;
        loop {
            shared.with(|state, _| state.session.write(*id, &mut bytes))?;
            if bytes.is_empty() {
                return Ok(());
            }
            signals.writable.notified().await;
        }
    }

    /// Ends this direction after what was written; the other goes on.
    pub fn finish(&mut self) {
        self.finished = true;
        self.lease.shared.with(|state, _| state.session.finish(self.lease.id));
    }

    /// Ends both directions at once, for both ends; bytes on their way are dropped. `code` tells the peer why.
    pub fn reset(&mut self, code: u16) {
        self.finished = true;
        self.lease.shared.with(|state, _| state.session.reset(self.lease.id, code));
    }

    /// Waits until the peer's session has everything that was written and its end: call after [`Self::finish`], and before
    /// the session is closed. Without a leg it waits for one, at most the resume window.
    ///
    /// # Errors
    /// [`ChannelError`] once that will never be known: the peer reset the channel or the session is over.
    pub async fn delivered(&mut self) -> Result<(), ChannelError> {
        let Lease { shared, id, signals } = &*self.lease;
        while !shared.with(|state, _| state.session.delivered(*id))? {
            signals.writable.notified().await;
        }
        Ok(())
    }

    /// Waits until nothing more can be written because the peer reset the channel or the session is over.
    pub async fn failed(&self) -> ChannelError {
        failure(&self.lease.signals, |_| true).await
    }
}

impl Drop for ChannelWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.reset(RESET_DROPPED);
        }
    }
}

async fn failure(signals: &Signals, matches: impl Fn(&Failure) -> bool) -> ChannelError {
    let mut failed = signals.failed.subscribe();
    let found = failed.wait_for(|failure| failure.as_ref().is_some_and(&matches)).await;
    // The sender lives in `signals`, so waiting ends with a value only.
    found.ok().and_then(|failure| *failure).map_or(ChannelError::Closed, |failure| failure.error)
}
