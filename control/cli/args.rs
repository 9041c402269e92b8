//! The command line: what may be typed, and the help that teaches it.
use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use switchback_control::secret::Secret;
use switchback_control::{Code, Fault};

use crate::{
    account, agent, agents, api, audit, backup, connect, demo, errors, estimate, events, explain,
    gateway, gateways, grants, logging, metrics, netcheck, output, pairs, ping, policy, replay,
    resources, serve, sessions, shadow, tokens, top, verbs,
};

/// Version and commit.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SWITCHBACK_COMMIT"), ")");

/// Groups the commands by who types them; clap lists them in one block.
const TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

Run the broker and its gateway:
  serve       Broker and gateway on one TCP port
  agent       Offer resources beside a service; dials out only
  gateway     The data plane alone, on another machine or in another region
  demo        See it all work on this machine, without root

Use resources:
  login       Sign in with a login string, or at the organisation's provider
  logout      Sign out, and forget the stored login
  whoami      Show who you are signed in as
  resources   List what you may connect to (the feed)
  connect     Reach a resource by a local port or standard input and output
  sessions    List sessions with transport and round-trip times
  session     Show every figure of one session
  top         Watch sessions, with their recent past
  events      What happened, or happens: sessions, links, rights
  ping        Round trips to the agent of a resource, and the way each took
  estimate    What each resource would see through each gateway
  netcheck    What this machine's network lets through: UDP, kind of NAT, latency
  explain     Why a session takes the way it takes, and what would mend it
  kill        End a session
  message     Show a message to the user of a session
  pause       Hold a session's bytes back
  resume      Let a paused session go on

Administer:
  shadow      Watch a live session, control it, record it
  replay      Play a recorded session
  token       Mint, list and revoke login and join strings
  grant       Say who may use what
  backup      Save the broker's whole state into one file, while it runs
  restore     Make a data directory of a backup
  api         Print the OpenAPI document of the broker's API
  gateways    List gateways; drain one before it is stopped
  agents      List agents with their load; drain one before its machine goes down
  policy      Check, test, explain and show the policies that decide
  audit       Show what was decided, for whom and why
  metrics     Print what Prometheus scrapes
  pairs       Mint test pairs for load generators
  errors      Explain error codes
  help        Show this, or the help of a command

Options:
{options}{after-help}";

const QUICK_START: &str = "\
Quick start:
  switchback demo         all parts on this machine, nothing to set up
  switchback serve        on a host that both sides reach; prints the strings for:
  switchback agent --join sbjoin1_... --resource ssh=tcp:127.0.0.1:22
  switchback login sblogin1_...
  ssh -o ProxyCommand='switchback connect ssh --stdio' user@ssh

`switchback COMMAND --help` explains each command with examples.";

const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .error(AnsiColor::Red.on_default().bold());

/// Reach any TCP or UDP service behind a NAT or firewall without an inbound listener there.
#[derive(Debug, Parser)]
#[command(name = "switchback", version = VERSION, help_template = TEMPLATE, after_help = QUICK_START)]
#[command(styles = STYLES, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print JSON for programs; errors become one JSON object on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Login string to use instead of the stored one
    #[arg(
        long,
        global = true,
        value_name = "STRING",
        env = "SWITCHBACK_LOGIN",
        hide_env_values = true
    )]
    #[arg(value_parser = secret)]
    pub(crate) login: Option<Secret>,
    /// Log more; repeat for more (RUST_LOG overrides)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Log less; repeat for less
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) quiet: u8,
    /// Form of the log on standard error
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text",
        env = "SWITCHBACK_LOG_FORMAT"
    )]
    pub(crate) log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object per line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(serve::ServeArgs),
    Agent(agent::AgentArgs),
    Gateway(gateway::GatewayArgs),
    Gateways(gateways::GatewaysArgs),
    Estimate(estimate::EstimateArgs),
    Demo(demo::DemoArgs),
    Login(account::LoginArgs),
    Logout(account::LogoutArgs),
    Whoami(account::WhoamiArgs),
    Resources(resources::ResourcesArgs),
    Connect(connect::ConnectArgs),
    Netcheck(netcheck::NetcheckArgs),
    Ping(ping::PingArgs),
    Explain(explain::ExplainArgs),
    Sessions(sessions::SessionsArgs),
    Session(sessions::SessionArgs),
    Kill(sessions::KillArgs),
    Message(verbs::MessageArgs),
    Pause(verbs::PauseArgs),
    Resume(verbs::ResumeArgs),
    Shadow(shadow::ShadowArgs),
    Replay(replay::ReplayArgs),
    Token(tokens::TokenArgs),
    Agents(agents::AgentsArgs),
    Grant(grants::GrantArgs),
    Events(events::EventsArgs),
    Top(top::TopArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    Api(api::ApiArgs),
    Policy(policy::PolicyArgs),
    Audit(audit::AuditArgs),
    Metrics(metrics::MetricsArgs),
    Pairs(pairs::PairsArgs),
    Errors(errors::ErrorsArgs),
}

