//! `explain`: why a session takes the way it takes, and what would mend it.
use clap::Args;
use switchback_control::api::{EndView, ExplainView};
use switchback_control::firewall::Places;
use switchback_control::path_reason::{self, Meaning};
use switchback_control::wire::{PathLeg, PathMove, PathPair, SessionId, TransportPolicy};
use switchback_control::{Fault, firewall};

use crate::account;
use crate::args::Global;
use crate::output::table::{Column, Table};
use crate::output::{self, human};

/// Why a session takes the way it takes, and what would mend it.
///
/// Both ends are asked just now: the legs each has, the pairs of addresses it tried, how far each came and its round trip,
/// why the path is not better, and every move between transports, stall and pause with its cause and how long the application
/// waited. Firewall rules are told with the addresses and ports the broker knows.
/// Codes are stable; `switchback explain ID --json` has them for programs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  switchback explain k3m9x2q7w4ht\n  \
        switchback explain k3m9x2q7w4ht --json | jq '.client.paths.reasons, .rules'")]
pub(crate) struct ExplainArgs {
    /// Session id, from `switchback sessions`
    id: String,
}

/// Runs `explain`.
pub(crate) async fn run(args: ExplainArgs, global: &Global) -> Result<(), Fault> {
    let explained = account::api(global)?.explain(&SessionId(args.id)).await?;
    if global.json {
        return output::json(&explained);
    }
    output::line(&headline(&explained))?;
    for (name, end) in [("client", &explained.client), ("agent", &explained.agent)] {
        output::line("")?;
        show(name, end.as_ref())?;
    }
    output::line("")?;
    output::line(&verdict(&explained))
}

fn headline(explained: &ExplainView) -> String {
    let session = &explained.session;
    let transport = session.transport.as_deref().unwrap_or("nothing carries it");
    let TransportPolicy { udp, standby } = explained.policy;
    format!(
        "session {}: {} of {} at agent {}, through {}\n  {transport}, RTT {}\n  policy udp={}, standby={}",
        session.id,
        session.resource,
        session.user,
        session.agent,
        session.gateway,
        human::rtt(session.rtt.end_to_end),
        udp.as_str(),
        standby.as_str()
    )
}

fn show(name: &str, end: Option<&EndView>) -> Result<(), Fault> {
    let Some(EndView { age_ms, paths }) = end else {
        return output::line(&format!("{name}: has not answered"));
    };
    let age = if *age_ms < 5000 { String::new() } else { format!(", {} ago", human::age(*age_ms)) };
    output::line(&format!("{name}{age}"))?;
    let mut legs = Table::new(&[Column::Text("LEG"), Column::Text(""), Column::Figure("RTT")]);
    paths.legs.iter().for_each(|leg| legs.row(leg_row(leg)));
    legs.print("no leg is attached")?;
    if !paths.candidates.is_empty() {
        output::line(&format!("reachable at: {}", paths.candidates.join(", ")))?;
    }
    if !paths.pairs.is_empty() {
        let mut pairs = Table::new(&[
            Column::Text("FROM"),
            Column::Text("TO"),
            Column::Text("FOR"),
            Column::Text("STATE"),
            Column::Figure("RTT"),
        ]);
        paths.pairs.iter().for_each(|pair| pairs.row(pair_row(pair)));
        pairs.print("")?;
    }
    if !paths.moves.is_empty() {
        let mut moves = Table::new(&[
            Column::Figure("AT"),
            Column::Text("MOVED TO"),
            Column::Text("BECAUSE"),
            Column::Figure("STALL"),
            Column::Figure("RTT"),
        ]);
        paths.moves.iter().for_each(|moved| moves.row(move_row(moved)));
        moves.print("")?;
    }
    if !paths.ignored.is_empty() {
        output::line(&format!("ignored: {}", ignored(paths.ignored.iter())))?;
    }
    Ok(())
}

fn ignored<'a>(counts: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    counts.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn figure(rtt_us: Option<u32>) -> String {
    rtt_us.map_or_else(|| human::UNKNOWN.into(), |us| human::micros(us.into()))
}

fn leg_row(leg: &PathLeg) -> [String; 3] {
    let role = if leg.carries { "carries" } else { "stands by" };
    [leg.transport.clone(), role.into(), figure(leg.rtt_us)]
}

