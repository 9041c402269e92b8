//! `gateways`: which there are, and the way to empty one.
use clap::{Args, Subcommand};
use serde::Serialize;
use switchback_control::Fault;
use switchback_control::api::GatewayView;
use switchback_control::dial::BrokerAddress;
use switchback_control::invite::Invite;
use switchback_control::survey::measure_all;
use switchback_control::wire::{GatewayPlace, GatewayRtt, LOCAL_GATEWAY};

use crate::account;
use crate::args::Global;
use crate::output::table::{Column, Table};
use crate::output::{self, human};

/// List gateways; drain one before it is stopped.
///
/// `local` is the broker's own. UDP and TCP are the round trips from this machine, measured now. A gateway that drains gets no
/// new leg, and its sessions move to others without a pause; it is `drained` once it relays nothing, and stays so over restarts
/// of itself and of the broker until it is undrained.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback gateways
  switchback gateways drain eu-1         its sessions move; then it can be stopped
  switchback gateways undrain eu-1
  switchback gateways --json | jq -r '.[] | select(.state == \"lost\") | .name'")]
pub(crate) struct GatewaysArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Have its sessions move to other gateways, and admit no new ones. For administrators
    #[command(after_help = "Example:\n  switchback gateways drain eu-1")]
    Drain {
        /// Name, from `switchback gateways`
        name: String,
    },
    /// Let sessions go there again. For administrators
    #[command(after_help = "Example:\n  switchback gateways undrain eu-1")]
    Undrain {
        /// Name, from `switchback gateways`
        name: String,
    },
}

/// A line of the list.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    gateway: GatewayView,
    udp_us: Option<u32>,
    tcp_us: Option<u32>,
}

/// Runs `gateways`.
pub(crate) async fn run(args: GatewaysArgs, global: &Global) -> Result<(), Fault> {
    let (name, drain) = match args.action {
        None => return list(global).await,
        Some(Action::Drain { name }) => (name, true),
        Some(Action::Undrain { name }) => (name, false),
    };
    account::api(global)?.drain_gateway(&name, drain).await?;
    if global.json {
        return output::json(&serde_json::json!({ "gateway": name, "draining": drain }));
    }
    let what = if drain { "drains; its sessions move" } else { "takes sessions again" };
    output::line(&format!("gateway {name} {what}"))
}

async fn list(global: &Global) -> Result<(), Fault> {
    let gateways = account::api(global)?.gateways().await?;
    let rtts = measure(&account::invite(global)?, &gateways).await;
    let lines = gateways.into_iter().zip(rtts).map(|(gateway, rtt)| {
        let GatewayRtt { udp_us, tcp_us, .. } = rtt;
        Line { gateway, udp_us, tcp_us }
    });
    let lines: Vec<_> = lines.collect();
    if global.json {
        return output::json(&lines);
    }
    let mut table = Table::new(&[
        Column::Text("NAME"),
        Column::Text("REGION"),
        Column::Text("ADDRESS"),
        Column::Text("STATE"),
        Column::Figure("PAIRS"),
        Column::Figure("UDP"),
        Column::Figure("TCP"),
        Column::Text("VERSION"),
    ]);
    let unknown = || human::UNKNOWN.to_owned();
    for Line { gateway, udp_us, tcp_us } in lines {
        table.row([
            gateway.name,
            gateway.region.unwrap_or_else(unknown),
            gateway.address,
            gateway.state.as_str().to_owned(),
            gateway.pairs.map_or_else(unknown, |pairs| pairs.to_string()),
            time(udp_us),
            time(tcp_us),
            gateway.version.unwrap_or_else(unknown),
        ]);
    }
    table.print("no gateways")
}

pub(crate) fn time(us: Option<u32>) -> String {
    us.map_or_else(|| human::UNKNOWN.to_owned(), |us| human::micros(us.into()))
}

/// Round trips from here to each of them, in their order.
pub(crate) async fn measure(invite: &Invite, gateways: &[GatewayView]) -> Vec<GatewayRtt> {
    // The broker's own is asked where this user's login string says that the broker is.
    let home = BrokerAddress::of(invite).map(|it| it.host_port()).unwrap_or_default();
    let place = |it: &GatewayView| GatewayPlace {
        name: it.name.clone(),
        address: (it.name != LOCAL_GATEWAY).then(|| it.address.clone()),
        region: None,
    };
    measure_all(gateways.iter().map(place).collect(), &home, true).await
}
