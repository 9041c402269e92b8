//! Accept, read the hello, ask the admission, pass the connection on.
//!
//! One thread, one task per unfinished hello, the same code on both backends (see [`super::front_io`]). The thread also says
//! farewell to legs that workers turn away: a refused peer gets a fatal TLS alert naming the reason, then FIN, and its
//! unread bytes are drained for a moment, because closing over them would send RST and could destroy the alert.
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socket2::SockRef;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use super::front_io::{Listen, Stream};
use super::hello::{self, Hello, HelloError, Parsed};
use super::sources::{Source, Sources};
use crate::ring::{Move, prepare_leg, receive, send};
use crate::stats::Shared;
use crate::worker::{Farewell, NewLeg, Workers};
use crate::{Admission, Admitted, ForeignConnection, LegSide, Refusal, Verdict};

/// What the front thread is given.
pub(crate) struct Front {
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) foreign: Box<dyn Fn(ForeignConnection) + Send + Sync>,
    /// Legs to be sent away; ends when every worker has.
    pub(crate) farewells: mpsc::UnboundedReceiver<Farewell>,
    /// Becomes true when accepting shall end.
    pub(crate) stop: watch::Receiver<bool>,
    /// Told once no hello is unfinished any more after that.
    pub(crate) quiet: std::sync::mpsc::Sender<()>,
}

impl Front {
    /// Runs until told to stop and every worker has ended and every farewell is said.
    pub(crate) async fn run<L: Listen>(self, listener: TcpListener) -> io::Result<()> {
        let listener = L::adopt(listener)?;
        let Self { shared, workers, admission, foreign, farewells, stop, quiet } = self;
        let limits = shared.limits;
        let desk = Rc::new(Desk {
            sources: RefCell::new(Sources::new(limits.hellos_per_source_max, limits.hellos_max)),
            shared,
            workers,
            admission,
            foreign,
            stop,
            tasks: Cell::new(0),
            task_done: Notify::new(),
            lingering: Cell::new(0),
        });
        let farewell_task = tokio::task::spawn_local(desk.clone().say_farewells::<L>(farewells));
        desk.accept_all(&listener).await;
        drop(listener);
        desk.all_tasks_done().await;
        // Nobody listens if the gateway was dropped in a hurry.
        let _ = quiet.send(());
        if farewell_task.await.is_err() {
            tracing::error!("the farewell task panicked");
        }
        desk.all_tasks_done().await;
        Ok(())
    }
}

/// From accept to FIN at most this long for a refused peer to take its alert: two round trips of a bad link.
const LINGER: Duration = Duration::from_secs(1);
/// Farewells at once; beyond that a refused peer is closed at once and may miss its alert.
const LINGERING_MAX: usize = 1024;
/// Bytes of one read. Most hellos fit; longer ones take several.
const CHUNK: usize = 2048;
/// First pause after accept failed for want of descriptors or memory; doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The front's state, shared by its tasks on one thread.
struct Desk {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    admission: Arc<dyn Admission>,
    foreign: Box<dyn Fn(ForeignConnection) + Send + Sync>,
    sources: RefCell<Sources>,
    stop: watch::Receiver<bool>,
    tasks: Cell<usize>,
    task_done: Notify,
    lingering: Cell<usize>,
}

