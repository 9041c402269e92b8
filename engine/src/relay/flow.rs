//! One direction of a pair.
//!
//! Pure. The worker asks [`Flow::next`], does it, and says what happened with [`Flow::did`]; only one step is ever
//! outstanding. **At most one step's bytes are pending:** a flow reads only when everything read before is delivered,
//! so a slow sink stops its source, and memory per flow is bounded by one read or one pipe.
//!
//! A flow starts by copying. Four big reads in a row make it a stream: it is spliced from then on, until eight small
//! transfers in a row show that it is interactive again. Measured with these thresholds, splicing costs about 0.4 of
//! the CPU of copying for bulk, and copying is cheaper below a few KiB because no pipe has to be filled and drained.

/// What to do next for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Receive into the scratch buffer and send it on; what the sink does not take becomes the spill.
    Copy,
    /// Send the spill.
    SendSpill,
    /// Lease a pipe if there is none, and splice from the source into it. The pipe is empty.
    FillPipe,
    /// Splice this many bytes from the pipe to the sink.
    DrainPipe(usize),
    /// Shut the sink's sending side: the source ended and everything is delivered.
    Shutdown,
    /// Nothing until a leg becomes ready.
    Rest,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    /// Bytes were received (more than 0), and these of them sent.
    Copied { received: usize, sent: usize },
    /// Bytes of the spill were sent.
    SpillSent(usize),
    /// Bytes went into the pipe (more than 0).
    Filled(usize),
    /// Bytes left the pipe for the sink.
    Drained(usize),
    /// The source ended.
    SourceEnded,
    /// The sink's sending side is shut.
    Shut,
    /// The kernel cannot splice this source; it never will.
    SpliceRefused,
    /// No pipe was to be had. Copy, and try again after the next streak.
    NoPipe,
}

/// One direction of a pair.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    mode: Mode,
    splice_refused: bool,
    pending: Pending,
    ended: bool,
    shut: bool,
    delivered: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Copying; this many big reads in a row so far.
    Copy { big: u8 },
    /// Splicing; this many small transfers in a row so far.
    Splice { small: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    Spill(usize),
    Pipe(usize),
}

impl Flow {
    /// A flow whose spill already holds `spill` bytes (what was read of its source before the pair met).
    pub(crate) fn new(spill: usize) -> Self {
        let pending = if spill > 0 { Pending::Spill(spill) } else { Pending::Nothing };
        let mode = Mode::Copy { big: 0 };
        Self { mode, splice_refused: false, pending, ended: false, shut: false, delivered: 0 }
    }

    /// The next step, given what the legs are ready for.
    pub(crate) fn next(&self, source_readable: bool, sink_writable: bool) -> Step {
        match self.pending {
            _ if self.shut => Step::Rest,
            Pending::Nothing if self.ended => Step::Shutdown,
            _ if !sink_writable => Step::Rest,
            Pending::Spill(_) => Step::SendSpill,
            Pending::Pipe(bytes) => Step::DrainPipe(bytes),
            Pending::Nothing if !source_readable => Step::Rest,
            Pending::Nothing => match self.mode {
                Mode::Copy { .. } => Step::Copy,
                Mode::Splice { .. } => Step::FillPipe,
            },
        }
    }

    /// Records what came of the step.
    pub(crate) fn did(&mut self, did: Did) {
        match did {
            Did::Copied { received, sent } => {
                self.deliver(sent);
                self.pending = if sent < received {
                    Pending::Spill(received - sent)
                } else {
                    Pending::Nothing
                };
                self.judge(received);
            }
            Did::SpillSent(sent) => {
                if let Pending::Spill(bytes) = self.pending {
                    self.deliver(sent);
                    self.pending =
                        if sent < bytes { Pending::Spill(bytes - sent) } else { Pending::Nothing };
                }
            }
            Did::Filled(bytes) => {
                self.pending = Pending::Pipe(bytes);
                self.judge(bytes);
            }
            Did::Drained(sent) => {
                if let Pending::Pipe(bytes) = self.pending {
                    self.deliver(sent);
                    self.pending =
                        if sent < bytes { Pending::Pipe(bytes - sent) } else { Pending::Nothing };
                }
            }
            Did::SourceEnded => self.ended = true,
            Did::Shut => self.shut = true,
            Did::SpliceRefused => {
                self.splice_refused = true;
                self.mode = Mode::Copy { big: 0 };
            }
            Did::NoPipe => self.mode = Mode::Copy { big: 0 },
        }
    }

