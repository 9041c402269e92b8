//! The report for people: what was measured how, a table per scenario, goals, failures, warnings.

use super::grid::{Grid, number};
use super::{GatewayReport, Goal};

/// Legend below the tables.
const LEGEND: &str = "Cells: median [min..max] over the rounds, then multiples of other peers (median of the rounds; ~ = \
    difference not established, rank test p >= 0.05).\nRTT counts from the intended send time. noise: \
    worst round; steal = hypervisor, other = neither peer nor generator, gen = generator thread.";

/// For a terminal.
pub(crate) fn terminal(report: &GatewayReport) -> String {
    let mut text = preamble(report, "", "");
    for scenario in &report.scenarios {
        text += &format!("\n{}\n{}\n", scenario.title, Grid::of(scenario).to_table());
    }
    text + "\n" + LEGEND + "\n" + &remarks(report, "\n", "")
}

/// For a document.
pub(crate) fn markdown(report: &GatewayReport) -> String {
    let mut text = preamble(report, "# ", "* ");
    for scenario in &report.scenarios {
        text += &format!("\n## {}\n\n{}", scenario.title, Grid::of(scenario).to_markdown());
    }
    text + "\n" + LEGEND + "\n" + &remarks(report, "\n## ", "\n")
}

fn preamble(report: &GatewayReport, heading: &str, bullet: &str) -> String {
    let (host, settings) = (&report.host, &report.settings);
    let cpu = |cpu: Option<usize>| cpu.map_or("any CPU".to_owned(), |cpu| format!("CPU {cpu}"));
    let mut text = format!("{heading}Gateway comparison\n");
    let after_heading = if heading.is_empty() { "" } else { "\n" };
    text += after_heading;
    text += &format!(
        "{bullet}host: {} x {}, Linux {}, load {:.2}\n",
        host.cpus, host.cpu, host.kernel, host.load_1min
    );
    text += &format!(
        "{bullet}method: {} interleaved rounds of {} s after {} s warm-up; relay on {}, generator on {}\n",
        settings.rounds,
        settings.window_s,
        settings.warmup_s,
        cpu(settings.placement.relay_cpu),
        cpu(settings.placement.generator_cpu)
    );
    text += &format!(
        "{bullet}network: loopback of a {} namespace; congestion control: generator {}, relays {} (default)\n",
        settings.network, settings.congestion_generator, host.congestion_default
    );
    for peer in &report.peers {
        text += &format!("{bullet}{}: {}\n", peer.name, peer.version);
    }
    text
}

fn remarks(report: &GatewayReport, heading: &str, after_heading: &str) -> String {
    let failures = report
        .failures
        .iter()
        .map(|failure| format!("{} ({}): {}", failure.peer, failure.during, failure.reason));
    section(heading, after_heading, "Goals", report.goals.iter().map(goal))
        + &section(heading, after_heading, "Failures", failures)
        + &section(heading, after_heading, "Warnings", report.warnings.iter().cloned())
}

fn section(
    heading: &str,
    after_heading: &str,
    name: &str,
    lines: impl Iterator<Item = String>,
) -> String {
    let body: String = lines.map(|line| format!("* {line}\n")).collect();
    if body.is_empty() { body } else { format!("{heading}{name}\n{after_heading}{body}") }
}

fn goal(goal: &Goal) -> String {
    let verdict = if goal.met { "met" } else { "MISSED" };
    let (wanted, measured) = (number(goal.wanted), number(goal.measured));
    format!(
        "{verdict}: {} {}: {} {wanted}; measured {measured}",
        goal.peer, goal.scenario, goal.what
    )
}
