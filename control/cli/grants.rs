//! `grant`: who may use what.
use clap::{Args, Subcommand};
use switchback_control::Fault;
use switchback_control::api::GrantView;

use crate::account;
use crate::args::Global;
use crate::output;
use crate::output::table::{Column, Table};

/// Say who may use what.
///
/// A user sees and reaches exactly the resources that were granted. `*` as the resource grants all, also future ones.
/// For administrators.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback grant add alice ssh
  switchback grant remove alice ssh
  switchback grant list")]
pub(crate) struct GrantArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Let a user use a resource
    #[command(
        after_help = "Examples:\n  switchback grant add alice ssh\n  switchback grant add alice '*'"
    )]
    Add(Pair),
    /// Take it back; the user's running sessions with it end at once
    #[command(after_help = "Example:\n  switchback grant remove alice ssh")]
    Remove(Pair),
    /// List grants
    #[command(after_help = "Example:\n  switchback grant list --json")]
    List,
}

#[derive(Debug, Args)]
struct Pair {
    /// User name
    user: String,
    /// Resource name; `*` is all
    resource: String,
}

impl From<Pair> for GrantView {
    fn from(Pair { user, resource }: Pair) -> Self {
        Self { user, resource }
    }
}

/// Runs `grant`.
pub(crate) async fn run(args: GrantArgs, global: &Global) -> Result<(), Fault> {
    let api = account::api(global)?;
    match args.action {
        Action::Add(pair) => {
            let grant = GrantView::from(pair);
            api.add_grant(&grant).await?;
            say(&grant, "may now use", global)
        }
        Action::Remove(pair) => {
            let grant = GrantView::from(pair);
            api.remove_grant(&grant).await?;
            say(&grant, "may no longer use", global)
        }
        Action::List => list(&api.grants().await?, global),
    }
}

fn say(grant: &GrantView, verb: &str, global: &Global) -> Result<(), Fault> {
    if global.json {
        return output::json(grant);
    }
    output::line(&format!("{} {verb} {}", grant.user, grant.resource))
}

fn list(grants: &[GrantView], global: &Global) -> Result<(), Fault> {
    if global.json {
        return output::json(grants);
    }
    let mut table = Table::new(&[Column::Text("USER"), Column::Text("RESOURCE")]);
    for grant in grants {
        table.row([grant.user.clone(), grant.resource.clone()]);
    }
    table.print("no grants")
}
