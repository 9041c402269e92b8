//! A gateway that is far away: every connection through here is delayed, and what crosses it is written down in the order in
//! which the near end sees it.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// What the near end of connection number `0` did or saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Dialled(usize),
    Sent(usize),
    Received(usize),
}

/// The way there.
#[derive(Clone)]
pub(crate) struct FarAway {
    pub(crate) address: SocketAddr,
    one_way: Duration,
    log: Arc<Mutex<Vec<Event>>>,
    cut: Arc<Mutex<Vec<tokio::task::AbortHandle>>>,
}

impl FarAway {
    /// A way to `target` of this length. Connecting takes no time here, only bytes do.
    pub(crate) async fn to(target: SocketAddr, one_way: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let way = Self { address, one_way, log: Arc::default(), cut: Arc::default() };
        let accepting = way.clone();
        tokio::spawn(async move {
            for number in 0.. {
                let (near, _) = listener.accept().await.unwrap();
                accepting.note(Event::Dialled(number));
                let carrying = tokio::spawn(accepting.clone().carry(number, near, target));
                accepting.cut.lock().unwrap().push(carrying.abort_handle());
            }
        });
        way
    }

    async fn carry(self, number: usize, near: TcpStream, target: SocketAddr) {
        let Ok(far) = TcpStream::connect(target).await else { return };
        for stream in [&near, &far] {
            stream.set_nodelay(true).unwrap();
        }
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        let sent = || self.note(Event::Sent(number));
        let received = || self.note(Event::Received(number));
        tokio::join!(
            delay(near_in, far_out, self.one_way, sent, || {}),
            delay(far_in, near_out, self.one_way, || {}, received),
        );
    }

    fn note(&self, event: Event) {
        self.log.lock().unwrap().push(event);
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.cut.lock().unwrap().len()
    }

    /// Breaks a connection.
    pub(crate) fn cut(&self, number: usize) {
        self.cut.lock().unwrap()[number].abort();
    }

    /// Forgets what was written down.
    pub(crate) fn mark(&self) {
        self.log.lock().unwrap().clear();
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.log.lock().unwrap().clone()
    }
}

/// Times that the near end sent on connection `number` after it had received, or at first: the round trips that passed on it
/// up to the last byte received.
pub(crate) fn round_trips(events: &[Event], number: usize) -> usize {
    let of_it = events.iter().filter(|event| match event {
        Event::Sent(of) | Event::Received(of) => *of == number,
        Event::Dialled(_) => false,
    });
    let mut turns: Vec<Event> = of_it.copied().collect();
    turns.dedup();
    turns.iter().filter(|event| matches!(event, Event::Received(_))).count()
}

async fn delay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    one_way: Duration,
    entered: impl Fn(),
    leaving: impl Fn(),
) {
    let (sender, mut queue) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut bytes = vec![0; 65_536];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            entered();
            let _ = sender.send((Instant::now() + one_way, bytes[..count].to_vec()));
        }
    };
    let write = async move {
        while let Some((due, bytes)) = queue.recv().await {
            sleep_until(due).await;
            leaving();
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
