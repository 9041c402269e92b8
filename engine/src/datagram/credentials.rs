//! Who may allocate: time-limited credentials, as the widespread TURN REST form has them.
//!
//! Pure. A username is `EXPIRY:NAME` with the expiry in Unix seconds, its password base64(HMAC-SHA1(secret, username)), so
//! whoever knows the secret mints credentials and nobody stores any (draft-uberti-behave-turn-rest; coturn's
//! `use-auth-secret`).
use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::BASE64;

/// Says what password a username has. Asked for each Allocate request and never for data.
pub trait RelayCredentials: Send + Sync {
    /// The user behind `username` at `unix_now` (seconds since 1970); `None` if there is no such user (any more).
    fn user(&self, username: &str, unix_now: u64) -> Option<RelayUser>;
}

/// A user of the relay. `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct RelayUser {
    /// Signs the user's requests.
    pub password: String,
    /// Who that is, whatever the username says beside it: what [`super::UdpService::revoke`] takes.
    pub name: String,
    /// Whose quota its allocations count against, together with all others of this account.
    pub account: String,
}

impl fmt::Debug for RelayUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Credentials that one shared secret mints. `Debug` shows no secret.
///
/// An allocation outlives its credentials: its own key keeps signing its refreshes, as with coturn, because a session may
/// last longer than the credentials it began with. New allocations need valid ones. Each name is an account of its own.
pub struct SharedSecret(hmac::Key);

impl SharedSecret {
    /// The secret may be of any length; 32 random bytes are plenty.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret))
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

impl RelayCredentials for SharedSecret {
    fn user(&self, username: &str, unix_now: u64) -> Option<RelayUser> {
        let (expiry, name) = username.split_once(':')?;
        // `+5` is a number for `parse`, but would be a second spelling of the same user.
        let plain = !expiry.is_empty() && expiry.bytes().all(|byte| byte.is_ascii_digit());
        let valid = plain && expiry.parse::<u64>().ok()? > unix_now && !name.is_empty();
        let password = BASE64.encode(hmac::sign(&self.0, username.as_bytes()).as_ref());
        valid.then(|| RelayUser { password, name: name.to_owned(), account: name.to_owned() })
    }
}

/// Admits nobody: a gateway with STUN alone.
#[derive(Clone, Copy, Debug)]
pub struct NoRelay;

impl RelayCredentials for NoRelay {
    fn user(&self, _username: &str, _unix_now: u64) -> Option<RelayUser> {
        None
    }
}

/// The password of `username` (`EXPIRY_UNIX_SECONDS:NAME`) under `secret`: base64(HMAC-SHA1(secret, username)).
#[must_use]
pub fn relay_password(secret: &[u8], username: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    BASE64.encode(hmac::sign(&key, username.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_the_one_that_the_rest_form_prescribes() {
        // printf 1700000000:alice | openssl dgst -sha1 -hmac north -binary | base64
        assert_eq!(relay_password(b"north", "1700000000:alice"), ANSWER);
    }

    const ANSWER: &str = "Cd/49soE35ICqcJF/bCTn8Z4OyE=";

    #[test]
    fn credentials_end_with_their_second() {
        let secret = SharedSecret::new(b"north");
        let user = secret.user("1700000000:alice", 1_699_999_999).unwrap();
        assert_eq!((user.name.as_str(), user.password.as_str()), ("alice", ANSWER));
        assert_eq!(secret.user("1700000000:alice", 1_700_000_000), None);
    }

    #[test]
    fn names_that_nobody_minted_are_nobody() {
        let secret = SharedSecret::new(b"north");
        for name in
            ["", ":", "alice", "1700000000:", "+1700000000:a", "-1:a", "99999999999999999999:a"]
        {
            assert_eq!(secret.user(name, 0), None, "{name}");
        }
        assert_eq!(NoRelay.user("1700000000:alice", 0), None);
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let secret = SharedSecret::new(b"north");
        let shown = format!("{secret:?} {:?}", secret.user("1700000000:alice", 0));
        assert!(!shown.contains("north") && !shown.contains(ANSWER), "{shown}");
    }
}
