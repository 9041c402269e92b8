//! `/metrics`: everything that is counted, for Prometheus.

mod paths;
mod policy;
mod text;

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use switchback_engine::{LegSide, Metrics};

use self::text::Page;
use crate::api::SessionState;
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::counters::PerCode;
use crate::broker::http::Admin;

/// The page's media type, with the version of the format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What Prometheus scrapes.
#[utoipa::path(get, path = "/metrics", tag = "operations", security(("bearer" = ["admin"])), responses(
    (status = 200, description = "Prometheus text, version 0.0.4.", body = String, content_type = "text/plain")))]
pub(in crate::broker) async fn page(State(app): State<Arc<App>>, _: Admin) -> Response {
    let mut page = Page::default();
    process(&mut page, &app);
    refusals(&mut page, &app);
    sessions(&mut page, &app);
    paths::write(&mut page, &app);
    policy::write(&mut page, &app);
    if let Some(metrics) = app.hub.data_plane.metrics() {
        gateway(&mut page, &metrics);
        workers(&mut page, &metrics);
        round_trips(&mut page, &metrics);
    }
    stun(&mut page, &app);
    ([(CONTENT_TYPE, TEXT_FORMAT)], page.finish()).into_response()
}

fn process(page: &mut Page, app: &App) {
    let (io, reason) = app.hub.data_plane.backend();
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("io", io), ("io_reason", &*reason)];
    page.family(
        "switchback_build_info",
        "gauge",
        "Version, readiness source and why it was chosen.",
    )
    .sample(&labels, 1);
    let uptime = app.started.elapsed().as_secs_f64();
    page.single("switchback_uptime_seconds", "gauge", "Since the broker started.", uptime);
    page.single(
        "switchback_wall_clock_set_by_seconds",
        "gauge",
        "How far the wall clock was set since the start; tickets do not follow it.",
        clock::wall_clock_set_by(),
    );
    let about = "Times that the certificate files changed, by what became of it.";
    page.family("switchback_certificate_reloads_total", "counter", about)
        .sample(&[("result", "used")], app.counters.certificates_reloaded.get())
        .sample(&[("result", "refused")], app.counters.certificates_refused.get());
}

/// Codes never seen are left out; a code's series starts at its first occurrence.
fn by_code(page: &mut Page, name: &str, help: &str, counts: &PerCode) {
    page.family(name, "counter", help);
    for (code, count) in counts.iter().filter(|(_, count)| *count > 0) {
        page.sample(&[("code", code.as_str())], count);
    }
}

fn refusals(page: &mut Page, app: &App) {
    let counters = &app.counters;
    by_code(
        page,
        "switchback_faults_total",
        "Refusals by the broker, by symbolic code.",
        &counters.faults,
    );
    by_code(
        page,
        "switchback_api_responses_total",
        "API answers by symbolic code; OK is none.",
        &counters.api_errors,
    );
    page.sample(&[("code", "OK")], counters.api_ok.get());
    let singles = [
        (
            "switchback_https_refused_total",
            "HTTPS connections refused because there were too many.",
            counters.connections_refused.get(),
        ),
        (
            "switchback_https_source_refused_total",
            "HTTPS connections refused because their source had too many.",
            counters.source_refused.get(),
        ),
        (
            "switchback_tls_handshakes_failed_total",
            "TLS handshakes with the broker that failed or took too long.",
            counters.handshakes_failed.get(),
        ),
        (
            "switchback_links_overrun_total",
            "Links closed because the peer did not drain them.",
            counters.links_overrun.get(),
        ),
        (
            "switchback_events_left_out_total",
            "Moves of sessions that are counted but are no events, as their sessions moved too often.",
            counters.events_left_out.get(),
        ),
        (
            "switchback_replay_cache_full_total",
            "Legs refused because too many tickets were in use at once.",
            app.admission.overflow(),
        ),
    ];
    for (name, help, value) in singles {
        page.single(name, "counter", help, value);
    }
}

fn sessions(page: &mut Page, app: &App) {
    let sessions = app.hub.sessions(None);
    page.family("switchback_sessions", "gauge", "Sessions now, by state.");
    for state in SessionState::ALL {
        let count = sessions.iter().filter(|(session, _)| session.state == state).count();
        page.sample(&[("state", state.as_str())], count);
    }
    let granted = app.counters.sessions_granted.get();
    page.single("switchback_sessions_granted_total", "counter", "Sessions granted.", granted);
    by_code(
        page,
        "switchback_sessions_ended_total",
        "Sessions that ended, by symbolic code.",
        &app.counters.sessions_over,
    );
    let connected = app.hub.connected();
    page.family("switchback_links", "gauge", "Links to the broker now, by kind.")
        .sample(&[("kind", "agent")], connected.agents)
        .sample(&[("kind", "client")], connected.clients);
    let gateways = app.hub.gateways();
    page.family("switchback_gateway_up", "gauge", "Gateways by name: 1 if it takes sessions.");
    for it in &gateways {
        page.sample(&[("gateway", &*it.name)], u8::from(it.link && !it.draining));
    }
    page.family(
        "switchback_gateway_pairs_known",
        "gauge",
        "Pairs at each gateway, met or about to, as the broker knows them.",
    );
    for it in &gateways {
        page.sample(&[("gateway", &*it.name)], it.pairs);
    }
    let warm = connected.warm_legs;
    page.single("switchback_warm_legs", "gauge", "Agents' legs waiting to be used.", warm);
}

