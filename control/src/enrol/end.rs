//! An end's enrolment at work: made when the first link is, shown at every link, and renewed in time.
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::proof::{EndKey, Enrolling, Rotating, SigningIn, fingerprint};
use super::state::{State, choose};
use crate::api::TokenKind;
use crate::api::client::ApiClient;
use crate::api::enrol::{NewEnrolment, NewKey, subject};
use crate::broker::clock;
use crate::code::{Code, Fault};
use crate::invite::Invite;
use crate::link::Pass;
use crate::secret::Secret;

/// A key's life: as long as the shortest-lived certificates that people renew by machine, far shorter than backups and disks
/// that leave the house are kept, and so long that a machine that was off over a holiday is not the exception.
const ROTATE_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest wait for that time: the wall clock may be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// Pauses between attempts to bring a new key home.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(300);

/// An agent's or a gateway's right to a link. Clones of the `Arc` share it.
pub struct Enrolment {
    /// Where the state is kept; `None`: nowhere.
    dir: Option<PathBuf>,
    /// A join string, until it is used.
    join: Secret,
    inner: Mutex<Inner>,
    /// One request at a time changes the state.
    turn: tokio::sync::Mutex<()>,
    /// A new key is wanted, or the enrolment was just made.
    due: Notify,
}

struct Inner {
    state: State,
    /// A new key was asked for.
    wanted: bool,
    /// The broker's clock less ours, milliseconds.
    ahead_ms: i64,
    /// What the broker's clock showed with its last refusal, less ours.
    heard_ms: Option<i64>,
    /// The key of the last assertion.
    shown: Secret,
    /// The keys have changed places since the broker last took one.
    swapped: bool,
}

impl Enrolment {
    /// What is in the state directory, or the beginning of it, for the end of this kind and name. Nothing is asked of the
    /// broker yet. Without a directory it lives as long as the process: for ends that are only simulated.
    ///
    /// # Errors
    /// [`Code::UsageInvalid`] without state or join string, [`Code::ConfigInvalid`] if the state is another end's,
    /// [`Code::DataDirUnusable`], [`Code::DataCorrupt`].
    pub fn open(
        dir: Option<PathBuf>,
        invite: &Invite,
        kind: TokenKind,
        name: &str,
    ) -> Result<Arc<Self>, Fault> {
        let stored = dir.as_deref().map_or(Ok(None), State::load)?;
        let state = choose(stored, invite, (kind, name), clock::unix_ms())?;
        let (join, turn, due) = (invite.token.clone(), Default::default(), Notify::new());
        let (shown, swapped) = (state.key.clone(), false);
        let inner = Inner { state, wanted: false, ahead_ms: 0, heard_ms: None, shown, swapped };
        Ok(Arc::new(Self { dir, join, inner: Mutex::new(inner), turn, due }))
    }

    /// Has the end make itself a new key soon.
    pub(crate) fn ask_for_new_key(&self) {
        self.inner().wanted = true;
        self.due.notify_one();
    }

