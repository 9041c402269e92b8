//! A gateway is started, asked and stopped.
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, watch};

use super::caps;
use super::desk::{DeskSetup, Stage};
use super::listener::prepare_listener;
use super::reception::Reception;
use super::{Backend, BackendKind};
use crate::stats::{Metrics, Shared};
use crate::worker::{Workers, WorkersSetup, pipes_per_worker};
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

/// A running data plane: the relay workers and one desk thread. Dropping it shuts it down.
#[derive(Debug)]
pub struct Gateway {
    backend: Backend,
    shared: Arc<Shared>,
    workers: Workers,
    stage: watch::Sender<Stage>,
    desk: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Starts relaying for `listeners`, which are bound to one address and listening (see [`crate::bind_listeners`]). They
    /// are dealt out to the workers in turn: one for each is best, any other number but 0 works. They may be shared with
    /// another process that accepts from them too.
    ///
    /// `foreign` gets the connections that are no legs, `events` what happens to legs and pairs, in order per pair. Both, and
    /// `admission`, are called on the gateway's threads, which relay meanwhile nothing: they must neither block nor panic.
    /// The soft descriptor limit of the process is raised to the hard one, and the configured limits are cut to what it can
    /// carry.
    ///
    /// # Errors
    /// [`StartError`]; then nothing runs and the listeners are closed.
    pub fn start(
        listeners: Vec<TcpListener>,
        config: EngineConfig,
        admission: Arc<dyn Admission>,
        foreign: Box<dyn Fn(ForeignConnection) + Send + Sync>,
        events: Arc<dyn Fn(GatewayEvent) + Send + Sync>,
    ) -> Result<Self, StartError> {
        let Some(first) = listeners.first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no listener").into());
        };
        let tuning = config.tuning.over(&Tuning::base());
        tuning.probe_listener(first.local_addr()?)?;
        listeners.iter().try_for_each(|listener| prepare_listener(listener, &tuning))?;
        let backend = Backend::choose(config.io, ring::probe)?;
        let workers = config.workers.max(1);
        let pipes = workers * pipes_per_worker(workers);
        let limits = caps::fit(config.limits, caps::raise_descriptor_limit(), pipes);
        let shared = Arc::new(Shared::new(limits));
        let reception = Arc::new(Reception { shared: shared.clone(), admission, foreign });
        let (desk_sender, errands) = mpsc::unbounded_channel();
        let workers = Workers::start(WorkersSetup {
            count: workers,
            listeners: listeners.into_iter().map(OwnedFd::from).collect(),
            backend: backend.kind,
            shared: shared.clone(),
            events,
            reception: reception.clone(),
            desk: desk_sender,
            busy_poll: config.busy_poll.map(|window| window.min(BUSY_POLL_MAX)),
        })?;
        let (stage, stage_receiver) = watch::channel(Stage::Open);
        let crew = workers.crew.clone();
        let desk = DeskSetup { crew, reception, errands, stage: stage_receiver };
        let desk = spawn_desk(desk, backend.kind).inspect_err(|_| workers.stop())?;
        tracing::info!(backend = backend.kind.as_str(), reason = %backend.reason, ?limits, %tuning, "gateway started");
        Ok(Self { backend, shared, workers, stage, desk: Some(desk) })
    }

    /// The readiness source in use, and why.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Ends a pair with `cause` and RST to both legs; a leg that still waits for its mate under this id is turned away with
    /// [`crate::Refusal::LegUnpaired`]. Unknown ids are ignored. Returns at once; the events tell.
    pub fn end_pair(&self, pair: PairId, cause: Cause) {
        self.workers.crew.end_pair(pair, cause);
    }

    /// What is counted, now.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let stats = self.workers.stats.iter().map(AsRef::as_ref);
        self.shared.metrics(self.backend.kind, stats, self.workers.crew.report())
    }

    /// Duplicates of the listeners, for another process to accept from. Empty once accepting has stopped.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn listeners(&self) -> io::Result<Vec<OwnedFd>> {
        self.workers.listeners()
    }

    /// Whether a worker still has a listener; false some milliseconds after [`Gateway::stop_accepting`].
    #[must_use]
    pub fn is_accepting(&self) -> bool {
        self.workers.is_accepting()
    }

    /// Stops taking legs in; pairs go on. Returns at once, and may be called again.
    ///
    /// The listeners are let go of, not shut down: whoever else has them goes on accepting, and connections that wait in them
    /// are his. Waiting legs and unfinished hellos are turned away with [`crate::Refusal::Draining`].
    /// [`Metrics::pairs_active`] tells how many pairs are left.
    pub fn stop_accepting(&self) {
        self.stage.send_if_modified(|stage| {
            let open = *stage == Stage::Open;
            *stage = (*stage).max(Stage::Draining);
            open
        });
        let (ack, _) = std_mpsc::channel();
        self.workers.stop_accepting(&ack);
    }

    /// Stops: no new connections, waiting legs and unfinished hellos are turned away with
    /// [`crate::Refusal::Draining`], pairs end with [`Cause::Shutdown`], threads are joined. Takes at most about 3 seconds,
    /// usually milliseconds, and blocks the caller, which must not be one of the gateway's threads.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(desk) = self.desk.take() else { return };
        self.stage.send_replace(Stage::Ending);
        let (ack, quiet) = std_mpsc::channel();
        self.workers.stop_accepting(&ack);
        drop(ack);
        // Nobody sends; the acknowledgement is that nobody can any more.
        if quiet.recv_timeout(QUIET_WITHIN) == Err(std_mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("some hellos did not end in time");
        }
        self.workers.stop();
        if desk.join().is_err() {
            tracing::error!("the desk's thread panicked");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Longer spinning only burns a core: a wake-up takes less than 0.1 ms.
const BUSY_POLL_MAX: Duration = Duration::from_millis(10);
/// Farewells take up to a second; twice that for a busy machine.
const QUIET_WITHIN: Duration = Duration::from_secs(2);

fn spawn_desk(desk: DeskSetup, backend: BackendKind) -> io::Result<JoinHandle<()>> {
    let (ready, started) = std_mpsc::channel();
    let thread = std::thread::Builder::new().name("desk".into()).spawn(move || {
        let result = match backend {
            BackendKind::Uring => on_uring(desk, &ready),
            BackendKind::Epoll => on_epoll(desk, &ready),
        };
        if let Err(error) = result {
            let _ = ready.send(Err(error));
        }
    })?;
    started.recv().unwrap_or_else(|_| Err(io::Error::other("the desk ended at once")))?;
    Ok(thread)
}

type Ready = std_mpsc::Sender<io::Result<()>>;

fn on_uring(desk: DeskSetup, ready: &Ready) -> io::Result<()> {
    let mut builder = tokio_uring::builder();
    builder.entries(DESK_RING_ENTRIES);
    let runtime = tokio_uring::Runtime::new(&builder)?;
    runtime.block_on(announced(ready, desk.run::<tokio_uring::net::TcpStream>()));
    Ok(())
}

fn on_epoll(desk: DeskSetup, ready: &Ready) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, announced(ready, desk.run::<tokio::net::TcpStream>()));
    Ok(())
}

