//! `switchback`: parse the command line, run the command, exit with the status of its outcome.
use std::process::ExitCode;
use std::time::Duration;

use switchback_control::{Code, Fault};

use crate::args::{Cli, Command};

mod account;
mod agent;
mod agents;
mod api;
mod args;
mod audit;
mod backup;
mod config_file;
mod connect;
mod demo;
mod errors;
mod estimate;
mod events;
mod explain;
mod gateway;
mod gateways;
mod grants;
mod logging;
mod login;
mod metrics;
mod netcheck;
mod notify;
mod oidc_args;
mod output;
mod pairs;
mod ping;
mod policy;
mod replay;
mod resource_spec;
mod resources;
mod serve;
mod sessions;
mod shadow;
mod stop;
mod tokens;
mod top;
mod tuning;
mod udp_args;
mod upgrade;
mod verbs;

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

async fn dispatch(Cli { mut global, command }: Cli) -> Result<ExitCode, Fault> {
    if command.uses_login() {
        account::freshen(&mut global).await;
    }
    let done = match command {
        Command::Serve(args) => serve::run(args, &global).await,
        Command::Agent(args) => agent::run(args, &global).await,
        Command::Gateway(args) => gateway::run(args, &global).await,
        Command::Gateways(args) => gateways::run(args, &global).await,
        Command::Estimate(args) => estimate::run(args, &global).await,
        Command::Demo(args) => return demo::run(args, &global).await,
        Command::Login(args) => account::login(args, &global).await,
        Command::Logout(_) => account::logout(&global).await,
        Command::Whoami(_) => account::whoami(&global).await,
        Command::Resources(_) => resources::run(&global).await,
        Command::Connect(args) => connect::run(args, &global).await,
        Command::Netcheck(args) => netcheck::run(args, &global).await,
        Command::Ping(args) => ping::run(args, &global).await,
        Command::Explain(args) => explain::run(args, &global).await,
        Command::Sessions(args) => sessions::list(&args, &global).await,
        Command::Session(args) => sessions::show(args, &global).await,
        Command::Kill(args) => sessions::kill(args, &global).await,
        Command::Message(args) => verbs::message(args, &global).await,
        Command::Pause(args) => verbs::pause(args, &global).await,
        Command::Resume(args) => verbs::resume(args, &global).await,
        Command::Shadow(args) => shadow::run(args, &global).await,
        Command::Replay(args) => replay::run(args, &global).await,
        Command::Token(args) => tokens::run(args, &global).await,
        Command::Agents(args) => agents::run(args, &global).await,
        Command::Grant(args) => grants::run(args, &global).await,
        Command::Events(args) => events::run(args, &global).await,
        Command::Top(args) => top::run(args, &global).await,
        Command::Backup(args) => backup::save(args, &global).await,
        Command::Restore(args) => backup::restore(args, &global).await,
        Command::Api(_) => api::run(),
        Command::Policy(args) => return policy::run(args, &global).await,
        Command::Audit(args) => audit::run(args, &global).await,
        Command::Metrics(_) => metrics::run(&global).await,
        Command::Pairs(args) => pairs::run(args, &global).await,
        Command::Errors(args) => errors::run(&args, &global),
    };
    done.map(|()| ExitCode::SUCCESS)
}
