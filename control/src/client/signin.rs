//! A sign-in by OIDC that lasts: kept beside the login it belongs to, renewed before it ends, by whichever process is first.
//!
//! The broker keeps the token of a sign-in that is renewed, so the stored login stays as it is; what changes here is the
//! refresh token, which many providers give anew each time and believe once. So one process at a time renews, under a lock,
//! and the others find it done.
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::profile;
use crate::api::client::ApiClient;
use crate::api::signin::{Signin, SigninOffer};
use crate::code::{Code, Fault};
use crate::invite::Invite;
use crate::oidc::login::{Proof, ProviderClient};
use crate::secret::Secret;

const FILE: &str = "signin";
/// How long another process may take to renew: its requests to provider and broker.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(50);
/// Between attempts that failed.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The longest sleep: clocks are set, and machines suspended.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What is needed to sign in again without the user.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredSignin {
    /// The provider, as the broker named it.
    pub offer: SigninOffer,
    /// The login it belongs to.
    token: Secret,
    /// Absent if the provider gives none: then it lasts once.
    pub refresh_token: Option<Secret>,
    /// When it ends by this machine's clock, Unix milliseconds.
    pub expires_ms: u64,
    /// How long it lasts each time, milliseconds.
    lifetime_ms: u64,
}

/// Keeps a sign-in that was just made, in place of any other login, and says where.
///
/// # Errors
/// [`Code::DataDirUnusable`].
pub fn save(
    invite: &Invite,
    offer: SigninOffer,
    signin: &Signin,
    refresh_token: Option<Secret>,
) -> Result<PathBuf, Fault> {
    let stored = StoredSignin {
        offer,
        token: invite.token.clone(),
        refresh_token,
        expires_ms: unix_ms().saturating_add(signin.lasts_ms),
        lifetime_ms: signin.lasts_ms,
    };
    write(&stored)?;
    profile::save_beside_signin(invite)
}

/// The sign-in that this login is of, if it is kept.
#[must_use]
pub fn load(invite: &Invite) -> Option<StoredSignin> {
    let text = std::fs::read_to_string(path().ok()?).ok()?;
    let stored: StoredSignin = serde_json::from_str(&text).ok()?;
    (stored.token == invite.token).then_some(stored)
}

/// Forgets the sign-in.
///
/// # Errors
/// [`Code::DataDirUnusable`].
pub fn remove() -> Result<(), Fault> {
    let path = path()?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(&path, &error)),
        _ => Ok(()),
    }
}

/// Renews the sign-in of a login in time, until `stop`: for processes that last. Does nothing for logins of other kinds.
pub(crate) async fn keep(invite: Invite, stop: CancellationToken) {
    let mut retry = RETRY_FIRST;
    let share = rand::random();
    loop {
        let Some(stored) = load(&invite).filter(|it| it.refresh_token.is_some()) else { return };
        let due = stored.due_ms(share);
        let wait = Duration::from_millis(due.saturating_sub(unix_ms())).min(LOOK_EVERY);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
        }
        if unix_ms() < due {
            continue;
        }
        match renew(&invite, share).await {
            Ok(_) => retry = RETRY_FIRST,
            Err(fault) => {
                let over = matches!(fault.code, Code::SigninRefused | Code::TokenRevoked);
                tracing::warn!(%fault, over, "the sign-in could not be renewed");
                if over || unix_ms() >= stored.expires_ms {
                    return;
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(retry) => {}
                }
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Renews the sign-in of a login if it ends soon or has ended, and answers the login to use from then on: a sign-in that had
/// ended has a new token. For commands, before they ask the broker.
///
/// # Errors
/// [`Code::SigninRefused`], [`Code::ProviderUnreachable`], the broker's refusal, [`Code::DataDirUnusable`].
pub async fn freshen(invite: Invite) -> Result<Invite, Fault> {
    match load(&invite) {
        Some(stored) if stored.refresh_token.is_some() && unix_ms() >= stored.due_ms(1.0) => {
            renew(&invite, 1.0).await
        }
        _ => Ok(invite),
    }
}

impl StoredSignin {
    /// When to renew it: with half of its life left, or less by `share` (0 to 1) of another quarter, so that the processes
    /// and people that signed in together do not all come at once.
    fn due_ms(&self, share: f64) -> u64 {
        let left = (self.lifetime_ms as f64 * (0.5 - 0.25 * share)) as u64;
        self.expires_ms.saturating_sub(left)
    }
}

async fn renew(invite: &Invite, share: f64) -> Result<Invite, Fault> {
    let _lock = lock().await?;
    let Some(mut stored) = load(invite) else {
        // Another process has signed in anew, or out, since.
        return profile::load(None);
    };
    if unix_ms() < stored.due_ms(share) {
        return Ok(invite.clone());
    }
    let refresh = stored.refresh_token.clone().ok_or(Code::TokenExpired)?;
    let provider = ProviderClient::of(stored.offer.clone()).await?;
    let Proof { signin, refresh_token } = provider.again(&refresh).await?;
    if refresh_token.is_some() {
        // The old one is worth nothing any more: this comes first, whatever the broker says.
        stored.refresh_token = refresh_token;
        write(&stored)?;
    }
    let renewed = ApiClient::new(invite.clone()).sign_in(&signin).await;
    let (invite, signed) = match renewed {
        Ok(signed) => (invite.clone(), signed),
        Err(fault) if matches!(fault.code, Code::TokenExpired | Code::TokenInvalid) => {
            let nobody = Invite { token: Secret::new(""), ..invite.clone() };
            let signed = ApiClient::new(nobody.clone()).sign_in(&signin).await?;
            let token = signed.token.clone().ok_or(Code::MessageMalformed)?;
            (Invite { token, ..nobody }, signed)
        }
        Err(fault) => return Err(fault),
    };
    save(&invite, stored.offer, &signed, stored.refresh_token)?;
    tracing::debug!(expires_ms = signed.expires_ms, "sign-in renewed");
    Ok(invite)
}

/// Until it is dropped, no other process of this user renews.
async fn lock() -> Result<File, Fault> {
    let path = path()?;
    let directory = path.parent().unwrap_or(&path);
    let file = File::open(directory).map_err(|error| unusable(directory, &error))?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(error) if error == rustix::io::Errno::WOULDBLOCK && Instant::now() < until => {
                sleep(LOCK_POLL).await;
            }
            Err(error) => return Err(unusable(&path, &error.into())),
        }
    }
}

fn write(stored: &StoredSignin) -> Result<(), Fault> {
    let path = path()?;
    let text = serde_json::to_vec(stored)
        .map_err(|error| Code::Internal.because(format!("a sign-in: {error}")))?;
    profile::write_private(&path, &text).map_err(|error| unusable(&path, &error))
}

fn path() -> Result<PathBuf, Fault> {
    Ok(profile::path()?.with_file_name(FILE))
}

fn unusable(path: &Path, error: &io::Error) -> Fault {
    Code::DataDirUnusable.because(format!("{}: {error}", path.display()))
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_are_spread_over_the_second_half_and_never_late() {
        let stored = StoredSignin {
            offer: SigninOffer::default(),
            token: Secret::new("t0ken"),
            refresh_token: Some(Secret::new("refresh")),
            expires_ms: 10_000,
            lifetime_ms: 4_000,
        };
        assert_eq!((stored.due_ms(0.0), stored.due_ms(1.0)), (8_000, 9_000));
        let shown = format!("{stored:?}");
        assert!(!shown.contains("t0ken") && !shown.contains("refresh\""), "{shown}");
    }
}
