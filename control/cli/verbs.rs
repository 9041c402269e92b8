//! `message`, `pause`, `resume`: what is done to a session beside ending it.
use clap::Args;
use switchback_control::Fault;
use switchback_control::wire::SessionId;

use crate::args::Global;
use crate::{account, output};

/// Show a message to the user of a session.
///
/// The user's `switchback connect` prints it on its terminal, or as a JSON line. 500 characters at most; control characters
/// are left out. Administrators may write to everybody, others to their own sessions.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback message k3m9x2q7w4ht 'the host restarts in 5 minutes'
  switchback sessions --json | jq -r '.[].id' | xargs -I{} switchback message {} 'please save your work'")]
pub(crate) struct MessageArgs {
    /// Session id, from `switchback sessions`
    id: String,
    /// What to say
    text: String,
}

/// Hold a session's bytes back.
///
/// No application byte passes at the agent until `switchback resume`; connections stay open, and the application sees
/// silence. Administrators may pause every session, others their own; what an administrator paused, an administrator lets
/// go on.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  switchback pause k3m9x2q7w4ht\n  switchback resume k3m9x2q7w4ht"
)]
pub(crate) struct PauseArgs {
    /// Session id, from `switchback sessions`
    id: String,
}

/// Let a paused session go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  switchback resume k3m9x2q7w4ht")]
pub(crate) struct ResumeArgs {
    /// Session id, from `switchback sessions`
    id: String,
}

/// Runs `message`.
pub(crate) async fn message(args: MessageArgs, global: &Global) -> Result<(), Fault> {
    let id = SessionId(args.id);
    account::api(global)?.message(&id, &args.text).await?;
    done(global, "told", &id, "told the user of session")
}

/// Runs `pause`.
pub(crate) async fn pause(args: PauseArgs, global: &Global) -> Result<(), Fault> {
    let id = SessionId(args.id);
    account::api(global)?.hold(&id, true).await?;
    done(global, "paused", &id, "paused session")
}

/// Runs `resume`.
pub(crate) async fn resume(args: ResumeArgs, global: &Global) -> Result<(), Fault> {
    let id = SessionId(args.id);
    account::api(global)?.hold(&id, false).await?;
    done(global, "resumed", &id, "resumed session")
}

fn done(global: &Global, key: &str, id: &SessionId, words: &str) -> Result<(), Fault> {
    if global.json {
        return output::json(&serde_json::json!({ key: id }));
    }
    output::line(&format!("{words} {id}"))
}
