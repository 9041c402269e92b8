//! Hot reload: files are looked at once a second, and when everybody is asked to read theirs anew (SIGHUP).
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::files::{self, Look};
use super::{Rights, record};
use crate::api::{EventKind, EventView};
use crate::broker::app::App;
use crate::broker::events::about;
use crate::code::Code;
use crate::policy::{Decision, PolicyFile};

/// How often files and sessions that are due are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often all sessions are judged anew although nothing was changed: hours and the age of sign-ins change by themselves.
const JUDGE_EVERY: u32 = 60;

/// Runs until the broker stops.
pub(in crate::broker) async fn run(app: std::sync::Arc<App>) {
    let mut reload_asked = app.reload.subscribe();
    let mut clock = interval(LOOK_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = look(&app).await;
    let mut since_judged = 0;
    loop {
        let ordered = tokio::select! {
            () = app.stop.cancelled() => return,
            _ = clock.tick() => false,
            () = reload_asked.wait() => true,
        };
        let now = look(&app).await;
        let changed = now != seen;
        seen = now;
        if (changed || ordered) && app.judge.path().is_some() {
            reload(&app).await;
            since_judged = 0;
            continue;
        }
        since_judged += 1;
        if since_judged >= JUDGE_EVERY && !app.judge.is_built_in() {
            since_judged = 0;
            app.judge_all_anew().await;
            app.hub.feeds_changed();
        } else {
            app.judge_due().await;
        }
    }
}

async fn look(app: &App) -> Option<Look> {
    let path = app.judge.path()?.clone();
    tokio::task::spawn_blocking(move || files::look(&path)).await.ok()
}

async fn reload(app: &App) {
    let Some(path) = app.judge.path().cloned() else { return };
    let read = tokio::task::spawn_blocking(move || files::read(&path)).await;
    let read = read.unwrap_or_else(|error| Err(Code::Internal.because(error.to_string())));
    let same = read.as_ref().is_ok_and(|files: &Vec<PolicyFile>| app.judge.holds(files));
    if same {
        return;
    }
    let outcome = app.judge.replace(read);
    let decision = Decision { allowed: outcome.is_ok(), ..Decision::default() };
    let mut told = record("", "policy-reload", "policies", &decision, None);
    match &outcome {
        Ok(policies) => {
            tracing::info!(policies, "policies read anew");
            let detail = Some(format!("{policies} policies"));
            app.hub.bus.publish(EventView { detail, ..about(EventKind::PolicyReloaded) });
        }
        Err(wrong) => {
            let (code, detail) = (Some(Code::PolicyInvalid), Some(wrong.clone()));
            app.hub.bus.publish(EventView { code, detail, ..about(EventKind::PolicyRefused) });
            app.counters.faults.add(Code::PolicyInvalid);
            tracing::error!(wrong, "the policies are wrong; the last good ones hold");
            (told.code, told.detail) = (Some(Code::PolicyInvalid), Some(wrong.clone()));
        }
    }
    app.audit.tell(told);
    if outcome.is_ok() {
        // What was decided and not yet done is decided anew.
        app.hub.rights_changed();
        app.judge_all_anew().await;
    }
}

impl super::Judge {
    /// Whether these are what holds, and nothing is wrong.
    fn holds(&self, files: &[PolicyFile]) -> bool {
        let held = self.held();
        held.wrong.is_empty() && held.files == files
    }
}

impl Rights {
    /// Whether it is time to end the session.
    pub(in crate::broker) fn is_due(&self, now_ms: u64) -> bool {
        self.ends.is_some_and(|(at, _)| at <= now_ms)
    }
}
