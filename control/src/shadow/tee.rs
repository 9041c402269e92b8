//! Taps a session's channels: keeps their last bytes, feeds watchers, takes in what they inject, and holds bytes back while
//! the session is paused.
//!
//! Nothing here waits for a watcher. A channel that nobody may look back at and nobody watches costs one atomic load a read.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use switchback_shortpath::Tap;
use tokio::sync::{mpsc, watch};

use super::feed::{Feed, Queue};
use super::frame::{Direction, Frame};
use super::ring::{Budget, Ring};
use super::{WATCHERS_MAX, unix_micros};

/// Smaller pieces are copied, so that the few bytes of a key stroke do not keep the buffer they were read into.
const COPY_BELOW: usize = 4096;
/// Injected writes of one channel that wait for the target to take them; then the watcher waits.
const INJECTED_MAX: usize = 16;

/// The taps of one session.
#[derive(Debug)]
pub(crate) struct Tee {
    budget: Arc<Budget>,
    /// Nobody may look back, and nobody watches.
    unseen: AtomicBool,
    next_channel: AtomicU64,
    held: watch::Sender<bool>,
    core: Mutex<Core>,
}

#[derive(Debug, Default)]
struct Core {
    channels: BTreeMap<u64, Open>,
    watchers: Vec<Arc<Queue>>,
    over: Option<String>,
}

/// A channel that is open.
#[derive(Debug)]
struct Open {
    at_us: u64,
    /// To the target, to the client.
    rings: [Ring; 2],
    inject: mpsc::Sender<Bytes>,
}

impl Tee {
    pub(crate) fn new(budget: Arc<Budget>) -> Arc<Self> {
        let unseen = AtomicBool::new(budget.is_off());
        let (held, core) = (watch::Sender::new(false), Mutex::default());
        Arc::new(Self { budget, unseen, next_channel: AtomicU64::new(1), held, core })
    }

    /// A channel opens.
    pub(crate) fn tap(self: &Arc<Self>) -> Tapped {
        let channel = self.next_channel.fetch_add(1, Ordering::Relaxed);
        let (inject, injected) = mpsc::channel(INJECTED_MAX);
        let at_us = unix_micros();
        let rings = [Ring::new(&self.budget), Ring::new(&self.budget)];
        let mut core = self.core();
        core.channels.insert(channel, Open { at_us, rings, inject });
        core.tell(&Frame::Opened { channel, at_us });
        drop(core);
        let injected = tokio::sync::Mutex::new(injected);
        Tapped { tee: self.clone(), channel, injected, held: self.held.subscribe() }
    }

    /// A new watcher: the backlog of every open channel, then all that passes. `None` if there are as many as may be, or the
    /// session is over.
    pub(crate) fn watch(self: &Arc<Self>) -> Option<Watching> {
        let mut core = self.core();
        if core.watchers.len() >= WATCHERS_MAX || core.over.is_some() {
            return None;
        }
        let queue = Arc::new(Queue::default());
        queue.begin(core.backlog().into_iter());
        core.watchers.push(queue.clone());
        self.unseen.store(false, Ordering::Relaxed);
        drop(core);
        Some(Watching { tee: self.clone(), feed: Feed(queue) })
    }

    /// Sends bytes to the target of a channel as if its client had, once there is room; false if there is no such channel.
    pub(crate) async fn inject(&self, channel: u64, bytes: Bytes) -> bool {
        let inject = self.core().channels.get(&channel).map(|open| open.inject.clone());
        match inject {
            Some(inject) => inject.send(bytes).await.is_ok(),
            None => false,
        }
    }

    /// Holds all bytes back from now on, or lets them go.
    pub(crate) fn hold(&self, held: bool) {
        self.held.send_if_modified(|now| std::mem::replace(now, held) != held);
    }

    /// The session is over, and with it every watch.
    pub(crate) fn end(&self, why: &str) {
        let mut core = self.core();
        core.tell(&Frame::SessionEnded { at_us: unix_micros(), why: why.to_owned() });
        core.over = Some(why.to_owned());
        core.watchers.clear();
    }

