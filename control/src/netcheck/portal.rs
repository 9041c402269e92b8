//! Whether something answers HTTP where the broker should answer TLS: a captive portal, which lets nobody out before a
//! sign-in.
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For the connection and its first words. A portal is near.
const PATIENCE: Duration = Duration::from_secs(2);
/// As much of an answer as tells HTTP and its status: `HTTP/1.1 302`.
const STATUS_LINE: usize = 12;
const HTTP_PORT: u16 = 80;

/// Looks at the broker's port where it is `connected`, and at port 80 beside it, where a portal redirects (302, 303, 307) or
/// says that it is one (511, RFC 6585 section 6); if the broker's port does not answer, at port 80 of its `first` address
/// alone, as portals often drop all else. `None` if nothing answers.
pub(super) async fn look(connected: Option<SocketAddr>, first: Option<IpAddr>) -> Option<bool> {
    let plain = SocketAddr::new(connected.map(|it| it.ip()).or(first)?, HTTP_PORT);
    match connected {
        Some(gateway) => Some(is_there(gateway, plain).await),
        None => redirects(plain).await,
    }
}

async fn is_there(gateway: SocketAddr, plain: SocketAddr) -> bool {
    let (instead, beside) = tokio::join!(status(gateway), redirects(plain));
    instead.is_some() || beside == Some(true)
}

/// Whether what answers HTTP there sends people elsewhere; `None` if nothing does.
async fn redirects(plain: SocketAddr) -> Option<bool> {
    status(plain).await.map(|status| matches!(status, 302 | 303 | 307 | 511))
}

/// The status of an HTTP answer to a plain request; `None` if none comes.
async fn status(at: SocketAddr) -> Option<u16> {
    let ask = async {
        let mut stream = TcpStream::connect(at).await.ok()?;
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", at.ip());
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut line = [0; STATUS_LINE];
        stream.read_exact(&mut line).await.ok()?;
        line.strip_prefix(b"HTTP/")?;
        std::str::from_utf8(&line[9..]).ok()?.parse().ok()
    };
    timeout(PATIENCE, ask).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 256];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
            }
        });
        at
    }

    /// Where nothing listens.
    async fn closed() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn a_portal_that_drops_the_brokers_port_and_redirects_port_80_is_seen() {
        let portal = server(b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n").await;
        assert_eq!(redirects(portal).await, Some(true));
        assert!(is_there(closed().await, portal).await);
        assert_eq!(redirects(server(b"HTTP/1.1 200 OK\r\n\r\n").await).await, Some(false));
        assert_eq!(redirects(closed().await).await, None);
        assert_eq!(look(None, None).await, None);
        // Nothing answers on port 80 of this machine's own, or something that is no portal.
        assert_ne!(look(None, Some([127, 0, 0, 1].into())).await, Some(true));
    }

    #[tokio::test]
    async fn http_is_told_from_tls_silence_and_nonsense() {
        let portal =
            server(b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n").await;
        assert_eq!(status(portal).await, Some(302));
        assert!(is_there(portal, closed().await).await);
        for answer in
            [&b"\x15\x03\x03\x00\x02\x02\x0a-------"[..], b"", b"HTTP/1.1 abc def", b"HTTP/"]
        {
            assert_eq!(status(server(answer).await).await, None);
        }
    }
}
