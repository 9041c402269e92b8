//! A TUN device: whole IP packets between a namespace and this process, by file descriptor.
//!
//! It stays what it is after the thread that opened it has left the namespace, and it vanishes when
//! the descriptor is closed, by us or by our death.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use tun_rs::{DeviceBuilder, SyncDevice};

use super::LabError;
use super::subnet::Subnet;
use crate::rtnetlink::{address, device_route, device_up, remove_address, request};

/// MTU of every interface: Ethernet's. Smaller ones are a link's setting (`mtu=1280`).
pub(super) const MTU: usize = 1500;

/// Packets that the kernel queues towards us: with the default of 500 bursts are dropped, with 20,000
/// a sender that outruns the lab sees 100 ms of queue that no link has.
const QUEUE: u32 = 2000;

/// An interface of a host, seen from the network's side.
pub(super) struct Device {
    tun: SyncDevice,
    index: u32,
}

/// How packets leave a host: its addresses on the interface, and the networks behind it.
#[derive(Clone, Debug, Default)]
pub(super) struct InterfacePlan {
    /// Interface name, at most 15 bytes.
    pub(super) name: String,
    pub(super) addresses: Vec<Subnet>,
    pub(super) routes: Vec<Subnet>,
    /// Next hop of the default route, for who asks which router it is; packets go the same way without.
    pub(super) gateway: Option<IpAddr>,
}

impl InterfacePlan {
    /// An interface without addresses.
    pub(super) fn named(name: &str) -> InterfacePlan {
        InterfacePlan { name: name.to_owned(), ..InterfacePlan::default() }
    }
}

impl Device {
    /// Opens a device in the calling thread's namespace, with its addresses and routes, up.
    ///
    /// # Errors
    /// /dev/net/tun is missing or forbidden, or the plan is refused.
    pub(super) fn open(plan: &InterfacePlan) -> Result<Device, LabError> {
        let what = format!("interface {}", plan.name);
        let cannot_open = LabError::act(&format!("{what}: opening /dev/net/tun"));
        let built = DeviceBuilder::new().name(&plan.name).inherit_enable_state().build_sync();
        let tun = built.map_err(cannot_open)?;
        tun.set_nonblocking(true).map_err(LabError::act(&what))?;
        let index = tun.if_index().map_err(LabError::act(&what))?;
        let device = Device { tun, index };
        let up = device_up(index, MTU as u32, QUEUE);
        request(&up).map_err(LabError::act(&format!("{what}: bringing it up")))?;
        for own in &plan.addresses {
            let act = LabError::act(&format!("{what}: address {own}"));
            request(&address(index, own.ip, own.prefix)).map_err(act)?;
        }
        plan.addresses.iter().try_for_each(|own| wait_until_local(own.ip))?;
        set_routes(index, plan)?;
        Ok(device)
    }

    /// The interface's index in its namespace.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// The next packet the host sends, if there is one.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.tun, buffer) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Hands the host a packet; `false` when it does not take it (malformed, down, out of memory).
    pub(super) fn write(&self, packet: &[u8]) -> bool {
        rustix::io::write(&self.tun, packet).is_ok()
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Routes the networks out of interface `index` of the calling thread's namespace.
pub(super) fn set_routes(index: u32, plan: &InterfacePlan) -> Result<(), LabError> {
    for route in &plan.routes {
        let network = route.network();
        let act = LabError::act(&format!("route to {network}"));
        let gateway =
            plan.gateway.filter(|it| network.prefix == 0 && it.is_ipv4() == network.ip.is_ipv4());
        request(&device_route(network.ip, network.prefix, index, gateway)).map_err(act)?;
    }
    Ok(())
}

/// Exchanges an address of interface `index` of the calling thread's namespace: the old one goes
/// first, as when a host roams.
pub(super) fn exchange_address(index: u32, old: Subnet, new: Subnet) -> Result<(), LabError> {
    let removed = request(&remove_address(index, old.ip, old.prefix));
    removed.map_err(LabError::act(&format!("removing {old}")))?;
    let added = request(&address(index, new.ip, new.prefix));
    added.map_err(LabError::act(&format!("adding {new}")))?;
    wait_until_local(new.ip)
}

/// Waits until the calling thread's namespace takes packets for `ip`. The kernel adds an IPv6
/// address's local route later, by a work queue that is slow when many namespaces are being made.
fn wait_until_local(ip: IpAddr) -> Result<(), LabError> {
    let IpAddr::V6(v6) = ip else { return Ok(()) };
    // Destination and prefix length 128, in hexadecimal, of a line of ipv6_route.
    let line = format!("{:032x} 80 ", v6.to_bits());
    let what = format!("address {ip}");
    let start = Instant::now();
    while start.elapsed() < LOCAL_MAX {
        let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route");
        if routes.map_err(LabError::act(&what))?.lines().any(|route| route.starts_with(&line)) {
            return Ok(());
        }
        thread::sleep(LOCAL_POLL);
    }
    Err(LabError::act(&what)(format!("not local after {LOCAL_MAX:?}")))
}

/// It takes microseconds, or tenths of a second on a busy machine.
const LOCAL_MAX: Duration = Duration::from_secs(10);
const LOCAL_POLL: Duration = Duration::from_micros(200);

/// The default routes of the families that have an address here.
pub(super) fn default_routes(addresses: &[Subnet]) -> Vec<Subnet> {
    let everything = |ip: IpAddr| Subnet { ip, prefix: 0 }.network();
    let mut routes: Vec<Subnet> = addresses.iter().map(|own| everything(own.ip)).collect();
    routes.dedup();
    routes
}
