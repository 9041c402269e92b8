//! Worker threads: started, fed, stopped.
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use slab::Slab;

use super::accept::Door;
use super::crew::Crew;
use super::epoll::Epoll;
use super::inbox::{Ack, DeskSender, Inbox, InboxSender, Message};
use super::placement::Busyness;
use super::queue::ReadyQueue;
use super::readiness::Readiness;
use super::slots::Legs;
use super::spin::BusyPoll;
use super::turn::Worker;
use super::uring::Uring;
use crate::GatewayEvent;
use crate::gateway::{BackendKind, Pairing, Reception};
use crate::ring::PipePool;
use crate::rtt::Rounds;
use crate::stats::{Shared, WorkerStats};

/// What workers are made of.
pub(crate) struct WorkersSetup {
    pub(crate) count: usize,
    /// At least one; dealt out in turn.
    pub(crate) listeners: Vec<OwnedFd>,
    pub(crate) backend: BackendKind,
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: Arc<dyn Fn(GatewayEvent) + Send + Sync>,
    pub(crate) reception: Arc<Reception>,
    pub(crate) desk: DeskSender,
    /// How long workers spin after bytes moved, see [`BusyPoll`].
    pub(crate) busy_poll: Option<Duration>,
}

/// The relay workers.
#[derive(Debug)]
pub(crate) struct Workers {
    pub(crate) crew: Arc<Crew>,
    /// The workers' listeners, for as long as they have them.
    listeners: Vec<Weak<OwnedFd>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) stats: Vec<Arc<WorkerStats>>,
}

impl Workers {
    /// Starts the threads and waits until each watches its inbox and its listeners.
    ///
    /// # Errors
    /// No thread, eventfd, ring or epoll instance to be had, or no watch. Threads already started end by themselves.
    pub(crate) fn start(setup: WorkersSetup) -> io::Result<Self> {
        let count = setup.count.max(1);
        let inboxes: io::Result<Vec<_>> = (0..count).map(|_| inbox()).collect();
        let (senders, receivers): (Vec<_>, Vec<_>) = inboxes?.into_iter().unzip();
        let listeners: Vec<_> = setup.listeners.into_iter().map(Arc::new).collect();
        let stats: Vec<_> = (0..count).map(|_| Arc::new(WorkerStats::new())).collect();
        let workers = Self {
            crew: Arc::new(Crew::new(senders)),
            listeners: listeners.iter().map(Arc::downgrade).collect(),
            threads: Mutex::default(),
            stats,
        };
        let cores = allowed_cores();
        for (index, inbox) in receivers.into_iter().enumerate() {
            let mine = listeners.iter().skip(index).step_by(count).cloned().collect();
            let parts = Parts {
                inbox,
                index,
                crew: workers.crew.clone(),
                door: Door::new(mine, setup.reception.clone(), setup.desk.clone()),
                stats: workers.stats[index].clone(),
                backend: setup.backend,
                shared: setup.shared.clone(),
                events: setup.events.clone(),
                busy_poll: setup.busy_poll,
                sampling: Rounds::among(count),
                pipes_max: pipes_per_worker(count),
            };
            let core = cores.get(index % cores.len().max(1)).copied();
            if let Err(error) = workers.spawn(parts, core) {
                workers.stop();
                return Err(error);
            }
        }
        Ok(workers)
    }

    /// Duplicates of the listeners that are still accepted from.
    ///
    /// # Errors
    /// `fcntl(2)`: out of descriptors.
    pub(crate) fn listeners(&self) -> io::Result<Vec<OwnedFd>> {
        self.listeners
            .iter()
            .filter_map(Weak::upgrade)
            .map(|listener| listener.try_clone())
            .collect()
    }

    /// Whether a listener is still accepted from.
    pub(crate) fn is_accepting(&self) -> bool {
        self.listeners.iter().any(|listener| listener.strong_count() > 0)
    }

    /// Has every worker let go of its listeners and send waiting legs away. `ack` is dropped when all have, and no hello is
    /// unfinished.
    pub(crate) fn stop_accepting(&self, ack: &Ack) {
        for worker in 0..self.stats.len() {
            self.crew.tell(worker, Message::StopAccepting(ack.clone()));
        }
    }

