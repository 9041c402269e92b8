//! `switchback`: parse the command line, run the command, exit with the status of its outcome.
use std::process::ExitCode;
use std::time::Duration;

use switchback_control::{Code, Fault};

use crate::args::{Cli, Command};

mod account;
mod agent;
mod args;
mod config_file;
mod connect;
mod demo;
mod errors;
mod explain;
mod grants;
mod logging;
mod metrics;
mod netcheck;
mod notify;
mod output;
mod pairs;
mod ping;
mod resource_spec;
mod resources;
mod serve;
mod sessions;
mod stop;
mod tokens;
mod tuning;
mod udp_args;
mod upgrade;

/// How long tasks may take to end after the command has: a read of standard input cannot be interrupted.
const EXIT_PATIENCE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let cli = match args::parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let json = cli.global.json;
    logging::start(&cli.global, cli.command.log_level());
    match run(cli) {
        Ok(status) => status,
        Err(fault) => output::fault::report(fault, json),
    }
}

fn run(cli: Cli) -> Result<ExitCode, Fault> {
    if matches!(cli.command, Command::Agent(_) | Command::Connect(_)) {
        keep_freed_memory();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Code::Internal.because(format!("cannot start threads: {error}")))?;
    let outcome = runtime.block_on(dispatch(cli));
    runtime.shutdown_timeout(EXIT_PATIENCE);
    outcome
}

/// A block of half the memory that may stay with the process when it is free: more than one bulk channel has under way.
const LARGE_BLOCK: usize = 4 * 1024 * 1024;

/// An end that moves bulk frees and takes megabytes of buffers thousands of times a second, and glibc would each time give
/// pages back and fault them in again: up to a tenth of the CPU of a transfer. What it keeps follows the largest block that
/// was ever freed (mallopt(3), `M_MMAP_THRESHOLD`: twice its size). Other allocators lose nothing by it.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE_BLOCK)));
}

async fn dispatch(Cli { global, command }: Cli) -> Result<ExitCode, Fault> {
    let done = match command {
        Command::Serve(args) => serve::run(args, &global).await,
        Command::Agent(args) => agent::run(args, &global).await,
        Command::Demo(args) => return demo::run(args, &global).await,
        Command::Login(args) => account::login(args, &global).await,
        Command::Logout(_) => account::logout(&global),
        Command::Whoami(_) => account::whoami(&global).await,
        Command::Resources(_) => resources::run(&global).await,
        Command::Connect(args) => connect::run(args, &global).await,
        Command::Netcheck(args) => netcheck::run(args, &global).await,
        Command::Ping(args) => ping::run(args, &global).await,
        Command::Explain(args) => explain::run(args, &global).await,
        Command::Sessions(_) => sessions::list(&global).await,
        Command::Session(args) => sessions::show(args, &global).await,
        Command::Kill(args) => sessions::kill(args, &global).await,
        Command::Token(args) => tokens::run(args, &global).await,
        Command::Grant(args) => grants::run(args, &global).await,
        Command::Metrics(_) => metrics::run(&global).await,
        Command::Pairs(args) => pairs::run(args, &global).await,
        Command::Errors(args) => errors::run(&args, &global),
    };
    done.map(|()| ExitCode::SUCCESS)
}
