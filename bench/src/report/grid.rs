//! Rows and columns of a scenario: narrow tables for a terminal, one wide table for a document.

use std::collections::BTreeSet;

use comfy_table::{ContentArrangement, Table, presets};

use super::metric::Metric;
use super::{MetricResult, Noise, OURS, PeerResult, ScenarioReport};
use crate::peers::direct::DIRECT;
use crate::stats::{Ratio, Summary};

/// Widest table: what fits a terminal beside another window.
const WIDTH_MAX: usize = 110;

/// Columns that belong together: a header, and a cell per peer, for each.
struct Group {
    columns: Vec<Column>,
}

struct Column {
    header: String,
    cells: Vec<String>,
}

impl Column {
    fn new(header: String, cells: impl Iterator<Item = String>) -> Column {
        Column { header, cells: cells.collect() }
    }

    /// Characters, with the border and padding of one side.
    fn width(&self) -> usize {
        let widest = self.cells.iter().chain([&self.header]).map(|cell| cell.chars().count()).max();
        widest.unwrap_or(0) + 3
    }
}

/// Tables of a scenario for a terminal: peers down, metrics across, noise last, as many tables as
/// the width asks for.
pub(crate) fn tables(scenario: &ScenarioReport) -> String {
    let results = &scenario.results;
    let peers = Column::new("peer".to_owned(), results.iter().map(|result| result.peer.clone()));
    let mut groups: Vec<Group> =
        metrics(scenario).iter().map(|metric| metric_group(*metric, results)).collect();
    groups.push(noise_group(results));
    let mut text = String::new();
    let mut columns: Vec<Column> = Vec::new();
    for group in groups {
        let width = |columns: &[Column]| columns.iter().map(Column::width).sum::<usize>();
        let needed = 1 + peers.width() + width(&columns) + width(&group.columns);
        if needed > WIDTH_MAX && !columns.is_empty() {
            text += &table(&peers, &std::mem::take(&mut columns));
        }
        columns.extend(group.columns);
    }
    text + &table(&peers, &columns)
}

/// One markdown table with the range and the p-value of every difference.
pub(crate) fn markdown(scenario: &ScenarioReport) -> String {
    let (header, rows) = wide(scenario);
    markdown_table(&header, rows.into_iter())
}

/// Header and rows of one table with everything: peers down, metrics across, noise last.
pub(super) fn wide(scenario: &ScenarioReport) -> (Vec<String>, Vec<Vec<String>>) {
    let metrics = metrics(scenario);
    let mut header = vec!["peer".to_owned()];
    header.extend(metrics.iter().map(|metric| heading(*metric)));
    header.push(NOISE_HEADER.to_owned());
    let rows = scenario.results.iter().map(|result| {
        let mut cells = vec![result.peer.clone()];
        let cell = |metric: &Metric| find(result, *metric).map_or_else(dash, wide_cell);
        cells.extend(metrics.iter().map(cell));
        cells.push([shares(&result.noise), result.noise.marks.join(", ")].join(" "));
        cells
    });
    (header, rows.collect())
}

/// A GitHub-flavoured markdown table; a cell's lines are parted by `<br>`.
pub(crate) fn markdown_table(header: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('\n', "<br>"));
    let mut text = line(header);
    text += &line(&vec!["---".to_owned(); header.len()]);
    rows.for_each(|row| text += &line(&row));
    text
}

/// Every metric that some peer has, in the order of the metrics.
fn metrics(scenario: &ScenarioReport) -> BTreeSet<Metric> {
    let all = scenario.results.iter().flat_map(|result| &result.metrics);
    all.map(|result| result.metric).collect()
}

fn find(result: &PeerResult, metric: Metric) -> Option<&MetricResult> {
    result.metrics.iter().find(|found| found.metric == metric)
}

/// Median with its spread, and the multiples of the references that anybody has.
fn metric_group(metric: Metric, results: &[PeerResult]) -> Group {
    let found = || results.iter().map(|result| find(result, metric));
    let median = |result: Option<&MetricResult>| result.map_or_else(dash, narrow_cell);
    let mut columns = vec![Column::new(heading(metric), found().map(median))];
    for (reference, header) in [(DIRECT, "/direct"), (OURS, "/ours")] {
        let ratio_of = |result: Option<&MetricResult>| {
            result?.ratios.iter().find(|ratio| ratio.to == reference).map(multiple)
        };
        if found().any(|result| ratio_of(result).is_some()) {
            let cells = found().map(|result| ratio_of(result).unwrap_or_else(dash));
            columns.push(Column::new(header.to_owned(), cells));
        }
    }
    Group { columns }
}

/// Steal, other, softirq and generator: the legend says so.
const NOISE_HEADER: &str = "noise %";

fn noise_group(results: &[PeerResult]) -> Group {
    let shares = results.iter().map(|result| shares(&result.noise));
    let mut columns = vec![Column::new(NOISE_HEADER.to_owned(), shares)];
    if results.iter().any(|result| !result.noise.marks.is_empty()) {
        let marks = results.iter().map(|result| result.noise.marks.join(", "));
        columns.push(Column::new("marks".to_owned(), marks));
    }
    Group { columns }
}

