//! What ends show and tell about their sessions: grants are opened and judged before anyone believes them.
use std::net::IpAddr;
use std::sync::Arc;

use crate::broker::app::App;
use crate::broker::limits::is_label;
use crate::broker::orchestrator::{Input, LinkId, Output, Reported};
use crate::broker::policy::Judged;
use crate::code::{Code, Fault};
use crate::wire::{REPORT_LEGS_MAX, SealedGrant, SessionId, SessionReport};

/// Opens and judges grants; `source`: where the client that shows them is. Those that this broker did not seal are counted and left out.
pub(super) async fn judge_all(
    app: &Arc<App>,
    sealed: Vec<SealedGrant>,
    source: Option<IpAddr>,
) -> Result<Vec<Judged>, Fault> {
    let mut grants = Vec::with_capacity(sealed.len());
    for sealed in &sealed {
        match app.hub.open_grant(sealed) {
            Some(grant) => {
                let known = source.or_else(|| app.hub.whereabouts(&grant.session));
                grants.push((grant, known));
            }
            None => app.counters.faults.add(Code::GrantInvalid),
        }
    }
    if grants.is_empty() {
        return Ok(Vec::new());
    }
    app.judge_grants(grants).await
}

/// Takes in a report message; `end` tells its sender about sessions that may not go on.
pub(super) async fn take_in(
    app: &Arc<App>,
    link: LinkId,
    source: Option<IpAddr>,
    mut reports: Vec<SessionReport>,
    end: impl Fn(SessionId, Code) -> Output + Send,
) {
    reports.retain(|report| report.transport.as_deref().is_none_or(is_label));
    for report in &mut reports {
        report.held.take_if(|by| !is_label(by));
        report.paths.truncate(REPORT_LEGS_MAX);
        report.paths.retain(|path| is_label(&path.transport));
    }
    let sealed = reports.iter_mut().filter_map(|report| report.grant.take()).collect();
    loop {
        let rights = app.hub.rights();
        let shown = match judge_all(app, Vec::clone(&sealed), source).await {
            Ok(shown) => shown,
            Err(fault) => return tracing::error!(%fault, "reports could not be judged"),
        };
        let verdict_on = |session: &SessionId| {
            let of_session = |shown: &&Judged| shown.grant.session == *session;
            shown.iter().find(of_session)
        };
        let mut believed = Vec::with_capacity(reports.len());
        let mut condemned = Vec::new();
        for report in &reports {
            let report = report.clone();
            match verdict_on(&report.session) {
                Some(Judged { grant, verdict: Ok(()), .. }) => {
                    believed.push(Reported { report, grant: Some(grant.clone()) });
                }
                Some(Judged { grant, decision, verdict: Err(code) }) => {
                    condemned.push((grant, decision, *code));
                }
                None => believed.push(Reported { report, grant: None }),
            }
        }
        if app.hub.apply_if(rights, Input::Reports { link, reports: believed }) {
            for (grant, decision, code) in condemned {
                app.hub.end_at(end(grant.session.clone(), code));
                app.condemn(link, grant, decision, code);
            }
            return;
        }
    }
}
