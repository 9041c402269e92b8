//! `estimate`: what each resource would see through each gateway, before anybody connects.
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use switchback_control::api::{EstimateView, GatewayState, ResourceWays};
use switchback_control::client::{Client, ClientOptions, PROBE_BYTES_MIN, echo};
use switchback_control::nearest::{Choice, Way, nearest};
use switchback_control::wire::{GatewayRtt, UdpUse};
use switchback_control::{Code, Fault, is_direct};
use tokio::time::{Instant, sleep, timeout};

use crate::account;
use crate::args::Global;
use crate::gateways::{measure, time};
use crate::output;
use crate::output::table::{Column, Table};

/// How long a probe waits for a direct path: one that comes at all comes within two round trips.
const PROBE_DIRECT: Duration = Duration::from_secs(4);
/// Replies of a probe after which its figure stands.
const PROBE_REPLIES: u32 = 8;
const PROBE_PAUSE: Duration = Duration::from_millis(20);
const REPLY_PATIENCE: Duration = Duration::from_secs(10);

/// What each resource would see through each gateway.
///
/// Measures the round trip from here to every gateway, by UDP (STUN) and TCP, adds what each resource's agent measures, and
/// marks the gateway that a session would go through: the smallest sum, in groups of 10 ms the least loaded. --probe opens a
/// session to each resource's agent and measures it end to end, the direct path too if there is one; the service itself
/// is not asked. Exits with LEG_FAILED if no gateway can be reached from here, and with AGENT_OFFLINE if a resource that was
/// named has no agent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback estimate
  switchback estimate ssh web --probe
  switchback estimate --json | jq '.resources[] | {resource, choice: (.ways[] | select(.chosen) | .gateway)}'")]
