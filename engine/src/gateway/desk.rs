//! Hellos that take time, and farewells.
//!
//! One thread, one task per unfinished hello, the same code on both backends (see [`super::desk_io`]). Workers leave
//! connections here whose first read did not give a whole hello, and get them back as admitted legs: a slow peer never
//! occupies a worker. The desk also says farewell to connections that are turned away: a refused peer gets a fatal TLS alert
//! naming the reason, then FIN, and its unread bytes are drained for a moment.
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::desk_io::Stream;
use super::farewell::say_farewell;
use super::hello::{self, Hello};
use super::reception::{Reception, new_leg};
use super::sources::{Source, Sources};
use crate::stats::Shared;
use crate::worker::{Crew, Errand, Errands};
use crate::{Admitted, Refusal, Verdict};

/// How far the gateway is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Open,
    /// Nothing new comes in: unfinished hellos are turned away. Farewells take their time.
    Draining,
    /// Nobody waits for anybody.
    Ending,
}

/// What the desk's thread is given.
pub(crate) struct DeskSetup {
    pub(crate) crew: Arc<Crew>,
    pub(crate) reception: Arc<Reception>,
    /// End when every worker has.
    pub(crate) errands: Errands,
    pub(crate) stage: watch::Receiver<Stage>,
}

impl DeskSetup {
    /// Runs until every worker has ended, every hello is finished and every farewell is said.
    pub(crate) async fn run<S: Stream>(self) {
        let Self { crew, reception, mut errands, stage } = self;
        let shared = reception.shared.clone();
        let limits = shared.limits;
        let desk = Rc::new(Desk {
            sources: RefCell::new(Sources::new(limits.hellos_per_source_max, limits.hellos_max)),
            shared,
            crew,
            reception,
            stage,
            tasks: Cell::new(0),
            task_done: Notify::new(),
        });
        while let Some(errand) = errands.recv().await {
            desk.take::<S>(errand);
        }
        desk.all_tasks_done().await;
    }
}

/// A refused peer has this long to take its alert: two round trips of a bad link.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of one read. Most hellos fit; longer ones take several.
const CHUNK: usize = 2048;

/// The desk's state, shared by its tasks on one thread.
struct Desk {
    shared: Arc<Shared>,
    crew: Arc<Crew>,
    reception: Arc<Reception>,
    sources: RefCell<Sources>,
    stage: watch::Receiver<Stage>,
    tasks: Cell<usize>,
    task_done: Notify,
}

impl Desk {
    fn take<S: Stream>(self: &Rc<Self>, errand: Errand) {
        let desk = self.clone();
        match errand {
            Errand::Hello { socket, peer, head } => match S::adopt(socket) {
                Ok(stream) => self.greet(stream, peer, head),
                Err(_) => {
                    self.shared.leave_hello();
                    self.shared.refused(Refusal::LegLimit); // out of memory or watches
                }
            },
            Errand::Farewell { socket, refusal } => match S::adopt(socket) {
                Ok(stream) => self.spawn(async move { desk.farewell(stream, refusal).await }),
                Err(_) => self.shared.leave_farewell(),
            },
            Errand::Quiet(ack) => {
                tokio::task::spawn_local(async move {
                    desk.all_tasks_done().await;
                    drop(ack);
                });
            }
        }
    }

    /// A connection is here that has said `head`: read the rest, if its source has not too many unfinished already.
    fn greet(self: &Rc<Self>, stream: impl Stream, peer: SocketAddr, head: Vec<u8>) {
        let source = Source::of(peer);
        let deadline = Instant::now() + self.shared.limits.hello_deadline;
        let desk = self.clone();
        if !self.sources.borrow_mut().enter(source) {
            self.shared.leave_hello();
            self.spawn(async move { desk.refuse(stream, Refusal::HelloLimit).await });
            return;
        }
        self.spawn(async move {
            let read = desk.read_hello(&stream, head, deadline).await;
            desk.sources.borrow_mut().leave(source);
            desk.shared.leave_hello();
            match read {
                Ok((hello, head)) => desk.dispatch(stream, peer, &hello, head).await,
                Err(refusal) => desk.refuse(stream, refusal).await,
            }
        });
    }

