//! `netcheck`: what this machine's network lets through.
use std::time::Duration;

use clap::Args;
use switchback_control::firewall::Places;
use switchback_control::netcheck::{
    self, AddressReport, MappingFailure, MappingProtocol, NetReport, PortMappingReport,
};
use switchback_control::{Fault, path_reason};
use tokio::time::sleep;

use crate::args::Global;
use crate::explain::remedies;
use crate::output::human;
use crate::output::table::{Column, Table};
use crate::stop::Stop;
use crate::udp_args::PortRange;
use crate::{account, output};

/// What this machine's network lets through: UDP, kind of NAT, latency.
///
/// Connects to the gateway by TCP, asks its STUN by UDP over IPv4 and IPv6, tells which kind of NAT is in between (RFC
/// 5780: the filtering, and whether mappings differ by address, need a gateway with --stun-alternate), whether the NAT lets a machine behind it
/// reach its own public address, how large packets may be, whether the router opens a port when asked (PCP, NAT-PMP, UPnP), and
/// whether something answers TLS or HTTP in the broker's place. Takes up to 12 seconds.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback netcheck
  switchback netcheck --json | jq .nat_v4.mapping
  switchback netcheck --udp-ports 50000-50100     behind a firewall that lets only those out
  switchback netcheck --every 1m --json >> network.jsonl")]
pub(crate) struct NetcheckArgs {
    /// Look again after this time, until Ctrl-C; at least 5s
    #[arg(long, value_name = "TIME", value_parser = every)]
    every: Option<Duration>,
    /// Local UDP ports to ask from, as sessions are given them [default: any]
    #[arg(long, value_name = "FIRST-LAST", env = "SWITCHBACK_UDP_PORTS")]
    udp_ports: Option<PortRange>,
}

fn every(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if every < Duration::from_secs(5) { Err("at least 5s".into()) } else { Ok(every) }
}

/// Runs `netcheck`.
pub(crate) async fn run(args: NetcheckArgs, global: &Global) -> Result<(), Fault> {
    let invite = account::invite(global)?;
    let mut stop = Stop::listen()?;
    let ports = args.udp_ports.map(|PortRange(ports)| ports);
    let look = async || netcheck::check(&invite, ports.clone()).await;
    tokio::select! {
        ended = repeat(args.every, look, |report| show(report, global)) => ended,
        () = stop.wait() => Ok(()),
    }
}

/// Looks and shows what was found: once, or again after each `every`.
async fn repeat(
    every: Option<Duration>,
    look: impl AsyncFn() -> Result<NetReport, Fault>,
    show: impl Fn(&NetReport) -> Result<(), Fault>,
) -> Result<(), Fault> {
    loop {
        match (look().await, every) {
            (Ok(report), _) => show(&report)?,
            (Err(fault), None) => return Err(fault),
            // The network is what is looked at: it may come back.
            (Err(fault), Some(_)) => output::note(&format!("{}: {}", fault.code, fault.detail)),
        }
        let Some(every) = every else { return Ok(()) };
        sleep(every).await;
    }
}

fn show(report: &NetReport, global: &Global) -> Result<(), Fault> {
    if global.json {
        return output::json(report);
    }
    let mut latency =
        Table::new(&[Column::Text("GATEWAY"), Column::Figure("TCP"), Column::Figure("UDP")]);
    for AddressReport { address, tcp_us, udp_us } in &report.addresses {
        latency.row([address.to_string(), time(*tcp_us), time(*udp_us)]);
    }
    latency.print("the gateway has no address")?;
    output::line("")?;
    let mut facts = Table::new(&[Column::Text("NETWORK"), Column::Text("")]);
    facts_of(report).into_iter().for_each(|(name, value)| facts.row([name, value]));
    facts.print("")?;
    let gateway = gateway(report);
    for hint in &report.hints {
        let words = path_reason::meaning(hint).map_or("", |meaning| meaning.words);
        output::line(&format!("\n{hint}: {words}"))?;
        for remedy in remedies("here", hint, &gateway) {
            output::line(&format!("  → {remedy}"))?;
        }
    }
    Ok(())
}

/// Where the gateway is, for firewall rules.
fn gateway(report: &NetReport) -> Places {
    let Some(AddressReport { address, .. }) = report.addresses.first() else {
        return Places::default();
    };
    let (gateway, gateway_port) = (address.ip().to_string(), address.port());
    Places { gateway, gateway_port, ..Places::default() }
}

fn time(us: Option<u64>) -> String {
    us.map_or_else(|| human::UNKNOWN.into(), human::micros)
}