    fn passed(&self, channel: u64, direction: Direction, bytes: &Bytes) {
        if self.unseen.load(Ordering::Relaxed) {
            return;
        }
        let bytes =
            if bytes.len() < COPY_BELOW { Bytes::copy_from_slice(bytes) } else { bytes.clone() };
        let at_us = unix_micros();
        let mut core = self.core();
        core.tell(&Frame::Data { channel, direction, at_us, bytes: bytes.clone() });
        if let Some(open) = core.channels.get_mut(&channel) {
            open.rings[direction as usize].push(at_us, bytes, &self.budget);
        }
    }

    fn closed(&self, channel: u64) {
        let mut core = self.core();
        if let Some(open) = core.channels.remove(&channel) {
            open.rings.into_iter().for_each(|ring| ring.drop_all(&self.budget));
        }
        core.tell(&Frame::Closed { channel, at_us: unix_micros() });
    }

    fn unwatch(&self, queue: &Arc<Queue>) {
        let mut core = self.core();
        core.watchers.retain(|one| !Arc::ptr_eq(one, queue));
        let unseen = self.budget.is_off() && core.watchers.is_empty();
        self.unseen.store(unseen, Ordering::Relaxed);
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    fn tell(&self, frame: &Frame) {
        self.watchers.iter().for_each(|queue| queue.offer(frame.clone()));
    }

    /// What is known of the open channels, both directions of each in the order of time.
    fn backlog(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for (&channel, open) in &self.channels {
            frames.push(Frame::Opened { channel, at_us: open.at_us });
            let directions = [Direction::ToTarget, Direction::ToClient];
            let mut pieces = Vec::new();
            for (direction, ring) in directions.into_iter().zip(&open.rings) {
                if ring.skipped > 0 {
                    let (at_us, bytes) = (open.at_us, ring.skipped);
                    frames.push(Frame::Skipped { channel, direction, at_us, bytes });
                }
                pieces.extend(ring.pieces.iter().map(|(at_us, bytes)| Frame::Data {
                    channel,
                    direction,
                    at_us: *at_us,
                    bytes: bytes.clone(),
                }));
            }
            // Stable: of one time, to the target first.
            pieces.sort_by_key(|piece| match piece {
                Frame::Data { at_us, .. } => *at_us,
                _ => 0,
            });
            frames.append(&mut pieces);
        }
        frames
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        let channels = std::mem::take(&mut self.core().channels);
        for open in channels.into_values() {
            open.rings.into_iter().for_each(|ring| ring.drop_all(&self.budget));
        }
    }
}

/// The tap of one channel; the channel closes with it.
#[derive(Debug)]
pub(crate) struct Tapped {
    tee: Arc<Tee>,
    channel: u64,
    injected: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
    held: watch::Receiver<bool>,
}

impl Tap for Tapped {
    fn inward(&self, bytes: &Bytes) {
        self.tee.passed(self.channel, Direction::ToClient, bytes);
    }

    fn outward(&self, bytes: &Bytes) {
        self.tee.passed(self.channel, Direction::ToTarget, bytes);
    }

    async fn pass(&self) {
        if *self.held.borrow() {
            // The sender lives in the tee.
            let _ = self.held.clone().wait_for(|held| !held).await;
        }
    }

    fn is_held(&self) -> bool {
        *self.held.borrow()
    }

