//! Who may watch whose session, and the record of it.
use std::net::IpAddr;

use crate::api::AuditRecord;
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::policy::{Rights, SessionFacts, watch_rights};
use crate::broker::store::Owner;
use crate::code::{Code, Fault};
use crate::policy::{Action, Consent, Decision};
use crate::wire::{SessionId, ShadowWish};

/// What a watcher may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// See what passes.
    View,
    /// And inject input.
    Control,
}

impl Watch {
    /// What a wish asks for.
    pub(crate) const fn of(wish: &ShadowWish) -> Self {
        if wish.control { Self::Control } else { Self::View }
    }

    /// As policies name it.
    pub(crate) const fn action(self) -> Action {
        match self {
            Self::View => Action::ShadowView,
            Self::Control => Action::ShadowControl,
        }
    }
}

/// Under which terms someone may watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// What binds the watch.
    pub(crate) rights: Rights,
    /// The watcher may do without asking the session's user.
    pub(crate) may_skip_consent: bool,
}

/// Whether `owner` may watch a session in this way, from `source`, and how; with the decision behind it. A session that may not
/// be watched looks like none, so that nobody learns ids by guessing.
///
/// # Errors
/// [`Code::SessionUnknown`]; [`Code::PolicyConflict`], [`Code::Reauthenticate`] where watching is allowed but for what it is
/// bound to; the database's.
pub(crate) async fn may_shadow(
    app: &App,
    owner: &Owner,
    source: IpAddr,
    watched: &SessionFacts<'_>,
    how: Watch,
) -> Result<(Result<Terms, Code>, Decision), Fault> {
    let decision = app.judge_session(owner, source, how.action(), watched).await?;
    let may_skip_consent = decision.consent() == Consent::Notify;
    let rights = watch_rights(&owner.subject(), &decision);
    Ok((rights.map(|rights| Terms { rights, may_skip_consent }), decision))
}

/// What happened to a session by somebody's will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    ConsentAsked,
    ConsentGiven,
    ConsentRefused,
    ConsentExpired,
    WatchBegan,
    WatchEnded,
    Message,
    Paused,
    Resumed,
}

impl Deed {
    /// As records name it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::ConsentAsked => "shadow_consent_asked",
            Self::ConsentGiven => "shadow_consent_given",
            Self::ConsentRefused => "shadow_consent_refused",
            Self::ConsentExpired => "shadow_consent_expired",
            Self::WatchBegan => "shadow_began",
            Self::WatchEnded => "shadow_ended",
            Self::Message => "session_message",
            Self::Paused => "session_paused",
            Self::Resumed => "session_resumed",
        }
    }
}

/// A record of one deed; holds no byte of a session and no text of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Audit {
    pub(crate) deed: Deed,
    /// The session it was done to: the correlation id.
    pub(crate) session: SessionId,
    /// Whose session that is; empty if it is gone.
    pub(crate) user: String,
    /// What it uses; empty if it is gone.
    pub(crate) resource: String,
    /// Who did it, or wished to.
    pub(crate) by: String,
    /// The watch, for what concerns one.
    pub(crate) watch: Option<SessionId>,
    pub(crate) control: bool,
}

impl Audit {
    /// As it is kept, under the id of the session that it was done to.
    pub(crate) fn record(self) -> AuditRecord {
        let Self { deed, session, user, resource, by, watch, control } = self;
        let watch = watch.map(|watch| format!(" by the watch {watch}")).unwrap_or_default();
        let how = if control { ", with control" } else { "" };
        AuditRecord {
            at_ms: clock::unix_ms(),
            correlation: session.0,
            user: by,
            action: deed.as_str().to_owned(),
            resource,
            allowed: !matches!(deed, Deed::ConsentRefused | Deed::ConsentExpired),
            detail: Some(format!("a session of {user}{watch}{how}")),
            ..AuditRecord::default()
        }
    }
}
