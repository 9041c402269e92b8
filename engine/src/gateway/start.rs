//! A gateway is started, asked and stopped.
use std::future::Future;
use std::io;
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use super::caps;
use super::front::Front;
use super::{Backend, BackendKind};
use crate::stats::{Metrics, Shared};
use crate::worker::{PIPES_MAX, Workers, WorkersSetup};
use crate::{
    Admission, Cause, EngineConfig, ForeignConnection, GatewayEvent, PairId, Tuning, TuningRefused,
    ring,
};

/// Why a gateway did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// [`crate::IoChoice::Uring`] was asked for and cannot be had; the text says why. Another choice would work.
    #[error("io_uring is not available: {0}")]
    UringUnavailable(String),
    /// The kernel does not do what [`EngineConfig::tuning`] asks; the text says what would mend it.
    #[error("{0}")]
    Tuning(#[from] TuningRefused),
    /// A thread, descriptor or ring was refused by the system.
    #[error("the gateway's threads could not be started: {0}")]
    System(#[from] io::Error),
}

/// A running data plane: one front thread and the relay workers. Dropping it shuts it down.
#[derive(Debug)]
pub struct Gateway {
    backend: Backend,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    /// A second handle on the listener: shutting it down ends the pending accept.
    listener: TcpListener,
    stop: watch::Sender<bool>,
    quiet: std::sync::Mutex<std_mpsc::Receiver<()>>,
    front: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Starts relaying for `listener`, which is bound and listening (see [`crate::bind_listener`]).
    ///
    /// `foreign` gets the connections that are no legs, `events` what happens to legs and pairs, in order per pair. Both are
    /// called on the gateway's threads and must neither block nor panic. The soft descriptor limit of the process is raised
    /// to the hard one, and the configured limits are cut to what it can carry.
    ///
    /// # Errors
    /// [`StartError`]; then nothing runs and the listener is closed.
    pub fn start(
        listener: TcpListener,
        config: EngineConfig,
        admission: Arc<dyn Admission>,
        foreign: Box<dyn Fn(ForeignConnection) + Send + Sync>,
        events: Arc<dyn Fn(GatewayEvent) + Send + Sync>,
    ) -> Result<Self, StartError> {
        let tuning = config.tuning.over(&Tuning::base());
        tuning.probe_listener(listener.local_addr()?)?;
        ring::prepare_listener(&listener, &tuning)?;
        let backend = Backend::choose(config.io, ring::probe)?;
        let limits = caps::fit(config.limits, caps::raise_descriptor_limit(), PIPES_MAX);
        let shared = Arc::new(Shared::new(limits));
        let (farewell_sender, farewells) = mpsc::unbounded_channel();
        let workers = Arc::new(Workers::start(WorkersSetup {
            count: config.workers,
            backend: backend.kind,
            shared: shared.clone(),
            events,
            farewells: farewell_sender,
        })?);
        let (stop, stop_receiver) = watch::channel(false);
        let (quiet_sender, quiet) = std_mpsc::channel();
        let front = Front {
            shared: shared.clone(),
            workers: workers.clone(),
            admission,
            foreign,
            farewells,
            stop: stop_receiver,
            quiet: quiet_sender,
        };
        let second_handle = listener.try_clone();
        let started = second_handle
            .and_then(|handle| Ok((handle, spawn_front(front, listener, backend.kind)?)));
        let (listener, front) = started.inspect_err(|_| workers.stop())?;
        tracing::info!(backend = backend.kind.as_str(), reason = %backend.reason, ?limits, %tuning, "gateway started");
        let quiet = std::sync::Mutex::new(quiet);
        Ok(Self { backend, shared, workers, listener, stop, quiet, front: Some(front) })
    }

    /// The readiness source in use, and why.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Ends a pair with `cause` and RST to both legs; a leg that still waits for its mate under this id is turned away with
    /// [`crate::Refusal::LegUnpaired`]. Unknown ids are ignored. Returns at once; the events tell.
    pub fn end_pair(&self, pair: PairId, cause: Cause) {
        self.workers.end_pair(pair, cause);
    }

    /// What is counted, now.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics(self.backend.kind, self.workers.stats.iter().map(AsRef::as_ref))
    }

    /// Stops: no new connections, waiting legs and unfinished hellos are turned away with
    /// [`crate::Refusal::Draining`], pairs end with [`Cause::Shutdown`], threads are joined. Takes at most about 3 seconds,
    /// usually milliseconds, and blocks the caller, which must not be one of the gateway's threads.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(front) = self.front.take() else { return };
        self.stop.send_replace(true);
        // Ends the pending accept on both backends (EINVAL), without which the front would not look.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        let quiet = self.quiet.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if quiet.recv_timeout(QUIET_WITHIN).is_err() {
            tracing::warn!("some hellos did not end in time");
        }
        self.workers.stop();
        if front.join().is_err() {
            tracing::error!("the front thread panicked");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Farewells take up to a second; twice that for a busy machine.
const QUIET_WITHIN: Duration = Duration::from_secs(2);

fn spawn_front(
    front: Front,
    listener: TcpListener,
    backend: BackendKind,
) -> io::Result<JoinHandle<()>> {
    let (ready, started) = std_mpsc::channel();
    let thread = std::thread::Builder::new().name("front".into()).spawn(move || {
        let result = match backend {
            BackendKind::Uring => on_uring(front, listener, &ready),
            BackendKind::Epoll => on_epoll(front, listener, &ready),
        };
        if let Err(error) = result {
            tracing::error!(%error, "the front ended");
            let _ = ready.send(Err(error));
        }
    })?;
    started.recv().unwrap_or_else(|_| Err(io::Error::other("the front ended at once")))?;
    Ok(thread)
}

type Ready = std_mpsc::Sender<io::Result<()>>;

fn on_uring(front: Front, listener: TcpListener, ready: &Ready) -> io::Result<()> {
    let mut builder = tokio_uring::builder();
    builder.entries(FRONT_RING_ENTRIES);
    let runtime = tokio_uring::Runtime::new(&builder)?;
    runtime.block_on(announced(ready, front.run::<tokio_uring::net::TcpListener>(listener)))
}

fn on_epoll(front: Front, listener: TcpListener, ready: &Ready) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, announced(ready, front.run::<tokio::net::TcpListener>(listener)))
}

/// Reads and accepts submitted between two waits; more only cost an extra system call.
const FRONT_RING_ENTRIES: u32 = 512;

async fn announced<T>(ready: &Ready, front: impl Future<Output = T>) -> T {
    let _ = ready.send(Ok(()));
    front.await
}
