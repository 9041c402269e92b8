//! `pairs`: tickets for load generators.
use clap::Args;
use switchback_control::Fault;
use switchback_control::api::NewTestPairs;

use crate::account;
use crate::args::Global;
use crate::output;

/// Mint test pairs for load generators.
///
/// Prints a JSON array. Each element holds the opening bytes (base64) of two legs: dial the gateway twice, send one on
/// each connection, and the gateway joins them. The tickets are good once and for seconds. For administrators.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  switchback pairs --count 8 > pairs.json")]
pub(crate) struct PairsArgs {
    /// How many, 1 to 1,000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
}

/// Runs `pairs`.
pub(crate) async fn run(args: PairsArgs, global: &Global) -> Result<(), Fault> {
    output::json(&account::api(global)?.test_pairs(NewTestPairs { count: args.count }).await?)
}
