//! Three hosts to measure in: the lab's, with any links and NATs, or namespaces joined by plain veth
//! where bytes per second count and a wire in user space would be the bottleneck.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command};

use anyhow::{Context, Result};
use switchback_bench::lab::Lab;

use crate::measure::netns::{Network, NetworkMode, Place, enter};

/// A party of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Client,
    Agent,
    Server,
}

impl Host {
    fn name(self) -> &'static str {
        match self {
            Host::Client => "client",
            Host::Agent => "agent",
            Host::Server => "server",
        }
    }

    /// On veth the server is in the middle and forwards, as the relay of a comparison.
    fn place(self) -> Place {
        match self {
            Host::Client => Place::Client,
            Host::Agent => Place::Server,
            Host::Server => Place::Relay,
        }
    }
}

/// Where a measurement takes place.
pub(crate) enum Ground {
    Lab(Box<Lab>),
    Veth(Network),
}

/// The server's first address in every named topology, and the agent's where the client is in another network.
const LAB_SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const LAB_AGENT: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);

impl Ground {
    /// A lab of this topology.
    ///
    /// # Errors
    /// No such topology, or no lab is possible here.
    pub(crate) fn lab(topology: &str, seed: u64) -> Result<Ground> {
        Ok(Ground::Lab(Box::new(Lab::start(&topology.parse()?, seed)?)))
    }

    /// Namespaces joined by veth, without any shaping. The calling thread stays in the client's,
    /// and programs started from it end with it.
    ///
    /// # Errors
    /// Not permitted.
    pub(crate) fn veth() -> Result<Ground> {
        enter(NetworkMode::Veth).map(Ground::Veth)
    }

    /// The lab, to change links and NATs.
    ///
    /// # Errors
    /// There is none on veth.
    pub(crate) fn shaped(&self) -> Result<&Lab> {
        match self {
            Ground::Lab(lab) => Ok(lab),
            Ground::Veth(_) => anyhow::bail!("veth has no links to change"),
        }
    }

    /// Where the server is reached by both others.
    pub(crate) fn server(&self) -> IpAddr {
        match self {
            Ground::Lab(_) => LAB_SERVER.into(),
            Ground::Veth(network) => network.ip(Place::Relay),
        }
    }

    /// The agent's own address, which the client reaches where nothing translates.
    pub(crate) fn agent(&self) -> IpAddr {
        match self {
            Ground::Lab(_) => LAB_AGENT.into(),
            Ground::Veth(network) => network.ip(Place::Server),
        }
    }

    /// Starts a program at a host.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub(crate) fn spawn(&self, host: Host, mut command: Command) -> Result<Child> {
        let what = format!("starting {}", command.get_program().display());
        match self {
            Ground::Lab(lab) => lab.host(host.name()).spawn(command).context(what),
            Ground::Veth(network) => {
                network.at(host.place(), || Ok(command.spawn()?)).context(what)
            }
        }
    }

    /// Runs `act` at a host: sockets it makes stay there.
    ///
    /// # Errors
    /// As `act`, or the host cannot be entered.
    pub(crate) fn enter<T: Send>(
        &self,
        host: Host,
        act: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        match self {
            Ground::Lab(lab) => lab.host(host.name()).enter(act)?,
            Ground::Veth(network) => network.at(host.place(), act),
        }
    }
}
