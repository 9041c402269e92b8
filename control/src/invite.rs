//! Join and login strings: everything an agent or a user needs to find and trust a broker, in one word to copy.
use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::code::{Code, Fault};
use crate::secret::Secret;

const JOIN_PREFIX: &str = "sbjoin1_";
const LOGIN_PREFIX: &str = "sblogin1_";
const GATEWAY_PREFIX: &str = "sbgate1_";
/// Longest string accepted; an honest one is about 250 characters.
const INVITE_CHARS_MAX: usize = 4096;

/// Who an invitation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InviteKind {
    /// An agent: `switchback agent --join`.
    Join,
    /// A user: `switchback login`.
    Login,
    /// A gateway: `switchback gateway --join`.
    Gateway,
}

/// URL, certificate pin and token of a broker.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// Who it is for.
    #[serde(skip, default = "InviteKind::default_for_serde")]
    pub kind: InviteKind,
    /// `https://HOST:PORT` of the broker.
    #[serde(rename = "u")]
    pub url: String,
    /// SHA-256 of the broker certificate's SubjectPublicKeyInfo, base64url.
    #[serde(rename = "p")]
    pub pin: String,
    /// The bearer token.
    #[serde(rename = "t")]
    pub token: Secret,
}

impl InviteKind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Join => JOIN_PREFIX,
            Self::Login => LOGIN_PREFIX,
            Self::Gateway => GATEWAY_PREFIX,
        }
    }

    // The prefix carries the kind; serde needs a value to start from before `parse` sets it.
    const fn default_for_serde() -> Self {
        Self::Login
    }
}

impl Invite {
    /// Reads a join or login string and checks that it is of the wanted kind.
    ///
    /// # Errors
    /// [`Code::InviteInvalid`] with what is wrong.
    pub fn parse(text: &str, wanted: InviteKind) -> Result<Self, Fault> {
        let text = text.trim();
        let invalid = |detail: &str| Code::InviteInvalid.because(detail);
        if text.len() > INVITE_CHARS_MAX {
            return Err(invalid("the string is far too long"));
        }
        let Some(body) = text.strip_prefix(wanted.prefix()) else {
            return Err(
                match (wanted, text.starts_with(JOIN_PREFIX), text.starts_with(LOGIN_PREFIX)) {
                    (InviteKind::Login, true, _) => {
                        invalid("this is a join string for agents, not a login string")
                    }
                    (InviteKind::Join, _, true) => {
                        invalid("this is a login string for users, not a join string")
                    }
                    (InviteKind::Gateway, ..) => {
                        invalid("this is no join string for gateways, which begins with sbgate1_")
                    }
                    _ if text.starts_with(GATEWAY_PREFIX) => {
                        invalid("this is a join string for gateways: `switchback gateway --join`")
                    }
                    _ => invalid("the string has no known prefix"),
                },
            );
        };
        let json = BASE64URL_NOPAD
            .decode(body.as_bytes())
            .map_err(|_| invalid("the string is damaged or incomplete"))?;
        let mut invite: Self = serde_json::from_slice(&json)
            .map_err(|_| invalid("the string is damaged or incomplete"))?;
        invite.kind = wanted;
        Ok(invite)
    }

    /// The string itself: a secret.
    #[must_use]
    pub fn to_text(&self) -> Secret {
        let json = serde_json::to_vec(self).expect("an invite is plain strings");
        Secret::new(format!("{}{}", self.kind.prefix(), BASE64URL_NOPAD.encode(&json)))
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite")
            .field("kind", &self.kind)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> Invite {
        Invite {
            kind: InviteKind::Join,
            url: "https://gate.example:443".into(),
            pin: "pin".into(),
            token: Secret::new("t0ken"),
        }
    }

    #[test]
    fn an_invite_survives_copying() {
        let text = invite().to_text();
        let copied = format!("  {}\n", text.reveal());
        assert_eq!(Invite::parse(&copied, InviteKind::Join).unwrap(), invite());
    }

    #[test]
    fn every_truncation_is_refused() {
        let text = invite().to_text();
        for end in 0..text.reveal().len() {
            let fault = Invite::parse(&text.reveal()[..end], InviteKind::Join).unwrap_err();
            assert_eq!(fault.code, Code::InviteInvalid);
        }
    }

    #[test]
    fn a_join_string_is_no_login_string_and_debug_shows_no_token() {
        let fault = Invite::parse(invite().to_text().reveal(), InviteKind::Login).unwrap_err();
        assert!(fault.detail.contains("join string for agents"));
        assert!(!format!("{:?}", invite()).contains("t0ken"));
    }
}
