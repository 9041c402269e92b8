//! Whether an ID token is one of ours, now (OpenID Connect Core 1.0 section 3.1.3.7, RFC 8725). Pure.
//!
//! The signature comes first; only then is anything in the token believed. What it holds is bounded, and a token that holds
//! more than fits is refused whole: leaving groups out could leave out the one that a policy forbids.
use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{OidcConfig, UserClaim};
use super::document::Keys;
use crate::claims::{Claims, ENTRIES_MAX, GROUPS_MAX, TEXT_BYTES_MAX};
use crate::code::{Code, Fault};

/// Longest token read. Providers stop at 200 groups, 10 KiB of names, in a token.
pub(crate) const TOKEN_BYTES_MAX: usize = 32 * 1024;
/// How far the provider's clock may be off, seconds: what most libraries allow.
const LEEWAY: f64 = 60.0;
/// Audiences of one token.
const AUDIENCES_MAX: usize = 16;
/// OpenID Connect Core 1.0 section 2: `sub` has at most 255 characters.
const SUBJECT_BYTES_MAX: usize = 255;

/// Who signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignedIn {
    /// A user name of this broker.
    pub(crate) user: String,
    /// Who it is at the provider, for ever.
    pub(crate) subject: String,
    /// Whether the user is in the group of administrators, if the operator named one.
    pub(crate) admin: Option<bool>,
    pub(crate) claims: Claims,
}

/// What a token says of itself, before anything of it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kid: Option<String>,
    algorithm: Algorithm,
}

impl Head {
    /// Reads a token's header.
    ///
    /// # Errors
    /// [`Code::IdTokenInvalid`], also for algorithms that need no key (`none`) or a shared one.
    pub(crate) fn read(token: &str) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        struct Raw {
            alg: String,
            kid: Option<String>,
            typ: Option<String>,
            crit: Option<Value>,
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid(format!("it is longer than {TOKEN_BYTES_MAX} bytes")));
        }
        let no_token = || invalid("it is no signed JSON Web Token");
        let mut parts = token.split('.');
        let (Some(head), Some(_), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(no_token());
        };
        let head = BASE64URL_NOPAD.decode(head.as_bytes()).map_err(|_| no_token())?;
        let raw: Raw = serde_json::from_slice(&head).map_err(|_| no_token())?;
        let algorithm = match raw.alg.parse() {
            Ok(Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) | Err(_) => {
                return Err(invalid("it is not signed with a key pair's algorithm"));
            }
            Ok(algorithm) => algorithm,
        };
        // Nothing that may stand there is understood here (RFC 7515 section 4.1.11).
        if raw.crit.is_some() {
            return Err(invalid("it has critical extensions"));
        }
        // An access or logout token of the same provider is no ID token (RFC 8725 section 3.11).
        if raw.typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
            return Err(invalid("it is a token of another type"));
        }
        Ok(Self { kid: raw.kid, algorithm })
    }
}

/// Judges a token at `now`, Unix seconds.
///
/// # Errors
/// [`Code::IdTokenInvalid`], [`Code::IdTokenExpired`]. Neither quotes the token.
pub(crate) fn verify(
    token: &str,
    keys: &Keys,
    now: u64,
    nonce: Option<&str>,
    config: &OidcConfig,
) -> Result<SignedIn, Fault> {
    let head = Head::read(token)?;
    let claims = signed(token, &head, keys)?;
    let claims = Reader(&claims);
    claims.check_time(now as f64)?;
    claims.check_parties(config)?;
    claims.check_nonce(nonce)?;
    claims.person(config)
}

/// The claims, if one of the keys has signed them.
fn signed(token: &str, head: &Head, keys: &Keys) -> Result<Map<String, Value>, Fault> {
    // Times, issuer and audience are judged below, by our clock.
    let mut only_signature = Validation::new(head.algorithm);
    only_signature.required_spec_claims.clear();
    only_signature.validate_exp = false;
    only_signature.validate_aud = false;
    keys.candidates(head.kid.as_deref(), head.algorithm)
        .find_map(|key| {
            jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &only_signature).ok()
        })
        .map(|found| found.claims)
        .ok_or_else(|| invalid("no key of the provider has signed it"))
}

fn invalid(why: impl std::fmt::Display) -> Fault {
    Code::IdTokenInvalid.because(format!("the ID token is refused: {why}"))
}

struct Reader<'a>(&'a Map<String, Value>);

