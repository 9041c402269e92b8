//! All peers by name, and what they are built from.

use std::path::PathBuf;

use clap::ValueEnum;

use super::Peer;
use super::direct::{DIRECT, Direct};
use super::haproxy::Haproxy;
use super::nginx::Nginx;
use super::own_relay::{OwnRelay, TOKIO_COPY, TOKIO_URING};
use super::proxied::{Program, Proxied};
use super::rathole::Rathole;
use super::socat::Socat;
use super::socket::Dialer;
use super::ssh::Ssh;
use super::switchback::{Io, Switchback};
use crate::measure::netns::{CONGESTION, Network};
use crate::measure::placement::Placement;

/// Peers by their names in reports, in their order there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerKind {
    /// No relay: one TCP connection
    Direct,
    /// HAProxy, splicing forced, its default pipes
    HaproxySplice,
    /// HAProxy, splicing forced, pipes of 256 KiB
    #[value(name = "haproxy-splice256")]
    HaproxySplice256,
    /// nginx stream, buffers of 64 KiB
    Nginx,
    /// A tokio copy loop with buffers of 64 KiB
    TokioCopy,
    /// A tokio-uring copy loop with buffers of 64 KiB
    TokioUring,
    /// rathole, plain TCP: its server and its client
    Rathole,
    /// OpenSSH `ssh -R`: sshd and ssh
    Ssh,
    /// socat, a process per connection
    Socat,
    /// Our gateway with `--io uring`
    SwitchbackUring,
    /// Our gateway with `--io epoll`
    SwitchbackEpoll,
    /// Our gateway with `--io uring --busy-poll 200`
    SwitchbackBusyPoll,
}

impl PeerKind {
    /// The name in reports and flags.
    pub(crate) fn name(self) -> &'static str {
        match self {
            PeerKind::Direct => DIRECT,
            PeerKind::HaproxySplice => "haproxy-splice",
            PeerKind::HaproxySplice256 => "haproxy-splice256",
            PeerKind::Nginx => "nginx",
            PeerKind::TokioCopy => TOKIO_COPY,
            PeerKind::TokioUring => TOKIO_URING,
            PeerKind::Rathole => "rathole",
            PeerKind::Ssh => "ssh",
            PeerKind::Socat => "socat",
            PeerKind::SwitchbackUring => "switchback-uring",
            PeerKind::SwitchbackEpoll => "switchback-epoll",
            PeerKind::SwitchbackBusyPoll => "switchback-busy-poll",
        }
    }
}

/// All names, in their order in reports.
pub(crate) fn names() -> Vec<String> {
    PeerKind::value_variants().iter().map(|kind| kind.name().to_owned()).collect()
}

/// What peers are built from.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Makes the generator's sockets, in `network`.
    pub(crate) dialer: Dialer,
    pub(crate) placement: Placement,
    pub(crate) network: Network,
    /// The switchback binary. Need not exist unless one of ours is built.
    pub(crate) binary: PathBuf,
}

impl Setup {
    /// A run in `network`, the generator's sockets with [`CONGESTION`].
    pub(crate) fn new(network: Network, placement: Placement, binary: PathBuf) -> Setup {
        let dialer = Dialer::with_congestion(CONGESTION).on(network);
        Setup { dialer, placement, network, binary }
    }
}

/// A peer that is not started yet.
pub(crate) fn build(kind: PeerKind, setup: &Setup) -> Box<dyn Peer> {
    let program: Box<dyn Program> = match kind {
        PeerKind::Direct => return Box::new(Direct::new(setup.dialer)),
        PeerKind::SwitchbackUring => return ours(kind, Io::Uring, None, setup),
        PeerKind::SwitchbackEpoll => return ours(kind, Io::Epoll, None, setup),
        PeerKind::SwitchbackBusyPoll => {
            return ours(kind, Io::Uring, Some(BUSY_POLL_MICROSECONDS), setup);
        }
        PeerKind::HaproxySplice => Box::new(Haproxy { pipe_bytes: None }),
        PeerKind::HaproxySplice256 => Box::new(Haproxy { pipe_bytes: Some(256 << 10) }),
        PeerKind::Nginx => Box::new(Nginx),
        PeerKind::TokioCopy => Box::new(OwnRelay::TOKIO_COPY),
        PeerKind::TokioUring => Box::new(OwnRelay::TOKIO_URING),
        PeerKind::Rathole => Box::new(Rathole),
        PeerKind::Ssh => Box::new(Ssh),
        PeerKind::Socat => Box::new(Socat),
    };
    Box::new(Proxied::new(kind.name(), program, setup.clone()))
}

