//! Tuning is tried before it is needed, and what the kernel refuses is explained.
use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use super::{Tuning, TuningOption};

/// The kernel does not do what was asked. Another kernel, or the remedy in the text, would.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{option}={value}: {why}")]
pub struct TuningRefused {
    /// Which option.
    pub option: TuningOption,
    /// Its value, as it is written.
    pub value: String,
    /// What the kernel said, and what to do about it.
    pub why: String,
}

/// The congestion control algorithms that are ready for use, which is all that an agent may ask the gateway for: naming
/// another one would make the kernel look for a module. Empty if the kernel does not tell.
#[must_use]
pub fn congestion_controls() -> Vec<String> {
    words(AVAILABLE)
}

impl Tuning {
    /// Tries every option on a socket like a listener on `address`.
    ///
    /// # Errors
    /// What the kernel refuses, and what would mend it.
    pub fn probe_listener(&self, address: SocketAddr) -> Result<(), TuningRefused> {
        self.apply_to_listener(scratch(address).map_err(|error| self.no_socket(&error))?)?;
        match self.fast_open {
            Some(_) if !fast_open_allowed(&setting(FAST_OPEN)) => {
                Err(self.refusal(TuningOption::FastOpen, NO_FAST_OPEN.into()))
            }
            _ => Ok(()),
        }
    }

    /// Tries every option on a socket like a connection to or from `address`.
    ///
    /// # Errors
    /// What the kernel refuses, and what would mend it.
    pub fn probe_connection(&self, address: SocketAddr) -> Result<(), TuningRefused> {
        self.apply_to_connection(scratch(address).map_err(|error| self.no_socket(&error))?)
    }

    pub(super) fn refused(&self, option: TuningOption, error: &io::Error) -> TuningRefused {
        self.refusal(option, explain(option, error))
    }

    fn no_socket(&self, error: &io::Error) -> TuningRefused {
        let first = TuningOption::ALL.into_iter().find(|option| self.value_of(*option).is_some());
        let option = first.unwrap_or(TuningOption::Congestion);
        self.refusal(option, format!("no socket to try it on: {error}"))
    }

    fn refusal(&self, option: TuningOption, why: String) -> TuningRefused {
        TuningRefused { option, value: self.value_of(option).unwrap_or_default(), why }
    }
}

/// Algorithms in the kernel, and those of them that need no privilege.
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
/// Bits: 1 for clients, 2 for servers (Documentation/networking/ip-sysctl.rst). The socket option succeeds without.
const FAST_OPEN: &str = "/proc/sys/net/ipv4/tcp_fastopen";
const NO_FAST_OPEN: &str =
    "servers may not use TCP Fast Open here; allow it with `sysctl -w net.ipv4.tcp_fastopen=3`";

fn scratch(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
}

fn explain(option: TuningOption, error: &io::Error) -> String {
    match (option, error.raw_os_error()) {
        (TuningOption::Congestion, Some(libc::ENOENT)) => format!(
            "this kernel does not have it ready; it has {} ({AVAILABLE}). Load it with `modprobe tcp_NAME`, or choose \
             one of these",
            words(AVAILABLE).join(", ")
        ),
        (TuningOption::Congestion, Some(libc::EPERM)) => format!(
            "without CAP_NET_ADMIN only {} may be chosen ({ALLOWED}). Add it there with `sysctl -w \
             net.ipv4.tcp_allowed_congestion_control=\"...\"`, or choose one of these",
            words(ALLOWED).join(", ")
        ),
        (_, Some(libc::ENOPROTOOPT)) => {
            "this kernel does not know the option; a newer one does".into()
        }
        _ => format!("the kernel refuses it: {error}"),
    }
}

fn fast_open_allowed(setting: &str) -> bool {
    setting.trim().parse::<u32>().is_ok_and(|bits| bits & 2 != 0)
}

fn words(path: &str) -> Vec<String> {
    setting(path).split_whitespace().map(str::to_owned).collect()
}

fn setting(path: &str) -> String {
    // Without /proc nothing is known, and the kernel's own answer must do.
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

    #[test]
    fn what_the_kernel_has_passes() {
        let reno: Tuning =
            "congestion=reno,dscp=ef,max-pacing-rate=400gbit,mss=88".parse().unwrap();
        for address in ADDRESSES {
            let address = address.parse().unwrap();
            let tuning = reno.over(&Tuning::base());
            assert_eq!(tuning.probe_listener(address), Ok(()));
            assert_eq!(tuning.probe_connection(address), Ok(()));
        }
    }

    #[test]
    fn an_unknown_congestion_control_is_refused_and_those_there_are_are_named() {
        let unknown: Tuning = "dscp=ef,congestion=nosuch".parse().unwrap();
        for address in ADDRESSES {
            let refused = unknown.probe_listener(address.parse().unwrap()).unwrap_err();
            assert_eq!(
                (refused.option, refused.value.as_str()),
                (TuningOption::Congestion, "nosuch")
            );
            // With neither privilege nor such a module the kernel says EPERM or ENOENT, as it likes.
            assert!(refused.why.contains("reno"), "{refused}");
            assert_eq!(unknown.probe_connection(address.parse().unwrap()), Err(refused));
        }
        assert!(congestion_controls().iter().any(|name| name == "reno"));
    }

    #[test]
    fn fast_open_needs_the_servers_bit() {
        for (setting, allowed) in
            [("0\n", false), ("1\n", false), ("2\n", true), ("1027\n", true), ("", false)]
        {
            assert_eq!(fast_open_allowed(setting), allowed, "{setting:?}");
        }
        let tuning: Tuning = "fast-open=16".parse().unwrap();
        let probed = tuning.probe_listener(ADDRESSES[0].parse().unwrap());
        assert_eq!(probed.is_ok(), fast_open_allowed(&setting(FAST_OPEN)), "{probed:?}");
        // It is no business of a connection's.
        assert_eq!(tuning.probe_connection(ADDRESSES[0].parse().unwrap()), Ok(()));
    }
}
