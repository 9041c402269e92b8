//! `token`: the built-in issuer of login and join strings.
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use switchback_control::api::{IssuedToken, NewToken, TokenKind, TokenView};
use switchback_control::{Code, Fault};

use crate::account;
use crate::args::Global;
use crate::output::table::{Column, Table};
use crate::output::{self, human};
use crate::resource_spec;

/// Mint, list and revoke login and join strings.
///
/// A string is shown once, when it is minted; the broker keeps only a hash. For administrators.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback token user alice --grant ssh --grant web
  switchback token agent branch-office
  switchback token list
  switchback token revoke t7q2m5")]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Mint a login string for a user, who is created if new
    #[command(after_help = "Examples:\n  switchback token user alice --grant ssh --grant web\n  \
        switchback token user root2 --admin --grant '*'")]
    User {
        /// User name
        name: String,
        /// Make the user an administrator
        #[arg(long)]
        admin: bool,
        /// Grant a resource at once; `*` is all. Repeatable
        #[arg(long = "grant", value_name = "RESOURCE")]
        grants: Vec<String>,
    },
    /// Mint a join string for the agent of this name
    #[command(after_help = "Example:\n  switchback token agent branch-office")]
    Agent {
        /// The only name that the agent may use
        #[arg(value_parser = agent_name)]
        name: String,
    },
    /// List tokens, without their text
    #[command(after_help = "Example:\n  switchback token list --json")]
    List,
    /// End a token: its user or agent can no longer sign in with it
    #[command(after_help = "Example:\n  switchback token revoke t7q2m5")]
    Revoke {
        /// Token id, from `switchback token list`
        id: String,
    },
}

/// Runs `token`.
pub(crate) async fn run(args: TokenArgs, global: &Global) -> Result<(), Fault> {
    let api = account::api(global)?;
    match args.action {
        Action::User { name, admin, grants } => {
            let wanted = NewToken { kind: TokenKind::User, name, admin, grants };
            show_issued(&api.issue(&wanted).await?, global)
        }
        Action::Agent { name } => {
            let wanted =
                NewToken { kind: TokenKind::Agent, name, admin: false, grants: Vec::new() };
            show_issued(&api.issue(&wanted).await?, global)
        }
        Action::List => show_list(&api.tokens().await?, global),
        Action::Revoke { id } => {
            api.revoke(&id).await?;
            if global.json {
                return output::json(&serde_json::json!({ "revoked": id }));
            }
            output::line(&format!("revoked token {id}"))
        }
    }
}

fn agent_name(text: &str) -> Result<String, String> {
    resource_spec::check_name(text).map(|()| text.to_owned())
}

fn show_issued(issued: &IssuedToken, global: &Global) -> Result<(), Fault> {
    if global.json {
        return output::json(issued);
    }
    let (what, command) = match issued.kind {
        TokenKind::User => ("login string for user", "switchback login".to_owned()),
        TokenKind::Agent => (
            "join string for agent",
            "switchback agent --resource ssh=tcp:127.0.0.1:22 --join".into(),
        ),
    };
    output::line(&format!("{what} {} (token {}); it is shown this once:", issued.name, issued.id))?;
    output::line(&format!("\n  {command} {}", issued.invite.reveal()))
}

fn show_list(tokens: &[TokenView], global: &Global) -> Result<(), Fault> {
    if global.json {
        return output::json(tokens);
    }
    let mut table = Table::new(&[
        Column::Text("ID"),
        Column::Text("KIND"),
        Column::Text("NAME"),
        Column::Text("ADMIN"),
        Column::Figure("CREATED"),
        Column::Text("STATE"),
    ]);
    let now = unix_ms()?;
    let ago = |then: u64| format!("{} ago", human::age(now.saturating_sub(then)));
    for token in tokens {
        let kind = match token.kind {
            TokenKind::User => "user",
            TokenKind::Agent => "agent",
        };
        let state =
            token.revoked_ms.map_or_else(|| "good".into(), |then| format!("revoked {}", ago(then)));
        let admin = if token.admin { "yes" } else { "no" };
        let created = ago(token.created_ms);
        table.row([
            token.id.clone(),
            kind.into(),
            token.name.clone(),
            admin.into(),
            created,
            state,
        ]);
    }
    table.print("no tokens")
}

fn unix_ms() -> Result<u64, Fault> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .ok_or_else(|| Code::Internal.because("the clock stands before 1970"))
}
