//! `agent`: the end beside the service, in the foreground.
use std::collections::HashSet;
use std::path::PathBuf;

use clap::Args;
use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};
use switchback_control::agent::{self, AgentConfig, AgentOptions, WARM_LEGS_DEFAULT};
use switchback_control::api::TokenKind;
use switchback_control::enrol::joining;
use switchback_control::invite::{Invite, InviteKind};
use switchback_control::secret::Secret;
use switchback_control::shadow::BACKLOG_MAX;
use switchback_control::udp::UdpOptions;
use switchback_control::wire::{ProxyHeader, Resource, Standby, UdpUse};
use switchback_control::{Code, Fault};
use tokio_util::sync::CancellationToken;

use crate::args::{Global, secret};
use crate::resource_spec::{self, ResourceSpec};
use crate::stop::Stop;
use crate::udp_args::{Copies, Dscp, Networks, PortRange};
use crate::{account, config_file, output, tuning};

const ROOT_STATE: &str = "/var/lib/switchback";

/// Offer resources beside a service; dials out only.
///
/// Needs no inbound port: it keeps a link to the broker, and dials the gateway when a user connects. It survives
/// restarts of broker and gateway. The join string names the broker, and is needed once: with it the agent enrols a key of its
/// own, kept in the state directory, and from then on starts from there. Without --name the host's name is used.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(after_help = "\
Examples:
  switchback agent --join sbjoin1_... --resource ssh=tcp:127.0.0.1:22     # the first time
  switchback agent --resource ssh=tcp:127.0.0.1:22                        # from then on
  pass show switchback | switchback agent --join - --resource ssh=tcp:127.0.0.1:22
  switchback agent --join sbjoin1_... --name branch --resource web=tcp:intra.example:8080 --resource db=tcp:[::1]:5432
  switchback agent --join sbjoin1_... --resource game=udp:127.0.0.1:9000 --udp-ports 50000-50100
  switchback agent --join sbjoin1_... --resource 'web=tcp:127.0.0.1:80;proxy=v2;dscp=af21'
  SWITCHBACK_JOIN=sbjoin1_... switchback agent --config /etc/switchback/agent.toml   # resource = [\"ssh=tcp:...\"]

One join string enrols one agent, within a day. Given again it does nothing; another one enrols anew if the agent was revoked
(`switchback token revoke`) or if it is for another broker. A second agent on the same host has its own --state.

