//! Agents and gateways: enrolled by a join string, signed in by assertions of their own keys, given new keys.
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::api::enrol::{Enrolled, NewEnrolment, NewKey, subject};
use crate::api::{AuditRecord, EventKind, TokenKind};
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::events::of_enrolment;
use crate::broker::limits::is_name;
use crate::broker::orchestrator::Input;
use crate::broker::rate::{Rate, Rates};
use crate::broker::store::{Admitted, Enrolment, NewEnd, Owner};
use crate::code::{Code, Fault};
use crate::enrol::proof::{self, Enrolling, Rotating, SigningIn, fingerprint};
use crate::wire::LOCAL_GATEWAY;

/// Enrolments of one source, good ones too: a pool of machines behind one address starts at once. One costs about 0.2 ms of
/// CPU and a durable write, and needs a good join string: failures are limited like all failed sign-ins.
const ENROLMENTS: Rate = Rate { burst: 4096.0, per_second: 256.0 };
/// New keys of one end: it makes one a month, and when it is asked to. Each is a record that is kept.
const ROTATIONS: Rate = Rate { burst: 16.0, per_second: 1.0 / 60.0 };
/// How long the key before is taken, unless the new one is seen earlier: the answer that it was replaced may be lost, and the
/// end then asks again with both.
const OLD_KEY_LIFE: Duration = Duration::from_secs(60);

/// Enrolments that a join string is good for unless said otherwise: who finds a used one has found nothing.
pub(crate) const JOIN_USES: u32 = 1;
/// For how long it is unless said otherwise: it is made to be used at once, or on the next working day.
pub(crate) const JOIN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// When a join string ends that is made now, Unix milliseconds.
pub(crate) fn join_end(life: Duration) -> u64 {
    clock::unix_ms().saturating_add(clock::millis(life))
}

/// How often sources may ask, and enrolments for another key.
pub(crate) struct Enrolments {
    pub(crate) sources: Rates<IpAddr>,
    rotations: Rates<String>,
}

impl Default for Enrolments {
    fn default() -> Self {
        Self { sources: Rates::new(ENROLMENTS), rotations: Rates::new(ROTATIONS) }
    }
}

/// The agent or gateway whose assertion this is.
///
/// # Errors
/// [`Code::TokenInvalid`], also for anything that is no assertion; [`Code::TokenRevoked`], also for a key that was replaced;
/// [`Code::ClockSkew`].
pub(crate) async fn sign_in(app: &App, bearer: &str, kind: TokenKind) -> Result<Owner, Fault> {
    if !bearer.contains('.') {
        return Err(no_assertion(app, bearer).await);
    }
    let id = proof::signer::<SigningIn>(bearer).map_err(invalid)?;
    let enrolment = enrolment(app, id).await?;
    let (said, by_new) = judge(bearer, &enrolment, &app.pin)?;
    if said.sub != enrolment.id || said.iss != enrolment.id {
        return Err(invalid("it is about another enrolment"));
    }
    if enrolment.is_revoked {
        return Err(Code::TokenRevoked.into());
    }
    let now_ms = clock::unix_ms();
    said.check_time(now_ms / 1000)?;
    let is_replaced = now_ms.saturating_sub(enrolment.key_ms) >= clock::millis(OLD_KEY_LIFE);
    if !by_new && is_replaced {
        return Err(Code::TokenRevoked.because("this key was replaced by a newer one"));
    }
    if enrolment.kind != kind {
        let kind = enrolment.kind.as_str();
        return Err(Code::TokenInvalid.because(format!("this is the enrolment of a {kind}")));
    }
    if by_new && enrolment.old_key.is_some() {
        app.store.key_seen(&enrolment.id, &enrolment.key).await?;
    }
    Ok(enrolment.owner())
}

