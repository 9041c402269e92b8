//! What a watcher types: read on a thread of its own, with an escape to leave by.
use std::io::Read;

use bytes::Bytes;
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use switchback_control::{Code, Fault};
use tokio::sync::mpsc;

/// Something typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// To be sent.
    Typed(Bytes),
    /// `~.` at the start of a line.
    End,
    /// Standard input has ended.
    Closed,
}

/// Reads that wait to be sent.
const WAITING_MAX: usize = 8;

/// The terminal passes every key on as long as this lives.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    pub(super) fn enter() -> Result<Self, Fault> {
        enable_raw_mode()
            .map_err(|error| Code::Internal.because(format!("no raw terminal: {error}")))?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal is gone then.
        let _ = disable_raw_mode();
    }
}

/// Reads standard input; `escapes`: `~.` means the end.
pub(super) fn read(escapes: bool) -> mpsc::Receiver<Keys> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    std::thread::spawn(move || {
        let (mut buffer, mut escape) = (vec![0; 4096], Escape::default());
        let mut input = std::io::stdin().lock();
        while let Ok(read @ 1..) = input.read(&mut buffer) {
            let (typed, end) = if escapes {
                escape.feed(&buffer[..read])
            } else {
                (buffer[..read].to_vec(), false)
            };
            if !typed.is_empty() && sender.blocking_send(Keys::Typed(typed.into())).is_err() {
                return;
            }
            if end {
                let _ = sender.blocking_send(Keys::End);
                return;
            }
        }
        let _ = sender.blocking_send(Keys::Closed);
    });
    receiver
}

/// Finds `~.` at the start of a line, as ssh does; `~~` is one tilde.
#[derive(Debug)]
struct Escape {
    line_start: bool,
    tilde: bool,
}

impl Default for Escape {
    fn default() -> Self {
        Self { line_start: true, tilde: false }
    }
}

impl Escape {
    /// What is to be sent, and whether the end was typed.
    fn feed(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut sent = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (std::mem::take(&mut self.tilde), byte) {
                (true, b'.') => return (sent, true),
                (true, b'~') => sent.push(b'~'),
                (true, byte) => sent.extend([b'~', byte]),
                (false, b'~') if self.line_start => self.tilde = true,
                (false, byte) => sent.push(byte),
            }
            self.line_start = matches!(byte, b'\r' | b'\n');
        }
        (sent, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_works_at_the_start_of_a_line_however_the_keys_come() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b"a~."), (b"a~.".to_vec(), false));
        assert_eq!(escape.feed(b"\r~"), (b"\r".to_vec(), false));
        assert_eq!(escape.feed(b"~x\r~x"), (b"~x\r~x".to_vec(), false));
        assert_eq!(escape.feed(b"\r"), (b"\r".to_vec(), false));
        assert_eq!(escape.feed(b"~"), (Vec::new(), false));
        assert_eq!(escape.feed(b".rest"), (Vec::new(), true));
    }
}
