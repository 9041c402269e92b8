//! One watcher's queue: bounded, and never waited for. What does not fit is counted, and told where it would have stood.
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::frame::{Direction, Frame};

/// Bytes that wait for one watcher: a second of 8 Mbit/s.
pub(super) const QUEUE_BYTES: usize = 1024 * 1024;
/// What a queued frame counts beside its bytes.
pub(super) const FRAME_COST: usize = 64;
/// Frames without bytes may come on top: without them a watcher would not know which channels there are. One that is so slow
/// that not even these fit is given up.
const MARK_BYTES: usize = 256 * 1024;

/// The agent's side puts frames in, the watcher's takes them out.
#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    frames: VecDeque<Frame>,
    cost: usize,
    /// Bytes that did not fit since the last frame of their channel and direction, and when the last of them passed.
    skipped: BTreeMap<(u64, Direction), (u64, u64)>,
    over: bool,
}

impl Queue {
    /// Takes a frame in, or counts what it would have brought.
    pub(super) fn offer(&self, frame: Frame) {
        let mut inner = self.inner();
        inner.offer(frame);
        drop(inner);
        self.filled.notify_one();
    }

    /// As [`Self::offer`], without a bound: what the watcher is given to start with.
    pub(super) fn begin(&self, frames: impl Iterator<Item = Frame>) {
        let mut inner = self.inner();
        frames.for_each(|frame| inner.put(frame));
        drop(inner);
        self.filled.notify_one();
    }

    /// The next frame; `None` after the last.
    pub(super) async fn next(&self) -> Option<Frame> {
        loop {
            let taken = {
                let mut inner = self.inner();
                (inner.take(), inner.over)
            };
            match taken {
                (Some(frame), _) => return Some(frame),
                (None, true) => return None,
                (None, false) => self.filled.notified().await,
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn offer(&mut self, frame: Frame) {
        if self.over {
            return;
        }
        match frame {
            Frame::Data { channel, direction, at_us, bytes }
                if self.cost + bytes.len() + FRAME_COST > QUEUE_BYTES =>
            {
                self.skip((channel, direction), bytes.len() as u64, at_us);
            }
            Frame::Skipped { channel, direction, at_us, bytes } => {
                self.skip((channel, direction), bytes, at_us);
            }
            Frame::Data { channel, direction, at_us, bytes } => {
                // Never before what was left out of the same stream.
                self.tell_skipped(|of| of == (channel, direction));
                self.put(Frame::Data { channel, direction, at_us, bytes });
            }
            end @ Frame::SessionEnded { .. } => {
                self.tell_skipped(|_| true);
                self.put(end);
                self.over = true;
            }
            mark if self.cost + FRAME_COST <= QUEUE_BYTES + MARK_BYTES => {
                if let Frame::Closed { channel, .. } = mark {
                    self.tell_skipped(|(of, _)| of == channel);
                }
                self.put(mark);
            }
            mark => {
                let (Frame::Opened { at_us, .. } | Frame::Closed { at_us, .. }) = mark else {
                    return;
                };
                let why = "the watcher is too slow for so many channels".to_owned();
                self.put(Frame::SessionEnded { at_us, why });
                self.over = true;
            }
        }
    }

    fn skip(&mut self, of: (u64, Direction), bytes: u64, at_us: u64) {
        let (skipped, at) = self.skipped.entry(of).or_default();
        *skipped = skipped.saturating_add(bytes);
        *at = at_us;
    }

    fn tell_skipped(&mut self, which: impl Fn((u64, Direction)) -> bool) {
        let due = self.skipped.extract_if(.., |of, _| which(*of));
        let due: Vec<_> = due.collect();
        for ((channel, direction), (bytes, at_us)) in due {
            self.put(Frame::Skipped { channel, direction, at_us, bytes });
        }
    }

    fn put(&mut self, frame: Frame) {
        self.cost += cost(&frame);
        self.frames.push_back(frame);
    }

    fn take(&mut self) -> Option<Frame> {
        if self.frames.is_empty() {
            self.tell_skipped(|_| true);
        }
        let frame = self.frames.pop_front()?;
        self.cost -= cost(&frame);
        Some(frame)
    }
}

fn cost(frame: &Frame) -> usize {
    match frame {
        Frame::Data { bytes, .. } => FRAME_COST + bytes.len(),
        _ => FRAME_COST,
    }
}

/// What one watcher is shown.
#[derive(Debug)]
pub(crate) struct Feed(pub(super) Arc<Queue>);

impl Feed {
    /// The next frame; `None` after the last. Dropping the future loses nothing.
    pub(crate) async fn next(&self) -> Option<Frame> {
        self.0.next().await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn data(byte: u8, len: usize) -> Frame {
        let bytes = Bytes::from(vec![byte; len]);
        Frame::Data { channel: 1, direction: Direction::ToClient, at_us: u64::from(byte), bytes }
    }

    #[tokio::test]
    async fn a_slow_watcher_loses_its_feed_with_a_marker_and_stays_in_order() {
        let queue = Queue::default();
        for round in 0..20 {
            queue.offer(data(round, 100 * 1024));
        }
        let mut seen = 0;
        let first = queue.next().await.unwrap();
        assert!(matches!(first, Frame::Data { at_us: 0, .. }));
        // There is room for one more now: the marker comes before it.
        queue.offer(data(99, 1024));
        queue.offer(Frame::SessionEnded { at_us: 100, why: String::new() });
        let (mut order, mut skipped) = (Vec::new(), 0);
        while let Some(frame) = queue.next().await {
            match frame {
                Frame::Data { at_us, bytes, .. } => {
                    order.push(at_us);
                    seen += bytes.len() as u64;
                }
                Frame::Skipped { bytes, .. } => {
                    order.push(50);
                    skipped = bytes;
                }
                _ => {}
            }
        }
        assert!(order.is_sorted(), "{order:?}");
        assert_eq!(seen + skipped + 100 * 1024, 20 * 100 * 1024 + 1024, "nothing is forgotten");
        assert!(skipped > 0 && order.contains(&99));
    }

    #[tokio::test]
    async fn a_watcher_that_takes_nothing_costs_a_bounded_amount() {
        let queue = Queue::default();
        for channel in 0..100_000 {
            queue.offer(Frame::Opened { channel, at_us: 1 });
            queue.offer(data(1, 1000));
        }
        let inner = queue.inner();
        assert!(inner.cost <= QUEUE_BYTES + MARK_BYTES + 4 * FRAME_COST, "{}", inner.cost);
        assert!(inner.over);
    }
}
