//! The report as one self-contained page: conditions, goals, then plots and a table per scenario.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::grid::{number, wide};
use super::metric::Metric;
use super::plot::{Bar, Curve, bars, percentile_curves};
use super::{CompareReport, GoalResult, Outcome, PeerResult, ScenarioReport};

/// The whole page. It refers to nothing outside itself.
pub(crate) fn render(report: &CompareReport) -> String {
    page(
        "switchback-bench compare",
        &html! {
            (conditions(report))
            (warnings(report))
            (goals(report))
            nav { @for scenario in &report.scenarios { a href={ "#" (scenario.name) } { (scenario.name) } " " } }
            @for scenario in &report.scenarios { (section(report, scenario)) }
            (peers(report))
        },
    )
}

/// A whole page with this title and content, in the reports' style.
pub(crate) fn page(title: &str, content: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                (content)
            }
        }
    };
    page.into_string()
}

/// The style's class for a goal's outcome.
pub(crate) fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Met => "met",
        Outcome::Missed => "missed",
        Outcome::NotJudged => "not-judged",
    }
}

/// What a plot of bars shows, most telling first; a metric that a scenario lacks is left out.
const BAR_METRICS: [Metric; 8] = [
    Metric::Throughput,
    Metric::CpuPerGib,
    Metric::MessagesPerSecond,
    Metric::CpuPerMessage,
    Metric::SessionsPerSecond,
    Metric::SessionsPerCpuSecond,
    Metric::RssPerSession,
    Metric::IdleCpu,
];

