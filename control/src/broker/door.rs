//! From a connection that the gateway has no use for to a request that the API answers: TLS, then HTTP/1.1.
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use bytes::{Buf, Bytes};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use switchback_engine::{ForeignConnection, ForeignPlace};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::counters::Counters;
use crate::broker::limits::{
    CONNECTIONS_MAX, HANDSHAKE_DEADLINE, HANDSHAKES_MAX, HEAD_BYTES_MAX, HEAD_DEADLINE,
    HEADERS_MAX, REQUEST_GRACE, SHUTDOWN_GRACE, SOURCE_CONNECTIONS_MAX,
};
use crate::broker::rate::source;
use crate::broker::shares::{Share, Shares};

/// Where a request comes from, and the room its connection takes. Every request carries it as an extension; a link keeps
/// its clone for as long as it lasts.
#[derive(Clone, Debug)]
pub(crate) struct Visitor {
    pub(crate) address: SocketAddr,
    /// Where it arrived.
    pub(crate) local: Option<SocketAddr>,
    _room: Arc<(OwnedSemaphorePermit, Share<IpAddr>, ForeignPlace)>,
}

/// Takes connections in while there is room.
#[derive(Clone)]
pub(crate) struct Door {
    acceptor: TlsAcceptor,
    router: Router,
    room: Arc<Semaphore>,
    by_source: Arc<Shares<IpAddr>>,
    handshakes: Arc<Semaphore>,
    counters: Arc<Counters>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Door {
    pub(crate) fn new(
        tls: Arc<ServerConfig>,
        router: Router,
        counters: Arc<Counters>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let by_source = Shares::new(SOURCE_CONNECTIONS_MAX);
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        Self { acceptor: tls.into(), router, room, by_source, handshakes, counters, tasks, stop }
    }

    /// Takes a connection in, on the runtime of `handle`. Never blocks; without room, for it or for its source,
    /// the connection is closed.
    pub(crate) fn take(&self, mut connection: ForeignConnection, handle: &tokio::runtime::Handle) {
        let address = connection.peer;
        let Some(share) = self.by_source.take(source(address.ip())) else {
            self.counters.source_refused.add();
            return;
        };
        let Ok(permit) = self.room.clone().try_acquire_owned() else {
            self.counters.connections_refused.add();
            return;
        };
        let local = connection.stream.local_addr().ok();
        let place = std::mem::take(&mut connection.place);
        let visitor = Visitor { address, local, _room: Arc::new((permit, share, place)) };
        let door = self.clone();
        let serve = async move {
            let stop = door.stop.clone();
            let cut = async {
                stop.cancelled().await;
                tokio::time::sleep(REQUEST_GRACE).await;
            };
            tokio::select! {
                () = cut => {}
                () = door.serve(connection, visitor) => {}
            }
        };
        self.tasks.spawn_on(serve, handle);
    }

    async fn serve(&self, connection: ForeignConnection, visitor: Visitor) {
        let peer = visitor.address;
        let shaken = tokio::time::timeout(HANDSHAKE_DEADLINE, self.shake_hands(connection)).await;
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.counters.handshakes_failed.add();
                tracing::debug!(%peer, %error, "TLS handshake failed");
                return;
            }
            Err(_) => {
                self.counters.handshakes_failed.add();
                tracing::debug!(%peer, "TLS handshake took too long");
                return;
            }
        };
        let api = TowerToHyperService::new(self.router.clone());
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(visitor.clone());
            api.call(request)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut served = std::pin::pin!(served);
        let served = tokio::select! {
            served = served.as_mut() => served,
            () = self.stop.cancelled() => {
                // At once between two requests, else after the answer to the one that is under way.
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "HTTP connection ended early");
        }
    }

    async fn shake_hands(
        &self,
        connection: ForeignConnection,
    ) -> io::Result<tokio_rustls::server::TlsStream<Replay>> {
        let stream = TcpStream::from_std(connection.stream)?;
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)?;
        let _turn = self.handshakes.acquire().await.map_err(io::Error::other)?;
        self.acceptor.accept(Replay { head: connection.head, stream }).await
    }

    /// Waits for the connections to end after `stop`, but not for long.
    pub(crate) async fn close(tasks: &TaskTracker) {
        tasks.close();
        if tokio::time::timeout(SHUTDOWN_GRACE, tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }
}

/// Finds peers that vanished between requests. The links' own pings are quicker.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(20));

/// A connection whose first bytes were read already.
#[derive(Debug)]
struct Replay {
    head: Bytes,
    stream: TcpStream,
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.head.len().min(buf.remaining());
        buf.put_slice(&self.head[..count]);
        self.head.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use rustls::server::ResolvesServerCertUsingSni;

    use super::*;

    fn door() -> Door {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        let (counters, tasks, stop) = Default::default();
        let door = Door::new(Arc::new(tls), Router::new(), counters, tasks, stop);
        Door { by_source: Shares::new(2), ..door }
    }

    #[tokio::test]
    async fn a_source_takes_no_more_than_its_share() {
        let door = door();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let take = |peer: &str| {
            let (stream, peer) = (stream.try_clone().unwrap(), peer.parse().unwrap());
            let connection = ForeignConnection {
                stream,
                peer,
                head: Bytes::new(),
                place: ForeignPlace::default(),
            };
            door.take(connection, &tokio::runtime::Handle::current());
            door.counters.source_refused.get()
        };
        assert_eq!(take("[2001:db8::1]:1"), 0);
        assert_eq!(take("[2001:db8::2]:1"), 0);
        assert_eq!(take("[2001:db8::3]:1"), 1, "addresses of one /64 are one source");
        assert_eq!(take("192.0.2.1:1"), 1);
        door.stop.cancel();
        door.tasks.close();
        door.tasks.wait().await;
        assert_eq!(take("[2001:db8::3]:1"), 1, "connections that ended make room");
    }
}
