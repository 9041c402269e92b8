//! The loop of the generator: messages first, then one bounded step of bulk, and again.
//!
//! Source, sink and client share one core. A message therefore waits for at most one bulk step of
//! the generator itself, whatever the number of bulk flows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::exchange::Exchange;
use super::ledger::{Closed, Glimpse};
use super::streams::Streams;
use super::{DRAIN, nanos};
use crate::measure::{Meter, Usage};

/// Time since the start of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at zero.
    pub(crate) fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Nanoseconds since the start.
    pub(crate) fn now_ns(self) -> u64 {
        nanos(self.start.elapsed())
    }
}

/// How long a run takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Cut from the figures: windows and buffers grow meanwhile.
    pub(crate) warmup: Duration,
    pub(crate) measured: Duration,
}

/// Messages, bulk, or both, at once.
pub(crate) struct Load {
    pub(crate) exchange: Option<Exchange>,
    pub(crate) streams: Option<Streams>,
    pub(crate) window: Window,
    /// Busy-wait instead of sleeping until the next event.
    pub(crate) spin: bool,
}

/// What came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` without an [`Exchange`].
    pub(crate) messages: Option<Closed>,
    /// Messages answered by the end of `usage`.
    pub(crate) window_answered: u64,
    /// Bulk bytes that arrived within the window (of flows that leave us: were sent).
    pub(crate) window_bytes: u64,
    /// Bulk bytes of the warm-up, and of the whole run once all had arrived.
    pub(crate) warmup_bytes: u64,
    pub(crate) total_bytes: u64,
    /// From the end of the warm-up until the last byte had arrived.
    pub(crate) delivered_s: f64,
    /// CPU and noise over the window, and over its last answers if they came within [`GRACE`].
    pub(crate) usage: Usage,
    /// Share of the window in which the generator had something to do, spinning or not, 0 to 1.
    pub(crate) busy_share: f64,
}

/// Somebody who wants to know how it goes. Called from the generator's loop: must be quick.
pub(crate) trait Watch {
    /// A few times per second.
    fn ticked(&mut self, _at_ns: u64, _messages: Option<Glimpse>, _bulk_bytes: u64) {}

    /// The window is over; what was loaded is still loaded.
    ///
    /// # Errors
    /// Whatever it wanted to know cannot be known: that ends the run.
    fn window_over(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Nobody.
pub(crate) struct Unwatched;

impl Watch for Unwatched {}

/// Between two calls of [`Watch::ticked`]: a person reads no faster.
const TICK: Duration = Duration::from_millis(250);

/// How long the meters wait for the last answers of the window, so that reading them delays none.
/// Answers that take longer are not noticeably delayed by it, and longer waits would dilute rates.
const GRACE: Duration = Duration::from_millis(5);

/// Carries out `load`.
///
/// # Errors
/// A connection that closes or fails, bulk that stalls for [`DRAIN`] or arrives with another number
/// of bytes than were sent. Missing answers are no error: they are in the figures.
pub(crate) fn run(load: Load, meter: &Meter, watch: &mut dyn Watch) -> Result<Outcome> {
    let Load { mut exchange, mut streams, window, spin } = load;
    let clock = Clock::start();
    let (warmup_ns, mut end_ns) = (nanos(window.warmup), u64::MAX);
    let bulk_bytes = |streams: &Option<Streams>| streams.as_ref().map_or(0, Streams::bytes);
    let answered = |exchange: &Option<Exchange>| {
        exchange.as_ref().map_or(0, |exchange| exchange.ledger().glimpse().counts.answered)
    };
    let (mut begun, mut over) = (None, None);
    let mut pace = Pace::new(spin);
    loop {
        let now_ns = clock.now_ns();
        if begun.is_none() && now_ns >= warmup_ns {
            let reading = meter.begin()?;
            // What became due while the meters were read is not counted.
            let counted_from_ns = clock.now_ns();
            begun = Some((reading, bulk_bytes(&streams), counted_from_ns));
            end_ns = counted_from_ns + nanos(window.measured);
            if let Some(exchange) = &mut exchange {
                exchange.count_from(counted_from_ns);
                exchange.end_at(end_ns);
            }
            pace = Pace::new(spin);
        }
        let open = exchange.as_ref().map_or(0, |exchange| exchange.ledger().outstanding());
        if let (Some((reading, bytes_before, _)), None) = (&begun, &over)
            && now_ns >= end_ns
            && (open == 0 || now_ns >= end_ns + nanos(GRACE))
        {
            let bytes = bulk_bytes(&streams) - bytes_before;
            over = Some((
                meter.used_since(reading)?,
                bytes,
                answered(&exchange),
                pace.busy_share(now_ns),
            ));
        }
        if over.is_some() && (open == 0 || now_ns >= end_ns + nanos(DRAIN)) {
            break;
        }
        pace.turn(clock, exchange.as_mut(), streams.as_mut())?;
        if pace.ticks(now_ns) {
            let glimpse = exchange.as_ref().map(|exchange| exchange.ledger().glimpse());
            watch.ticked(now_ns, glimpse, bulk_bytes(&streams));
        }
    }
    let (_, warmup_bytes, begun_ns) = begun.context("the run ended inside its warm-up")?;
    let (usage, window_bytes, window_answered, turned_share) = over.context("no window")?;
    watch.window_over()?;
    let messages = exchange.map(|exchange| exchange.close(clock.now_ns()));
    let total_bytes = streams.as_mut().map_or(Ok(0), Streams::drain)?;
    // Bulk alone sleeps in epoll until it may go on; whoever has messages to send spins.
    let busy_share = if messages.is_none() { usage.generator_share() } else { turned_share };
    let delivered_s = (clock.now_ns() - begun_ns) as f64 / 1e9;
    Ok(Outcome {
        messages,
        window_answered,
        window_bytes,
        warmup_bytes,
        total_bytes,
        delivered_s,
        usage,
        busy_share,
    })
}

/// Turns the load, and knows how much of the time there was something to do.
struct Pace {
    spin: bool,
    since_ns: Option<u64>,
    busy_ns: u64,
    next_tick_ns: u64,
}

impl Pace {
    fn new(spin: bool) -> Pace {
        Pace { spin, since_ns: None, busy_ns: 0, next_tick_ns: 0 }
    }

    fn turn(
        &mut self,
        clock: Clock,
        exchange: Option<&mut Exchange>,
        streams: Option<&mut Streams>,
    ) -> Result<()> {
        let begun_ns = clock.now_ns();
        self.since_ns.get_or_insert(begun_ns);
        let mut busy = false;
        match (exchange, streams) {
            (Some(exchange), None) => {
                busy = exchange.turn(clock)?;
                if !busy && !self.spin {
                    exchange.sleep(clock)?;
                }
            }
            (None, Some(streams)) => busy = streams.step(begun_ns, Some(DRAIN))?,
            (Some(exchange), Some(streams)) => {
                busy = exchange.turn(clock)?;
                busy |= streams.step(begun_ns, None)?;
            }
            (None, None) => {}
        }
        if busy {
            self.busy_ns += clock.now_ns() - begun_ns;
        }
        Ok(())
    }

    fn ticks(&mut self, now_ns: u64) -> bool {
        if now_ns < self.next_tick_ns {
            return false;
        }
        self.next_tick_ns = now_ns + nanos(TICK);
        true
    }

    fn busy_share(&self, now_ns: u64) -> f64 {
        let since_ns = self.since_ns.unwrap_or(now_ns);
        self.busy_ns as f64 / (now_ns - since_ns).max(1) as f64
    }
}