const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;color:#262a33;background:#f6f7f9;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin:0}h3{font-size:1rem;margin:1.2rem 0 .2rem}
section,.card{background:#fff;border:1px solid #dfe3ea;border-radius:8px;padding:1rem 1.2rem;margin:1rem 0}
.claim{margin:.2rem 0 1rem;color:#5a6272}.scroll{overflow-x:auto}svg{max-width:100%;height:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{text-align:left;padding:.25rem .7rem;border-bottom:1px solid #e8ebf0;vertical-align:top;white-space:pre}
th{color:#5a6272;font-weight:600}.met{color:#0b7a3b}.missed{color:#b3261e}.not-judged{color:#8a6d00}
.warn{background:#fff8e1;border-color:#f0dca0}nav a{margin-right:.6rem}code{background:#eef0f4;padding:0 .3em;border-radius:3px}
dl{display:grid;grid-template-columns:max-content auto;gap:.1rem 1rem;margin:0}dt{color:#5a6272}dd{margin:0}
";

fn conditions(report: &CompareReport) -> Markup {
    let (host, settings) = (&report.host, &report.settings);
    html! {
        div.card { dl {
            dt { "command" } dd { code { "switchback-bench " (report.command) } }
            dt { "machine" } dd { (host.cpu) ", " (host.cpus) " CPUs, Linux " (host.kernel) ", load " (host.load_1min) " before the run" }
            dt { "network" } dd { (settings.network) "; congestion control: generator " (settings.congestion_generator) ", relays " (host.congestion_default) }
            dt { "rounds" } dd { (settings.rounds) " interleaved, " (settings.window_s) " s each after " (settings.warmup_s) " s of warm-up" }
            dt { "placement" } dd { "relay on " (on(settings.placement.relay_cpu)) ", generator on " (on(settings.placement.generator_cpu)) }
            dt { "noise %" } dd { "the worst round's steal / other / softirq / generator, in percent" }
            dt { "figures" } dd { "medians, with a line from the least to the greatest round; ratios are of medians; ~ marks a difference that the rank test does not establish" }
        } }
    }
}

fn on(cpu: Option<usize>) -> String {
    cpu.map_or("any CPU".to_owned(), |cpu| format!("CPU {cpu}"))
}

fn warnings(report: &CompareReport) -> Markup {
    html! {
        @if !report.warnings.is_empty() || !report.failures.is_empty() || !report.skipped.is_empty() {
            div.card.warn {
                @for warning in &report.warnings { p { (warning) } }
                @for skipped in &report.skipped { p { "skipped: " (skipped.peer) ": " (skipped.reason) " (" (skipped.remedy) ")" } }
                @for failure in &report.failures { p.missed { (failure.peer) " failed in " (failure.during) ": " (failure.reason) } }
            }
        }
    }
}

fn goals(report: &CompareReport) -> Markup {
    let rows = || report.scenarios.iter().flat_map(|s| s.goals.iter().map(move |goal| (s, goal)));
    html! {
        @if rows().next().is_some() {
            section {
                h2 { "Goals" }
                div.scroll { table {
                    tr { th { "scenario" } th { "peer" } th { "figure" } th { "wanted" } th { "measured" } th { "" } }
                    @for (scenario, goal) in rows() { (goal_row(scenario, goal)) }
                } }
            }
        }
    }
}

fn goal_row(scenario: &ScenarioReport, goal: &GoalResult) -> Markup {
    let word = match goal.outcome {
        Outcome::Met => "met",
        Outcome::Missed => "missed",
        Outcome::NotJudged => "not judged",
    };
    let sign = if goal.bound == super::Bound::AtMost { "≤" } else { "≥" };
    html! {
        tr {
            td { a href={ "#" (scenario.name) } { (scenario.name) } }
            td { (goal.peer) }
            td { (goal.metric.heading()) }
            td { (sign) " " (number(goal.wanted)) " " (goal.unit) @if let Some(to) = &goal.relative_to { " of " (to) } }
            td { @if let Some(measured) = goal.measured { (number(measured)) " " (goal.unit) } @else { "-" } }
            td class=(class(goal.outcome)) {
                (word)
                @if let Some(margin) = goal.margin_percent { " (" (format!("{margin:+.0} %")) ")" }
                @if let Some(reason) = &goal.reason { ": " (reason) }
            }
        }
    }
}

fn section(report: &CompareReport, scenario: &ScenarioReport) -> Markup {
    html! {
        section id=(scenario.name) {
            h2 { (scenario.title) }
            p.claim { (scenario.claim) }
            @for note in &scenario.notes { p { (note) } }
            (latency_plots(scenario))
            @for metric in BAR_METRICS { (bar_plot(report, scenario, metric)) }
            details { summary { "All figures" } div.scroll { (table(scenario)) } }
        }
    }
}

fn latency_plots(scenario: &ScenarioReport) -> Markup {
    let mut labels: Vec<&str> = Vec::new();
    for distribution in scenario.results.iter().flat_map(|result| &result.distributions) {
        if !labels.contains(&distribution.label.as_str()) {
            labels.push(&distribution.label);
        }
    }
    html! {
        @for label in labels {
            h3 { "Latency by percentile: " (label) }
            (drawn(percentile_curves(&curves(scenario, label))))
        }
    }
}

fn curves(scenario: &ScenarioReport, label: &str) -> Vec<Curve> {
    let curve = |result: &PeerResult| {
        let distribution = result.distributions.iter().find(|d| d.label == label)?;
        let points = distribution.points.iter().map(|point| (point.percentile, point.us)).collect();
        Some(Curve { label: result.peer.clone(), count: distribution.count, points })
    };
    scenario.results.iter().filter_map(curve).collect()
}

fn bar_plot(report: &CompareReport, scenario: &ScenarioReport, metric: Metric) -> Markup {
    let ours = |name: &str| report.peers.iter().any(|peer| peer.ours && peer.name == name);
    let bar = |result: &PeerResult| {
        let found = result.metrics.iter().find(|found| found.metric == metric)?;
        let summary = &found.summary;
        Some(Bar {
            label: result.peer.clone(),
            median: summary.median,
            min: summary.min,
            max: summary.max,
            value: format!("{} {}", number(summary.median), found.unit),
            ours: ours(&result.peer),
        })
    };
    let found: Vec<Bar> = scenario.results.iter().filter_map(bar).collect();
    html! {
        @if !found.is_empty() {
            h3 { (metric.heading()) ", " (metric.unit()) ", " (metric.better()) " is better" }
            (drawn(bars(&found)))
        }
    }
}

/// A plot, or why there is none.
pub(crate) fn drawn(svg: anyhow::Result<String>) -> Markup {
    match svg {
        Ok(svg) => PreEscaped(svg),
        Err(error) => html! { p { "no plot: " (format!("{error:#}")) } },
    }
}

fn table(scenario: &ScenarioReport) -> Markup {
    let (header, rows) = wide(scenario);
    html! {
        table {
            tr { @for heading in header { th { (heading) } } }
            @for row in rows { tr { @for cell in row { td { (cell) } } } }
        }
    }
}

fn peers(report: &CompareReport) -> Markup {
    html! {
        section {
            h2 { "Peers" }
            table { @for peer in &report.peers { tr { th { (peer.name) } td { (peer.version) } } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Workload;
    use crate::measure::host::Host;
    use crate::measure::placement::Placement;
    use crate::report::{
        COMPARE_SCHEMA, Distribution, MetricResult, Noise, PeerVersion, PercentilePoint, Settings,
    };
    use crate::stats::Summary;

    fn result(peer: &str) -> PeerResult {
        let point = |percentile, us| PercentilePoint { percentile, us };
        PeerResult {
            peer: peer.to_owned(),
            metrics: vec![MetricResult::new(
                Metric::Throughput,
                Summary::of(&[40.0, 50.0]).unwrap(),
                Vec::new(),
            )],
            distributions: vec![Distribution {
                label: "rtt".into(),
                count: 10,
                mean_us: 30.0,
                points: vec![point(0.0, 20.0), point(50.0, 30.0), point(100.0, 90.0)],
            }],
            noise: Noise::default(),
            threads: Vec::new(),
        }
    }

    fn report(claim: &str) -> CompareReport {
        let version =
            |name: &str, ours| PeerVersion { name: name.into(), version: "1".into(), ours };
        CompareReport {
            schema: COMPARE_SCHEMA,
            bench_version: "0",
            command: "compare".into(),
            host: Host::read(),
            settings: Settings {
                rounds: 2,
                window_s: 1.0,
                warmup_s: 0.3,
                network: "loopback",
                congestion_generator: "reno",
                placement: Placement::default(),
            },
            peers: vec![version("direct", false), version("switchback-uring", true)],
            skipped: Vec::new(),
            scenarios: vec![ScenarioReport {
                name: "mixed".into(),
                title: "Mixed".into(),
                claim: claim.into(),
                workload: Workload::Bulk { flows: 8, both_ways: false },
                notes: Vec::new(),
                results: vec![result("direct"), result("switchback-uring")],
                goals: Vec::new(),
            }],
            failures: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn the_page_loads_nothing_and_draws_curves_and_bars_of_every_peer() {
        let page = render(&report("It is quick."));
        for outside in ["src=", "<link", "<script", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("<section id=\"mixed\">"));
        assert_eq!(page.matches("<svg").count(), 2);
        for peer in ["direct", "switchback-uring"] {
            assert!(
                page.matches(peer).count() >= 4,
                "{peer} in both plots, the table and the peers"
            );
        }
    }

    #[test]
    fn hostile_words_are_text() {
        let page = render(&report("<script>alert(1)</script>"));
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
    }
}
