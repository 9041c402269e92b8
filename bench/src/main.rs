//! Measures gateways: added latency, throughput and CPU beside their peers.
//!
//! Ours runs as a process, like every peer; only the simulated agents and clients of `control` are made of product code.
//! `commands` reads flags and reports; `compare` is the comparison, built on `peers` (one trait for
//! all rivals), `load` (what is sent), `measure` (what it cost), `stats` and `report`; `shortpath` measures
//! whole sessions in a lab, `control` the broker.

mod commands;
mod compare;
mod control;
mod load;
mod measure;
mod peers;
mod report;
mod shortpath;
mod stats;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::Verdict;

/// Measures gateways: added latency, throughput and CPU beside their peers
#[derive(Parser, Debug)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Compare our gateway with a direct connection and other relays, interleaved
    #[command(after_help = commands::compare::EXAMPLES)]
    Compare(commands::compare::CompareArgs),
    /// Load a service: messages to an echo (latency percentiles), or bytes up to one that discards
    /// them or down from one that generates them (throughput)
    #[command(after_help = commands::load::EXAMPLES)]
    Load(commands::load::LoadArgs),
    /// The other half of load: send back whatever comes, discard it, or generate bytes
    #[command(after_help = commands::echo::EXAMPLES)]
    Echo(commands::echo::EchoArgs),
    /// Build a network of several hosts on this machine: NATs of every kind, links of any quality
    #[command(after_help = commands::lab::EXAMPLES)]
    Lab(commands::lab::LabArgs),
    /// Measure whole sessions in a lab, beside other tunnels: starting, surviving, moving bytes
    #[command(after_help = commands::shortpath::after_help())]
    Shortpath(commands::shortpath::ShortpathArgs),
    /// Measure the broker: agents connected, sessions granted, feeds read, policies deciding
    #[command(after_help = commands::control::after_help())]
    Control(commands::control::ControlArgs),
    /// Relay TCP with a tokio copy loop: the peer to compare with
    TokioCopy(commands::tokio_copy::RelayArgs),
    /// Relay TCP with a tokio-uring copy loop: another peer
    TokioUring(commands::tokio_copy::RelayArgs),
    /// Tunnel TCP through one QUIC connection: another peer
    QuinnTunnel(commands::quinn_tunnel::TunnelArgs),
}

fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Compare(args) => commands::compare::run(&args),
        Command::Shortpath(args) => commands::shortpath::run(&args),
        Command::Control(args) => commands::control::run(&args),
        Command::Load(args) => commands::load::run(&args),
        Command::Lab(args) => return exit_code(commands::lab::run(&args)),
        Command::Echo(args) => commands::echo::run(&args).map(|()| Verdict::Complete),
        Command::TokioCopy(args) => commands::tokio_copy::run(&args).map(|()| Verdict::Complete),
        Command::QuinnTunnel(args) => commands::quinn_tunnel::run(args).map(|()| Verdict::Complete),
        Command::TokioUring(args) => commands::tokio_uring::run(&args).map(|()| Verdict::Complete),
    };
    exit_code(verdict.map(|verdict| match verdict {
        Verdict::Complete => ExitCode::SUCCESS,
        Verdict::Incomplete => ExitCode::FAILURE,
    }))
}

fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
