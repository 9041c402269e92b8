//! Carries TCP connections over iroh, so that iroh can be measured beside Switchback.
//!
//! ```text
//! iroh-tunnel relay  IP                        prints `relay URL`
//! iroh-tunnel agent  RELAY-URL TARGET          prints `agent ID`
//! iroh-tunnel client RELAY-URL ID LISTEN       prints `client LISTEN`
//! ```
//! Library defaults throughout, but for what a closed network needs: our own relay and no public look-up service. A client
//! holds one iroh connection; every TCP connection is a bidirectional stream of it.
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use iroh::endpoint::{Connection, Endpoint, RecvStream, SendStream, presets};
use iroh::tls::CaTlsConfig;
use iroh::{EndpointAddr, EndpointId, RelayMap, RelayMode, RelayUrl, TransportAddr};
use iroh_relay::server::{
    AllowAll, CertConfig, QuicConfig, RelayConfig as ServedRelay, Server, ServerConfig, TlsConfig,
};
use iroh_relay::{RelayConfig, RelayQuicConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ALPN: &[u8] = b"tcp-tunnel/1";
const HTTPS_PORT: u16 = 8443;
/// iroh's own default for address discovery.
const DISCOVERY_PORT: u16 = 7842;
/// As large as the other tunnels' copies.
const BUFFER: usize = 64 * 1024;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["relay", address] => relay(address.parse()?).await,
        ["agent", url, target] => agent(url.parse()?, target.parse()?).await,
        ["client", url, id, listen] => client(url.parse()?, id.parse()?, listen.parse()?).await,
        _ => Err("usage: iroh-tunnel relay IP | agent URL TARGET | client URL ID LISTEN".into()),
    }
}

async fn relay(address: IpAddr) -> Result<()> {
    let (_, server_config) = iroh_relay::server::testing::self_signed_tls_certs_and_config();
    let certificate = CertConfig::Manual { server_config };
    let mut served = ServedRelay::new((address, 0));
    served.tls = Some(TlsConfig::new((address, HTTPS_PORT), certificate));
    served.access = Arc::new(AllowAll);
    let mut config = ServerConfig::default();
    config.relay = Some(served);
    config.quic = Some(QuicConfig::new((address, DISCOVERY_PORT)));
    let _server = Server::spawn(config).await?;
    println!("relay https://{}", SocketAddr::new(address, HTTPS_PORT));
    std::future::pending().await
}

async fn agent(relay: RelayUrl, target: SocketAddr) -> Result<()> {
    let endpoint = endpoint(relay, vec![ALPN.to_vec()]).await?;
    println!("agent {}", endpoint.id());
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move { serve(incoming.await?, target).await });
    }
    Ok(())
}

async fn serve(connection: Connection, target: SocketAddr) -> Result<()> {
    loop {
        let (send, receive) = connection.accept_bi().await?;
        tokio::spawn(async move { splice(TcpStream::connect(target).await?, send, receive).await });
    }
}

async fn client(relay: RelayUrl, id: EndpointId, listen: SocketAddr) -> Result<()> {
    let endpoint = endpoint(relay.clone(), Vec::new()).await?;
    let address = EndpointAddr::from_parts(id, [TransportAddr::Relay(relay)]);
    let listener = TcpListener::bind(listen).await?;
    println!("client {}", listener.local_addr()?);
    // The connection begins with the first use, as a session of ours does.
    let mut connection = None;
    loop {
        let (stream, _) = listener.accept().await?;
        let connection = match &connection {
            Some(connection) => connection,
            None => connection.insert(endpoint.connect(address.clone(), ALPN).await?),
        };
        let (send, receive) = connection.open_bi().await?;
        tokio::spawn(splice(stream, send, receive));
    }
}

async fn endpoint(relay: RelayUrl, alpns: Vec<Vec<u8>>) -> Result<Endpoint> {
    let discovery = RelayQuicConfig::new(DISCOVERY_PORT);
    let map: RelayMap = RelayConfig::new(relay, Some(discovery)).into();
    let endpoint = Endpoint::builder(presets::Minimal)
        .alpns(alpns)
        .relay_mode(RelayMode::Custom(map))
        .ca_tls_config(CaTlsConfig::insecure_skip_verify())
        .bind()
        .await?;
    endpoint.online().await;
    Ok(endpoint)
}

async fn splice(mut stream: TcpStream, mut send: SendStream, mut receive: RecvStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut from, mut to) = stream.split();
    let there = async {
        copy(&mut from, &mut send).await?;
        send.finish()?;
        Result::Ok(())
    };
    let back = async {
        copy(&mut receive, &mut to).await?;
        to.shutdown().await?;
        Result::Ok(())
    };
    tokio::try_join!(there, back)?;
    Ok(())
}

async fn copy<R, W>(from: &mut R, to: &mut W) -> std::io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut from = tokio::io::BufReader::with_capacity(BUFFER, from);
    tokio::io::copy_buf(&mut from, to).await?;
    Ok(())
}