pub(crate) struct EstimateArgs {
    /// Resources, from `switchback resources` [default: all]
    #[arg(value_name = "RESOURCE")]
    resources: Vec<String>,
    /// Open a session to each and measure it, and whether a direct path is possible
    #[arg(long)]
    probe: bool,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Estimate {
    gateways: Vec<FromHere>,
    resources: Vec<Resource>,
}

/// A gateway, from here.
#[derive(Debug, Serialize)]
struct FromHere {
    gateway: String,
    region: Option<String>,
    address: String,
    state: GatewayState,
    udp_us: Option<u32>,
    tcp_us: Option<u32>,
}

/// A resource at one of its agents.
#[derive(Debug, Serialize)]
struct Resource {
    resource: String,
    agent: Option<String>,
    ways: Vec<Through>,
    /// `false`: its policy excludes a direct path; absent: only a probe tells.
    direct: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<Probe>,
}

/// What it would see through a gateway.
#[derive(Debug, Serialize)]
struct Through {
    gateway: String,
    client_us: Option<u32>,
    agent_us: Option<u32>,
    sum_us: Option<u32>,
    chosen: bool,
}

/// What a session saw.
#[derive(Debug, Serialize)]
struct Probe {
    /// Smallest round trip through the gateway.
    relayed_us: Option<u64>,
    /// Smallest round trip on a direct path; absent: none was found in time.
    direct_us: Option<u64>,
}

/// Runs `estimate`.
pub(crate) async fn run(args: EstimateArgs, global: &Global) -> Result<(), Fault> {
    let view = account::api(global)?.estimate().await?;
    let invite = account::invite(global)?;
    let here = measure(&invite, &view.gateways).await;
    let mut estimate = add_up(&view, &here, &args.resources)?;
    if args.probe {
        let options = ClientOptions { ready_max: 0, ..ClientOptions::default() };
        let client = Client::connect_with(invite, options).await?;
        for resource in &mut estimate.resources {
            let probe = probe(&client, &resource.resource).await?;
            resource.direct = resource.direct.or(Some(probe.direct_us.is_some()));
            resource.probe = Some(probe);
        }
    }
    show(&estimate, global)?;
    if here.iter().all(|rtt| rtt.tcp_us.is_none()) {
        return Err(Code::LegFailed.because("no gateway can be reached from here by TCP"));
    }
    Ok(())
}

fn add_up(view: &EstimateView, here: &[GatewayRtt], wanted: &[String]) -> Result<Estimate, Fault> {
    let offered = |name: &String| view.resources.iter().any(|it| it.resource == *name);
    if let Some(missing) = wanted.iter().find(|name| !offered(name)) {
        return Err(Code::AgentOffline.because(format!("no agent offers {missing} to you now")));
    }
    let is_wanted = |it: &&ResourceWays| wanted.is_empty() || wanted.contains(&it.resource);
    let gateways = view.gateways.iter().zip(here).map(|(gateway, rtt)| FromHere {
        gateway: gateway.name.clone(),
        region: gateway.region.clone(),
        address: gateway.address.clone(),
        state: gateway.state,
        udp_us: rtt.udp_us,
        tcp_us: rtt.tcp_us,
    });
    let resources = view.resources.iter().filter(is_wanted).map(|it| resource(view, here, it));
    Ok(Estimate { gateways: gateways.collect(), resources: resources.collect() })
}

fn resource(view: &EstimateView, here: &[GatewayRtt], ways: &ResourceWays) -> Resource {
    let find =
        |rtts: &[GatewayRtt], name: &str| Way::of(rtts.iter().find(|rtt| rtt.gateway == name));
    let choice = |at: usize| {
        let gateway = &view.gateways[at];
        let count = |figure: Option<u64>| figure.and_then(|it| usize::try_from(it).ok());
        Choice {
            name: &gateway.name,
            client: find(here, &gateway.name),
            agent: find(&ways.rtts, &gateway.name),
            // Users are not told how full gateways are; of equal ones they see the first.
            pairs: count(gateway.pairs).unwrap_or(0),
            capacity: count(gateway.capacity).unwrap_or(usize::MAX),
        }
    };
    let all = 0..view.gateways.len();
    let up = all.clone().filter(|at| view.gateways[*at].state == GatewayState::Up);
    let chosen = nearest(up.map(choice)).map(|chosen| chosen.name.to_owned());
    let through = |at| {
        let choice = choice(at);
        Through {
            gateway: choice.name.to_owned(),
            client_us: known(choice.client),
            agent_us: known(choice.agent),
            sum_us: choice.sum_us(),
            chosen: chosen.as_deref() == Some(choice.name),
        }
    };
    let excluded = matches!(ways.transport.udp, UdpUse::Off | UdpUse::RelayOnly);
    Resource {
        resource: ways.resource.clone(),
        agent: ways.agent.clone(),
        ways: all.map(through).collect(),
        direct: excluded.then_some(false),
        probe: None,
    }
}

const fn known(way: Way) -> Option<u32> {
    match way {
        Way::Rtt(us) => Some(us),
        Way::Unknown | Way::Unreachable => None,
    }
}

/// Round trips through a session of its own, until its path is direct and measured, or time is up.
async fn probe(client: &Client, resource: &str) -> Result<Probe, Fault> {
    let session = client.open_echo(resource).await?;
    let (mut sender, mut replies) = echo(&session, PROBE_BYTES_MIN)?;
    let (mut relayed, mut direct): (Option<u64>, Option<u64>) = (None, None);
    let (until, mut on_direct) = (Instant::now() + PROBE_DIRECT, 0);
    for number in 0.. {
        let is_on_direct = || session.stats().transport.is_some_and(|label| is_direct(&label));
        let (before, left) = (is_on_direct(), Instant::now());
        sender.send(number, PROBE_BYTES_MIN).await?;
        let Ok(Some(reply)) = timeout(REPLY_PATIENCE, replies.recv()).await else { break };
        reply?;
        let took = u64::try_from(left.elapsed().as_micros()).unwrap_or(u64::MAX);
        let best = match (before, is_on_direct()) {
            (true, true) => {
                on_direct += 1;
                &mut direct
            }
            (false, false) => &mut relayed,
            // It moved on its way.
            _ => continue,
        };
        *best = Some(best.map_or(took, |best| best.min(took)));
        if on_direct >= PROBE_REPLIES || Instant::now() >= until {
            break;
        }
        sleep(PROBE_PAUSE).await;
    }
    // The other end learns of a lost farewell by itself.
    let _ = timeout(Duration::from_secs(2), session.close()).await;
    Ok(Probe { relayed_us: relayed, direct_us: direct })
}

fn show(estimate: &Estimate, global: &Global) -> Result<(), Fault> {
    if global.json {
        return output::json(estimate);
    }
    let mut here = Table::new(&[
        Column::Text("GATEWAY"),
        Column::Text("REGION"),
        Column::Text("STATE"),
        Column::Figure("UDP"),
        Column::Figure("TCP"),
    ]);
    for it in &estimate.gateways {
        let region = it.region.clone().unwrap_or_default();
        let state = it.state.as_str().to_owned();
        here.row([it.gateway.clone(), region, state, time(it.udp_us), time(it.tcp_us)]);
    }
    here.print("no gateways")?;
    output::line("")?;
    let mut ways = Table::new(&[
        Column::Text("RESOURCE"),
        Column::Text("THROUGH"),
        Column::Figure("CLIENT"),
        Column::Figure("AGENT"),
        Column::Figure("SUM"),
        Column::Text(""),
    ]);
    for resource in &estimate.resources {
        for way in &resource.ways {
            ways.row([
                resource.resource.clone(),
                way.gateway.clone(),
                time(way.client_us),
                time(way.agent_us),
                time(way.sum_us),
                if way.chosen { "chosen".into() } else { String::new() },
            ]);
        }
        let whole = |us: Option<u64>| time(us.and_then(|us| u32::try_from(us).ok()));
        let (sum, note) = match (&resource.probe, resource.direct) {
            (Some(Probe { direct_us: Some(us), .. }), _) => (whole(Some(*us)), "measured"),
            (_, Some(false)) if resource.probe.is_none() => (time(None), "excluded by policy"),
            (Some(_), _) => (time(None), "not found"),
            (None, _) => (time(None), "not known; --probe tries it"),
        };
        let none = || time(None);
        let name = resource.resource.clone();
        ways.row([name.clone(), "directly".into(), none(), none(), sum, note.into()]);
        if let Some(Probe { relayed_us, .. }) = resource.probe {
            let relayed = whole(relayed_us);
            ways.row([name, "measured".into(), none(), none(), relayed, "end to end".into()]);
        }
    }
    ways.print("no resource has an agent now")
}

#[cfg(test)]
mod tests {
    use switchback_control::api::GatewayView;
    use switchback_control::wire::TransportPolicy;

