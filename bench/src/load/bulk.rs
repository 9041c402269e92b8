//! Bulk: each flow is filled from its near end and emptied at its far end as fast as it goes.
//!
//! The source is `sendfile` from a memory file and the sink discards in the kernel (`MSG_TRUNC`,
//! tcp(7)), so that the generator costs little and the relay is the bottleneck. Afterwards the
//! near ends are shut, the tails drained, and every flow's bytes compared.

use std::io::{Seek, SeekFrom, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::DRAIN;
use crate::measure::{Meter, Reading, Usage};
use crate::peers::Flow;

/// Bytes per GiB.
pub(crate) const GIB: f64 = (1_u64 << 30) as f64;

/// How long to push.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk {
    /// Cut from the figures: congestion windows and socket buffers grow meanwhile.
    pub(crate) warmup: Duration,
    pub(crate) window: Duration,
}

/// What came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Bytes that arrived within the window, over all flows.
    pub(crate) window_bytes: u64,
    /// CPU and noise over the window.
    pub(crate) usage: Usage,
}

/// Size of the memory file: larger than the caches, so that the relay does not read from L2.
const SOURCE_BYTES: u64 = 32 << 20;

/// One `sendfile`. Large enough to amortise the call, small enough to turn to the sink often.
const SEND_BYTES: usize = 256 << 10;

/// One `recv`. Nothing is copied; this only bounds one call.
const RECV_BYTES: usize = 1 << 20;

/// Runs `load` over all `flows` at once and consumes them.
///
/// # Errors
/// A flow that fails, stalls for [`DRAIN`], or delivers another number of bytes than were sent.
pub(crate) fn run(flows: Vec<Flow>, load: Bulk, meter: &Meter) -> Result<Outcome> {
    let mut pump = Pump::new(flows)?;
    let start = Instant::now();
    let mut begun: Option<(Reading, u64)> = None;
    loop {
        let elapsed = start.elapsed();
        if begun.is_none() && elapsed >= load.warmup {
            begun = Some((meter.begin()?, pump.received()));
        }
        if elapsed >= load.warmup + load.window {
            break;
        }
        pump.turn()?;
    }
    let (reading, received_before) = begun.context("the run ended inside its warm-up")?;
    let usage = meter.used_since(&reading)?;
    let window_bytes = pump.received() - received_before;
    pump.drain()?;
    Ok(Outcome { window_bytes, usage })
}

struct Pump {
    flows: Vec<Counted>,
    source: OwnedFd,
    scratch: Vec<u8>,
}

struct Counted {
    near: TcpStream,
    far: TcpStream,
    offset: u64,
    sent: u64,
    received: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Sending,
    Draining,
    Ended,
}

impl Pump {
    fn new(flows: Vec<Flow>) -> Result<Pump> {
        ensure!(!flows.is_empty(), "bulk needs at least one flow");
        let counted = |Flow { near, far }: Flow| -> Result<Counted> {
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            Ok(Counted { near, far, offset: 0, sent: 0, received: 0, state: State::Sending })
        };
        Ok(Pump {
            flows: flows.into_iter().map(counted).collect::<Result<_>>()?,
            source: source_file()?,
            scratch: vec![0; RECV_BYTES],
        })
    }

    fn received(&self) -> u64 {
        self.flows.iter().map(|flow| flow.received).sum()
    }

    /// Waits until some end is ready, then sends and receives once on each ready end.
    fn turn(&mut self) -> Result<()> {
        let mut ready = Vec::with_capacity(self.flows.len() * 2);
        for flow in &self.flows {
            let near =
                if flow.state == State::Sending { PollFlags::OUT } else { PollFlags::empty() };
            let far = if flow.state == State::Ended { PollFlags::empty() } else { PollFlags::IN };
            ready.push(PollFd::new(&flow.near, near));
            ready.push(PollFd::new(&flow.far, far));
        }
        let timeout = Timespec { tv_sec: DRAIN.as_secs() as i64, tv_nsec: 0 };
        match poll(&mut ready, Some(&timeout)) {
            Ok(0) => bail!("no byte moved for {DRAIN:?}: the flows are stalled"),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error).context("waiting for the flows"),
        }
        let ready: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (flow, ready) in self.flows.iter_mut().zip(ready.chunks_exact(2)) {
            if ready[0] && flow.state == State::Sending {
                flow.send(&self.source)?;
            }
            if ready[1] && flow.state != State::Ended {
                flow.receive(&mut self.scratch)?;
            }
        }
        Ok(())
    }

    /// Shuts the near ends, receives the tails, and compares the counts.
    fn drain(&mut self) -> Result<()> {
        for flow in &mut self.flows {
            flow.near.shutdown(Shutdown::Write).context("shutting a near end")?;
            flow.state = if flow.state == State::Ended { State::Ended } else { State::Draining };
        }
        let deadline = Instant::now() + DRAIN;
        while self.flows.iter().any(|flow| flow.state != State::Ended) {
            ensure!(Instant::now() < deadline, "tails or their end did not arrive in {DRAIN:?}");
            self.turn()?;
        }
        for (index, flow) in self.flows.iter().enumerate() {
            let (sent, received) = (flow.sent, flow.received);
            ensure!(sent == received, "flow {index}: {sent} bytes sent, {received} received");
        }
        Ok(())
    }
}

impl Counted {
    fn send(&mut self, source: &OwnedFd) -> Result<()> {
        let count = SEND_BYTES.min((SOURCE_BYTES - self.offset) as usize);
        match sendfile(&self.near, source, Some(&mut self.offset), count) {
            Ok(sent) => self.sent += sent as u64,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).context("sending bulk"),
        }
        self.offset %= SOURCE_BYTES;
        Ok(())
    }

    fn receive(&mut self, scratch: &mut [u8]) -> Result<()> {
        match recv(&self.far, scratch, RecvFlags::TRUNC) {
            Ok((_, 0)) if self.state == State::Draining => self.state = State::Ended,
            Ok((_, 0)) => bail!("the flow ended while its source was still open"),
            Ok((_, bytes)) => self.received += bytes as u64,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).context("receiving bulk"),
        }
        Ok(())
    }
}

/// An unlinked memory file of [`SOURCE_BYTES`] with no two equal pages.
fn source_file() -> Result<OwnedFd> {
    let memory = memfd_create("bulk-source", MemfdFlags::CLOEXEC).context("creating the source")?;
    let mut file = std::fs::File::from(memory);
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    for _ in 0..SOURCE_BYTES / block.len() as u64 {
        file.write_all(&block)?;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::socket::Dialer;

    fn short() -> Bulk {
        Bulk { warmup: Duration::from_millis(10), window: Duration::from_millis(50) }
    }

    #[test]
    fn every_byte_sent_arrives() {
        let dialer = Dialer::system_default();
        let flows = (0..3).map(|_| dialer.direct_flow().unwrap()).collect();
        let outcome = run(flows, short(), &Meter::of_generator()).unwrap();
        assert!(outcome.window_bytes > 0);
    }

    #[test]
    fn a_flow_that_ends_early_is_an_error() {
        let Flow { near, far } = Dialer::system_default().direct_flow().unwrap();
        let other = Dialer::system_default().direct_flow().unwrap();
        other.near.shutdown(Shutdown::Write).unwrap();
        drop(far);
        assert!(run(vec![Flow { near, far: other.far }], short(), &Meter::of_generator()).is_err());
    }
}
