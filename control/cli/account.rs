//! `login`, `logout`, `whoami`: which broker, and as whom.
use std::io::Read;

use clap::Args;
use switchback_control::api::client::ApiClient;
use switchback_control::client::profile;
use switchback_control::invite::{Invite, InviteKind};
use switchback_control::secret::Secret;
use switchback_control::{Code, Fault};

use crate::args::{Global, secret};
use crate::output;

/// Longest login string read from standard input, and some white space.
const STDIN_BYTES_MAX: u64 = 8 * 1024;

/// Sign in with a login string.
///
/// The string holds the broker's address, the fingerprint of its certificate and a token: nothing else is needed. It
/// is tried at the broker first, then stored for this user alone (mode 0600).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback login sblogin1_eyJ1Ijoi...
  pass show switchback | switchback login -       keeps the string out of the shell's history
  SWITCHBACK_LOGIN=sblogin1_... switchback resources    uses a string without storing it")]
pub(crate) struct LoginArgs {
    /// Login string, or `-` to read it from standard input
    #[arg(value_name = "STRING", value_parser = secret)]
    string: Secret,
}

/// Forget the stored login string.
///
/// The token stays valid at the broker; `switchback token revoke` ends it there.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  switchback logout")]
pub(crate) struct LogoutArgs {}

/// Show who you are signed in as.
///
/// Asks the broker, so it also tells whether the broker can be reached and the token is good.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  switchback whoami\n  switchback whoami --json")]
pub(crate) struct WhoamiArgs {}

/// A client of the broker's API for whoever is signed in.
pub(crate) fn api(global: &Global) -> Result<ApiClient, Fault> {
    invite(global).map(ApiClient::new)
}

/// The login string: flag or environment, else the stored one.
pub(crate) fn invite(global: &Global) -> Result<Invite, Fault> {
    // An empty variable is as good as none.
    profile::load(global.login.as_ref().map(Secret::reveal).filter(|text| !text.is_empty()))
}

/// Runs `login`.
pub(crate) async fn login(args: LoginArgs, global: &Global) -> Result<(), Fault> {
    let text = if args.string.reveal() == "-" { read_stdin()? } else { args.string };
    let invite = Invite::parse(text.reveal(), InviteKind::Login)?;
    let url = invite.url.clone();
    let who = ApiClient::new(invite.clone()).whoami().await?;
    let path = profile::save(&invite)?;
    if global.json {
        return output::json(&serde_json::json!({
            "user": who.user, "admin": who.admin, "url": url, "stored": path,
        }));
    }
    let role = if who.admin { " (administrator)" } else { "" };
    output::line(&format!("signed in at {url} as {}{role}", who.user))?;
    output::line(&format!("stored in {}", path.display()))?;
    output::line("next: switchback resources")
}

/// Runs `logout`.
pub(crate) fn logout(global: &Global) -> Result<(), Fault> {
    let removed = profile::remove()?;
    if global.json {
        return output::json(&serde_json::json!({ "removed": removed }));
    }
    output::line(if removed { "signed out" } else { "was not signed in" })
}

/// Runs `whoami`.
pub(crate) async fn whoami(global: &Global) -> Result<(), Fault> {
    let invite = invite(global)?;
    let url = invite.url.clone();
    let who = ApiClient::new(invite).whoami().await?;
    if global.json {
        return output::json(
            &serde_json::json!({ "user": who.user, "admin": who.admin, "url": url }),
        );
    }
    let role = if who.admin { " (administrator)" } else { "" };
    output::line(&format!("{}{role} at {url}", who.user))
}

/// A string that was not to stand on the command line.
pub(crate) fn read_stdin() -> Result<Secret, Fault> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(STDIN_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| Code::InviteInvalid.because(format!("standard input: {error}")))?;
    Ok(Secret::new(text))
}