/// What a sign-in says, and whether its key is the present one rather than the one before.
fn judge(bearer: &str, of: &Enrolment, pin: &str) -> Result<(SigningIn, bool), Fault> {
    match proof::verify(bearer, &of.key, pin) {
        Ok(said) => Ok((said, true)),
        Err(why) => {
            let old = of.old_key.as_deref().map(|key| proof::verify(bearer, key, pin));
            let said = old.unwrap_or(Err(why)).map_err(invalid)?;
            Ok((said, false))
        }
    }
}

/// Enrols an end by its join string's token; `from`: where it is.
///
/// # Errors
/// [`Code::UsageInvalid`], [`Code::ProofInvalid`], [`Code::AuditFull`], and those of [`crate::broker::store::Store::enrol`].
pub(crate) async fn enrol(
    app: &App,
    token: &str,
    wish: NewEnrolment,
    from: IpAddr,
) -> Result<Enrolled, Fault> {
    let allowed = app.store.join_kind(token).await?;
    let place = app.audit.place()?;
    let whom = if is_name(&wish.name) { subject(wish.kind, &wish.name) } else { String::new() };
    let admitted = admit(app, token, allowed, wish).await;
    let Admitted { enrolment: Enrolment { id, kind, name, .. }, join, is_new } =
        admitted.inspect_err(|fault| app.audit.tell_refusal(refusal(fault, &whom, from)))?;
    if is_new {
        tracing::info!(enrolment = id, kind = kind.as_str(), name, "enrolled");
        let end = subject(kind, &name);
        let detail = Some(format!("by the join string {join}"));
        place.record(AuditRecord { detail, ..record(Action::Enrol, &id, (&end, &end), from) });
        app.hub.bus.publish(of_enrolment(EventKind::Enrolled, &id, (kind, &name)));
    }
    Ok(Enrolled { id, kind, name })
}

async fn admit(
    app: &App,
    token: &str,
    allowed: TokenKind,
    wish: NewEnrolment,
) -> Result<Admitted, Fault> {
    let NewEnrolment { kind, name, key, proof } = wish;
    if allowed != kind || kind == TokenKind::User {
        let text = format!(
            "this is no join string for a {}, but for a {}",
            kind.as_str(),
            allowed.as_str()
        );
        return Err(Code::TokenInvalid.because(text));
    }
    if !is_name(&name) || (kind == TokenKind::Gateway && name == LOCAL_GATEWAY) {
        let text = "a name is 1 to 63 of a-z 0-9 - _ ., and a gateway's is not `local`";
        return Err(Code::MessageMalformed.because(text));
    }
    let said: Enrolling = proof::verify(proof.reveal(), &key, &app.pin).map_err(unproved)?;
    if said.sub != subject(kind, &name) || said.join != fingerprint(token) {
        return Err(unproved("it is about another end or another join string"));
    }
    let end = NewEnd { token: token.to_owned(), kind, name, key };
    app.store.enrol(end).await
}

/// Gives an enrolment another key: `bearer` is the statement of the present one, the proof that of the new one. Once more the
/// same is done already. `from`: where it is.
///
/// # Errors
/// [`Code::TokenInvalid`], [`Code::TokenRevoked`], [`Code::ProofInvalid`], [`Code::RateLimited`], [`Code::AuditFull`].
pub(crate) async fn rotate(
    app: &App,
    bearer: &str,
    wish: NewKey,
    from: IpAddr,
) -> Result<(), Fault> {
    let id = proof::signer::<Rotating>(bearer).map_err(invalid)?;
    let enrolment = enrolment(app, id).await?;
    let (id, pin) = (&enrolment.id, &app.pin);
    let is_it = |said: &Rotating| said.sub == *id && said.key == wish.key;
    let said: Rotating = proof::verify(wish.proof.reveal(), &wish.key, pin).map_err(unproved)?;
    if !is_it(&said) {
        return Err(unproved("it is about another enrolment or another key"));
    }
    let is_done = enrolment.key == wish.key;
    if !is_done {
        let said: Rotating = proof::verify(bearer, &enrolment.key, pin).map_err(invalid)?;
        if !is_it(&said) {
            return Err(invalid("it is about another enrolment or another key"));
        }
    }
    if enrolment.is_revoked {
        return Err(Code::TokenRevoked.into());
    }
    if is_done {
        return Ok(());
    }
    if !app.enrolments.rotations.take(id.clone(), Instant::now()) {
        return Err(Code::RateLimited.because("too many new keys of this end"));
    }
    let place = app.audit.place()?;
    if !app.store.swap_key(id, &enrolment.key, &wish.key).await? {
        return Err(Code::TokenInvalid.because("another request changed the enrolment meanwhile"));
    }
    let (kind, name) = (enrolment.kind, &*enrolment.name);
    tracing::info!(enrolment = id, kind = kind.as_str(), name, "a new key");
    let end = subject(kind, name);
    place.record(record(Action::ReplaceKey, id, (&end, &end), from));
    app.hub.bus.publish(of_enrolment(EventKind::KeyReplaced, id, (kind, name)));
    Ok(())
}