impl Desk {
    async fn accept_all<L: Listen>(self: &Rc<Self>, listener: &L) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let accepted = listener.accept().await;
            if *self.stop.borrow() {
                return;
            }
            match accepted {
                Ok((stream, peer)) => {
                    backoff = BACKOFF_MIN;
                    self.greet::<L>(stream, peer);
                    // Hellos are read between accepts, not after the whole backlog.
                    yield_now().await;
                }
                Err(error) if connection_lost(&error) => {}
                Err(error) => {
                    self.shared.accept_errors.fetch_add(1, Relaxed);
                    if backoff == BACKOFF_MIN || backoff == BACKOFF_MAX {
                        tracing::warn!(%error, "cannot accept connections; trying again");
                    }
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// A connection is here: read its hello, if its source has not too many unfinished already.
    fn greet<L: Listen>(self: &Rc<Self>, stream: L::Stream, peer: SocketAddr) {
        self.shared.accepted.fetch_add(1, Relaxed);
        let source = Source::of(peer);
        let deadline = Instant::now() + self.shared.limits.hello_deadline;
        let desk = self.clone();
        if !self.sources.borrow_mut().enter(source) {
            self.spawn(async move { desk.refuse(stream, Refusal::HelloLimit).await });
            return;
        }
        if !self.shared.enter_hello() {
            self.sources.borrow_mut().leave(source);
            self.spawn(async move { desk.refuse(stream, Refusal::HelloLimit).await });
            return;
        }
        self.spawn(async move {
            let read = desk.read_hello(&stream, deadline).await;
            desk.sources.borrow_mut().leave(source);
            desk.shared.leave_hello();
            match read {
                Ok((hello, head)) => desk.dispatch(stream, peer, hello, head).await,
                Err(refusal) => desk.refuse(stream, refusal).await,
            }
        });
    }

    /// Reads until the hello is complete, hopeless, too large or too late.
    async fn read_hello(
        &self,
        stream: &impl Stream,
        deadline: Instant,
    ) -> Result<(Hello, Vec<u8>), Refusal> {
        let bytes_max = self.shared.limits.hello_bytes_max;
        let mut head = Vec::new();
        let mut chunk = vec![0; CHUNK];
        // In a burst the hello is often here before its task is. Waiting for readiness all the same would let a whole burst
        // count as unfinished at once.
        if let Move::Bytes(bytes) = receive(stream.socket(), &mut chunk) {
            head.extend_from_slice(&chunk[..bytes]);
        }
        loop {
            match hello::parse(&head) {
                Ok(Parsed::Complete(hello)) if hello.length <= bytes_max => {
                    return Ok((hello, head));
                }
                Ok(Parsed::Incomplete { at_least }) if at_least <= bytes_max => {}
                Ok(_) => return Err(Refusal::HelloTooLarge),
                Err(HelloError::NotTls) => return Err(Refusal::HelloNotTls),
                Err(HelloError::Malformed) => return Err(Refusal::HelloMalformed),
            }
            let read;
            (read, chunk) = self.read_until(stream, chunk, deadline).await?;
            match read {
                Ok(bytes) if bytes > 0 => head.extend_from_slice(&chunk),
                Ok(_) | Err(_) => return Err(Refusal::HelloTruncated),
            }
        }
    }

    /// One read, ended by the deadline or by the gateway's stop. The read is never dropped: the socket's receiving side is
    /// shut, which completes it.
    async fn read_until(
        &self,
        stream: &impl Stream,
        chunk: Vec<u8>,
        deadline: Instant,
    ) -> Result<(io::Result<usize>, Vec<u8>), Refusal> {
        let mut stop = self.stop.clone();
        let mut read = pin!(stream.read(chunk));
        let refusal = tokio::select! {
            biased;
            done = &mut read => return Ok(done),
            () = sleep_until(deadline) => Refusal::HelloTimeout,
            _ = stop.wait_for(|stop| *stop) => Refusal::Draining,
        };
        // If even this fails the connection is gone, and the read ends by itself.
        let _ = SockRef::from(&stream.socket()).shutdown(Shutdown::Read);
        let _ = read.await;
        Err(refusal)
    }

    /// The hello is complete: whose is it?
    async fn dispatch<S: Stream>(&self, stream: S, peer: SocketAddr, hello: Hello, head: Vec<u8>) {
        let verdict = match &hello.server_name {
            Some(name) => self.admission.admit(name, peer),
            None => Verdict::Foreign,
        };
        match verdict {
            Verdict::Foreign => self.hand_over(stream, peer, head),
            Verdict::Refuse(refusal) => self.refuse(stream, refusal).await,
            Verdict::Admit(admitted) => self.admit(stream, peer, admitted, &hello, head).await,
        }
    }

    fn hand_over(&self, stream: impl Stream, peer: SocketAddr, head: Vec<u8>) {
        self.shared.foreign.fetch_add(1, Relaxed);
        let handed = stream.release().and_then(|socket| {
            let stream = TcpStream::from(socket);
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        match handed {
            Ok(stream) => (self.foreign)(ForeignConnection { stream, peer, head: head.into() }),
            Err(error) => tracing::warn!(%error, "a connection for the broker was lost"),
        }
    }

    async fn admit<S: Stream>(
        &self,
        stream: S,
        peer: SocketAddr,
        admitted: Admitted,
        hello: &Hello,
        mut head: Vec<u8>,
    ) {
        let said = match admitted.side {
            LegSide::Client => head,
            LegSide::Agent => head.split_off(hello.length),
        };
        let Ok(socket) = stream.release() else {
            return self.shared.refused(Refusal::LegLimit); // out of descriptors, and the peer is gone with the stream
        };
        if prepare_leg(&socket).is_err() {
            return self.shared.refused(Refusal::HelloTruncated); // the peer reset in this moment
        }
        if let Err(leg) = self.workers.submit(NewLeg { socket, peer, admitted, said }) {
            let refusal = if *self.stop.borrow() { Refusal::Draining } else { Refusal::LegLimit };
            match S::adopt(leg.socket) {
                Ok(stream) => self.refuse(stream, refusal).await,
                Err(_) => self.shared.refused(refusal),
            }
        }
    }

    async fn refuse(&self, stream: impl Stream, refusal: Refusal) {
        self.shared.refused(refusal);
        self.farewell(stream, refusal).await;
    }

    /// Sends the alert and FIN, then drains until the peer has closed, a second has passed, or too much has come.
    async fn farewell(&self, stream: impl Stream, refusal: Refusal) {
        // A peer that cannot take 7 bytes is gone or hostile.
        let _ = send(stream.socket(), &alert_record(refusal));
        let _ = SockRef::from(&stream.socket()).shutdown(Shutdown::Write);
        if self.lingering.get() >= LINGERING_MAX {
            return;
        }
        self.lingering.set(self.lingering.get() + 1);
        let deadline = Instant::now() + LINGER;
        let mut left = self.shared.limits.hello_bytes_max.max(CHUNK);
        let mut chunk = Vec::with_capacity(CHUNK);
        while left > 0 {
            let Ok((Ok(bytes @ 1..), back)) = self.read_until(&stream, chunk, deadline).await
            else {
                break;
            };
            (left, chunk) = (left.saturating_sub(bytes), back);
        }
        self.lingering.set(self.lingering.get() - 1);
    }

    async fn say_farewells<L: Listen>(
        self: Rc<Self>,
        mut farewells: mpsc::UnboundedReceiver<Farewell>,
    ) {
        while let Some(Farewell { socket, refusal }) = farewells.recv().await {
            if let Ok(stream) = L::Stream::adopt(socket) {
                let desk = self.clone();
                self.spawn(async move { desk.farewell(stream, refusal).await });
            }
        }
    }

    /// Runs a task that [`Self::all_tasks_done`] waits for.
    fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let desk = self.clone();
        self.tasks.set(self.tasks.get() + 1);
        tokio::task::spawn_local(async move {
            let _done = TaskGuard(desk);
            task.await;
        });
    }

    async fn all_tasks_done(&self) {
        while self.tasks.get() > 0 {
            self.task_done.notified().await;
        }
    }
}

/// Counts a task as done even if a callback panics in it.
struct TaskGuard(Rc<Desk>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.tasks.set(self.0.tasks.get() - 1);
        self.0.task_done.notify_one();
    }
}

/// A fatal alert in a plaintext TLS record (RFC 8446 section 6).
fn alert_record(refusal: Refusal) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, refusal.alert()]
}

/// The connection died before it was accepted, which is its own affair (accept(2), "Error handling").
fn connection_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
        || matches!(
            error.raw_os_error(),
            Some(
                libc::EPROTO
                    | libc::ENETDOWN
                    | libc::EHOSTDOWN
                    | libc::EHOSTUNREACH
                    | libc::ENETUNREACH
            )
        )
}
