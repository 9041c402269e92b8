//! `policy`: check, test, explain and show what decides.
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde::Serialize;
use switchback_control::api::{ExplainPolicy, PolicyExplained};
use switchback_control::broker::{Location, read_policies};
use switchback_control::claims::Claims;
use switchback_control::policy::cases::{CaseResult, Cases};
use switchback_control::policy::{
    Action, BUILT_IN, Circumstances, Complaint, Object, Policies, Request, ResourceFacts, SCHEMA,
    Subject,
};
use switchback_control::{Code, Fault};

use crate::account;
use crate::args::Global;
use crate::config_file;
use crate::output;
use crate::output::table::{Column, Table};

/// Check, test, explain and show the policies that decide.
///
/// Policies are written in Cedar (cedarpolicy.com). They decide who may see, connect, shadow-view, shadow-control, kill and
/// admin, by user, group, resource and tags, source network, time, strength of the sign-in and device. Annotations on a permit
/// oblige: @no_udp, @relay_only, @direct_required, @max_session("8h"), @reauthenticate("4h"), @consent("required"|"notify"),
/// @rate("10mbit"). Where several permits decide, the strictest of all binds.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback policy show > policy/10-base.cedar            begin with what holds without --policy
  switchback policy check policy/
  switchback policy test policy/ --cases cases.toml
  switchback policy explain --user ada --resource ssh --source 192.0.2.7
  switchback policy status                                 what the broker holds, and what is wrong")]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Parse and check policies against the schema
    #[command(after_help = "Example:\n  switchback policy check /etc/switchback/policy")]
    Check {
        /// A file, or a directory of *.cedar files
        path: PathBuf,
    },
    /// Ask policies the questions of a table, and compare the answers
    ///
    /// Each `[[case]]` has `user`, `action` and `expect` (allow or deny); and as it needs them `name`, `admin`, `groups`, `resource`,
    /// `kind`, `tags`, `folder`, `owner`, `granted`, `source`, `locations`, `weekday`, `hour`, `minute`, `issuer`, `acr`, `amr`,
    /// `device`, `signed_in` (seconds ago), `transport`; and to compare, `obligations` and `policies`.
    #[command(after_help = "\
Example:
  switchback policy test policy/ --cases cases.toml

  [[case]]
  name = \"operators may connect from the office\"
  user = \"ada\"
  groups = [\"ops\"]
  resource = \"ssh\"
  action = \"connect\"
  locations = [\"office\"]
  expect = \"allow\"
  obligations = [\"no_udp\", \"max_session=8h\"]")]
    Test {
        /// A file, or a directory of *.cedar files
        path: PathBuf,
        /// The table, TOML
        #[arg(long, value_name = "FILE")]
        cases: PathBuf,
    },
    /// Say which policies decide, and what would change the answer
    Explain(Box<ExplainArgs>),
    /// Print the policies that hold without --policy, or with --broker those that the broker holds
    #[command(
        after_help = "Examples:\n  switchback policy show\n  switchback policy show --schema\n  switchback policy show --broker"
    )]
    Show {
        /// What policies may speak of, instead
        #[arg(long, conflicts_with = "broker")]
        schema: bool,
        /// Those that the broker holds
        #[arg(long)]
        broker: bool,
    },
    /// Show which policies the broker holds, and what is wrong with the files now
    #[command(after_help = "Example:\n  switchback policy status")]
    Status,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback policy explain --user ada --resource ssh --source 192.0.2.7
  switchback policy explain --user ada --resource ssh --policy policy/ --group ops --at 2026-01-05T09:00:00Z")]
struct ExplainArgs {
    /// Who would ask
    #[arg(long)]
    user: String,
    /// About which resource
    #[arg(long, default_value = "")]
    resource: String,
    /// What for: see, connect, shadow-view, shadow-control, kill, admin
    #[arg(long, default_value = "connect", value_parser = action)]
    action: Action,
    /// These policies, instead of asking the broker
    #[arg(long, value_name = "PATH")]
    policy: Option<PathBuf>,
    /// Source address
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// A group they are in; may be repeated
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,
    /// How they signed in; may be repeated
    #[arg(long, value_name = "METHOD")]
    amr: Vec<String>,
    /// When [default: now]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    at: Option<SystemTime>,
    /// udp or tcp
    #[arg(long)]
    transport: Option<String>,
    /// A named location, as with `serve`; with --policy
    #[arg(long, value_name = "NAME=CIDR,...", requires = "policy")]
    location: Vec<String>,
    /// A tag of the resource; with --policy
    #[arg(long, value_name = "TAG", requires = "policy")]
    tag: Vec<String>,
    /// A grant covers it; with --policy
    #[arg(long, requires = "policy")]
    granted: bool,
    /// They are an administrator; with --policy
    #[arg(long, requires = "policy")]
    admin: bool,
    /// Whose session it is; with --policy [default: the user's own]
    #[arg(long, value_name = "USER", requires = "policy")]
    owner: Option<String>,
}

