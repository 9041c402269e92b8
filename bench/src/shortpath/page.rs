//! The report as one self-contained page: goals first, then plots and figures per experiment.

use maud::{Markup, html};

use super::report::{CaseReport, ClaimsReport, ExperimentReport, Figure, PeerResult};
use super::text::{figure_headings, figures, goal_headings, goals};
use crate::report::grid::number;
use crate::report::html::{class, drawn, page};
use crate::report::plot::{Bar, Curve, bars, percentile_curves};

/// The whole page. It refers to nothing outside itself.
pub(crate) fn render(report: &ClaimsReport) -> String {
    let command = report.schema.split('/').nth(1).unwrap_or_default();
    page(
        &format!("switchback-bench {command}"),
        &html! {
            (conditions(report))
            (mishaps(report))
            nav { @for one in &report.experiments { a href={ "#" (one.name) } { (one.name) } " " } }
            @for one in &report.experiments { (section(report, one)) }
        },
    )
}

/// Every plot as a file's name and SVG: EXPERIMENT.METRIC.N.svg, EXPERIMENT.latency.N.svg.
pub(crate) fn plots(report: &ClaimsReport) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for experiment in &report.experiments {
        for (number, case) in (1..).zip(&experiment.cases) {
            for (metric, svg) in of_case(report, case) {
                if let Ok(svg) = svg {
                    files.push((format!("{}.{metric}.{number}.svg", experiment.name), svg));
                }
            }
        }
    }
    files
}

fn conditions(report: &ClaimsReport) -> Markup {
    let host = &report.host;
    html! {
        div.card { dl {
            dt { "command" } dd { code { "switchback-bench " (report.command) } }
            dt { "machine" } dd { (host.cpu) ", " (host.cpus) " CPUs, Linux " (host.kernel) ", load " (host.load_1min) " before the run" }
            dt { "seed" } dd { (report.seed) @if report.quick { "; a quick run: orders of magnitude" } }
            @for peer in &report.peers { dt { (peer.name) } dd { (peer.version) } }
        } }
    }
}

fn mishaps(report: &ClaimsReport) -> Markup {
    html! {
        @if !report.warnings.is_empty() || !report.failures.is_empty() || !report.skipped.is_empty() {
            div.card.warn {
                @for warning in &report.warnings { p { (warning) } }
                @for skipped in &report.skipped { p { "Skipped: " (skipped.peer) ": " (skipped.reason) " (" (skipped.remedy) ")" } }
                @for failure in &report.failures { p { "Failed: " (failure.during) ": " (failure.reason) } }
            }
        }
    }
}

fn section(report: &ClaimsReport, experiment: &ExperimentReport) -> Markup {
    let judged = goals(experiment);
    html! {
        section id=(experiment.name) {
            h2 { (experiment.title) }
            p.claim { (experiment.claim) }
            @for note in &experiment.notes { p { (note) } }
            @if !judged.is_empty() {
                div.scroll { table {
                    tr { @for heading in goal_headings(report.compared) { th { (heading) } } }
                    @for (outcome, row) in &judged { tr class=(class(*outcome)) { @for cell in row { td { (cell) } } } }
                } }
            }
            @for case in &experiment.cases {
                @for (metric, svg) in of_case(report, case) {
                    h3 { (case.name) ": " (metric) }
                    (drawn(svg))
                }
            }
            details { summary { "All figures" } div.scroll { table {
                tr { @for heading in figure_headings(report.compared) { th { (heading) } } }
                @for row in figures(experiment) { tr { @for cell in row { td { (cell) } } } }
            } } }
        }
    }
}

/// Bars of each metric that more than one peer has, and latency by percentile.
fn of_case(report: &ClaimsReport, case: &CaseReport) -> Vec<(String, anyhow::Result<String>)> {
    let mut metrics: Vec<&'static str> = Vec::new();
    for figure in case.results.iter().flat_map(|result| &result.figures) {
        if !metrics.contains(&figure.metric) {
            metrics.push(figure.metric);
        }
    }
    let ours = |name: &str| report.peers.iter().any(|peer| peer.ours && peer.name == name);
    let mut drawn = Vec::new();
    for metric in metrics {
        let found: Vec<Bar> = case
            .results
            .iter()
            .filter_map(|result| bar(result, metric, ours(result.peer)))
            .collect();
        if found.len() > 1 {
            drawn.push((metric.to_owned(), bars(&found)));
        }
    }
    let curves: Vec<Curve> = case.results.iter().filter_map(curve).collect();
    if !curves.is_empty() {
        drawn.push(("latency".to_owned(), percentile_curves(&curves)));
    }
    drawn
}

fn bar(result: &PeerResult, metric: &str, ours: bool) -> Option<Bar> {
    let Figure { unit, p50, min, max, .. } =
        result.figures.iter().find(|figure| figure.metric == metric)?;
    let value = format!("{} {unit}", number(*p50));
    let label = result.peer.to_owned();
    Some(Bar { label, median: *p50, min: *min, max: *max, value, ours })
}

fn curve(result: &PeerResult) -> Option<Curve> {
    let distribution = result.distribution.as_ref()?;
    let points = distribution.points.iter().map(|point| (point.percentile, point.us)).collect();
    Some(Curve { label: result.peer.to_owned(), count: distribution.count, points })
}
