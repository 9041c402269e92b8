//! `login --oidc` and `logout`: signing in at the organisation's provider, by a browser or another device.
use std::io::IsTerminal;
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::json;
use switchback_control::api::client::ApiClient;
use switchback_control::client::{profile, signin};
use switchback_control::invite::{Invite, InviteKind};
use switchback_control::oidc::flow::DeviceCode;
use switchback_control::oidc::login::ProviderClient;
use switchback_control::secret::Secret;
use switchback_control::{Code, Fault};

use crate::args::Global;
use crate::output;

/// Variables of which one is set where a browser has a screen.
const SCREENS: [&str; 2] = ["WAYLAND_DISPLAY", "DISPLAY"];

/// How to sign in by OIDC.
#[derive(Debug, Args)]
pub(crate) struct OidcArgs {
    /// Sign in at the organisation's OIDC provider, as the broker at this URL names it
    #[arg(long, value_name = "https://BROKER[:PORT]", conflicts_with = "string")]
    oidc: Option<String>,
    /// Fingerprint of the broker's certificate, which `serve` shows; without it, the certificate must be one that this
    /// machine trusts
    #[arg(long, value_name = "PIN", requires = "oidc")]
    pin: Option<String>,
    /// Sign in at another device, by a code: for machines without a browser
    #[arg(long, requires = "oidc", conflicts_with = "browser")]
    device: bool,
    /// Sign in by a browser on this machine, though none may be found
    #[arg(long, requires = "oidc")]
    browser: bool,
}

impl OidcArgs {
    /// The broker, if this way is meant.
    pub(crate) fn broker(&self) -> Option<Invite> {
        let url = self.oidc.as_deref()?.trim_end_matches('/');
        // A bare name is as good as an address.
        let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let pin = self.pin.clone().unwrap_or_default();
        Some(Invite { kind: InviteKind::Login, url, pin, token: Secret::new("") })
    }
}

/// Runs `login --oidc`.
pub(crate) async fn run(args: &OidcArgs, broker: Invite, global: &Global) -> Result<(), Fault> {
    let nobody = ApiClient::new(broker.clone());
    let offer = nobody.signin_offer().await.map_err(|fault| about_pin(fault, args))?;
    let provider = ProviderClient::of(offer.clone()).await?;
    let proof = if by_device(args, provider.has_device_flow()) {
        provider.by_device(|code| show_code(code, global)).await?
    } else {
        provider.by_browser(|url| show_url(url, global)).await?
    };
    let signed = nobody.sign_in(&proof.signin).await?;
    let token = signed.token.clone();
    let token = token.ok_or_else(|| Code::MessageMalformed.because("the broker gave no token"))?;
    let invite = Invite { token, ..broker };
    let lasting = proof.refresh_token.is_some();
    let path = signin::save(&invite, offer, &signed, proof.refresh_token)?;
    let (url, issuer) = (&invite.url, provider.issuer());
    if global.json {
        return output::json(&json!({
            "user": signed.user, "admin": signed.admin, "url": url, "issuer": issuer,
            "expires_ms": signed.expires_ms, "renewable": lasting, "stored": path,
        }));
    }
    let role = if signed.admin { " (administrator)" } else { "" };
    output::line(&format!("signed in at {url} as {}{role}, by {issuer}", signed.user))?;
    output::line(&format!("stored in {}", path.display()))?;
    if !lasting {
        output::line("the provider gives no refresh token: sign in again when this ends")?;
    }
    output::line("next: switchback resources")
}

/// A device is asked for, or the only way here.
fn by_device(args: &OidcArgs, offered: bool) -> bool {
    let screen = SCREENS.iter().any(|name| std::env::var_os(name).is_some_and(|it| !it.is_empty()));
    args.device || (!args.browser && !screen && offered)
}

