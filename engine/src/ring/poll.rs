//! An io_uring that only watches: multishot `POLL_ADD` per descriptor, one `io_uring_enter` per wait.
//!
//! The ring borrows no memory of ours: a poll request carries a descriptor number and a token, and the kernel takes its own
//! reference to the file. That reference outlives `close(2)`, so the last FIN or RST of a socket leaves only once its poll
//! request is gone: remove it in the same turn.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};

/// A descriptor became ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Polled {
    pub(crate) token: u64,
    /// `poll(2)` bits.
    pub(crate) events: u32,
}

/// Readiness of many descriptors from one ring. Used by the thread that made it.
pub(crate) struct PollRing {
    ring: IoUring,
    /// What is watched, by descriptor number. A completion whose watch is not here is stale.
    watches: Vec<Watch>,
    /// Of the newest watch.
    serial: u32,
}

/// One watched descriptor. The number in the ring is its descriptor and its serial.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    token: u64,
    /// 0: none.
    serial: u32,
}

/// Says why this process cannot use io_uring as we need it, if so.
///
/// Tries it on a thread of its own: tearing a ring down interrupts the thread that made it (`EINTR` out of blocking calls,
/// later and without warning), and the caller's is not ours to interrupt.
///
/// # Errors
/// A sentence naming the kernel's answer and its likely reason.
pub(crate) fn probe() -> Result<(), String> {
    match std::thread::Builder::new().name("uring-probe".into()).spawn(probe_here) {
        Ok(thread) => thread.join().unwrap_or_else(|_| Err("io_uring: the probe panicked".into())),
        Err(error) => Err(format!("io_uring: no thread to probe on: {error}")),
    }
}

fn probe_here() -> Result<(), String> {
    let ring = build(8).map_err(|error| explain(&error))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| explain(&error))?;
    let needed = [(opcode::PollAdd::CODE, "POLL_ADD"), (opcode::AsyncCancel::CODE, "ASYNC_CANCEL")];
    match needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, name)) => Err(format!("io_uring: the kernel lacks {name}")),
        None if !ring.params().is_feature_ext_arg() => {
            Err("io_uring: the kernel lacks EXT_ARG timeouts".into())
        }
        None => Ok(()),
    }
}

