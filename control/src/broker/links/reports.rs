//! What ends show and tell about their sessions: grants are opened and judged before anyone believes them.
use std::sync::Arc;

use crate::broker::app::App;
use crate::broker::limits::is_label;
use crate::broker::orchestrator::{Input, LinkId, Output, Reported};
use crate::broker::seal::Grant;
use crate::code::{Code, Fault};
use crate::wire::{REPORT_LEGS_MAX, SealedGrant, SessionId, SessionReport};

/// A grant that is ours, and whether it still holds.
pub(super) struct Shown {
    pub(super) grant: Grant,
    pub(super) verdict: Result<(), Code>,
}

/// Opens and judges grants. Those that this broker did not seal are counted and left out.
pub(super) async fn judge_all(
    app: &Arc<App>,
    sealed: Vec<SealedGrant>,
) -> Result<Vec<Shown>, Fault> {
    let mut grants = Vec::with_capacity(sealed.len());
    for sealed in &sealed {
        match app.hub.open_grant(sealed) {
            Some(grant) => grants.push(grant),
            None => app.counters.faults.add(Code::GrantInvalid),
        }
    }
    if grants.is_empty() {
        return Ok(Vec::new());
    }
    let judged = app.store.judge(grants).await?;
    Ok(judged.into_iter().map(|(grant, verdict)| Shown { grant, verdict }).collect())
}

/// Takes in a report message; `end` tells its sender about sessions that may not go on.
pub(super) async fn take_in(
    app: &Arc<App>,
    link: LinkId,
    mut reports: Vec<SessionReport>,
    end: impl Fn(SessionId, Code) -> Output + Send,
) {
    reports.retain(|report| report.transport.as_deref().is_none_or(is_label));
    for report in &mut reports {
        report.paths.truncate(REPORT_LEGS_MAX);
        report.paths.retain(|path| is_label(&path.transport));
    }
    let sealed = reports.iter_mut().filter_map(|report| report.grant.take()).collect();
    loop {
        let rights = app.hub.rights();
        let shown = match judge_all(app, Vec::clone(&sealed)).await {
            Ok(shown) => shown,
            Err(fault) => return tracing::error!(%fault, "reports could not be judged"),
        };
        let verdict_on = |session: &SessionId| {
            let of_session = |shown: &&Shown| shown.grant.session == *session;
            shown.iter().find(of_session)
        };
        let mut believed = Vec::with_capacity(reports.len());
        let mut condemned = Vec::new();
        for report in &reports {
            let report = report.clone();
            match verdict_on(&report.session) {
                Some(Shown { grant, verdict: Ok(()) }) => {
                    believed.push(Reported { report, grant: Some(grant.clone()) });
                }
                Some(Shown { grant, verdict: Err(code) }) => {
                    condemned.push((grant.session.clone(), *code));
                }
                None => believed.push(Reported { report, grant: None }),
            }
        }
        if app.hub.apply_if(rights, Input::Reports { link, reports: believed }) {
            for (session, code) in condemned {
                app.hub.end_at(end(session, code));
            }
            return;
        }
    }
}
