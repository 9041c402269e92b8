//! A running lab and its hosts. Its links and NATs are in `middle`.

use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::LabError;
use super::device::{Device, exchange_address, set_routes};
use super::forward::Forwarder;
use super::kernel::make_router;
use super::middle::{LinkHandle, NatHandle};
use super::namespace::Namespace;
use super::network::Network;
use super::plan::{Interface, Plan};
use super::spawn::{HostCommand, Spawner, kill_inhabitants};
use super::status::Status;
use super::subnet::Subnet;
use super::topology::{KernelRouter, Topology};

/// A running lab. Dropping it ends it: every process in its hosts is killed, and the kernel removes
/// their network. The same happens to the network, and to programs started by
/// [`HostHandle::command`], when this process is killed.
#[derive(Debug)]
pub struct Lab {
    seed: u64,
    /// As it is now: addresses change.
    topology: Mutex<Topology>,
    hosts: Vec<HostSpace>,
    spawner: Spawner,
    pub(super) forwarder: Forwarder,
}

#[derive(Debug)]
struct HostSpace {
    namespace: Namespace,
    /// Interface indices, in the order of the plan.
    interfaces: Vec<u32>,
}

impl Lab {
    /// Builds the topology and lets packets flow. The same seed gives the same losses to the same
    /// packets at the same times.
    ///
    /// # Errors
    /// The topology makes no network, or namespaces or TUN devices are not permitted; see
    /// [`super::unavailable`].
    pub fn start(topology: &Topology, seed: u64) -> Result<Lab, LabError> {
        let plan = Plan::of(topology).map_err(|why| LabError::topology(&why))?;
        let mut hosts = Vec::new();
        let mut devices = Vec::new();
        for (host, interfaces) in topology.hosts.iter().zip(&plan.interfaces) {
            let furnish = || furnish(host.router, interfaces);
            let (namespace, own) = Namespace::create(furnish)
                .map_err(LabError::act(&format!("host {}", host.name)))?;
            let interfaces = own.iter().map(Device::index).collect();
            hosts.push(HostSpace { namespace, interfaces });
            devices.extend(own);
        }
        let network = Network::new(topology, &plan, seed);
        let spawner = Spawner::start().map_err(LabError::act("starting a thread"))?;
        let forwarder =
            Forwarder::start(network, devices).map_err(LabError::act("starting the network"))?;
        let topology = Mutex::new(topology.clone());
        Ok(Lab { seed, topology, hosts, spawner, forwarder })
    }

    /// The seed it was started with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What it consists of now.
    pub fn topology(&self) -> Topology {
        self.lock().clone()
    }

    /// Settings and counters of everything.
    pub fn status(&self) -> Status {
        let topology = self.topology();
        self.forwarder.with(|network, now| Status::read(&topology, self.seed, network, now))
    }

    /// A host by its name.
    ///
    /// # Panics
    /// The topology has no such host; [`Lab::find_host`] does not panic.
    pub fn host(&self, name: &str) -> HostHandle<'_> {
        self.find_host(name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A host by its name.
    ///
    /// # Errors
    /// There is none; the message says which there are.
    pub fn find_host(&self, name: &str) -> Result<HostHandle<'_>, LabError> {
        let names = self.lock().hosts.iter().map(|host| host.name.clone()).collect();
        position("host", names, name).map(|index| HostHandle { lab: self, index })
    }

    /// A link by its name.
    ///
    /// # Panics
    /// The topology has no such link; [`Lab::find_link`] does not panic.
    pub fn link(&self, name: &str) -> LinkHandle<'_> {
        self.find_link(name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A link by its name.
    ///
    /// # Errors
    /// There is none; the message says which there are.
    pub fn find_link(&self, name: &str) -> Result<LinkHandle<'_>, LabError> {
        let names = self.lock().links.iter().map(|link| link.name.clone()).collect();
        position("link", names, name).map(|index| LinkHandle { lab: self, index })
    }

