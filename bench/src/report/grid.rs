//! Rows and columns of a scenario, rendered as a terminal table or as markdown.

use std::collections::BTreeSet;

use comfy_table::{ContentArrangement, Table, presets};

use super::metric::Metric;
use super::{MetricResult, Noise, PeerResult, ScenarioReport};
use crate::stats::Ratio;

/// A header and rows; a cell is a list of lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Grid {
    header: Vec<String>,
    rows: Vec<Vec<Vec<String>>>,
}

impl Grid {
    /// Peers down, metrics across, noise last.
    pub(crate) fn of(scenario: &ScenarioReport) -> Grid {
        let known: BTreeSet<Metric> =
            scenario.results.iter().flat_map(|r| r.metrics.iter().map(|m| m.metric)).collect();
        let mut header = vec!["peer".to_owned()];
        header.extend(known.iter().map(|m| format!("{} {}", m.heading(), m.unit())));
        header.push("noise".to_owned());
        Grid { header, rows: scenario.results.iter().map(|result| row(result, &known)).collect() }
    }

    /// A table for a terminal.
    pub(crate) fn to_table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(&self.header);
        for row in &self.rows {
            table.add_row(row.iter().map(|lines| lines.join("\n")));
        }
        table.to_string()
    }

    /// A GitHub-flavoured markdown table.
    pub(crate) fn to_markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = line(&self.header);
        text += &line(&vec!["---".to_owned(); self.header.len()]);
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(|lines| lines.join("<br>")).collect();
            text += &line(&cells);
        }
        text
    }
}

/// A dash where a metric has no meaning for this peer (CPU of no process).
fn row(result: &PeerResult, known: &BTreeSet<Metric>) -> Vec<Vec<String>> {
    let mut cells = vec![vec![result.peer.clone()]];
    let find = |wanted: &Metric| result.metrics.iter().find(|m| m.metric == *wanted);
    cells.extend(known.iter().map(|m| find(m).map_or_else(|| vec!["-".to_owned()], cell)));
    cells.push(noise(&result.noise));
    cells
}

/// `12.3 [11.9..14.0]`, then a line per ratio.
fn cell(metric: &MetricResult) -> Vec<String> {
    let summary = &metric.summary;
    let spread = if summary.values.len() > 1 {
        format!(" [{}..{}]", number(summary.min), number(summary.max))
    } else {
        String::new()
    };
    let mut lines = vec![format!("{}{spread}", number(summary.median))];
    lines.extend(metric.ratios.iter().map(ratio));
    lines
}

/// `0.38x tokio-copy`; with a leading `~` where the difference is not established.
fn ratio(ratio: &Ratio) -> String {
    let sign = if ratio.established { "" } else { "~" };
    format!("{sign}{:.2}x {}", ratio.median, ratio.to)
}

fn noise(noise: &Noise) -> Vec<String> {
    let percent = |share: f64| format!("{:.0}%", share * 100.0);
    let shares = format!(
        "steal {} other {} gen {}",
        percent(noise.steal_max),
        percent(noise.foreign_max),
        percent(noise.generator_max)
    );
    let mut lines = vec![shares];
    if !noise.marks.is_empty() {
        lines.push(noise.marks.join(", "));
    }
    lines
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
    use crate::stats::Summary;

    fn scenario() -> ScenarioReport {
        let ours = [0.15, 0.16, 0.14, 0.15];
        let theirs = [0.30, 0.31, 0.29, 0.30];
        let ratios = vec![
            Ratio::of("tokio-copy", &ours, &theirs).unwrap(),
            Ratio::of("twin", &ours, &ours).unwrap(),
        ];
        let metric = MetricResult::new(Metric::CpuPerGib, Summary::of(&ours).unwrap(), ratios);
        let noise = Noise { foreign_max: 0.25, marks: vec!["noisy".into()], ..Noise::default() };
        let result = PeerResult { peer: "ours".into(), metrics: vec![metric], noise };
        ScenarioReport { name: "bulk8".into(), title: "Bulk".into(), results: vec![result] }
    }

    #[test]
    fn a_cell_states_median_spread_ratios_and_doubt() {
        let grid = Grid::of(&scenario());
        assert_eq!(grid.header, ["peer", "CPU/GiB s/GiB", "noise"]);
        assert_eq!(grid.rows[0][1], ["0.150 [0.140..0.160]", "0.50x tokio-copy", "~1.00x twin"]);
        assert_eq!(grid.rows[0][2], ["steal 0% other 25% gen 0%", "noisy"]);
    }

    #[test]
    fn markdown_keeps_every_row_on_one_line() {
        let text = Grid::of(&scenario()).to_markdown();
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("0.50x tokio-copy<br>~1.00x twin"), "{text}");
    }

    #[test]
    fn numbers_have_about_three_digits() {
        let texts = [1234.5, 12.345, 1.2345, 0.12345, -20.04].map(number);
        assert_eq!(texts, ["1234", "12.3", "1.23", "0.123", "-20.0"]);
    }
}