    /// The source ended. Bytes may still be pending.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// The source ended, everything is delivered and the sink knows.
    pub(crate) fn finished(&self) -> bool {
        self.shut
    }

    /// Bytes that the sink's socket has taken.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Its last transfer was one of a stream's: others go before it.
    pub(crate) fn streaming(&self) -> bool {
        !matches!(self.mode, Mode::Copy { big: 0 })
    }

    /// A pipe that this flow may hold is empty.
    pub(crate) fn pipe_empty(&self) -> bool {
        !matches!(self.pending, Pending::Pipe(_))
    }

    fn deliver(&mut self, bytes: usize) {
        self.delivered += bytes as u64;
    }

    /// Chooses between copying and splicing after a transfer of `bytes`.
    fn judge(&mut self, bytes: usize) {
        self.mode = match self.mode {
            Mode::Copy { .. } if bytes < BIG => Mode::Copy { big: 0 },
            Mode::Copy { big } if big + 1 < BIG_IN_A_ROW => Mode::Copy { big: big + 1 },
            Mode::Copy { .. } if self.splice_refused => self.mode,
            Mode::Copy { .. } => Mode::Splice { small: 0 },
            Mode::Splice { .. } if bytes > SMALL => Mode::Splice { small: 0 },
            Mode::Splice { small } if small + 1 < SMALL_IN_A_ROW => {
                Mode::Splice { small: small + 1 }
            }
            Mode::Splice { .. } => Mode::Copy { big: 0 },
        };
    }
}

