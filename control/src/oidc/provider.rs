//! The broker's provider: its keys, fetched by one task at a time however many sign in, and its verdicts.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use super::cache::{Answer, Cache};
use super::config::OidcConfig;
use super::document::{Discovery, Keys};
use super::endpoint::Endpoint;
use super::http::Http;
use super::verify::{Head, SignedIn, verify};
use crate::code::{Code, Fault};

/// How long a sign-in waits for keys: what the API leaves a request, less some.
const PATIENCE: Duration = Duration::from_secs(15);

/// The provider of a broker.
pub(crate) struct Provider {
    pub(crate) config: OidcConfig,
    http: Http,
    cache: Mutex<Cache>,
    /// Counts fetches that are over.
    fetches: watch::Sender<u64>,
}

impl Provider {
    /// Blocks: reads certificates. Asks the provider nothing yet: a broker starts while it is down.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`], [`Code::CertificateUnusable`].
    pub(crate) fn new(config: OidcConfig) -> Result<Arc<Self>, Fault> {
        config.check()?;
        let http = Http::new(config.ca.as_deref())?;
        Ok(Self::with(config, http))
    }

    pub(crate) fn with(config: OidcConfig, http: Http) -> Arc<Self> {
        let (cache, fetches) = (Mutex::default(), watch::Sender::new(0));
        Arc::new(Self { config, http, cache, fetches })
    }

    /// Judges an ID token, now.
    ///
    /// # Errors
    /// [`Code::IdTokenInvalid`], [`Code::IdTokenExpired`], [`Code::ProviderUnreachable`].
    pub(crate) async fn verify(
        self: &Arc<Self>,
        token: &str,
        nonce: Option<&str>,
        now: u64,
    ) -> Result<SignedIn, Fault> {
        let head = Head::read(token)?;
        let keys =
            timeout(PATIENCE, self.keys(head.kid.as_deref())).await.unwrap_or_else(|_| {
                Err(Code::ProviderUnreachable.because("its keys did not come in time"))
            })?;
        verify(token, &keys, now, nonce, &self.config)
    }

    async fn keys(self: &Arc<Self>, kid: Option<&str>) -> Result<Arc<Keys>, Fault> {
        let mut fetches = self.fetches.subscribe();
        loop {
            // Before the cache is asked, so that a fetch that ends meanwhile is noticed.
            fetches.borrow_and_update();
            let answer = self.cache().ask(Instant::now(), kid);
            match answer {
                Answer::Keys { keys, fetch } => {
                    if fetch {
                        self.fetch();
                    }
                    return Ok(keys);
                }
                Answer::Wait => self.fetch(),
                Answer::Failed(trouble) => return Err(Code::ProviderUnreachable.because(trouble)),
                Answer::UnknownKey => {
                    let text = "the ID token is refused: the provider publishes no key of its name";
                    return Err(Code::IdTokenInvalid.because(text));
                }
            }
            let gone = |_| Code::Internal.because("the provider is gone");
            fetches.changed().await.map_err(gone)?;
        }
    }

    /// Fetches the keys, unless that is under way. In a task of its own: whoever asked may leave.
    fn fetch(self: &Arc<Self>) {
        if !self.begin_fetch() {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let fetched = this.ask().await;
            if let Err(trouble) = &fetched {
                tracing::warn!(issuer = this.config.issuer, trouble, "no keys of the provider");
            }
            this.cache().fetched(Instant::now(), fetched);
            this.fetches.send_modify(|count| *count += 1);
        });
    }

    pub(super) fn begin_fetch(&self) -> bool {
        self.cache().begin(Instant::now())
    }

    async fn ask(&self) -> Result<Keys, String> {
        let discovery = discover(&self.http, &self.config.issuer).await?;
        Keys::read(&self.http.get(&discovery.keys()?).await?)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A provider's discovery document (OpenID Connect Discovery 1.0 section 4).
pub(crate) async fn discover(http: &Http, issuer: &str) -> Result<Discovery, String> {
    let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let endpoint = Endpoint::parse(&url).map_err(|why| format!("issuer {issuer}: {why}"))?;
    Discovery::read(&http.get(&endpoint).await?, issuer)
}
