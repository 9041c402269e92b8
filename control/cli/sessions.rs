//! `sessions`, `session`, `kill`: what is going on, and the way to end it.
use clap::Args;
use switchback_control::Fault;
use switchback_control::api::{GatewayView, LegView, SendingView, SessionView, SlowPart};
use switchback_control::wire::{LossCounts, PathLeg, RttView, SessionId};

use crate::account;
use crate::args::Global;
use crate::output::table::{Column, Table};
use crate::output::{self, human};

/// List sessions with transport and round-trip times.
///
/// Administrators see all sessions, others their own. RTT is end to end, from client to agent and back. JITTER is the round
/// trip's mean deviation, LOSS what the UDP path in use loses. UP and DOWN are application bytes a second, from and to the
/// client. GATEWAY is the one that the session's last leg went through, shown where there are several. STATE is connecting, active, idle (no byte for a minute), paused (no path, or by somebody), shadowed (somebody
/// watches) or closing. --wide adds agent, sums, who watches, who paused it, lost sessions that it goes on from, and
/// CLIENT-LEG and AGENT-LEG: the two parts of the round trip as the gateway measures them, with a `!` at the one that holds
/// the session back (`switchback session ID` says why).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback sessions
  switchback sessions --wide
  watch -n1 switchback sessions
  switchback sessions --json | jq '.[] | {id, rtt: .rtt.end_to_end.smoothed_us}'")]
pub(crate) struct SessionsArgs {
    /// Show all columns, however wide that becomes
    #[arg(long)]
    wide: bool,
}

/// Show every figure of one session, and who is slow.
///
/// PATH lists every transport that is ready, the one that carries first told. LOSS is what each end does about it: second
/// copies of small writes while a path is lossy or little known, how many came before their originals, and an estimate of
/// the waiting that they saved.
/// For each leg and end to end: smoothed, smallest, median and 99th percentile of the round-trip time. For each leg what
/// the gateway's kernel (TCP_INFO) says about sending towards that end: what was lost, how fast it goes, and what it waits
/// for. Shares and "delivered" refer to the last second before the sample; "of it" is the part of the busy time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  switchback session k3m9x2q7w4ht\n  \
        switchback session k3m9x2q7w4ht --json | jq .slow\n  watch -n1 switchback session k3m9x2q7w4ht")]
pub(crate) struct SessionArgs {
    /// Session id, from `switchback sessions`
    id: String,
}

/// End a session.
///
/// Its connections are closed at both ends at once. Administrators may end every session, others their own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  switchback kill k3m9x2q7w4ht\n  \
    switchback sessions --json | jq -r '.[].id' | xargs -n1 switchback kill")]
pub(crate) struct KillArgs {
    /// Session id, from `switchback sessions`
    id: String,
}

/// Runs `sessions`.
pub(crate) async fn list(args: &SessionsArgs, global: &Global) -> Result<(), Fault> {
    let api = account::api(global)?;
    let sessions = api.sessions().await?;
    if global.json {
        return output::json(&sessions);
    }
    table_of(sessions, &api.gateways().await?, args.wide).print("no sessions")
}

fn table_of(sessions: Vec<SessionView>, gateways: &[GatewayView], wide: bool) -> Table {
    let is_shown = |column: &&Shown| match column.place {
        Place::Always => true,
        Place::Wide => wide,
        Place::AmongGateways => gateways.len() > 1,
    };
    let columns: Vec<_> = COLUMNS.iter().filter(is_shown).collect();
    let mut table = Table::new(&columns.iter().map(|column| (column.head)()).collect::<Vec<_>>());
    for mut session in sessions {
        // The broker's own is told by its address.
        if let Some(gateway) = gateways.iter().find(|it| it.address == session.gateway) {
            session.gateway.clone_from(&gateway.name);
        }
        table.row(columns.iter().map(|column| (column.cell)(&session)));
    }
    table
}

