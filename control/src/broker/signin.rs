//! Sign-ins by OIDC: judged by the provider's keys, kept as tokens of our own, ended in time.
//!
//! A renewed sign-in keeps its token, so links, sessions and sealed grants go on; only `expires_ms` and what is known of the
//! user change. Whoever does not renew loses links and sessions with the end of it, as with a revocation.
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::api::signin::{NewSignin, Signin, SigninOffer};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::orchestrator::Input;
use crate::broker::rate::{Rate, Rates};
use crate::broker::store::{Begun, Displaced, Owner, Person, Renewed};
use crate::code::{Code, Fault};
use crate::oidc::provider::Provider;
use crate::oidc::verify::SignedIn;
use crate::oidc::{OidcConfig, TakenNames};

/// Sign-ins of one source, good ones too: a company behind one address begins its day, and then renews each hour. One costs
/// about 0.2 ms of CPU and a durable write.
const SIGN_INS: Rate = Rate { burst: 256.0, per_second: 8.0 };
/// The longest sleep of who ends sign-ins: the wall clock may be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long tokens that ended are remembered, to tell their users so.
const REMEMBER: Duration = Duration::from_secs(7 * 24 * 3600);

/// The provider, and what is asked of it.
pub(crate) struct Signins {
    provider: Option<Arc<Provider>>,
    /// How often sources may ask, of somebody who is not signed in.
    pub(crate) sources: Rates<IpAddr>,
    /// A sign-in began or was renewed: the next end may be another.
    changed: Notify,
}

impl Default for Signins {
    fn default() -> Self {
        Self { provider: None, sources: Rates::new(SIGN_INS), changed: Notify::new() }
    }
}

impl Signins {
    /// Blocks: reads certificates.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`], [`Code::CertificateUnusable`].
    pub(crate) fn new(config: Option<OidcConfig>) -> Result<Self, Fault> {
        let provider = config.map(Provider::new).transpose()?;
        Ok(Self { provider, ..Self::default() })
    }

    /// How users sign in.
    pub(crate) fn offer(&self) -> SigninOffer {
        let Some(provider) = &self.provider else { return SigninOffer::default() };
        SigninOffer {
            issuer: Some(provider.config.issuer.clone()),
            client_id: Some(provider.config.client_id.clone()),
            scopes: provider.config.all_scopes(),
        }
    }

    /// A token was made that ends.
    pub(crate) fn ends_changed(&self) {
        self.changed.notify_one();
    }
}

/// Signs a user in, or renews the sign-in `by`.
///
/// # Errors
/// [`Code::SigninOff`], [`Code::IdTokenInvalid`], [`Code::IdTokenExpired`], [`Code::ProviderUnreachable`],
/// [`Code::UserNameTaken`], [`Code::TokenExpired`], [`Code::UsageInvalid`].
pub(crate) async fn sign_in(
    app: &App,
    proof: NewSignin,
    by: Option<Owner>,
) -> Result<Signin, Fault> {
    let provider = app.signins.provider.as_ref().ok_or(Code::SigninOff)?;
    let now_ms = clock::unix_ms();
    let nonce = proof.nonce.as_deref();
    let signed = provider.verify(proof.id_token.reveal(), nonce, now_ms / 1000).await?;
    let lifetime = clock::millis(provider.config.lifetime);
    let person = person(signed, provider.config.users, now_ms.saturating_add(lifetime));
    let (user, expires_ms) = (person.user.clone(), person.expires_ms);
    let (admin, lasts_ms) = (person.admin, lifetime);
    let done = match by {
        Some(owner) => {
            renew(app, &owner, person).await?;
            let admin = admin.unwrap_or(owner.admin);
            Signin { token: None, expires_ms, lasts_ms, user, admin }
        }
        None => {
            let Begun { issued, displaced } = app.store.sign_in(person).await?;
            displaced.into_iter().for_each(|gone| displace(app, &user, gone));
            let owner = app.store.owner(issued.token.reveal()).await?;
            let issuer = provider.config.issuer.as_str();
            tracing::info!(user, issuer, token = issued.id, admin = owner.admin, "signed in");
            let (token, admin) = (Some(issued.token), owner.admin);
            Signin { token, expires_ms, lasts_ms, user, admin }
        }
    };
    app.signins.changed.notify_one();
    Ok(done)
}

