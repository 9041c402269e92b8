//! What an operator says of the provider.
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::endpoint::Endpoint;
use crate::code::{Code, Fault};

/// How long a sign-in lasts unless renewed: what most providers give their access tokens.
pub const LIFETIME: Duration = Duration::from_secs(3600);
const LIFETIME_MIN: Duration = Duration::from_secs(5);
/// Longer than a working day nobody wants to trust what the provider said in the morning.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Characters of issuer, client id and so on: all go into requests.
const TEXT_MAX: usize = 256;

/// Which claim names the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserClaim {
    /// `email`, which the provider must have verified.
    #[default]
    Email,
    /// `preferred_username`: only of providers that let nobody choose another's.
    PreferredUsername,
    /// `sub`: unique for ever, and hardly readable.
    Sub,
}

impl UserClaim {
    /// Its name in a token.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::PreferredUsername => "preferred_username",
            Self::Sub => "sub",
        }
    }
}

/// What becomes of an account whose name another user has here already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakenNames {
    /// It is refused: whoever may name himself at the provider would otherwise become anybody here.
    #[default]
    Refuse,
    /// It is that user, with all rights of theirs.
    Link,
}

/// A provider, and what its tokens mean here.
#[derive(Clone, Debug)]
pub struct OidcConfig {
    /// Its issuer URL, exactly as its tokens have it. `http://` on loopback only.
    pub issuer: String,
    /// The public client that `switchback login --oidc` is there.
    pub client_id: String,
    /// Whom its ID tokens must be for. Default: the client.
    pub audience: Option<String>,
    /// Which claim names the user.
    pub user_claim: UserClaim,
    /// Which claim lists groups.
    pub groups_claim: String,
    /// The group whose members administer this broker. Default: as the broker's own users table says.
    pub admin_group: Option<String>,
    /// Scopes asked for besides `openid profile email offline_access`.
    pub scopes: Vec<String>,
    /// PEM certificates to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Names that are taken.
    pub users: TakenNames,
    /// How long a sign-in lasts unless it is renewed.
    pub lifetime: Duration,
}

impl OidcConfig {
    /// Everything by default but provider and client.
    pub fn new(issuer: impl Into<String>, client_id: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            client_id: client_id.into(),
            audience: None,
            user_claim: UserClaim::default(),
            groups_claim: "groups".into(),
            admin_group: None,
            scopes: Vec::new(),
            ca: None,
            users: TakenNames::default(),
            lifetime: LIFETIME,
        }
    }

    /// Whom ID tokens must be for.
    #[must_use]
    pub fn audience(&self) -> &str {
        self.audience.as_deref().unwrap_or(&self.client_id)
    }

    /// Every scope to ask for.
    #[must_use]
    pub fn all_scopes(&self) -> Vec<String> {
        let always = ["openid", "profile", "email", "offline_access"];
        let mut scopes: Vec<String> = always.map(str::to_owned).to_vec();
        scopes
            .extend(self.scopes.iter().filter(|scope| !always.contains(&scope.as_str())).cloned());
        scopes
    }

    /// Whether it can work at all.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] that names the flag.
    pub fn check(&self) -> Result<(), Fault> {
        let invalid = |detail: String| Err(Code::ConfigInvalid.because(detail));
        if let Err(why) = Endpoint::parse(&self.issuer) {
            return invalid(format!("--oidc-issuer: {why}"));
        }
        if self.issuer.contains(['?', '#']) {
            return invalid("--oidc-issuer: no query or fragment (OpenID Connect Core 2)".into());
        }
        let word = |text: &String| {
            (1..=TEXT_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let texts = [&self.issuer, &self.client_id, &self.groups_claim];
        if !texts.into_iter().chain(&self.audience).chain(&self.scopes).all(word) {
            return invalid("--oidc-...: 1 to 256 printable characters without spaces each".into());
        }
        if !(LIFETIME_MIN..=LIFETIME_MAX).contains(&self.lifetime) {
            return invalid("--oidc-lifetime must be 5s to 24h".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_https_and_plain_http_on_loopback_only() {
        let judged = |issuer: &str| OidcConfig::new(issuer, "cli").check().map_err(|f| f.code);
        for good in ["https://id.example", "https://id.example:8443/realms/a", "http://127.0.0.1:1"]
        {
            assert_eq!(judged(good), Ok(()), "{good}");
        }
        for bad in ["http://id.example", "id.example", "https://a@b", "https://id.example/?a", ""] {
            assert_eq!(judged(bad), Err(Code::ConfigInvalid), "{bad}");
        }
    }

    #[test]
    fn scopes_are_asked_for_once() {
        let mut config = OidcConfig::new("https://id.example", "cli");
        config.scopes = vec!["groups".into(), "openid".into()];
        assert_eq!(config.all_scopes(), ["openid", "profile", "email", "offline_access", "groups"]);
    }
}
