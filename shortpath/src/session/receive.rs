//! The receiving half of a channel: puts bytes in order, drops duplicates by offset, and opens the window as the
//! application reads.
use std::collections::BTreeMap;

use bytes::{Buf, Bytes};

use super::close::ProtocolError;
use super::limits::{ACK_BYTES, RUNS_MAX, WINDOW_IMPLIED};
use super::queue::ByteQueue;

/// What arriving bytes were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next ones: the application may have something to read.
    InOrder,
    /// Later ones; a gap is before them.
    Ahead,
    /// Known already.
    Duplicate,
}

#[derive(Debug)]
pub(super) struct ReceiveHalf {
    ready: ByteQueue,
    /// Runs behind gaps, by offset; they neither overlap nor begin at or below `received`.
    runs: BTreeMap<u64, ByteQueue>,
    received: u64,
    read: u64,
    highest: u64,
    final_size: Option<u64>,
    window: u64,
    window_max: u64,
    /// Where `read` was when the window last grew.
    grown_at: u64,
    /// What the peer was last told.
    told_received: u64,
    told_limit: u64,
    discarding: bool,
    /// The application was told to wait.
    pub(super) waiting: bool,
}

impl ReceiveHalf {
    pub(super) fn new(window: u64, window_max: u64) -> Self {
        Self {
            ready: ByteQueue::default(),
            runs: BTreeMap::new(),
            received: 0,
            read: 0,
            highest: 0,
            final_size: None,
            window: window.max(WINDOW_IMPLIED),
            window_max,
            grown_at: 0,
            told_received: 0,
            told_limit: WINDOW_IMPLIED,
            discarding: false,
            waiting: false,
        }
    }

    pub(super) fn data(&mut self, offset: u64, mut bytes: Bytes) -> Result<Arrival, ProtocolError> {
        let end = offset + bytes.len() as u64;
        if end > self.told_limit {
            return Err(ProtocolError::Window);
        }
        if self.final_size.is_some_and(|size| end > size) {
            return Err(ProtocolError::FinalSize);
        }
        self.highest = self.highest.max(end);
        if end <= self.received {
            return Ok(Arrival::Duplicate);
        }
        if offset > self.received {
            return self.insert_run(offset, bytes);
        }
        advance(&mut bytes, self.received - offset);
        self.ready.push(bytes);
        self.received = end;
        self.join_runs();
        self.drop_if_discarding();
        Ok(Arrival::InOrder)
    }

    pub(super) fn fin(&mut self, size: u64) -> Result<(), ProtocolError> {
        if size > self.told_limit {
            return Err(ProtocolError::Window);
        }
        if size < self.highest || self.final_size.is_some_and(|known| known != size) {
            return Err(ProtocolError::FinalSize);
        }
        self.final_size = Some(size);
        Ok(())
    }

    /// The next bytes for the application.
    pub(super) fn read(&mut self) -> Option<Bytes> {
        let bytes = self.ready.pop()?;
        self.read += bytes.len() as u64;
        Some(bytes)
    }

    /// Doubles the window once the application has read a whole one and keeps up, taking from `pool`. Returns what was
    /// taken. A stalled reader never gets here.
    pub(super) fn grow(&mut self, pool: u64) -> u64 {
        if self.ready.len() > 0 || self.read - self.grown_at < self.window {
            return 0;
        }
        let more = self.window.min(self.window_max.saturating_sub(self.window)).min(pool);
        self.window += more;
        self.grown_at = self.read;
        more
    }

    /// From here on bytes are dropped as they come and the window stays shut.
    pub(super) fn discard(&mut self) {
        self.discarding = true;
        self.drop_if_discarding();
    }

    /// Drops all that is held.
    pub(super) fn drop_bytes(&mut self) {
        self.ready.clear();
        self.runs.clear();
    }

    /// Received offset and window limit, for an ACK or a HELLO that is about to leave.
    pub(super) fn tell(&mut self) -> (u64, u64) {
        self.told_received = self.received;
        self.told_limit = self.limit();
        (self.told_received, self.told_limit)
    }

    /// Every byte up to the final offset has arrived.
    pub(super) fn is_complete(&self) -> bool {
        self.final_size == Some(self.received)
    }

    /// Enough has come to acknowledge it at once.
    pub(super) fn owes_ack(&self) -> bool {
        self.received - self.told_received >= ACK_BYTES.min(self.window / 2)
    }

    /// The window has opened by so much that the peer should know at once.
    pub(super) fn owes_limit(&self) -> bool {
        self.final_size.is_none() && self.limit() - self.told_limit >= self.window / 4
    }

    /// So many gaps that no more of them should come from copies, which may vanish and leave one each.
    pub(super) fn is_torn(&self) -> bool {
        self.runs.len() >= RUNS_MAX / 2
    }

    /// The window beyond what every channel has.
    pub(super) fn window_extra(&self) -> u64 {
        self.window - WINDOW_IMPLIED
    }