fn person(signed: SignedIn, users: TakenNames, expires_ms: u64) -> Person {
    let SignedIn { user, subject, admin, claims } = signed;
    Person { user, subject, admin, claims, expires_ms, link: users == TakenNames::Link }
}

/// Ends what a sign-in carried that made room for a younger one.
fn displace(app: &App, user: &str, Displaced { token, was_over }: Displaced) {
    if was_over {
        // Nobody may have noticed yet, and nobody can any more.
        app.hub.withdraw(Input::TokenExpired { token });
    } else {
        tracing::info!(user, token, "the user has too many sign-ins, and this one ended");
        app.hub.token_revoked(token);
    }
}

async fn renew(app: &App, owner: &Owner, person: Person) -> Result<(), Fault> {
    if owner.expires_ms.is_none() {
        return Err(Code::UsageInvalid.because("a login string's token does not end by itself"));
    }
    if owner.name != person.user || owner.claims.issuer != person.claims.issuer {
        return Err(Code::UsageInvalid.because("the ID token is of another user than the sign-in"));
    }
    let token = owner.token.clone();
    match app.store.renew(&token, person).await? {
        Renewed::Not => return Err(Code::TokenExpired.into()),
        Renewed::Same => {}
        Renewed::Changed => {
            app.hub.withdraw(Input::SigninChanged { token });
            // Other groups may mean other rights.
            app.judge_user_anew(&owner.name).await;
        }
    }
    tracing::debug!(user = owner.name, token = owner.token, "sign-in renewed");
    Ok(())
}

/// Ends a sign-in by its user's wish.
///
/// # Errors
/// [`Code::UsageInvalid`] for the token of a login string.
pub(crate) async fn sign_out(app: &App, owner: Owner) -> Result<(), Fault> {
    if owner.expires_ms.is_none() {
        let detail = "a login string's token is ended by `switchback token revoke`";
        return Err(Code::UsageInvalid.because(detail));
    }
    app.store.revoke(&owner.token, false).await?;
    tracing::info!(user = owner.name, token = owner.token, "signed out");
    app.hub.token_revoked(owner.token);
    Ok(())
}

/// Ends what sign-ins carry when they end. Sleeps until the next one does.
pub(crate) async fn end_in_time(app: Arc<App>) {
    let mut seen_ms = clock::unix_ms();
    loop {
        let pause = match app.store.next_end(seen_ms).await {
            Ok(Some(end)) => Duration::from_millis(end.saturating_sub(clock::unix_ms())),
            Ok(None) => LOOK_EVERY,
            Err(fault) => {
                tracing::error!(%fault, "cannot tell which sign-ins end");
                LOOK_EVERY
            }
        };
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = app.signins.changed.notified() => continue,
            () = sleep(pause.min(LOOK_EVERY)) => {}
        }
        let now = clock::unix_ms();
        match app.store.ended(seen_ms, now).await {
            Ok(tokens) => {
                seen_ms = seen_ms.max(now);
                end_all(&app, tokens, now).await;
            }
            Err(fault) => tracing::error!(%fault, "sign-ins that ended are not known"),
        }
    }
}

async fn end_all(app: &App, tokens: Vec<String>, now_ms: u64) {
    if tokens.is_empty() {
        return;
    }
    for token in tokens {
        tracing::info!(token, "a sign-in ended");
        app.hub.withdraw(Input::TokenExpired { token });
    }
    if let Err(fault) = app.store.forget_ended(now_ms.saturating_sub(clock::millis(REMEMBER))).await
    {
        tracing::error!(%fault, "old sign-ins could not be forgotten");
    }
}