impl Command {
    /// Whether it asks the broker as whoever is signed in.
    pub(crate) const fn uses_login(&self) -> bool {
        !matches!(
            self,
            Self::Serve(_)
                | Self::Agent(_)
                | Self::Gateway(_)
                | Self::Backup(_)
                | Self::Restore(_)
                | Self::Replay(_)
                | Self::Api(_)
                | Self::Demo(_)
                | Self::Login(_)
                | Self::Logout(_)
                | Self::Errors(_)
        )
    }

    /// How much it logs unless asked: services tell what they do, the demo's picture is not to be scrawled on.
    pub(crate) const fn log_level(&self) -> u8 {
        match self {
            Self::Serve(_) | Self::Agent(_) | Self::Gateway(_) => logging::INFO,
            Self::Demo(_) => logging::ERROR,
            _ => logging::WARN,
        }
    }
}

/// Reads the command line. Help and version are printed here.
///
/// # Errors
/// The exit status, after the fault was reported.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(&words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Clap writes it in colour where that is due; a reader that left is no error.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(Code::UsageInvalid.exit() as u8)
        }
        _ => {
            let json = words.iter().any(|word| word == "--json");
            output::fault::report(usage_fault(&error), json)
        }
    })
}

/// Takes a join or login string off the command line so that no `Debug` shows it.
pub(crate) fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// Clap's words under our code, without secrets that were typed in the wrong place.
fn usage_fault(error: &clap::Error) -> Fault {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let body: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with("For more information"))
        .map(mask_invites)
        .collect();
    Code::UsageInvalid.because(body.join("\n"))
}

/// Cuts join and login strings after their prefix.
fn mask_invites(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((at, prefix)) = ["sbjoin1_", "sblogin1_", "sbgate1_"]
        .into_iter()
        .filter_map(|prefix| Some((rest.find(prefix)?, prefix)))
        .min()
    {
        let (before, secret) = rest.split_at(at + prefix.len());
        let end = secret.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        shown.push_str(before);
        shown.push_str("***");
        rest = &secret[end.unwrap_or(secret.len())..];
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn refused(words: &[&str]) -> Fault {
        let words = ["switchback"].iter().chain(words);
        usage_fault(&Cli::try_parse_from(words).unwrap_err())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_grouped_help_lists_every_command_and_each_teaches_by_example() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(TEMPLATE.contains(&format!("\n  {name} ")), "{name} is not in the template");
            assert!(command.get_about().is_some(), "{name} does not say what it does");
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(examples.contains("  switchback "), "{name} has no example");
        }
    }

    #[test]
    fn a_wrong_word_is_named_under_our_code() {
        let fault = refused(&["conect", "ssh"]);
        assert_eq!(fault.code, Code::UsageInvalid);
        assert!(fault.detail.contains("conect") && fault.detail.contains("connect"));
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        let fault = refused(&["agent", "sbjoin1_c2VjcmV0"]);
        assert!(fault.detail.contains("sbjoin1_***"), "{}", fault.detail);
        assert!(!fault.detail.contains("c2VjcmV0"));
        assert_eq!(mask_invites("a sblogin1_x-Y_z' b sbjoin1_q"), "a sblogin1_***' b sbjoin1_***");
    }

    #[test]
    fn global_options_stand_anywhere() {
        for words in [["switchback", "--json", "sessions"], ["switchback", "sessions", "--json"]] {
            assert!(Cli::try_parse_from(words).unwrap().global.json);
        }
    }
}
