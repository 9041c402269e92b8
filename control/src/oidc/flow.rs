//! What a client says to a provider and reads from it: the code flow with PKCE (RFC 6749, 7636, 8252), the device flow
//! (RFC 8628) and refreshing. Pure. Everything a provider says is a stranger's text: bounded, and cleaned before it is shown.
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use hyper::StatusCode;
use serde::Deserialize;

use super::endpoint::Endpoint;
use crate::code::{Code, Fault};
use crate::secret::Secret;

/// Characters of a text that a provider wants shown.
const SHOWN_MAX: usize = 200;
/// Longest token kept.
const TOKEN_BYTES_MAX: usize = 32 * 1024;
/// RFC 8628 section 3.2, if the provider names none; section 3.5 for each `slow_down`.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
const SLOW_DOWN: Duration = Duration::from_secs(5);
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// A device code lasts so long at most, whatever the provider says.
const DEVICE_LIFE_MAX: Duration = Duration::from_secs(1800);

/// Has the provider ask the person, whom it may know still, and say in the ID token when it did (OpenID Connect Core 1.0
/// section 3.1.2.1): `@reauthenticate` rests on that.
const ASK: (&str, &str) = ("max_age", "0");
/// The same for the device flow; a provider that does not know it ignores it (RFC 8628 section 3.1). Zero stands for
/// `prompt=login`, which is no parameter of that flow, and oidc-provider 9 loses it there.
pub(crate) const ASK_BY_DEVICE: (&str, &str) = ("max_age", "1");

/// What a browser flow keeps to itself until the browser comes back.
pub(crate) struct Challenge {
    pub(crate) verifier: Secret,
    pub(crate) state: String,
    pub(crate) nonce: String,
}

impl Challenge {
    /// From three times 32 random bytes.
    pub(crate) fn new(random: [[u8; 32]; 3]) -> Self {
        let [verifier, state, nonce] = random.map(|bytes| BASE64URL_NOPAD.encode(&bytes));
        Self { verifier: Secret::new(verifier), state, nonce }
    }

    /// Where the browser goes.
    pub(crate) fn url(
        &self,
        authorize: &str,
        client_id: &str,
        redirect: &str,
        scopes: &[String],
    ) -> String {
        let challenge = digest(&SHA256, self.verifier.reveal().as_bytes());
        let mut query = form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", client_id)
            .append_pair("redirect_uri", redirect)
            .append_pair("scope", &scopes.join(" "))
            .append_pair("state", &self.state)
            .append_pair("nonce", &self.nonce)
            .append_pair("code_challenge", &BASE64URL_NOPAD.encode(challenge.as_ref()))
            .append_pair("code_challenge_method", "S256")
            .append_pair(ASK.0, ASK.1);
        // OpenID Connect Core 1.0 section 11: no refresh token without it.
        if scopes.iter().any(|scope| scope == "offline_access") {
            query.append_pair("prompt", "consent");
        }
        let joint = if authorize.contains('?') { '&' } else { '?' };
        format!("{authorize}{joint}{}", query.finish())
    }

    /// The code that came with a redirect to us; `None` if it is not the answer to this challenge.
    pub(crate) fn code(&self, query: &str, issuer: &str) -> Option<Result<Secret, Fault>> {
        let find = |name: &str| {
            let mut pairs = form_urlencoded::parse(query.as_bytes());
            pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        if find("state")? != self.state {
            return None;
        }
        // RFC 9207: another provider's answer must not be taken for this one's.
        if find("iss").is_some_and(|from| from != issuer) {
            return Some(Err(Code::SigninRefused.because("another provider has answered")));
        }
        if let Some(code) = find("code") {
            return Some(Ok(Secret::new(code)));
        }
        let error = find("error").unwrap_or_else(|| "no code".into());
        let detail = find("error_description").unwrap_or_default();
        Some(Err(Code::SigninRefused.because(shown(&format!("{error} {detail}")))))
    }
}

/// What a provider gives whom it has signed in.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// For the broker.
    pub id_token: Secret,
    /// For later ones, unless the provider gives none.
    pub refresh_token: Option<Secret>,
}

/// What a token endpoint answered.
#[derive(Debug)]
pub(crate) enum Granted {
    Tokens(Tokens),
    /// The user has not answered yet (RFC 8628).
    Pending,
    SlowDown,
    No(Fault),
}