    /// Bytes held, in order or not.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.ready.len() + self.runs.values().map(ByteQueue::len).sum::<usize>()
    }

    fn limit(&self) -> u64 {
        if self.discarding { self.told_limit } else { self.told_limit.max(self.read + self.window) }
    }

    fn insert_run(&mut self, mut offset: u64, mut bytes: Bytes) -> Result<Arrival, ProtocolError> {
        let mut end = offset + bytes.len() as u64;
        let before =
            self.runs.range(..=offset).next_back().map(|(at, run)| (*at, at + run.len() as u64));
        if let Some((_, before_end)) = before
            && before_end > offset
        {
            advance(&mut bytes, before_end - offset);
            offset = before_end.min(end);
        }
        while let Some((at, run)) = self.runs.range(offset..).next()
            && *at < end
            && offset < end
        {
            let (at, run_end) = (*at, at + run.len() as u64);
            if run_end > end {
                bytes.truncate(usize::try_from(at - offset).unwrap_or(usize::MAX));
                end = at;
            } else {
                self.runs.remove(&at);
            }
        }
        if offset >= end {
            return Ok(Arrival::Duplicate);
        }
        let start =
            before.filter(|(_, before_end)| *before_end == offset).map_or(offset, |(at, _)| at);
        self.runs.entry(start).or_default().push(bytes);
        if self.runs.len() > RUNS_MAX { Err(ProtocolError::Gaps) } else { Ok(Arrival::Ahead) }
    }

    fn join_runs(&mut self) {
        while let Some(entry) = self.runs.first_entry()
            && *entry.key() <= self.received
        {
            let (at, mut run) = entry.remove_entry();
            let known = usize::try_from(self.received - at).unwrap_or(usize::MAX);
            if known < run.len() {
                run.skip(known);
                self.received += run.len() as u64;
                self.ready.append(run);
            }
        }
    }

    fn drop_if_discarding(&mut self) {
        if self.discarding {
            self.drop_bytes();
            self.read = self.received;
        }
    }
}

fn advance(bytes: &mut Bytes, count: u64) {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
    bytes.advance(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half() -> ReceiveHalf {
        ReceiveHalf::new(0, 4 * WINDOW_IMPLIED)
    }

    fn text(half: &mut ReceiveHalf) -> Vec<u8> {
        std::iter::from_fn(|| half.read()).flatten().collect()
    }

    #[test]
    fn overlaps_in_any_order_yield_each_byte_once() {
        let all = b"abcdefghijklmnop";
        let pieces = [(4, 8), (2, 6), (10, 14), (3, 12), (1, 3), (9, 16), (0, 2)];
        let mut half = half();
        for (from, to) in pieces {
            half.data(from as u64, Bytes::from_static(&all[from..to])).unwrap();
        }
        assert_eq!(text(&mut half), all);
        assert_eq!(half.held(), 0);
    }

    #[test]
    fn runs_that_overlap_on_both_sides_hold_no_byte_twice() {
        let all: Vec<u8> = (0..30).collect();
        let mut half = half();
        for (from, to) in [(20, 30), (10, 20), (15, 25), (12, 28), (5, 30)] {
            half.data(from as u64, Bytes::copy_from_slice(&all[from..to])).unwrap();
        }
        assert_eq!(half.held(), 25);
        half.data(0, Bytes::copy_from_slice(&all[..6])).unwrap();
        assert_eq!((half.held(), text(&mut half)), (30, all));
    }

    #[test]
    fn a_byte_beyond_the_window_is_refused() {
        let mut half = half();
        let last = half.data(WINDOW_IMPLIED - 1, Bytes::from_static(b"a"));
        assert_eq!(last, Ok(Arrival::Ahead));
        let beyond = half.data(WINDOW_IMPLIED, Bytes::from_static(b"a"));
        assert_eq!(beyond, Err(ProtocolError::Window));
    }

    #[test]
    fn the_final_size_cannot_change() {
        let mut half = half();
        half.data(0, Bytes::from_static(b"abc")).unwrap();
        assert_eq!(half.fin(2), Err(ProtocolError::FinalSize));
        half.fin(3).unwrap();
        half.fin(3).unwrap();
        assert_eq!(half.fin(4), Err(ProtocolError::FinalSize));
        assert_eq!(half.data(3, Bytes::from_static(b"d")), Err(ProtocolError::FinalSize));
        assert!(half.is_complete());
    }

    #[test]
    fn gaps_are_bounded() {
        let mut half = half();
        let refused = (0..=RUNS_MAX as u64)
            .find_map(|i| half.data(2 * i + 1, Bytes::from_static(b"x")).err());
        assert_eq!(refused, Some(ProtocolError::Gaps));
    }

    #[test]
    fn the_window_grows_for_a_reader_that_keeps_up_and_not_for_a_stalled_one() {
        let full = Bytes::from(vec![0; WINDOW_IMPLIED as usize]);
        let mut reader = half();
        reader.data(0, full.clone()).unwrap();
        text(&mut reader);
        assert_eq!(reader.grow(u64::MAX), WINDOW_IMPLIED);
        let mut stalled = half();
        stalled.data(0, full).unwrap();
        assert_eq!(stalled.grow(u64::MAX), 0);
    }

    #[test]
    fn a_discarding_half_holds_nothing_and_opens_no_window() {
        let mut half = half();
        half.discard();
        half.data(0, Bytes::from(vec![0; WINDOW_IMPLIED as usize])).unwrap();
        assert_eq!((half.held(), half.tell()), (0, (WINDOW_IMPLIED, WINDOW_IMPLIED)));
    }
}
