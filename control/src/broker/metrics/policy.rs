//! Policies and the audit trail in numbers.
use super::text::Page;
use crate::broker::app::App;

pub(super) fn write(page: &mut Page, app: &App) {
    let status = app.judge.status(false);
    let sound = u8::from(status.wrong.is_empty());
    for (name, kind, help, value) in [
        ("switchback_policies", "gauge", "Policies that hold.", status.policies as u64),
        (
            "switchback_policy_files_sound",
            "gauge",
            "0 while the policy files are wrong and the last good ones hold.",
            sound.into(),
        ),
        (
            "switchback_policy_reloads_total",
            "counter",
            "Times policies were read anew.",
            status.reloads,
        ),
        (
            "switchback_policy_reload_failures_total",
            "counter",
            "Times policies were wrong and not taken.",
            status.failures,
        ),
    ] {
        page.single(name, kind, help, value);
    }
    let (counts, waiting) = (app.audit.counts(), app.audit.waiting());
    page.single("switchback_audit_waiting", "gauge", "Records to be written.", waiting);
    for (name, help, counter) in [
        ("switchback_audit_records_total", "Records written.", &counts.written),
        (
            "switchback_audit_refused_total",
            "Decisions refused because they could not be recorded.",
            &counts.refused,
        ),
        ("switchback_audit_lost_total", "Ends of rights that were not recorded.", &counts.lost),
        (
            "switchback_audit_refusals_unrecorded_total",
            "Refusals beyond one a second of one user, which are counted only.",
            &counts.refusals_unrecorded,
        ),
        (
            "switchback_audit_file_failures_total",
            "Failed writes to the audit file.",
            &counts.file_failures,
        ),
        (
            "switchback_audit_database_failures_total",
            "Failed writes to the audit table.",
            &counts.database_failures,
        ),
    ] {
        page.single(name, "counter", help, counter.get());
    }
}
