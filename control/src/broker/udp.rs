//! What both ends of a session need to find each other by UDP, made from one key. Pure.
//!
//! Credentials are a keyed hash (HMAC-SHA256) of the session's id, so a broker that restarts names the same ones and
//! keeps nothing on disk; without the key, which stays in the data directory, they are as good as random. Relay passwords
//! are what the widespread TURN REST form says, so that a stock TURN server that is given the same secret
//! believes them too.
use std::sync::Arc;

use aws_lc_rs::hmac;
use data_encoding::{BASE64_NOPAD, HEXLOWER};
use switchback_engine::{
    LegSide, NoRelay, RelayCredentials, RelayUser, SharedSecret, relay_password,
};

use crate::broker::config::Relay;
use crate::secret::Secret;
use crate::wire::{Candidate, IceCredentials, RelayAccess, SessionId, UdpAccess};

/// How long a relay's credentials are good, in seconds; they are renewed after half of it. They name a session and open
/// nothing but the relay, which refuses them once the session is over, as long as it remembers: a restart forgets, and a
/// relay elsewhere never heard of it. Hence not the day that draft-uberti-behave-turn-rest-00 section 2.2 recommends. An
/// allocation outlives the credentials it was made with.
pub(crate) const RELAY_TTL: u64 = 2 * 3600;
/// Binds keys to their purpose and version.
const ICE: &[u8] = b"switchback udp 1 ice";
const TURN: &[u8] = b"switchback udp 1 turn";
const ACCOUNT: &[u8] = b"switchback udp 1 account";

/// Mints credentials.
pub(crate) struct UdpKeys {
    ice: hmac::Key,
    keys: RelayKeys,
    relay: Relay,
}

/// Mints and believes the credentials of one relay: the broker's own, or another gateway's, which has the same root.
pub(crate) struct RelayKeys {
    turn: Secret,
    accounts: Accounts,
}

/// Writes into a relay's username whose quota counts, so that only who has the key can read it or tell that two names are
/// of one user.
#[derive(Clone)]
struct Accounts(hmac::Key);

/// Believes what [`UdpKeys::relay`] mints.
struct Believer {
    secret: SharedSecret,
    accounts: Accounts,
}

impl UdpKeys {
    /// From the broker's own key.
    pub(crate) fn new(root: &[u8; 32], relay: Relay) -> Self {
        let mut keys = RelayKeys::new(root);
        if let Relay::Foreign { secret, .. } = &relay {
            keys.turn = secret.clone();
        }
        let root = hmac::Key::new(hmac::HMAC_SHA256, root);
        let ice = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, ICE).as_ref());
        Self { ice, keys, relay }
    }

    /// Gateways relay, not a server elsewhere.
    pub(crate) const fn is_own(&self) -> bool {
        matches!(self.relay, Relay::Own)
    }

    /// What one end of a session of `user` is told; `now` in Unix seconds.
    pub(crate) fn access(
        &self,
        session: &SessionId,
        user: &str,
        side: LegSide,
        candidates: Vec<Candidate>,
        now: u64,
    ) -> UdpAccess {
        let (local, remote) = match side {
            LegSide::Client => ("client", "agent"),
            LegSide::Agent => ("agent", "client"),
        };
        UdpAccess {
            local: self.credentials(session, local),
            remote: self.credentials(session, remote),
            token: Secret::new(HEXLOWER.encode(&self.hash(session, "token")[..16])),
            candidates,
            relay: self.relay(session, user, side, now),
        }
    }

    /// The right of one end of a session of `user` to use the relay from `now` (Unix seconds) on. What either end takes
    /// there counts against this user.
    pub(crate) fn relay(
        &self,
        session: &SessionId,
        user: &str,
        side: LegSide,
        now: u64,
    ) -> Option<RelayAccess> {
        let server = match &self.relay {
            Relay::Own => None,
            Relay::Foreign { address, .. } => Some(address.clone()),
            Relay::Off => return None,
        };
        Some(self.keys.access(server, session, user, side, now))
    }

    /// What makes this gateway's relay believe the credentials minted here, if it is the one that they are for.
    pub(crate) fn believer(&self) -> Arc<dyn RelayCredentials> {
        match self.relay {
            Relay::Own => self.keys.believer(),
            Relay::Foreign { .. } | Relay::Off => Arc::new(NoRelay),
        }
    }

    /// 48 bits of name and 144 of password; RFC 8445 section 5.3 asks for 24 and 128.
    fn credentials(&self, session: &SessionId, end: &str) -> IceCredentials {
        let hash = self.hash(session, end);
        let (ufrag, password) =
            (BASE64_NOPAD.encode(&hash[..6]), BASE64_NOPAD.encode(&hash[6..24]));
        IceCredentials { ufrag, password }
    }

    fn hash(&self, session: &SessionId, of: &str) -> [u8; 32] {
        let tag = hmac::sign(&self.ice, format!("{of} {session}").as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(tag.as_ref());
        hash
    }
}

