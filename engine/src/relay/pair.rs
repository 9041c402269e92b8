//! Two flows and how they end together.
//!
//! Pure. The worker reports readiness, steps done and failures; [`Pair::ending`] says when the pair is over and how its
//! sockets are to be closed. FIN is only ever sent for a FIN received, so a peer can take it as the other end's word;
//! every other end is a RST.
//!
//! | what happens | we send | we go on with | outcome: cause, phase |
//! |---|---|---|---|
//! | client FIN | to the agent: what is pending, then FIN | agent to client | none yet |
//! | agent FIN | to the client: what is pending, then FIN | client to agent | none yet |
//! | client FIN, later agent FIN | the second FIN after its pending bytes | nothing | `ClientFinished`, `Finished` |
//! | agent FIN, later client FIN | the second FIN after its pending bytes | nothing | `AgentFinished`, `Finished` |
//! | client RST, no byte had crossed | RST to the agent | nothing | `ClientReset`, `Joined` |
//! | client RST, both directions open | RST to the agent | nothing, pending bytes are dropped | `ClientReset`, `Relaying` |
//! | client RST after a FIN of either side | RST to the agent | nothing, pending bytes are dropped | `ClientReset`, `HalfClosed` |
//! | agent RST, no byte had crossed | RST to the client | nothing | `AgentReset`, `Joined` |
//! | agent RST, both directions open | RST to the client | nothing, pending bytes are dropped | `AgentReset`, `Relaying` |
//! | agent RST after a FIN of either side | RST to the client | nothing, pending bytes are dropped | `AgentReset`, `HalfClosed` |
//! | client silent (`ETIMEDOUT`, unreachable) | RST to the agent | nothing | `ClientTimeout`, as above |
//! | agent silent (`ETIMEDOUT`, unreachable) | RST to the client | nothing | `AgentTimeout`, as above |
//! | a leg takes nothing (slow peer) | nothing | the other direction; the source is not read | none; a window kept shut for `user-timeout` (30 s unless tuned) ends the leg: `ClientTimeout` or `AgentTimeout` |
//! | killed, shutdown, our own failure | RST to both | nothing | `Killed`, `Shutdown`, `Internal`, as above |
use super::{Did, Flow, Step};
use crate::{Cause, LegSide, Phase};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ClientToAgent,
    AgentToClient,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::ClientToAgent, Self::AgentToClient];

    pub(crate) const fn source(self) -> LegSide {
        match self {
            Self::ClientToAgent => LegSide::Client,
            Self::AgentToClient => LegSide::Agent,
        }
    }

    pub(crate) const fn sink(self) -> LegSide {
        self.source().mate()
    }
}

/// What a leg can do, as far as we know: set by events, cleared by `EAGAIN`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer's end has been announced: a short read no longer proves that nothing is left to read.
    pub(crate) hangup: bool,
}

impl Readiness {
    /// Adds what an event says.
    pub(crate) fn add(&mut self, more: Self) {
        self.readable |= more.readable;
        self.writable |= more.writable;
        self.hangup |= more.hangup;
    }
}

/// The end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) cause: Cause,
    pub(crate) phase: Phase,
    /// Close with RST instead of FIN.
    pub(crate) abrupt: bool,
}

/// Two joined legs.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    flows: [Flow; 2],
    legs: [Readiness; 2],
    /// The direction whose source ended first.
    first_end: Option<Direction>,
    broken: Option<Cause>,
}

impl Pair {
    /// A pair whose legs have said this many bytes already, which are pending for their mates.
    pub(crate) fn new(client_said: usize, agent_said: usize) -> Self {
        Self {
            flows: [Flow::new(client_said), Flow::new(agent_said)],
            legs: [Readiness::default(); 2],
            first_end: None,
            broken: None,
        }
    }

    /// The leg of `side` became ready for something.
    pub(crate) fn signal(&mut self, side: LegSide, readiness: Readiness) {
        self.legs[side as usize].add(readiness);
    }

    /// The next step of `direction`.
    pub(crate) fn next(&self, direction: Direction) -> Step {
        if self.broken.is_some() {
            return Step::Rest;
        }
        let (source, sink) = (self.leg(direction.source()), self.leg(direction.sink()));
        self.flows[direction as usize].next(source.readable, sink.writable)
    }

    /// Records what came of a step.
    pub(crate) fn did(&mut self, direction: Direction, did: Did) {
        self.flows[direction as usize].did(did);
        if did == Did::SourceEnded {
            self.first_end.get_or_insert(direction);
        }
    }

    /// A read of the source found nothing (`EAGAIN`).
    pub(crate) fn source_empty(&mut self, direction: Direction) {
        self.legs[direction.source() as usize].readable = false;
    }

    /// A read got less than it asked for: nothing is left, unless the peer's end is behind it.
    pub(crate) fn source_short(&mut self, direction: Direction) {
        let leg = &mut self.legs[direction.source() as usize];
        leg.readable &= leg.hangup;
    }

    /// The sink took less than it was given.
    pub(crate) fn sink_full(&mut self, direction: Direction) {
        self.legs[direction.sink() as usize].writable = false;
    }

    /// The pair is to end before both directions have; the first cause counts.
    pub(crate) fn break_off(&mut self, cause: Cause) {
        self.broken.get_or_insert(cause);
    }

