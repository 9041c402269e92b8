//! Sessions that live are judged anew when policies, rights or the hour change.
use std::net::IpAddr;

use super::questions::Judged;
use super::record;
use crate::api::AuditRecord;
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::orchestrator::{Input, LinkId};
use crate::broker::seal::Grant;
use crate::broker::shadow::Watch;
use crate::code::Code;
use crate::policy::{Action, Decision};

/// Sessions looked up in the database at once; others get their turn between.
const TOGETHER: usize = 256;

impl App {
    /// Judges every live session.
    pub(crate) async fn judge_all_anew(&self) {
        self.judge_anew(self.hub.live(|_| true)).await;
    }

    /// Judges the sessions of one user.
    pub(crate) async fn judge_user_anew(&self, user: &str) {
        self.judge_anew(self.hub.live(|grant| grant.user == user)).await;
    }

    /// Judges those whose time is up: a younger sign-in gives them more.
    pub(super) async fn judge_due(&self) {
        let now = clock::unix_ms();
        self.judge_anew(self.hub.live(|grant| grant.rights.is_due(now))).await;
    }

    /// What an end shows of a session may not go on: the session ends, if the end may speak for it.
    pub(crate) fn condemn(&self, link: LinkId, grant: &Grant, decision: &Decision, code: Code) {
        self.audit.tell_refusal(end_of(grant, decision, code));
        self.hub.apply(Input::Condemned { link, grant: Box::new(grant.clone()), code });
    }

    async fn judge_anew(&self, mut live: Vec<(Grant, Option<IpAddr>)>) {
        while !live.is_empty() {
            let rest = live.split_off(live.len().min(TOGETHER));
            let judged = match self.judge_grants(live).await {
                Ok(judged) => judged,
                Err(fault) => return tracing::error!(%fault, "sessions could not be judged anew"),
            };
            for Judged { grant, decision, verdict } in judged {
                if let Err(code) = verdict {
                    self.audit.tell(end_of(&grant, &decision, code));
                }
                let session = grant.session;
                let verdict = verdict.map(|()| grant.rights);
                self.hub.apply(Input::Judged { session, verdict });
            }
            live = rest;
        }
    }
}

fn end_of(grant: &Grant, decision: &Decision, code: Code) -> AuditRecord {
    let Grant { session, user, resource, source, .. } = grant;
    tracing::info!(%session, user, resource, %code, "session ended by policy");
    let action = grant.purpose.shadow().map_or(Action::Connect, |wish| Watch::of(wish).action());
    AuditRecord {
        correlation: session.0.clone(),
        allowed: false,
        code: Some(code),
        detail: Some("a live session was judged anew".into()),
        ..record(user, action.as_str(), resource, decision, *source)
    }
}
