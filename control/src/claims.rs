//! What is known of a user's sign-in: who vouches for it, how strong it was, and which groups it brings.
//!
//! A provider's token may hold anything, in any amount: what is kept is bounded, and what does not fit is left out as a whole
//! rather than cut.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Groups of one sign-in at most. Providers that put more into a token refer to an endpoint instead.
pub const GROUPS_MAX: usize = 256;
/// Entries of `amr` and of `device` at most.
pub const ENTRIES_MAX: usize = 32;
/// Bytes of one name or value at most.
pub const TEXT_BYTES_MAX: usize = 256;

/// A sign-in, as policies see it. The built-in issuer's tokens have none of this but groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claims {
    /// The OIDC issuer, a URL; absent for tokens of the built-in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Groups that the user is in.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub groups: BTreeSet<String>,
    /// Authentication context class (OpenID Connect Core 1.0 section 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acr: Option<String>,
    /// Authentication methods (RFC 8176): `pwd`, `otp`, `hwk`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub amr: BTreeSet<String>,
    /// When the user last proved who they are, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_time_ms: Option<u64>,
    /// What the provider says of the device: names and texts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub device: BTreeMap<String, String>,
}

impl Claims {
    /// Whether it keeps to the limits above.
    #[must_use]
    pub fn fits(&self) -> bool {
        let short = |text: &String| text.len() <= TEXT_BYTES_MAX;
        let few = self.groups.len() <= GROUPS_MAX
            && self.amr.len() <= ENTRIES_MAX
            && self.device.len() <= ENTRIES_MAX;
        few && self.groups.iter().chain(&self.amr).all(short)
            && self.device.iter().all(|(name, value)| short(name) && short(value))
            && self.issuer.iter().chain(&self.acr).all(short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hostile_in_size_does_not_fit() {
        let named = |count: usize| (0..count).map(|number| format!("g{number}")).collect();
        assert!(Claims { groups: named(GROUPS_MAX), ..Claims::default() }.fits());
        assert!(!Claims { groups: named(GROUPS_MAX + 1), ..Claims::default() }.fits());
        assert!(!Claims { amr: named(ENTRIES_MAX + 1), ..Claims::default() }.fits());
        let long = Some("x".repeat(TEXT_BYTES_MAX + 1));
        assert!(!Claims { acr: long.clone(), ..Claims::default() }.fits());
        assert!(!Claims { issuer: long, ..Claims::default() }.fits());
    }

    #[test]
    fn an_empty_sign_in_is_an_empty_object() {
        assert_eq!(serde_json::to_string(&Claims::default()).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<Claims>("{}").unwrap(), Claims::default());
    }
}
