//! The report for a terminal: per experiment a table of figures, then goals.

use comfy_table::{ContentArrangement, Table, presets};

use super::goals::{Judged, Statistic};
use super::report::{CaseReport, ClaimsReport, ExperimentReport, Figure, PeerResult};
use crate::report::grid::number;
use crate::report::{Bound, Failure, Outcome, Skipped};

/// The whole report.
pub(crate) fn terminal(report: &ClaimsReport) -> String {
    let mut text = String::new();
    for experiment in &report.experiments {
        text += &section(experiment, report.compared);
    }
    for Skipped { peer, reason, remedy } in &report.skipped {
        text += &format!("skipped: {peer}: {reason} ({remedy})\n");
    }
    for Failure { during, reason, .. } in &report.failures {
        text += &format!("failed: {during}: {reason}\n");
    }
    for warning in &report.warnings {
        text += &format!("warning: {warning}\n");
    }
    text + &verdict(report)
}

/// Headings of the table of figures, where `compared` says what is compared in a case.
pub(crate) const fn figure_headings(compared: &str) -> [&str; 7] {
    ["case", compared, "figure", "p50", "p99", "max", "n"]
}

/// Headings of the table of goals.
pub(crate) const fn goal_headings(compared: &str) -> [&str; 6] {
    ["case", compared, "figure", "goal", "measured", ""]
}

/// A row per figure; a peer without figures has one that says so.
pub(crate) fn figures(experiment: &ExperimentReport) -> Vec<Vec<String>> {
    let rows = |case: &CaseReport| -> Vec<Vec<String>> {
        case.results.iter().flat_map(|result| rows_of(case, result)).collect()
    };
    experiment.cases.iter().flat_map(rows).collect()
}

/// A row per goal.
pub(crate) fn goals(experiment: &ExperimentReport) -> Vec<(Outcome, Vec<String>)> {
    let of = |case: &CaseReport| -> Vec<(Outcome, Vec<String>)> {
        let row = |goal: &Judged| (goal.outcome, goal_row(case, goal));
        case.goals.iter().map(row).collect()
    };
    experiment.cases.iter().flat_map(of).collect()
}

fn section(experiment: &ExperimentReport, compared: &str) -> String {
    let ExperimentReport { name, title, claim, rounds, notes, .. } = experiment;
    let mut text = format!("\n{name}: {title} ({rounds} rounds)\n{claim}\n");
    for note in notes {
        text += &format!("note: {note}\n");
    }
    text += &table(&figure_headings(compared), figures(experiment));
    let goals: Vec<_> = goals(experiment).into_iter().map(|(_, row)| row).collect();
    if !goals.is_empty() {
        text += &table(&goal_headings(compared), goals);
    }
    text
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    format!("{table}\n")
}

fn rows_of(case: &CaseReport, result: &PeerResult) -> Vec<Vec<String>> {
    let row = |figure: &Figure| {
        let value = |value| format!("{} {}", number(value), figure.unit);
        vec![
            case.name.clone(),
            result.peer.to_owned(),
            figure.metric.to_owned(),
            value(figure.p50),
            value(figure.p99),
            value(figure.max),
            figure.values.len().to_string(),
        ]
    };
    let mut rows: Vec<_> = result.figures.iter().map(row).collect();
    let words =
        result.facts.iter().map(|fact| format!("{}: {} ({}x)", fact.name, fact.text, fact.times));
    let failed =
        (result.failed > 0).then(|| format!("failed {} of {}", result.failed, result.measured));
    let words: Vec<_> = failed.into_iter().chain(words).collect();
    if !words.is_empty() {
        let mut row = vec![case.name.clone(), result.peer.to_owned(), words.join("; ")];
        row.resize(figure_headings("").len(), String::new());
        rows.push(row);
    }
    rows
}

fn goal_row(case: &CaseReport, goal: &Judged) -> Vec<String> {
    let statistic = match goal.statistic {
        Statistic::P50 => "p50",
        Statistic::P99 => "p99",
        Statistic::Min => "least",
        Statistic::Sum => "sum",
    };
    let sign = if goal.bound == Bound::AtMost { "<=" } else { ">=" };
    let value = |value: Option<f64>| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{} {}", number(value), goal.unit))
    };
    let relative = goal.relative_to.map_or_else(String::new, |peer| format!(" (by {peer})"));
    let outcome = match goal.outcome {
        Outcome::Met => "met",
        Outcome::Missed => "MISSED",
        Outcome::NotJudged => "not judged",
    };
    let reason = goal.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    vec![
        case.name.clone(),
        goal.peer.to_owned(),
        format!("{} {statistic}", goal.metric),
        format!("{sign} {}{relative}", value(goal.wanted)),
        value(goal.measured),
        format!("{outcome}{reason}"),
    ]
}

fn verdict(report: &ClaimsReport) -> String {
    let outcomes = || {
        let cases = report.experiments.iter().flat_map(|experiment| &experiment.cases);
        cases.flat_map(|case| &case.goals).map(|goal| goal.outcome)
    };
    let count = |wanted| outcomes().filter(|outcome| *outcome == wanted).count();
    format!(
        "\ngoals: {} met, {} missed, {} not judged\n",
        count(Outcome::Met),
        count(Outcome::Missed),
        count(Outcome::NotJudged)
    )
}
