//! The line that shows how it goes. Drawn by a thread of its own: a slow terminal delays no message.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::load::drive::{Watch, Window};
use crate::load::ledger::Glimpse;
use crate::report::grid::number;

/// Feeds the line on stderr; there is none where that is no terminal.
pub(super) struct Live {
    sender: Option<SyncSender<Moment>>,
    drawer: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Duration,
    messages: Option<Glimpse>,
    bulk_bytes: u64,
}

impl Live {
    /// Starts drawing.
    pub(super) fn start(window: Window) -> Live {
        let total = window.warmup + window.measured;
        let bar = ProgressBar::new(total.as_millis() as u64);
        if bar.is_hidden() {
            return Live { sender: None, drawer: None };
        }
        let style = ProgressStyle::with_template("{bar:20} {msg}").ok();
        bar.set_style(style.unwrap_or_else(ProgressStyle::default_bar));
        // One waits to be drawn; while it does, newer ones are dropped.
        let (sender, moments) = sync_channel(1);
        let drawer = std::thread::spawn(move || draw(&bar, window, &moments));
        Live { sender: Some(sender), drawer: Some(drawer) }
    }
}

impl Watch for Live {
    fn ticked(&mut self, at_ns: u64, messages: Option<Glimpse>, bulk_bytes: u64) {
        if let Some(sender) = &self.sender {
            let _ =
                sender.try_send(Moment { at: Duration::from_nanos(at_ns), messages, bulk_bytes });
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(drawer) = self.drawer.take() {
            // It only draws; a panic there is no concern of the figures.
            let _ = drawer.join();
        }
    }
}

fn draw(bar: &ProgressBar, window: Window, moments: &Receiver<Moment>) {
    let mut before: Option<Moment> = None;
    for moment in moments {
        bar.set_position(moment.at.as_millis() as u64);
        bar.set_message(line(&moment, before.as_ref(), window));
        before = Some(moment);
    }
    bar.finish_and_clear();
}

fn line(moment: &Moment, before: Option<&Moment>, window: Window) -> String {
    let second = moment.at.as_secs();
    if let Some(messages) = &moment.messages {
        if moment.at < window.warmup {
            return format!("{second} s, warming up");
        }
        let counts = &messages.counts;
        return format!(
            "{second} s, sent {}, answered {}, p50 {} us, p99 {} us, late {}",
            counts.sent,
            counts.answered,
            number(messages.p50_us),
            number(messages.p99_us),
            counts.late_sends
        );
    }
    let (bytes, at) = before.map_or((0, Duration::ZERO), |before| (before.bulk_bytes, before.at));
    let seconds = moment.at.saturating_sub(at).as_secs_f64().max(f64::EPSILON);
    let gbit = (moment.bulk_bytes.saturating_sub(bytes)) as f64 * 8.0 / 1e9 / seconds;
    format!("{second} s, {} Gbit/s", number(gbit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::ledger::Ledger;

    const WINDOW: Window =
        Window { warmup: Duration::from_secs(1), measured: Duration::from_secs(9) };

    #[test]
    fn the_line_shows_messages_after_the_warm_up_and_bulk_per_second() {
        let messages = Some(Ledger::new(1).glimpse());
        let at = |seconds| Moment { at: Duration::from_secs(seconds), messages, bulk_bytes: 0 };
        assert_eq!(line(&at(0), None, WINDOW), "0 s, warming up");
        assert!(line(&at(2), None, WINDOW).starts_with("2 s, sent 0, answered 0, p50"));
        let bulk = |seconds, bulk_bytes| Moment { messages: None, bulk_bytes, ..at(seconds) };
        let (first, second) = (bulk(3, 1_000_000_000), bulk(5, 2_000_000_000));
        assert_eq!(line(&second, Some(&first), WINDOW), "5 s, 4.00 Gbit/s");
    }
}
