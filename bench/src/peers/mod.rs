//! Every rival through the same door: ours is a process like the others.
//!
//! `catalogue` names them all. `proxied` is what rivals have in common that one connects to and that
//! connect to a target; each such rival is a small file with its configuration.

pub(crate) mod catalogue;
pub(crate) mod child;
pub(crate) mod direct;
mod haproxy;
mod nginx;
pub(crate) mod own_relay;
pub(crate) mod program;
mod proxied;
mod rathole;
mod socat;
pub(crate) mod socket;
pub(crate) mod ssh;
pub(crate) mod switchback;
pub(crate) mod verify;

use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Result;
use rustix::process::Pid;

pub(crate) use self::switchback::{Pair, refusal};

/// A connected pair through a peer: what is written into one end comes out of the other.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Where the load enters: the client's side.
    pub(crate) near: TcpStream,
    /// Where it comes out: the service's side.
    pub(crate) far: TcpStream,
}

/// Where load that makes its own connections dials, and where they come out.
pub(crate) enum Dialling {
    /// Each connection to `relay` comes out as one accepted by `far`.
    Proxied { relay: SocketAddr, far: TcpListener },
    /// Both ends dial `gateway`, each with its hello; a pair is good once, for seconds.
    Legs { gateway: SocketAddr, pairs: Vec<Pair> },
}

/// Why a peer cannot be measured here, and how to get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    /// "haproxy is not installed"
    pub(crate) reason: String,
    /// "scripts/bench-peers installs it"
    pub(crate) remedy: String,
}

/// Something that carries TCP from one socket to another.
pub(crate) trait Peer {
    /// Unique name in reports.
    fn name(&self) -> &str;

    /// What exactly is measured, as the program itself tells.
    fn version(&self) -> &str;

    /// Whether it can be started on this machine.
    ///
    /// # Errors
    /// Why not, and how to get it.
    fn available(&self) -> Result<(), Skip> {
        Ok(())
    }

    /// Starts it, pinned to the relay's CPU, and returns when it is ready for flows.
    fn start(&mut self) -> Result<()>;

    /// Ends it and everything it started. Harmless when it is not running.
    fn stop(&mut self) -> Result<()>;

    /// Opens `count` flows, ready for bytes both ways, with blocking sockets.
    fn open(&mut self, count: usize) -> Result<Vec<Flow>>;

    /// Prepares for about `count` connections that the load will make itself. Pairs may be fewer
    /// or more than `count`: they are minted here, at the peer's cost, so not while measuring.
    fn dial(&mut self, count: usize) -> Result<Dialling>;

    /// Its processes and all their descendants at this moment, whose CPU and memory are counted.
    /// Empty for a direct connection. Ask when flows are open: some peers fork for each.
    fn pids(&self) -> Vec<Pid>;
}
