//! Three network namespaces in a row: client - relay - server, joined by two veth pairs.
//!
//! The calling thread ends up in the client's namespace, and whatever must belong to another party
//! is made inside [`Veth::at`]: a socket or a process stays where it was made. The relay's namespace
//! forwards, so that a direct connection takes the same two hops.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::netns::{Place, new_namespace, set};
use switchback_bench::rtnetlink::{VethEnd, address, default_route, link_up, request, veth};

/// The client (RFC 5737 documentation ranges, as all addresses here).
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The relay, on the client's side. The server reaches it over its default route.
pub(super) const RELAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const RELAY_SERVER_SIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The server.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Two addresses per wire.
const PREFIX: u8 = 30;

/// Interfaces, by the party that has them and the one they lead to.
const CLIENT_END: VethEnd<'_> = VethEnd { index: 101, name: "relay" };
const RELAY_END: VethEnd<'_> = VethEnd { index: 201, name: "client" };
const RELAY_SERVER_END: VethEnd<'_> = VethEnd { index: 202, name: "server" };
const SERVER_END: VethEnd<'_> = VethEnd { index: 301, name: "relay" };

/// The three namespaces. They vanish when nobody holds or inhabits them any more.
#[derive(Debug)]
pub(crate) struct Veth {
    client: File,
    relay: File,
    server: File,
}

impl Veth {
    /// Builds everything; the calling thread is in the client's namespace afterwards.
    ///
    /// # Errors
    /// Not permitted, or the kernel lacks veth.
    pub(super) fn build() -> Result<Veth> {
        let made = || new_namespace().and_then(|()| current());
        let veth = Veth { server: made()?, relay: made()?, client: made()? };
        veth.at(Place::Client, || veth.set_up_client()).context("the client's side")?;
        veth.at(Place::Relay, || veth.set_up_relay()).context("the relay's side")?;
        veth.at(Place::Server, set_up_server).context("the server's side")?;
        // Only now, as a route needs its wire to be up at both ends.
        request(&default_route(RELAY)).context("the client's route")?;
        Ok(veth)
    }

    /// Runs `act` in the namespace of `place` and returns to the client's.
    ///
    /// # Errors
    /// `act` fails, or a namespace cannot be entered.
    pub(super) fn at<T>(&self, place: Place, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let namespace = match place {
            Place::Client => &self.client,
            Place::Relay => &self.relay,
            Place::Server => &self.server,
        };
        setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
        let result = act();
        setns(&self.client, CloneFlags::CLONE_NEWNET).context("returning from a namespace")?;
        result
    }

    fn set_up_client(&self) -> Result<()> {
        request(&veth(CLIENT_END, RELAY_END, self.relay.as_fd()))?;
        bring_up(CLIENT_END, CLIENT)
    }

    fn set_up_relay(&self) -> Result<()> {
        request(&veth(RELAY_SERVER_END, SERVER_END, self.server.as_fd()))?;
        set("net/ipv4/ip_forward", "1")?;
        bring_up(RELAY_END, RELAY)?;
        bring_up(RELAY_SERVER_END, RELAY_SERVER_SIDE)
    }
}

fn set_up_server() -> Result<()> {
    bring_up(SERVER_END, SERVER)?;
    request(&default_route(RELAY_SERVER_SIDE)).context("the server's route")
}

fn bring_up(end: VethEnd<'_>, ip: Ipv4Addr) -> Result<()> {
    request(&address(end.index, ip.into(), PREFIX)).context("setting an address")?;
    request(&link_up(end.index)).context("bringing a link up")
}

/// The calling thread's namespace, held open.
fn current() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("opening a network namespace")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::netns::{Network, NetworkMode, enter};
    use std::net::TcpStream;

    #[test]
    fn the_client_reaches_the_server_through_the_relay_and_only_there() {
        std::thread::spawn(|| {
            let network = match enter(NetworkMode::Veth) {
                Ok(network @ Network::Veth(_)) => network,
                other => return eprintln!("skipped: {other:?}"),
            };
            let listen = || Ok(std::net::TcpListener::bind((network.ip(Place::Server), 0))?);
            let listener = network.at(Place::Server, listen).unwrap();
            let addr = listener.local_addr().unwrap();
            let near = TcpStream::connect(addr).unwrap();
            assert_eq!(near.local_addr().unwrap().ip(), network.ip(Place::Client));
            let (_, from) = listener.accept().unwrap();
            assert_eq!(from, near.local_addr().unwrap());
            let listen = || Ok(std::net::TcpListener::bind((network.ip(Place::Relay), 0))?);
            let relay = network.at(Place::Relay, listen).unwrap().local_addr().unwrap();
            let dial = || Ok(TcpStream::connect(relay).map_err(|error| error.kind()));
            let refused = network.at(Place::Server, dial).unwrap();
            assert_eq!(refused.unwrap_err(), std::io::ErrorKind::ConnectionRefused);
        })
        .join()
        .unwrap();
    }
}