/// Bytes in one read that suggest a stream. A full-size TLS record; terminals and RPC rarely reach it.
const BIG: usize = 16 * 1024;
/// One large answer of an RPC does not make a stream; a quarter of a MiB without pause does.
const BIG_IN_A_ROW: u8 = 4;
/// Below about 4 KiB a pipe costs more than it saves (HAProxy draws the same line, `MIN_SPLICE_FORWARD`).
const SMALL: usize = 4 * 1024;
/// Twice the streak that leads into splicing, so that a flow near the border does not flap.
const SMALL_IN_A_ROW: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn copied(flow: &mut Flow, bytes: usize) {
        assert_eq!(flow.next(true, true), Step::Copy);
        flow.did(Did::Copied { received: bytes, sent: bytes });
    }

    fn streaming() -> Flow {
        let mut flow = Flow::new(0);
        (0..4).for_each(|_| copied(&mut flow, BIG));
        flow
    }

    #[test]
    fn four_big_reads_start_splicing() {
        let mut flow = Flow::new(0);
        (0..3).for_each(|_| copied(&mut flow, BIG));
        copied(&mut flow, BIG - 1);
        (0..4).for_each(|_| copied(&mut flow, BIG));
        assert_eq!(flow.next(true, true), Step::FillPipe);
    }

    #[test]
    fn eight_small_transfers_end_splicing() {
        let mut flow = streaming();
        for _ in 0..8 {
            assert_eq!(flow.next(true, true), Step::FillPipe);
            flow.did(Did::Filled(SMALL));
            assert_eq!(flow.next(true, true), Step::DrainPipe(SMALL));
            flow.did(Did::Drained(SMALL));
        }
        assert_eq!(flow.next(true, true), Step::Copy);
    }

    #[test]
    fn slow_sink_stops_the_source() {
        let mut flow = Flow::new(0);
        flow.did(Did::Copied { received: 100, sent: 40 });
        assert_eq!(flow.next(true, false), Step::Rest);
        assert_eq!(flow.next(true, true), Step::SendSpill);
        flow.did(Did::SpillSent(60));
        assert_eq!(flow.next(true, false), Step::Rest);
        assert_eq!(flow.delivered(), 100);
    }

    #[test]
    fn pending_bytes_go_out_before_the_end() {
        let mut flow = Flow::new(7);
        flow.did(Did::SourceEnded);
        assert_eq!(flow.next(true, false), Step::Rest);
        assert_eq!(flow.next(true, true), Step::SendSpill);
        flow.did(Did::SpillSent(7));
        assert_eq!(flow.next(false, false), Step::Shutdown);
        flow.did(Did::Shut);
        assert!(flow.finished());
        assert_eq!(flow.next(true, true), Step::Rest);
    }

    #[test]
    fn a_flow_streams_from_its_first_big_read_to_its_last_small_one_spliced_or_not() {
        let mut flow = Flow::new(0);
        copied(&mut flow, BIG - 1);
        assert!(!flow.streaming());
        copied(&mut flow, BIG);
        assert!(flow.streaming());
        copied(&mut flow, 64);
        assert!(!flow.streaming());
        assert!(streaming().streaming(), "spliced");
        let mut refused = streaming();
        refused.did(Did::SpliceRefused);
        (0..9).for_each(|_| copied(&mut refused, BIG));
        assert!(refused.streaming(), "copied for ever");
    }

    #[test]
    fn refused_splice_is_remembered() {
        let mut flow = streaming();
        flow.did(Did::SpliceRefused);
        (0..20).for_each(|_| copied(&mut flow, BIG));
        assert_eq!(flow.next(true, true), Step::Copy);
    }

    #[test]
    fn missing_pipe_is_tried_again_later() {
        let mut flow = streaming();
        flow.did(Did::NoPipe);
        (0..4).for_each(|_| copied(&mut flow, BIG));
        assert_eq!(flow.next(true, true), Step::FillPipe);
    }

    /// A source of `total` bytes and a sink that takes what the dice say, driven as a worker would.
    fn drive(total: usize, dice: &[(usize, usize, bool, bool)]) -> Flow {
        let mut flow = Flow::new(0);
        let (mut left, mut pipe, mut spill) = (total, 0usize, 0usize);
        for &(read, send, readable, writable) in dice.iter().cycle().take(100_000) {
            match flow.next(readable, writable) {
                Step::Copy | Step::FillPipe if left == 0 => flow.did(Did::SourceEnded),
                Step::Copy => {
                    assert_eq!((pipe, spill), (0, 0), "reads while bytes are pending");
                    let received = read.min(left);
                    let sent = send.min(received);
                    (left, spill) = (left - received, received - sent);
                    flow.did(Did::Copied { received, sent });
                }
                Step::FillPipe => {
                    assert_eq!((pipe, spill), (0, 0), "fills while bytes are pending");
                    pipe = read.min(left);
                    left -= pipe;
                    flow.did(Did::Filled(pipe));
                }
                Step::DrainPipe(bytes) => {
                    assert_eq!(bytes, pipe);
                    let sent = send.min(pipe);
                    pipe -= sent;
                    flow.did(Did::Drained(sent));
                }
                Step::SendSpill => {
                    let sent = send.min(spill);
                    spill -= sent;
                    flow.did(Did::SpillSent(sent));
                }
                Step::Shutdown => {
                    assert_eq!((left, pipe, spill), (0, 0, 0), "shut before the tail was out");
                    flow.did(Did::Shut);
                    break;
                }
                Step::Rest => {}
            }
        }
        flow
    }

    proptest! {
        #[test]
        fn everything_is_delivered_exactly_once(
            total in 0usize..2_000_000,
            dice in proptest::collection::vec((1usize..70_000, 1usize..70_000, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut dice = dice;
            dice.push((64 * 1024, 64 * 1024, true, true));
            let flow = drive(total, &dice);
            prop_assert!(flow.finished());
            prop_assert_eq!(flow.delivered(), total as u64);
        }
    }
}
