//! `lab`: a network of several hosts on this machine, to run things in and to change meanwhile.

mod check;
mod show;

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use switchback_bench::lab::control::{Control, Reply, Request, VARIABLE, ask};
use switchback_bench::lab::{Lab, Topology};

pub(crate) const EXAMPLES: &str = "\
Examples:
  switchback-bench lab topologies
  switchback-bench lab run pair -- ping -c3 192.0.2.1
  switchback-bench lab run pair:client-nat=symmetric,client-link=4g,loss=1% --at agent -- COMMAND
  switchback-bench lab shell ipv6
  switchback-bench lab shell ./office.toml          your own: start from lab topologies pair --toml

In that shell, or in another terminal with the SWITCHBACK_LAB that lab shell prints:
  switchback-bench lab set client loss=5%,delay=20ms
  switchback-bench lab set client up.rate=1mbit     one direction: from the host
  switchback-bench lab set client blackhole         and blackhole=off again
  switchback-bench lab set client-nat udp=drop      also reject, only:192.0.2.1, allow; tcp=443
  switchback-bench lab set client-nat rebind        new ports; rebind=203.0.113.9: a new address
  switchback-bench lab set client-nat symmetric,timeout=2s
  switchback-bench lab readdress client 192.168.1.2/24 192.168.1.77/24
  switchback-bench lab status

Needs root (or unshare -Urn where /dev/net/tun is open to all). Leaves nothing behind, even after
kill -9.";

/// Flags of `lab`.
#[derive(Args, Debug)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand, Debug)]
enum LabCommand {
    /// Names, parameters, NATs and link presets
    Topologies {
        /// Only this one, as asked for by name and parameters, with its addresses
        topology: Option<String>,
        /// As TOML, to be changed and given to run or shell
        #[arg(long, requires = "topology")]
        toml: bool,
    },
    /// Run a program at a host; its exit code is passed on
    Run {
        #[command(flatten)]
        lab: LabChoice,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// A shell at a host
    Shell {
        #[command(flatten)]
        lab: LabChoice,
    },
    /// Change a link or router of a running lab
    Set {
        #[command(flatten)]
        running: Running,
        /// A link or router
        name: String,
        /// What to change, as in loss=5%, udp=drop, rebind, symmetric
        settings: String,
    },
    /// Exchange an address of a host of a running lab, as when it roams
    Readdress {
        #[command(flatten)]
        running: Running,
        /// A host
        host: String,
        /// As in 192.168.1.2/24
        old: String,
        /// As in 192.168.1.77/24
        new: String,
    },
    /// Settings and counters of a running lab
    Status {
        #[command(flatten)]
        running: Running,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Test the lab itself: what each NAT does, and how exact delays are
    Check,
}

#[derive(Args, Debug)]
struct LabChoice {
    /// A name with parameters (see lab topologies), or a .toml file
    topology: String,
    /// Of all chance: losses, jitter, ports
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At which host
    #[arg(long, default_value = "client")]
    at: String,
}

#[derive(Args, Debug)]
struct Running {
    /// Which lab
    #[arg(long, env = VARIABLE)]
    lab: String,
}

/// Does what was asked for.
pub(crate) fn run(args: &LabArgs) -> Result<ExitCode> {
    match &args.command {
        LabCommand::Topologies { topology: None, .. } => print!("{}", show::topologies()),
        LabCommand::Topologies { topology: Some(text), toml } => {
            let topology = read(text)?;
            print!("{}", if *toml { topology.to_toml()? } else { show::topology(&topology) });
        }
        LabCommand::Run { lab, program } => return within(lab, program),
        LabCommand::Shell { lab } => {
            let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
            return within(lab, &[shell]);
        }
        LabCommand::Set { running, name, settings } => {
            let (name, settings) = (name.clone(), settings.clone());
            change(running, &Request::Set { name, settings })?;
        }
        LabCommand::Readdress { running, host, old, new } => {
            let (host, old, new) = (host.clone(), old.clone(), new.clone());
            change(running, &Request::Readdress { host, old, new })?;
        }
        LabCommand::Status { running, json } => status(running, *json)?,
        LabCommand::Check => return check::run(),
    }
    Ok(ExitCode::SUCCESS)
}

/// A topology by its name, or from a file.
fn read(text: &str) -> Result<Topology> {
    let file = PathBuf::from(text);
    if file.extension().is_some_and(|extension| extension == "toml") {
        let content = std::fs::read_to_string(&file).with_context(|| format!("reading {text}"))?;
        return Topology::from_toml(&content).with_context(|| text.to_owned());
    }
    Ok(text.parse()?)
}

/// Builds the lab and runs `program` in it.
fn within(choice: &LabChoice, program: &[OsString]) -> Result<ExitCode> {
    let (name, arguments) = program.split_first().context("no program")?;
    let topology = read(&choice.topology)?;
    let start = Instant::now();
    let lab = Lab::start(&topology, choice.seed)?;
    let up_ms = start.elapsed().as_secs_f64() * 1000.0;
    let host = lab.find_host(&choice.at)?;
    let control = Control::open(&lab)?;
    let ips: Vec<String> = host.addresses().iter().map(IpAddr::to_string).collect();
    let (at, ips) = (&choice.at, ips.join(" "));
    eprintln!("lab {} is up after {up_ms:.0} ms; {at} is {ips}", topology.name);
    eprintln!("{VARIABLE}={}", control.name());
    swallow_interrupts()?;
    let mut command = host.command(name);
    command.args(arguments).env(VARIABLE, control.name());
    let ended = thread::scope(|scope| {
        let serving = scope.spawn(|| control.serve(&lab));
        let ended = command.status();
        control.end();
        let served = serving.join();
        served.map_err(|_| anyhow!("the control thread panicked"))??;
        ended.with_context(|| name.display().to_string())
    })?;
    Ok(passed_on(ended))
}

/// As a shell has it: 128 and the signal's number for a program that was killed.
fn passed_on(ended: ExitStatus) -> ExitCode {
    let killed = || ended.signal().map_or(1, |signal| 128 + signal);
    let code = ended.code().unwrap_or_else(killed);
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// A Ctrl-C is for the program; the lab ends when the program does.
fn swallow_interrupts() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let interrupt = tokio::signal::unix::SignalKind::interrupt();
    let mut interrupts = tokio::signal::unix::signal(interrupt).context("catching Ctrl-C")?;
    drop(entered);
    thread::spawn(move || runtime.block_on(async { while interrupts.recv().await.is_some() {} }));
    Ok(())
}

fn change(running: &Running, request: &Request) -> Result<()> {
    match ask(&running.lab, request)? {
        Reply::Done => Ok(()),
        Reply::Refused(why) => bail!("{why}"),
        Reply::Status(_) => bail!("the lab answered something else"),
    }
}

fn status(running: &Running, json: bool) -> Result<()> {
    match ask(&running.lab, &Request::Status)? {
        Reply::Status(status) if json => println!("{}", serde_json::to_string_pretty(&status)?),
        Reply::Status(status) => print!("{}", show::status(&status)),
        Reply::Refused(why) => bail!("{why}"),
        Reply::Done => bail!("the lab answered something else"),
    }
    Ok(())
}
