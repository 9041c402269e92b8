//! Keys that ends make for themselves, and the short statements that they sign with them. Pure.
//!
//! A statement is a JSON Web Token (RFC 7519) of one algorithm, ES256, and of an explicit type, so that none can stand in for
//! another (RFC 8725 section 3.11). Its audience is the broker's pin: it is of no use elsewhere.
//!
//! | type | signed by | says |
//! |---|---|---|
//! | [`Enrolling`] | the new key | I am to be this end, by this join string |
//! | [`SigningIn`] | the end's key | it is me, now: a client assertion as in RFC 7523 section 3 |
//! | [`Rotating`] | the old key, and the new one | this key from now on |
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::code::{Code, Fault};
use crate::secret::Secret;

/// How long an assertion lasts, seconds: a slow connection is made meanwhile, and what leaks into a log is soon worth nothing.
pub(crate) const ASSERTION_S: u64 = 60;
/// How far in the future an assertion may have been made, seconds: clocks that NTP keeps differ by less.
const AHEAD_S: u64 = 5;
/// Longest statement read; an honest one has about 400 characters.
const STATEMENT_CHARS_MAX: usize = 2048;
/// A public key in characters: the uncompressed point of P-256, 65 bytes in base64url.
const KEY_CHARS: usize = 87;

/// What a statement is about.
pub(crate) trait Statement: Serialize + DeserializeOwned {
    /// The `typ` of its header.
    const TYPE: &'static str;

    fn audience(&self) -> &str;
}

/// An end wants to be known by its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Enrolling {
    pub(crate) aud: String,
    /// `KIND/NAME`.
    pub(crate) sub: String,
    /// [`fingerprint`] of the join string's token.
    pub(crate) join: String,
}

/// An end signs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SigningIn {
    pub(crate) aud: String,
    /// The enrolment.
    pub(crate) iss: String,
    pub(crate) sub: String,
    /// Unix seconds.
    pub(crate) iat: u64,
    pub(crate) exp: u64,
}

/// An end takes another key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rotating {
    pub(crate) aud: String,
    /// The enrolment.
    pub(crate) sub: String,
    /// The new public key.
    pub(crate) key: String,
}

impl Statement for Enrolling {
    const TYPE: &'static str = "switchback-enrol+jwt";

    fn audience(&self) -> &str {
        &self.aud
    }
}

impl Statement for SigningIn {
    const TYPE: &'static str = "switchback-sign-in+jwt";

    fn audience(&self) -> &str {
        &self.aud
    }
}

impl Statement for Rotating {
    const TYPE: &'static str = "switchback-rotate+jwt";

    fn audience(&self) -> &str {
        &self.aud
    }
}

impl SigningIn {
    /// By the enrolment `id`, at `now`, Unix seconds of the broker's clock as far as it is known.
    pub(crate) fn new(id: &str, pin: &str, now: u64) -> Self {
        let (aud, iss) = (pin.to_owned(), id.to_owned());
        Self { aud, sub: iss.clone(), iss, iat: now, exp: now.saturating_add(ASSERTION_S) }
    }

    /// Whether it holds at `now`, Unix seconds.
    ///
    /// # Errors
    /// [`Code::ClockSkew`].
    pub(crate) fn check_time(&self, now: u64) -> Result<(), Fault> {
        let skew = |what: &str| Err(Code::ClockSkew.because(format!("the assertion {what}")));
        if self.exp > self.iat.saturating_add(ASSERTION_S) {
            return skew("is to last longer than 60 s");
        }
        if self.exp <= now {
            return skew(&format!("ended {} s ago by the broker's clock", now - self.exp));
        }
        if self.iat > now.saturating_add(AHEAD_S) {
            let ahead = self.iat - now;
            return skew(&format!("is of a time {ahead} s ahead of the broker's clock"));
        }
        Ok(())
    }
}

/// What recognises a join string's token without telling it: its SHA-256.
pub(crate) fn fingerprint(token: &str) -> String {
    BASE64URL_NOPAD.encode(digest(&SHA256, token.as_bytes()).as_ref())
}

/// A P-256 key of an end. `Debug` shows the public half only.
pub(crate) struct EndKey {
    pkcs8: Vec<u8>,
    public: String,
}