/// Runs `session`.
pub(crate) async fn show(args: SessionArgs, global: &Global) -> Result<(), Fault> {
    let session = account::api(global)?.session(&SessionId(args.id)).await?;
    if global.json {
        return output::json(&session);
    }
    let mut facts = Table::new(&[Column::Text("SESSION"), Column::Text("")]);
    for (name, value) in facts_of(&session) {
        facts.row([name.to_owned(), value]);
    }
    facts.print("")?;
    output::line("")?;
    rtt_table(&session).print("")?;
    output::line("")?;
    paths_table(&session).print("no leg is attached")?;
    output::line("")?;
    legs_table(&session).print("")?;
    output::line("")?;
    loss_table(&session).print("")
}

/// Runs `kill`.
pub(crate) async fn kill(args: KillArgs, global: &Global) -> Result<(), Fault> {
    let id = SessionId(args.id);
    account::api(global)?.kill(&id).await?;
    if global.json {
        return output::json(&serde_json::json!({ "killed": id }));
    }
    output::line(&format!("ended session {id}"))
}

/// A column of the list.
struct Shown {
    head: fn() -> Column,
    place: Place,
    cell: fn(&SessionView) -> String,
}

/// Where a column is shown.
enum Place {
    Always,
    /// Only where there is room for all.
    Wide,
    /// Only where sessions may go through one or another.
    AmongGateways,
}

const fn text(head: fn() -> Column, cell: fn(&SessionView) -> String) -> Shown {
    Shown { head, place: Place::Always, cell }
}

const fn wide(head: fn() -> Column, cell: fn(&SessionView) -> String) -> Shown {
    Shown { head, place: Place::Wide, cell }
}

/// Those that are always shown fit 120 characters with names of usual length.
const COLUMNS: &[Shown] = &[
    text(|| Column::Text("ID"), |it| it.id.0.clone()),
    text(|| Column::Text("USER"), |it| it.user.clone()),
    text(|| Column::Text("RESOURCE"), |it| it.resource.clone()),
    wide(|| Column::Text("AGENT"), |it| it.agent.clone()),
    Shown {
        head: || Column::Text("GATEWAY"),
        place: Place::AmongGateways,
        cell: |it| it.gateway.clone(),
    },
    text(|| Column::Text("STATE"), |it| it.state.as_str().into()),
    text(
        || Column::Text("TRANSPORT"),
        |it| it.transport.clone().unwrap_or_else(|| human::UNKNOWN.into()),
    ),
    text(|| Column::Figure("RTT"), |it| human::rtt(it.rtt.end_to_end)),
    text(|| Column::Figure("JITTER"), jitter),
    text(|| Column::Figure("LOSS"), loss),
    wide(
        || Column::Figure("CLIENT-LEG"),
        |it| {
            let slow = matches!(it.slow.who, SlowPart::ClientPath | SlowPart::ClientReceiver);
            marked(human::rtt(it.rtt.client_leg), slow)
        },
    ),
    wide(
        || Column::Figure("AGENT-LEG"),
        |it| {
            let slow = matches!(it.slow.who, SlowPart::AgentPath | SlowPart::AgentReceiver);
            marked(human::rtt(it.rtt.agent_leg), slow)
        },
    ),
    text(|| Column::Figure("UP"), |it| rate(it.life.rate_to_target)),
    text(|| Column::Figure("DOWN"), |it| rate(it.life.rate_to_client)),
    wide(|| Column::Figure("SENT"), |it| human::bytes(it.client_to_target)),
    wide(|| Column::Figure("RECEIVED"), |it| human::bytes(it.target_to_client)),
    wide(|| Column::Figure("CHANNELS"), |it| it.channels.to_string()),
    text(|| Column::Figure("AGE"), |it| human::age(it.age_ms)),
    wide(|| Column::Text("WATCHED-BY"), watched_by),
    wide(|| Column::Text("PAUSED-BY"), paused_by),
    wide(|| Column::Text("GOES-ON-FROM"), goes_on_from),
];

fn jitter(session: &SessionView) -> String {
    session.life.jitter_us.map_or_else(|| human::UNKNOWN.into(), |us| human::micros(us.into()))
}

