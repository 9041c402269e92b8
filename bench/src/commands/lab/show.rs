//! A lab in words and tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use switchback_bench::lab::nat::NAMED as NATS;
use switchback_bench::lab::{NAMED, Status, Subnet, Topology, WireStatus, presets};

/// Everything that can be asked for.
pub(super) fn topologies() -> String {
    let mut text = String::from("Topologies, as NAME or NAME:PARAMETER=VALUE,PARAMETER=VALUE:\n");
    for named in &NAMED {
        let _ = writeln!(text, "\n  {:<11} {}", named.name, named.summary);
        for (parameter, default, what) in named.parameters {
            let _ = writeln!(text, "    {parameter:<12} ({default}) {what}");
        }
    }
    text += "\nNATs, by name or behaviour (mapping/filtering/ports of RFC 4787), and options may\n\
             follow: hairpin, inbound-refresh, timeout=2s, tcp-timeout, lifetime=60s, mappings=100:\n\n";
    for (name, explicit, what) in NATS {
        let _ = writeln!(text, "  {name:<21} {explicit:<24} {what}");
    }
    text += "\nLink presets, and items may follow, as in 4g,loss=2%,up.rate=1mbit; items are delay,\n\
             jitter, loss, burst, rate, queue, reorder, duplicate, corrupt, mtu, udp-delay,\n\
             blackhole:\n\n";
    text + &presets::help()
}

/// Hosts, routers and links of one topology.
pub(super) fn topology(topology: &Topology) -> String {
    let mut text = format!("{}\n", topology.name);
    for host in &topology.hosts {
        let kind = host.router.map_or(String::new(), |router| format!(" (kernel: {router:?})"));
        let _ = writeln!(text, "  host   {}{kind}", host.name);
    }
    for router in &topology.routers {
        let kind = router.nat.map_or("none".into(), |nat| nat.to_string());
        let _ = writeln!(text, "  router {:<11} {kind}", router.name);
    }
    let joined = |own: &[Subnet]| own.iter().map(Subnet::to_string).collect::<Vec<_>>().join(" ");
    for link in &topology.links {
        let settings = link.settings.to_string();
        let settings = if settings.is_empty() { "perfect" } else { &settings };
        let (from, to) = (joined(&link.from.addresses), joined(&link.to.addresses));
        let (low, high) = (&link.from.at, &link.to.at);
        let _ = writeln!(text, "  link   {:<11} {low} {from} - {high} {to}: {settings}", link.name);
    }
    text
}

/// Settings and counters.
pub(super) fn status(status: &Status) -> String {
    let mut links = table(&["LINK", "WAY", "SETTINGS", "SENT", "CAME OUT", "OTHERWISE"]);
    for link in &status.links {
        for (way, wire) in [("up", &link.up), ("down", &link.down)] {
            let WireStatus { settings, pushed, delivered, events } = wire;
            let (pushed, delivered) = (pushed.to_string(), delivered.to_string());
            links.add_row([&link.name, way, settings, &pushed, &delivered, &counts(events)]);
        }
    }
    let mut nats = table(&["ROUTER", "SETTINGS", "POLICY", "PUBLIC", "OUT", "IN", "DROPPED"]);
    for nat in &status.nats {
        let external = nat.external.as_deref().unwrap_or("-");
        let (out, inward) = (nat.outbound.to_string(), nat.inbound.to_string());
        let dropped = counts(&nat.dropped);
        nats.add_row([&nat.name, &nat.settings, &nat.policy, external, &out, &inward, &dropped]);
    }
    let mut text = format!("{}, seed {}, up {:.1} s\n", status.topology, status.seed, status.up_s);
    let _ = write!(text, "\n{links}\n\n{nats}\n\n");
    for nat in &status.nats {
        for mapping in &nat.mappings {
            let _ = writeln!(text, "{}: {mapping}", nat.name);
        }
    }
    let (nobody, refused) = (status.unroutable, status.refused);
    let _ = writeln!(text, "packets to nobody: {nobody}, refused by a host: {refused}");
    text
}

/// A table without borders.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    table
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    let counts = counts.iter().map(|(what, packets)| format!("{what} {packets}"));
    counts.collect::<Vec<_>>().join(", ")
}
