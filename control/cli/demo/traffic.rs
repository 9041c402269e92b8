//! Real traffic: parallel transfers whose every byte is checked, and a steady stream of small requests.
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{Empty, Full};
use hyper::Method;
use switchback_control::{Code, Fault};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::board::{Board, Load, Request, Way};
use super::content::{self, Content};
use super::http::{self, Trouble};

/// Downloads and uploads at once.
pub(crate) const DOWNLOADS: u64 = 4;
pub(crate) const UPLOADS: u64 = 2;
/// Bytes of a transfer: long enough that several are under way whenever the gateway goes away.
pub(crate) const TRANSFER_BYTES: u64 = 8 << 20;
/// Between two small requests: 50 a second, as a remote desktop sends.
const REQUEST_INTERVAL: Duration = Duration::from_millis(20);
/// Longest that a transfer or request may take: the resume window of a session.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every content must hash to, by transfer.
type Digests = Arc<Vec<[u8; 32]>>;

/// Makes the expected hashes once: one seed per parallel transfer.
pub(crate) async fn expected_digests() -> Result<Digests, Fault> {
    let make =
        || (0..DOWNLOADS + UPLOADS).map(|seed| content::digest(seed, TRANSFER_BYTES)).collect();
    tokio::task::spawn_blocking(make)
        .await
        .map(Arc::new)
        .map_err(|error| Code::Internal.because(format!("demo: {error}")))
}

/// Keeps all parallel transfers going, one after the other on each lane, until `stop`; the last ones are completed.
pub(crate) fn start_bulk(
    tasks: &mut JoinSet<()>,
    address: SocketAddr,
    digests: &Digests,
    board: &Arc<Board>,
    stop: &CancellationToken,
) {
    for lane in 0..DOWNLOADS + UPLOADS {
        let (digests, board, stop) = (digests.clone(), board.clone(), stop.clone());
        tasks.spawn(async move {
            let expected = digests[lane as usize];
            while !stop.is_cancelled() {
                let (what, right) = if lane < DOWNLOADS {
                    ("download", in_time(download(address, lane, expected, &board)).await)
                } else {
                    ("upload", in_time(upload(address, lane, expected, &board)).await)
                };
                match right {
                    Ok(right) => board.transferred(right),
                    Err(trouble) => return board.broke(what, &trouble),
                }
            }
        });
    }
}

/// Sends small requests on one connection at a steady pace until `stop`; `busy` says when bulk transfers run.
pub(crate) async fn request_stream(
    way: Way,
    address: SocketAddr,
    board: Arc<Board>,
    busy: CancellationToken,
    stop: CancellationToken,
) {
    let outcome = requests(way, address, &board, &busy, &stop).await;
    if let Err(trouble) = outcome {
        board.broke("request", &trouble);
    }
}

async fn requests(
    way: Way,
    address: SocketAddr,
    board: &Board,
    busy: &CancellationToken,
    stop: &CancellationToken,
) -> Result<(), Trouble> {
    let mut sender = in_time(http::connect::<Full<Bytes>>(address)).await?;
    let mut pace = interval(REQUEST_INTERVAL);
    // A stall is told once, by the request that waited, and not again by a queue behind it.
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for number in 0_u64.. {
        tokio::select! {
            _ = pace.tick() => {}
            () = stop.cancelled() => return Ok(()),
        }
        let sent = Instant::now();
        let load = if busy.is_cancelled() { Load::Busy } else { Load::Quiet };
        let said = Bytes::from(format!("request {number:>56}"));
        let body = Full::new(said.clone());
        let heard = in_time(async {
            http::small(http::send(&mut sender, Method::POST, "/echo", body).await?).await
        });
        if heard.await? != said {
            return Err("an echo came back changed".into());
        }
        let request = Request { sent, done: Instant::now(), pace: Some(REQUEST_INTERVAL) };
        board.answered(way, load, request);
    }
    Ok(())
}

async fn download(
    address: SocketAddr,
    seed: u64,
    expected: [u8; 32],
    board: &Board,
) -> Result<bool, Trouble> {
    let mut sender = http::connect::<Empty<Bytes>>(address).await?;
    let path = format!("/bytes/{TRANSFER_BYTES}?seed={seed}");
    let answer = http::send(&mut sender, Method::GET, &path, Empty::new()).await?;
    Ok(http::hashed(answer, &board.down).await? == expected)
}

async fn upload(
    address: SocketAddr,
    seed: u64,
    expected: [u8; 32],
    board: &Board,
) -> Result<bool, Trouble> {
    let mut sender = http::connect::<Content>(address).await?;
    let body = Content::new(seed, TRANSFER_BYTES, board.up.clone());
    let answer = http::send(&mut sender, Method::POST, "/hash", body).await?;
    Ok(http::small(answer).await? == content::hex(&expected))
}

async fn in_time<T>(work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(format!("nothing for {PATIENCE:?}").into()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::demo::target;

    #[tokio::test]
    async fn traffic_straight_to_the_target_is_right() {
        let (address, _server) = target::start().await.unwrap();
        let (board, stop) = (Arc::new(Board::default()), CancellationToken::new());
        let digests = expected_digests().await.unwrap();
        let mut tasks = JoinSet::new();
        start_bulk(&mut tasks, address, &digests, &board, &stop);
        let stream =
            request_stream(Way::Through, address, board.clone(), stop.clone(), stop.clone());
        tasks.spawn(stream);
        while board.checks().right < DOWNLOADS || board.answered.load(Ordering::Relaxed) < 3 {
            assert_eq!(board.checks().first_trouble, None);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
        tasks.join_all().await;
        let checks = board.checks();
        assert_eq!((checks.wrong, checks.broken), (0, 0));
        assert!(board.down.load(Ordering::Relaxed) >= TRANSFER_BYTES);
        assert!(board.up.load(Ordering::Relaxed) >= TRANSFER_BYTES);
    }

    #[tokio::test]
    async fn a_wrong_byte_and_a_dead_target_are_noticed() {
        let (address, server) = target::start().await.unwrap();
        let board = Board::default();
        assert!(!download(address, 1, [0; 32], &board).await.unwrap());
        assert!(!upload(address, 1, [0; 32], &board).await.unwrap());
        drop(server);
        let (idle, board) = (CancellationToken::new(), Arc::new(board));
        request_stream(Way::Direct, address, board.clone(), idle.clone(), idle).await;
        assert_eq!(board.checks().broken, 1);
    }
}
