//! A channel: its two halves, and what the two ends must tell each other about it.
use super::close::ProtocolError;
use super::flow::Flow;
use super::frame::Received;
use super::receive::ReceiveHalf;
use super::send::{Fin, SendHalf};
use super::words::{ChannelError, ChannelId, LegId};

/// A fact the peer must learn: re-sent whenever the leg that carried it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// There is nothing to tell.
    Nothing,
    Wanted,
    Sent(LegId),
    Known,
}

/// When the peer is to hear what has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckDue {
    No,
    /// With the next bytes, or after the delay.
    Delayed,
    Now,
}

/// Which line a channel with bytes to send stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    None,
    Interactive,
    Bulk,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) send: SendHalf,
    pub(super) receive: ReceiveHalf,
    pub(super) open: Told,
    pub(super) reset: Told,
    pub(super) reset_code: u16,
    pub(super) reset_by_peer: Option<u16>,
    pub(super) ack: AckDue,
    pub(super) in_control: bool,
    pub(super) lane: Lane,
    /// The application will not ask about it any more.
    pub(super) released: bool,
    pub(super) nature: Nature,
    pub(super) flow: Flow,
}

/// What a channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    /// The peer opened it, and later ones came first: the application has yet to hear of it.
    Untold,
    Stream,
    Datagrams,
}

impl Channel {
    pub(super) fn new(send: SendHalf, receive: ReceiveHalf, open: Told, nature: Nature) -> Self {
        Self {
            send,
            receive,
            open,
            reset: Told::Nothing,
            reset_code: 0,
            reset_by_peer: None,
            ack: AckDue::No,
            in_control: false,
            lane: Lane::None,
            released: false,
            nature,
            flow: Flow::default(),
        }
    }

    /// Neither end has reset it.
    pub(super) fn is_live(&self) -> bool {
        self.reset == Told::Nothing && self.reset_by_peer.is_none()
    }

    /// Neither end needs anything from the other any more.
    pub(super) fn is_settled(&self) -> bool {
        self.reset_by_peer.is_some()
            || self.reset == Told::Known
            || (self.send.fin == Fin::Acked && self.receive.is_complete())
    }

    /// Why the application cannot write, if so.
    pub(super) fn write_error(&self) -> Option<ChannelError> {
        if let Some(code) = self.reset_by_peer {
            return Some(ChannelError::Reset(code));
        }
        let over = self.send.fin != Fin::None || self.reset != Told::Nothing;
        over.then_some(ChannelError::Finished)
    }

    /// Something besides bytes and FIN is to be told.
    pub(super) fn has_control(&self) -> bool {
        self.open == Told::Wanted || self.reset == Told::Wanted || self.ack == AckDue::Now
    }

    /// What to tell the peer of this channel; it counts as told.
    pub(super) fn tell(&mut self, channel: ChannelId) -> Received {
        self.ack = AckDue::No;
        self.state(channel)
    }

    /// What a leg besides the selected one tells the peer of this channel.
    pub(super) fn state(&mut self, channel: ChannelId) -> Received {
        let opens = self.receive.owes_limit();
        let (received, limit) = self.receive.tell();
        let (fin_seen, reset_seen) = (self.receive.is_complete(), self.reset_by_peer.is_some());
        Received { channel, received, limit, fin_seen, reset_seen, opens }
    }

    /// `leg` carries the word of its beginning or end.
    pub(super) fn takes_state_from(&self, leg: LegId) -> bool {
        self.open == Told::Sent(leg)
            || self.reset == Told::Sent(leg)
            || self.send.fin == Fin::Sent(leg)
    }

    /// What was sent on `leg` may be lost.
    pub(super) fn reclaim(&mut self, leg: LegId) {
        self.send.reclaim(leg);
        for told in [&mut self.open, &mut self.reset] {
            if *told == Told::Sent(leg) {
                *told = Told::Wanted;
            }
        }
    }

    /// Takes the peer's receive state. Older states than known ones change nothing.
    pub(super) fn peer_state(&mut self, state: &Received) -> Result<(), ProtocolError> {
        if self.open != Told::Nothing {
            self.open = Told::Known;
        }
        if state.fin_seen && state.reset_seen {
            return self.peer_forgot();
        }
        if state.reset_seen {
            if self.reset == Told::Nothing && self.reset_by_peer.is_none() {
                return Err(ProtocolError::Ack);
            }
            self.acknowledge_reset();
        }
        if !self.is_live() {
            return Ok(());
        }
        self.send.ack(state.received)?;
        self.send.raise_limit(state.limit);
        if state.fin_seen {
            if self.send.fin == Fin::None || state.received != self.send.end() {
                return Err(ProtocolError::Ack);
            }
            self.send.fin = Fin::Acked;
        }
        Ok(())
    }

    /// The peer knows the channel no more: it had all it needed, so all we told it has arrived.
    pub(super) fn peer_forgot(&mut self) -> Result<(), ProtocolError> {
        if self.is_live() && self.send.fin == Fin::None {
            return Err(ProtocolError::Ack);
        }
        if self.send.fin != Fin::None {
            self.send.fin = Fin::Acked;
        }
        self.acknowledge_reset();
        self.send.drop_bytes();
        Ok(())
    }

    fn acknowledge_reset(&mut self) {
        if self.reset != Told::Nothing {
            self.reset = Told::Known;
        }
    }
}
