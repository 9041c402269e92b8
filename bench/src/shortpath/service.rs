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

/// How often the end is looked for.
const POLL: Duration = Duration::from_millis(2);

/// One read.
const BUFFER: usize = 64 << 10;

/// One discarding receive: nothing is copied, this only bounds the call.
const DISCARD: usize = 1 << 20;

/// A running service. Dropping it closes its connections.
pub(crate) struct Service {
    address: SocketAddr,
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
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        thread::spawn(move || own.accept(&listener, duty));
        Ok(Service { address, shared })
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

    fn accept(self: &Arc<Self>, listener: &TcpListener, duty: Duty) {
        while !self.over.load(Ordering::Relaxed) {
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(POLL);
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
        stream.set_nonblocking(false)?;
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
        stream.set_nonblocking(false)?;
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
