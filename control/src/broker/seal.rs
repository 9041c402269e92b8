//! Sealed grants: what the broker promised, kept by the ends, so that a restarted broker can believe them. Pure.
//!
//! A grant is sealed with AES-256-GCM under a key that stays in the broker's data directory: the ends can neither
//! read nor change it. The nonce is 96 random bits, good for 2^32 grants per key (NIST SP 800-38D section 8.3).
use std::net::IpAddr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::broker::policy::Rights;
use crate::secret::Secret;
use crate::wire::{PublicKey, SealedGrant, SessionId, SessionPurpose};

/// Binds the ciphertext to its purpose and version.
const PURPOSE: &[u8] = b"switchback grant 1";
/// Longest sealed grant read; an honest one is about 450 characters.
const SEALED_CHARS_MAX: usize = 2048;

/// One authorised use of one resource by one user, served by one agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grant {
    #[serde(rename = "s")]
    pub(crate) session: SessionId,
    #[serde(rename = "u")]
    pub(crate) user: String,
    /// Id of the token that the user signed in with.
    #[serde(rename = "t")]
    pub(crate) token: String,
    #[serde(rename = "r")]
    pub(crate) resource: String,
    #[serde(rename = "a")]
    pub(crate) agent: String,
    /// The agent's enrolment.
    #[serde(rename = "j")]
    pub(crate) agent_token: String,
    #[serde(rename = "c")]
    pub(crate) client_key: PublicKey,
    #[serde(rename = "k")]
    pub(crate) agent_key: PublicKey,
    /// Unix milliseconds.
    #[serde(rename = "m")]
    pub(crate) created_ms: u64,
    #[serde(rename = "p", default, skip_serializing_if = "SessionPurpose::is_default")]
    pub(crate) purpose: SessionPurpose,
    /// Where its client was when it last asked.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<IpAddr>,
    /// Its client asked for UDP as well: policies were asked about that, and later legs are held to it.
    #[serde(rename = "d", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) udp: bool,
    /// What policies let it do.
    #[serde(rename = "o", default, skip_serializing_if = "Rights::is_none")]
    pub(crate) rights: Rights,
    /// Of a watch: whose session it watches.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub(crate) watched: Option<String>,
}

impl Grant {
    /// What its client wished, as policies see it.
    pub(crate) fn transport(&self) -> Option<String> {
        Some(transport(self.udp).to_owned())
    }
}

/// What a client that asks for UDP, or does not, wishes, as policies see it.
pub(crate) const fn transport(udp: bool) -> &'static str {
    if udp { "udp" } else { "tcp" }
}

/// Seals and opens grants.
pub(crate) struct SealKey(LessSafeKey);

impl SealKey {
    pub(crate) fn new(bytes: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes).expect("the key has AES-256's length");
        Self(LessSafeKey::new(key))
    }

    /// Seals `grant` under a nonce that must never be used twice.
    pub(crate) fn seal(&self, grant: &Grant, nonce: [u8; NONCE_LEN]) -> SealedGrant {
        let mut text = serde_json::to_vec(grant).expect("a grant is plain strings and numbers");
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(PURPOSE),
                &mut text,
            )
            .expect("a grant is far below the cipher's limit");
        let mut sealed = nonce.to_vec();
        sealed.append(&mut text);
        Secret::new(BASE64URL_NOPAD.encode(&sealed))
    }

    /// The grant, if this key sealed it.
    pub(crate) fn open(&self, sealed: &SealedGrant) -> Option<Grant> {
        if sealed.reveal().len() > SEALED_CHARS_MAX {
            return None;
        }
        let bytes = BASE64URL_NOPAD.decode(sealed.reveal().as_bytes()).ok()?;
        let (nonce, text) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut text = text.to_vec();
        let plain = self
            .0
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(PURPOSE),
                text.as_mut_slice(),
            )
            .ok()?;
        serde_json::from_slice(plain).ok()
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            session: SessionId("abcdefghijkl".into()),
            user: "ada".into(),
            token: "t1".into(),
            resource: "ssh".into(),
            agent: "lab".into(),
            agent_token: "j123456789".into(),
            client_key: PublicKey("c".repeat(59)),
            agent_key: PublicKey("a".repeat(59)),
            created_ms: 1_800_000_000_000,
            purpose: SessionPurpose::default(),
            source: None,
            udp: true,
            rights: Rights::default(),
            watched: None,
        }
    }

    fn key() -> SealKey {
        SealKey::new(&[3; 32])
    }

    #[test]
    fn a_grant_survives_sealing_and_stays_small() {
        let sealed = key().seal(&grant(), [1; 12]);
        assert!(sealed.reveal().len() < 512, "{}", sealed.reveal().len());
        assert_eq!(key().open(&sealed), Some(grant()));
    }

    #[test]
    fn every_truncation_and_bit_flip_is_refused() {
        let sealed = key().seal(&grant(), [1; 12]);
        for end in 0..sealed.reveal().len() {
            assert_eq!(key().open(&Secret::new(&sealed.reveal()[..end])), None, "{end}");
        }
        let bytes = BASE64URL_NOPAD.decode(sealed.reveal().as_bytes()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let damaged = Secret::new(BASE64URL_NOPAD.encode(&damaged));
            assert_eq!(key().open(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn another_brokers_grant_is_refused() {
        let sealed = SealKey::new(&[4; 32]).seal(&grant(), [1; 12]);
        assert_eq!(key().open(&sealed), None);
        assert_eq!(key().open(&Secret::new("x".repeat(SEALED_CHARS_MAX + 1))), None);
    }
}