impl RelayKeys {
    /// From a root that the relay and the broker share.
    pub(crate) fn new(root: &[u8; 32]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, root);
        let turn = Secret::new(HEXLOWER.encode(hmac::sign(&root, TURN).as_ref()));
        let accounts = hmac::sign(&root, ACCOUNT);
        let accounts = Accounts(hmac::Key::new(hmac::HMAC_SHA256, accounts.as_ref()));
        Self { turn, accounts }
    }

    /// The right of one end to use the relay at `server`, or where STUN is; `now` by the relay's clock, Unix seconds.
    pub(crate) fn access(
        &self,
        server: Option<String>,
        session: &SessionId,
        user: &str,
        side: LegSide,
        now: u64,
    ) -> RelayAccess {
        let name = relay_user(session, side);
        let account = self.accounts.veil(&name, self.accounts.of(user));
        let username = format!("{}:{name}-{}", now + RELAY_TTL, HEXLOWER.encode(&account));
        let password = Secret::new(relay_password(self.turn.reveal().as_bytes(), &username));
        RelayAccess { server, username, password }
    }

    /// What believes them.
    pub(crate) fn believer(&self) -> Arc<dyn RelayCredentials> {
        Arc::new(Believer {
            secret: SharedSecret::new(self.turn.reveal().as_bytes()),
            accounts: self.accounts.clone(),
        })
    }
}

impl Accounts {
    /// What a user is called.
    fn of(&self, user: &str) -> [u8; 8] {
        self.hash("user", user)
    }

    /// Makes an account unreadable beside this name, and readable again.
    fn veil(&self, name: &str, account: [u8; 8]) -> [u8; 8] {
        let mask = u64::from_ne_bytes(self.hash("veil", name));
        (u64::from_ne_bytes(account) ^ mask).to_ne_bytes()
    }

    fn hash(&self, what: &str, of: &str) -> [u8; 8] {
        let mut hash = [0; 8];
        hash.copy_from_slice(&hmac::sign(&self.0, format!("{what} {of}").as_bytes()).as_ref()[..8]);
        hash
    }
}

impl RelayCredentials for Believer {
    fn user(&self, username: &str, unix_now: u64) -> Option<RelayUser> {
        let user = self.secret.user(username, unix_now)?;
        let (name, veiled) = user.name.rsplit_once('-')?;
        let veiled = HEXLOWER.decode(veiled.as_bytes()).ok()?.try_into().ok()?;
        let account = HEXLOWER.encode(&self.accounts.veil(name, veiled));
        Some(RelayUser { name: name.to_owned(), account, password: user.password })
    }
}

/// An end of a session, as the relay knows it.
fn relay_user(session: &SessionId, side: LegSide) -> String {
    format!("{session}-{}", side.as_str())
}

/// Both ends of a session, as the relay knows them.
pub(crate) fn relay_users(session: &SessionId) -> [String; 2] {
    [LegSide::Client, LegSide::Agent].map(|side| relay_user(session, side))
}

