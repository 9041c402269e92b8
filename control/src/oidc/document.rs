//! What a provider publishes: its discovery document (OpenID Connect Discovery 1.0) and its keys (RFC 7517). Pure.
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use super::endpoint::Endpoint;

/// Keys of one set; providers have two to five.
const KEYS_MAX: usize = 64;
/// Bytes of an RSA modulus: 2048 bits is the least that counts as safe (NIST SP 800-131A), 8192 bits take 1 ms to verify.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
const KID_BYTES_MAX: usize = 256;

/// The discovery document's part that is of use.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Discovery {
    issuer: String,
    jwks_uri: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    device_authorization_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    #[serde(default)]
    scopes_supported: Option<Vec<String>>,
}

impl Discovery {
    /// Reads the document of `issuer`.
    pub(crate) fn read(text: &[u8], issuer: &str) -> Result<Self, String> {
        let found: Self = serde_json::from_slice(text)
            .map_err(|error| format!("its discovery document is none: {error}"))?;
        // OpenID Connect Discovery 4.3: or any provider could speak for any other.
        if found.issuer != issuer {
            return Err(format!("its discovery document is of another issuer than {issuer}"));
        }
        found.keys()?;
        Ok(found)
    }

    pub(crate) fn keys(&self) -> Result<Endpoint, String> {
        endpoint("jwks_uri", Some(&self.jwks_uri))
    }

    pub(crate) fn authorization(&self) -> Result<Endpoint, String> {
        endpoint("authorization_endpoint", self.authorization_endpoint.as_ref())
    }

    /// The authorization endpoint as it is written, for a browser.
    pub(crate) fn authorization_url(&self) -> &str {
        self.authorization_endpoint.as_deref().unwrap_or_default()
    }

    pub(crate) fn token(&self) -> Result<Endpoint, String> {
        endpoint("token_endpoint", self.token_endpoint.as_ref())
    }

    pub(crate) fn device(&self) -> Result<Endpoint, String> {
        endpoint("device_authorization_endpoint", self.device_authorization_endpoint.as_ref())
    }

    pub(crate) fn has_device_flow(&self) -> bool {
        self.device_authorization_endpoint.is_some()
    }

    /// Where refresh tokens are revoked (RFC 7009), if anywhere.
    pub(crate) fn revocation(&self) -> Option<Result<Endpoint, String>> {
        let url = self.revocation_endpoint.as_ref()?;
        Some(endpoint("revocation_endpoint", Some(url)))
    }

    /// The scopes of these that it may be asked for: some providers refuse a request for scopes they do not know.
    pub(crate) fn scopes(&self, wanted: &[String]) -> Vec<String> {
        let known = |scope: &&String| {
            self.scopes_supported.as_ref().is_none_or(|known| known.contains(scope))
        };
        wanted.iter().filter(known).cloned().collect()
    }
}

fn endpoint(name: &str, url: Option<&String>) -> Result<Endpoint, String> {
    let url = url.ok_or_else(|| format!("it has no {name}"))?;
    Endpoint::parse(url).map_err(|why| format!("its {name} is unusable: {why}"))
}

/// A key that signs, and with which algorithms.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) kid: Option<String>,
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) key: DecodingKey,
}

/// A provider's keys.
#[derive(Clone, Default)]
pub(crate) struct Keys(Vec<Key>);

impl Keys {
    /// Reads a key set. Keys that are no public signing keys of a known kind are left out.
    pub(crate) fn read(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set =
            serde_json::from_slice(text).map_err(|error| format!("its keys are none: {error}"))?;
        if set.keys.len() > KEYS_MAX {
            return Err(format!("it has {} keys", set.keys.len()));
        }
        let keys: Vec<Key> = set
            .keys
            .into_iter()
            .filter_map(|value| serde_json::from_value::<Jwk>(value).ok())
            .filter_map(|jwk| usable(&jwk))
            .collect();
        if keys.is_empty() {
            return Err("it publishes no key that could sign".into());
        }
        Ok(Self(keys))
    }

    /// The keys that may have signed a token with this header.
    pub(crate) fn candidates(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| {
            let named = kid.is_none() || kid == key.kid.as_deref();
            named && key.algorithms.contains(&algorithm)
        })
    }

    /// Whether it has a key of this id; without one, any will do.
    pub(crate) fn knows(&self, kid: Option<&str>) -> bool {
        kid.is_none() || self.0.iter().any(|key| key.kid.as_deref() == kid)
    }
}