impl Reader<'_> {
    fn text(&self, name: &str) -> Result<Option<&str>, Fault> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(format!("its {name} is no text"))),
        }
    }

    /// One text, or a list of them, at most so many.
    fn texts(&self, name: &str, most: usize) -> Result<BTreeSet<String>, Fault> {
        let values = match self.0.get(name) {
            None | Some(Value::Null) => return Ok(BTreeSet::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        if values.len() > most {
            return Err(invalid(format!("its {name} has more than {most} entries")));
        }
        let text = |value: &Value| match value {
            Value::String(text) if text.len() <= TEXT_BYTES_MAX => Ok(text.clone()),
            _ => Err(invalid(format!("its {name} holds more than short texts"))),
        };
        values.iter().map(text).collect()
    }

    /// A NumericDate (RFC 7519 section 2).
    fn time(&self, name: &str) -> Result<Option<f64>, Fault> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|time| (0.0..1e12).contains(time)) {
                Some(time) => Ok(Some(time)),
                None => Err(invalid(format!("its {name} is no time"))),
            },
        }
    }

    fn check_time(&self, now: f64) -> Result<(), Fault> {
        let needed = |name| self.time(name)?.ok_or_else(|| invalid(format!("it has no {name}")));
        let over = |what: &str| Err(Code::IdTokenExpired.because(format!("the ID token {what}")));
        if needed("exp")? + LEEWAY <= now {
            return over("has expired");
        }
        let issued = needed("iat")?;
        if issued.max(self.time("nbf")?.unwrap_or(0.0)) - LEEWAY > now {
            return over("is not valid yet");
        }
        Ok(())
    }

    fn check_parties(&self, config: &OidcConfig) -> Result<(), Fault> {
        if self.text("iss")? != Some(&config.issuer) {
            return Err(invalid("it is of another issuer"));
        }
        let audiences = self.texts("aud", AUDIENCES_MAX)?;
        if !audiences.contains(config.audience()) {
            return Err(invalid("it is for another audience"));
        }
        let party = self.text("azp")?;
        let ours = party.is_none_or(|party| party == config.client_id);
        if !ours || (party.is_none() && audiences.len() > 1) {
            return Err(invalid("it was made for another client"));
        }
        Ok(())
    }

    /// Whoever asked with a nonce must show it, and nobody else may use such a token.
    fn check_nonce(&self, nonce: Option<&str>) -> Result<(), Fault> {
        if self.text("nonce")? == nonce {
            Ok(())
        } else {
            Err(invalid("its nonce is that of another sign-in"))
        }
    }

    fn person(&self, config: &OidcConfig) -> Result<SignedIn, Fault> {
        let subject = self.text("sub")?.filter(|it| (1..=SUBJECT_BYTES_MAX).contains(&it.len()));
        let subject = subject.ok_or_else(|| invalid("it has no usable sub"))?;
        let groups = self.texts(&config.groups_claim, GROUPS_MAX)?;
        let admin = config.admin_group.as_ref().map(|group| groups.contains(group));
        let claims = Claims {
            issuer: Some(config.issuer.clone()),
            groups,
            acr: self.text("acr")?.map(str::to_owned),
            amr: self.texts("amr", ENTRIES_MAX)?,
            auth_time_ms: self.time("auth_time")?.map(|time| (time * 1000.0) as u64),
            device: self.device()?,
        };
        if !claims.fits() {
            return Err(invalid("it holds more than this broker keeps"));
        }
        Ok(SignedIn {
            user: self.user(config.user_claim)?,
            subject: subject.to_owned(),
            admin,
            claims,
        })
    }

    fn user(&self, claim: UserClaim) -> Result<String, Fault> {
        let name = claim.as_str();
        let user = self.text(name)?.ok_or_else(|| {
            invalid(format!("it has no {name}; ask the provider for it, or pass --oidc-user-claim"))
        })?;
        if claim == UserClaim::Email {
            // Some providers write it as text.
            let verified = self.0.get("email_verified");
            if !verified.is_some_and(|it| *it == Value::Bool(true) || *it == "true") {
                return Err(invalid("the provider has not verified its email"));
            }
        }
        if !crate::broker::is_user_name(user) {
            let rule = "a user's name is 1 to 63 of A-Z a-z 0-9 - _ . @ +";
            return Err(invalid(format!("its {name} cannot be a user name here: {rule}")));
        }
        Ok(user.to_owned())
    }

    fn device(&self) -> Result<BTreeMap<String, String>, Fault> {
        let Some(Value::Object(device)) = self.0.get("device") else { return Ok(BTreeMap::new()) };
        if device.len() > ENTRIES_MAX {
            return Err(invalid(format!("its device has more than {ENTRIES_MAX} entries")));
        }
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
            _ => None,
        };
        Ok(device.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect())
    }
}

#[cfg(test)]
mod tests;