/// Reads submitted between two waits; more only cost an extra system call.
const DESK_RING_ENTRIES: u32 = 256;

async fn announced(ready: &Ready, desk: impl Future<Output = ()>) {
    let _ = ready.send(Ok(()));
    desk.await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Admitted, IoChoice, LegSide, Limits, Verdict, bind_listeners, hello};
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::time::Instant;

    /// The name is a side's letter and a pair's.
    struct Letters;

    impl Admission for Letters {
        fn admit(&self, server_name: &str, _peer: SocketAddr) -> Verdict {
            let [side, pair] = *server_name.as_bytes() else { return Verdict::Foreign };
            let side = if side == b'c' { LegSide::Client } else { LegSide::Agent };
            let patience = Duration::from_millis(if pair == b'!' { 50 } else { 20_000 });
            Verdict::Admit(Admitted { pair: PairId([pair; 16]), side, patience, tuning: None })
        }
    }

    fn present(address: SocketAddr, name: &str) -> TcpStream {
        let mut leg = TcpStream::connect(address).unwrap();
        leg.write_all(&hello::encode(name, [1; 96])).unwrap();
        leg
    }

    /// The end of a leg that the gateway sends away.
    fn sent_away(mut leg: TcpStream) {
        leg.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(leg.read_to_end(&mut Vec::new()).unwrap(), 7);
    }

    #[test]
    fn no_home_outlives_its_legs_however_they_go() {
        let listeners = bind_listeners("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let address = listeners[0].local_addr().unwrap();
        let limits = Limits { waiting_legs_max: 30, pairs_max: 26, ..Limits::default() };
        let config =
            EngineConfig { io: IoChoice::Epoll, workers: 3, limits, ..EngineConfig::default() };
        let (foreign, events) = (Box::new(drop), Arc::new(drop));
        let gateway =
            Gateway::start(listeners, config, Arc::new(Letters), foreign, events).unwrap();
        let homes = || gateway.workers.crew.homes.count();
        let eventually = |what: &str, done: &dyn Fn() -> bool| {
            let give_up = Instant::now() + Duration::from_secs(20);
            while !done() {
                assert!(Instant::now() < give_up, "never: {what}, {} homes", homes());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let legs = |side: char| -> Vec<_> {
            ('a'..='z').map(|pair| present(address, &format!("{side}{pair}"))).collect()
        };
        let pairs = (legs('c'), legs('a'));
        eventually("26 pairs", &|| gateway.metrics().pairs_active == 26);
        assert_eq!(homes(), 26);
        sent_away(present(address, "ca")); // a duplicate
        let one_too_many = [present(address, "cA"), present(address, "aA")];
        one_too_many.into_iter().for_each(sent_away);
        sent_away(present(address, "c!")); // out of patience
        let waiting: Vec<_> =
            ('"'..='?').map(|pair| present(address, &format!("a{pair}"))).collect();
        eventually("30 wait", &|| gateway.metrics().legs_waiting == waiting.len());
        sent_away(present(address, "a@")); // no room to wait
        gateway.end_pair(PairId([b'0'; 16]), Cause::Killed);
        drop((waiting, pairs));
        eventually("nothing is left", &|| homes() == 0);
        let metrics = gateway.metrics();
        assert_eq!((metrics.legs_waiting, metrics.pairs_active), (0, 0));
    }
}
