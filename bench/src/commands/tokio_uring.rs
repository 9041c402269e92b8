//! `tokio-uring`: the same relay on tokio-uring 0.5. One thread, a 64 KiB buffer per direction, owned
//! by the kernel while a read or write is under way.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio_uring::net::{TcpListener, TcpStream};

use super::echo::{accept_next, announce};
use super::tokio_copy::{BUFFER_BYTES, RelayArgs};

/// Ring entries: more than a turn of the loop submits with the bench's loads.
const RING_ENTRIES: u32 = 4096;

/// Relays until ended.
///
/// # Errors
/// The address cannot be listened on, or there is no io_uring.
pub(crate) fn run(args: &RelayArgs) -> Result<()> {
    args.prepare();
    let listener = bind(args.listen).context("listening")?;
    announce(listener.local_addr()?)?;
    relay_all(listener, args.target);
    Ok(())
}

/// As tokio's listener: SO_REUSEADDR and a backlog of 1024. Bound before the runtime starts, so that
/// the address can be announced.
fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn relay_all(listener: std::net::TcpListener, target: SocketAddr) {
    let mut runtime = tokio_uring::builder();
    runtime.entries(RING_ENTRIES);
    runtime.start(async {
        let listener = TcpListener::from_std(listener);
        loop {
            let near = accept_next(|| listener.accept()).await;
            // A flow that breaks is the affair of its two ends; they see it close.
            tokio_uring::spawn(async move { relay(near, target).await.unwrap_or(()) });
        }
    });
}

async fn relay(near: TcpStream, target: SocketAddr) -> io::Result<()> {
    near.set_nodelay(true)?;
    let far = TcpStream::connect(target).await?;
    far.set_nodelay(true)?;
    let (near, far) = (Rc::new(near), Rc::new(far));
    let there = tokio_uring::spawn(copy(Rc::clone(&near), Rc::clone(&far)));
    let back = copy(far, near).await;
    there.await?.and(back)
}

/// One direction until its end, which is passed on; an error ends both directions.
async fn copy(from: Rc<TcpStream>, to: Rc<TcpStream>) -> io::Result<()> {
    let copied = copy_all(&from, &to).await;
    match &copied {
        Ok(()) => to.shutdown(Shutdown::Write)?,
        Err(_) => {
            // Wakes the other direction; either may be closed already.
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        }
    }
    copied
}

async fn copy_all(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    use tokio_uring::buf::BoundedBuf;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (read, filled) = from.read(buffer).await;
        let bytes = read?;
        if bytes == 0 {
            return Ok(());
        }
        let (written, slice) = to.write_all(filled.slice(..bytes)).await;
        written?;
        buffer = slice.into_inner();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::Flow;
    use crate::peers::socket::{Dialer, accept};
    use crate::peers::verify::verify;

    #[test]
    fn bytes_pass_exactly_both_ways_with_half_close() {
        let dialer = Dialer::system_default();
        let target = dialer.listen().unwrap();
        let target_addr = target.local_addr().unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let relay_addr = listener.local_addr().unwrap();
        // Lasts as long as the test's process.
        std::thread::spawn(move || relay_all(listener, target_addr));
        for _ in 0..2 {
            let near = dialer.connect(relay_addr).unwrap();
            let far = accept(&target).unwrap();
            verify(Flow { near, far }).unwrap();
        }
    }
}
