//! `events`: what happened, and what happens.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use switchback_control::api::EventView;
use switchback_control::api::client::{ApiClient, EventStream, Told};
use switchback_control::{Code, Fault};
use tokio::time::sleep;

use crate::account;
use crate::args::Global;
use crate::output;

/// Pause before a broker that is gone is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What happened, or happens: sessions, links, rights.
///
/// Users see what concerns them, administrators everything. The broker remembers the last 4,096 events since its start; who
/// falls behind further is told so. With --follow it goes on, over restarts of the broker too, until Ctrl-C; with --json each
/// event is a line.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback events --since 10m
  switchback events --follow
  switchback events --follow --json | jq 'select(.kind == \"session_moved\")'")]
pub(crate) struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// Begin this long ago; with --follow: also show what happened since then
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
}

/// Runs `events`.
pub(crate) async fn run(args: EventsArgs, global: &Global) -> Result<(), Fault> {
    let api = account::api(global)?;
    let mut after = None;
    if !args.follow || args.since.is_some() {
        after = Some(show_past(&api, args.since, global.json).await?);
    }
    if args.follow { follow(&api, after, global.json).await } else { Ok(()) }
}

/// Shows what the broker remembers; answers what comes next.
async fn show_past(api: &ApiClient, since: Option<Duration>, json: bool) -> Result<u64, Fault> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begin = now.saturating_sub(since.unwrap_or(Duration::MAX)).as_millis();
    let mut after = 0;
    loop {
        let page = api.events(after).await?;
        for event in page.events.iter().filter(|event| u128::from(event.at_ms) >= begin) {
            show(event, json)?;
        }
        after = page.next;
        if page.events.is_empty() {
            return Ok(after);
        }
    }
}

async fn follow(api: &ApiClient, mut after: Option<u64>, json: bool) -> Result<(), Fault> {
    // Not reachable at first: that is for its user to mend. A broker that has shown its past was there, and comes back.
    let mut stream =
        if after.is_some() { reconnect(api, after).await? } else { api.follow(after).await? };
    loop {
        match stream.next().await {
            Ok(Some(Told::Event(event))) => {
                show(&event, json)?;
                after = Some(event.id);
                continue;
            }
            Ok(Some(Told::Lost)) => {
                let line =
                    if json { r#"{"kind":"lost"}"# } else { "... some events were missed ..." };
                output::line(line)?;
                continue;
            }
            Ok(None) => {}
            Err(fault) => tracing::info!(%fault, "the stream of events broke"),
        }
        sleep(RETRY_AFTER).await;
        stream = reconnect(api, after).await?;
    }
}

async fn reconnect(api: &ApiClient, after: Option<u64>) -> Result<EventStream, Fault> {
    loop {
        match api.follow(after).await {
            Err(fault) if fault.code == Code::BrokerUnreachable => sleep(RETRY_AFTER).await,
            answer => return answer,
        }
    }
}

fn show(event: &EventView, json: bool) -> Result<(), Fault> {
    if json { output::json(event) } else { output::line(&in_words(event)) }
}

/// One line for people.
pub(crate) fn in_words(event: &EventView) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(event.at_ms);
    let mut words = vec![
        humantime::format_rfc3339_seconds(at).to_string(),
        format!("{:<20}", event.kind.as_str()),
    ];
    let session = event.session.as_ref().map(|session| &session.0);
    let fields = [session, event.user.as_ref(), event.resource.as_ref(), event.agent.as_ref()];
    words.extend(fields.into_iter().flatten().cloned());
    words.extend(event.transport.clone());
    words.extend(event.code.map(|code| code.to_string()));
    words.extend(event.detail.as_ref().map(|detail| format!("({detail})")));
    // Names come from other machines: what could move a cursor must not reach the terminal.
    words.join("  ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_that_cannot_move_the_cursor() {
        let event: EventView = serde_json::from_str(
            r#"{"id":7,"at_ms":1800000000000,"kind":"session_ended","user":"ada","session":"k3m9",
                "resource":"ssh","agent":"lab\u001b[2J","code":"SESSION_KILLED","detail":"x"}"#,
        )
        .unwrap();
        let line = in_words(&event);
        assert_eq!(
            line,
            "2027-01-15T08:00:00Z  session_ended         k3m9  ada  ssh  lab\u{fffd}[2J  SESSION_KILLED  (x)"
        );
    }
}
