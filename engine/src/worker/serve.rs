//! Flows are served: the steps that the pure flow asks for, done with the kernel.
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::readiness::Event;
use super::slots::{Joined, Legs, Spill, Tube};
use super::turn::Worker;
use crate::relay::{Did, Direction, Step};
use crate::ring::{Move, PipePool, receive, send, splice_in, splice_out};
use crate::{Cause, LegSide};

impl Worker {
    /// Serves the flows that were ready when the turn began.
    pub(crate) fn serve(&mut self) {
        let mut quota = self.queue.begin_turn();
        while let Some((key, direction)) = self.queue.pop(&mut quota) {
            self.serve_flow(key, direction);
        }
        self.stats.pipes(self.pipes.leased(), self.pipes.free());
    }

    /// An event of a joined leg: its two flows may go on, or the leg is broken.
    pub(crate) fn note_joined(&mut self, key: usize, side: LegSide, event: Event) {
        let Some(joined) = self.pairs.get_mut(key) else { return };
        joined.pair.signal(side, event.ready);
        if event.lost {
            joined.pair.break_off(Cause::Internal);
        }
        if event.failed
            && let Some(leg) = self.legs.get(joined.legs[side as usize])
            && let Ok(Err(error)) = rustix::net::sockopt::socket_error(&leg.socket)
        {
            joined.pair.break_off(broken(side, error));
        }
        if joined.pair.ending().is_some() {
            return self.end_if_over(key);
        }
        let awake =
            Direction::BOTH.map(|direction| (direction, joined.pair.next(direction) != Step::Rest));
        for (direction, _) in awake.into_iter().filter(|&(_, awake)| awake) {
            self.enqueue(key, direction);
        }
    }

    /// Puts a flow into the ready queue, once.
    pub(crate) fn enqueue(&mut self, key: usize, direction: Direction) {
        if let Some(joined) = self.pairs.get_mut(key) {
            let tube = &mut joined.tubes[direction as usize];
            if std::mem::replace(&mut tube.queued, true) {
                return;
            }
            if joined.pair.streaming(direction) {
                self.queue.push_stream((key, direction));
            } else {
                self.queue.push_fresh((key, direction));
            }
        }
    }

    fn serve_flow(&mut self, key: usize, direction: Direction) {
        let Some(joined) = self.pairs.get_mut(key) else { return };
        if !std::mem::replace(&mut joined.tubes[direction as usize].queued, false) {
            return; // a stale entry of the slot's former tenant
        }
        let before = joined.pair.delivered(direction);
        let Some(mut mover) =
            Mover::new(joined, direction, &self.legs, &mut self.pipes, &mut self.scratch)
        else {
            return;
        };
        let more = mover.run();
        self.stats.moved(direction, mover.copied, mover.spliced);
        let moved = joined.pair.delivered(direction) > before;
        if moved {
            joined.meter.set_bytes(
                joined.pair.delivered(Direction::ClientToAgent),
                joined.pair.delivered(Direction::AgentToClient),
            );
        }
        if more {
            joined.tubes[direction as usize].queued = true;
            self.queue.push_stream((key, direction));
        }
        if moved {
            self.busy_poll.moved();
            self.note_moved(key);
        }
        self.end_if_over(key);
    }
}

/// A flow gives way once it has moved this much in a turn. It bounds how long others wait; a larger budget gained no
/// throughput in measurements and cost a third more interactive latency.
const BUDGET: usize = 64 * 1024;

/// Bytes asked of one splice: all that a pipe may hold. 8 bulk flows in pieces of 128 KiB cost 1.5 times the CPU per byte, in
/// pieces of 64 KiB twice. A whole pipe takes about 40 us, so a flow may overshoot its budget by one pipe.
const FILL_MAX: usize = 256 * 1024;

/// Serves one flow for one turn.
struct Mover<'a> {
    joined: &'a mut Joined,
    direction: Direction,
    source: BorrowedFd<'a>,
    sink: BorrowedFd<'a>,
    pipes: &'a mut PipePool,
    scratch: &'a mut [u8],
    copied: usize,
    spliced: usize,
}

impl<'a> Mover<'a> {
    fn new(
        joined: &'a mut Joined,
        direction: Direction,
        legs: &'a Legs,
        pipes: &'a mut PipePool,
        scratch: &'a mut [u8],
    ) -> Option<Self> {
        let source = legs.get(joined.legs[direction.source() as usize])?.socket.as_fd();
        let sink = legs.get(joined.legs[direction.sink() as usize])?.socket.as_fd();
        Some(Self { joined, direction, source, sink, pipes, scratch, copied: 0, spliced: 0 })
    }

