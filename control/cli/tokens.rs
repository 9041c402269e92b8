//! `token`: the built-in issuer of login and join strings, and who enrolled with the latter.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use switchback_control::api::enrol::EnrolmentView;
use switchback_control::api::{IssuedToken, NewToken, TokenKind, TokenView};
use switchback_control::{Code, Fault};

use crate::account;
use crate::args::Global;
use crate::output::table::{Column, Table};
use crate::output::{self, human};
use crate::resource_spec;

/// Ends that may join with one string, unless all may.
const USES_MAX: u32 = 1_000_000;

/// Mint, list and revoke login and join strings, and the agents and gateways that joined.
///
/// A string is shown once, when it is minted; the broker keeps only a hash. A join string is good for one agent or gateway
/// within a day, unless told otherwise: with it the end enrols a key of its own, which it changes every 30 days. Revoking a
/// join string ends no end that has enrolled with it, unless --with-enrolments is given. For administrators.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback token user alice --grant ssh --grant web
  switchback token agent branch-office                          one agent, within a day
  switchback token agent '*' --uses unlimited --expires never   for an image that many machines start from
  switchback token gateway eu-1
  switchback token list
  switchback token revoke t7q2m5                                a user, a string, or an enrolled end
  switchback token revoke t7q2m5 --with-enrolments              a join string, and all who joined with it
  switchback token rotate e4k9w2                                a new key for an enrolled end, at once")]
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
    #[command(after_help = "Examples:\n  switchback token agent branch-office\n  \
        switchback token agent '*' --uses 20 --expires 7days\n  \
        switchback token agent '*' --uses unlimited --expires never")]
    Agent {
        /// The only name that the agent may use; `*` is any
        #[arg(value_parser = end_name)]
        name: String,
        #[command(flatten)]
        terms: Terms,
    },
    /// Mint a join string for the gateway of this name
    #[command(after_help = "Example:\n  switchback token gateway eu-1")]
    Gateway {
        /// The only name that the gateway may use; `*` is any
        #[arg(value_parser = end_name)]
        name: String,
        #[command(flatten)]
        terms: Terms,
    },
    /// List tokens, without their text, and the agents and gateways that have enrolled
    #[command(after_help = "Example:\n  switchback token list --json")]
    List,
    /// End a token or an enrolment: its user, agent or gateway can no longer sign in, and is cut off within seconds
    ///
    /// A name is free again once its enrolment is revoked. A join string that is revoked enrols nobody any more; those who
    /// have enrolled with it stay, unless --with-enrolments is given.
    #[command(after_help = "Examples:\n  switchback token revoke t7q2m5\n  \
        switchback token revoke t7q2m5 --with-enrolments")]
    Revoke {
        /// Id, from `switchback token list`
        id: String,
        /// Of a join string: end the agents and gateways, too, that have enrolled with it
        #[arg(long)]
        with_enrolments: bool,
    },
    /// Have an enrolled agent or gateway make itself a new key now instead of after 30 days; its sessions do not notice
    ///
    /// If it is not connected, it is asked when it comes back. The old key is good until the new one was used, 60 s at most.
    #[command(after_help = "Example:\n  switchback token rotate e4k9w2")]
    Rotate {
        /// Id of the enrolment, from `switchback token list`
        id: String,
    },
}

/// What a join string is good for.
#[derive(Clone, Copy, Debug, Args)]
struct Terms {
    /// How many may enrol with it: a number, or `unlimited`
    #[arg(long, value_name = "N|unlimited", value_parser = uses, default_value = "1")]
    uses: u32,
    /// For how long they may: 24h, 7days, or `never` to let it last for ever
    #[arg(long, value_name = "TIME|never", value_parser = life, default_value = "24h")]
    expires: Duration,
}

fn uses(text: &str) -> Result<u32, String> {
    match text.parse() {
        _ if text == "unlimited" => Ok(0),
        Ok(uses @ 1..=USES_MAX) => Ok(uses),
        _ => Err(format!("expected 1 to {USES_MAX}, or unlimited")),
    }
}

fn life(text: &str) -> Result<Duration, String> {
    if text == "never" {
        return Ok(Duration::ZERO);
    }
    let life = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if life < Duration::from_secs(1) { Err("must be at least 1s".into()) } else { Ok(life) }
}

impl Terms {
    fn token(self, kind: TokenKind, name: String) -> NewToken {
        let (uses, lasts_s) = (Some(self.uses), Some(self.expires.as_secs()));
        NewToken { uses, lasts_s, ..NewToken::new(kind, name) }
    }
}

/// Runs `token`.
pub(crate) async fn run(args: TokenArgs, global: &Global) -> Result<(), Fault> {
    let api = account::api(global)?;
    match args.action {
        Action::User { name, admin, grants } => {
            let wanted = NewToken { admin, grants, ..NewToken::new(TokenKind::User, name) };
            show_issued(&api.issue(&wanted).await?, global)
        }
        Action::Agent { name, terms } => {
            show_issued(&api.issue(&terms.token(TokenKind::Agent, name)).await?, global)
        }
        Action::Gateway { name, terms } => {
            show_issued(&api.issue(&terms.token(TokenKind::Gateway, name)).await?, global)
        }
        Action::List => show_list(&api.tokens().await?, global),
        Action::Revoke { id, with_enrolments } => {
            api.revoke(&id, with_enrolments).await?;
            if global.json {
                return output::json(&serde_json::json!({ "revoked": id }));
            }
            output::line(&format!("revoked {id}"))
        }
        Action::Rotate { id } => {
            api.order_rotation(&id).await?;
            if global.json {
                return output::json(&serde_json::json!({ "rotating": id }));
            }
            output::line(&format!("{id} is asked for a new key"))
        }
    }
}

