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
    /// So many bytes.
    Sent(usize, usize),
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
        let sent = |bytes| self.note(Event::Sent(number, bytes));
        let received = |_| self.note(Event::Received(number));
        tokio::join!(
            delay(near_in, far_out, self.one_way, sent, |_| {}),
            delay(far_in, near_out, self.one_way, |_| {}, received),
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

/// Bytes that the near end sent on connection `number` when it had waited for the other end no more than `waits` times.
pub(crate) fn sent_within(events: &[Event], number: usize, waits: usize) -> usize {
    let (mut waited, mut waiting, mut total) = (0, false, 0);
    for event in events {
        match event {
            Event::Received(of) if *of == number && !waiting => {
                waited += 1;
                waiting = true;
            }
            Event::Sent(of, bytes) if *of == number => {
                waiting = false;
                if waited <= waits {
                    total += bytes;
                }
            }
            _ => {}
        }
    }
    total
}

async fn delay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    one_way: Duration,
    entered: impl Fn(usize),
    leaving: impl Fn(usize),
) {
    let (sender, mut queue) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut bytes = vec![0; 65_536];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            entered(count);
            let _ = sender.send((Instant::now() + one_way, bytes[..count].to_vec()));
        }
    };
    let write = async move {
        while let Some((due, bytes)) = queue.recv().await {
            sleep_until(due).await;
            leaving(bytes.len());
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
