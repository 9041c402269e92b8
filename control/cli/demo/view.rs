//! The live view: redrawn in place on a terminal, one line a second elsewhere.
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use switchback_control::api::SessionView;

use super::board::{Board, Latency, Load, Way};
use crate::output::human;

/// Fast enough to look alive, slow enough to read and to cost nothing.
pub(crate) const REDRAW: Duration = Duration::from_millis(200);
/// Rates are means over this long.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// What a picture says besides the board's figures.
#[derive(Debug, Default)]
pub(crate) struct Caption {
    /// Since the traffic began.
    pub(crate) elapsed: Duration,
    /// How long it is to last.
    pub(crate) planned: Duration,
    /// What is going on.
    pub(crate) phase: &'static str,
    /// Gateway and local port.
    pub(crate) place: String,
    /// What a completed transfer is called.
    pub(crate) counted: &'static str,
    /// Sessions, as the broker last told.
    pub(crate) sessions: Vec<SessionView>,
}

/// Everything one picture needs.
#[derive(Debug)]
struct Picture {
    caption: Caption,
    rates: Rates,
    bytes: [u64; 2],
    through: Latency,
    direct: Latency,
    checked: u64,
    troubles: u64,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    up: f64,
    down: f64,
    requests: f64,
}

/// Draws pictures of a board.
pub(crate) struct View {
    board: Arc<Board>,
    history: VecDeque<(Instant, [u64; 3])>,
    terminal: bool,
    silent: bool,
    drawn: usize,
    printed_second: Option<u64>,
}

impl View {
    /// A view on standard output, or none at all if `silent`.
    pub(crate) fn new(board: Arc<Board>, silent: bool) -> Self {
        let terminal = std::io::stdout().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { board, history: VecDeque::new(), terminal, silent, drawn: 0, printed_second: None }
    }

    /// Draws what the board says at `now`.
    pub(crate) fn draw(&mut self, caption: Caption, now: Instant) {
        if self.silent {
            return;
        }
        let picture = self.picture(caption, now);
        let text = if self.terminal {
            self.redraw(&picture.lines())
        } else {
            let second = picture.caption.elapsed.as_secs();
            if self.printed_second.replace(second) == Some(second) {
                return;
            }
            picture.line() + "\n"
        };
        // A view that nobody sees is no reason to stop the demo.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn picture(&mut self, caption: Caption, now: Instant) -> Picture {
        let board = &self.board;
        let bytes = [&board.up, &board.down].map(|bytes| bytes.load(Ordering::Relaxed));
        let answered = board.answered.load(Ordering::Relaxed);
        self.history.push_back((now, [bytes[0], bytes[1], answered]));
        while self.history.front().is_some_and(|(then, _)| now - *then > RATE_WINDOW) {
            self.history.pop_front();
        }
        let busy = board.latency(Way::Through, Load::Busy).count > 0;
        let load = if busy { Load::Busy } else { Load::Quiet };
        let checks = board.checks();
        Picture {
            caption,
            rates: rates(&self.history),
            bytes,
            through: board.latency(Way::Through, load),
            direct: board.latency(Way::Direct, load),
            checked: checks.right,
            troubles: checks.wrong + checks.broken,
        }
    }

    /// Moves up over the last picture and paints over it. Wrapping is off meanwhile: a wrapped line would be two.
    fn redraw(&mut self, lines: &[String]) -> String {
        let up = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        self.drawn = lines.len();
        let body: String = lines.iter().map(|line| format!("{line}\x1b[K\n")).collect();
        format!("{up}\r\x1b[?7l{body}\x1b[J\x1b[?7h")
    }
}

fn rates(history: &VecDeque<(Instant, [u64; 3])>) -> Rates {
    let (Some((then, old)), Some((now, new))) = (history.front(), history.back()) else {
        return Rates::default();
    };
    let seconds = (*now - *then).as_secs_f64();
    if seconds <= 0.0 {
        return Rates::default();
    }
    let rate = |index: usize| new[index].saturating_sub(old[index]) as f64 / seconds;
    Rates { up: rate(0), down: rate(1), requests: rate(2) }
}