fn pair_row(pair: &PathPair) -> [String; 5] {
    let PathPair { transport, local, remote, state, rtt_us } = pair.clone();
    [local, remote, transport, state, figure(rtt_us)]
}

fn move_row(moved: &PathMove) -> [String; 5] {
    let PathMove { at_ms, to, cause, stall_us, rtt_us, .. } = moved.clone();
    let at = format!("{}.{:03}s", at_ms / 1000, at_ms % 1000);
    [at, to, cause.replace('_', " "), human::micros(stall_us), figure(rtt_us)]
}

/// What the ends say is in the way, in words, each with what would mend it.
fn verdict(explained: &ExplainView) -> String {
    let mut lines = Vec::new();
    for (name, end) in [("client", &explained.client), ("agent", &explained.agent)] {
        let reasons = end.iter().flat_map(|end| &end.paths.reasons);
        lines.extend(reasons.map(|code| in_words(name, code, &explained.places)));
    }
    if lines.is_empty() { "nothing is in the way".into() } else { lines.join("\n") }
}

fn in_words(end: &str, code: &str, places: &Places) -> String {
    let Some(Meaning { words, .. }) = path_reason::meaning(code) else {
        return format!("{end}: {code}");
    };
    let mut lines = vec![format!("{end}: {code}: {words}")];
    lines.extend(remedies(end, code, places));
    lines.join("\n  → ")
}

/// What would mend a reason that `end` reports, one way a line: firewall rules with the addresses that are known.
pub(crate) fn remedies(end: &str, code: &str, places: &Places) -> Vec<String> {
    let rules = firewall::rules(end, code, places);
    let told = path_reason::meaning(code).map_or("", |meaning| meaning.remedy);
    let whole = told.is_empty() || (firewall::is_whole(code) && !rules.is_empty());
    let told = (!whole).then(|| told.to_owned());
    told.into_iter().chain(rules.iter().map(|rule| format!("Firewall: {rule}."))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_with_what_would_mend_it() {
        let nowhere = Places::default();
        let said = in_words("client", "udp_egress_blocked", &nowhere);
        assert!(said.starts_with("client: udp_egress_blocked: Nothing that"), "{said}");
        assert!(said.contains("\n  → Firewall: allow outbound UDP"), "{said}");
        assert_eq!(in_words("agent", "sunspots", &nowhere), "agent: sunspots");
        assert_eq!(in_words("agent", "searching", &nowhere).lines().count(), 1);
    }

    #[test]
    fn the_firewall_rule_names_the_gateway_and_the_managed_port_that_are_known() {
        let agent_managed = vec!["10.0.0.5:3390".parse().unwrap()];
        let (gateway, gateway_port) = ("198.51.100.7".into(), 443);
        let places = Places { gateway, gateway_port, agent_managed, ..Places::default() };
        let said = in_words("client", "udp_egress_blocked", &places);
        let rule = "\n  → Firewall: let UDP out from the client's network to 198.51.100.7 port 443, and replies in.";
        assert!(said.ends_with(rule) && said.lines().count() == 2, "{said}");
        let said = in_words("agent", "hard_nat_both_sides", &places);
        assert!(said.contains("→ Firewall: endpoint-independent mapping"), "{said}");
        assert!(said.contains("→ Firewall: let UDP in from anywhere, at the agent's network, to 10.0.0.5 port 3390"), "{said}");
    }

    #[test]
    fn what_was_ignored_is_told_by_name() {
        let counts = [("check_forged".to_owned(), 3), ("quic_stranger".to_owned(), 1)];
        let counts = std::collections::BTreeMap::from(counts);
        assert_eq!(ignored(counts.iter()), "check_forged 3, quic_stranger 1");
    }

    #[test]
    fn moves_read_as_a_timeline() {
        let moved = PathMove {
            at_ms: 1250,
            from: None,
            to: "UDP (Shortpath)".into(),
            cause: "path_dead".into(),
            stall_us: 41_000,
            rtt_us: Some(20_000),
        };
        let row = ["1.250s", "UDP (Shortpath)", "path dead", "41.0 ms", "20.0 ms"];
        assert_eq!(move_row(&moved), row);
    }
}
