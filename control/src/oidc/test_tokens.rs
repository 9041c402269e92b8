//! Keys and tokens as providers and forgers make them.
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

pub(crate) struct Signer {
    kid: String,
    algorithm: Algorithm,
    key: EncodingKey,
    public: Value,
}

impl Signer {
    pub(crate) fn p256(kid: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = pair.public_key().as_ref();
        let (x, y) = (BASE64URL_NOPAD.encode(&point[1..33]), BASE64URL_NOPAD.encode(&point[33..]));
        let public = json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y });
        let der = pair.to_pkcs8v1().unwrap();
        Self {
            kid: kid.into(),
            algorithm: Algorithm::ES256,
            key: EncodingKey::from_ec_der(der.as_ref()),
            public,
        }
    }

    pub(crate) fn ed25519(kid: &str) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let x = BASE64URL_NOPAD.encode(pair.public_key().as_ref());
        let public = json!({ "kty": "OKP", "crv": "Ed25519", "x": x });
        let der = pair.to_pkcs8v1().unwrap();
        Self {
            kid: kid.into(),
            algorithm: Algorithm::EdDSA,
            key: EncodingKey::from_ed_der(der.as_ref()),
            public,
        }
    }

    pub(crate) fn rsa(kid: &str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = pair.public_key();
        let n = BASE64URL_NOPAD.encode(public.modulus().big_endian_without_leading_zero());
        let e = BASE64URL_NOPAD.encode(public.exponent().big_endian_without_leading_zero());
        let public = json!({ "kty": "RSA", "n": n, "e": e });
        let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
        Self {
            kid: kid.into(),
            algorithm: Algorithm::RS256,
            key: EncodingKey::from_rsa_der(&rsa_private(der.as_ref())),
            public,
        }
    }

    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = self.public.clone();
        jwk["kid"] = self.kid.clone().into();
        jwk["use"] = "sig".into();
        jwk
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(claims, |_| ())
    }

    pub(crate) fn sign_with(&self, claims: &Value, change: impl FnOnce(&mut Header)) -> String {
        let mut head = Header::new(self.algorithm);
        head.kid = Some(self.kid.clone());
        change(&mut head);
        jsonwebtoken::encode(&head, claims, &self.key).unwrap()
    }
}

/// The RSAPrivateKey inside PKCS #8 (RFC 5208): the rest of the outer sequence's last octet string.
fn rsa_private(pkcs8: &[u8]) -> Vec<u8> {
    // 30 82 LL LL, 02 01 00, 30 0d <13 bytes>, 04 82 LL LL: fixed for a 2048 bit key.
    pkcs8[26..].to_vec()
}

pub(crate) fn hs256(claims: &Value, secret: &[u8], kid: &str) -> String {
    let mut head = Header::new(Algorithm::HS256);
    head.kid = Some(kid.into());
    jsonwebtoken::encode(&head, claims, &EncodingKey::from_secret(secret)).unwrap()
}

/// A token with this algorithm and no signature.
pub(crate) fn unsigned(claims: &Value, algorithm: &str) -> String {
    let head = json!({ "alg": algorithm, "kid": "one", "typ": "JWT" });
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    format!("{}.{}.", part(&head), part(claims))
}