impl EndKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`Code::Internal`] when the random source fails.
    pub(crate) fn generate() -> Result<Self, Fault> {
        let failed = || Code::Internal.because("an end's key could not be made");
        let pair =
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| failed())?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| failed())?.as_ref().to_vec();
        let public = BASE64URL_NOPAD.encode(pair.public_key().as_ref());
        Ok(Self { pkcs8, public })
    }

    /// Reads what [`Self::to_text`] wrote; `None` if it is damaged.
    pub(crate) fn from_text(text: &Secret) -> Option<Self> {
        let pkcs8 = BASE64URL_NOPAD.decode(text.reveal().as_bytes()).ok()?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).ok()?;
        let public = BASE64URL_NOPAD.encode(pair.public_key().as_ref());
        Some(Self { pkcs8, public })
    }

    /// The private key as PKCS#8 in base64url, for a file that only its owner may read.
    pub(crate) fn to_text(&self) -> Secret {
        Secret::new(BASE64URL_NOPAD.encode(&self.pkcs8))
    }

    /// The public key: an uncompressed point (SEC 1 section 2.3.3) in base64url.
    pub(crate) fn public(&self) -> &str {
        &self.public
    }

    /// Signs a statement; `id` is the enrolment's, once there is one.
    ///
    /// # Errors
    /// [`Code::Internal`].
    pub(crate) fn sign<S: Statement>(
        &self,
        id: Option<&str>,
        statement: &S,
    ) -> Result<Secret, Fault> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = Some(S::TYPE.to_owned());
        header.kid = id.map(str::to_owned);
        let key = EncodingKey::from_ec_der(&self.pkcs8);
        jsonwebtoken::encode(&header, statement, &key)
            .map(Secret::new)
            .map_err(|error| Code::Internal.because(format!("a statement: {error}")))
    }
}

impl fmt::Debug for EndKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Whether it may be a public key; whether it is one shows when it verifies something.
pub(crate) fn is_key(text: &str) -> bool {
    text.len() == KEY_CHARS && BASE64URL_NOPAD.decode(text.as_bytes()).is_ok()
}

/// Whose key a statement says it was signed with: nothing of it is believed yet.
///
/// # Errors
/// Why it is no statement of this type.
pub(crate) fn signer<S: Statement>(token: &str) -> Result<Option<String>, &'static str> {
    #[derive(Deserialize)]
    struct Head {
        alg: String,
        typ: Option<String>,
        kid: Option<String>,
        crit: Option<Value>,
    }
    const NONE: &str = "it is no signed JSON Web Token";
    if token.len() > STATEMENT_CHARS_MAX {
        return Err("it is too long");
    }
    let mut parts = token.split('.');
    let (Some(head), Some(_), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(NONE);
    };
    let head = BASE64URL_NOPAD.decode(head.as_bytes()).map_err(|_| NONE)?;
    let head: Head = serde_json::from_slice(&head).map_err(|_| NONE)?;
    if head.alg != "ES256" {
        return Err("it is not signed by ES256");
    }
    // Nothing that may stand there is understood here (RFC 7515 section 4.1.11).
    if head.crit.is_some() {
        return Err("it has critical extensions");
    }
    if head.typ.as_deref() != Some(S::TYPE) {
        return Err("it is a statement of another type");
    }
    Ok(head.kid)
}

