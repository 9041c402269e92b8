//! `quinn-tunnel`: QUIC and nothing around it, to compare with. It needs a path to the agent's end: no NAT is traversed.
//!
//! The library's defaults throughout. A client holds one connection; every TCP connection is a bidirectional stream of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use data_encoding::BASE64;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, Incoming, ServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, copy_buf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use super::echo::accept_next;
use super::tokio_copy::BUFFER_BYTES;

/// Flags of `quinn-tunnel`.
#[derive(Args, Debug)]
pub(crate) struct TunnelArgs {
    #[command(subcommand)]
    end: End,
}

#[derive(Subcommand, Debug)]
enum End {
    /// Beside the service; prints where it listens and its certificate as a line of JSON
    Agent {
        /// UDP address that the client reaches
        #[arg(long)]
        listen: SocketAddr,
        /// Where each stream is connected to
        #[arg(long)]
        target: SocketAddr,
    },
    /// Beside applications; prints where it listens as a line of JSON once it is connected
    Client {
        /// Where to accept applications
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Where the agent listens
        #[arg(long)]
        agent: SocketAddr,
        /// What the agent printed
        #[arg(long)]
        certificate: String,
    },
}

/// What an end prints when it is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) listen: SocketAddr,
    /// The agent's, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<String>,
}

/// In the agent's certificate.
const NAME: &str = "quinn-tunnel";

/// Tunnels until ended.
///
/// # Errors
/// An address cannot be had, or the agent not be reached.
pub(crate) fn run(args: TunnelArgs) -> Result<()> {
    let runtime =
        Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        match args.end {
            End::Agent { listen, target } => {
                let (endpoint, ready) = agent(listen)?;
                tell(&ready)?;
                serve_all(&endpoint, target).await
            }
            End::Client { listen, agent, certificate } => {
                let connection = connect(agent, &certificate).await?;
                let listener = TcpListener::bind(listen).await.context("listening")?;
                tell(&Ready { listen: listener.local_addr()?, certificate: None })?;
                forward_all(&listener, &connection).await
            }
        }
    })
}

fn tell(ready: &Ready) -> Result<()> {
    println!("{}", serde_json::to_string(ready)?);
    Ok(())
}

fn agent(listen: SocketAddr) -> Result<(Endpoint, Ready)> {
    let identity = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let certificate = identity.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
    let told = BASE64.encode(&certificate);
    let config = ServerConfig::with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key))?;
    let endpoint = Endpoint::server(config, listen).context("listening")?;
    let ready = Ready { listen: endpoint.local_addr()?, certificate: Some(told) };
    Ok((endpoint, ready))
}

async fn serve_all(endpoint: &Endpoint, target: SocketAddr) -> Result<()> {
    while let Some(incoming) = endpoint.accept().await {
        // A connection that breaks is the affair of its two ends; they see it close.
        tokio::spawn(serve(incoming, target));
    }
    Ok(())
}

async fn serve(incoming: Incoming, target: SocketAddr) -> Result<()> {
    let connection = incoming.await?;
    loop {
        let (send, receive) = connection.accept_bi().await?;
        tokio::spawn(async move { splice(TcpStream::connect(target).await?, send, receive).await });
    }
}

async fn connect(agent: SocketAddr, certificate: &str) -> Result<Connection> {
    let certificate = BASE64.decode(certificate.as_bytes()).context("the agent's certificate")?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate)).context("the agent's certificate")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut endpoint = Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?;
    endpoint
        .set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)));
    endpoint.connect(agent, NAME)?.await.with_context(|| format!("connecting to {agent}"))
}

async fn forward_all(listener: &TcpListener, connection: &Connection) -> Result<()> {
    loop {
        let stream = accept_next(|| listener.accept()).await;
        let (send, receive) = connection.open_bi().await?;
        tokio::spawn(splice(stream, send, receive));
    }
}

async fn splice(
    mut stream: TcpStream,
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let (from, mut to) = stream.split();
    let there = copy(from, &mut send);
    let back = copy(&mut receive, &mut to);
    tokio::try_join!(there, back)?;
    Ok(())
}

/// All of one direction, then its end.
async fn copy(from: impl AsyncRead + Unpin, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    copy_buf(&mut BufReader::with_capacity(BUFFER_BYTES, from), to).await?;
    Ok(to.shutdown().await?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::peers::Flow;
    use crate::peers::socket::{Dialer, accept};
    use crate::peers::verify::verify;

    #[test]
    fn bytes_pass_exactly_both_ways_with_half_close() {
        let dialer = Dialer::system_default();
        let target = dialer.listen().unwrap();
        let target_addr = target.local_addr().unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entry = runtime.block_on(async {
            let (endpoint, ready) = agent("127.0.0.1:0".parse().unwrap()).unwrap();
            tokio::spawn(async move { serve_all(&endpoint, target_addr).await });
            let connection = connect(ready.listen, &ready.certificate.unwrap()).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let entry = listener.local_addr().unwrap();
            tokio::spawn(async move { forward_all(&listener, &connection).await });
            entry
        });
        for _ in 0..2 {
            let mut near = dialer.connect(entry).unwrap();
            // A stream begins with its first byte.
            near.write_all(b"!").unwrap();
            let mut far = accept(&target).unwrap();
            far.read_exact(&mut [0]).unwrap();
            verify(Flow { near, far }).unwrap();
        }
    }
}
