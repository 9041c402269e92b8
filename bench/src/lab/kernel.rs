//! A router that is the Linux kernel's: forwarding, and nftables rules as home routers have them.
//!
//! The firewall drops what comes to the router itself. Without that, a peer's early packet would
//! leave a conntrack entry on the very port our next packet wants, which then leaves from another one
//! ("port poisoning").

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::LabError;
use super::namespace::set;
use super::spawn::find;
use super::topology::KernelRouter;

/// Makes the calling thread's namespace a router.
///
/// # Errors
/// `nft` is missing or refuses.
pub(super) fn make_router(router: KernelRouter) -> Result<(), LabError> {
    set("net/ipv4/ip_forward", "1")?;
    // Where there is no IPv6 there is nothing to forward.
    let _ = set("net/ipv6/conf/all/forwarding", "1");
    let translation = match router {
        KernelRouter::Plain => return Ok(()),
        KernelRouter::Firewall => "",
        KernelRouter::Masquerade => MASQUERADE,
        KernelRouter::MasqueradeRandom => MASQUERADE_RANDOM,
    };
    load(&format!("{FIREWALL}{translation}"))
}

/// Why the kernel's NAT cannot be used here, if so.
pub(super) fn unavailable() -> Option<String> {
    find(Path::new("nft")).is_none().then(|| "no program nft (package nftables)".to_owned())
}

fn load(rules: &str) -> Result<(), LabError> {
    let failed = |why: &str| LabError { what: "nft".into(), why: why.to_owned() };
    let program = find(Path::new("nft"));
    let program = program.ok_or_else(|| failed("is not installed (package nftables)"))?;
    let mut command = Command::new(program);
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(LabError::act("nft"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it has ended already, its message says why.
        let _ = stdin.write_all(rules.as_bytes());
    }
    let output = child.wait_with_output().map_err(LabError::act("nft"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(failed(message.trim())) }
}

/// Lets out everything, in only what belongs to it. IPv6 needs its neighbours and its errors.
const FIREWALL: &str = r#"
table inet fw {
 chain fw_forward { type filter hook forward priority 0; policy drop;
  ct state established,related accept
  iifname "lan*" accept
  icmpv6 type { packet-too-big, destination-unreachable, time-exceeded, parameter-problem } accept
 }
 chain fw_input { type filter hook input priority 0; policy drop;
  ct state established,related accept
  iifname { "lan*", "lo" } accept
  icmp type echo-request accept
  icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert, echo-request } accept
 }
}
"#;

const MASQUERADE: &str = r#"
table ip nat {
 chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade ; }
}
"#;

const MASQUERADE_RANDOM: &str = r#"
table ip nat {
 chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade fully-random ; }
}
"#;
