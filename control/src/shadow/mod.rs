//! Watching a live session: what its agent tees, how that travels, and how it is kept.
//!
//! A watch is a session of its own, from the watcher's client to the agent that serves the watched one, so gateway and
//! broker see no byte of it. `tee` taps the channels of a session, `feed` is one watcher's bounded queue, `frame` the
//! protocol on a watch's channel, `serve` the agent's end of it; `cast` and `pcap` are what a watch is recorded as. All but
//! `serve` do no input or output.
pub mod cast;
pub mod frame;
pub mod pcap;

mod feed;
mod ring;
mod serve;
mod tee;

pub(crate) use ring::Budget;
pub(crate) use serve::serve;
pub(crate) use tee::{Tapped, Tee};

/// Backlog kept per channel and direction when nobody says otherwise: some 30 screens of a terminal.
pub const BACKLOG_DEFAULT: usize = 64 * 1024;
/// Largest backlog per channel and direction that may be asked for.
pub const BACKLOG_MAX: usize = 16 * 1024 * 1024;
/// Backlog of all sessions of an agent together: 512 busy channels at the default. Past it, channels keep less.
pub const BACKLOG_TOTAL: usize = 64 * 1024 * 1024;
/// Who may watch one session at once.
pub const WATCHERS_MAX: usize = 8;
/// Longest message from person to person, in characters.
pub const MESSAGE_CHARS_MAX: usize = 500;

/// Bytes that passed, as a recording has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// When, in microseconds; since what, the format says.
    pub at_us: u64,
    /// On which channel.
    pub channel: u64,
    /// Which way.
    pub direction: frame::Direction,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Microseconds since the Unix epoch.
pub(crate) fn unix_micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Text that is safe to show on a terminal: no control characters, at most [`MESSAGE_CHARS_MAX`] characters.
#[must_use]
pub fn plain_text(text: &str) -> String {
    let spaced = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    let kept: String = spaced.filter(|c| !is_unsafe(*c)).take(MESSAGE_CHARS_MAX).collect();
    kept.trim().to_owned()
}

/// Control characters, and those that turn the direction of text around.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_moves_no_cursor_and_has_an_end() {
        assert_eq!(plain_text(" a\x1b[2Jb\nc\u{202e}d\t"), "a[2Jb cd");
        assert_eq!(plain_text(&"x".repeat(9999)).len(), MESSAGE_CHARS_MAX);
        assert_eq!(plain_text("\x07\x1b"), "");
    }
}
