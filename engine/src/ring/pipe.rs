//! Pipes for splicing, leased from a bounded pool.
//!
//! Unprivileged users get 64 MiB of pipe buffers in all (`fs.pipe-user-pages-soft`); beyond that a new pipe holds 8 KiB and
//! cannot grow. A pipe that small is worse than copying, so the pool makes no more for a while, and flows copy.
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// A pipe, non-blocking at both ends.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) reader: OwnedFd,
    pub(crate) writer: OwnedFd,
}

/// The pipes of one worker.
#[derive(Debug)]
pub(crate) struct PipePool {
    free: Vec<Pipe>,
    leased: usize,
    max: usize,
    /// Leases to be refused before the kernel is asked for another pipe.
    refusals_left: u32,
}

impl PipePool {
    /// A pool of at most `max` pipes; they are made when first needed.
    pub(crate) fn new(max: usize) -> Self {
        Self { free: Vec::new(), leased: 0, max, refusals_left: 0 }
    }

    /// An empty pipe, or `None` if the pool is exhausted.
    pub(crate) fn lease(&mut self) -> Option<Pipe> {
        self.lease_or(make)
    }

    fn lease_or(&mut self, make: impl FnOnce() -> Option<Pipe>) -> Option<Pipe> {
        let pipe = match self.free.pop() {
            Some(pipe) => pipe,
            None if self.leased >= self.max => return None,
            None if self.refusals_left > 0 => {
                self.refusals_left -= 1;
                return None;
            }
            None => make().or_else(|| {
                self.refusals_left = REFUSALS;
                None
            })?,
        };
        self.leased += 1;
        Some(pipe)
    }

    /// Takes an empty pipe back.
    pub(crate) fn give_back(&mut self, pipe: Pipe) {
        self.leased -= 1;
        self.free.push(pipe);
    }

    /// Closes a pipe with bytes of an ended flow in it: they must never reach another flow.
    pub(crate) fn discard(&mut self, pipe: Pipe) {
        self.leased -= 1;
        drop(pipe);
    }

    /// Pipes in use.
    pub(crate) fn leased(&self) -> usize {
        self.leased
    }

    /// Pipes waiting for use.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }
}

/// 16 slots of 4 KiB cost 0.20 CPU s/GiB, 64 slots 0.15, 256 slots no less, and they make interactive flows wait 1.8 times
/// as long beside bulk.
const CAPACITY: usize = 256 * 1024;
/// The kernel's default; less is slower than copying.
const CAPACITY_MIN: usize = 64 * 1024;

/// A pipe that cannot be had costs three system calls. Each lease stands for a streak of big reads, so this asks again every
/// few hundred MiB: the user's other processes may have given theirs back.
const REFUSALS: u32 = 1000;

fn make() -> Option<Pipe> {
    let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
    let pipe = Pipe { reader, writer };
    (grow(&pipe) >= CAPACITY_MIN).then_some(pipe)
}

/// Enlarges a pipe as far as the kernel lets us and returns its capacity in bytes.
fn grow(pipe: &Pipe) -> usize {
    fcntl_setpipe_size(&pipe.writer, CAPACITY)
        .or_else(|_| fcntl_getpipe_size(&pipe.writer))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_pipe_is_asked_for_again_much_later() {
        let mut pool = PipePool::new(2);
        assert!(pool.lease_or(|| None).is_none());
        for _ in 0..REFUSALS {
            assert!(pool.lease_or(|| panic!("asked the kernel")).is_none());
        }
        let pipe = pool.lease().expect("the kernel is asked again");
        assert_eq!((pool.leased(), pool.free()), (1, 0));
        pool.give_back(pipe);
    }

    #[test]
    fn pool_is_bounded_and_reuses() {
        let mut pool = PipePool::new(2);
        let (a, b) = (pool.lease().unwrap(), pool.lease().unwrap());
        assert!(pool.lease().is_none());
        pool.give_back(a);
        assert_eq!((pool.leased(), pool.free()), (1, 1));
        let again = pool.lease().unwrap();
        assert_eq!(pool.free(), 0);
        pool.discard(b);
        pool.give_back(again);
        assert_eq!((pool.leased(), pool.free()), (0, 1));
    }
}
