//! `serve`'s options about the OIDC provider: `--oidc-issuer` on the command line is `issuer` of `[oidc]` in its file.
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use switchback_control::oidc::{OidcConfig, TakenNames, UserClaim};
use switchback_control::{Code, Fault};

/// The provider that users may sign in by.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(next_help_heading = "Sign-in by OpenID Connect")]
pub(crate) struct OidcArgs {
    /// Provider that users sign in by (`switchback login --oidc`), exactly as its tokens name it
    #[arg(
        id = "oidc_issuer",
        long = "oidc-issuer",
        value_name = "URL",
        env = "SWITCHBACK_OIDC_ISSUER"
    )]
    pub(crate) issuer: Option<String>,
    /// The public client that `switchback` is there; it needs the redirect http://127.0.0.1/callback on any port, and
    /// the device flow for `login --device`
    #[arg(
        id = "oidc_client_id",
        long = "oidc-client-id",
        value_name = "ID",
        env = "SWITCHBACK_OIDC_CLIENT_ID"
    )]
    pub(crate) client_id: Option<String>,
    /// Whom ID tokens must be for [default: the client]
    #[arg(
        id = "oidc_audience",
        long = "oidc-audience",
        value_name = "AUDIENCE",
        env = "SWITCHBACK_OIDC_AUDIENCE"
    )]
    pub(crate) audience: Option<String>,
    /// Which claim names the user; `email` must be verified by the provider [default: email]
    #[arg(
        id = "oidc_user_claim",
        long = "oidc-user-claim",
        value_name = "CLAIM",
        env = "SWITCHBACK_OIDC_USER_CLAIM"
    )]
    pub(crate) user_claim: Option<Claim>,
    /// Which claim lists the user's groups [default: groups]
    #[arg(
        id = "oidc_groups_claim",
        long = "oidc-groups-claim",
        value_name = "CLAIM",
        env = "SWITCHBACK_OIDC_GROUPS_CLAIM"
    )]
    pub(crate) groups_claim: Option<String>,
    /// Group whose members are administrators here
    #[arg(
        id = "oidc_admin_group",
        long = "oidc-admin-group",
        value_name = "GROUP",
        env = "SWITCHBACK_OIDC_ADMIN_GROUP"
    )]
    pub(crate) admin_group: Option<String>,
    /// Scopes to ask for besides openid, profile, email and offline_access
    #[arg(
        id = "oidc_scopes",
        long = "oidc-scopes",
        value_name = "SCOPE,...",
        value_delimiter = ',',
        env = "SWITCHBACK_OIDC_SCOPES"
    )]
    pub(crate) scopes: Vec<String>,
    /// Certificates (PEM) to trust for the provider instead of the system's
    #[arg(id = "oidc_ca", long = "oidc-ca", value_name = "FILE", env = "SWITCHBACK_OIDC_CA")]
    pub(crate) ca: Option<PathBuf>,
    /// An account whose name a user already has here: refuse it, or let it be that user [default: refuse]
    #[arg(
        id = "oidc_users",
        long = "oidc-users",
        value_name = "WHAT",
        env = "SWITCHBACK_OIDC_USERS"
    )]
    pub(crate) users: Option<Taken>,
    /// How long a sign-in lasts unless renewed, which clients do by themselves; 5s to 24h [default: 1h]
    #[arg(id = "oidc_lifetime", long = "oidc-lifetime", value_name = "TIME", value_parser = humantime::parse_duration, env = "SWITCHBACK_OIDC_LIFETIME")]
    #[serde(deserialize_with = "crate::serve::time")]
    pub(crate) lifetime: Option<Duration>,
}

/// Claims that name users, as people write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Claim {
    /// Mail address, if the provider has verified it
    Email,
    /// User name: only of providers that let nobody choose another's
    PreferredUsername,
    /// The provider's own id
    Sub,
}

/// What becomes of taken names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Taken {
    /// Nobody becomes a user who was there before
    Refuse,
    /// The provider is trusted with every name
    Link,
}

impl OidcArgs {
    /// Fills what is open from the file.
    pub(crate) fn over(self, file: Self) -> Self {
        Self {
            issuer: self.issuer.or(file.issuer),
            client_id: self.client_id.or(file.client_id),
            audience: self.audience.or(file.audience),
            user_claim: self.user_claim.or(file.user_claim),
            groups_claim: self.groups_claim.or(file.groups_claim),
            admin_group: self.admin_group.or(file.admin_group),
            scopes: if self.scopes.is_empty() { file.scopes } else { self.scopes },
            ca: self.ca.or(file.ca),
            users: self.users.or(file.users),
            lifetime: self.lifetime.or(file.lifetime),
        }
    }

    /// The provider, if there is one.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] if options are missing or wrong.
    pub(crate) fn into_config(self) -> Result<Option<OidcConfig>, Fault> {
        let (issuer, client) = match (self.issuer, self.client_id) {
            (Some(issuer), Some(client)) => (issuer, client),
            (None, None) if self.admin_group.is_none() => return Ok(None),
            _ => {
                let detail = "--oidc-issuer and --oidc-client-id go together, the others with them";
                return Err(Code::ConfigInvalid.because(detail));
            }
        };
        let mut config = OidcConfig::new(issuer, client);
        config.audience = self.audience;
        config.user_claim = match self.user_claim {
            None | Some(Claim::Email) => UserClaim::Email,
            Some(Claim::PreferredUsername) => UserClaim::PreferredUsername,
            Some(Claim::Sub) => UserClaim::Sub,
        };
        config.groups_claim = self.groups_claim.unwrap_or(config.groups_claim);
        config.admin_group = self.admin_group;
        config.scopes = self.scopes;
        config.ca = self.ca;
        config.users = match self.users {
            None | Some(Taken::Refuse) => TakenNames::Refuse,
            Some(Taken::Link) => TakenNames::Link,
        };
        config.lifetime = self.lifetime.unwrap_or(config.lifetime);
        config.check()?;
        Ok(Some(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<OidcConfig>, Code> {
        let args: OidcArgs = toml::from_str(text).unwrap();
        args.into_config().map_err(|fault| fault.code)
    }

    #[test]
    fn a_provider_needs_issuer_and_client_and_safe_values() {
        assert!(of("").unwrap().is_none());
        let full = "issuer = \"https://id.example\"\nclient-id = \"cli\"\n";
        let config = of(&format!("{full}user-claim = \"sub\"\nlifetime = \"30m\"\n"));
        let config = config.unwrap().unwrap();
        assert_eq!((config.user_claim, config.lifetime.as_secs()), (UserClaim::Sub, 1800));
        assert_eq!(config.users, TakenNames::Refuse);
        for bad in [
            "issuer = \"https://id.example\"".to_owned(),
            "admin-group = \"ops\"".to_owned(),
            full.replace("https", "http"),
            format!("{full}lifetime = \"1s\"\n"),
            format!("{full}scopes = [\"a b\"]\n"),
        ] {
            assert_eq!(of(&bad).err(), Some(Code::ConfigInvalid), "{bad}");
        }
    }
}
