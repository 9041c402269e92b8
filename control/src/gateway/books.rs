//! What a gateway knows of its pairs, so that a broker that was started anew hears of them, and what happened that the broker
//! is yet to be told. Pure but for the meters, which the engine writes.
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchback_engine::{GatewayEvent, PairId, PairMeter};

use crate::broker::{clock, pair_view};
use crate::wire::{GATEWAY_EVENTS_MAX, HeldPair, LegEvent, PairFigures, PairName, SessionId};

/// Events that wait for the link, about 100 bytes each: what a second of the busiest gateway brings. With more the link is
/// made anew, and what is held is told in place of what happened.
const EVENTS_MAX: usize = 65_536;
/// Sessions of pairs that have not come, remembered as long as their tickets may still bring legs.
const EXPECTED_FOR: Duration = Duration::from_secs(80);
/// So many of them, about 150 bytes each.
const EXPECTED_MAX: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Books {
    held: HashMap<PairId, Held>,
    expected: HashMap<PairId, SessionId>,
    expected_order: VecDeque<(Instant, PairId)>,
    /// `None` while there is no broker to tell.
    events: Option<VecDeque<LegEvent>>,
    overrun: bool,
}

/// A pair, or one of which a leg waits.
#[derive(Debug, Default)]
struct Held {
    session: Option<SessionId>,
    /// Since its legs have met.
    meter: Option<Arc<PairMeter>>,
    /// Bytes when its figures were told last.
    told: u64,
}

impl Books {
    /// The broker says whose pair will come.
    pub(super) fn expect(&mut self, now: Instant, pair: PairId, session: SessionId) {
        if let Some(held) = self.held.get_mut(&pair) {
            // A leg that waited, warm.
            held.session = Some(session);
            return;
        }
        let old = |at: &Instant| now.saturating_duration_since(*at) >= EXPECTED_FOR;
        while self.expected_order.front().is_some_and(|(at, _)| old(at))
            || self.expected_order.len() >= EXPECTED_MAX
        {
            if let Some((_, pair)) = self.expected_order.pop_front() {
                self.expected.remove(&pair);
            }
        }
        self.expected.insert(pair, session);
        self.expected_order.push_back((now, pair));
    }

    /// Takes in what happened.
    pub(super) fn note(&mut self, event: GatewayEvent) {
        let event = match event {
            GatewayEvent::LegWaiting { pair, side } => {
                self.hold(pair);
                LegEvent::Waiting { pair: PairName(pair), side: side.into() }
            }
            GatewayEvent::LegGone { pair, side, refusal } => {
                self.held.remove(&pair);
                let refusal = refusal.map(|refusal| refusal.as_str().to_owned());
                LegEvent::Gone { pair: PairName(pair), side: side.into(), refusal }
            }
            GatewayEvent::PairStarted { pair, client, agent, meter } => {
                self.hold(pair).meter = Some(meter);
                LegEvent::Started { pair: PairName(pair), client, agent }
            }
            GatewayEvent::PairEnded { pair, outcome } => {
                self.held.remove(&pair);
                LegEvent::Ended {
                    pair: PairName(pair),
                    cause: outcome.cause.as_str().to_owned(),
                    phase: outcome.phase.as_str().to_owned(),
                    client_to_agent: outcome.client_to_agent,
                    agent_to_client: outcome.agent_to_client,
                    duration_ms: clock::millis(outcome.duration),
                }
            }
            _ => return,
        };
        let Some(events) = &mut self.events else { return };
        if events.len() >= EVENTS_MAX {
            self.events = None;
            self.overrun = true;
        } else {
            events.push_back(event);
        }
    }

    fn hold(&mut self, pair: PairId) -> &mut Held {
        let session = self.expected.remove(&pair);
        let held = self.held.entry(pair).or_default();
        held.session = session.or_else(|| held.session.take());
        held
    }

