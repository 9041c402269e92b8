//! A target of the user's own: what can be measured without knowing what it is.
//!
//! A service that speaks first (SSH, SMTP) is measured to its first bytes; one that answers `GET /` to the end of its
//! answer; of one that stays silent only the accepted connection is known.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::board::{Board, Checks, Latency, Load, Request, Way};
use super::http::Trouble;
use super::summary::{Gateway, Hold, SessionFacts, pair, rtt_in_words, table};
use crate::output::human;

/// How long a service that speaks first may take to do so.
const BANNER_PATIENCE: Duration = Duration::from_millis(500);
/// How long an HTTP answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two measurements: a stranger's service is not to be loaded (sshd drops the eager ones).
const INTERVAL: Duration = Duration::from_millis(250);
/// Most of an answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
const BANNER_BYTES_MAX: usize = 256;

/// What the target does with a new connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Manner {
    /// It speaks first.
    Banner {
        /// Its first line.
        first_line: String,
    },
    /// It answers `GET /`.
    Http {
        /// The answer's first line.
        first_line: String,
    },
    /// It does neither.
    Silent,
}

/// Outcome of a run against a foreign target.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    pub(crate) ok: bool,
    pub(crate) target: String,
    pub(crate) manner: Manner,
    pub(crate) gateway: Gateway,
    pub(crate) session: SessionFacts,
    pub(crate) through: Latency,
    pub(crate) direct: Latency,
    pub(crate) down_bytes: u64,
    pub(crate) connections: Connections,
    pub(crate) notes: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hold: Option<Hold>,
}

/// What became of the connections; their content was not compared.
#[derive(Debug, Serialize)]
pub(crate) struct Connections {
    /// Answered through the gateway.
    pub(crate) answered: u64,
    /// Failed, either way.
    pub(crate) failed: u64,
    /// What the first of these said.
    pub(crate) first_trouble: Option<String>,
}

/// Finds out, through `address`, how the target behaves.
pub(crate) async fn recognise(address: SocketAddr) -> Result<Manner, Trouble> {
    let mut stream = TcpStream::connect(address).await?;
    if let Ok(heard) = timeout(BANNER_PATIENCE, first_line(&mut stream)).await {
        return Ok(Manner::Banner { first_line: heard? });
    }
    stream.write_all(GET).await?;
    match timeout(ANSWER_PATIENCE, first_line(&mut stream)).await {
        Ok(Ok(line)) if line.starts_with("HTTP/") => Ok(Manner::Http { first_line: line }),
        _ => Ok(Manner::Silent),
    }
}

/// Measures both ways in turn until `stop`.
pub(crate) async fn measure(
    manner: Manner,
    target: String,
    forward: SocketAddr,
    board: Arc<Board>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        for way in [Way::Direct, Way::Through] {
            let sent = Instant::now();
            let visited = match way {
                Way::Direct => visit(&manner, TcpStream::connect(&target).await).await,
                Way::Through => visit(&manner, TcpStream::connect(forward).await).await,
            };
            match visited {
                Ok(bytes) => {
                    if way == Way::Through {
                        board.down.fetch_add(bytes, Ordering::Relaxed);
                        board.transferred(true);
                    }
                    let request = Request { sent, done: Instant::now(), pace: None };
                    board.answered(way, Load::Quiet, request);
                }
                Err(trouble) => board.broke(&format!("{way:?}").to_lowercase(), &trouble),
            }
        }
        tokio::select! {
            () = sleep(INTERVAL) => {}
            () = stop.cancelled() => {}
        }
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: switchback-demo\r\nConnection: close\r\n\r\n";

/// One connection as the target's manner asks for; returns the bytes read.
async fn visit(manner: &Manner, stream: std::io::Result<TcpStream>) -> Result<u64, Trouble> {
    let mut stream = stream?;
    stream.set_nodelay(true)?;
    match manner {
        Manner::Banner { .. } => {
            let line = timeout(ANSWER_PATIENCE, first_line(&mut stream)).await??;
            Ok(line.len() as u64)
        }
        Manner::Http { .. } => {
            stream.write_all(GET).await?;
            let mut answer = Vec::new();
            timeout(ANSWER_PATIENCE, stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer))
                .await??;
            if answer.starts_with(b"HTTP/") {
                Ok(answer.len() as u64)
            } else {
                Err("no HTTP answer".into())
            }
        }
        // Accepted, and not closed at once.
        Manner::Silent => match timeout(BANNER_PATIENCE, stream.read_u8()).await {
            Err(_) | Ok(Ok(_)) => Ok(0),
            Ok(Err(error)) => Err(error.into()),
        },
    }
}

