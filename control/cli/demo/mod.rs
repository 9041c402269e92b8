//! `demo`: everything at once on this machine, under real traffic, through a restart.
use std::process::ExitCode;

use clap::Args;
use switchback_control::Fault;
use tokio::task::JoinSet;

use crate::args::Global;
use crate::output;
use crate::resource_spec::tcp_target;
use crate::serve::Io;
use crate::stop::Stop;
use show::Show;
use stage::Stage;

mod board;
mod content;
mod http;
mod probe;
mod scene;
mod show;
mod stage;
mod summary;
mod target;
mod traffic;
mod view;

/// Exit status of an interrupted run, as shells give it for SIGINT: nothing was proven, nothing was refuted.
const INTERRUPTED: u8 = 130;

/// See it all work on this machine, without root.
///
/// Starts broker, gateway, agent and client on loopback, and a small web server as the service. Pushes parallel
/// downloads and uploads and a steady stream of small requests through; restarts broker and gateway in the middle;
/// compares every content by SHA-256; and sums up. Exits with CHECK_FAILED if anything was lost or changed.
///
/// With --target, your own service is reached instead: it is measured as far as that can be done without knowing it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback demo
  switchback demo --seconds 30 --io epoll
  switchback demo --target tcp:127.0.0.1:22 --hold    then: ssh -p PORT user@127.0.0.1")]
pub(crate) struct DemoArgs {
    /// Reach this service instead of the demo's own
    #[arg(long, value_name = "tcp:HOST:PORT", value_parser = tcp_target)]
    pub(crate) target: Option<String>,
    /// Keep everything running after the summary, until Ctrl-C
    #[arg(long)]
    pub(crate) hold: bool,
    /// How long to push traffic
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=3600))]
    pub(crate) seconds: u32,
    /// Where the gateway's readiness comes from
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    io: Io,
}

/// Runs `demo`.
pub(crate) async fn run(args: DemoArgs, global: &Global) -> Result<ExitCode, Fault> {
    let mut stop = Stop::listen()?;
    // The own server ends with its tasks, at the end of this function.
    let (target, own, _server) = match &args.target {
        Some(target) => (target.clone(), None, JoinSet::new()),
        None => {
            let (address, server) = target::start().await?;
            (address.to_string(), Some(address), server)
        }
    };
    let mut stage = tokio::select! {
        stage = Stage::start(target.clone(), args.io.into()) => stage?,
        () = stop.wait() => return Ok(INTERRUPTED.into()),
    };
    let show = Show::new(&args, global.json, target);
    let outcome = tokio::select! {
        outcome = show.run(&mut stage, own) => outcome,
        () = stop.wait() => {
            output::note("interrupted");
            stage.finish().await;
            return Ok(INTERRUPTED.into());
        }
    };
    if outcome.is_ok() && args.hold {
        stop.wait().await;
    }
    stage.finish().await;
    outcome.map(|()| ExitCode::SUCCESS)
}