impl PollRing {
    /// # Errors
    /// `io_uring_setup(2)`.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { ring: build(ENTRIES)?, watches: Vec::new(), serial: 0 })
    }

    /// Watches `fd` for `events` (`poll(2)` bits), edge by edge, until [`Self::remove`].
    ///
    /// # Errors
    /// `io_uring_enter(2)`, if the submission queue had to be flushed.
    pub(crate) fn add(&mut self, fd: BorrowedFd<'_>, token: u64, events: u32) -> io::Result<()> {
        let fd = fd.as_raw_fd();
        let index = usize::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput)?;
        if self.watches.len() <= index {
            self.watches.resize(index + 1, Watch::default());
        }
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        self.watches[index] = Watch { token, serial: self.serial };
        self.push(&poll_add(fd, number(fd, self.serial), events))
    }

    /// Stops watching. The request is cancelled with the next wait; later completions of it are dropped here.
    ///
    /// By `ASYNC_CANCEL`, not `POLL_REMOVE`: the latter fails with `EALREADY` while a wake-up of the request is pending, and
    /// leaves it armed, and with it the socket open.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub(crate) fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fd = fd.as_raw_fd();
        let watch = usize::try_from(fd).ok().and_then(|index| self.watches.get_mut(index));
        let Some(watch) = watch.map(std::mem::take).filter(|watch| watch.serial > 0) else {
            return Ok(());
        };
        self.push(
            &opcode::AsyncCancel::new(number(fd, watch.serial))
                .build()
                .user_data(REMOVED)
                .flags(squeue::Flags::SKIP_SUCCESS),
        )
    }

    /// Waits until something is ready or `timeout` is over (`None`: for ever) and appends it to `polled`.
    ///
    /// # Errors
    /// `io_uring_enter(2)`, other than interruption and timeout.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: u32,
        polled: &mut Vec<Polled>,
    ) -> io::Result<()> {
        self.enter(timeout)?;
        let mut again = Vec::new();
        for completion in self.ring.completion() {
            let (fd, serial) = fd_and_serial(completion.user_data());
            let Some(token) = token_of(&self.watches, fd, serial) else { continue };
            let result = completion.result();
            if let Ok(bits) = u32::try_from(result) {
                polled.push(Polled { token, events: bits });
            }
            if !cqueue::more(completion.flags()) {
                // The kernel ended the request: completion queue full, or a poll error. The latter repeats for ever, so the
                // descriptor is reported as failed and its owner decides.
                match result {
                    ..0 => polled.push(Polled { token, events: POLL_FAILED }),
                    _ => again.push(poll_add(fd, completion.user_data(), events)),
                }
            }
        }
        again.iter().try_for_each(|entry| self.push(entry))
    }

    /// Lets waits poll the network devices that sockets are fed from, for `window` before they sleep
    /// (`IORING_REGISTER_NAPI`, Linux 6.9). Needs no privilege. Kernels and devices that cannot are waited for as ever.
    pub(crate) fn busy_poll_devices(&self, window: Duration) {
        let micros = u32::try_from(window.as_micros()).unwrap_or(u32::MAX);
        let mut napi = types::Napi::new().set_busy_poll_timeout(micros);
        if let Err(error) = self.ring.submitter().register_napi(&mut napi) {
            tracing::info!(%error, "no busy polling of network devices: the kernel lacks it");
        }
    }

    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let idle = {
            let queue = self.ring.submission();
            queue.is_empty() && !queue.taskrun() && !queue.cq_overflow()
        };
        let result = match timeout {
            _ if !self.ring.completion().is_empty() => self.flush_if(!idle),
            Some(Duration::ZERO) => self.flush_if(!idle),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                self.ring
                    .submitter()
                    .submit_with_args(1, &types::SubmitArgs::new().timespec(&timespec))
                    .map(drop)
            }
            None => self.ring.submit_and_wait(1).map(drop),
        };
        match result {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY)
                ) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    /// Submits without waiting. With nothing to submit and no task work pending, the kernel need not be asked at all.
    fn flush_if(&self, busy: bool) -> io::Result<()> {
        if busy { self.ring.submit().map(drop) } else { Ok(()) }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        for _ in 0..2 {
            // SAFETY: poll requests refer to no memory, only to a descriptor number and a token; a number that is closed or
            // reused by the time of submission makes the request fail or watch another file of this process, nothing worse.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// Reported when the kernel refuses to watch a descriptor any longer.
pub(crate) const POLL_FAILED: u32 = (libc::POLLNVAL | libc::POLLHUP) as u32;

/// Requests between two waits before an extra flush; a busy turn adds and removes far fewer.
const ENTRIES: u32 = 256;
/// Room for completions, 64 KiB of memory. Beyond it the kernel queues them itself (`IORING_FEAT_NODROP`).
const COMPLETIONS: u32 = 4096;
/// Number of removals: serial 0 is never watched.
const REMOVED: u64 = 0;

fn poll_add(fd: RawFd, number: u64, events: u32) -> squeue::Entry {
    opcode::PollAdd::new(types::Fd(fd), events).multi(true).build().user_data(number)
}

/// The number of a watch in the ring.
fn number(fd: RawFd, serial: u32) -> u64 {
    u64::from(serial) << 32 | u64::from(fd.cast_unsigned())
}

fn fd_and_serial(number: u64) -> (RawFd, u32) {
    let low = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
    (low(number).cast_signed(), low(number >> 32))
}

/// The token of a watch, unless it has ended.
fn token_of(watches: &[Watch], fd: RawFd, serial: u32) -> Option<u64> {
    let watch = watches.get(usize::try_from(fd).ok()?)?;
    (serial > 0 && watch.serial == serial).then_some(watch.token)
}

/// One thread submits and reaps, and the kernel works only when we ask it to: the ring for a loop like ours (Linux 6.1).
fn build(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(COMPLETIONS)
        .build(entries)
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring: EPERM (forbidden by seccomp or by the sysctl kernel.io_uring_disabled)"
                .into()
        }
        Some(libc::ENOSYS) => {
            "io_uring: ENOSYS (absent from this kernel, or hidden by seccomp)".into()
        }
        Some(libc::EINVAL) => "io_uring: EINVAL (the kernel is older than 6.1)".into(),
        Some(libc::ENOMEM) => "io_uring: ENOMEM (raise RLIMIT_MEMLOCK)".into(),
        Some(libc::EMFILE | libc::ENFILE) => "io_uring: out of file descriptors".into(),
        _ => format!("io_uring: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_found_by_its_number_until_it_ends() {
        let (fd, serial) = (7, u32::MAX);
        assert_eq!(fd_and_serial(number(fd, serial)), (fd, serial));
        let mut watches = vec![Watch::default(); 8];
        watches[7] = Watch { token: 99, serial };
        assert_eq!(token_of(&watches, fd, serial), Some(99));
        assert_eq!(token_of(&watches, fd, serial - 1), None, "the descriptor's former watch");
        watches[7] = Watch::default();
        let (fd, serial) = fd_and_serial(REMOVED);
        assert_eq!(token_of(&watches, fd, serial), None, "a removal is no watch");
        assert_eq!(token_of(&watches, 100, 1), None);
    }
}