fn loss(session: &SessionView) -> String {
    let percent = |ppm: u32| format!("{:.1} %", f64::from(ppm) / 10_000.0);
    session.life.loss_ppm.map_or_else(|| human::UNKNOWN.into(), percent)
}

fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", human::bytes(bytes_per_second))
}

fn watched_by(session: &SessionView) -> String {
    let watchers = session.life.watchers.iter();
    let names: Vec<_> = watchers
        .map(|it| if it.control { format!("{} (controls)", it.user) } else { it.user.clone() })
        .collect();
    if names.is_empty() { human::UNKNOWN.into() } else { names.join(", ") }
}

fn paused_by(session: &SessionView) -> String {
    session.life.paused_by.clone().unwrap_or_else(|| human::UNKNOWN.into())
}

/// The lost session before, and how many there were; of a watch, what it watches.
fn goes_on_from(session: &SessionView) -> String {
    let life = &session.life;
    match (&life.continues, &life.watches) {
        (_, Some(watched)) => format!("watches {watched}"),
        (Some(lost), None) if life.reconnects > 1 => format!("{lost} ({} lost)", life.reconnects),
        (Some(lost), None) => lost.to_string(),
        (None, None) => human::UNKNOWN.into(),
    }
}

/// The mark of the leg that holds a session back.
fn marked(figure: String, slow: bool) -> String {
    if slow { format!("!{figure}") } else { figure }
}

