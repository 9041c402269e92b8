//! A private network namespace: clean loopback with a known congestion control.
//!
//! The relay's own sockets take the namespace's default congestion control, and under BBR loopback
//! is 2 to 4 times slower and erratic. In a namespace of our own the default can be set without
//! touching the machine.

use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::sched::{CloneFlags, unshare};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Where a run takes place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkMode {
    /// Private if the system permits it, else the host's with a warning.
    #[default]
    Auto,
    /// A private network namespace, or an error (needs root or CAP_SYS_ADMIN).
    Private,
    /// The namespace the bench was started in, as it is.
    Host,
}

/// Reno: built into every kernel and, unlike cubic, always permitted in every namespace.
pub(crate) const CONGESTION: &str = "reno";

/// Settings of the private namespace; each is reset when it vanishes with the process.
///
/// Reused TIME_WAIT sockets and a wide port range keep thousands of short flows from running out
/// of ports.
const SYSCTLS: [(&str, &str); 3] = [
    ("net/ipv4/tcp_congestion_control", CONGESTION),
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/ip_local_port_range", "1100 65000"),
];

/// Moves the calling process into a private namespace, as far as `mode` asks for and allows.
///
/// Returns whether it did. Must run before any thread is started: only threads started afterwards
/// follow. Undone by the end of the process.
///
/// # Errors
/// With [`NetworkMode::Private`], that it is not possible; otherwise only if the half-made
/// namespace is unusable.
pub(crate) fn enter(mode: NetworkMode) -> Result<bool> {
    if mode == NetworkMode::Host {
        return Ok(false);
    }
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        ensure!(
            mode == NetworkMode::Auto,
            "no private network namespace: {errno}; try --network host"
        );
        return Ok(false);
    }
    loopback_up().context("bringing loopback up in the private namespace; try --network host")?;
    for (name, value) in SYSCTLS {
        fs::write(format!("/proc/sys/{name}"), value).with_context(|| {
            format!("setting {name} in the private namespace; try --network host")
        })?;
    }
    Ok(true)
}

/// Asks rtnetlink(7) to set `IFF_UP` on interface 1, which is always `lo`.
fn loopback_up() -> Result<()> {
    let socket: OwnedFd =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, NETLINK_ROUTE)?;
    send(&socket, &link_up_message(1), SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (bytes, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let error = acknowledged(&answer[..bytes]).context("not an acknowledgement")?;
    ensure!(error == 0, "netlink error {}", std::io::Error::from_raw_os_error(-error));
    Ok(())
}

/// Protocol 0 of the netlink family (rtnetlink(7)).
const NETLINK_ROUTE: Option<Protocol> = None;
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;

/// `struct nlmsghdr` and `struct ifinfomsg` with the up flag set and masked (netlink(7)).
fn link_up_message(index: u32) -> Vec<u8> {
    const BYTES: u32 = 32;
    let mut message = Vec::with_capacity(BYTES as usize);
    message.extend(BYTES.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]); // sequence, sender
    message.extend([0; 4]); // AF_UNSPEC, padding, any device type
    message.extend(index.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message
}

/// The code of an NLMSG_ERROR message: 0 is success, negative an errno.
fn acknowledged(message: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_message_has_the_length_it_claims() {
        let message = link_up_message(1);
        assert_eq!(message.len(), 32);
        assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()), 32);
    }

    #[test]
    fn an_acknowledgement_is_told_from_a_refusal_and_from_noise() {
        let mut answer = vec![0_u8; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(acknowledged(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer), Some(-1));
        assert_eq!(acknowledged(&answer[..10]), None);
        answer[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        assert_eq!(acknowledged(&answer), None);
    }
}