/// What may be verified with a key is decided by the key, never by a token (RFC 8725 section 3.1).
fn usable(jwk: &Jwk) -> Option<Key> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let signs = |it: &PublicKeyUse| *it == PublicKeyUse::Signature;
    if !jwk.common.public_key_use.as_ref().is_none_or(signs) {
        return None;
    }
    let kid = jwk.common.key_id.clone();
    if kid.as_ref().is_some_and(|kid| kid.len() > KID_BYTES_MAX) {
        return None;
    }
    let mut algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => {
            let modulus = decoded(&rsa.n)?;
            let bytes = modulus.iter().skip_while(|byte| **byte == 0).count();
            if !MODULUS_BYTES.contains(&bytes) || decoded(&rsa.e)?.len() > 8 {
                return None;
            }
            vec![RS256, RS384, RS512, PS256, PS384, PS512]
        }
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => vec![ES256],
            EllipticCurve::P384 => vec![ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            vec![EdDSA]
        }
        // Symmetric keys among them: whoever knows a published one could sign.
        _ => return None,
    };
    if let Some(only) = jwk.common.key_algorithm {
        let only = Algorithm::try_from(only).ok()?;
        algorithms.retain(|algorithm| *algorithm == only);
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    (!algorithms.is_empty()).then_some(Key { kid, algorithms, key })
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oidc::test_tokens::Signer;

    const ISSUER: &str = "https://id.example";

    fn discovery(change: impl FnOnce(&mut serde_json::Value)) -> Result<Discovery, String> {
        let mut document = serde_json::json!({
            "issuer": ISSUER, "jwks_uri": "https://keys.example/jwks",
            "token_endpoint": "https://id.example/token", "scopes_supported": ["openid", "email"],
        });
        change(&mut document);
        Discovery::read(document.to_string().as_bytes(), ISSUER)
    }

    #[test]
    fn a_document_of_another_issuer_or_with_unsafe_addresses_is_refused() {
        assert!(discovery(|_| ()).is_ok());
        let wrong = discovery(|it| it["issuer"] = "https://evil.example".into());
        assert!(wrong.unwrap_err().contains("another issuer"));
        assert!(discovery(|it| it["issuer"] = "https://id.example/".into()).is_err());
        assert!(discovery(|it| it["jwks_uri"] = "http://keys.example/jwks".into()).is_err());
        assert!(discovery(|it| it["jwks_uri"] = 7.into()).is_err());
        let unsafe_token = discovery(|it| it["token_endpoint"] = "http://id.example/t".into());
        assert!(unsafe_token.unwrap().token().is_err());
        assert!(discovery(|_| ()).unwrap().device().unwrap_err().contains("has no device"));
    }

    #[test]
    fn only_scopes_that_the_provider_knows_are_asked_for() {
        let wanted = ["openid".to_owned(), "offline_access".to_owned()];
        assert_eq!(discovery(|_| ()).unwrap().scopes(&wanted), ["openid"]);
        let silent = discovery(|it| it["scopes_supported"] = serde_json::Value::Null);
        assert_eq!(silent.unwrap().scopes(&wanted), wanted);
    }

    #[test]
    fn keys_that_must_not_verify_are_left_out() {
        let signer = Signer::p256("one");
        let read = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut jwk = signer.jwk();
            change(&mut jwk);
            Keys::read(serde_json::json!({ "keys": [jwk] }).to_string().as_bytes()).map(drop)
        };
        assert_eq!(read(&|_| ()), Ok(()));
        assert!(read(&|jwk| jwk["use"] = "enc".into()).is_err());
        assert!(read(&|jwk| jwk["alg"] = "HS256".into()).is_err());
        assert!(read(&|jwk| jwk["alg"] = "ES384".into()).is_err());
        assert!(read(&|jwk| jwk["kid"] = "x".repeat(KID_BYTES_MAX + 1).into()).is_err());
        let symmetric = serde_json::json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "one" });
        assert!(read(&|jwk| *jwk = symmetric.clone()).is_err());
        let weak = data_encoding::BASE64URL_NOPAD.encode(&[0xff; 128]);
        let weak = serde_json::json!({ "kty": "RSA", "n": weak, "e": "AQAB" });
        assert!(read(&|jwk| *jwk = weak.clone()).is_err());
    }

    #[test]
    fn a_hostile_set_is_bounded() {
        let many = vec![Signer::p256("one").jwk(); KEYS_MAX + 1];
        assert!(Keys::read(serde_json::json!({ "keys": many }).to_string().as_bytes()).is_err());
        for bad in ["", "[]", "{}", r#"{"keys":7}"#, r#"{"keys":[]}"#, r#"{"keys":[7,null,{}]}"#] {
            assert!(Keys::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