fn action(text: &str) -> Result<Action, String> {
    Action::from_text(text).ok_or_else(|| {
        let all: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
        format!("one of {}", all.join(", "))
    })
}

/// Runs `policy`.
pub(crate) async fn run(args: PolicyArgs, global: &Global) -> Result<ExitCode, Fault> {
    match args.command {
        PolicyCommand::Check { path } => return check(&path, global),
        PolicyCommand::Test { path, cases } => return test(&path, &cases, global),
        PolicyCommand::Explain(args) => explain(*args, global).await?,
        PolicyCommand::Show { schema: true, .. } => output::line(SCHEMA.trim_end())?,
        PolicyCommand::Show { broker: false, .. } => output::line(BUILT_IN.trim_end())?,
        PolicyCommand::Show { .. } => {
            let status = account::api(global)?.policy().await?;
            if global.json {
                output::json(&status.files)?;
            } else {
                for file in status.files {
                    output::line(&format!("// {}\n{}", file.name, file.text.trim_end()))?;
                }
            }
        }
        PolicyCommand::Status => return status(global).await,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Checked<'a> {
    policies: usize,
    wrong: &'a [Complaint],
}

fn check(path: &Path, global: &Global) -> Result<ExitCode, Fault> {
    let checked = Policies::check(&read_policies(path)?);
    let (policies, wrong) = match &checked {
        Ok(policies) => (policies.len(), [].as_slice()),
        Err(wrong) => (0, wrong.as_slice()),
    };
    if global.json {
        output::json(&Checked { policies, wrong })?;
    } else {
        for complaint in wrong {
            output::line(&complaint.to_string())?;
        }
        if wrong.is_empty() {
            output::line(&format!("{policies} policies, nothing wrong"))?;
        }
    }
    Ok(verdict(wrong.is_empty()))
}

fn verdict(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn load(path: &Path) -> Result<Policies, Fault> {
    Policies::check(&read_policies(path)?).map_err(|wrong| {
        let all: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        Code::PolicyInvalid.because(all.join("\n"))
    })
}

fn test(path: &Path, cases: &Path, global: &Global) -> Result<ExitCode, Fault> {
    let policies = load(path)?;
    let Cases { cases } = config_file::load(cases)?;
    if cases.is_empty() {
        return Err(Code::ConfigInvalid.because("there is no [[case]] in it"));
    }
    let results: Vec<CaseResult> = cases.iter().map(|case| case.run(&policies)).collect();
    let good = results.iter().all(|result| result.differs.is_empty());
    if global.json {
        output::json(&results)?;
        return Ok(verdict(good));
    }
    let mut table = Table::new(&["CASE", "DIFFERS", "DECIDED BY"].map(Column::Text));
    let failed = results.iter().filter(|result| !result.differs.is_empty());
    let mut count = 0;
    for CaseResult { case, differs, decided } in failed {
        count += 1;
        table.row([case.clone(), differs.join("; "), decided.join(", ")]);
    }
    table.print(&format!("{} cases, all as expected", results.len()))?;
    if count > 0 {
        output::line(&format!("{count} of {} cases differ", results.len()))?;
    }
    Ok(verdict(good))
}

async fn explain(args: ExplainArgs, global: &Global) -> Result<(), Fault> {
    let explained = match &args.policy {
        Some(path) => explain_here(&args, &load(path)?)?,
        None => {
            let asked = ExplainPolicy {
                user: args.user,
                resource: args.resource,
                action: Some(args.action.as_str().to_owned()),
                source: args.source.map(|source| source.to_string()),
                groups: args.group,
                amr: args.amr,
                at_ms: args.at.map(unix_ms),
                transport: args.transport,
            };
            account::api(global)?.explain_policy(&asked).await?
        }
    };
    if global.json { output::json(&explained) } else { show(&explained) }
}

fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn explain_here(args: &ExplainArgs, policies: &Policies) -> Result<PolicyExplained, Fault> {
    let known: Result<Vec<_>, _> = args.location.iter().map(|text| Location::parse(text)).collect();
    let known = known?;
    let now_ms = unix_ms(args.at.unwrap_or_else(SystemTime::now));
    let locations = args.source.map(|source| Location::of(&known, source)).unwrap_or_default();
    let claims = Claims {
        groups: args.group.iter().cloned().collect(),
        amr: args.amr.iter().cloned().collect(),
        ..Claims::default()
    };
    let subject =
        Subject { name: args.user.clone(), admin: args.admin, claims, signed_in_ms: Some(now_ms) };
    let resource = ResourceFacts {
        tags: args.tag.iter().cloned().collect(),
        ..ResourceFacts::named(&args.resource)
    };
    let object = match args.action {
        Action::See | Action::Connect => Object::Resource(resource),
        Action::Admin => Object::Broker,
        Action::Kill | Action::ShadowView | Action::ShadowControl => {
            let owner = args.owner.clone().unwrap_or_else(|| args.user.clone());
            Object::Session { id: "session".into(), owner, resource }
        }
    };
    let circumstances = Circumstances {
        source: args.source,
        locations: locations.clone(),
        now_ms,
        granted: args.granted,
        transport: args.transport.clone(),
    };
    let request = Request {
        subject: &subject,
        action: args.action,
        object: &object,
        circumstances: &circumstances,
    };
    let names: Vec<_> = known.iter().map(|location| location.name().to_owned()).collect();
    let trial = policies.try_out(&request, &names);
    let locations = locations.into_iter().collect();
    Ok(PolicyExplained { trial, granted: args.granted, locations })
}

fn show(explained: &PolicyExplained) -> Result<(), Fault> {
    let PolicyExplained { trial, granted, locations } = explained;
    let decision = &trial.decision;
    let outcome = if decision.allowed { "allowed" } else { "denied" };
    let by = if decision.deciding.is_empty() {
        "no policy permits it".to_owned()
    } else {
        format!("by {}", decision.deciding.join(", "))
    };
    output::line(&format!("{outcome}, {by}"))?;
    if !decision.obligations.is_none() {
        output::line(&format!("obliges to: {}", decision.obligations))?;
    }
    let places = if locations.is_empty() { "none".to_owned() } else { locations.join(", ") };
    output::line(&format!(
        "granted: {}, locations: {places}",
        if *granted { "yes" } else { "no" }
    ))?;
    for change in &trial.would_allow {
        output::line(&format!("would be allowed with {change}"))?;
    }
    let mut table = Table::new(&["POLICY", "EFFECT", "APPLIES", "OBLIGATIONS"].map(Column::Text));
    for verdict in &trial.policies {
        let applies = match &verdict.error {
            Some(error) => error.clone(),
            None if verdict.applies => "yes".to_owned(),
            None => "no".to_owned(),
        };
        let obligations = verdict.obligations.to_string();
        table.row([verdict.policy.clone(), verdict.effect.clone(), applies, obligations]);
    }
    table.print("no policies")
}

async fn status(global: &Global) -> Result<ExitCode, Fault> {
    let mut status = account::api(global)?.policy().await?;
    status.files.clear();
    let good = status.wrong.is_empty();
    if global.json {
        output::json(&status)?;
        return Ok(verdict(good));
    }
    let from = status.path.unwrap_or_else(|| "built-in".to_owned());
    let loaded = UNIX_EPOCH + Duration::from_millis(status.loaded_ms);
    let loaded = humantime::format_rfc3339_seconds(loaded);
    output::line(&format!("{} policies from {from}, read {loaded}", status.policies))?;
    output::line(&format!("read anew {} times, refused {}", status.reloads, status.failures))?;
    if !status.locations.is_empty() {
        output::line(&format!("locations: {}", status.locations.join(", ")))?;
    }
    if !good {
        output::line("The files are wrong now, and the last good policies hold:")?;
        for complaint in &status.wrong {
            output::line(&complaint.to_string())?;
        }
    }
    Ok(verdict(good))
}
