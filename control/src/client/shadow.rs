//! Watching another session, and being asked whether one's own may be watched.
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use switchback_shortpath::{ChannelReader, ChannelWriter};
use tokio::sync::broadcast;

use super::Client;
use super::session::{ClientSession, reset_fault};
use crate::code::{Code, Fault};
use crate::shadow::frame::{Decoder, Frame};
use crate::wire::{SessionNotice, SessionPurpose, ShadowWish};

/// How long the user of a session may think, as the broker has it, and a round trip.
pub(super) const CONSENT_PATIENCE: Duration = Duration::from_secs(32);

impl Client {
    /// Opens a watch. If the session's user is to be asked, this waits for the answer.
    ///
    /// # Errors
    /// [`Code::SessionUnknown`] also for one that may not be watched; [`Code::ConsentRefused`],
    /// [`Code::ConsentUnanswered`], [`Code::ShadowNeedsControl`]; as [`Client::open`].
    pub async fn shadow(&self, wish: ShadowWish) -> Result<ClientSession, Fault> {
        self.make("", SessionPurpose::Shadow(wish), false).await
    }

    /// What the user is to be told of this client's sessions, from now on. While nobody listens, nobody may watch whose
    /// policy asks for consent.
    #[must_use]
    pub fn notices(&self) -> broadcast::Receiver<SessionNotice> {
        self.desk.notices()
    }

    /// The user's answer to [`SessionNotice::ConsentAsked`].
    pub fn consent(&self, id: u64, yes: bool) {
        self.desk.consent(id, yes);
    }
}

/// What a watch shows.
#[derive(Debug)]
pub struct Watching {
    reader: ChannelReader,
    decoder: Decoder,
}

/// Sends input into the session that is watched. Dropped, the watch ends.
#[derive(Debug)]
pub struct Injector(ChannelWriter);

/// Begins to watch by a session of [`Client::shadow`] that does not see a target.
///
/// # Errors
/// Why there is no channel.
pub fn watch(session: &ClientSession) -> Result<(Watching, Injector), Fault> {
    let (reader, writer) = session.open_channel()?.split();
    Ok((Watching { reader, decoder: Decoder::default() }, Injector(writer)))
}

impl Watching {
    /// The next frame; `None` after the last. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Why the watch ended early.
    pub async fn next(&mut self) -> Result<Option<Frame>, Fault> {
        loop {
            let frame = self.decoder.next_frame();
            let broken =
                |error| Code::SessionProtocol.because(format!("the agent's watch: {error}"));
            if let Some(frame) = frame.map_err(|error| broken(error.to_string()))? {
                return Ok(Some(frame));
            }
            match self.reader.read().await.map_err(reset_fault)? {
                Some(bytes) => self.decoder.push(&bytes),
                None => return Ok(None),
            }
        }
    }
}

impl Injector {
    /// Has bytes sent to the target as if the session's client had: all of them, or none, before any that are injected later.
    ///
    /// # Errors
    /// Why the watch is over.
    pub async fn inject(&mut self, channel: u64, bytes: Bytes) -> Result<(), Fault> {
        let mut out = BytesMut::new();
        Frame::Inject { channel, bytes }.encode(&mut out);
        self.0.write(out.freeze()).await.map_err(reset_fault)
    }
}