    /// Stops the threads and waits for them. Call from none of them.
    pub(crate) fn stop(&self) {
        for worker in 0..self.stats.len() {
            self.crew.tell(worker, Message::Stop);
        }
        let threads = std::mem::take(&mut *self.threads());
        for thread in threads {
            let _ = thread.join(); // a panic has been logged
        }
    }

    fn spawn(&self, parts: Parts, core: Option<usize>) -> io::Result<()> {
        let (ready, started) = crossbeam::channel::bounded(1);
        let name = format!("relay-{}", parts.index);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _ending = EndGuard { crew: parts.crew.clone(), index: parts.index };
            pin(core);
            // A ring belongs to the thread that makes it (SINGLE_ISSUER).
            let readiness = parts.backend.readiness(parts.busy_poll);
            match readiness.and_then(|readiness| parts.worker(readiness).watching()) {
                Ok(worker) => {
                    let _ = ready.send(Ok(()));
                    worker.run();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        self.threads().push(thread);
        started.recv().unwrap_or_else(|_| Err(io::Error::other("relay worker ended at once")))
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody chooses a worker whose thread has ended, however it ended.
struct EndGuard {
    crew: Arc<Crew>,
    index: usize,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(worker = self.index, "a relay worker panicked; its pairs are lost");
            self.crew.publish_failure(self.index);
        } else {
            self.crew.publish_end(self.index);
        }
    }
}

pub(super) fn inbox() -> io::Result<(InboxSender, Inbox)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    let (sender, receiver) = crossbeam::channel::unbounded();
    Ok((InboxSender { messages: sender, wake: wake.clone() }, Inbox { messages: receiver, wake }))
}

impl BackendKind {
    fn readiness(self, busy_poll: Option<Duration>) -> io::Result<Box<dyn Readiness>> {
        Ok(match self {
            Self::Uring => Box::new(Uring::new(busy_poll)?),
            Self::Epoll => Box::new(Epoll::new()?),
        })
    }
}

/// Pipes that each of `workers` may have.
pub(crate) fn pipes_per_worker(workers: usize) -> usize {
    (PIPES_MAX / workers.max(1)).max(PIPES_PER_WORKER_MIN)
}

/// 128 pipes of 256 KiB are half of what an unprivileged user may have (64 MiB, `fs.pipe-user-pages-soft`).
const PIPES_MAX: usize = 128;
const PIPES_PER_WORKER_MIN: usize = 4;
/// One read of a copying flow. 64 KiB is where the cost per byte stops falling steeply (16 KiB: 0.57 CPU s/GiB, 64 KiB: 0.34),
/// and it is what one flow may hold back when its sink is full.
const SCRATCH: usize = 64 * 1024;

/// What a worker thread is given.
struct Parts {
    inbox: Inbox,
    index: usize,
    crew: Arc<Crew>,
    door: Door,
    stats: Arc<WorkerStats>,
    backend: BackendKind,
    shared: Arc<Shared>,
    events: Arc<dyn Fn(GatewayEvent) + Send + Sync>,
    busy_poll: Option<Duration>,
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
            index: self.index,
            crew: self.crew,
            door: self.door,
            busyness: Busyness::default(),
            room: Pairing::new(),
            legs: Legs::default(),
            pairs: Slab::new(),
            active: HashMap::new(),
            queue: ReadyQueue::default(),
            busy_poll: BusyPoll::new(self.busy_poll),
            sampling: self.sampling,
            pipes: PipePool::new(self.pipes_max),
            scratch: vec![0; SCRATCH].into(),
            draining: false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_is_chosen_no_more() {
        let (senders, _inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| inbox().unwrap()).unzip();
        let crew = Arc::new(Crew::new(senders));
        assert_eq!(crew.place(0), 0);
        let ending = EndGuard { crew: crew.clone(), index: 0 };
        let thread = std::thread::spawn(move || {
            let _ending = ending;
            panic!("as a callback might");
        });
        assert!(thread.join().is_err());
        assert_eq!(crew.place(0), 1);
    }
}