Every user of the host can read a command line. As a service, give the join string in SWITCHBACK_JOIN (systemd's
EnvironmentFile=) or as `join` in the --config file, readable by the service's user alone; it may stay there.")]
pub(crate) struct AgentArgs {
    /// Join string, from the first start of `switchback serve` or `switchback token agent NAME`; `-` reads it from
    /// standard input. Not needed once the agent is enrolled
    #[arg(long, value_name = "STRING", env = "SWITCHBACK_JOIN", hide_env_values = true, value_parser = secret)]
    join: Option<Secret>,
    /// Name of this agent [default: the host's name]
    #[arg(long, env = "SWITCHBACK_NAME")]
    name: Option<String>,
    /// A service and the name users connect to; repeatable. --help lists the options
    #[arg(
        long,
        value_name = "NAME=tcp|udp:HOST:PORT[;OPTION=VALUE]",
        env = "SWITCHBACK_RESOURCE",
        value_delimiter = ',',
        long_help = tuning::RESOURCE_HELP
    )]
    resource: Vec<ResourceSpec>,
    /// Legs kept waiting at the gateway, so that a session need not wait for a dial [default: 4]
    #[arg(long, value_name = "N", env = "SWITCHBACK_WARM_LEGS")]
    warm_legs: Option<u32>,
    /// Do without UDP: sessions stay on TCP
    #[arg(long, env = "SWITCHBACK_NO_UDP", conflicts_with_all = ["udp_ports", "udp_networks", "managed_port"])]
    no_udp: bool,
    /// Local UDP ports to use, for firewalls that let only some out [default: any]
    #[arg(long, value_name = "FIRST-LAST", env = "SWITCHBACK_UDP_PORTS")]
    udp_ports: Option<PortRange>,
    /// Listen on a fixed UDP port, for networks that route to this host; without a number 3390 [default: no]
    #[arg(long, value_name = "PORT", env = "SWITCHBACK_MANAGED_PORT", num_args = 0..=1)]
    #[arg(default_missing_value = "3390", value_parser = clap::value_parser!(u16).range(1..))]
    managed_port: Option<u16>,
    /// Networks whose addresses are offered to the other end, as they are or as a NAT shows them, and accepted from it; with
    /// `!` in front, those that are not: 10.0.0.0/8,!10.9.0.0/16 [default: all]
    #[arg(long, value_name = "NETWORK,...", env = "SWITCHBACK_UDP_NETWORKS")]
    udp_networks: Option<Networks>,
    /// Do not ask the router for a port (PCP, NAT-PMP, UPnP)
    #[arg(long, env = "SWITCHBACK_NO_PORT_MAPPING")]
    no_port_mapping: bool,
    /// Mark UDP packets with this code point, a name or 0-63; a resource's `dscp` goes before it [default: none]
    #[arg(long, value_name = "NAME|0-63", env = "SWITCHBACK_DSCP")]
    dscp: Option<Dscp>,
    /// What second copies of small writes may cost while a path is lossy or little known: a share of the session's bytes in
    /// percent or a rate in kbit/s, whichever is more; or `off` [default: 3,64]
    #[arg(long, value_name = "PERCENT,KBIT/S|off", env = "SWITCHBACK_REDUNDANCY")]
    redundancy: Option<Copies>,
    /// Bytes kept per channel and direction for `switchback shadow` to look back at; 0 keeps none [default: 65536]
    #[arg(long, value_name = "BYTES", env = "SWITCHBACK_SHADOW_BACKLOG")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=BACKLOG_MAX as u64))]
    shadow_backlog: Option<u64>,
    /// Where this agent keeps its keys and its enrolment [default: /var/lib/switchback-agent as root, else
    /// $XDG_STATE_HOME/switchback/agent]
    #[arg(long, value_name = "DIR", env = "SWITCHBACK_STATE")]
    state: Option<PathBuf>,
    /// TOML file with the same keys as the long flags; flags and environment win
    #[arg(long, value_name = "FILE", env = "SWITCHBACK_CONFIG")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

impl AgentArgs {
    /// Fills what flags and environment left open from the file.
    fn with_file(self) -> Result<Self, Fault> {
        let Some(path) = &self.config else { return Ok(self) };
        let file: Self = config_file::load(path)?;
        Ok(Self {
            join: self.join.or(file.join),
            name: self.name.or(file.name),
            resource: if self.resource.is_empty() { file.resource } else { self.resource },
            warm_legs: self.warm_legs.or(file.warm_legs),
            no_udp: self.no_udp || file.no_udp,
            udp_ports: self.udp_ports.or(file.udp_ports),
            managed_port: self.managed_port.or(file.managed_port),
            udp_networks: self.udp_networks.or(file.udp_networks),
            no_port_mapping: self.no_port_mapping || file.no_port_mapping,
            dscp: self.dscp.or(file.dscp),
            redundancy: self.redundancy.or(file.redundancy),
            shadow_backlog: self.shadow_backlog.or(file.shadow_backlog),
            state: self.state.or(file.state),
            config: self.config,
        })
    }

    fn options(&self) -> Result<AgentOptions, Fault> {
        let mut options = AgentOptions { udp: self.udp()?, ..AgentOptions::default() };
        if let Some(bytes) = self.shadow_backlog {
            options.shadow_backlog = usize::try_from(bytes).unwrap_or(BACKLOG_MAX);
        }
        if let Some(Copies(limits)) = self.redundancy {
            options.session.redundancy = limits;
        }
        Ok(options)
    }

    fn udp(&self) -> Result<UdpOptions, Fault> {
        let asks = self.udp_ports.is_some() || self.managed_port.is_some();
        if self.no_udp && (asks || self.udp_networks.is_some()) {
            return Err(Code::ConfigInvalid.because("no-udp leaves the other UDP options no use"));
        }
        Ok(UdpOptions {
            enabled: !self.no_udp,
            ports: self.udp_ports.clone().map(|PortRange(ports)| ports),
            managed_port: self.managed_port,
            networks: self.udp_networks.clone().map(|Networks(filter)| filter).unwrap_or_default(),
            port_mapping: !self.no_port_mapping,
            dscp: self.dscp.map(|Dscp(point)| point),
        })
    }

