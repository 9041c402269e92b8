//! A user's sign-in at a provider: by the browser of this machine, by any other device, and again without the user.
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::document::Discovery;
use super::flow::{ASK_BY_DEVICE, Challenge, DeviceCode, Granted, Tokens, granted, nonce};
use super::http::Http;
use super::loopback::Loopback;
use super::provider::discover;
use crate::api::signin::{NewSignin, SigninOffer};
use crate::code::{Code, Fault};
use crate::secret::Secret;

/// How long the user may take in the browser.
const BROWSER_PATIENCE: Duration = Duration::from_secs(600);

/// What the broker and later renewals need.
#[derive(Clone, Debug)]
pub struct Proof {
    /// For the broker.
    pub signin: NewSignin,
    /// To sign in again without the user.
    pub refresh_token: Option<Secret>,
}

/// A provider, as a user's client sees it.
#[derive(Debug)]
pub struct ProviderClient {
    http: Http,
    discovery: Discovery,
    issuer: String,
    client_id: String,
    scopes: Vec<String>,
}

impl ProviderClient {
    /// Asks the broker's provider what it offers.
    ///
    /// # Errors
    /// [`Code::SigninOff`], [`Code::ProviderUnreachable`].
    pub async fn of(offer: SigninOffer) -> Result<Self, Fault> {
        let (Some(issuer), Some(client_id)) = (offer.issuer, offer.client_id) else {
            return Err(Code::SigninOff.into());
        };
        let http = Http::new(None)?;
        let discovery = discover(&http, &issuer).await.map_err(unreachable)?;
        let scopes = discovery.scopes(&offer.scopes);
        Ok(Self { http, discovery, issuer, client_id, scopes })
    }

    /// Its issuer URL.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Whether a user may sign in at another device.
    #[must_use]
    pub fn has_device_flow(&self) -> bool {
        self.discovery.has_device_flow()
    }

    /// Signs in by a browser of this machine, which `show` is to open at a URL.
    ///
    /// # Errors
    /// [`Code::SigninRefused`], [`Code::ProviderUnreachable`], [`Code::IdTokenInvalid`], or that of `show`.
    pub async fn by_browser(
        &self,
        show: impl FnOnce(&str) -> Result<(), Fault>,
    ) -> Result<Proof, Fault> {
        self.discovery.authorization().map_err(unreachable)?;
        let loopback = Loopback::open().await?;
        let challenge = Arc::new(Challenge::new(rand::random()));
        let redirect = loopback.redirect.clone();
        let authorize = self.discovery.authorization_url();
        show(&challenge.url(authorize, &self.client_id, &redirect, &self.scopes))?;
        let answer = timeout(BROWSER_PATIENCE, loopback.answer(challenge.clone(), &self.issuer));
        let code = answer.await.unwrap_or_else(|_| {
            Err(Code::SigninRefused.because("the browser did not come back within ten minutes"))
        })?;
        let tokens = self
            .ask(&[
                ("grant_type", "authorization_code"),
                ("code", code.reveal()),
                ("redirect_uri", &redirect),
                ("client_id", &self.client_id),
                ("code_verifier", challenge.verifier.reveal()),
            ])
            .await?;
        let proof = proof(finished(tokens)?)?;
        if proof.signin.nonce.as_ref() != Some(&challenge.nonce) {
            return Err(Code::IdTokenInvalid.because("the ID token is of another sign-in"));
        }
        Ok(proof)
    }

    /// Signs in at any device, by the code that `show` tells the user.
    ///
    /// # Errors
    /// [`Code::SigninRefused`], [`Code::ProviderUnreachable`], [`Code::IdTokenInvalid`], or that of `show`.
    pub async fn by_device(
        &self,
        show: impl FnOnce(&DeviceCode) -> Result<(), Fault>,
    ) -> Result<Proof, Fault> {
        let endpoint = self.discovery.device().map_err(unreachable)?;
        let scope = self.scopes.join(" ");
        let form = [("client_id", self.client_id.as_str()), ("scope", &scope), ASK_BY_DEVICE];
        let reply = self.http.post(&endpoint, &form).await.map_err(unreachable)?;
        let mut code = DeviceCode::read(reply.status, &reply.body)?;
        let until = Instant::now() + code.life;
        show(&code)?;
        loop {
            if Instant::now() + code.interval >= until {
                return Err(Code::SigninRefused.because("the code was not used in time"));
            }
            sleep(code.interval).await;
            let asked = self
                .ask(&[
                    ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
                    ("device_code", code.code.reveal()),
                    ("client_id", &self.client_id),
                ])
                .await;
            match asked {
                Ok(Granted::Tokens(tokens)) => return proof(tokens),
                Ok(Granted::Pending) => {}
                // RFC 8628 section 3.5 wants less, too, of who was not answered.
                Ok(Granted::SlowDown) | Err(_) => code.slow_down(),
                Ok(Granted::No(fault)) => return Err(fault),
            }
        }
    }

    /// Signs in again, without the user.
    ///
    /// # Errors
    /// [`Code::SigninRefused`] if the provider does not want that any more; [`Code::ProviderUnreachable`].
    pub async fn again(&self, refresh_token: &Secret) -> Result<Proof, Fault> {
        let tokens = self
            .ask(&[
                ("grant_type", "refresh_token"),
                ("refresh_token", refresh_token.reveal()),
                ("client_id", &self.client_id),
            ])
            .await?;
        proof(finished(tokens)?)
    }

    /// Has the provider forget a refresh token (RFC 7009); `false` if it cannot.
    ///
    /// # Errors
    /// [`Code::ProviderUnreachable`].
    pub async fn revoke(&self, refresh_token: &Secret) -> Result<bool, Fault> {
        let Some(endpoint) = self.discovery.revocation() else { return Ok(false) };
        let form = [
            ("token", refresh_token.reveal()),
            ("token_type_hint", "refresh_token"),
            ("client_id", &self.client_id),
        ];
        let endpoint = endpoint.map_err(unreachable)?;
        let reply = self.http.post(&endpoint, &form).await.map_err(unreachable)?;
        if reply.status.is_success() {
            return Ok(true);
        }
        Err(unreachable(format!("{endpoint} answered HTTP {}", reply.status)))
    }

    async fn ask(&self, form: &[(&str, &str)]) -> Result<Granted, Fault> {
        let endpoint = self.discovery.token().map_err(unreachable)?;
        let reply = self.http.post(&endpoint, form).await.map_err(unreachable)?;
        Ok(granted(reply.status, &reply.body))
    }
}

fn finished(granted: Granted) -> Result<Tokens, Fault> {
    match granted {
        Granted::Tokens(tokens) => Ok(tokens),
        Granted::No(fault) => Err(fault),
        Granted::Pending | Granted::SlowDown => {
            Err(Code::ProviderUnreachable.because("the token endpoint wants to be asked later"))
        }
    }
}

fn proof(Tokens { id_token, refresh_token }: Tokens) -> Result<Proof, Fault> {
    let nonce = nonce(&id_token)?;
    Ok(Proof { signin: NewSignin { id_token, nonce }, refresh_token })
}

fn unreachable(trouble: String) -> Fault {
    Code::ProviderUnreachable.because(trouble)
}