/// Reads a token endpoint's answer (RFC 6749 sections 5.1 and 5.2).
pub(crate) fn granted(status: StatusCode, body: &[u8]) -> Granted {
    #[derive(Deserialize)]
    struct Raw {
        id_token: Option<Secret>,
        refresh_token: Option<Secret>,
        error: Option<String>,
        error_description: Option<String>,
    }
    let unusable = |why: &str| Granted::No(Code::ProviderUnreachable.because(why));
    let Ok(raw) = serde_json::from_slice::<Raw>(body) else {
        return unusable(&format!("the token endpoint answered HTTP {status} without JSON"));
    };
    match raw.error.as_deref() {
        Some("authorization_pending") => return Granted::Pending,
        Some("slow_down") => return Granted::SlowDown,
        Some(error) => {
            let detail = raw.error_description.unwrap_or_default();
            return Granted::No(Code::SigninRefused.because(shown(&format!("{error} {detail}"))));
        }
        None => {}
    }
    let fits = |token: &Secret| token.reveal().len() <= TOKEN_BYTES_MAX;
    match raw.id_token {
        _ if !status.is_success() => {
            unusable(&format!("the token endpoint answered HTTP {status}"))
        }
        Some(id_token) if fits(&id_token) => {
            let refresh_token = raw.refresh_token.filter(fits);
            Granted::Tokens(Tokens { id_token, refresh_token })
        }
        _ => unusable("the token endpoint gave no ID token"),
    }
}

/// What a user does at another device.
#[derive(Clone, Debug)]
pub struct DeviceCode {
    /// For polling.
    pub(crate) code: Secret,
    /// To type.
    pub user_code: String,
    /// Where to type it.
    pub verification_uri: String,
    /// The same with the code in it, if the provider has such an address.
    pub verification_uri_complete: Option<String>,
    /// How long it is good for.
    pub life: Duration,
    pub(crate) interval: Duration,
}

impl DeviceCode {
    /// Reads a device authorization endpoint's answer (RFC 8628 section 3.2).
    pub(crate) fn read(status: StatusCode, body: &[u8]) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        struct Raw {
            device_code: Secret,
            user_code: String,
            verification_uri: String,
            verification_uri_complete: Option<String>,
            expires_in: u64,
            interval: Option<u64>,
        }
        if !status.is_success() {
            return Err(match granted(status, body) {
                Granted::No(fault) => fault,
                _ => Code::ProviderUnreachable.because("the device flow cannot begin"),
            });
        }
        let unusable = |why| Code::ProviderUnreachable.because(format!("the device flow: {why}"));
        let raw: Raw = serde_json::from_slice(body).map_err(|_| unusable("no usable answer"))?;
        let address = |text: &str| {
            let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
            plain && Endpoint::parse(text).is_ok()
        };
        if !address(&raw.verification_uri) {
            return Err(unusable("no usable address to type the code at"));
        }
        let interval = raw.interval.map_or(POLL_INTERVAL, Duration::from_secs);
        Ok(Self {
            code: raw.device_code,
            user_code: shown(&raw.user_code),
            verification_uri: raw.verification_uri,
            verification_uri_complete: raw.verification_uri_complete.filter(|it| address(it)),
            life: Duration::from_secs(raw.expires_in).min(DEVICE_LIFE_MAX),
            interval: interval.clamp(Duration::from_secs(1), POLL_INTERVAL_MAX),
        })
    }

    /// The provider wants to be asked less often, or could not be asked.
    pub(crate) fn slow_down(&mut self) {
        self.interval = (self.interval + SLOW_DOWN).min(POLL_INTERVAL_MAX);
    }
}

/// The nonce in an ID token that came from the provider itself, which needs no signature to be believed by the one whom it
/// was given to (OpenID Connect Core 1.0 section 3.1.3.7, item 6).
pub(crate) fn nonce(id_token: &Secret) -> Result<Option<String>, Fault> {
    #[derive(Deserialize)]
    struct Payload {
        nonce: Option<String>,
    }
    let unusable = || Code::IdTokenInvalid.because("the provider gave an ID token that is none");
    let payload = id_token.reveal().split('.').nth(1).ok_or_else(unusable)?;
    let payload = BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| unusable())?;
    let payload: Payload = serde_json::from_slice(&payload).map_err(|_| unusable())?;
    Ok(payload.nonce)
}

