//! Worker threads: started, fed, stopped.
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use slab::Slab;

use super::epoll::Epoll;
use super::inbox::{FarewellSender, Inbox, InboxSender, Message, NewLeg};
use super::queue::ReadyQueue;
use super::readiness::Readiness;
use super::slots::Legs;
use super::turn::Worker;
use super::uring::Uring;
use crate::gateway::{BackendKind, Pairing};
use crate::ring::PipePool;
use crate::rtt::Rounds;
use crate::stats::{Shared, WorkerStats};
use crate::{Cause, GatewayEvent, PairId};

/// What workers are made of.
pub(crate) struct WorkersSetup {
    pub(crate) count: usize,
    pub(crate) backend: BackendKind,
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: Arc<dyn Fn(GatewayEvent) + Send + Sync>,
    pub(crate) farewells: FarewellSender,
}

/// The relay workers. Legs are dealt by pair id, so that mates always meet on the same one.
#[derive(Debug)]
pub(crate) struct Workers {
    inboxes: Vec<InboxSender>,
    threads: std::sync::Mutex<Vec<JoinHandle<()>>>,
    pub(crate) stats: Vec<Arc<WorkerStats>>,
}

impl Workers {
    /// Starts the threads and waits until each has its readiness source.
    ///
    /// # Errors
    /// No thread, eventfd, ring or epoll instance to be had. Threads already started end by themselves.
    pub(crate) fn start(setup: WorkersSetup) -> io::Result<Self> {
        let mut workers =
            Self { inboxes: Vec::new(), threads: std::sync::Mutex::default(), stats: Vec::new() };
        let cores = allowed_cores();
        for index in 0..setup.count.max(1) {
            let core = cores.get(index % cores.len().max(1)).copied();
            if let Err(error) = workers.spawn(&setup, index, core) {
                workers.stop();
                return Err(error);
            }
        }
        Ok(workers)
    }

    /// Hands an admitted leg to its worker. The leg comes back if that worker has ended or is drowning in work.
    pub(crate) fn submit(&self, leg: NewLeg) -> Result<(), NewLeg> {
        let inbox = self.inbox_of(leg.admitted.pair);
        if inbox.messages.len() >= INBOX_MAX {
            return Err(leg);
        }
        inbox.send(Message::Leg(leg)).map_err(|unsent| match unsent {
            Message::Leg(leg) => leg,
            Message::End { .. } | Message::Stop => {
                unreachable!("the message that was sent comes back")
            }
        })
    }

    /// Asks for the end of a pair, or of the leg that waits for it.
    pub(crate) fn end_pair(&self, pair: PairId, cause: Cause) {
        // A worker that has ended has no pairs.
        let _ = self.inbox_of(pair).send(Message::End { pair, cause });
    }

    /// Stops the threads and waits for them. Call from none of them.
    pub(crate) fn stop(&self) {
        for inbox in &self.inboxes {
            let _ = inbox.send(Message::Stop);
        }
        let threads = std::mem::take(
            &mut *self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a relay worker panicked");
            }
        }
    }

    fn inbox_of(&self, pair: PairId) -> &InboxSender {
        // Pair ids are random; folding both halves keeps every byte of them in play should a caller's not be.
        let number = u128::from_le_bytes(pair.0);
        &self.inboxes[usize::try_from(number % self.inboxes.len() as u128).unwrap_or(0)]
    }

    fn spawn(&mut self, setup: &WorkersSetup, index: usize, core: Option<usize>) -> io::Result<()> {
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let (sender, receiver) = crossbeam::channel::unbounded();
        let stats = Arc::new(WorkerStats::new());
        let parts = Parts {
            inbox: Inbox { messages: receiver, wake: wake.clone() },
            stats: stats.clone(),
            backend: setup.backend,
            shared: setup.shared.clone(),
            events: setup.events.clone(),
            farewells: setup.farewells.clone(),
            pipes_max: (PIPES_MAX / setup.count.max(1)).max(PIPES_PER_WORKER_MIN),
            sampling: Rounds::among(setup.count),
        };
        let (ready, started) = crossbeam::channel::bounded(1);
        let thread =
            std::thread::Builder::new().name(format!("relay-{index}")).spawn(move || {
                pin(core);
                // A ring belongs to the thread that makes it (SINGLE_ISSUER).
                match parts.backend.readiness() {
                    Ok(readiness) => {
                        let _ = ready.send(Ok(()));
                        parts.worker(readiness).run();
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })?;
        self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(thread);
        started.recv().unwrap_or_else(|_| Err(io::Error::other("relay worker ended at once")))?;
        self.inboxes.push(InboxSender { messages: sender, wake });
        self.stats.push(stats);
        Ok(())
    }
}

impl BackendKind {
    fn readiness(self) -> io::Result<Box<dyn Readiness>> {
        Ok(match self {
            Self::Uring => Box::new(Uring::new()?),
            Self::Epoll => Box::new(Epoll::new()?),
        })
    }
}

/// Legs waiting to be looked at by one worker, before the front turns more away. A worker reads its inbox every turn, so this
/// is only reached when it is stuck.
const INBOX_MAX: usize = 4096;
/// 128 pipes of 256 KiB are half of what an unprivileged user may have (64 MiB, `fs.pipe-user-pages-soft`).
pub(crate) const PIPES_MAX: usize = 128;
const PIPES_PER_WORKER_MIN: usize = 4;
/// One read of a copying flow. 64 KiB is where the cost per byte stops falling steeply (16 KiB: 0.57 CPU s/GiB, 64 KiB: 0.34),
/// and it is what one flow may hold back when its sink is full.
const SCRATCH: usize = 64 * 1024;

/// What a worker thread is given.
struct Parts {
    inbox: Inbox,
    stats: Arc<WorkerStats>,
    backend: BackendKind,
    shared: Arc<Shared>,
    events: Arc<dyn Fn(GatewayEvent) + Send + Sync>,
    farewells: FarewellSender,
    pipes_max: usize,
    sampling: Rounds,
}

impl Parts {
    fn worker(self, readiness: Box<dyn Readiness>) -> Worker {
        Worker {
            readiness,
            inbox: self.inbox,
            shared: self.shared,
            stats: self.stats,
            events: self.events,
            farewells: self.farewells,
            room: Pairing::new(),
            legs: Legs::default(),
            pairs: Slab::new(),
            active: HashMap::new(),
            queue: ReadyQueue::default(),
            sampling: self.sampling,
            pipes: PipePool::new(self.pipes_max),
            scratch: vec![0; SCRATCH].into(),
            stopping: false,
        }
    }
}

/// The cores this process may use.
fn allowed_cores() -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect()
}

fn pin(core: Option<usize>) {
    let Some(core) = core else { return };
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "relay worker is not pinned");
    }
}
