//! Several hosts on one machine: links whose quality changes while traffic runs, and every NAT.
//!
//! ```no_run
//! use switchback_bench::lab::Lab;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lab = Lab::start(&"pair:client-nat=symmetric,client-link=4g".parse()?, 1)?;
//! let socket = lab.host("client").enter(|| std::net::UdpSocket::bind("0.0.0.0:0"))??;
//! let output = lab.host("agent").command("ping").args(["-c1", "192.0.2.1"]).output()?;
//! lab.link("client").set("loss=5%")?;
//! lab.nat("client-nat").block("udp=drop")?;
//! # Ok(()) }
//! ```
//!
//! `packet`, `nat`, `wire`, `presets`, `plan` and `network` decide without a clock or a socket: time
//! is the [`std::time::Duration`] since the lab's start, chance comes from a seed. `forward` is the
//! thread that moves packets between them and the hosts' TUN devices (`device`), each in a network
//! namespace without a name (`namespace`). `topology` and `named` say what there is, `handle` and `middle`
//! change it while it runs, `spawn` runs programs in it, `control` lets other processes do so.

pub mod control;
mod device;
mod forward;
mod handle;
mod kernel;
mod middle;
mod named;
mod namespace;
pub mod nat;
mod network;
pub mod packet;
mod plan;
pub mod presets;
pub mod probe;
pub mod referee;
mod spawn;
mod status;
mod subnet;
mod topology;
pub mod wire;

use std::fmt;

pub use self::handle::{HostHandle, Lab};
pub use self::middle::{LinkHandle, NatHandle};
pub use self::named::{NAMED, Named};
pub use self::spawn::HostCommand;
pub use self::status::{LinkStatus, NatStatus, Status, WireStatus};
pub use self::subnet::Subnet;
pub use self::topology::{End, Host, KernelRouter, Link, Router, Topology};

/// Why a lab cannot be made or changed: what was to be done, and what was in the way.
#[derive(Debug)]
pub struct LabError {
    what: String,
    why: String,
}

impl LabError {
    /// For `map_err`: this was being done.
    fn act<E: fmt::Display>(what: &str) -> impl Fn(E) -> LabError + use<E> {
        let what = what.to_owned();
        // Alternate form: an error's causes as well, where it has them.
        move |error| LabError { what: what.clone(), why: format!("{error:#}") }
    }

    fn topology(why: &str) -> LabError {
        LabError { what: "topology".into(), why: why.to_owned() }
    }
}

impl fmt::Display for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for LabError {}

/// Why no lab can run here; `None` when it can.
pub fn unavailable() -> Option<String> {
    let device = || device::Device::open(&device::InterfacePlan::named("eth0"));
    namespace::Namespace::create(device).err().map(|error| {
        format!("{error} (needs root, or unshare -Urn where /dev/net/tun is open to all)")
    })
}

/// Why the kernel's NAT (topology `kernel`) cannot run here; `None` when it can.
pub fn kernel_unavailable() -> Option<String> {
    unavailable().or_else(kernel::unavailable)
}

/// For tests: whether to leave out what needs a lab, because of `missing`.
///
/// The environment variable `NETLAB` decides: `off` leaves it out; otherwise it is left out, with a
/// line on standard error, if something is missing.
///
/// # Panics
/// With `NETLAB=require` (for CI) instead of leaving anything out.
pub fn skip(missing: Option<String>) -> bool {
    let mode = std::env::var("NETLAB").unwrap_or_default();
    match missing {
        _ if mode == "off" => true,
        None => false,
        Some(why) => {
            assert!(mode != "require", "NETLAB=require, but {why}");
            eprintln!("SKIPPED (lab): {why}");
            true
        }
    }
}
