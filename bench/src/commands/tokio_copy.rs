//! `tokio-copy`: the relay to compare with. One thread, `copy_bidirectional`, 64 KiB buffers.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

use super::echo::{accept_next, announce, one_thread};

/// Flags of `tokio-copy` and `tokio-uring`.
#[derive(Args, Debug)]
pub(crate) struct RelayArgs {
    /// Where to accept; the address taken is printed as a line of JSON
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(super) listen: SocketAddr,
    /// Where each accepted connection is relayed to
    #[arg(long)]
    pub(super) target: SocketAddr,
    /// End when standard input closes (so that no orphan outlives the bench)
    #[arg(long)]
    until_stdin_closes: bool,
}

impl RelayArgs {
    /// What every relay does first: as many files as allowed, and the end with its starter.
    pub(super) fn prepare(&self) {
        crate::measure::placement::raise_open_files();
        if self.until_stdin_closes {
            std::thread::spawn(|| {
                // Whether it closes or fails: nobody holds the other end any more.
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                std::process::exit(0);
            });
        }
    }
}

/// Buffer per direction: eight times tokio's default, which would be too easy a rival.
pub(super) const BUFFER_BYTES: usize = 64 << 10;

/// Relays until ended.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn run(args: &RelayArgs) -> Result<()> {
    args.prepare();
    one_thread()?.block_on(async {
        let listener = TcpListener::bind(args.listen).await.context("listening")?;
        announce(listener.local_addr()?)?;
        relay_all(listener, args.target).await
    })
}

async fn relay_all(listener: TcpListener, target: SocketAddr) -> Result<()> {
    loop {
        let near = accept_next(|| listener.accept()).await;
        tokio::spawn(async move {
            // A flow that breaks is the affair of its two ends; they see it close.
            let _ = relay(near, target).await;
        });
    }
}

async fn relay(mut near: TcpStream, target: SocketAddr) -> std::io::Result<(u64, u64)> {
    near.set_nodelay(true)?;
    let mut far = TcpStream::connect(target).await?;
    far.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER_BYTES, BUFFER_BYTES).await
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
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let relay_addr = listener.local_addr().unwrap();
        runtime.spawn(relay_all(listener, target_addr));
        for _ in 0..2 {
            let near = dialer.connect(relay_addr).unwrap();
            let far = accept(&target).unwrap();
            verify(Flow { near, far }).unwrap();
        }
    }
}
