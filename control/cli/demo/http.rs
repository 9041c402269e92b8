//! The demo's HTTP client: one connection, requests one after the other, answers hashed or kept small.
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

/// What went wrong, in words.
pub(crate) type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// Largest answer that is kept: an echo or a hash.
const SMALL_BYTES_MAX: usize = 64 * 1024;

/// Opens a connection whose requests carry bodies of one kind.
pub(crate) async fn connect<B>(address: SocketAddr) -> Result<SendRequest<B>, Trouble>
where
    B: Body<Data: Send, Error: Into<Trouble>> + Send + Unpin + 'static,
{
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender; what went wrong is told by the request.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// Sends a request and returns the answer's head once it is here, if it is a success.
pub(crate) async fn send<B>(
    sender: &mut SendRequest<B>,
    method: Method,
    path: &str,
    body: B,
) -> Result<Response<Incoming>, Trouble>
where
    B: Body + 'static,
{
    let request = Request::builder().method(method).uri(path).header(HOST, "demo").body(body)?;
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    if answer.status().is_success() {
        Ok(answer)
    } else {
        Err(format!("the target answered {}", answer.status()).into())
    }
}

/// The body of a small answer.
pub(crate) async fn small(answer: Response<Incoming>) -> Result<Bytes, Trouble> {
    Ok(Limited::new(answer.into_body(), SMALL_BYTES_MAX).collect().await?.to_bytes())
}

/// SHA-256 of an answer of any size, counted on `meter` as it arrives.
pub(crate) async fn hashed(
    answer: Response<Incoming>,
    meter: &AtomicU64,
) -> Result<[u8; 32], Trouble> {
    let mut body = answer.into_body();
    let mut hash = Sha256::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            meter.fetch_add(data.len() as u64, Ordering::Relaxed);
            hash.update(&data);
        }
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::{Empty, Full};

    use super::*;
    use crate::demo::content::{Content, digest, hex};
    use crate::demo::target;

    #[tokio::test]
    async fn the_target_sends_hashes_and_echoes() {
        let (address, _tasks) = target::start().await.unwrap();
        let mut sender = connect::<Empty<Bytes>>(address).await.unwrap();
        let meter = AtomicU64::new(0);
        let answer = send(&mut sender, Method::GET, "/bytes/100000?seed=5", Empty::new());
        let hash = hashed(answer.await.unwrap(), &meter).await.unwrap();
        assert_eq!(hash, digest(5, 100_000));
        assert_eq!(meter.into_inner(), 100_000);

        let mut sender = connect::<Content>(address).await.unwrap();
        let body = Content::new(6, 200_000, Arc::default());
        let answer = send(&mut sender, Method::POST, "/hash", body).await.unwrap();
        assert_eq!(small(answer).await.unwrap(), hex(&digest(6, 200_000)));

        let mut sender = connect::<Full<Bytes>>(address).await.unwrap();
        let answer = send(&mut sender, Method::POST, "/echo", Full::from("hello")).await.unwrap();
        assert_eq!(small(answer).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn the_target_refuses_what_it_does_not_serve() {
        let (address, _tasks) = target::start().await.unwrap();
        let mut sender = connect::<Empty<Bytes>>(address).await.unwrap();
        for path in ["/bytes/x", "/bytes/99999999999", "/nothing"] {
            let refused = send(&mut sender, Method::GET, path, Empty::new()).await.unwrap_err();
            assert!(refused.to_string().contains("the target answered 4"), "{refused}");
        }
    }
}
