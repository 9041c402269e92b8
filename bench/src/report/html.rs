//! The report as one self-contained page.

use super::CompareReport;

/// A whole HTML document that loads nothing.
pub(crate) fn render(report: &CompareReport) -> String {
    let mut body = String::new();
    for scenario in &report.scenarios {
        body += &format!(
            "<h2>{}</h2><p>{}</p>\n<table>\n",
            escaped(&scenario.title),
            escaped(&scenario.claim)
        );
        for result in &scenario.results {
            for metric in &result.metrics {
                let name = metric.metric.heading();
                let (median, unit) = (metric.summary.median, metric.unit);
                let peer = escaped(&result.peer);
                body += &format!("<tr><td>{peer}<td>{name}<td>{median} {unit}</tr>\n");
            }
        }
        body += "</table>\n";
    }
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>switchback-bench compare</title>\n{body}"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
