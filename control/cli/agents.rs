//! `agents`: who serves, and who gets no new sessions.
use clap::{Args, Subcommand};
use switchback_control::Fault;
use switchback_control::api::{AgentOnline, AgentView};

use crate::account;
use crate::args::Global;
use crate::output::table::{Column, Table};
use crate::output::{self, human};

/// List agents with their load, and drain one before its machine goes down.
///
/// An agent that drains keeps its sessions and gets no new ones; those go to other agents that offer the same resource.
/// It stays so over restarts. TARGETS names what an agent offers and does not reach. For administrators.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback agents
  switchback agents drain branch-2     then wait until SESSIONS is 0
  switchback agents undrain branch-2
  switchback agents --json | jq -r '.[] | select(.online == null) | .name'")]
pub(crate) struct AgentsArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Give an agent no new sessions
    Drain {
        /// Its name
        agent: String,
    },
    /// Give an agent new sessions again
    Undrain {
        /// Its name
        agent: String,
    },
}

/// Runs `agents`.
pub(crate) async fn run(args: AgentsArgs, global: &Global) -> Result<(), Fault> {
    let api = account::api(global)?;
    let (agent, draining) = match args.action {
        None => return show(&api.agents().await?, global),
        Some(Action::Drain { agent }) => (agent, true),
        Some(Action::Undrain { agent }) => (agent, false),
    };
    api.drain(&agent, draining).await?;
    if global.json {
        return output::json(&serde_json::json!({ "agent": agent, "draining": draining }));
    }
    let now = if draining { "gets no new sessions" } else { "gets new sessions" };
    output::line(&format!("{agent} {now}"))
}

fn show(agents: &[AgentView], global: &Global) -> Result<(), Fault> {
    if global.json {
        return output::json(agents);
    }
    let mut table = Table::new(&[
        Column::Text("NAME"),
        Column::Text("STATE"),
        Column::Figure("SESSIONS"),
        Column::Figure("LOAD"),
        Column::Figure("RTT"),
        Column::Figure("UP"),
        Column::Text("VERSION"),
        Column::Text("TARGETS"),
    ]);
    for agent in agents {
        let state = match (&agent.online, agent.draining) {
            (None, _) => "offline",
            (Some(_), true) => "draining",
            (Some(_), false) => "online",
        };
        let told = |tell: fn(&AgentOnline) -> String| {
            agent.online.as_ref().map_or(human::UNKNOWN.to_owned(), tell)
        };
        table.row([
            agent.name.clone(),
            state.into(),
            told(|online| online.sessions.to_string()),
            told(|online| format!("{} %", online.load_percent)),
            told(|online| online.link_rtt_us.map_or(human::UNKNOWN.into(), human::micros)),
            told(|online| human::age(online.connected_ms)),
            agent.version.clone(),
            told(targets),
        ]);
    }
    table.print("no agents: none has ever joined")
}

/// What cannot be reached; `ok` if everything can.
fn targets(online: &AgentOnline) -> String {
    let missed = |target: &switchback_control::wire::TargetHealth| {
        target.fault.map(|code| format!("{}: {code}", target.resource))
    };
    let missed: Vec<_> = online.targets.iter().filter_map(missed).collect();
    if missed.is_empty() { "ok".into() } else { missed.join(", ") }
}
