//! `echo`: sends back what it receives, discards it, or sends without end: the other half of `load`.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// Examples at the end of `--help`.
pub(crate) const EXAMPLES: &str = "\
Examples:
  For messages (RFC 862):
    switchback-bench echo --listen 127.0.0.1:7000
    switchback-bench load --target 127.0.0.1:7000 --rate 2000
  For bytes, to a service that discards them (RFC 863) or from one that generates them (RFC 864):
    switchback-bench echo --as discard --listen 127.0.0.1:7009
    switchback-bench load --target 127.0.0.1:7009 --mode up
    switchback-bench echo --as generate --listen 127.0.0.1:7019
    switchback-bench load --target 127.0.0.1:7019 --mode down";

/// Flags of `echo`.
#[derive(Args, Debug)]
pub(crate) struct EchoArgs {
    /// Where to accept; the address taken is printed as a line of JSON
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// What to do with a connection
    #[arg(long = "as", value_enum, default_value_t)]
    service: Service,
    /// Most connections at once; more wait to be accepted
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections_max: u32,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Service {
    /// Send back what comes
    #[default]
    Echo,
    /// Read it, and end when the other end does
    Discard,
    /// Send bytes until the other end goes
    Generate,
}

/// One read and one write of the echo: as the copy loop's.
const BUFFER_BYTES: usize = 64 << 10;

/// Pause after a failed accept (no more files, mostly), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Serves until ended.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn run(args: &EchoArgs) -> Result<()> {
    crate::measure::placement::raise_open_files();
    one_thread()?.block_on(async {
        let listener = TcpListener::bind(args.listen).await.context("listening")?;
        announce(listener.local_addr()?)?;
        serve_all(listener, args.service, args.connections_max as usize).await
    })
}

/// A runtime on the calling thread.
pub(super) fn one_thread() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("starting the runtime")
}

/// The line that tells where a subcommand listens.
#[derive(Serialize)]
struct Ready {
    local_addr: SocketAddr,
}

/// Prints the address as the first line of stdout.
pub(super) fn announce(local_addr: SocketAddr) -> Result<()> {
    let line = serde_json::to_string(&Ready { local_addr })?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("announcing the address")
}

/// The next connection that `accept` gives; failed accepts are retried.
pub(super) async fn accept_next<S, A>(accept: impl Fn() -> A) -> S
where
    A: Future<Output = std::io::Result<(S, SocketAddr)>>,
{
    loop {
        match accept().await {
            Ok((stream, _)) => return stream,
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve_all(listener: TcpListener, service: Service, connections_max: usize) -> Result<()> {
    let slots = Arc::new(Semaphore::new(connections_max));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let stream = accept_next(|| listener.accept()).await;
        tokio::spawn(async move {
            // A connection that breaks concerns only who made it.
            let _ = serve(stream, service).await;
            drop(slot);
        });
    }
}

async fn serve(mut stream: TcpStream, service: Service) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        if service == Service::Generate {
            stream.write_all(&buffer).await?;
            continue;
        }
        let bytes = stream.read(&mut buffer).await?;
        if bytes == 0 {
            return stream.shutdown().await;
        }
        if service == Service::Echo {
            stream.write_all(&buffer[..bytes]).await?;
        }
    }
}
