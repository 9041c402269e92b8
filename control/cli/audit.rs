//! `audit`: what was decided, for whom and why.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use switchback_control::Fault;
use switchback_control::api::AuditRecord;

use crate::account;
use crate::args::Global;
use crate::output;
use crate::output::human;
use crate::output::table::{Column, Table};

/// Show what was decided, for whom and why.
///
/// Every session that was granted or refused, ended by policy or by someone, watched, paused or sent a message; every change by
/// an administrator and every reload of the policies; every agent and gateway that enrolled, has a new key or was revoked. The
/// data directory has the same as JSON lines (audit.jsonl). For administrators.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback audit
  switchback audit --since 1h --user ada
  switchback audit --json | jq 'select(.allowed | not)'")]
pub(crate) struct AuditArgs {
    /// Not older than this
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    since: Duration,
    /// Of this user only
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The latest so many, at most 10000
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
}

/// Runs `audit`.
pub(crate) async fn run(args: AuditArgs, global: &Global) -> Result<(), Fault> {
    let api = account::api(global)?;
    let since = SystemTime::now().checked_sub(args.since).unwrap_or(UNIX_EPOCH);
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let since = u64::try_from(since).unwrap_or(u64::MAX);
    let records = api.audit(since, args.user.as_deref(), args.limit).await?;
    if global.json {
        // A line each, as in the file.
        return records.iter().try_for_each(output::json);
    }
    let heads = ["TIME", "USER", "ACTION", "RESOURCE", "OUTCOME", "POLICIES", "SOURCE", "ID"];
    let mut table = Table::new(&heads.map(Column::Text));
    for record in records {
        table.row(row(record));
    }
    table.print("nothing was decided in that time")
}

fn row(record: AuditRecord) -> [String; 8] {
    let at = UNIX_EPOCH + Duration::from_millis(record.at_ms);
    let or_unknown = |text: String| if text.is_empty() { human::UNKNOWN.to_owned() } else { text };
    let outcome = match (record.allowed, record.code) {
        (true, _) => ["allowed".to_owned()]
            .into_iter()
            .chain(record.obligations)
            .collect::<Vec<_>>()
            .join(" "),
        (false, Some(code)) => code.to_string(),
        (false, None) => "denied".to_owned(),
    };
    [
        humantime::format_rfc3339_seconds(at).to_string(),
        or_unknown(record.user),
        record.action,
        or_unknown(record.resource),
        outcome,
        or_unknown(record.policies.join(", ")),
        or_unknown(record.source.unwrap_or_default()),
        record.correlation,
    ]
}