    /// Makes new keys, in time and when asked for, until `stop`.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut retry = RETRY_FIRST;
        loop {
            let mut pause = self.until_due();
            if pause.is_zero() {
                let rotated = tokio::select! {
                    rotated = self.rotate() => rotated,
                    () = stop.cancelled() => return,
                };
                let Err(fault) = rotated else {
                    retry = RETRY_FIRST;
                    continue;
                };
                tracing::warn!(%fault, "no new key yet");
                (pause, retry) = (retry, (retry * 2).min(RETRY_CAP));
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.due.notified() => retry = RETRY_FIRST,
                () = stop.cancelled() => return,
            }
        }
    }

    fn until_due(&self) -> Duration {
        let inner = self.inner();
        if inner.state.id.is_none() {
            return LOOK_EVERY;
        }
        if inner.wanted || inner.state.rotating {
            return Duration::ZERO;
        }
        let age = Duration::from_millis(clock::unix_ms().saturating_sub(inner.state.made_ms));
        ROTATE_AFTER.saturating_sub(age).min(LOOK_EVERY)
    }

    /// Shows the broker the key and the join string. A repetition gets the same answer, so one that was lost is no loss.
    async fn enrol(&self) -> Result<(), Fault> {
        let _turn = self.turn.lock().await;
        let state = self.inner().state.clone();
        if state.id.is_some() {
            return Ok(());
        }
        // The key must not be lost once the string is used up.
        self.save(&state)?;
        let key = key(&state.key)?;
        let (aud, join) = (state.pin.clone(), fingerprint(self.join.reveal()));
        let sub = subject(state.kind, &state.name);
        let proof = key.sign(None, &Enrolling { aud, sub, join })?;
        let wish = NewEnrolment {
            kind: state.kind,
            name: state.name.clone(),
            key: key.public().to_owned(),
            proof,
        };
        let api = ApiClient::new(Invite { token: self.join.clone(), ..broker(&state) });
        let enrolled = api.enrol(&wish).await?;
        tracing::info!(id = enrolled.id, name = state.name, "enrolled");
        let state = State { id: Some(enrolled.id), ..state };
        self.save(&state)?;
        self.inner().state = state;
        self.due.notify_one();
        Ok(())
    }

    /// Makes a key, or takes the one that was made and not confirmed, and has the broker take it for the present one.
    async fn rotate(&self) -> Result<(), Fault> {
        let _turn = self.turn.lock().await;
        let (state, next) = self.prepare_rotation()?;
        let id = state.id.as_deref().unwrap_or_default();
        let statement =
            Rotating { aud: state.pin.clone(), sub: id.to_owned(), key: next.public().to_owned() };
        let token = key(&state.key)?.sign(Some(id), &statement)?;
        let proof = next.sign(Some(id), &statement)?;
        let api = ApiClient::new(Invite { token, ..broker(&state) });
        api.rotate(&NewKey { key: statement.key, proof }).await?;
        let mut inner = self.inner();
        if inner.state.key != next.to_text() {
            inner.state.swap();
        }
        (inner.state.rotating, inner.state.made_ms) = (false, clock::unix_ms());
        (inner.wanted, inner.swapped) = (false, false);
        self.keep(&inner.state);
        tracing::info!(id, "the enrolment has a new key");
        Ok(())
    }

    fn prepare_rotation(&self) -> Result<(State, EndKey), Fault> {
        let mut inner = self.inner();
        if !inner.state.rotating {
            let next = EndKey::generate()?;
            let state =
                State { other: Some(next.to_text()), rotating: true, ..inner.state.clone() };
            self.save(&state)?;
            inner.state = state;
        }
        // While a link tries the other key first, the two have changed places.
        let mut state = inner.state.clone();
        if inner.swapped {
            state.swap();
        }
        let next = state.other.as_ref().and_then(EndKey::from_text);
        let next = next.ok_or_else(|| Code::Internal.because("no next key"))?;
        Ok((state, next))
    }

    /// Whether there is a join string to begin anew with: one that did not make the enrolment which was refused.
    fn begin_anew(&self, inner: &mut Inner) -> bool {
        let State { join, kind, name, .. } = &inner.state;
        if self.join.reveal().is_empty() || *join == fingerprint(self.join.reveal()) {
            return false;
        }
        let invite = Invite { token: self.join.clone(), ..broker(&inner.state) };
        match State::fresh(&invite, *kind, name, clock::unix_ms()) {
            Ok(fresh) => {
                tracing::info!("the enrolment is not good any more; joining anew");
                (inner.state, inner.swapped) = (fresh, false);
                true
            }
            Err(fault) => {
                tracing::error!(%fault, "no key to join anew with");
                false
            }
        }
    }

    fn save(&self, state: &State) -> Result<(), Fault> {
        self.dir.as_deref().map_or(Ok(()), |dir| state.save(dir))
    }

    /// What cannot be kept now is found out again after a restart, as both keys are in the file.
    fn keep(&self, state: &State) {
        if let Err(fault) = self.save(state) {
            tracing::warn!(%fault, "which key is in use was not kept");
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass for Enrolment {
    /// The broker, and an assertion in place of a token, good for a minute. Enrols first if need be.
    async fn invite(&self) -> Result<Invite, Fault> {
        if self.inner().state.id.is_none() {
            self.enrol().await?;
        }
        let mut inner = self.inner();
        inner.shown = inner.state.key.clone();
        let State { id, pin, .. } = &inner.state;
        let id = id.as_deref().ok_or_else(|| Code::Internal.because("enrolled without an id"))?;
        let now_s = clock::unix_ms().saturating_add_signed(inner.ahead_ms) / 1000;
        let assertion = SigningIn::new(id, pin, now_s);
        let token = key(&inner.state.key)?.sign(Some(id), &assertion)?;
        Ok(Invite { token, ..broker(&inner.state) })
    }

    /// What the broker's clock showed with a refusal, Unix milliseconds.
    fn heard_time(&self, broker_ms: u64) {
        let ahead = i128::from(broker_ms) - i128::from(clock::unix_ms());
        self.inner().heard_ms = i64::try_from(ahead).ok();
    }

    /// Whether, after this refusal, another attempt can be expected to be taken: by the broker's clock, by the other key,
    /// or by a join string that was not used here.
    fn mend(&self, code: Code) -> bool {
        let mut inner = self.inner();
        match code {
            Code::ClockSkew => match inner.heard_ms.take() {
                Some(ahead_ms) => {
                    tracing::warn!(ahead_ms, "this machine's clock is not the broker's");
                    inner.ahead_ms = ahead_ms;
                    true
                }
                None => false,
            },
            Code::TokenInvalid | Code::TokenRevoked if inner.state.id.is_some() => {
                // Meanwhile the broker has taken a new key from us: this was about the old one.
                if inner.shown != inner.state.key {
                    return true;
                }
                if inner.state.other.is_some() && !inner.swapped {
                    inner.state.swap();
                    inner.swapped = true;
                    return true;
                }
                self.begin_anew(&mut inner)
            }
            _ => false,
        }
    }

    /// The broker takes the key.
    fn accepted(&self) {
        let mut inner = self.inner();
        if !std::mem::take(&mut inner.swapped) {
            return;
        }
        // Our request for it arrived after all, or the broker was restored from an older backup.
        inner.state.rotating = false;
        inner.state.made_ms = clock::unix_ms();
        self.keep(&inner.state);
    }

    /// Whether the broker has turned the join string down, for good.
    fn is_hopeless(&self, code: Code) -> bool {
        let never = matches!(
            code,
            Code::JoinUsed
                | Code::JoinExpired
                | Code::ProofInvalid
                | Code::AgentNameTaken
                | Code::AgentNotAllowed
                | Code::GatewayNameTaken
                | Code::GatewayNotAllowed
                | Code::MessageMalformed
                | Code::DataDirUnusable
        );
        never && self.inner().state.id.is_none()
    }
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolment").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn key(text: &Secret) -> Result<EndKey, Fault> {
    EndKey::from_text(text).ok_or_else(|| Code::Internal.because("a key that cannot be read"))
}

/// Whom the end talks to; without a token.
fn broker(state: &State) -> Invite {
    let kind = super::state::invite_kind(state.kind);
    let (url, pin) = (state.url.clone(), state.pin.clone());
    Invite { kind, url, pin, token: Secret::new("") }
}