impl std::fmt::Debug for UdpKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UdpKeys(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn keys(root: u8) -> UdpKeys {
        UdpKeys::new(&[root; 32], Relay::Own)
    }

    fn access(keys: &UdpKeys, session: &str, side: LegSide) -> UdpAccess {
        keys.access(&SessionId(session.into()), "ada", side, vec![], NOW)
    }

    #[test]
    fn each_end_holds_what_the_other_expects() {
        let (client, agent) =
            (access(&keys(1), "s", LegSide::Client), access(&keys(1), "s", LegSide::Agent));
        assert_eq!((&client.local, &client.token), (&agent.remote, &agent.token));
        assert_eq!(client.remote, agent.local);
        assert_ne!(client.local, client.remote);
        assert_eq!(client.token.reveal().len(), 32);
    }

    #[test]
    fn a_restart_mints_the_same_and_another_session_or_broker_does_not() {
        let of = |root, session| access(&keys(root), session, LegSide::Client);
        assert_eq!(of(1, "s"), of(1, "s"));
        assert_ne!(of(1, "s").local, of(1, "t").local);
        assert_ne!(of(1, "s").token, of(2, "s").token);
    }

    #[test]
    fn credentials_are_made_of_ice_characters_and_long_enough() {
        for session in ["a", "k3m9x2q7w4ht"] {
            assert!(access(&keys(3), session, LegSide::Agent).local.is_valid());
        }
    }

    #[test]
    fn the_relay_knows_a_user_by_each_of_his_sessions_and_nobody_else_does() {
        let (keys, other) = (keys(1), keys(2));
        let access = |keys: &UdpKeys, session: &str, user, side| {
            keys.relay(&SessionId(session.into()), user, side, NOW).unwrap()
        };
        let account = |access: &RelayAccess| {
            keys.believer().user(&access.username, NOW).map(|user| user.account)
        };
        let [a, b, c] = [("s", LegSide::Client), ("s", LegSide::Agent), ("t", LegSide::Client)]
            .map(|(session, side)| access(&keys, session, "ada@example.com", side));
        assert_eq!((account(&a), account(&a)), (account(&b), account(&c)));
        assert_ne!(account(&a), account(&access(&keys, "s", "bob", LegSide::Client)));
        let veiled =
            |access: &RelayAccess| access.username[access.username.len() - 16..].to_owned();
        assert!(veiled(&a) != veiled(&b) && veiled(&a) != veiled(&c) && veiled(&b) != veiled(&c));
        assert!(![&a, &b, &c].iter().any(|access| access.username.contains("ada")));
        let foreign = access(&other, "s", "ada@example.com", LegSide::Client);
        assert_ne!(veiled(&a), veiled(&foreign), "another broker, another key");
        // Names that were never minted here, whatever their password.
        for name in ["s-client", "s-client-", "s-client-zz", "s-client-00112233445566778899", "s"] {
            let username = format!("{}:{name}", NOW + RELAY_TTL);
            assert_eq!(keys.believer().user(&username, NOW), None, "{name}");
        }
    }

    #[test]
    fn relay_passwords_have_the_widespread_form() {
        let relay = keys(1).relay(&SessionId("s".into()), "ada", LegSide::Client, NOW).unwrap();
        assert!(relay.username.starts_with(&format!("{}:s-client-", NOW + RELAY_TTL)));
        let user = keys(1).believer().user(&relay.username, NOW).unwrap();
        assert_eq!((&*user.password, &*user.name), (relay.password.reveal(), "s-client"));
        assert_eq!(relay_users(&SessionId("s".into())), ["s-client", "s-agent"]);
        assert_eq!(keys(2).believer().user(&relay.username, NOW + RELAY_TTL), None);
        assert_ne!(keys(2).believer().user(&relay.username, NOW), Some(user));
        let (address, secret) = ("turn.example:3478".to_owned(), Secret::new("north"));
        let coturn = UdpKeys::new(&[1; 32], Relay::Foreign { address, secret });
        let relay = coturn.relay(&SessionId("s".into()), "ada", LegSide::Client, NOW).unwrap();
        assert_eq!(relay.server.as_deref(), Some("turn.example:3478"));
        assert_eq!(relay.password.reveal(), relay_password(b"north", &relay.username));
        let none = UdpKeys::new(&[1; 32], Relay::Off);
        assert_eq!(none.relay(&SessionId("s".into()), "ada", LegSide::Client, NOW), None);
    }
}