fn end_name(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    resource_spec::check_name(text).map(|()| text.to_owned())
}

fn show_issued(issued: &IssuedToken, global: &Global) -> Result<(), Fault> {
    if global.json {
        return output::json(issued);
    }
    let (what, command) = match issued.kind {
        TokenKind::User => ("login string for user", "switchback login".to_owned()),
        TokenKind::Gateway => {
            ("join string for gateway", format!("switchback gateway{} --join", named(&issued.name)))
        }
        TokenKind::Agent => {
            let name = named(&issued.name);
            let command = format!("switchback agent{name} --resource ssh=tcp:127.0.0.1:22 --join");
            ("join string for agent", command)
        }
    };
    let IssuedToken { name, id, .. } = issued;
    let terms = good_for(issued)?;
    output::line(&format!("{what} {name} (token {id}){terms}; it is shown this once:"))?;
    output::line(&format!("\n  {command} {}", issued.invite.reveal()))
}

/// A name may be any, or one that the end must be told unless its host has it.
fn named(name: &str) -> String {
    if name == "*" { String::new() } else { format!(" --name {name}") }
}

fn good_for(issued: &IssuedToken) -> Result<String, Fault> {
    if issued.kind == TokenKind::User {
        return Ok(String::new());
    }
    let uses = match issued.uses {
        None => "any number of times".to_owned(),
        Some(1) => "once".to_owned(),
        Some(uses) => format!("{uses} times"),
    };
    let now = unix_ms()?;
    let until = issued.expires_ms.map(|end| human::age(end.saturating_sub(now)));
    let until = until.map_or_else(String::new, |life| format!(", for {life}"));
    Ok(format!(", good {uses}{until}"))
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
        Column::Figure("USES"),
        Column::Figure("CREATED"),
        Column::Text("STATE"),
    ]);
    let now = unix_ms()?;
    let ago = |then: u64| format!("{} ago", human::age(now.saturating_sub(then)));
    for token in tokens {
        table.row([
            token.id.clone(),
            kind(token),
            token.name.clone(),
            if token.admin { "yes" } else { "no" }.into(),
            uses_left(token),
            ago(token.created_ms),
            state(token, now, ago),
        ]);
    }
    table.print("no tokens")
}

fn kind(token: &TokenView) -> String {
    let kind = token.kind.as_str();
    match (token.kind, &token.enrolment) {
        (TokenKind::User, _) | (_, Some(_)) => kind.to_owned(),
        (_, None) => format!("{kind} join"),
    }
}

fn uses_left(token: &TokenView) -> String {
    match (token.kind, &token.enrolment, token.uses_left) {
        (TokenKind::User, ..) | (_, Some(_), _) => "-".into(),
        (_, None, Some(uses)) => uses.to_string(),
        (_, None, None) => "any".into(),
    }
}

fn state(token: &TokenView, now: u64, ago: impl Fn(u64) -> String) -> String {
    match (token.revoked_ms, token.expires_ms, &token.enrolment) {
        (Some(then), ..) => format!("revoked {}", ago(then)),
        (None, Some(end), _) if end <= now => format!("ended {}", ago(end)),
        (None, _, None) if token.uses_left == Some(0) => "used".into(),
        (None, Some(end), _) => format!("good for {}", human::age(end - now)),
        (None, None, None) => "good".into(),
        (None, None, Some(EnrolmentView { seen_ms, rotating, .. })) => {
            let rotating = if *rotating { ", new key asked for" } else { "" };
            format!("seen {}{rotating}", ago(*seen_ms))
        }
    }
}

fn unix_ms() -> Result<u64, Fault> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .ok_or_else(|| Code::Internal.because("the clock stands before 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_string_is_for_one_within_a_day_unless_said_otherwise() {
        assert_eq!((uses("unlimited"), uses("20")), (Ok(0), Ok(20)));
        for bad in ["0", "-1", "many", "4294967296"] {
            assert!(uses(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (life("never"), life("7days")),
            (Ok(Duration::ZERO), Ok(Duration::from_secs(604_800)))
        );
        for bad in ["0s", "10ms", "soon"] {
            assert!(life(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_enrolment_is_told_from_the_string_that_made_it() {
        let string = TokenView {
            id: "t".into(),
            kind: TokenKind::Agent,
            name: "lab".into(),
            admin: false,
            created_ms: 1,
            revoked_ms: None,
            expires_ms: Some(61_000),
            uses_left: Some(1),
            enrolment: None,
        };
        let shown = |token: &TokenView| {
            let state = state(token, 1000, |then| format!("{then} ago"));
            (kind(token), uses_left(token), state)
        };
        let (what, left, state) = shown(&string);
        assert_eq!((&*what, &*left), ("agent join", "1"));
        assert!(state.starts_with("good for "), "{state}");
        assert_eq!(shown(&TokenView { uses_left: Some(0), ..string.clone() }).2, "used");
        assert_eq!(
            shown(&TokenView { expires_ms: Some(900), ..string.clone() }).2,
            "ended 900 ago"
        );
        let view = EnrolmentView { join: "t".into(), seen_ms: 7, key_ms: 1, rotating: true };
        let end = TokenView { enrolment: Some(view), expires_ms: None, uses_left: None, ..string };
        assert_eq!(
            shown(&end),
            ("agent".into(), "-".into(), "seen 7 ago, new key asked for".into())
        );
    }
}
