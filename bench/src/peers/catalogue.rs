//! Every peer by its name on the command line and in reports.

use std::path::PathBuf;

use clap::ValueEnum;

use super::Peer;
use super::direct::Direct;
use super::socket::Dialer;
use super::switchback::{Io, Switchback};
use super::tokio_copy::TokioCopy;
use crate::measure::placement::Placement;

/// Peers in the order of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerKind {
    /// One TCP connection, no relay
    Direct,
    /// A tokio copy loop with 64 KiB buffers
    TokioCopy,
    /// Our gateway with `--io uring`
    SwitchbackUring,
    /// Our gateway with `--io epoll`
    SwitchbackEpoll,
}

impl PeerKind {
    /// The name in reports and flags.
    pub(crate) fn name(self) -> &'static str {
        match self {
            PeerKind::Direct => "direct",
            PeerKind::TokioCopy => "tokio-copy",
            PeerKind::SwitchbackUring => "switchback-uring",
            PeerKind::SwitchbackEpoll => "switchback-epoll",
        }
    }
}

/// What peers are built from.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) dialer: Dialer,
    pub(crate) placement: Placement,
    /// The `switchback` binary.
    pub(crate) binary: PathBuf,
}

/// A peer that is not started yet.
pub(crate) fn build(kind: PeerKind, setup: &Setup) -> Box<dyn Peer> {
    let ours = |io| Box::new(Switchback::new(io, &setup.binary, setup.dialer, setup.placement));
    match kind {
        PeerKind::Direct => Box::new(Direct::new(setup.dialer)),
        PeerKind::TokioCopy => Box::new(TokioCopy::new(setup.dialer, setup.placement)),
        PeerKind::SwitchbackUring => ours(Io::Uring),
        PeerKind::SwitchbackEpoll => ours(Io::Epoll),
    }
}

/// All names, in the order of tables.
pub(crate) fn names() -> Vec<String> {
    [
        "direct",
        "haproxy-splice",
        "haproxy-splice256",
        "nginx",
        "tokio-copy",
        "tokio-uring",
        "rathole",
        "ssh",
        "socat",
        "switchback-uring",
        "switchback-epoll",
        "switchback-busy-poll",
    ]
    .map(str::to_owned)
    .to_vec()
}