    /// A NAT or other router of the lab's own by its name.
    ///
    /// # Panics
    /// The topology has no such router; [`Lab::find_nat`] does not panic.
    pub fn nat(&self, name: &str) -> NatHandle<'_> {
        self.find_nat(name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A NAT or other router of the lab's own by its name.
    ///
    /// # Errors
    /// There is none; the message says which there are.
    pub fn find_nat(&self, name: &str) -> Result<NatHandle<'_>, LabError> {
        let names = self.lock().routers.iter().map(|router| router.name.clone()).collect();
        position("router", names, name).map(|index| NatHandle { lab: self, index })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Topology> {
        self.topology.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adopts a topology with other addresses: every route follows.
    pub(super) fn adopt(&self, topology: &Topology) -> Result<(), LabError> {
        let plan = Plan::of(topology).map_err(|why| LabError::topology(&why))?;
        self.forwarder.with(|network, _| network.set_routes(&plan));
        for (host, interfaces) in self.hosts.iter().zip(&plan.interfaces) {
            let set = || {
                let mut indexed = host.interfaces.iter().zip(interfaces);
                indexed.try_for_each(|(index, own)| set_routes(*index, &own.device))
            };
            host.namespace.enter(set).map_err(LabError::act("entering a host"))??;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let ids: Vec<_> = self.hosts.iter().filter_map(|host| host.namespace.id().ok()).collect();
        kill_inhabitants(&ids);
    }
}

/// In the host's namespace: its interfaces, and its rules if it is a router.
fn furnish(
    router: Option<KernelRouter>,
    interfaces: &[Interface],
) -> Result<Vec<Device>, LabError> {
    if let Some(router) = router {
        make_router(router)?;
    }
    interfaces.iter().map(|own| Device::open(&own.device)).collect()
}

fn position(kind: &str, names: Vec<String>, name: &str) -> Result<usize, LabError> {
    names.iter().position(|known| known == name).ok_or_else(|| {
        LabError::topology(&format!("no {kind} {name:?}; there are {}", names.join(", ")))
    })
}

/// A host of a running lab.
#[derive(Clone, Copy, Debug)]
pub struct HostHandle<'a> {
    lab: &'a Lab,
    index: usize,
}

impl<'a> HostHandle<'a> {
    /// A program to run in this host. It is killed when the lab ends, also when this process is
    /// killed.
    pub fn command(&self, program: impl AsRef<OsStr>) -> HostCommand<'a> {
        HostCommand::new(&self.lab.spawner, self.namespace(), program.as_ref())
    }

    /// Starts `command` in this host as it is. It is killed when the lab is dropped, but lives on
    /// without a network if this process is killed.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn spawn(&self, command: Command) -> io::Result<Child> {
        self.lab.spawner.spawn(self.namespace(), command)
    }

    /// Runs `act` in a thread inside this host, and waits for it. Sockets stay in the host in which
    /// they were made, and may be used from anywhere; so do the threads it starts. A panic goes on in
    /// the caller.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.namespace().enter(act)
    }

    /// Moves the calling thread into this host for good; for threads of a runtime that serves one
    /// host (`on_thread_start`).
    ///
    /// # Errors
    /// Not permitted.
    pub fn join(&self) -> io::Result<()> {
        self.namespace().join()
    }

    /// Its addresses, interface by interface.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let topology = self.lab.lock();
        let name = &topology.hosts[self.index].name;
        let ends = topology.links.iter().flat_map(|link| [&link.from, &link.to]);
        let own = ends.filter(|end| end.at == *name).flat_map(|end| &end.addresses);
        own.map(|own| own.ip).collect()
    }

    /// Exchanges an address, as when a client roams: the old one goes first, sockets bound to it
    /// are stranded. Both are as in `192.168.1.2/24`. NATs' own addresses: [`NatHandle::rebind`].
    ///
    /// # Errors
    /// The host does not have the old address, or the kernel refuses the new one.
    pub fn readdress(&self, old: &str, new: &str) -> Result<(), LabError> {
        let parse = |text: &str| text.parse().map_err(LabError::act("address"));
        let (old, new): (Subnet, Subnet) = (parse(old)?, parse(new)?);
        let mut topology = self.lab.lock();
        let plan = Plan::of(&topology).map_err(|why| LabError::topology(&why))?;
        let interfaces = plan.interfaces[self.index].iter();
        let has = |own: &Interface| own.device.addresses.contains(&old);
        let nth = interfaces.clone().position(has).ok_or_else(|| {
            let name = &topology.hosts[self.index].name;
            LabError::topology(&format!("host {name} has no address {old}"))
        })?;
        let own = &plan.interfaces[self.index][nth];
        let mut changed = topology.clone();
        let link = &mut changed.links[own.link];
        let end = if own.end == 0 { &mut link.from } else { &mut link.to };
        end.addresses.iter_mut().filter(|own| **own == old).for_each(|own| *own = new);
        Plan::of(&changed).map_err(|why| LabError::topology(&why))?;
        let index = self.lab.hosts[self.index].interfaces[nth];
        let exchanged = self.enter(|| exchange_address(index, old, new));
        exchanged.map_err(LabError::act("entering a host"))??;
        self.lab.adopt(&changed)?;
        *topology = changed;
        Ok(())
    }

    fn namespace(&self) -> &'a Namespace {
        &self.lab.hosts[self.index].namespace
    }
}
