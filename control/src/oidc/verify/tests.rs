//! Tokens that are good, bad and forged.
use serde_json::json;

use super::*;
use crate::oidc::test_tokens::{Signer, hs256, unsigned};

const NOW: u64 = 1_800_000_000;

fn config() -> OidcConfig {
    OidcConfig::new("https://id.example", "cli")
}

fn good() -> Value {
    json!({
        "iss": "https://id.example", "aud": "cli", "sub": "u1", "iat": NOW - 5, "exp": NOW + 300,
        "email": "ada@example.com", "email_verified": true, "nonce": "n1",
        "groups": ["dev", "ops"], "acr": "gold", "amr": ["pwd", "otp"], "auth_time": NOW - 60,
        "device": { "managed": true, "os": "linux", "list": [] },
    })
}

fn keys(signers: &[&Signer]) -> Keys {
    let keys: Vec<_> = signers.iter().map(|signer| signer.jwk()).collect();
    Keys::read(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

/// The verdict on the good claims, changed.
fn judge(config: &OidcConfig, change: impl FnOnce(&mut Value)) -> Result<SignedIn, Fault> {
    let signer = Signer::p256("one");
    let mut claims = good();
    change(&mut claims);
    verify(&signer.sign(&claims), &keys(&[&signer]), NOW, Some("n1"), config)
}

#[test]
fn a_good_token_becomes_a_user_with_claims() {
    let mut config = config();
    config.admin_group = Some("ops".into());
    let found = judge(&config, |_| ()).unwrap();
    assert_eq!((found.user.as_str(), found.subject.as_str()), ("ada@example.com", "u1"));
    assert_eq!(found.admin, Some(true));
    assert_eq!(found.claims.auth_time_ms, Some((NOW - 60) * 1000));
    assert_eq!(found.claims.device["managed"], "true");
    assert_eq!(found.claims.device.len(), 2);
    assert!(found.claims.groups.contains("dev") && found.claims.amr.contains("otp"));
    config.admin_group = Some("root".into());
    assert_eq!(judge(&config, |_| ()).unwrap().admin, Some(false));
}

#[test]
fn every_bad_claim_is_refused_with_its_code() {
    type Change = fn(&mut Value);
    let rows: &[(&str, Code, Change)] = &[
        ("wrong issuer", Code::IdTokenInvalid, |it| it["iss"] = "https://evil.example".into()),
        ("no issuer", Code::IdTokenInvalid, |it| it["iss"] = Value::Null),
        ("many issuers", Code::IdTokenInvalid, |it| it["iss"] = json!(["https://id.example"])),
        ("wrong audience", Code::IdTokenInvalid, |it| it["aud"] = "web".into()),
        ("no audience", Code::IdTokenInvalid, |it| it["aud"] = json!([])),
        ("two audiences", Code::IdTokenInvalid, |it| it["aud"] = json!(["cli", "web"])),
        ("another client", Code::IdTokenInvalid, |it| it["azp"] = "web".into()),
        ("many audiences", Code::IdTokenInvalid, |it| it["aud"] = json!(vec!["cli"; 17])),
        ("expired", Code::IdTokenExpired, |it| it["exp"] = (NOW - 60).into()),
        ("no expiry", Code::IdTokenInvalid, |it| it["exp"] = Value::Null),
        ("expiry as text", Code::IdTokenInvalid, |it| it["exp"] = "9999999999".into()),
        ("huge expiry", Code::IdTokenInvalid, |it| it["exp"] = json!(1e300)),
        ("negative expiry", Code::IdTokenInvalid, |it| it["exp"] = (-1).into()),
        ("not yet valid", Code::IdTokenExpired, |it| it["nbf"] = (NOW + 61).into()),
        ("issued in the future", Code::IdTokenExpired, |it| it["iat"] = (NOW + 61).into()),
        ("never issued", Code::IdTokenInvalid, |it| it["iat"] = Value::Null),
        ("another nonce", Code::IdTokenInvalid, |it| it["nonce"] = "n2".into()),
        ("no nonce", Code::IdTokenInvalid, |it| it["nonce"] = Value::Null),
        ("no subject", Code::IdTokenInvalid, |it| it["sub"] = "".into()),
        ("huge subject", Code::IdTokenInvalid, |it| it["sub"] = "x".repeat(256).into()),
        ("no email", Code::IdTokenInvalid, |it| it["email"] = Value::Null),
        ("email unverified", Code::IdTokenInvalid, |it| it["email_verified"] = false.into()),
        ("email unheard of", Code::IdTokenInvalid, |it| it["email_verified"] = Value::Null),
        ("no user name", Code::IdTokenInvalid, |it| it["email"] = "a b\n@c".into()),
        ("long user name", Code::IdTokenInvalid, |it| it["email"] = "x".repeat(64).into()),
        ("too many groups", Code::IdTokenInvalid, |it| it["groups"] = json!(vec!["g"; 257])),
        ("groups nested", Code::IdTokenInvalid, |it| it["groups"] = json!([["ops"]])),
        ("groups of numbers", Code::IdTokenInvalid, |it| it["groups"] = json!([7])),
        ("a huge group", Code::IdTokenInvalid, |it| it["groups"] = json!(["x".repeat(257)])),
        ("a huge acr", Code::IdTokenInvalid, |it| it["acr"] = "x".repeat(257).into()),
        ("acr as object", Code::IdTokenInvalid, |it| it["acr"] = json!({})),
        ("many methods", Code::IdTokenInvalid, |it| it["amr"] = json!(vec!["pwd"; 33])),
        ("huge device", Code::IdTokenInvalid, |it| it["device"] = json!({ "a": "x".repeat(257) })),
        ("auth_time as text", Code::IdTokenInvalid, |it| it["auth_time"] = "now".into()),
    ];
    for (what, code, change) in rows {
        let fault = judge(&config(), change).expect_err(what);
        assert_eq!(fault.code, *code, "{what}: {fault}");
    }
}

#[test]
fn clocks_may_differ_by_a_minute() {
    for (name, time) in [("exp", NOW - 59), ("nbf", NOW + 60), ("iat", NOW + 60)] {
        assert!(judge(&config(), |it| it[name] = time.into()).is_ok(), "{name}");
    }
    assert!(judge(&config(), |it| it["iat"] = json!(1_799_999_999.5)).is_ok(), "fractions");
}

#[test]
fn several_audiences_need_the_client_named() {
    let both = json!(["cli", "web"]);
    let named = judge(&config(), |it| {
        it["aud"] = both;
        it["azp"] = "cli".into();
    });
    assert!(named.is_ok());
    let mut config = config();
    config.audience = Some("switchback".into());
    assert!(judge(&config, |_| ()).is_err());
    assert!(judge(&config, |it| it["aud"] = "switchback".into()).is_ok());
}

#[test]
fn a_token_made_with_a_nonce_is_no_use_without() {
    let signer = Signer::p256("one");
    let keys = keys(&[&signer]);
    let judge = |claims: &Value, nonce| verify(&signer.sign(claims), &keys, NOW, nonce, &config());
    assert!(judge(&good(), None).is_err());
    let mut plain = good();
    plain["nonce"] = Value::Null;
    assert!(judge(&plain, None).is_ok());
    assert!(judge(&plain, Some("n1")).is_err());
}

#[test]
fn every_asymmetric_algorithm_is_accepted_from_its_own_key_alone() {
    let (one, two) = (Signer::p256("one"), Signer::ed25519("two"));
    let (three, twin) = (Signer::rsa("three"), Signer::p256("one"));
    let all = keys(&[&one, &two, &three]);
    for signer in [&one, &two, &three] {
        assert!(verify(&signer.sign(&good()), &all, NOW, Some("n1"), &config()).is_ok());
        let fault = verify(&signer.sign(&good()), &keys(&[&twin]), NOW, Some("n1"), &config());
        assert_eq!(fault.unwrap_err().code, Code::IdTokenInvalid);
    }
    let nameless = one.sign_with(&good(), |head| head.kid = None);
    assert!(verify(&nameless, &all, NOW, Some("n1"), &config()).is_ok());
}

#[test]
fn the_key_decides_the_algorithm_not_the_token() {
    let rsa = Signer::rsa("one");
    let keys = keys(&[&rsa]);
    let jwk = rsa.jwk();
    // HS256 with the public key's text as the secret, in the forms that a careless verifier would take.
    let modulus = BASE64URL_NOPAD.decode(jwk["n"].as_str().unwrap().as_bytes()).unwrap();
    let confused = [
        hs256(&good(), jwk["n"].as_str().unwrap().as_bytes(), "one"),
        hs256(&good(), &modulus, "one"),
        hs256(&good(), jwk.to_string().as_bytes(), "one"),
        unsigned(&good(), "none"),
        unsigned(&good(), "None"),
        unsigned(&good(), "RS256"),
        unsigned(&good(), ""),
    ];
    for token in confused {
        let fault = verify(&token, &keys, NOW, Some("n1"), &config()).unwrap_err();
        assert_eq!(fault.code, Code::IdTokenInvalid);
    }
}

#[test]
fn other_tokens_and_changed_ones_are_refused() {
    let signer = Signer::p256("one");
    let keys = keys(&[&signer]);
    let good_one = signer.sign(&good());
    let judge = |token: &str| verify(token, &keys, NOW, Some("n1"), &config()).map(drop);
    let access = signer.sign_with(&good(), |head| head.typ = Some("at+jwt".into()));
    assert!(judge(&access).is_err(), "an access token");
    let critical = signer.sign_with(&good(), |head| head.crit = Some(vec!["exp".into()]));
    assert!(judge(&critical).is_err(), "critical extensions");
    for end in [0, 1, 20, good_one.len() / 2, good_one.len() - 1] {
        assert!(judge(&good_one[..end]).is_err(), "cut at {end}");
    }
    let parts: Vec<&str> = good_one.split('.').collect();
    let mut other = good();
    other["email"] = "root@example.com".into();
    let other = BASE64URL_NOPAD.encode(other.to_string().as_bytes());
    assert!(judge(&format!("{}.{other}.{}", parts[0], parts[2])).is_err(), "other claims");
    assert!(judge(&format!("{good_one}.x")).is_err());
    assert!(judge(&"x".repeat(TOKEN_BYTES_MAX + 1)).is_err());
    assert!(judge(&format!("{good_one}\u{e9}")).is_err());
}

#[test]
fn a_refusal_quotes_nothing_of_the_token() {
    let fault = judge(&config(), |it| it["iss"] = "https://secret.example".into()).unwrap_err();
    assert!(!fault.to_string().contains("secret.example"));
}