    /// Steps until the flow rests (`false`) or its budget is used up (`true`).
    fn run(&mut self) -> bool {
        let more = loop {
            if self.copied + self.spliced >= BUDGET {
                break self.joined.pair.next(self.direction) != Step::Rest;
            }
            match self.joined.pair.next(self.direction) {
                Step::Copy => self.copy(),
                Step::SendSpill => self.send_spill(),
                Step::FillPipe => self.fill_pipe(),
                Step::DrainPipe(bytes) => self.drain_pipe(bytes),
                Step::Shutdown => self.shut_sink(),
                Step::Rest => break false,
            }
        };
        self.return_pipe();
        more
    }

    fn copy(&mut self) {
        match receive(self.source, self.scratch) {
            Move::Bytes(received) => {
                if received < self.scratch.len() {
                    self.joined.pair.source_short(self.direction);
                }
                let sent = self.sent(send(self.sink, &self.scratch[..received]), received);
                self.copied += sent;
                if sent < received {
                    self.tube().spill = Spill::new(self.scratch[sent..received].to_vec());
                }
                self.did(Did::Copied { received, sent });
            }
            other => self.source_gave_nothing(other),
        }
    }

    fn send_spill(&mut self) {
        let unsent = self.joined.tubes[self.direction as usize].spill.unsent();
        let (offered, result) = (unsent.len(), send(self.sink, unsent));
        let sent = self.sent(result, offered);
        self.tube().spill.advance(sent);
        self.copied += sent;
        self.did(Did::SpillSent(sent));
    }

    fn fill_pipe(&mut self) {
        if self.tube().pipe.is_none() {
            let Some(pipe) = self.pipes.lease() else { return self.did(Did::NoPipe) };
            self.tube().pipe = Some(pipe);
        }
        let Some(pipe) = &self.joined.tubes[self.direction as usize].pipe else { return };
        match splice_in(self.source, pipe, FILL_MAX) {
            Move::Bytes(bytes) => self.did(Did::Filled(bytes)),
            Move::Failed(Errno::INVAL | Errno::NOSYS | Errno::NOMEM | Errno::OPNOTSUPP) => {
                self.did(Did::SpliceRefused)
            }
            other => self.source_gave_nothing(other),
        }
    }

    fn drain_pipe(&mut self, bytes: usize) {
        let Some(pipe) = &self.joined.tubes[self.direction as usize].pipe else { return };
        let result = splice_out(pipe, self.sink, bytes);
        let sent = match result {
            // A short splice does not prove a full socket (it may stop at a page boundary); the next call tells.
            Move::Bytes(sent) => sent,
            other => self.sent(other, bytes),
        };
        self.spliced += sent;
        self.did(Did::Drained(sent));
    }

    fn shut_sink(&mut self) {
        // ENOTCONN: the sink is already gone, and its own events say how.
        let _ = rustix::net::shutdown(self.sink, rustix::net::Shutdown::Write);
        self.did(Did::Shut);
    }

    /// Judges a send of `offered` bytes: how many went, and whether the sink can take more.
    fn sent(&mut self, result: Move, offered: usize) -> usize {
        let sent = match result {
            Move::Bytes(sent) => sent,
            Move::WouldBlock | Move::End => 0,
            Move::Failed(error) => {
                self.joined.pair.break_off(broken(self.direction.sink(), error));
                0
            }
        };
        if sent < offered {
            self.joined.pair.sink_full(self.direction);
        }
        sent
    }

    fn source_gave_nothing(&mut self, result: Move) {
        match result {
            Move::Failed(error) => {
                self.joined.pair.break_off(broken(self.direction.source(), error))
            }
            Move::End => self.did(Did::SourceEnded),
            Move::Bytes(_) | Move::WouldBlock => self.joined.pair.source_empty(self.direction),
        }
    }

    fn return_pipe(&mut self) {
        if self.joined.pair.pipe_empty(self.direction)
            && let Some(pipe) = self.tube().pipe.take()
        {
            self.pipes.give_back(pipe);
        }
    }

    fn did(&mut self, did: Did) {
        self.joined.pair.did(self.direction, did);
    }

    fn tube(&mut self) -> &mut Tube {
        &mut self.joined.tubes[self.direction as usize]
    }
}

/// The cause behind an error on the leg of `side`. Everything that says the path went silent is a timeout; every other
/// error of a connected socket means that the connection is gone.
fn broken(side: LegSide, error: Errno) -> Cause {
    let silent = matches!(error, Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH);
    let ours =
        matches!(error, Errno::NOMEM | Errno::NOBUFS | Errno::BADF | Errno::INVAL | Errno::FAULT);
    match side {
        _ if ours => Cause::Internal,
        LegSide::Client if silent => Cause::ClientTimeout,
        LegSide::Agent if silent => Cause::AgentTimeout,
        LegSide::Client => Cause::ClientReset,
        LegSide::Agent => Cause::AgentReset,
    }
}