/// What a statement says, if this key signed it and it is for the broker with this pin.
///
/// # Errors
/// Why not.
pub(crate) fn verify<S: Statement>(token: &str, key: &str, pin: &str) -> Result<S, &'static str> {
    signer::<S>(token)?;
    if !is_key(key) {
        return Err("the key is none");
    }
    let key = BASE64URL_NOPAD.decode(key.as_bytes()).map_err(|_| "the key is none")?;
    // Audience and time are judged by us, by the broker's clock.
    let mut only_signature = Validation::new(Algorithm::ES256);
    only_signature.required_spec_claims.clear();
    only_signature.validate_exp = false;
    only_signature.validate_aud = false;
    let found = jsonwebtoken::decode::<S>(token, &DecodingKey::from_ec_der(&key), &only_signature);
    let said = found.map_err(|_| "the key has not signed it")?.claims;
    if said.audience() == pin { Ok(said) } else { Err("it is for another broker") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn assertion() -> (EndKey, Secret) {
        let key = EndKey::generate().unwrap();
        let token = key.sign(Some("id"), &SigningIn::new("id", "pin", NOW)).unwrap();
        (key, token)
    }

    fn unsigned(header: &Value, token: &str) -> String {
        let head = BASE64URL_NOPAD.encode(header.to_string().as_bytes());
        format!("{head}.{}", token.split_once('.').unwrap().1)
    }

    #[test]
    fn a_key_survives_its_file_and_signs_what_only_it_verifies() {
        let (key, token) = assertion();
        let read = EndKey::from_text(&key.to_text()).unwrap();
        assert_eq!(read.public(), key.public());
        assert!(is_key(key.public()) && !format!("{key:?}").contains(key.to_text().reveal()));
        let said: SigningIn = verify(token.reveal(), key.public(), "pin").unwrap();
        assert_eq!(said, SigningIn::new("id", "pin", NOW));
        assert_eq!(signer::<SigningIn>(token.reveal()).unwrap().as_deref(), Some("id"));
        assert!(token.reveal().len() < 512, "{}", token.reveal().len());
        let other = EndKey::generate().unwrap();
        assert!(verify::<SigningIn>(token.reveal(), other.public(), "pin").is_err());
        assert!(EndKey::from_text(&Secret::new("garbage")).is_none());
    }

    #[test]
    fn a_statement_is_for_one_broker_and_of_one_type() {
        let (key, token) = assertion();
        let of = |pin| verify::<SigningIn>(token.reveal(), key.public(), pin);
        assert_eq!(of("another").unwrap_err(), "it is for another broker");
        let other = verify::<Rotating>(token.reveal(), key.public(), "pin");
        assert_eq!(other.unwrap_err(), "it is a statement of another type");
    }

    #[test]
    fn algorithms_without_a_key_pair_are_refused() {
        let (key, token) = assertion();
        let typ = SigningIn::TYPE;
        for (header, why) in [
            (json!({ "alg": "none", "typ": typ, "kid": "id" }), "it is not signed by ES256"),
            (json!({ "alg": "HS256", "typ": typ, "kid": "id" }), "it is not signed by ES256"),
            (json!({ "alg": "EdDSA", "typ": typ, "kid": "id" }), "it is not signed by ES256"),
            (
                json!({ "alg": "ES256", "typ": "JWT", "kid": "id" }),
                "it is a statement of another type",
            ),
            (json!({ "alg": "ES256", "typ": typ, "crit": ["x"] }), "it has critical extensions"),
            (json!({ "alg": "ES256", "typ": typ, "kid": "other" }), "the key has not signed it"),
        ] {
            let forged = unsigned(&header, token.reveal());
            let refused = verify::<SigningIn>(&forged, key.public(), "pin").unwrap_err();
            assert_eq!(refused, why, "{header}");
        }
        // The public key as an HMAC secret: the confusion that RFC 8725 section 2.1 tells of.
        let mut header = Header::new(Algorithm::HS256);
        header.typ = Some(typ.into());
        let secret = BASE64URL_NOPAD.decode(key.public().as_bytes()).unwrap();
        let claims = SigningIn::new("id", "pin", NOW);
        let forged =
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&secret)).unwrap();
        assert!(verify::<SigningIn>(&forged, key.public(), "pin").is_err());
    }

    #[test]
    fn every_truncation_and_change_is_refused() {
        let (key, token) = assertion();
        let text = token.reveal();
        for end in 0..text.len() {
            assert!(verify::<SigningIn>(&text[..end], key.public(), "pin").is_err(), "{end}");
        }
        for at in (0..text.len()).filter(|at| text.as_bytes()[*at] != b'.') {
            let mut changed = text.as_bytes().to_vec();
            // The last character of a part has bits that decode to nothing, and other values for them are refused.
            changed[at] = if changed[at] == b'A' { b'Q' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(verify::<SigningIn>(&changed, key.public(), "pin").is_err(), "{at}");
        }
        assert!(verify::<SigningIn>(&"a.".repeat(5000), key.public(), "pin").is_err());
        assert!(verify::<SigningIn>(text, "short", "pin").is_err());
        assert!(verify::<SigningIn>(text, &"A".repeat(KEY_CHARS), "pin").is_err(), "no point");
    }

    #[test]
    fn an_assertion_lasts_a_minute_by_the_brokers_clock() {
        let said = SigningIn::new("id", "pin", NOW);
        for (now, good) in [
            (NOW, true),
            (NOW - AHEAD_S, true),
            (NOW - AHEAD_S - 1, false),
            (NOW + ASSERTION_S - 1, true),
            (NOW + ASSERTION_S, false),
            (NOW + 300, false),
            (NOW + 3 * 86_400, false),
            (NOW - 3 * 86_400, false),
            (0, false),
            (u64::MAX, false),
        ] {
            let code = said.check_time(now).map_err(|fault| fault.code);
            assert_eq!(code, if good { Ok(()) } else { Err(Code::ClockSkew) }, "{now}");
        }
        let greedy = SigningIn { exp: NOW + ASSERTION_S + 1, ..said };
        assert_eq!(greedy.check_time(NOW).unwrap_err().code, Code::ClockSkew);
    }
}