    use super::*;

    fn gateway(name: &str, state: GatewayState) -> GatewayView {
        let (region, address) = (None, format!("{name}:443"));
        let (pairs, capacity, version) = (None, None, None);
        GatewayView { name: name.into(), region, address, state, pairs, capacity, version }
    }

    fn rtts(ms: &[(&str, u32)]) -> Vec<GatewayRtt> {
        let rtt = |(name, ms): &(&str, u32)| GatewayRtt {
            gateway: (*name).into(),
            udp_us: Some(ms * 1000),
            tcp_us: Some(ms * 1000 + 100),
        };
        ms.iter().map(rtt).collect()
    }

    fn view(b: GatewayState) -> EstimateView {
        let ways = ResourceWays {
            resource: "ssh".into(),
            agent: None,
            transport: TransportPolicy::default(),
            rtts: rtts(&[("a", 90), ("b", 20)]),
        };
        let gateways = vec![gateway("a", GatewayState::Up), gateway("b", b)];
        EstimateView { gateways, resources: vec![ways] }
    }

    #[test]
    fn the_choice_is_the_smallest_sum_among_those_that_take_sessions() {
        let here = rtts(&[("a", 5), ("b", 40)]);
        for (state, chosen) in [(GatewayState::Up, "b"), (GatewayState::Draining, "a")] {
            let estimate = add_up(&view(state), &here, &[]).unwrap();
            let ways = &estimate.resources[0].ways;
            assert_eq!(
                ways.iter().map(|way| way.sum_us).collect::<Vec<_>>(),
                [Some(95_000), Some(60_000)]
            );
            let marked: Vec<_> =
                ways.iter().filter(|way| way.chosen).map(|it| &*it.gateway).collect();
            assert_eq!(marked, [chosen]);
        }
    }

    #[test]
    fn a_resource_that_nobody_offers_is_told() {
        let fault = add_up(&view(GatewayState::Up), &rtts(&[]), &["web".into()]).unwrap_err();
        assert_eq!(fault.code, Code::AgentOffline);
    }
}