/// The database knows that the enrolment `id` was revoked: what it held up ends.
pub(crate) fn revoked(
    app: &App,
    id: String,
    (kind, name): (TokenKind, String),
    by: &str,
    from: IpAddr,
) {
    app.audit.tell(record(Action::Revoke, &id, (by, &subject(kind, &name)), from));
    app.hub.bus.publish(of_enrolment(EventKind::EnrolmentRevoked, &id, (kind, &name)));
    app.hub.withdraw(Input::TokenRevoked { token: id });
}

/// What is done with enrolments.
enum Action {
    Enrol,
    ReplaceKey,
    Revoke,
}

impl Action {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Enrol => "enrol",
            Self::ReplaceKey => "replace-key",
            Self::Revoke => "revoke",
        }
    }
}

/// What is kept of it: names and ids, no key and no join string.
fn record(action: Action, id: &str, (by, end): (&str, &str), from: IpAddr) -> AuditRecord {
    AuditRecord {
        at_ms: clock::unix_ms(),
        correlation: id.to_owned(),
        user: by.to_owned(),
        action: action.as_str().to_owned(),
        resource: end.to_owned(),
        allowed: true,
        source: Some(from.to_canonical().to_string()),
        ..AuditRecord::default()
    }
}

/// Somebody who has a join string may not enrol with it as `whom`: a name that they chose themselves.
fn refusal(fault: &Fault, whom: &str, from: IpAddr) -> AuditRecord {
    let (allowed, code, detail) = (false, Some(fault.code), Some(fault.detail.clone()));
    AuditRecord { allowed, code, detail, ..record(Action::Enrol, "", ("", whom), from) }
}

/// Asks an end that has just registered for a new key if it missed the order.
pub(crate) async fn remind(app: &App, id: &str) {
    // Who fails to read that now reads it with the next link.
    if let Ok(Some(Enrolment { rotate: true, .. })) = app.store.enrolment(id).await {
        app.hub.order_rotation(id);
    }
}

async fn enrolment(app: &App, id: Option<String>) -> Result<Enrolment, Fault> {
    let found = match id {
        Some(id) => app.store.enrolment(&id).await?,
        None => None,
    };
    found.ok_or_else(|| invalid("its kid names no enrolment"))
}

/// Why a plain token opens no link.
async fn no_assertion(app: &App, bearer: &str) -> Fault {
    match app.store.owner(bearer).await {
        Ok(owner) if owner.kind == TokenKind::User => {
            Code::TokenInvalid.because("this token is for users")
        }
        Ok(_) => Code::TokenInvalid.because("a join string's token enrols, and opens no link"),
        Err(fault) => fault,
    }
}

fn invalid(why: &str) -> Fault {
    Code::TokenInvalid.because(format!("the assertion is refused: {why}"))
}

fn unproved(why: &str) -> Fault {
    Code::ProofInvalid.because(format!("the proof of the key is refused: {why}"))
}