/// A provider's text, fit for a terminal.
fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(SHOWN_MAX).map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge() -> Challenge {
        Challenge::new([[1; 32], [2; 32], [3; 32]])
    }

    #[test]
    fn the_browser_carries_a_challenge_and_never_the_verifier() {
        let challenge = challenge();
        let scopes = ["openid".to_owned(), "offline_access".to_owned()];
        let url = challenge.url(
            "https://id.example/auth?a=b",
            "cli",
            "http://127.0.0.1:7/callback",
            &scopes,
        );
        assert!(url.starts_with("https://id.example/auth?a=b&response_type=code&client_id=cli&"));
        assert!(url.contains("redirect_uri=http%3A%2F%2F127.0.0.1%3A7%2Fcallback"));
        assert!(url.contains("code_challenge_method=S256") && url.contains("prompt=consent"));
        assert!(!url.contains(challenge.verifier.reveal()));
        // RFC 7636 appendix B.
        let known = Challenge {
            verifier: Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            ..challenge
        };
        let url = known.url("https://id.example/auth", "cli", "http://127.0.0.1:7/", &scopes);
        assert!(url.contains("code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"));
    }

    #[test]
    fn the_provider_is_to_ask_the_person_at_every_login() {
        for scopes in [vec!["openid".to_owned()], vec!["openid".into(), "offline_access".into()]] {
            let url =
                challenge().url("https://id.example/auth", "cli", "http://127.0.0.1:7/", &scopes);
            assert!(url.contains("&max_age=0"), "{url}");
        }
        assert_eq!(ASK_BY_DEVICE, ("max_age", "1"));
    }

    #[test]
    fn only_the_answer_to_our_question_is_taken() {
        let (challenge, issuer) = (challenge(), "https://id.example");
        let state = challenge.state.clone();
        let code = |query: &str| challenge.code(query, issuer);
        let good = code(&format!("code=c0de&state={state}&iss=https%3A%2F%2Fid.example"));
        assert_eq!(good.unwrap().unwrap().reveal(), "c0de");
        assert!(code("code=c0de").is_none() && code("code=c0de&state=other").is_none());
        let mixed = code(&format!("code=c0de&state={state}&iss=https://evil.example"));
        assert_eq!(mixed.unwrap().unwrap_err().code, Code::SigninRefused);
        let denied =
            code(&format!("error=access_denied&error_description=no%1b%5B2J&state={state}"));
        let fault = denied.unwrap().unwrap_err();
        assert_eq!(
            (fault.code, fault.detail.as_str()),
            (Code::SigninRefused, "access_denied no [2J")
        );
        assert!(code(&format!("state={state}")).unwrap().is_err());
    }

    #[test]
    fn every_answer_of_a_token_endpoint_is_understood() {
        let read = |status: u16, body: &str| {
            granted(StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        let code = |status, body: &str| match read(status, body) {
            Granted::No(fault) => fault.code,
            other => panic!("{other:?}"),
        };
        let good = r#"{"id_token":"a.b.c","refresh_token":"r","access_token":"x"}"#;
        assert!(matches!(read(200, good), Granted::Tokens(Tokens { refresh_token: Some(_), .. })));
        assert!(matches!(read(400, r#"{"error":"authorization_pending"}"#), Granted::Pending));
        assert!(matches!(read(400, r#"{"error":"slow_down"}"#), Granted::SlowDown));
        assert_eq!(code(400, r#"{"error":"invalid_grant"}"#), Code::SigninRefused);
        assert_eq!(code(400, r#"{"error":"expired_token"}"#), Code::SigninRefused);
        assert_eq!(code(200, r#"{"access_token":"x"}"#), Code::ProviderUnreachable);
        assert_eq!(code(500, good), Code::ProviderUnreachable);
        assert_eq!(code(502, "<html>"), Code::ProviderUnreachable);
        let huge = format!("{{\"id_token\":\"{}\"}}", "x".repeat(TOKEN_BYTES_MAX + 1));
        assert_eq!(code(200, &huge), Code::ProviderUnreachable);
    }

    #[test]
    fn a_device_code_is_polled_for_as_the_provider_wants() {
        let read = |body: &str| DeviceCode::read(StatusCode::OK, body.as_bytes());
        let body = r#"{"device_code":"d","user_code":"AB\u001b[1mCD","verification_uri":"https://id.example/device","expires_in":600}"#;
        let mut code = read(body).unwrap();
        assert_eq!((code.interval, code.life), (POLL_INTERVAL, Duration::from_secs(600)));
        assert_eq!(code.user_code, "AB [1mCD");
        code.slow_down();
        assert_eq!(code.interval, POLL_INTERVAL + SLOW_DOWN);
        (0..100).for_each(|_| code.slow_down());
        assert_eq!(code.interval, POLL_INTERVAL_MAX);
        let hostile = body.replace("https://id.example/device", "javascript:alert(1)");
        assert!(read(&hostile).is_err());
        let patient = body.replace("600}", "99999999999,\"interval\":0}");
        let code = read(&patient).unwrap();
        assert_eq!((code.interval, code.life), (Duration::from_secs(1), DEVICE_LIFE_MAX));
        assert!(!format!("{code:?}").contains("\"d\""));
        assert!(read("{}").is_err());
    }

    #[test]
    fn the_nonce_of_a_token_is_read_without_believing_it() {
        let payload = BASE64URL_NOPAD.encode(br#"{"nonce":"n"}"#);
        let token = |text: String| nonce(&Secret::new(text));
        assert_eq!(token(format!("a.{payload}.c")).unwrap().as_deref(), Some("n"));
        assert!(token("a".into()).is_err() && token("a.%%.c".into()).is_err());
    }
}
