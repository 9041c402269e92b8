//! A TCP proxy that can freeze: what a lost NAT entry looks like. Frozen connections move no byte and never close;
//! new ones work.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

pub(crate) struct FreezingProxy {
    addr: SocketAddr,
    upstream: Arc<Mutex<Option<SocketAddr>>>,
    frozen_before: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
}

impl FreezingProxy {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let proxy = Self {
            addr: listener.local_addr().unwrap(),
            upstream: Arc::default(),
            frozen_before: Arc::default(),
            accepted: Arc::default(),
        };
        let (upstream, frozen, accepted) = (
            Arc::clone(&proxy.upstream),
            Arc::clone(&proxy.frozen_before),
            Arc::clone(&proxy.accepted),
        );
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let Some(addr) = *upstream.lock().unwrap() else { continue };
                let Ok(far) = TcpStream::connect(addr) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let frozen = Arc::clone(&frozen);
                    thread::spawn(move || pump(from, to, number, &frozen));
                }
            }
        });
        proxy
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn forward_to(&self, upstream: SocketAddr) {
        *self.upstream.lock().unwrap() = Some(upstream);
    }

    /// All connections so far go silent for ever.
    pub(crate) fn freeze(&self) {
        self.frozen_before.store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, number: usize, frozen_before: &AtomicUsize) {
    let mut buffer = [0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        if number < frozen_before.load(Ordering::SeqCst) {
            // Keep both sockets open and say nothing, as a NAT that forgot the connection does.
            loop {
                thread::park();
            }
        }
        if count == 0 {
            let _ = to.shutdown(std::net::Shutdown::Write);
            return;
        }
        if to.write_all(&buffer[..count]).is_err() {
            let _ = from.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}