    /// A broker listens from now on: what is held, and what happens after.
    pub(super) fn tell_all(&mut self) -> Vec<HeldPair> {
        self.events = Some(VecDeque::new());
        self.overrun = false;
        let held = self.held.iter().map(|(pair, held)| HeldPair {
            pair: PairName(*pair),
            session: held.session.clone(),
            met: held.meter.is_some(),
        });
        held.collect()
    }

    /// Nobody listens any more.
    pub(super) fn mute(&mut self) {
        self.events = None;
        self.held.values_mut().for_each(|held| held.told = 0);
    }

    /// More happened than could be kept: the broker must hear everything anew.
    pub(super) const fn is_overrun(&self) -> bool {
        self.overrun
    }

    pub(super) fn has_events(&self) -> bool {
        self.events.as_ref().is_some_and(|events| !events.is_empty())
    }

    /// As many events as go into one message.
    pub(super) fn some_events(&mut self) -> Option<Vec<LegEvent>> {
        let events = self.events.as_mut()?;
        let count = events.len().min(GATEWAY_EVENTS_MAX);
        (count > 0).then(|| events.drain(..count).collect())
    }

    /// Figures of pairs that moved bytes since they were told, so many at most: those that waited longest come first only by
    /// chance, but whoever moves is told of sooner or later.
    pub(super) fn moved(&mut self, max: usize) -> Vec<PairFigures> {
        let mut moved = Vec::new();
        for (pair, held) in &mut self.held {
            let Some(meter) = &held.meter else { continue };
            let figures = meter.figures();
            let bytes = figures.client_to_agent.saturating_add(figures.agent_to_client);
            if bytes == held.told {
                continue;
            }
            held.told = bytes;
            moved.push(PairFigures { pair: PairName(*pair), view: pair_view(&figures) });
            if moved.len() >= max {
                break;
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use switchback_engine::LegSide;

    use super::*;

    fn started(pair: PairId) -> GatewayEvent {
        let [client, agent] = ["192.0.2.1:1", "192.0.2.2:2"].map(|it| it.parse().unwrap());
        GatewayEvent::PairStarted { pair, client, agent, meter: Arc::default() }
    }

    fn session() -> SessionId {
        SessionId("k3m9x2q7w4ht".into())
    }

    #[test]
    fn a_broker_that_was_started_anew_hears_whose_pairs_live() {
        let (mut books, pair, now) = (Books::default(), PairId([1; 16]), Instant::now());
        books.expect(now, pair, session());
        books.note(started(pair));
        assert!(!books.has_events(), "nobody listens");
        let expected = HeldPair { pair: PairName(pair), session: Some(session()), met: true };
        assert_eq!(books.tell_all(), std::slice::from_ref(&expected));
        books.mute();
        assert_eq!(books.tell_all(), [expected]);
    }

    #[test]
    fn a_warm_leg_is_its_sessions_once_it_is_taken() {
        let (mut books, pair, now) = (Books::default(), PairId([1; 16]), Instant::now());
        books.note(GatewayEvent::LegWaiting { pair, side: LegSide::Agent });
        assert_eq!(
            books.tell_all(),
            [HeldPair { pair: PairName(pair), session: None, met: false }]
        );
        books.expect(now, pair, session());
        books.note(started(pair));
        assert_eq!(books.some_events().map(|events| events.len()), Some(1));
        assert_eq!(books.tell_all()[0].session, Some(session()));
    }

    #[test]
    fn what_is_expected_and_never_comes_is_forgotten() {
        let (mut books, now) = (Books::default(), Instant::now());
        books.expect(now, PairId([1; 16]), session());
        books.expect(now + EXPECTED_FOR, PairId([2; 16]), session());
        assert_eq!(books.expected.len(), 1);
    }

    #[test]
    fn a_broker_that_does_not_keep_up_hears_everything_anew() {
        let mut books = Books::default();
        books.tell_all();
        for number in 0..=EVENTS_MAX {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&number.to_be_bytes());
            books.note(GatewayEvent::LegGone {
                pair: PairId(id),
                side: LegSide::Agent,
                refusal: None,
            });
        }
        assert!(books.is_overrun() && !books.has_events());
        books.tell_all();
        assert!(!books.is_overrun());
    }
}