fn gateway(page: &mut Page, metrics: &Metrics) {
    page.family(
        "switchback_gateway_refusals_total",
        "counter",
        "Connections turned away, by code.",
    );
    for (refusal, count) in &metrics.refused {
        page.sample(&[("code", refusal.as_str())], count);
    }
    let counters = [
        ("accepted_total", "Connections accepted.", metrics.accepted),
        ("accept_errors_total", "Failed accepts.", metrics.accept_errors),
        ("https_total", "Connections handed to the broker's HTTPS.", metrics.foreign),
        ("pairs_started_total", "Pairs started.", metrics.pairs_started),
        ("spliced_bytes_total", "Bytes that went through a pipe.", metrics.spliced),
        ("copied_bytes_total", "Bytes that were copied.", metrics.copied),
        ("busy_polls_total", "Times a worker spun before sleeping.", metrics.busy_polls),
        ("samples_total", "Readings of a leg's TCP_INFO.", metrics.samples),
    ];
    for (name, help, value) in counters {
        page.single(&format!("switchback_gateway_{name}"), "counter", help, value);
    }
    page.single(
        "switchback_gateway_busy_poll_seconds_total",
        "counter",
        "Time workers spun before sleeping.",
        metrics.busy_poll_time.as_secs_f64(),
    );
    page.single(
        "switchback_gateway_sampling_seconds_total",
        "counter",
        "CPU time of the relay workers spent on samples.",
        metrics.sampling_time.as_secs_f64(),
    );
    let gauges = [
        ("hellos", "Unfinished hellos now.", metrics.hellos_in_flight),
        ("legs_waiting", "Legs waiting for a mate now.", metrics.legs_waiting),
        ("pairs", "Pairs relayed now.", metrics.pairs_active),
        ("pipes_in_use", "Pipes that flows hold now.", metrics.pipes_in_use),
        ("pipes_pooled", "Pipes kept for reuse now.", metrics.pipes_pooled),
    ];
    for (name, help, value) in gauges {
        page.single(&format!("switchback_gateway_{name}"), "gauge", help, value);
    }
    page.family(
        "switchback_gateway_pairs_ended_total",
        "counter",
        "Pairs ended, by cause and phase.",
    );
    for (cause, phase, count) in &metrics.pairs_ended {
        page.sample(&[("cause", cause.as_str()), ("phase", phase.as_str())], count);
    }
    page.family("switchback_gateway_bytes_total", "counter", "Bytes delivered, by direction.")
        .sample(&[("direction", "client_to_agent")], metrics.client_to_agent)
        .sample(&[("direction", "agent_to_client")], metrics.agent_to_client);
}

/// A worker that does not measure how busy it is, or has failed, has no such sample.
fn workers(page: &mut Page, metrics: &Metrics) {
    let workers: Vec<_> =
        metrics.workers.iter().enumerate().map(|(index, load)| (index.to_string(), load)).collect();
    page.family(
        "switchback_gateway_worker_busy",
        "gauge",
        "Share of the last 100 ms that a relay worker worked, 0 to 1; none if there is one worker.",
    );
    for (worker, load) in &workers {
        if let Some(busy) = load.busy {
            page.sample(&[("worker", worker)], busy);
        }
    }
    page.family("switchback_gateway_worker_pairs", "gauge", "Pairs now, by relay worker.");
    for (worker, load) in &workers {
        page.sample(&[("worker", worker)], load.pairs);
    }
}

fn round_trips(page: &mut Page, metrics: &Metrics) {
    page.family(
        "switchback_gateway_rtt_seconds",
        "histogram",
        "Smoothed round-trip times of legs (TCP_INFO), one sample a second and leg that moved bytes.",
    );
    for (side, histogram) in
        [(LegSide::Client, &metrics.client_rtt_us), (LegSide::Agent, &metrics.agent_rtt_us)]
    {
        page.histogram_us(&[("side", side.as_str())], histogram);
    }
}

fn stun(page: &mut Page, app: &App) {
    let Some(udp) = app.hub.data_plane.stun() else { return };
    page.family("switchback_stun_answers_total", "counter", "STUN binding requests answered.")
        .sample(&[], udp.bindings_answered);
    page.family("switchback_relay_allocations", "gauge", "TURN allocations.")
        .sample(&[], udp.allocations);
    page.family("switchback_relay_allocations_total", "counter", "TURN allocations made.")
        .sample(&[], udp.allocations_total);
    let about = "TURN allocations ended because their session was over.";
    page.family("switchback_relay_allocations_revoked_total", "counter", about)
        .sample(&[], udp.allocations_revoked);
    page.family("switchback_relay_packets_total", "counter", "Datagrams relayed by TURN.")
        .sample(&[("to", "peer")], udp.to_peers.packets)
        .sample(&[("to", "client")], udp.to_clients.packets);
    page.family("switchback_relay_bytes_total", "counter", "Bytes relayed by TURN.")
        .sample(&[("to", "peer")], udp.to_peers.bytes)
        .sample(&[("to", "client")], udp.to_clients.bytes);
    let about = "STUN and TURN requests answered with an error.";
    page.family("switchback_udp_refusals_total", "counter", about);
    for (reason, count) in &udp.refusals {
        page.sample(&[("reason", reason.as_str())], *count);
    }
    let about = "Datagrams to the STUN and TURN port dropped without an answer.";
    page.family("switchback_udp_drops_total", "counter", about);
    for (reason, count) in &udp.drops {
        page.sample(&[("reason", reason.as_str())], *count);
    }
}