impl Picture {
    /// For a terminal.
    fn lines(&self) -> Vec<String> {
        let (elapsed, planned) =
            (self.caption.elapsed.as_secs_f64(), self.caption.planned.as_secs_f64());
        let mut lines = vec![
            format!("switchback demo  {elapsed:.1} of {planned:.0} s  {}", self.caption.phase),
            self.caption.place.clone(),
            String::new(),
            format!(
                "{:<13} {:<11} {:<22} {:>9} {:>11} {:>10} {:>9}",
                "SESSION", "STATE", "TRANSPORT", "RTT", "CLIENT-LEG", "AGENT-LEG", "CHANNELS"
            ),
        ];
        lines.extend(self.caption.sessions.iter().map(session_line));
        let [up, down] = self.bytes;
        lines.extend([
            String::new(),
            format!("down  {:>14}  {:>10}", human::rate(self.rates.down), human::bytes(down)),
            format!("up    {:>14}  {:>10}", human::rate(self.rates.up), human::bytes(up)),
            format!("requests  {:>8.0}/s", self.rates.requests),
            format!("  through the gateway  {}", quantiles(&self.through)),
            format!("  straight             {}", quantiles(&self.direct)),
            format!("{} {}, {} in trouble", self.checked, self.caption.counted, self.troubles),
        ]);
        lines
    }

    /// For a file or pipe.
    fn line(&self) -> String {
        let rtt = self.caption.sessions.first().and_then(|session| session.rtt.end_to_end);
        let state =
            self.caption.sessions.first().map_or(human::UNKNOWN, |session| session.state.as_str());
        format!(
            "{:>3} s  {}  session {state}  RTT {}  down {}  up {}  {:.0} requests/s {}  {} {}",
            self.caption.elapsed.as_secs(),
            self.caption.phase,
            human::rtt(rtt),
            human::rate(self.rates.down),
            human::rate(self.rates.up),
            self.rates.requests,
            quantiles(&self.through),
            self.checked,
            self.caption.counted,
        )
    }
}

fn session_line(session: &SessionView) -> String {
    format!(
        "{:<13} {:<11} {:<22} {:>9} {:>11} {:>10} {:>9}",
        session.id.0,
        session.state.as_str(),
        session.transport.as_deref().unwrap_or(human::UNKNOWN),
        human::rtt(session.rtt.end_to_end),
        human::rtt(session.rtt.client_leg),
        human::rtt(session.rtt.agent_leg),
        session.channels,
    )
}

fn quantiles(latency: &Latency) -> String {
    format!("p50 {} p99 {}", human::micros(latency.p50_us), human::micros(latency.p99_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let board = Arc::new(Board::default());
        View {
            board,
            history: VecDeque::new(),
            terminal: true,
            silent: true,
            drawn: 0,
            printed_second: None,
        }
    }

    #[test]
    fn a_picture_is_painted_over_the_last_one() {
        let mut view = view();
        let first = view.redraw(&["a".into(), "b".into()]);
        assert_eq!(first, "\r\x1b[?7la\x1b[K\nb\x1b[K\n\x1b[J\x1b[?7h");
        assert!(view.redraw(&["c".into()]).starts_with("\x1b[2A\r"));
        assert!(view.redraw(&["c".into()]).starts_with("\x1b[1A\r"));
    }

    #[test]
    fn rates_are_means_over_the_last_second() {
        let (mut view, start) = (view(), Instant::now());
        for step in 0..=10_u32 {
            view.board.down.fetch_add(100 * 1024, Ordering::Relaxed);
            view.picture(Caption::default(), start + step * REDRAW);
        }
        let caption = Caption { elapsed: Duration::from_secs(2), ..Caption::default() };
        let picture = view.picture(caption, start + 10 * REDRAW);
        assert!((picture.rates.down - 500.0 * 1024.0).abs() < 1.0, "{:?}", picture.rates);
        assert!(picture.line().contains("down 500 KiB/s"), "{}", picture.line());
        assert!(picture.lines().iter().any(|line| line.contains("1.07 MiB")));
    }
}
