//! Nonces without memory: they carry their time and are recognised by their seal.
//!
//! Pure. A nonce is worth something from the address that it was given to only, so a request that somebody saw and sends
//! again from elsewhere is refused as stale (RFC 8489 section 9.2.4).
use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD as TEXT;

/// Makes nonces and recognises them. One per process start.
pub(crate) struct Nonces {
    key: hmac::Key,
    lifetime_s: u32,
}

/// Bytes of the seal: a guess hits once in 2^64, and would win a replay.
const SEAL: usize = 8;

impl Nonces {
    /// From 32 random bytes.
    pub(crate) fn new(key: &[u8; 32], lifetime_s: u32) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), lifetime_s }
    }

    /// A nonce for `client`, `now_s` seconds after some fixed moment: 16 characters, as a refusal has to be short.
    pub(crate) fn mint(&self, client: SocketAddr, now_s: u32) -> String {
        let time = now_s.to_be_bytes();
        TEXT.encode(&[&time[..], &self.seal(client, time)].concat())
    }

    /// `nonce` was given to `client` and is not too old.
    pub(crate) fn is_fresh(&self, nonce: &[u8], client: SocketAddr, now_s: u32) -> bool {
        let Ok(bytes) = TEXT.decode(nonce) else { return false };
        let Some((time, seal)) = bytes.split_first_chunk::<4>() else { return false };
        let age = now_s.checked_sub(u32::from_be_bytes(*time));
        let sealed =
            aws_lc_rs::constant_time::verify_slices_are_equal(seal, &self.seal(client, *time));
        sealed.is_ok() && age.is_some_and(|age| age <= self.lifetime_s)
    }

    fn seal(&self, client: SocketAddr, time: [u8; 4]) -> [u8; SEAL] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&time);
        match client.ip().to_canonical() {
            IpAddr::V4(ip) => context.update(&ip.octets()),
            IpAddr::V6(ip) => context.update(&ip.octets()),
        }
        context.update(&client.port().to_be_bytes());
        context.sign().as_ref().first_chunk().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_for_its_address_and_its_time() {
        let nonces = Nonces::new(&[7; 32], 100);
        let (a, b) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.1:2".parse().unwrap());
        let nonce = nonces.mint(a, 1000);
        assert_eq!(nonce.len(), 16);
        let fresh = |client, now| nonces.is_fresh(nonce.as_bytes(), client, now);
        assert!(fresh(a, 1000) && fresh(a, 1100));
        assert!(!fresh(a, 1101), "old");
        assert!(!fresh(a, 999), "from the future");
        assert!(!fresh(b, 1000), "somebody else's");
        assert!(
            !Nonces::new(&[8; 32], 100).is_fresh(nonce.as_bytes(), a, 1000),
            "of another start"
        );
    }

    #[test]
    fn any_change_spoils_it() {
        let nonces = Nonces::new(&[7; 32], 100);
        let client = "[2001:db8::1]:9".parse().unwrap();
        let nonce = nonces.mint(client, 50).into_bytes();
        for at in 0..nonce.len() {
            let mut changed = nonce.clone();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(!nonces.is_fresh(&changed, client, 50), "{at}");
        }
        for garbage in [&b""[..], b"AAAA", b"\xff\xff", &[b'A'; 600]] {
            assert!(!nonces.is_fresh(garbage, client, 50));
        }
    }
}