    /// Reads until the hello is complete, hopeless, too large or too late.
    async fn read_hello(
        &self,
        stream: &impl Stream,
        mut head: Vec<u8>,
        deadline: Instant,
    ) -> Result<(Hello, Vec<u8>), Refusal> {
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            let read;
            (read, chunk) = self.read_until(stream, chunk, deadline, Stage::Draining).await?;
            match read {
                Ok(bytes) if bytes > 0 => head.extend_from_slice(&chunk),
                Ok(_) | Err(_) => return Err(Refusal::HelloTruncated),
            }
            if let Some(hello) = hello::judge(&head, self.shared.limits.hello_bytes_max)? {
                return Ok((hello, head));
            }
        }
    }

    /// One read, ended by the deadline or when the gateway reaches `stage`. The read is never dropped: the socket's receiving side is
    /// shut, which completes it.
    async fn read_until(
        &self,
        stream: &impl Stream,
        chunk: Vec<u8>,
        deadline: Instant,
        stage: Stage,
    ) -> Result<(io::Result<usize>, Vec<u8>), Refusal> {
        let mut reached = self.stage.clone();
        let mut read = pin!(stream.read(chunk));
        let refusal = tokio::select! {
            biased;
            done = &mut read => return Ok(done),
            () = sleep_until(deadline) => Refusal::HelloTimeout,
            _ = reached.wait_for(|now| *now >= stage) => Refusal::Draining,
        };
        // If even this fails the connection is gone, and the read ends by itself.
        let _ = SockRef::from(&stream.socket()).shutdown(Shutdown::Read);
        let _ = read.await;
        Err(refusal)
    }

    /// The hello is complete: whose is it?
    async fn dispatch(&self, stream: impl Stream, peer: SocketAddr, hello: &Hello, head: Vec<u8>) {
        match self.reception.judge(hello, peer) {
            Verdict::Refuse(refusal) => self.refuse(stream, refusal).await,
            Verdict::Admit(admitted) => self.admit(stream, peer, admitted, hello, &head).await,
            Verdict::Foreign => match stream.release() {
                Ok(socket) => self.reception.hand_over(socket, peer, head),
                Err(error) => tracing::warn!(%error, "a connection for the broker was lost"),
            },
        }
    }

    async fn admit<S: Stream>(
        &self,
        stream: S,
        peer: SocketAddr,
        admitted: Admitted,
        hello: &Hello,
        head: &[u8],
    ) {
        let Ok(socket) = stream.release() else {
            return self.shared.refused(Refusal::LegLimit); // out of descriptors, and the peer is gone with the stream
        };
        let leg = new_leg(socket, peer, admitted, hello, head);
        if let Err(leg) = self.crew.submit(leg) {
            let open = *self.stage.borrow() == Stage::Open;
            let refusal = if open { Refusal::LegLimit } else { Refusal::Draining };
            match S::adopt(leg.socket) {
                Ok(stream) => self.refuse(stream, refusal).await,
                Err(_) => self.shared.refused(refusal),
            }
        }
    }

    async fn refuse(&self, stream: impl Stream, refusal: Refusal) {
        self.shared.refused(refusal);
        if self.shared.enter_farewell() {
            self.farewell(stream, refusal).await;
        } else {
            say_farewell(&stream.socket(), refusal);
        }
    }

    /// Sends the alert and FIN, then drains until the peer has closed, a second has passed, or too much has come. Gives a
    /// farewell's place back.
    async fn farewell(&self, stream: impl Stream, refusal: Refusal) {
        say_farewell(&stream.socket(), refusal);
        let deadline = Instant::now() + LINGER;
        let mut left = self.shared.limits.hello_bytes_max.max(CHUNK);
        let mut chunk = Vec::with_capacity(CHUNK);
        while left > 0 {
            let read = self.read_until(&stream, chunk, deadline, Stage::Ending).await;
            let Ok((Ok(bytes @ 1..), back)) = read else { break };
            (left, chunk) = (left.saturating_sub(bytes), back);
        }
        self.shared.leave_farewell();
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
        loop {
            let done = self.task_done.notified();
            if self.tasks.get() == 0 {
                return;
            }
            done.await;
        }
    }
}

/// Counts a task as done even if a callback panics in it.
struct TaskGuard(Rc<Desk>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.tasks.set(self.0.tasks.get() - 1);
        self.0.task_done.notify_waiters();
    }
}