fn facts_of(session: &SessionView) -> [(&'static str, String); 19] {
    let transport = session.transport.clone().unwrap_or_else(|| human::UNKNOWN.into());
    [
        ("id", session.id.0.clone()),
        ("user", session.user.clone()),
        ("resource", session.resource.clone()),
        ("agent", session.agent.clone()),
        ("gateway", session.gateway.clone()),
        ("state", session.state.as_str().into()),
        ("transport", transport),
        ("client to target", human::bytes(session.client_to_target)),
        ("target to client", human::bytes(session.target_to_client)),
        ("channels", session.channels.to_string()),
        ("resumes", session.resumes.to_string()),
        (
            "rates",
            format!(
                "{} up, {} down",
                rate(session.life.rate_to_target),
                rate(session.life.rate_to_client)
            ),
        ),
        ("jitter, loss", format!("{}, {}", jitter(session), loss(session))),
        ("idle for", human::age(session.life.idle_ms)),
        ("watched by", watched_by(session)),
        ("paused by", paused_by(session)),
        ("goes on from", goes_on_from(session)),
        ("age", human::age(session.age_ms)),
        ("who is slow", format!("{}: {}", who_in_words(session.slow.who), session.slow.because)),
    ]
}

fn rtt_table(session: &SessionView) -> Table {
    let mut table = Table::new(&[
        Column::Text("ROUND TRIP"),
        Column::Figure("SMOOTHED"),
        Column::Figure("MIN"),
        Column::Figure("P50"),
        Column::Figure("P99"),
    ]);
    for (name, view) in [
        ("end to end", session.rtt.end_to_end),
        ("client leg", session.rtt.client_leg),
        ("agent leg", session.rtt.agent_leg),
    ] {
        let figure = |pick: fn(RttView) -> u32| {
            view.map_or_else(|| human::UNKNOWN.into(), |view| human::micros(pick(view).into()))
        };
        table.row([
            name.to_owned(),
            figure(|view| view.smoothed_us),
            figure(|view| view.min_us),
            figure(|view| view.p50_us),
            figure(|view| view.p99_us),
        ]);
    }
    table
}

/// Every leg that is attached, end to end.
fn paths_table(session: &SessionView) -> Table {
    let mut table = Table::new(&[Column::Text("PATH"), Column::Text(""), Column::Figure("RTT")]);
    for PathLeg { transport, carries, rtt_us } in session.paths.iter().cloned() {
        let role = if carries { "carries" } else { "stands by" };
        let rtt = rtt_us.map_or_else(|| human::UNKNOWN.into(), |us| human::micros(us.into()));
        table.row([transport, role.into(), rtt]);
    }
    table
}

/// Both legs side by side.
fn legs_table(session: &SessionView) -> Table {
    let mut table =
        Table::new(&[Column::Text("LEG"), Column::Figure("CLIENT"), Column::Figure("AGENT")]);
    let legs = [session.legs.client, session.legs.agent];
    for (name, figure) in LEG_FIGURES {
        let [client, agent] = legs
            .map(|leg| leg.and_then(|leg| figure(&leg)).unwrap_or_else(|| human::UNKNOWN.into()));
        table.row([(*name).to_owned(), client, agent]);
    }
    table
}

/// What each end counts about loss.
fn loss_table(session: &SessionView) -> Table {
    let mut table =
        Table::new(&[Column::Text("LOSS"), Column::Figure("CLIENT"), Column::Figure("AGENT")]);
    let ends = [session.loss.client, session.loss.agent];
    for (name, figure) in LOSS_FIGURES {
        let [client, agent] = ends.map(|counts| figure(&counts));
        table.row([(*name).to_owned(), client, agent]);
    }
    table
}

/// A figure of an end as people read it.
type LossFigure = fn(&LossCounts) -> String;

const LOSS_FIGURES: &[(&str, LossFigure)] = &[
    ("second copies sent", |it| format!("{} ({})", it.dup_sent, human::bytes(it.dup_bytes))),
    ("of them, came first", |it| it.dup_won.to_string()),
    ("waiting saved, estimated", |it| human::micros(it.ms_saved.saturating_mul(1000))),
    ("MTU black holes", |it| it.black_holes.to_string()),
    ("datagrams dropped", |it| it.datagrams_dropped.to_string()),
];

/// A figure of a leg as people read it; `None` if the kernel does not tell.
type LegFigure = fn(&LegView) -> Option<String>;

const LEG_FIGURES: &[(&str, LegFigure)] = &[
    ("round trip deviation", |leg| Some(human::micros(leg.rttvar_us.into()))),
    ("sent again", |leg| Some(sent_again(leg))),
    ("sent again, recently", |leg| sending(leg, |it| human::percent(it.retransmitted_share))),
    ("received behind a gap", |leg| leg.out_of_order_share.map(human::percent)),
    ("delivered", |leg| sending(leg, |it| human::bit_rate(it.acked_bits_per_second))),
    ("delivery rate", |leg| sending(leg, delivery_rate)),
    ("congestion window", |leg| Some(segments(leg.cwnd_segments))),
    ("unacknowledged", |leg| Some(segments(leg.unacked_segments))),
    ("not sent yet", |leg| sending(leg, |it| human::bytes(it.notsent_bytes.into()))),
    ("busy", |leg| sending(leg, |it| human::percent(it.busy_share))),
    ("of it, receiver's window full", |leg| {
        sending(leg, |it| human::percent(it.rwnd_limited_share))
    }),
    ("of it, send buffer full", |leg| sending(leg, |it| human::percent(it.sndbuf_limited_share))),
    ("last acknowledgement before", |leg| Some(human::micros(leg.since_ack_ms * 1000))),
    ("sampled before", |leg| Some(human::micros(leg.age_ms * 1000))),
    ("over", |leg| Some(human::micros(leg.interval_ms * 1000))),
];

fn sending(leg: &LegView, figure: impl Fn(&SendingView) -> String) -> Option<String> {
    leg.sending.as_ref().map(figure)
}

fn sent_again(leg: &LegView) -> String {
    match leg.sending {
        Some(sending) => {
            format!("{} ({})", segments(leg.retransmits), human::bytes(sending.retransmitted_bytes))
        }
        None => segments(leg.retransmits),
    }
}

/// A rate that the path was not tried for is a lower bound.
fn delivery_rate(sending: &SendingView) -> String {
    let bound = if sending.app_limited { ">= " } else { "" };
    format!("{bound}{}", human::bit_rate(sending.delivery_bits_per_second))
}

fn segments(count: u32) -> String {
    format!("{count} {}", if count == 1 { "segment" } else { "segments" })
}

const fn who_in_words(who: SlowPart) -> &'static str {
    match who {
        SlowPart::Unmeasured => "not known yet",
        SlowPart::Idle => "nobody, it is idle",
        SlowPart::Sender => "neither leg",
        SlowPart::ClientPath => "network to the client",
        SlowPart::ClientReceiver => "client",
        SlowPart::AgentPath => "network to the agent",
        SlowPart::AgentReceiver => "agent",
        SlowPart::Gateway => "gateway",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg() -> LegView {
        LegView {
            rttvar_us: 340,
            retransmits: 1,
            unacked_segments: 2,
            cwnd_segments: 10,
            since_ack_ms: 20,
            sending: Some(SendingView {
                retransmitted_bytes: 1448,
                delivery_bits_per_second: 9_414_000,
                app_limited: true,
                rwnd_limited_share: 0.92,
                ..SendingView::default()
            }),
            out_of_order_share: None,
            interval_ms: 1000,
            age_ms: 300,
        }
    }

    #[test]
    fn the_gateway_of_each_session_is_shown_by_its_name_where_there_are_several() {
        let session = |id: &str, gateway: &str| {
            let text = format!(
                r#"{{"id":"{id}","user":"ada","resource":"ssh","agent":"lab","gateway":"{gateway}",
                    "state":"active","rtt":{{}},"client_to_target":0,"target_to_client":0,"age_ms":0,
                    "channels":0,"resumes":0}}"#
            );
            serde_json::from_str::<SessionView>(&text).unwrap()
        };
        let gateway = |name: &str, address: &str| {
            let text = format!(r#"{{"name":"{name}","address":"{address}","state":"up"}}"#);
            serde_json::from_str::<GatewayView>(&text).unwrap()
        };
        let sessions = || vec![session("a", "broker:443"), session("b", "eu-1")];
        let mut gateways = vec![gateway("local", "broker:443")];
        let text = table_of(sessions(), &gateways, true).render();
        assert!(!text.contains("GATEWAY") && !text.contains("eu-1"), "{text}");
        gateways.push(gateway("eu-1", "eu-1.example:443"));
        let text = table_of(sessions(), &gateways, false).render();
        let row = |id: &str| text.lines().find(|line| line.starts_with(id)).unwrap().to_owned();
        assert!(text.contains("GATEWAY"), "{text}");
        assert!(row("a ").contains("local") && row("b ").contains("eu-1"), "{text}");
    }

    fn shown(name: &str, leg: &LegView) -> Option<String> {
        LEG_FIGURES.iter().find(|(row, _)| *row == name).unwrap().1(leg)
    }

    #[test]
    fn figures_of_a_leg_carry_their_units() {
        let leg = leg();
        assert_eq!(shown("sent again", &leg).unwrap(), "1 segment (1.41 KiB)");
        assert_eq!(shown("delivery rate", &leg).unwrap(), ">= 9.41 Mbit/s");
        assert_eq!(shown("of it, receiver's window full", &leg).unwrap(), "92 %");
        assert_eq!(shown("sampled before", &leg).unwrap(), "300 ms");
    }

    #[test]
    fn second_copies_show_their_number_size_and_use() {
        let counts =
            LossCounts { dup_sent: 30, dup_bytes: 2048, ms_saved: 1_250, ..Default::default() };
        let shown: Vec<_> = LOSS_FIGURES.iter().map(|(_, figure)| figure(&counts)).collect();
        assert_eq!(shown, ["30 (2.00 KiB)", "0", "1250 ms", "0", "0"]);
    }

    #[test]
    fn what_an_older_kernel_does_not_tell_is_unknown_and_not_zero() {
        let leg = LegView { sending: None, ..leg() };
        assert_eq!(shown("busy", &leg), None);
        assert_eq!(shown("received behind a gap", &leg), None);
        assert_eq!(shown("sent again", &leg).unwrap(), "1 segment");
    }
}