/// Spin before sleeping: longer than the gaps of 5,000 messages per second.
const BUSY_POLL_MICROSECONDS: u32 = 200;

fn ours(kind: PeerKind, io: Io, busy_poll: Option<u32>, setup: &Setup) -> Box<dyn Peer> {
    Box::new(Switchback::new(kind.name(), io, busy_poll, setup.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::netns::{NetworkMode, enter};
    use crate::measure::tree::with_descendants;
    use crate::peers::Dialling;
    use crate::peers::socket::accept;
    use crate::peers::verify::verify;
    use rustix::process::test_kill_process;

    /// Starts one peer, checks that it is true and that nothing of it is left, or says why not.
    fn check(kind: PeerKind, mode: NetworkMode) {
        // A thread of its own: its namespace is not the other tests'.
        let tested = std::thread::spawn(move || {
            let network = match enter(mode) {
                Ok(network) => network,
                Err(error) => return eprintln!("skipped: {error:#}"),
            };
            let setup = Setup::new(network, Placement::default(), PathBuf::new());
            let mut peer = build(kind, &setup);
            if let Err(skip) = peer.available() {
                return eprintln!("skipped: {}", skip.reason);
            }
            peer.start().unwrap();
            assert!(peer.version().contains(|c: char| c.is_ascii_digit()), "{}", peer.version());
            for flow in peer.open(3).unwrap() {
                verify(flow).unwrap();
            }
            let Dialling::Proxied { relay, far } = peer.dial(1).unwrap() else {
                panic!("{} has one address to dial", peer.name())
            };
            let near = setup.dialer.connect(relay).unwrap();
            verify(super::super::Flow { near, far: accept(&far).unwrap() }).unwrap();
            let held = peer.open(1).unwrap();
            let pids = peer.pids();
            assert!(!pids.is_empty());
            peer.stop().unwrap();
            drop(held);
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while pids.iter().any(|pid| runs(*pid)) {
                assert!(std::time::Instant::now() < deadline, "{kind:?} left processes behind");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            assert_eq!(with_descendants(&pids), pids);
        });
        tested.join().unwrap();
    }

    /// A zombie that init has yet to collect does not run.
    fn runs(pid: rustix::process::Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        test_kill_process(pid).is_ok() && stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn haproxy_carries_bytes_truly() {
        check(PeerKind::HaproxySplice, NetworkMode::Auto);
    }

    #[test]
    fn haproxy_with_large_pipes_carries_bytes_truly() {
        check(PeerKind::HaproxySplice256, NetworkMode::Auto);
    }

    #[test]
    fn nginx_carries_bytes_truly() {
        check(PeerKind::Nginx, NetworkMode::Auto);
    }

    #[test]
    fn rathole_carries_bytes_truly() {
        check(PeerKind::Rathole, NetworkMode::Auto);
    }

    #[test]
    fn ssh_carries_bytes_truly() {
        check(PeerKind::Ssh, NetworkMode::Auto);
    }

    #[test]
    fn socat_carries_bytes_truly() {
        check(PeerKind::Socat, NetworkMode::Auto);
    }

    #[test]
    fn peers_relay_between_namespaces() {
        for kind in [PeerKind::HaproxySplice, PeerKind::Rathole, PeerKind::Ssh, PeerKind::Socat] {
            check(kind, NetworkMode::Veth);
        }
    }

    #[test]
    fn names_are_those_of_the_flags() {
        for kind in PeerKind::value_variants() {
            assert_eq!(kind.to_possible_value().unwrap().get_name(), kind.name());
        }
    }

    #[test]
    fn a_missing_gateway_is_skipped_with_its_remedy() {
        let setup =
            Setup::new(Network::Host, Placement::default(), "/nonexistent/switchback".into());
        let skip = build(PeerKind::SwitchbackUring, &setup).available().unwrap_err();
        assert!(skip.reason.contains("/nonexistent/switchback"), "{skip:?}");
        assert!(skip.remedy.contains("cargo build --release"), "{skip:?}");
    }
}
