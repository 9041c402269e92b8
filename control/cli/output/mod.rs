//! What people and programs read: tables and sentences for the first, one JSON value for the second.
//!
//! Standard output carries results, standard error everything else. A reader that goes away (`switchback sessions |
//! head -1`) is not an error: the rest is dropped quietly.
use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use switchback_control::{Code, Fault};

pub(crate) mod fault;
pub(crate) mod human;
pub(crate) mod table;

/// Prints one line of results.
pub(crate) fn line(text: &str) -> Result<(), Fault> {
    write_result(&mut io::stdout().lock(), text)
}

/// Prints one JSON value on one line.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<(), Fault> {
    let text = serde_json::to_string(value)
        .map_err(|error| Code::Internal.because(format!("cannot write JSON: {error}")))?;
    line(&text)
}

/// Tells the person at the terminal something that is not a result.
pub(crate) fn note(text: &str) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether to colour standard output: a terminal, and nobody said `NO_COLOR` (<https://no-color.org>).
pub(crate) fn colour_stdout() -> bool {
    io::stdout().is_terminal() && colour_wanted()
}

/// Whether to colour standard error.
pub(crate) fn colour_stderr() -> bool {
    io::stderr().is_terminal() && colour_wanted()
}

fn colour_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn write_result(out: &mut impl Write, text: &str) -> Result<(), Fault> {
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Code::Internal.because(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_error_but_a_full_disk_is() {
        assert!(write_result(&mut Broken(io::ErrorKind::BrokenPipe), "x").is_ok());
        let full = write_result(&mut Broken(io::ErrorKind::StorageFull), "x").unwrap_err();
        assert_eq!(full.code, Code::Internal);
    }
}