    fn into_config(self) -> Result<AgentConfig, Fault> {
        let join = self.join.map(|join| parse_join(join, InviteKind::Join)).transpose()?;
        if let Some(name) = &self.name {
            resource_spec::check_name(name)
                .map_err(|why| Code::ConfigInvalid.because(format!("--name `{name}`: {why}")))?;
        }
        let resources = unique(self.resource)?;
        let state_dir = self.state.map_or_else(|| default_state("agent"), Ok)?;
        let (invite, name) = joining(&state_dir, TokenKind::Agent, join, self.name, host_name)?;
        let warm_legs = self.warm_legs.unwrap_or(WARM_LEGS_DEFAULT);
        Ok(AgentConfig { invite, name, resources, warm_legs, state_dir })
    }
}

/// A join string from a flag, or from standard input.
pub(crate) fn parse_join(join: Secret, kind: InviteKind) -> Result<Invite, Fault> {
    let join = if join.reveal() == "-" { account::read_stdin()? } else { join };
    Invite::parse(join.reveal(), kind)
}

/// At least one resource, and no name twice.
fn unique(specs: Vec<ResourceSpec>) -> Result<Vec<Resource>, Fault> {
    if specs.is_empty() {
        return Err(
            Code::UsageInvalid.because("nothing to offer: pass --resource NAME=tcp:HOST:PORT")
        );
    }
    let mut names = HashSet::new();
    for ResourceSpec(resource) in &specs {
        if !names.insert(&resource.name) {
            let text = format!("--resource: the name `{}` is given twice", resource.name);
            return Err(Code::ConfigInvalid.because(text));
        }
    }
    Ok(specs.into_iter().map(|ResourceSpec(resource)| resource).collect())
}

pub(crate) fn host_name() -> String {
    // Without one the fallback name serves.
    let raw = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    resource_spec::sanitise_name(&raw)
}

/// Where the `end` (`agent` or `gateway`) keeps its state unless told otherwise.
pub(crate) fn default_state(end: &str) -> Result<PathBuf, Fault> {
    if rustix::process::geteuid().is_root() {
        return Ok(format!("{ROOT_STATE}-{end}").into());
    }
    etcetera::choose_base_strategy()
        .ok()
        .and_then(|base| base.state_dir())
        .map(|state| state.join("switchback").join(end))
        .ok_or_else(|| Code::DataDirUnusable.because("there is no home directory; pass --state"))
}

/// What `agent --json` prints once it runs.
#[derive(Serialize)]
struct Offering<'a> {
    agent: &'a str,
    broker: &'a str,
    resources: &'a [Resource],
}

/// Runs `agent`.
pub(crate) async fn run(args: AgentArgs, global: &Global) -> Result<(), Fault> {
    let args = args.with_file()?;
    let options = args.options()?;
    let config = args.into_config()?;
    let mut stop = Stop::listen()?;
    announce(&config, global)?;
    let cancel = CancellationToken::new();
    let agent = agent::run_with(config, options, cancel.clone());
    tokio::pin!(agent);
    tokio::select! {
        ended = &mut agent => return ended,
        () = stop.wait() => tracing::info!("stopping"),
    }
    cancel.cancel();
    agent.await
}