    /// The end, once it has come.
    pub(crate) fn ending(&self) -> Option<Ending> {
        if let Some(cause) = self.broken {
            return Some(Ending { cause, phase: self.phase(), abrupt: true });
        }
        let finished = self.flows.iter().all(Flow::finished);
        let cause = match self.first_end? {
            Direction::ClientToAgent => Cause::ClientFinished,
            Direction::AgentToClient => Cause::AgentFinished,
        };
        finished.then_some(Ending { cause, phase: Phase::Finished, abrupt: false })
    }

    /// Bytes delivered in `direction`.
    pub(crate) fn delivered(&self, direction: Direction) -> u64 {
        self.flows[direction as usize].delivered()
    }

    /// `direction` is a stream: others go before it.
    pub(crate) fn streaming(&self, direction: Direction) -> bool {
        self.flows[direction as usize].streaming()
    }

    /// The pipe that `direction` may hold is empty.
    pub(crate) fn pipe_empty(&self, direction: Direction) -> bool {
        self.flows[direction as usize].pipe_empty()
    }

    fn leg(&self, side: LegSide) -> Readiness {
        self.legs[side as usize]
    }

    fn phase(&self) -> Phase {
        if self.flows.iter().all(Flow::finished) {
            Phase::Finished
        } else if self.flows.iter().any(Flow::ended) {
            Phase::HalfClosed
        } else if self.flows.iter().any(|flow| flow.delivered() > 0) {
            Phase::Relaying
        } else {
            Phase::Joined
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Direction::{AgentToClient, ClientToAgent};

    const READY: Readiness = Readiness { readable: true, writable: true, hangup: false };

    fn pair() -> Pair {
        let mut pair = Pair::new(0, 0);
        pair.signal(LegSide::Client, READY);
        pair.signal(LegSide::Agent, READY);
        pair
    }

    fn cross(pair: &mut Pair, direction: Direction) {
        pair.did(direction, Did::Copied { received: 1, sent: 1 });
    }

    /// The source of `direction` ends and its sink is told.
    fn end(pair: &mut Pair, direction: Direction) {
        pair.did(direction, Did::SourceEnded);
        assert_eq!(pair.next(direction), Step::Shutdown);
        pair.did(direction, Did::Shut);
    }

    #[test]
    fn both_fins_finish_and_the_first_one_names_the_cause() {
        for (first, second, cause) in [
            (ClientToAgent, AgentToClient, Cause::ClientFinished),
            (AgentToClient, ClientToAgent, Cause::AgentFinished),
        ] {
            let mut pair = pair();
            end(&mut pair, first);
            assert_eq!(pair.ending(), None);
            assert_eq!(pair.next(second), Step::Copy, "the other direction goes on");
            end(&mut pair, second);
            assert_eq!(
                pair.ending(),
                Some(Ending { cause, phase: Phase::Finished, abrupt: false })
            );
        }
    }

    #[test]
    fn every_break_is_abrupt_and_its_phase_is_how_far_the_pair_had_come() {
        let causes = [
            Cause::ClientReset,
            Cause::AgentReset,
            Cause::ClientTimeout,
            Cause::AgentTimeout,
            Cause::Killed,
            Cause::Shutdown,
            Cause::Internal,
        ];
        for cause in causes {
            for (phase, before) in [
                (Phase::Joined, 0),
                (Phase::Relaying, 1),
                (Phase::HalfClosed, 2),
                (Phase::HalfClosed, 3),
            ] {
                let mut pair = pair();
                if before > 0 {
                    cross(&mut pair, ClientToAgent);
                }
                match before {
                    2 => end(&mut pair, ClientToAgent),
                    3 => end(&mut pair, AgentToClient),
                    _ => {}
                }
                pair.break_off(cause);
                assert_eq!(pair.ending(), Some(Ending { cause, phase, abrupt: true }));
                assert_eq!(pair.next(ClientToAgent), Step::Rest);
            }
        }
    }

    #[test]
    fn first_break_counts() {
        let mut pair = pair();
        pair.break_off(Cause::AgentReset);
        pair.break_off(Cause::Killed);
        assert_eq!(pair.ending().map(|ending| ending.cause), Some(Cause::AgentReset));
    }

    #[test]
    fn slow_sink_rests_only_its_own_direction() {
        let mut pair = pair();
        pair.did(ClientToAgent, Did::Copied { received: 10, sent: 3 });
        pair.sink_full(ClientToAgent);
        assert_eq!(pair.next(ClientToAgent), Step::Rest);
        assert_eq!(pair.next(AgentToClient), Step::Copy);
        pair.signal(LegSide::Agent, Readiness { writable: true, ..Readiness::default() });
        assert_eq!(pair.next(ClientToAgent), Step::SendSpill);
    }

    #[test]
    fn short_read_proves_emptiness_only_before_a_hangup() {
        let mut pair = pair();
        pair.source_short(ClientToAgent);
        assert_eq!(pair.next(ClientToAgent), Step::Rest);
        pair.signal(LegSide::Client, Readiness { readable: true, hangup: true, writable: false });
        pair.source_short(ClientToAgent);
        assert_eq!(pair.next(ClientToAgent), Step::Copy);
    }

    #[test]
    fn what_the_client_said_before_goes_to_the_agent_first() {
        let mut pair = Pair::new(250, 0);
        pair.signal(LegSide::Client, READY);
        pair.signal(LegSide::Agent, READY);
        assert_eq!(pair.next(ClientToAgent), Step::SendSpill);
        assert_eq!(pair.next(AgentToClient), Step::Copy);
    }
}
