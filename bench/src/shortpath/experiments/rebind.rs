//! What an application notices when an address on its way changes.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use switchback_bench::lab::Lab;

use super::failover::{DISTANCES, RATE, SETTLE, patience, unnoticed};
use super::{Case, Experiment};
use crate::shortpath::goals::{Goal, Sample, Statistic};
use crate::shortpath::peers::PeerKind;
use crate::shortpath::scene::{DEAD, STALL, Trial, in_lab};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "rebind",
    title: "An address changes",
    claim: "A NAT's rebinding stalls an echo for at most 3 RTT or 150 ms, roaming for 500 ms.",
    who: "all tunnels",
    rounds: 10,
    cases,
};

/// The longest an application may wait when the client itself changes its address, in milliseconds.
const ROAMED_MS: f64 = 500.0;

#[derive(Clone, Copy, Debug)]
enum Change {
    ClientPorts,
    AgentPorts,
    ClientPublicAddress,
    Roam,
}

impl Change {
    fn words(self) -> &'static str {
        match self {
            Change::ClientPorts => "client's NAT forgets its mappings",
            Change::AgentPorts => "agent's NAT forgets its mappings",
            Change::ClientPublicAddress => "client's NAT gets another address",
            Change::Roam => "client changes its own address",
        }
    }

    fn happen(self, lab: &Lab) -> Result<()> {
        match self {
            Change::ClientPorts => lab.nat("client-nat").rebind(None)?,
            Change::AgentPorts => lab.nat("agent-nat").rebind(None)?,
            Change::ClientPublicAddress => {
                lab.nat("client-nat").rebind(Some(Ipv4Addr::new(203, 0, 113, 9)))?;
            }
            Change::Roam => lab.host("client").readdress("192.168.1.2/24", "192.168.1.77/24")?,
        }
        Ok(())
    }
}

fn cases(quick: bool) -> Vec<Case> {
    let all = [Change::ClientPorts, Change::AgentPorts, Change::ClientPublicAddress, Change::Roam];
    let chosen: &[Change] = if quick { &[Change::ClientPorts, Change::Roam] } else { &all };
    chosen.iter().map(|change| case(*change, quick)).collect()
}

fn case(change: Change, quick: bool) -> Case {
    let wanted = if matches!(change, Change::Roam) { ROAMED_MS } else { unnoticed() };
    Case {
        name: change.words().to_owned(),
        peers: vec![
            PeerKind::Switchback,
            PeerKind::SwitchbackTcp,
            PeerKind::Iroh,
            PeerKind::Rathole,
            PeerKind::Ssh,
        ],
        goals: vec![
            Goal::at_most("switchback", STALL, Statistic::P99, wanted),
            Goal::at_most("switchback", DEAD, Statistic::Sum, 0.0),
            Goal::at_most("switchback-tcp", DEAD, Statistic::Sum, 0.0),
        ],
        measure: Box::new(move |trial| measure(trial, change, patience(quick))),
    }
}

fn measure(trial: Trial<'_>, change: Change, patience: Duration) -> Result<Sample> {
    in_lab(trial, &DISTANCES.topology(""), |scene, tunnel| {
        let echo = scene.settle(tunnel, RATE, DISTANCES)?;
        std::thread::sleep(SETTLE);
        let from_ns = echo.now_ns();
        change.happen(scene.ground.shaped()?)?;
        let after = scene.aftermath(echo, from_ns, patience, SETTLE)?;
        Ok(after.sample(patience))
    })
}
