//! `sessions`, `session`, `kill`: what is going on, and the way to end it.
use clap::Args;
use switchback_control::Fault;
use switchback_control::api::SessionView;
use switchback_control::wire::{RttView, SessionId};

use crate::account;
use crate::args::Global;
use crate::output::table::{Column, Table};
use crate::output::{self, human};

/// List sessions with transport and round-trip times.
///
/// Administrators see all sessions, others their own. RTT is end to end, from client to agent and back; CLIENT-LEG and
/// AGENT-LEG are the two parts as the gateway measures them. UP is what the client sent, DOWN what it received.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback sessions
  watch -n1 switchback sessions
  switchback sessions --json | jq '.[] | {id, rtt: .rtt.end_to_end.smoothed_us}'")]
pub(crate) struct SessionsArgs {}

/// Show every figure of one session.
///
/// For each leg and end to end: smoothed, smallest, median and 99th percentile of the round-trip time.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  switchback session k3m9x2q7w4ht\n  switchback session k3m9x2q7w4ht --json"
)]
pub(crate) struct SessionArgs {
    /// Session id, from `switchback sessions`
    id: String,
}

/// End a session.
///
/// Its connections are closed at both ends at once. Administrators may end every session, others their own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  switchback kill k3m9x2q7w4ht\n  \
    switchback sessions --json | jq -r '.[].id' | xargs -n1 switchback kill")]
pub(crate) struct KillArgs {
    /// Session id, from `switchback sessions`
    id: String,
}

/// Runs `sessions`.
pub(crate) async fn list(global: &Global) -> Result<(), Fault> {
    let sessions = account::api(global)?.sessions().await?;
    if global.json {
        return output::json(&sessions);
    }
    let mut table = Table::new(&[
        Column::Text("ID"),
        Column::Text("USER"),
        Column::Text("RESOURCE"),
        Column::Text("AGENT"),
        Column::Text("STATE"),
        Column::Text("TRANSPORT"),
        Column::Figure("RTT"),
        Column::Figure("CLIENT-LEG"),
        Column::Figure("AGENT-LEG"),
        Column::Figure("UP"),
        Column::Figure("DOWN"),
        Column::Figure("CHANNELS"),
        Column::Figure("AGE"),
    ]);
    for session in sessions {
        table.row(row(session));
    }
    table.print("no sessions")
}

/// Runs `session`.
pub(crate) async fn show(args: SessionArgs, global: &Global) -> Result<(), Fault> {
    let session = account::api(global)?.session(&SessionId(args.id)).await?;
    if global.json {
        return output::json(&session);
    }
    let mut facts = Table::new(&[Column::Text("SESSION"), Column::Text("")]);
    for (name, value) in facts_of(&session) {
        facts.row([name.to_owned(), value]);
    }
    facts.print("")?;
    output::line("")?;
    rtt_table(&session).print("")
}

/// Runs `kill`.
pub(crate) async fn kill(args: KillArgs, global: &Global) -> Result<(), Fault> {
    let id = SessionId(args.id);
    account::api(global)?.kill(&id).await?;
    if global.json {
        return output::json(&serde_json::json!({ "killed": id }));
    }
    output::line(&format!("ended session {id}"))
}

fn row(session: SessionView) -> [String; 13] {
    [
        session.id.0,
        session.user,
        session.resource,
        session.agent,
        session.state.as_str().into(),
        session.transport.unwrap_or_else(|| human::UNKNOWN.into()),
        human::rtt(session.rtt.end_to_end),
        human::rtt(session.rtt.client_leg),
        human::rtt(session.rtt.agent_leg),
        human::bytes(session.client_to_target),
        human::bytes(session.target_to_client),
        session.channels.to_string(),
        human::age(session.age_ms),
    ]
}

fn facts_of(session: &SessionView) -> [(&'static str, String); 12] {
    let transport = session.transport.clone().unwrap_or_else(|| human::UNKNOWN.into());
    [
        ("id", session.id.0.clone()),
        ("user", session.user.clone()),
        ("resource", session.resource.clone()),
        ("agent", session.agent.clone()),
        ("gateway", session.gateway.clone()),
        ("state", session.state.as_str().into()),
        ("transport", transport),
        ("client to target", human::bytes(session.client_to_target)),
        ("target to client", human::bytes(session.target_to_client)),
        ("channels", session.channels.to_string()),
        ("resumes", session.resumes.to_string()),
        ("age", human::age(session.age_ms)),
    ]
}

fn rtt_table(session: &SessionView) -> Table {
    let mut table = Table::new(&[
        Column::Text("ROUND TRIP"),
        Column::Figure("SMOOTHED"),
        Column::Figure("MIN"),
        Column::Figure("P50"),
        Column::Figure("P99"),
    ]);
    for (name, view) in [
        ("end to end", session.rtt.end_to_end),
        ("client leg", session.rtt.client_leg),
        ("agent leg", session.rtt.agent_leg),
    ] {
        let figure = |pick: fn(RttView) -> u32| {
            view.map_or_else(|| human::UNKNOWN.into(), |view| human::micros(pick(view).into()))
        };
        table.row([
            name.to_owned(),
            figure(|view| view.smoothed_us),
            figure(|view| view.min_us),
            figure(|view| view.p50_us),
            figure(|view| view.p99_us),
        ]);
    }
    table
}
