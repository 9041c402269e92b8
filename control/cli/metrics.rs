//! `metrics`: what Prometheus reads.
use clap::Args;
use switchback_control::Fault;

use crate::account;
use crate::args::Global;
use crate::output;

/// Print the broker's and gateway's metrics.
///
/// The same text as GET /metrics, which Prometheus scrapes with an administrator's token as its bearer token. It is
/// Prometheus text with --json too. For administrators.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  switchback metrics | grep refused")]
pub(crate) struct MetricsArgs {}

/// Runs `metrics`.
pub(crate) async fn run(global: &Global) -> Result<(), Fault> {
    output::line(account::api(global)?.metrics().await?.trim_end())
}