/// Reads until the first line feed or the first 256 bytes; what cannot be shown is replaced.
async fn first_line(stream: &mut TcpStream) -> Result<String, Trouble> {
    let mut line = Vec::new();
    while line.len() < BANNER_BYTES_MAX {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    let shown = String::from_utf8_lossy(&line);
    Ok(shown.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
}

impl Findings {
    /// Sums a board up.
    pub(crate) fn of(
        board: &Board,
        target: String,
        manner: Manner,
        gateway: Gateway,
        session: SessionFacts,
        hold: Option<Hold>,
    ) -> Self {
        let Checks { right, broken, first_trouble, .. } = board.checks();
        let connections = Connections { answered: right, failed: broken, first_trouble };
        let mut notes = vec![
            "your target's content was not compared: only the own target's is known",
            "broker and gateway were not restarted: run without --target to see that",
        ];
        if manner == Manner::Silent {
            notes.push("your target said nothing: only that it accepts connections is known");
        }
        Self {
            ok: broken == 0 && right > 0,
            target,
            manner,
            gateway,
            session,
            through: board.latency(Way::Through, Load::Quiet),
            direct: board.latency(Way::Direct, Load::Quiet),
            down_bytes: board.down.load(Ordering::Relaxed),
            connections,
            notes,
            hold,
        }
    }

    /// For people.
    pub(crate) fn in_words(&self) -> String {
        let (manner, measured) = match &self.manner {
            Manner::Banner { first_line } => {
                (format!("speaks first: {first_line}"), "connect to first line")
            }
            Manner::Http { first_line } => {
                (format!("HTTP: {first_line}"), "connect to end of GET /")
            }
            Manner::Silent => ("silent".into(), "connect and wait 0.5 s"),
        };
        let Self { gateway, session, connections, .. } = self;
        let mut rows = vec![
            ("target", format!("{} ({manner})", self.target)),
            ("gateway", format!("{} with {}: {}", gateway.address, gateway.io, gateway.io_reason)),
            ("transport", session.transport.clone().unwrap_or_else(|| human::UNKNOWN.into())),
            ("round trip", rtt_in_words(&session.rtt)),
            (measured, pair(&self.through, &self.direct)),
            ("read through it", human::bytes(self.down_bytes)),
            (
                "connections",
                format!("{} answered, {} failed", connections.answered, connections.failed),
            ),
        ];
        rows.extend(connections.first_trouble.iter().map(|trouble| ("trouble", trouble.clone())));
        rows.extend(self.notes.iter().map(|note| ("note", (*note).to_owned())));
        table(&rows)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::demo::target;

    #[tokio::test]
    async fn a_web_server_is_recognised_and_visited() {
        let (address, _tasks) = target::start().await.unwrap();
        let manner = recognise(address).await.unwrap();
        assert_eq!(manner, Manner::Http { first_line: "HTTP/1.1 200 OK".into() });
        let visited = visit(&manner, TcpStream::connect(address).await).await.unwrap();
        assert!(visited > 30);
    }

    #[tokio::test]
    async fn a_service_that_speaks_first_is_recognised() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"SSH-2.0-Test\x1b\r\n").await.unwrap();
            }
        });
        let manner = recognise(address).await.unwrap();
        assert_eq!(manner, Manner::Banner { first_line: "SSH-2.0-Test\u{fffd}".into() });
        assert!(visit(&manner, TcpStream::connect(address).await).await.is_ok());
    }

    #[tokio::test]
    async fn a_service_that_hangs_up_is_trouble() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        assert!(recognise(address).await.is_err());
        assert!(visit(&Manner::Silent, TcpStream::connect(address).await).await.is_err());
    }
}
