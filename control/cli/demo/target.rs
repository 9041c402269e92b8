//! The demo's own service: a small HTTP server on loopback.
//!
//! `GET /bytes/N?seed=S` sends N bytes of a [`Content`], `POST /hash` answers the SHA-256 of what it is sent,
//! `POST /echo` answers the same bytes.
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use switchback_control::{Code, Fault};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::content::{Content, hex};

/// Largest content: enough for anybody's curl, and it ends.
const BYTES_MAX: u64 = 1 << 30;
/// Largest echo.
const ECHO_BYTES_MAX: usize = 64 * 1024;
/// Connections at once; the demo itself opens eight.
const CONNECTIONS_MAX: usize = 1024;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Starts the server on a free loopback port; it ends with the returned tasks.
pub(crate) async fn start() -> Result<(SocketAddr, JoinSet<()>), Fault> {
    let failed = |error: std::io::Error| Code::Internal.because(format!("demo target: {error}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener));
    Ok((address, tasks))
}

async fn accept(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                // A failed accept means a connection that is already gone again.
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream) {
    // Answers are written whole: waiting for more would only delay them.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "demo target: connection ended");
    }
}

async fn answer(request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::GET, path) if path.starts_with("/bytes/") => Ok(bytes(request.uri())),
        (&Method::POST, "/hash") => hash(request.into_body()).await,
        (&Method::POST, "/echo") => echo(request.into_body()).await,
        (&Method::GET, "/") => Ok(text(StatusCode::OK, "switchback demo: GET /bytes/N\n")),
        _ => Ok(text(StatusCode::NOT_FOUND, "not found\n")),
    }
}

fn bytes(uri: &Uri) -> Answer {
    let length = uri.path().trim_start_matches("/bytes/").parse::<u64>();
    let seed = uri.query().and_then(|query| query.strip_prefix("seed=")).unwrap_or("0").parse();
    match (length, seed) {
        (Ok(length), Ok(seed)) if length <= BYTES_MAX => {
            Response::new(Content::new(seed, length, Arc::default()).boxed())
        }
        _ => text(StatusCode::BAD_REQUEST, "GET /bytes/N?seed=S with N up to 1 GiB\n"),
    }
}

async fn hash(mut body: Incoming) -> Result<Answer, hyper::Error> {
    let mut hash = Sha256::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            hash.update(&data);
        }
    }
    Ok(text(StatusCode::OK, hex(&hash.finalize().into())))
}

async fn echo(body: Incoming) -> Result<Answer, hyper::Error> {
    match Limited::new(body, ECHO_BYTES_MAX).collect().await {
        Ok(body) => Ok(text(StatusCode::OK, body.to_bytes())),
        Err(_) => Ok(text(StatusCode::PAYLOAD_TOO_LARGE, "at most 64 KiB\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = status;
    answer
}