fn about_pin(fault: Fault, args: &OidcArgs) -> Fault {
    if fault.code != Code::BrokerPinMismatch || args.pin.is_some() {
        return fault;
    }
    let detail = format!(
        "{}; if the broker made its certificate itself, `switchback serve` shows what to pass as --pin",
        fault.detail
    );
    Code::BrokerPinMismatch.because(detail)
}

fn show_code(code: &DeviceCode, global: &Global) -> Result<(), Fault> {
    let DeviceCode { user_code, verification_uri, verification_uri_complete, life, .. } = code;
    if global.json {
        return output::json(&json!({
            "user_code": user_code, "verification_uri": verification_uri,
            "verification_uri_complete": verification_uri_complete, "expires_in_s": life.as_secs(),
        }));
    }
    output::line(&format!(
        "At any device, open\n\n  {verification_uri}\n\nand enter  {user_code}\n"
    ))?;
    if let Some(complete) = verification_uri_complete {
        output::line(&format!("or open {complete}\n"))?;
    }
    output::line(&format!("Waiting for that, {} minutes at most ...", life.as_secs().div_ceil(60)))
}

fn show_url(url: &str, global: &Global) -> Result<(), Fault> {
    if global.json {
        output::json(&json!({ "open": url }))?;
    } else {
        output::line(&format!("Sign in with your browser:\n\n  {url}\n"))?;
    }
    // Programs that read JSON open it themselves.
    if !global.json && std::io::stdout().is_terminal() {
        open_browser(url);
    }
    Ok(())
}

/// The URL is shown as well, so it does not matter whether there is a browser.
fn open_browser(url: &str) {
    let browser = Command::new("xdg-open")
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if let Err(error) = browser {
        tracing::debug!(%error, "xdg-open");
    }
}

/// What `logout` did besides forgetting the login.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct SignedOut {
    /// The broker has ended the sign-in.
    broker: bool,
    /// The provider has forgotten the refresh token.
    provider: bool,
}

/// Ends the stored sign-in at broker and provider, as far as they can be reached; `None` for a login string.
pub(crate) async fn sign_out() -> Option<SignedOut> {
    let invite = profile::load(None).ok()?;
    let stored = signin::load(&invite)?;
    let ended = ApiClient::new(invite).sign_out().await;
    let broker = match ended {
        Ok(()) => true,
        // It has ended already.
        Err(fault) if matches!(fault.code, Code::TokenExpired | Code::TokenRevoked) => true,
        Err(fault) => {
            tracing::warn!(%fault, "the broker could not be told; the sign-in ends there by itself");
            false
        }
    };
    let provider = match &stored.refresh_token {
        Some(refresh_token) => revoke(stored.offer, refresh_token).await.unwrap_or_else(|fault| {
            tracing::warn!(%fault, "the provider could not be told");
            false
        }),
        None => false,
    };
    Some(SignedOut { broker, provider })
}

async fn revoke(
    offer: switchback_control::api::signin::SigninOffer,
    refresh_token: &Secret,
) -> Result<bool, Fault> {
    ProviderClient::of(offer).await?.revoke(refresh_token).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::{Cli, Command};

    fn login(words: &[&str]) -> Result<crate::account::LoginArgs, clap::error::ErrorKind> {
        let words = ["switchback", "login"].iter().chain(words);
        match Cli::try_parse_from(words).map_err(|error| error.kind())?.command {
            Command::Login(args) => Ok(args),
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn a_login_is_by_string_or_by_provider() {
        assert!(login(&["sblogin1_x"]).is_ok());
        assert!(login(&[]).is_err(), "one of the two");
        assert!(login(&["sblogin1_x", "--oidc", "https://gate"]).is_err(), "not both");
        assert!(login(&["--device"]).is_err(), "only with --oidc");
        assert!(login(&["--oidc", "https://gate", "--device", "--browser"]).is_err());
        let broker = |url| login(&["--oidc", url]).unwrap().oidc.broker().unwrap().url;
        assert_eq!(broker("gate.example:8443"), "https://gate.example:8443");
        assert_eq!(broker("https://gate.example/"), "https://gate.example");
    }
}
