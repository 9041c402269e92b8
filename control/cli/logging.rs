//! The log: on standard error, as text or JSON lines, at the level of the command unless `RUST_LOG` says
//! otherwise.
use std::io;

use tracing_subscriber::EnvFilter;

use crate::args::{Global, LogFormat};
use crate::output;

/// Failures only.
pub(crate) const ERROR: u8 = 0;
/// What a person should know.
pub(crate) const WARN: u8 = 1;
/// What a service does.
pub(crate) const INFO: u8 = 2;

/// Starts logging at the command's own level.
pub(crate) fn start(global: &Global, level: u8) {
    let filter = match std::env::var("RUST_LOG") {
        Ok(wanted) if !wanted.is_empty() => EnvFilter::new(wanted),
        _ => EnvFilter::new(directives(global.verbose, global.quiet, level)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // A second start (tests in one process) keeps the first subscriber.
    let _ = match global.log_format {
        LogFormat::Text => builder.with_ansi(output::colour_stderr()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// Our own crates speak at the chosen level, the libraries one step quieter.
fn directives(verbose: u8, quiet: u8, level: u8) -> &'static str {
    match i16::from(level) + i16::from(verbose) - i16::from(quiet) {
        i16::MIN..=-1 => "off",
        0 => "error",
        1 => "warn",
        2 => "warn,switchback=info",
        3 => "info,switchback=debug",
        _ => "debug,switchback=trace",
    }
}

#[cfg(test)]
mod tests {
    use super::{ERROR, INFO, WARN, directives};

    #[test]
    fn every_v_is_one_level_more_and_every_q_one_less() {
        assert_eq!(directives(0, 0, INFO), "warn,switchback=info");
        assert_eq!(directives(0, 0, WARN), "warn");
        assert_eq!(directives(1, 0, INFO), "info,switchback=debug");
        assert_eq!(directives(255, 0, INFO), "debug,switchback=trace");
        assert_eq!(directives(0, 1, WARN), "error");
        assert_eq!(directives(0, 255, ERROR), "off");
    }
}
