//! What a session shows of itself.
use std::time::{Duration, Instant};

use super::core::Session;
use super::moves::Move;
use super::rtt::RttFigures;
use super::select::Standing;
use super::words::{LegId, LegKind, LegState};

/// Figures of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// A leg carries the session.
    pub connected: bool,
    /// Transport of the leg that carries it.
    pub leg: Option<LegKind>,
    /// Round-trip time of that leg.
    pub rtt: Option<RttFigures>,
    /// Application bytes taken.
    pub bytes_sent: u64,
    /// Application bytes handed out.
    pub bytes_received: u64,
    /// Channels held.
    pub channels: usize,
    /// Legs lost.
    pub legs_lost: u32,
    /// Every leg attached.
    pub legs: Vec<LegFigures>,
    /// The last 32 moves, oldest first, and among them the last 16 stalls that ended without one.
    pub moves: Vec<Move>,
    /// Copies of frames sent: of small writes, and of what a suspect leg carries.
    pub dup_sent: u64,
    /// Their payload bytes.
    pub dup_bytes: u64,
    /// Copies of ours that came before their originals.
    pub dup_won: u64,
    /// Estimate of what they saved: for each, the probe timeout of the leg its original was on, the least that re-sending
    /// would have taken.
    pub saved: Duration,
    /// Times a transport found packets of full size vanishing, and went back to small ones.
    pub black_holes: u64,
    /// Datagrams given up for newer ones.
    pub datagrams_dropped: u64,
}

/// Figures of one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegFigures {
    /// Its name at this end.
    pub leg: LegId,
    /// Its transport.
    pub kind: LegKind,
    /// What it is to the session.
    pub state: LegState,
    /// Its round trip; `None` before the first sample.
    pub rtt: Option<RttFigures>,
    /// Lost packets in a million, averaged over the last few hundred; 0 where the transport does not tell.
    pub loss_ppm: u32,
    /// Bytes a second it achieved when it was last kept busy.
    pub rate: Option<u64>,
    /// Bytes of frames of channels handed to it.
    pub bytes_sent: u64,
    /// Bytes of frames that came on it.
    pub bytes_received: u64,
}

impl Session {
    /// Figures of `now`.
    #[must_use]
    pub fn figures(&self, now: Instant) -> Figures {
        let leg = self.selected().and_then(|leg| self.legs.get(&leg)).filter(|leg| leg.ready);
        Figures {
            connected: self.down_since.is_none() && !self.is_closed(),
            leg: leg.map(|leg| leg.kind),
            rtt: leg.and_then(|leg| leg.rtt.figures()),
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
            channels: self.channels.len(),
            legs_lost: self.legs_lost,
            legs: self.legs.keys().filter_map(|id| self.leg_figures(now, *id)).collect(),
            moves: self.course.timeline.iter().copied().collect(),
            dup_sent: self.dup_sent,
            dup_bytes: self.dup_bytes,
            dup_won: self.dup_won,
            saved: self.saved,
            black_holes: self.black_holes,
            datagrams_dropped: self.datagrams_dropped,
        }
    }

    fn leg_figures(&self, now: Instant, id: LegId) -> Option<LegFigures> {
        let leg = self.legs.get(&id)?;
        let standing = leg.candidate(now, id, false).standing;
        let state = match standing {
            Standing::Unready => LegState::Starting,
            Standing::Quarantined => LegState::Quarantined,
            Standing::Doubtful => LegState::Suspect,
            _ if self.selected() == Some(id) => LegState::Selected,
            Standing::Demoted | Standing::Well => LegState::Standby,
        };
        Some(LegFigures {
            leg: id,
            kind: leg.kind,
            state,
            rtt: leg.rtt.figures(),
            loss_ppm: leg.path.loss_ppm(),
            rate: leg.meter.rate().map(|(rate, _)| rate),
            bytes_sent: leg.meter.sent(),
            bytes_received: leg.bytes_received,
        })
    }
}