    async fn injected(&self) -> Bytes {
        match self.injected.lock().await.recv().await {
            Some(bytes) => bytes,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Tapped {
    fn drop(&mut self) {
        self.tee.closed(self.channel);
    }
}

/// A watcher's place; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Watching {
    tee: Arc<Tee>,
    pub(crate) feed: Feed,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.tee.unwatch(&self.feed.0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tee(backlog: usize, total: usize) -> Arc<Tee> {
        Tee::new(Budget::new(backlog, total))
    }

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    /// What is shown of channel 1 now, without waiting.
    async fn shown(watching: &Watching) -> Vec<(Direction, Vec<u8>)> {
        let mut shown: Vec<(Direction, Vec<u8>)> = Vec::new();
        while let Ok(Some(frame)) =
            tokio::time::timeout(Duration::from_millis(20), watching.feed.next()).await
        {
            if let Frame::Data { direction, bytes, .. } = frame {
                match shown.last_mut() {
                    Some((last, text)) if *last == direction => text.extend_from_slice(&bytes),
                    _ => shown.push((direction, bytes.to_vec())),
                }
            }
        }
        shown
    }

    #[tokio::test]
    async fn a_watcher_sees_the_backlog_and_then_all_that_passes_in_order() {
        let tee = tee(1024, 1 << 20);
        let tap = tee.tap();
        tap.outward(&bytes("ls\n"));
        let watching = tee.watch().unwrap();
        tap.inward(&bytes("a b"));
        tap.inward(&bytes(" c\n"));
        let seen = shown(&watching).await;
        let expected =
            [(Direction::ToTarget, b"ls\n".to_vec()), (Direction::ToClient, b"a b c\n".to_vec())];
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn a_backlog_is_no_longer_than_asked_and_says_what_it_left_out() {
        let tee = tee(1000, 1 << 20);
        let tap = tee.tap();
        for _ in 0..100 {
            tap.inward(&Bytes::from(vec![7; 100]));
        }
        let watching = tee.watch().unwrap();
        let (mut kept, mut skipped) = (0, 0);
        while let Ok(Some(frame)) =
            tokio::time::timeout(Duration::from_millis(20), watching.feed.next()).await
        {
            match frame {
                Frame::Data { bytes, .. } => kept += bytes.len() as u64,
                Frame::Skipped { bytes, .. } => skipped += bytes,
                _ => {}
            }
        }
        assert!((500..=1000).contains(&kept), "{kept}");
        assert_eq!(kept + skipped, 10_000);
    }

    #[test]
    fn all_backlogs_together_stay_within_their_budget_and_give_it_back() {
        let budget = Budget::new(64 * 1024, 100_000);
        let sessions: Vec<_> = (0..8).map(|_| Tee::new(budget.clone())).collect();
        let taps: Vec<_> = sessions.iter().map(Tee::tap).collect();
        for _ in 0..10 {
            taps.iter().for_each(|tap| tap.inward(&Bytes::from(vec![1; 10_000])));
            assert!(budget.used() <= 100_000);
        }
        drop(taps);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn without_backlog_and_watchers_nothing_is_kept_copied_or_counted() {
        let budget = Budget::new(0, 1 << 20);
        let tee = Tee::new(budget.clone());
        let tap = tee.tap();
        tap.inward(&Bytes::from(vec![1; 100]));
        assert!(tee.unseen.load(Ordering::Relaxed));
        let watching = tee.watch().unwrap();
        assert!(!tee.unseen.load(Ordering::Relaxed));
        drop(watching);
        assert!(tee.unseen.load(Ordering::Relaxed));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn injected_writes_come_whole_and_in_order_to_their_channel_only() {
        let tee = tee(0, 0);
        let (one, two) = (tee.tap(), tee.tap());
        for text in ["a", "bc", "def"] {
            assert!(tee.inject(1, bytes(text)).await);
        }
        for text in ["a", "bc", "def"] {
            assert_eq!(one.injected().await, bytes(text));
        }
        let other = tokio::time::timeout(Duration::from_millis(20), two.injected()).await;
        assert!(other.is_err());
        drop(one);
        assert!(!tee.inject(1, bytes("late")).await, "the channel is closed");
    }

    #[tokio::test]
    async fn a_held_session_passes_nothing_until_it_is_let_go() {
        let tee = tee(0, 0);
        let tap = tee.tap();
        tee.hold(true);
        assert!(tap.is_held());
        assert!(tokio::time::timeout(Duration::from_millis(20), tap.pass()).await.is_err());
        tee.hold(false);
        tokio::time::timeout(Duration::from_secs(1), tap.pass()).await.unwrap();
    }

    #[tokio::test]
    async fn watchers_are_bounded_and_end_with_the_session() {
        let tee = tee(0, 0);
        let watching: Vec<_> = (0..WATCHERS_MAX).map(|_| tee.watch().unwrap()).collect();
        assert!(tee.watch().is_none());
        tee.end("it was closed");
        for watching in &watching {
            let last = watching.feed.next().await.unwrap();
            assert!(matches!(last, Frame::SessionEnded { .. }));
            assert!(watching.feed.next().await.is_none());
        }
        assert!(tee.watch().is_none(), "it is over");
    }
}
