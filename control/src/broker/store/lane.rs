//! A connection on a thread of its own; everybody else sends it work and waits.
use std::sync::Mutex;
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::{lock, schema};
use crate::code::{Code, Fault};

/// Calls waiting for the connection. One takes some ten microseconds, a durable write a few milliseconds; more than
/// this are served so late that their callers had better wait outside.
const QUEUE_MAX: usize = 1024;
/// Statements kept compiled: more than there are.
const STATEMENTS_MAX: usize = 64;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

#[derive(Debug)]
pub(super) struct Lane {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Lane {
    /// Starts the thread. It gives `kept` up when the connection is closed.
    pub(super) fn open(
        name: &str,
        mut db: Connection,
        kept: impl Send + 'static,
    ) -> Result<Self, Fault> {
        db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        let (jobs, mut inbox) = mpsc::channel::<Job>(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Some(job) = inbox.blocking_recv() {
                    job(&mut db);
                }
                drop(db);
                drop(kept);
            })
            .map_err(|error| Code::Internal.because(format!("no thread: {error}")))?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    /// Finishes what is queued and closes the connection. Later calls fail.
    pub(super) async fn close(&self) {
        drop(lock(&self.jobs).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic on the thread was reported when it happened.
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }

    pub(super) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let gone = || Code::Internal.because("the database is closed");
        let jobs = lock(&self.jobs).clone().ok_or_else(gone)?;
        let (answer, answered) = oneshot::channel();
        // The caller may have gone; nobody misses the answer then.
        let job: Job = Box::new(move |db| drop(answer.send(work(db))));
        jobs.send(job).await.map_err(|_| gone())?;
        drop(jobs);
        answered.await.map_err(|_| gone())?.map_err(|error| schema::fault(&error))
    }
}
