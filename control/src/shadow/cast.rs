//! Recordings of a terminal: asciicast version 2 (<https://docs.asciinema.org/manual/asciicast/v2/>). Pure but for the writer
//! it is given.
//!
//! A line of JSON per event; what the target sent is `o`, what the client sent is `i`, what was skipped is a marker. Text must
//! be UTF-8 there; bytes that are none show as U+FFFD, and an event of our own behind them, `raw`, has the exact ones in
//! base64. Players leave out events they do not know.
use std::io::{self, Write};

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Moment;
use super::frame::Direction;

/// Writes a recording.
#[derive(Debug)]
pub struct CastWriter<W> {
    out: W,
    start_us: u64,
    /// The beginning of a character whose rest is to come: to the target, to the client.
    pending: [Vec<u8>; 2],
    last_us: u64,
}

impl<W: Write> CastWriter<W> {
    /// Begins a recording of a terminal of `size` (columns, rows) at `start_us`, Unix microseconds.
    ///
    /// # Errors
    /// The writer's.
    pub fn new(
        mut out: W,
        title: &str,
        (width, height): (u16, u16),
        start_us: u64,
    ) -> io::Result<Self> {
        let timestamp = start_us / 1_000_000;
        let header = json!({"version": 2, "width": width, "height": height, "timestamp": timestamp, "title": title});
        writeln!(out, "{header}")?;
        Ok(Self { out, start_us, pending: Default::default(), last_us: start_us })
    }

    /// Bytes passed.
    ///
    /// # Errors
    /// The writer's.
    pub fn data(&mut self, at_us: u64, direction: Direction, bytes: &[u8]) -> io::Result<()> {
        self.last_us = self.last_us.max(at_us);
        let mut all = std::mem::take(&mut self.pending[direction as usize]);
        all.extend_from_slice(bytes);
        let unfinished = unfinished_tail(&all);
        self.pending[direction as usize] = all.split_off(all.len() - unfinished);
        self.text(at_us, direction, &all)
    }

    /// Bytes passed that nobody saw.
    ///
    /// # Errors
    /// The writer's.
    pub fn skipped(&mut self, at_us: u64, bytes: u64) -> io::Result<()> {
        self.event(at_us, "m", &format!("{bytes} bytes skipped"))
    }

    /// Writes what is left, and gives the writer back.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(mut self) -> io::Result<W> {
        for direction in [Direction::ToTarget, Direction::ToClient] {
            let rest = std::mem::take(&mut self.pending[direction as usize]);
            self.text(self.last_us, direction, &rest)?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn text(&mut self, at_us: u64, direction: Direction, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let code = match direction {
            Direction::ToTarget => "i",
            Direction::ToClient => "o",
        };
        match std::str::from_utf8(bytes) {
            Ok(text) => self.event(at_us, code, text),
            Err(_) => {
                self.event(at_us, code, &String::from_utf8_lossy(bytes))?;
                self.event(at_us, RAW, &BASE64.encode(bytes))
            }
        }
    }

    fn event(&mut self, at_us: u64, code: &str, data: &str) -> io::Result<()> {
        let at = at_us.saturating_sub(self.start_us);
        let (seconds, micros) = (at / 1_000_000, at % 1_000_000);
        writeln!(self.out, "[{seconds}.{micros:06}, \"{code}\", {}]", Value::from(data))
    }
}

/// Code of the event with the exact bytes of the one before.
const RAW: &str = "raw";

/// Bytes at the end that may become a character with those to come.
fn unfinished_tail(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    match std::str::from_utf8(&bytes[tail_start(bytes, tail)..]) {
        Err(error) if error.error_len().is_none() => {
            bytes.len() - tail_start(bytes, tail) - error.valid_up_to()
        }
        _ => 0,
    }
}

/// Where the first character begins at or after `from`.
fn tail_start(bytes: &[u8], from: usize) -> usize {
    (from..bytes.len()).find(|at| bytes[*at] & 0xc0 != 0x80).unwrap_or(bytes.len())
}

#[derive(Deserialize)]
struct Header {
    version: u32,
}

/// Reads a recording. What is not of ours is left out.
///
/// # Errors
/// What is wrong, with its line.
pub fn read(text: &str) -> Result<Vec<Moment>, String> {
    let mut lines = text.lines().enumerate();
    let (_, header) = lines.next().ok_or("the recording is empty")?;
    let header: Header =
        serde_json::from_str(header).map_err(|error| format!("line 1: no header: {error}"))?;
    if header.version != 2 {
        return Err(format!("version {} of asciicast is not known, only 2", header.version));
    }
    let mut moments: Vec<Moment> = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |why: String| format!("line {}: {why}", number + 1);
        let (at, code, data): (f64, String, String) =
            serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        if !at.is_finite() || at < 0.0 {
            return Err(wrong("no time".into()));
        }
        let direction = match code.as_str() {
            "o" => Direction::ToClient,
            "i" => Direction::ToTarget,
            RAW => {
                let exact =
                    BASE64.decode(data.as_bytes()).map_err(|error| wrong(error.to_string()))?;
                if let Some(last) = moments.last_mut() {
                    last.bytes = exact;
                }
                continue;
            }
            _ => continue,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "finite, not negative, and saturating"
        )]
        let at_us = (at * 1e6).round() as u64;
        moments.push(Moment { at_us, channel: 1, direction, bytes: data.into_bytes() });
    }
    Ok(moments)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(moments: &[Moment], direction: Direction) -> Vec<u8> {
        let of = moments.iter().filter(|moment| moment.direction == direction);
        of.flat_map(|moment| moment.bytes.clone()).collect()
    }

    proptest! {
        #[test]
        fn a_recording_replays_byte_exact_whatever_the_bytes(
            pieces in proptest::collection::vec(
                (any::<bool>(), prop_oneof![
                    proptest::collection::vec(any::<u8>(), 1..40),
                    "\\PC{1,20}".prop_map(String::into_bytes),
                ]), 1..30),
            cut in 1..7_usize,
        ) {
            let mut cast = CastWriter::new(Vec::new(), "t", (80, 24), 1_000_000).unwrap();
            let mut expected = [Vec::new(), Vec::new()];
            let mut at_us = 1_000_000;
            for (to_client, bytes) in &pieces {
                let direction = if *to_client { Direction::ToClient } else { Direction::ToTarget };
                for piece in bytes.chunks(cut) {
                    at_us += 1000;
                    cast.data(at_us, direction, piece).unwrap();
                    expected[direction as usize].extend_from_slice(piece);
                }
            }
            let file = String::from_utf8(cast.finish().unwrap()).unwrap();
            let moments = read(&file).unwrap();
            prop_assert_eq!(&stream(&moments, Direction::ToTarget), &expected[0]);
            prop_assert_eq!(&stream(&moments, Direction::ToClient), &expected[1]);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = read(&text);
        }
    }

    #[test]
    fn a_character_cut_in_two_is_whole_in_the_recording() {
        let mut cast = CastWriter::new(Vec::new(), "t", (80, 24), 0).unwrap();
        let euro = "€".as_bytes();
        cast.data(500_000, Direction::ToClient, &euro[..1]).unwrap();
        cast.data(1_500_000, Direction::ToClient, &euro[1..]).unwrap();
        let file = String::from_utf8(cast.finish().unwrap()).unwrap();
        let mut lines = file.lines();
        let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
        assert_eq!((&header["version"], &header["width"]), (&json!(2), &json!(80)));
        assert_eq!(lines.next(), Some("[1.500000, \"o\", \"€\"]"));
        assert_eq!(lines.next(), None);
    }
}
