//! `login`, `logout`, `whoami`: which broker, and as whom.
use std::io::Read;

use clap::Args;
use switchback_control::api::client::ApiClient;
use switchback_control::client::{profile, signin};
use switchback_control::invite::{Invite, InviteKind};
use switchback_control::secret::Secret;
use switchback_control::{Code, Fault};

use crate::args::{Global, secret};
use crate::login::{self, OidcArgs};
use crate::output;

/// Longest login string read from standard input, and some white space.
const STDIN_BYTES_MAX: u64 = 8 * 1024;

/// Sign in with a login string, or at the organisation's provider.
///
/// The string holds the broker's address, the fingerprint of its certificate and a token: nothing else is needed. It
/// is tried at the broker first, then stored for this user alone (mode 0600).
///
/// With --oidc the broker names an OpenID Connect provider, and you sign in there: by a browser on this machine, or, with
/// --device or without a screen, by a code that you enter at any other device. Such a sign-in ends after an hour unless it
/// is renewed; every command does that by itself, `connect` as long as it runs, until the provider no longer wants it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback login sblogin1_eyJ1Ijoi...
  pass show switchback | switchback login -       keeps the string out of the shell's history
  SWITCHBACK_LOGIN=sblogin1_... switchback resources    uses a string without storing it
  switchback login --oidc https://gate.example:8443     by your browser
  switchback login --oidc gate.example --device         by a code, at your phone for instance")]
pub(crate) struct LoginArgs {
    /// Login string, or `-` to read it from standard input
    #[arg(value_name = "STRING", value_parser = secret, required_unless_present = "oidc")]
    string: Option<Secret>,
    #[command(flatten)]
    pub(crate) oidc: OidcArgs,
}

/// Sign out, and forget the stored login.
///
/// A sign-in by --oidc ends at the broker at once, with its sessions, and its refresh token at the provider. The token of a
/// login string stays valid at the broker; `switchback token revoke` ends it there.
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

/// Renews a stored sign-in that ends soon. What goes wrong is told by the broker if it matters.
pub(crate) async fn freshen(global: &mut Global) {
    let Ok(invite) = invite(global) else { return };
    match signin::freshen(invite.clone()).await {
        Ok(fresh) if fresh != invite => global.login = Some(fresh.to_text()),
        Ok(_) => {}
        Err(fault) => tracing::warn!(%fault, "the sign-in could not be renewed"),
    }
}

/// Runs `login`.
pub(crate) async fn login(args: LoginArgs, global: &Global) -> Result<(), Fault> {
    if let Some(broker) = args.oidc.broker() {
        return login::run(&args.oidc, broker, global).await;
    }
    let string = args.string.unwrap_or_else(|| Secret::new(""));
    let text = if string.reveal() == "-" { read_stdin()? } else { string };
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
pub(crate) async fn logout(global: &Global) -> Result<(), Fault> {
    let signed_out = login::sign_out().await;
    let removed = profile::remove()?;
    if global.json {
        return output::json(&serde_json::json!({ "removed": removed, "signed_out": signed_out }));
    }
    output::line(if removed { "signed out" } else { "was not signed in" })
}

/// Runs `whoami`.
pub(crate) async fn whoami(global: &Global) -> Result<(), Fault> {
    let invite = invite(global)?;
    let url = invite.url.clone();
    let who = ApiClient::new(invite).whoami().await?;
    if global.json {
        return output::json(&serde_json::json!({
            "user": who.user, "admin": who.admin, "url": url,
            "issuer": who.issuer, "expires_ms": who.expires_ms,
        }));
    }
    let role = if who.admin { " (administrator)" } else { "" };
    let by = who.issuer.map_or_else(String::new, |issuer| format!(", by {issuer}"));
    output::line(&format!("{}{role} at {url}{by}", who.user))
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
