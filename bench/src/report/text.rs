//! The report for people: what was measured how, a table per scenario, goals, failures, warnings.

use super::grid::{self, number};
use super::summary;
use super::{Bound, CompareReport, GoalResult, Outcome, ScenarioReport};

/// Legend of the terminal's tables.
const LEGEND: &str = "\
Cells: median ±half the range over the rounds. /direct, /ours: the median as a multiple of direct's
and of switchback-uring's; ~ = no difference established (exact rank test, p >= 0.05). RTT counts from the intended send time where the load is open loop.
Noise, worst round: steal (hypervisor) / other (neither peer nor generator) / softirq (packets handled
by the kernel, part of it inside the peers' own calls), of the machine / the generator's thread.
";

/// Legend of the document's tables.
const LEGEND_WIDE: &str = "\
Cells: median [min..max] over the rounds, then the median as a multiple of other peers' medians, \
with the p-value of an exact rank test on the difference; ~ = not established \
(p >= 0.05). RTT counts from the intended send time where the load is open loop. Noise, worst round: \
steal (hypervisor) / other (neither peer nor generator) / softirq (packets handled by the kernel, part \
of it inside the peers' own calls), of the machine / the generator's thread.
";

/// For a terminal.
pub(crate) fn terminal(report: &CompareReport) -> String {
    let mut text = format!("Comparison\n{}", method(report, ""));
    for scenario in &report.scenarios {
        text += &format!("\n{}: {}\n{}\n", scenario.name, scenario.title, scenario.claim);
        scenario.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
        text += &grid::tables(scenario);
        scenario.goals.iter().for_each(|goal| text += &format!("  {}\n", goal_line(goal)));
    }
    text + "\n" + LEGEND + &remarks(report, "\n", "") + &conclusion(report)
}

/// For a document.
pub(crate) fn markdown(report: &CompareReport) -> String {
    let mut text = format!("# Comparison\n\n{}", method(report, "* "));
    let summary = summary::table(report);
    if !summary.is_empty() {
        text += &format!("\n## Goals\n\n{summary}");
    }
    for scenario in &report.scenarios {
        text += &format!("\n## {}: {}\n\n{}\n\n", scenario.name, scenario.title, scenario.claim);
        text += &list(scenario.notes.iter().map(|note| format!("Note: {note}")));
        text += &grid::markdown(scenario);
        text += &goals(scenario);
    }
    text + "\n" + LEGEND_WIDE + &remarks(report, "\n## ", "\n")
}

/// The goals in a line, and those that were missed; nothing if there are none.
fn conclusion(report: &CompareReport) -> String {
    let goals = || report.scenarios.iter().flat_map(|s| s.goals.iter().map(move |goal| (s, goal)));
    let count = |outcome| goals().filter(|(_, goal)| goal.outcome == outcome).count();
    if goals().next().is_none() {
        return String::new();
    }
    let (met, missed) = (count(Outcome::Met), count(Outcome::Missed));
    let mut text =
        format!("\nGoals: {met} met, {missed} missed, {} not judged\n", count(Outcome::NotJudged));
    for (scenario, goal) in goals().filter(|(_, goal)| goal.outcome == Outcome::Missed) {
        text += &format!("  {}: {}\n", scenario.name, goal_line(goal));
    }
    text
}

fn goals(scenario: &ScenarioReport) -> String {
    if scenario.goals.is_empty() {
        return String::new();
    }
    format!("\n{}", list(scenario.goals.iter().map(goal_line)))
}

fn method(report: &CompareReport, bullet: &str) -> String {
    let (host, settings) = (&report.host, &report.settings);
    let cpu = |cpu: Option<usize>| cpu.map_or("any CPU".to_owned(), |cpu| format!("CPU {cpu}"));
    let mut lines = vec![
        format!("command: switchback-bench {}", report.command),
        format!(
            "host: {} x {}, Linux {}, load {:.2}",
            host.cpus, host.cpu, host.kernel, host.load_1min
        ),
        format!(
            "method: {} interleaved rounds of {} s after {} s warm-up; relay on {}, generator on {}",
            settings.rounds,
            settings.window_s,
            settings.warmup_s,
            cpu(settings.placement.relay_cpu),
            cpu(settings.placement.generator_cpu)
        ),
        format!(
            "network: {}; congestion control: generator {}, relays {} (default)",
            settings.network, settings.congestion_generator, host.congestion_default
        ),
    ];
    lines.extend(report.peers.iter().map(|peer| format!("{}: {}", peer.name, peer.version)));
    let skipped = report
        .skipped
        .iter()
        .map(|skip| format!("{}: skipped: {} ({})", skip.peer, skip.reason, skip.remedy));
    lines.extend(skipped);
    lines.iter().map(|line| format!("{bullet}{line}\n")).collect()
}

fn remarks(report: &CompareReport, heading: &str, after_heading: &str) -> String {
    let failures = report
        .failures
        .iter()
        .map(|failure| format!("{} ({}): {}", failure.peer, failure.during, failure.reason));
    let section = |name: &str, body: String| {
        if body.is_empty() { body } else { format!("{heading}{name}\n{after_heading}{body}") }
    };
    section("Failures", list(failures))
        + &section("Warnings", list(report.warnings.iter().cloned()))
}

fn list(lines: impl Iterator<Item = String>) -> String {
    lines.map(|line| format!("* {line}\n")).collect()
}

/// `met: switchback-uring CPU/GiB <= 0.65x haproxy-splice: 0.61x (6 % better than asked)`.
fn goal_line(goal: &GoalResult) -> String {
    let what = format!("{} {} {}", goal.peer, goal.metric.heading(), limit(goal));
    let (Some(measured), Some(margin)) = (goal.measured, goal.margin_percent) else {
        return format!("not judged: {what}: {}", goal.reason.as_deref().unwrap_or("no figures"));
    };
    let verdict = if goal.outcome == Outcome::Met { "met" } else { "MISSED" };
    let by = if margin >= 0.0 { "better than asked" } else { "worse than asked" };
    format!("{verdict}: {what}: {} ({:.0} % {by})", amount(measured, goal.unit), margin.abs())
}

/// `<= 0.65x haproxy-splice`, `<= 1.5 KiB`.
pub(super) fn limit(goal: &GoalResult) -> String {
    let sign = if goal.bound == Bound::AtMost { "<=" } else { ">=" };
    let reference = goal.relative_to.as_ref().map(|peer| format!(" {peer}")).unwrap_or_default();
    format!("{sign} {}{reference}", amount(goal.wanted, goal.unit))
}

/// `0.65x`, `1.50 KiB`.
pub(super) fn amount(value: f64, unit: &str) -> String {
    match unit {
        "x" => format!("{value:.2}x"),
        _ => format!("{} {unit}", number(value)).trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::metric::Metric;

    fn goal(measured: Option<f64>, margin: Option<f64>, outcome: Outcome) -> GoalResult {
        GoalResult {
            peer: "ours".into(),
            metric: Metric::CpuPerGib,
            unit: "x",
            relative_to: Some("rival".into()),
            bound: Bound::AtMost,
            wanted: 0.65,
            measured,
            outcome,
            margin_percent: margin,
            reason: measured.is_none().then(|| "rival has no CPU/GiB here".to_owned()),
        }
    }

    #[test]
    fn a_goal_says_what_was_asked_and_by_how_much_it_was_met_or_missed() {
        let line = |measured, margin, outcome| goal_line(&goal(measured, margin, outcome));
        assert_eq!(
            line(Some(0.52), Some(20.0), Outcome::Met),
            "met: ours CPU/GiB <= 0.65x rival: 0.52x (20 % better than asked)"
        );
        assert_eq!(
            line(Some(0.78), Some(-20.0), Outcome::Missed),
            "MISSED: ours CPU/GiB <= 0.65x rival: 0.78x (20 % worse than asked)"
        );
        assert_eq!(
            line(None, None, Outcome::NotJudged),
            "not judged: ours CPU/GiB <= 0.65x rival: rival has no CPU/GiB here"
        );
    }
}
