//! The sending half of a channel: keeps every byte until the peer has it, and knows which leg each one is on.
use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::close::ProtocolError;
use super::frame::PAYLOAD_MAX;
use super::limits::{CHUNK_COST, COPY_BELOW, WINDOW_IMPLIED};
use super::words::LegId;

/// How far the end of the direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fin {
    None,
    Wanted,
    Sent(LegId),
    Acked,
}

/// Bytes `acked..end`, of which each is in exactly one place: in flight on one leg, waiting to be sent again, or (from
/// `fresh` on) not sent yet.
#[derive(Debug)]
pub(super) struct SendHalf {
    chunks: VecDeque<(u64, Bytes)>,
    small: BytesMut,
    acked: u64,
    fresh: u64,
    end: u64,
    again: VecDeque<Range<u64>>,
    flights: VecDeque<Flight>,
    limit: u64,
    pub(super) fin: Fin,
    /// The application was told to wait.
    pub(super) blocked: bool,
}

/// Bytes on their way on one leg.
#[derive(Debug)]
struct Flight {
    leg: LegId,
    range: Range<u64>,
    /// Others carry them too, as this leg is suspect.
    copied: bool,
}

impl SendHalf {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            chunks: VecDeque::new(),
            small: BytesMut::new(),
            acked: 0,
            fresh: 0,
            end: 0,
            again: VecDeque::new(),
            flights: VecDeque::new(),
            limit: limit.max(WINDOW_IMPLIED),
            fin: Fin::None,
            blocked: false,
        }
    }

    /// Takes bytes; the caller keeps within [`Self::room`]. Small writes that wait together leave in one frame.
    pub(super) fn write(&mut self, bytes: Bytes) {
        let len = bytes.len() as u64;
        if bytes.len() < COPY_BELOW {
            self.small.extend_from_slice(&bytes);
            self.end += len;
            if self.small.len() >= COPY_BELOW {
                self.settle();
            }
        } else {
            self.settle();
            self.chunks.push_back((self.end, bytes));
            self.end += len;
        }
    }

    /// The next bytes for `leg`, at most one frame's worth, lost ones first.
    pub(super) fn next(&mut self, leg: LegId) -> Option<(u64, Bytes)> {
        let (start, end) = match self.again.front() {
            Some(range) => (range.start, range.end),
            None => (self.fresh, self.end),
        };
        let bytes = self.slice(start, end)?;
        let next = start + bytes.len() as u64;
        match self.again.front_mut() {
            Some(range) if next < range.end => range.start = next,
            Some(_) => drop(self.again.pop_front()),
            None => self.fresh = next,
        }
        match self.flights.back_mut() {
            Some(last) if last.leg == leg && last.range.end == start && !last.copied => {
                last.range.end = next;
            }
            _ => self.flights.push_back(Flight { leg, range: start..next, copied: false }),
        }
        Some((start, bytes))
    }

    /// The peer has everything below `upto`.
    pub(super) fn ack(&mut self, upto: u64) -> Result<(), ProtocolError> {
        if upto > self.fresh {
            return Err(ProtocolError::Ack);
        }
        if upto <= self.acked {
            return Ok(());
        }
        self.acked = upto;
        self.flights.retain_mut(|flight| {
            flight.range.start = flight.range.start.max(upto);
            !flight.range.is_empty()
        });
        self.again.retain_mut(|range| {
            range.start = range.start.max(upto);
            range.start < range.end
        });
        while self.chunks.front().is_some_and(|(start, bytes)| start + bytes.len() as u64 <= upto) {
            self.chunks.pop_front();
        }
        Ok(())
    }

    /// The oldest bytes on `leg` that no other carries yet, at most about `room`; from now on others do.
    pub(super) fn take_uncopied(&mut self, leg: LegId, room: u64) -> Option<Range<u64>> {
        let uncopied = |flight: &&mut Flight| flight.leg == leg && !flight.copied;
        let flight =
            self.flights.iter_mut().filter(uncopied).min_by_key(|flight| flight.range.start)?;
        let (start, end) = (flight.range.start, flight.range.end);
        let cut = end.min(start + room.max(1));
        flight.range.end = cut;
        flight.copied = true;
        if cut < end {
            self.flights.push_back(Flight { leg, range: cut..end, copied: false });
        }
        Some(start..cut)
    }

    /// Suspicion of `leg` was wrong or is over: what it carries may be copied again.
    pub(super) fn forget_copies(&mut self, leg: LegId) {
        self.flights.iter_mut().filter(|one| one.leg == leg).for_each(|one| one.copied = false);
    }

    /// The bytes of `range` that the peer is not known to have, at most one frame's worth; they stay where they are.
    pub(super) fn peek(&mut self, range: &Range<u64>) -> Option<(u64, Bytes)> {
        let start = range.start.max(self.acked);
        let bytes = self.slice(start, range.end.min(self.fresh))?;
        Some((start, bytes))
    }

    /// Everything unacknowledged on `leg` is to be sent again.
    pub(super) fn reclaim(&mut self, leg: LegId) {
        if self.fin == Fin::Sent(leg) {
            self.fin = Fin::Wanted;
        }
        let mut ranges: Vec<_> = self.again.drain(..).collect();
        self.flights.retain(|flight| {
            if flight.leg == leg {
                ranges.push(flight.range.clone());
            }
            flight.leg != leg
        });
        ranges.sort_unstable_by_key(|range| range.start);
        for range in ranges {
            match self.again.back_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => self.again.push_back(range),
            }
        }
    }

    /// Forgets all bytes: nobody will want them any more.
    pub(super) fn drop_bytes(&mut self) {
        self.flights.clear();
        self.chunks.clear();
        self.small = BytesMut::new();
        self.again.clear();
        self.acked = self.end;
        self.fresh = self.end;
    }

    /// Raises the offset the peer takes bytes up to; it never falls.
    pub(super) fn raise_limit(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// Bytes the peer's window still has room for.
    pub(super) fn room(&self) -> u64 {
        self.limit.saturating_sub(self.end)
    }

    /// Bytes to hand out now.
    pub(super) fn pending(&self) -> u64 {
        let again: u64 = self.again.iter().map(|range| range.end - range.start).sum();
        again + (self.end - self.fresh)
    }

    /// A frame (bytes or FIN) could leave now.
    pub(super) fn has_output(&self) -> bool {
        self.fin == Fin::Wanted || self.fresh < self.end || !self.again.is_empty()
    }

    /// The peer has every byte, and knows of the end if there is one.
    pub(super) fn is_brought(&self) -> bool {
        self.acked == self.end && matches!(self.fin, Fin::None | Fin::Acked)
    }

    /// Number of bytes ever written.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// What keeping the unacknowledged bytes costs.
    pub(super) fn retained(&self) -> usize {
        let bytes = usize::try_from(self.end - self.acked).unwrap_or(usize::MAX);
        bytes + CHUNK_COST * self.chunks.len()
    }

    /// Bytes of one chunk from `start`, at most to `end` and one frame long.
    fn slice(&mut self, start: u64, end: u64) -> Option<Bytes> {
        if start >= end {
            return None;
        }
        if start >= self.end - self.small.len() as u64 {
            self.settle();
        }
        let index = self.chunks.partition_point(|(at, _)| *at <= start).checked_sub(1)?;
        let (at, chunk) = &self.chunks[index];
        let from = usize::try_from(start - at).ok()?;
        let most = usize::try_from(end - start).unwrap_or(usize::MAX).min(PAYLOAD_MAX);
        let to = chunk.len().min(from + most);
        (from < to).then(|| chunk.slice(from..to))
    }

    fn settle(&mut self) {
        if !self.small.is_empty() {
            let start = self.end - self.small.len() as u64;
            self.chunks.push_back((start, self.small.split().freeze()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LegId = LegId(1);
    const B: LegId = LegId(2);

    fn drain(half: &mut SendHalf, leg: LegId) -> Vec<(u64, usize)> {
        std::iter::from_fn(|| half.next(leg)).map(|(at, bytes)| (at, bytes.len())).collect()
    }

    #[test]
    fn small_writes_that_wait_together_leave_in_one_frame() {
        let mut half = SendHalf::new(0);
        (0..10).for_each(|_| half.write(Bytes::from_static(b"key")));
        assert_eq!(drain(&mut half, A), [(0, 30)]);
    }

    #[test]
    fn bytes_of_a_lost_leg_are_sent_again_and_others_are_not() {
        let mut half = SendHalf::new(0);
        half.write(Bytes::from(vec![1; 20_000]));
        half.next(A);
        half.next(B);
        half.ack(1_000).unwrap();
        half.reclaim(A);
        assert_eq!(drain(&mut half, B), [(1_000, PAYLOAD_MAX - 1_000)]);
    }

    #[test]
    fn an_acknowledgement_of_unsent_bytes_is_refused() {
        let mut half = SendHalf::new(0);
        half.write(Bytes::from_static(b"abc"));
        assert_eq!(half.ack(1), Err(ProtocolError::Ack));
    }

    #[test]
    fn each_byte_of_a_suspect_leg_is_copied_once_oldest_first_and_stays_on_it() {
        let mut half = SendHalf::new(0);
        half.write(Bytes::from(vec![1; 40_000]));
        drain(&mut half, A);
        assert_eq!(half.take_uncopied(B, 100), None);
        assert_eq!(half.take_uncopied(A, 10_000), Some(0..10_000));
        half.ack(15_000).unwrap();
        assert_eq!(half.take_uncopied(A, 1 << 20), Some(15_000..40_000));
        assert_eq!(half.take_uncopied(A, 1 << 20), None);
        assert_eq!(
            half.peek(&(0..16_000)).map(|(at, bytes)| (at, bytes.len())),
            Some((15_000, 1_000))
        );
        half.reclaim(A);
        assert_eq!(half.pending(), 25_000);
    }

    #[test]
    fn acknowledged_chunks_are_let_go() {
        let mut half = SendHalf::new(0);
        half.write(Bytes::from(vec![1; 8_192]));
        half.write(Bytes::from(vec![1; 8_192]));
        drain(&mut half, A);
        half.ack(8_192).unwrap();
        assert_eq!(half.retained(), 8_192 + CHUNK_COST);
    }
}
