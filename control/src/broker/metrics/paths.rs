//! Metrics of sessions' transports: which carries how many, how they moved, how long applications waited.
use super::text::{Page, WAIT_BOUNDS};
use crate::broker::app::App;
use crate::broker::moves::KINDS;
use crate::wire::LossCounts;

pub(super) fn write(page: &mut Page, app: &App) {
    let sessions = app.hub.sessions(None);
    page.family(
        "switchback_sessions_by_transport",
        "gauge",
        "Sessions now, by the transport that carries them.",
    );
    for label in KINDS.map(|kind| kind.label()) {
        let carried = sessions.iter().filter(|(it, _)| it.transport.as_deref() == Some(label));
        page.sample(&[("transport", label)], carried.count());
    }
    let sums = app.counters.moves.sums();
    page.family(
        "switchback_session_moves_total",
        "counter",
        "Moves of sessions to another transport, by that transport and the cause.",
    );
    for ((label, cause), count) in &sums.moves {
        page.sample(&[("transport", label), ("cause", cause)], count);
    }
    page.family(
        "switchback_session_stall_seconds",
        "histogram",
        "How long applications waited for bytes that a path held up, by the transport that ended it.",
    );
    for (label, stalls) in &sums.stalls {
        page.histogram_within(&[("transport", label)], stalls, WAIT_BOUNDS);
    }
    page.family(
        "switchback_session_time_to_direct_seconds",
        "histogram",
        "From a session's start to its first move to a direct UDP path.",
    );
    page.histogram_within(&[], &sums.time_to_direct, WAIT_BOUNDS);
    losses(page, app);
}

/// What ends report of a figure, as a metric.
type Loss = (&'static str, &'static str, fn(&LossCounts) -> f64);

const LOSSES: [Loss; 6] = [
    (
        "switchback_session_dup_sent_total",
        "Second copies of frames that ends of sessions sent.",
        |counts| counts.dup_sent as f64,
    ),
    ("switchback_session_dup_bytes_total", "Payload bytes of those copies.", |counts| {
        counts.dup_bytes as f64
    }),
    ("switchback_session_dup_won_total", "Copies that came before their originals.", |counts| {
        counts.dup_won as f64
    }),
    (
        "switchback_session_saved_seconds_total",
        "Estimate of the waiting that those copies saved.",
        |counts| counts.ms_saved as f64 / 1e3,
    ),
    (
        "switchback_session_mtu_black_holes_total",
        "Times QUIC found packets of full size vanishing on a path that carries small ones.",
        |counts| counts.black_holes as f64,
    ),
    (
        "switchback_session_datagrams_dropped_total",
        "Datagrams of UDP services that ends dropped, as they would have been late or too many.",
        |counts| counts.datagrams_dropped as f64,
    ),
];

fn losses(page: &mut Page, app: &App) {
    let [client, agent] = app.counters.losses.sums();
    for (name, help, figure) in LOSSES {
        page.family(name, "counter", help)
            .sample(&[("end", "client")], figure(&client))
            .sample(&[("end", "agent")], figure(&agent));
    }
}
