//! The service at the agent's host that sessions are for: it sends back what it gets, or discards it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::{RecvFlags, recv};

use super::ground::{Ground, Host};

/// What it does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    Echo,
    Discard,
}

/// After an accept that failed: out of descriptors, as a rule.
const PAUSE: Duration = Duration::from_millis(2);

/// One read.
const BUFFER: usize = 64 << 10;

/// One discarding receive: nothing is copied, this only bounds the call.
const DISCARD: usize = 1 << 20;

/// A running service. Dropping it closes its connections.
pub(crate) struct Service {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    /// Bytes received so far.
    bytes: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Service {
    /// Listens at the agent's host, on its loopback.
    ///
    /// # Errors
    /// No socket.
    pub(crate) fn start(ground: &Ground, duty: Duty) -> Result<Service> {
        let listen = || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
        let listener = ground.enter(Host::Agent, listen).context("the service's socket")?;
        Self::on(listener, duty)
    }

    fn on(listener: TcpListener, duty: Duty) -> Result<Service> {
        let address = listener.local_addr()?;
        let (listener, shared) = (Arc::new(listener), Arc::new(Shared::default()));
        let (own, ears) = (Arc::clone(&shared), Arc::clone(&listener));
        thread::spawn(move || own.accept(&ears, duty));
        Ok(Service { address, listener, shared })
    }

    /// Where the agent connects to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes received so far, all connections together.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // On Linux a blocked accept then fails.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        for stream in self.shared.open().drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks: what a poll adds would count as the tunnel's latency.
    fn accept(self: &Arc<Self>, listener: &TcpListener, duty: Duty) {
        while !self.over.load(Ordering::Relaxed) {
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(PAUSE);
                continue;
            };
            let Ok(kept) = stream.try_clone() else { continue };
            self.open().push(kept);
            let own = Arc::clone(self);
            // A connection that breaks is its user's finding.
            thread::spawn(move || match duty {
                Duty::Echo => own.echo(stream),
                Duty::Discard => own.discard(&stream),
            });
        }
    }

    fn echo(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Ok(stream.shutdown(Shutdown::Write)?);
            }
            self.bytes.fetch_add(read as u64, Ordering::Relaxed);
            stream.write_all(&buffer[..read])?;
        }
    }

    /// The kernel discards what MSG_TRUNC receives (tcp(7)). One byte goes back, so that whoever
    /// tries the way knows that it is there.
    fn discard(&self, mut stream: &TcpStream) -> Result<()> {
        let first = stream.read(&mut [0])?;
        self.bytes.fetch_add(first as u64, Ordering::Relaxed);
        stream.write_all(b"!")?;
        let mut scratch = vec![0; DISCARD];
        loop {
            let (_, received) = recv(stream, &mut scratch[..], RecvFlags::TRUNC)?;
            if received == 0 {
                return Ok(());
            }
            self.bytes.fetch_add(received as u64, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_answers_and_listens_until_it_is_dropped() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let service = Service::on(listener, Duty::Echo).unwrap();
        let mut stream = TcpStream::connect(service.address()).unwrap();
        stream.write_all(b"!").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!((byte, service.bytes()), (*b"!", 1));
        let address = service.address();
        drop(service);
        assert!(TcpStream::connect(address).is_err());
        assert_eq!(stream.read(&mut byte).unwrap_or(0), 0);
    }
}