fn announce(config: &AgentConfig, global: &Global) -> Result<(), Fault> {
    let AgentConfig { invite, name, resources, .. } = config;
    if global.json {
        return output::json(&Offering { agent: name, broker: &invite.url, resources });
    }
    output::line(&format!("agent {name}, broker {}", invite.url))?;
    resources.iter().try_for_each(|resource| {
        let Resource { name, target, tuning, kind, transport, .. } = resource;
        let udp =
            (transport.udp != UdpUse::Prefer).then(|| format!("udp={}", transport.udp.as_str()));
        let standby = (transport.standby != Standby::Warm)
            .then(|| format!("standby={}", transport.standby.as_str()));
        let proxy = resource.proxy.map(|ProxyHeader::V2| "proxy=v2".to_owned());
        let tuning = (!tuning.is_empty()).then(|| tuning.to_string());
        let options: Vec<_> = udp.into_iter().chain(standby).chain(tuning).chain(proxy).collect();
        let with = if options.is_empty() { "" } else { " with " };
        let scheme = if kind.is_tcp() { "" } else { "udp:" };
        output::line(&format!("  offers {name} = {scheme}{target}{with}{}", options.join(",")))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::Parser;

    use switchback_control::udp::MANAGED_PORT_DEFAULT;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(words: &[&str]) -> AgentArgs {
        let words = ["switchback", "agent"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Agent(args) => args,
            other => panic!("parsed as {other:?}"),
        }
    }

    fn join() -> String {
        let invite = Invite {
            kind: InviteKind::Join,
            url: "https://gate.example:443".into(),
            pin: "pin".into(),
            token: Secret::new("t"),
        };
        invite.to_text().reveal().to_owned()
    }

    #[test]
    fn the_file_gives_what_flags_leave_open() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "join = {:?}\nname = \"branch\"\nwarm-legs = 5", join()).unwrap();
        writeln!(file, "resource = [\"ssh=tcp:127.0.0.1:22\", \"web=tcp:[::1]:80\"]").unwrap();
        let path = file.path().to_str().unwrap();
        let words = ["--config", path, "--name", "other", "--state", "/s"];
        let config = parsed(&words).with_file().and_then(AgentArgs::into_config).unwrap();
        assert_eq!((config.name.as_str(), config.warm_legs), ("other", 5));
        assert_eq!(config.resources[1].target, "[::1]:80");
    }

    #[test]
    fn udp_is_on_without_a_listener_unless_said_otherwise() {
        let udp = parsed(&[]).udp().unwrap();
        assert!(udp.enabled && udp.managed_port.is_none() && udp.ports.is_none());
        let udp = parsed(&["--managed-port", "--udp-ports", "5000-5010"]).udp().unwrap();
        assert_eq!((udp.managed_port, udp.ports), (Some(MANAGED_PORT_DEFAULT), Some(5000..=5010)));
        assert!(udp.port_mapping && udp.dscp.is_none());
        let udp = parsed(&["--no-port-mapping", "--dscp", "ef"]).udp().unwrap();
        assert_eq!((udp.port_mapping, udp.dscp), (false, Some(46)));
        assert!(!parsed(&["--no-udp"]).udp().unwrap().enabled);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "no-udp = true\nudp-networks = \"10.0.0.0/8\"").unwrap();
        let from_file = parsed(&["--config", file.path().to_str().unwrap()]).with_file().unwrap();
        assert_eq!(from_file.udp().unwrap_err().code, Code::ConfigInvalid);
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        let join = join();
        let words = ["--join", &join, "--resource", "a=tcp:h:1", "--resource", "a=tcp:h:2"];
        let fault = parsed(&words).into_config().unwrap_err();
        assert_eq!(fault.code, Code::ConfigInvalid);
        assert!(fault.detail.contains("`a` is given twice"));
    }

    #[test]
    fn an_agent_needs_a_join_string_a_resource_and_a_proper_name() {
        let (join, resource) = (join(), "a=tcp:h:1");
        let state = tempfile::tempdir().unwrap();
        let state = ["--state", state.path().to_str().unwrap()];
        for (words, code) in [
            (vec!["--resource", resource], Code::UsageInvalid),
            (vec!["--join", &join], Code::UsageInvalid),
            (vec!["--join", "sblogin1_x", "--resource", resource], Code::InviteInvalid),
            (vec!["--join", &join, "--resource", resource, "--name", "A b"], Code::ConfigInvalid),
        ] {
            let words = [&words[..], &state].concat();
            assert_eq!(parsed(&words).into_config().unwrap_err().code, code, "{words:?}");
        }
    }

    #[test]
    fn the_join_string_never_shows_in_debug() {
        assert!(!format!("{:?}", parsed(&["--join", &join()])).contains("sbjoin1_"));
    }
}
