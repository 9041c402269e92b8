//! Services for agents to reach.
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// Sends back what it receives, and ends its side when the peer has ended its own.
pub(crate) struct EchoTarget {
    addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl EchoTarget {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                thread::Builder::new()
                    .stack_size(128 * 1024)
                    .spawn(move || echo(stream))
                    .expect("a thread");
            }
        });
        Self { addr, accepted }
    }

    pub(crate) fn resource(&self, name: &str) -> String {
        over_the_gateway(name, self.addr)
    }

    /// As a resource with these options.
    pub(crate) fn resource_with(&self, name: &str, options: &str) -> String {
        format!("{name}=tcp:{}{options}", self.addr)
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// On one machine every session would be direct, and the gateway out of work; `shortpath` is about the rest.
fn over_the_gateway(name: &str, addr: SocketAddr) -> String {
    format!("{name}=tcp:{addr};udp=off")
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 32 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Accepts and reads only while allowed to: a slow service.
pub(crate) struct SinkTarget {
    addr: SocketAddr,
    reading: Arc<AtomicBool>,
}

impl SinkTarget {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().unwrap();
        let reading = Arc::new(AtomicBool::new(false));
        let allowed = Arc::clone(&reading);
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let allowed = Arc::clone(&allowed);
                thread::spawn(move || {
                    let (mut total, mut buffer) = (0u64, [0; 64 * 1024]);
                    loop {
                        while !allowed.load(Ordering::Relaxed) {
                            thread::sleep(std::time::Duration::from_millis(5));
                        }
                        match stream.read(&mut buffer) {
                            Ok(count @ 1..) => total += count as u64,
                            _ => break,
                        }
                    }
                    let _ = stream.write_all(&total.to_be_bytes());
                });
            }
        });
        Self { addr, reading }
    }

    pub(crate) fn resource(&self, name: &str) -> String {
        over_the_gateway(name, self.addr)
    }

    pub(crate) fn start_reading(&self) {
        self.reading.store(true, Ordering::Relaxed);
    }
}

/// Answers no SYN, because its backlog is full, until it recovers and echoes.
pub(crate) struct HangingTarget {
    addr: SocketAddr,
    listener: TcpListener,
    /// What fills the backlog.
    _filling: Vec<Socket>,
}

impl HangingTarget {
    pub(crate) fn start() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&any.into()).expect("a port");
        listener.listen(0).unwrap();
        let listener = TcpListener::from(listener);
        let addr = listener.local_addr().unwrap();
        let fill = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            // In progress until the target recovers.
            let _ = socket.connect(&addr.into());
            socket
        };
        let filling = (0..4).map(fill).collect();
        let stuck = TcpStream::connect_timeout(&addr, Duration::from_millis(300)).unwrap_err();
        assert_eq!(stuck.kind(), std::io::ErrorKind::TimedOut, "the backlog is full");
        Self { addr, listener, _filling: filling }
    }

    pub(crate) fn resource(&self, name: &str) -> String {
        over_the_gateway(name, self.addr)
    }

    pub(crate) fn recover(&self) {
        let listener = self.listener.try_clone().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || echo(stream));
            }
        });
    }
}