fn facts_of(report: &NetReport) -> Vec<(String, String)> {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let unknown = || human::UNKNOWN.to_owned();
    let mut facts = Vec::new();
    for (family, nat) in [("IPv4", &report.nat_v4), ("IPv6", &report.nat_v6)] {
        let Some(nat) = nat else { continue };
        facts.push((format!("UDP over {family}"), yes(nat.udp)));
        if !nat.udp {
            continue;
        }
        let mapped = nat.mapped.map_or_else(unknown, |address| address.to_string());
        facts.push((format!("{family} seen as"), mapped));
        facts.push((format!("{family} mapping"), words(&nat.mapping)));
        facts.push((format!("{family} ports"), words(&nat.ports)));
        facts.push((format!("{family} filtering"), words(&nat.filtering)));
        facts.push((format!("{family} hairpin"), nat.hairpin.map_or_else(unknown, yes)));
    }
    let size = |mtu: u16| format!("{mtu} bytes");
    let sizes = [("IPv4 path MTU", report.mtu_v4), ("IPv6 path MTU", report.mtu_v6)];
    let known = sizes.into_iter().filter_map(|(name, mtu)| Some((name.to_owned(), size(mtu?))));
    facts.extend(known);
    if let Some(mapping) = &report.port_mapping {
        facts.push(("port mapping".into(), mapping_words(mapping)));
    }
    facts.push(("IPv6 route".into(), yes(report.ipv6_route)));
    facts.push(("broker genuine".into(), report.broker_is_genuine.map_or_else(unknown, yes)));
    facts.push(("captive portal".into(), report.captive_portal.map_or_else(unknown, yes)));
    facts
}

fn mapping_words(mapping: &PortMappingReport) -> String {
    match (mapping.protocol, mapping.external, mapping.failure) {
        (Some(protocol), Some(external), _) => {
            let protocol = match protocol {
                MappingProtocol::Pcp => "PCP",
                MappingProtocol::NatPmp => "NAT-PMP",
                MappingProtocol::Upnp => "UPnP",
            };
            format!("yes, by {protocol}: {external}")
        }
        (.., Some(MappingFailure::NoRouter)) => "no IPv4 router".into(),
        (.., Some(MappingFailure::Silent)) => "no, the router does not answer".into(),
        (.., Some(MappingFailure::Refused)) => "no, the router refuses".into(),
        _ => human::UNKNOWN.into(),
    }
}

/// The JSON word, as people write it.
fn words(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text.replace('_', " "),
        Ok(serde_json::Value::Object(map)) => {
            let parts = map.iter().map(|(name, value)| format!("{name} {value}"));
            parts.collect::<Vec<_>>().join(", ")
        }
        _ => human::UNKNOWN.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use switchback_control::Code;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn every_repeats_the_look_after_its_time_whether_it_succeeds_or_not() {
        let (looks, shown, third) = (Cell::new(0), Cell::new(0), Notify::new());
        let look = async || {
            looks.set(looks.get() + 1);
            match looks.get() {
                2 => return Err(Code::BrokerUnreachable.into()),
                3 => third.notify_one(),
                _ => {}
            }
            Ok(NetReport::default())
        };
        let show = |_: &NetReport| {
            shown.set(shown.get() + 1);
            Ok(())
        };
        tokio::select! {
            ended = repeat(Some(Duration::from_millis(5)), look, show) => panic!("{ended:?}"),
            () = third.notified() => {}
        }
        assert!(shown.get() >= 1);
        looks.set(0);
        shown.set(0);
        assert_eq!(repeat(None, look, show).await, Ok(()));
        assert_eq!((looks.get(), shown.get()), (1, 1), "once without it");
        assert!(repeat(None, look, show).await.is_err());
    }

    #[test]
    fn facts_are_in_words() {
        let mut report = NetReport::default();
        let nat = r#"{"udp":true,"server":null,"mapped":"192.0.2.7:5000","rtt_us":[],
            "mapping":"endpoint_independent","ports":{"sequential":2},"filtering":"unknown",
            "hairpin":false,"full_test":false}"#;
        report.nat_v4 = serde_json::from_str(nat).unwrap();
        let facts = facts_of(&report);
        let fact = |name: &str| &*facts.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!(fact("IPv4 mapping"), "endpoint independent");
        assert_eq!(fact("IPv4 ports"), "sequential 2");
        assert_eq!((fact("IPv4 hairpin"), fact("broker genuine")), ("no", "-"));
        report.mtu_v4 = Some(1420);
        report.port_mapping = Some(PortMappingReport {
            router: Some([192, 168, 1, 1].into()),
            protocol: Some(MappingProtocol::Pcp),
            external: Some("192.0.2.7:5000".parse().unwrap()),
            failure: None,
        });
        let facts = facts_of(&report);
        let fact = |name: &str| &*facts.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!(fact("IPv4 path MTU"), "1420 bytes");
        assert_eq!(fact("port mapping"), "yes, by PCP: 192.0.2.7:5000");
        assert!(every("4s").is_err() && every("5s").is_ok());
    }
}
