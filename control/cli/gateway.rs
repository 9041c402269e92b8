//! `gateway`: the data plane alone, in the foreground.
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use switchback_control::api::TokenKind;
use switchback_control::enrol::joining;
use switchback_control::gateway::{Gateway, GatewayConfig};
use switchback_control::invite::InviteKind;
use switchback_control::secret::Secret;
use switchback_control::{Code, Fault};
use tokio_util::sync::CancellationToken;

use crate::args::{Global, secret};
use crate::serve::Io;
use crate::stop::Stop;
use crate::tuning::{self, TuningSpec};
use crate::udp_args::PortRange;
use crate::{agent, notify, output, resource_spec};

/// The port that every network lets out.
const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 443);
/// Whoever means longer means for ever.
const DRAIN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// The data plane alone, on another machine or in another region.
///
/// It joins a broker as agents do, dialling out, enrolled once by a join string, and from then on sessions may go through it: through whichever gateway is
/// nearest to both their ends. It answers legs, STUN and TURN on its port and nothing else. What it relays goes on when
/// the broker is away. Ctrl-C or SIGTERM has its sessions move to other gateways first, without a pause; a second one ends it
/// at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback token gateway eu-1                     on any machine, as an administrator; prints the join string
  switchback gateway --join sbgate1_... --name eu-1 --advertise eu-1.gate.example:443 --region Frankfurt
  switchback gateway --advertise eu-1.gate.example:443 --region Frankfurt         from then on
  pass show eu-1 | switchback gateway --join - --listen 0.0.0.0:8443
  switchback gateways                               which there are, and how they are
  switchback gateways drain eu-1                    before it is stopped for long")]
pub(crate) struct GatewayArgs {
    /// Join string, from `switchback token gateway NAME`; `-` reads it from standard input. Not needed once the gateway is
    /// enrolled
    #[arg(long, value_name = "STRING", env = "SWITCHBACK_JOIN", hide_env_values = true, value_parser = secret)]
    join: Option<Secret>,
    /// Address to listen on, TCP and UDP
    #[arg(long, value_name = "ADDRESS:PORT", env = "SWITCHBACK_LISTEN", default_value_t = DEFAULT_LISTEN)]
    listen: SocketAddr,
    /// Name of this gateway [default: the host's name]
    #[arg(long, env = "SWITCHBACK_NAME")]
    name: Option<String>,
    /// How agents and users reach this port, if not by the address it listens on
    #[arg(long, value_name = "HOST:PORT", env = "SWITCHBACK_ADVERTISE")]
    advertise: Option<String>,
    /// Where this gateway keeps its key and its enrolment [default: /var/lib/switchback-gateway as root, else
    /// $XDG_STATE_HOME/switchback/gateway]
    #[arg(long, value_name = "DIR", env = "SWITCHBACK_STATE")]
    state: Option<PathBuf>,
    /// Where it stands, for people: up to 64 characters
    #[arg(long, value_name = "TEXT", env = "SWITCHBACK_REGION")]
    region: Option<String>,
    /// Where readiness comes from: the best that works, or one of the two [default: auto]
    #[arg(long, value_name = "BACKEND", env = "SWITCHBACK_IO")]
    io: Option<Io>,
    /// Relay threads, each on a core of its own [default: one per core]
    #[arg(long, value_name = "N", env = "SWITCHBACK_WORKERS", value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    /// Spin this long after bytes moved before sleeping, for latency: 0 (never) to 10000
    #[arg(long, value_name = "MICROS", env = "SWITCHBACK_BUSY_POLL", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(..=10_000))]
    busy_poll: u32,
    /// UDP ports that sessions are relayed through (TURN), for firewalls [default: 49152-65535]
    #[arg(
        long,
        value_name = "FIRST-LAST",
        env = "SWITCHBACK_TURN_PORTS",
        conflicts_with = "no_turn"
    )]
    turn_ports: Option<PortRange>,
    /// Relay no UDP here
    #[arg(long, env = "SWITCHBACK_NO_TURN")]
    no_turn: bool,
    /// Socket options of the listener and of every connection it accepts; --help lists them
    #[arg(long, value_name = "KEY=VALUE,...", env = "SWITCHBACK_TUNING", long_help = tuning::LISTENER_HELP)]
    tuning: Option<TuningSpec>,
    /// How long to wait for sessions to move away when told to stop; 0 cuts them at once
    #[arg(long, value_name = "TIME", value_parser = drain, default_value = "30s", env = "SWITCHBACK_DRAIN_TIMEOUT")]
    drain_timeout: Duration,
}

fn drain(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if limit > DRAIN_MAX { Err("must be at most 30days".into()) } else { Ok(limit) }
}

impl GatewayArgs {
    fn into_config(self) -> Result<GatewayConfig, Fault> {
        let join =
            self.join.map(|join| agent::parse_join(join, InviteKind::Gateway)).transpose()?;
        let state = self.state.map_or_else(|| agent::default_state("gateway"), Ok)?;
        let (kind, host) = (TokenKind::Gateway, agent::host_name);
        let (invite, name) = joining(&state, kind, join, self.name, host)?;
        resource_spec::check_name(&name)
            .map_err(|why| Code::ConfigInvalid.because(format!("--name `{name}`: {why}")))?;
        let micros = Some(self.busy_poll).filter(|micros| *micros > 0);
        Ok(GatewayConfig {
            region: self.region,
            advertise: self.advertise,
            io: self.io.unwrap_or_default().into(),
            workers: self.workers.and_then(|count| usize::try_from(count).ok()),
            busy_poll: micros.map(|micros| Duration::from_micros(micros.into())),
            tuning: self.tuning.map(|TuningSpec(tuning)| tuning).unwrap_or_default(),
            relay: !self.no_turn,
            turn_ports: self.turn_ports.map(|PortRange(ports)| ports),
            ..GatewayConfig::new(invite, name, state, self.listen)
        })
    }
}

/// What `gateway --json` prints once it relays.
#[derive(Serialize)]
struct Relaying<'a> {
    gateway: &'a str,
    broker: &'a str,
    listen: SocketAddr,
    address: &'a str,
    io: &'a str,
    io_reason: &'a str,
}

/// Runs `gateway`.
pub(crate) async fn run(args: GatewayArgs, global: &Global) -> Result<(), Fault> {
    let drain = args.drain_timeout;
    let config = args.into_config()?;
    let (name, broker) = (config.name.clone(), config.invite.url.clone());
    let mut stop = Stop::listen()?;
    let gateway = Gateway::start(config).await?;
    let (io, io_reason) = gateway.io_backend();
    let (listen, address) = (gateway.local_addr(), gateway.address());
    if global.json {
        let (gateway, broker, io_reason) = (&*name, &*broker, &*io_reason);
        output::json(&Relaying { gateway, broker, listen, address, io, io_reason })?;
    } else {
        output::line(&format!(
            "gateway {name} at {address}, broker {broker}\n  listening on {listen} (TCP, and STUN and TURN on UDP)\n  \
             io {io}: {io_reason}"
        ))?;
    }
    notify::ready();
    let cancel = CancellationToken::new();
    let running = gateway.run(cancel.clone(), drain);
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return ended,
        () = stop.wait() => notify::stopping(),
    }
    cancel.cancel();
    tokio::select! {
        ended = running => ended,
        () = stop.wait() => Ok(()),
    }
}
