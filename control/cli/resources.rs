//! `resources`: the feed.
use clap::Args;
use switchback_control::Fault;
use switchback_control::wire::Look;

use crate::account;
use crate::args::Global;
use crate::output::table::{Column, Table};
use crate::output::{self, human};

/// List what you may connect to (the feed).
///
/// Shows the resources that were granted to you, and whether an agent that offers them is connected now.
/// UDP says what may carry its sessions: `prefer` whatever is best, `require` a direct UDP path, `relay-only` UDP through
/// the gateway, `off` TCP alone. Administrators also see the agents.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  switchback resources\n  switchback resources --json | jq -r '.[].name'"
)]
pub(crate) struct ResourcesArgs {}

/// Runs `resources`.
pub(crate) async fn run(global: &Global) -> Result<(), Fault> {
    let resources = account::api(global)?.resources().await?;
    if global.json {
        return output::json(&resources);
    }
    let mut table = Table::new(&[
        Column::Text("NAME"),
        Column::Text("TITLE"),
        Column::Text("FOLDER"),
        Column::Text("TAGS"),
        Column::Text("KIND"),
        Column::Text("STATE"),
        Column::Text("UDP"),
        Column::Text("AGENTS"),
    ]);
    for resource in resources {
        let kind = resource.kind.as_str();
        let udp = resource.transport.map_or(human::UNKNOWN, |transport| transport.udp.as_str());
        let agents = match resource.agents.as_slice() {
            [] => human::UNKNOWN.to_owned(),
            agents => agents.join(", "),
        };
        let state = if resource.online { "online" } else { "offline" };
        let Look { title, folder, tags, .. } = resource.look;
        let [title, folder] = [title, folder].map(|text| text.unwrap_or(human::UNKNOWN.into()));
        let tags = match tags.is_empty() {
            true => human::UNKNOWN.to_owned(),
            false => tags.into_iter().collect::<Vec<_>>().join(" "),
        };
        table.row([
            resource.name,
            title,
            folder,
            tags,
            kind.into(),
            state.into(),
            udp.into(),
            agents,
        ]);
    }
    table.print("no resources: none is granted to you, or no agent ever offered one")
}