fn table(peers: &Column, columns: &[Column]) -> String {
    let all: Vec<&Column> = std::iter::once(peers).chain(columns).collect();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(all.iter().map(|column| &column.header));
    for row in 0..peers.cells.len() {
        table.add_row(all.iter().map(|column| &column.cells[row]));
    }
    format!("{table}\n")
}

fn heading(metric: Metric) -> String {
    format!("{} {}", metric.heading(), metric.unit()).trim_end().to_owned()
}

/// Where a metric has no meaning for a peer (CPU of no process).
fn dash() -> String {
    "-".to_owned()
}

/// `12.3 ±4%`: half the range over the rounds, in percent of the median.
fn narrow_cell(result: &MetricResult) -> String {
    let Summary { values, median, min, max, .. } = &result.summary;
    if values.len() < 2 || *median == 0.0 {
        return number(*median);
    }
    let spread = (max - min) / 2.0 / median.abs() * 100.0;
    format!("{} ±{spread:.0}%", number(*median))
}

/// `12.3 [11.9..14.0]`, then a line per multiple with its p-value.
fn wide_cell(result: &MetricResult) -> String {
    let Summary { values, median, min, max, .. } = &result.summary;
    let mut text = number(*median);
    if values.len() > 1 {
        text += &format!(" [{}..{}]", number(*min), number(*max));
    }
    for ratio in &result.ratios {
        text += &format!("\n{} {}", multiple(ratio), ratio.to);
        text += &ratio.p_value.map(|p| format!(" (p {p:.3})")).unwrap_or_default();
    }
    text
}

/// `0.38x`; with a leading `~` where a test did not establish the difference.
fn multiple(ratio: &Ratio) -> String {
    let sign = if ratio.established || ratio.p_value.is_none() { "" } else { "~" };
    format!("{sign}{:.2}x", ratio.value)
}

/// The four shares under [`NOISE_HEADER`], in percent.
fn shares(noise: &Noise) -> String {
    let Noise { steal_max, foreign_max, softirq_max, generator_max, .. } = noise;
    [steal_max, foreign_max, softirq_max, generator_max]
        .map(|share| format!("{:.0}", share * 100.0))
        .join("/")
}

/// About three significant digits.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Workload;

    fn peer(name: &str, metrics: &[Metric]) -> PeerResult {
        let ours = [0.15, 0.16, 0.14, 0.15];
        let ratios = || {
            vec![
                Ratio::of(DIRECT, &ours, &[0.30, 0.31, 0.29, 0.30]).unwrap(),
                Ratio::of(OURS, &ours, &ours).unwrap(),
            ]
        };
        let result =
            |metric: &Metric| MetricResult::new(*metric, Summary::of(&ours).unwrap(), ratios());
        PeerResult {
            peer: name.to_owned(),
            metrics: metrics.iter().map(result).collect(),
            distributions: Vec::new(),
            noise: Noise { foreign_max: 0.25, marks: vec!["noisy".into()], ..Noise::default() },
            threads: Vec::new(),
        }
    }

    fn scenario(metrics: &[Metric]) -> ScenarioReport {
        ScenarioReport {
            name: "bulk8".into(),
            title: "Bulk".into(),
            claim: "It is fast.".into(),
            workload: Workload::Bulk { flows: 8, both_ways: false },
            notes: Vec::new(),
            results: vec![peer("switchback-busy-poll", metrics), peer("other", &[])],
            goals: Vec::new(),
        }
    }

    #[test]
    fn a_row_states_median_spread_multiples_and_doubt() {
        let text = tables(&scenario(&[Metric::CpuPerGib]));
        for part in ["CPU/GiB s/GiB", "0.150 ±7%", " 0.50x ", " ~1.00x ", " 0/25/0/0 ", "noisy"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        let other = text.lines().find(|line| line.contains("│ other")).unwrap();
        assert!(other.contains(" - "), "a peer without the metric has a dash: {other}");
    }

    #[test]
    fn many_metrics_make_many_tables_and_none_is_too_wide() {
        let all = [
            Metric::RttP50,
            Metric::RttP99,
            Metric::RttP999,
            Metric::CpuPerMessage,
            Metric::MessagesPerSecond,
        ];
        let text = tables(&scenario(&all));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH_MAX), "{text}");
        assert!(all.iter().all(|metric| text.contains(&heading(*metric))), "{text}");
        assert!(text.matches("switchback-busy-poll").count() > 1);
    }

    #[test]
    fn markdown_keeps_every_row_on_one_line_and_states_the_probability() {
        let text = markdown(&scenario(&[Metric::CpuPerGib]));
        assert_eq!(text.lines().count(), 4);
        let expected = "0.150 [0.140..0.160]<br>0.50x direct (p 0.029)<br>~1.00x switchback-uring";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn numbers_have_about_three_digits() {
        let texts = [1234.5, 12.345, 1.2345, 0.12345, -20.04].map(number);
        assert_eq!(texts, ["1234", "12.3", "1.23", "0.123", "-20.0"]);
    }
}
