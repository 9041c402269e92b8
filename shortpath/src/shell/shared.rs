//! The core behind its mutex, and the two tasks that serve it: time and events.
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::channel::Channel;
use super::datagrams::DatagramFlow;
use super::handle::SessionEvent;
use crate::session::{ChannelError, ChannelId, Event, LegId, LegKind, MoveCause, Session};
use crate::time::now;

/// Wake-ups of one channel. Each side has one task at most, so one stored permit suffices.
#[derive(Debug, Default)]
pub(super) struct Signals {
    pub(super) readable: Notify,
    pub(super) writable: Notify,
    pub(super) failed: watch::Sender<Option<Failure>>,
}

/// That a channel can no longer be written, told to tasks that wait for something else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) error: ChannelError,
    /// Nothing is left to read.
    pub(super) cut: bool,
}

/// What the shell holds of a leg: its writer's wake-up and both tasks' end.
#[derive(Clone, Debug, Default)]
pub(super) struct Port {
    pub(super) wake: Arc<Notify>,
    pub(super) gone: CancellationToken,
    /// The writer has all of bulk it can send for now, and is woken for what goes before it only.
    pub(super) blocked: Arc<AtomicBool>,
}

pub(super) struct State {
    pub(super) session: Session,
    pub(super) ports: HashMap<LegId, Port>,
    signals: HashMap<ChannelId, Arc<Signals>>,
    events: VecDeque<SessionEvent>,
    /// Called when a leg owes word.
    pub(super) in_doubt: Option<Box<dyn Fn() + Send>>,
    /// What the timekeeper sleeps until.
    alarm: Option<Instant>,
}

impl State {
    pub(super) fn signals_of(&mut self, id: ChannelId) -> Arc<Signals> {
        Arc::clone(self.signals.entry(id).or_default())
    }

    /// Wakes a channel's holder, if there still is one.
    fn signal(&self, id: ChannelId, wake: impl FnOnce(&Signals)) {
        if let Some(signals) = self.signals.get(&id) {
            wake(signals);
        }
    }

    pub(super) fn forget_signals(&mut self, id: ChannelId) {
        self.signals.remove(&id);
    }
}

pub(super) struct Shared {
    state: Mutex<State>,
    alarm_earlier: Notify,
    events_ready: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

impl Shared {
    pub(super) fn new(session: Session) -> Arc<Self> {
        let state = State {
            session,
            ports: HashMap::new(),
            signals: HashMap::new(),
            events: VecDeque::new(),
            in_doubt: None,
            alarm: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            alarm_earlier: Notify::new(),
            events_ready: Notify::new(),
        })
    }

    /// Mutates, then drains: the only way to the core. `act` must not drop a channel, as that comes back here.
    pub(super) fn with<T>(self: &Arc<Self>, act: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut state, now());
        while let Some(event) = state.session.poll_event() {
            self.dispatch(&mut state, event);
        }
        for (leg, port) in &state.ports {
            let frames = if port.blocked.load(Ordering::Relaxed) {
                state.session.has_urgent(*leg)
            } else {
                state.session.has_transmit(*leg)
            };
            if frames || state.session.has_datagram(*leg) {
                port.wake.notify_one();
            }
        }
        let alarm = state.session.poll_timeout();
        if alarm.is_some_and(|at| state.alarm.is_none_or(|asleep_until| at < asleep_until)) {
            state.alarm = alarm;
            self.alarm_earlier.notify_one();
        }
        result
    }

    fn dispatch(self: &Arc<Self>, state: &mut State, event: Event) {
        let told = match event {
            Event::Readable(id) => {
                return state.signal(id, |signals| signals.readable.notify_one());
            }
            Event::Writable(id) => {
                return state.signal(id, |signals| signals.writable.notify_one());
            }
            Event::Failed { channel, error, cut } => {
                let failure = Some(Failure { error, cut });
                return state.signal(channel, |signals| {
                    signals.failed.send_replace(failure);
                });
            }
            Event::Incoming(id) => {
                SessionEvent::Incoming(Channel::new(Arc::clone(self), id, state.signals_of(id)))
            }
            Event::IncomingDatagrams(id) => {
                let signals = state.signals_of(id);
                SessionEvent::IncomingDatagrams(DatagramFlow::new(Arc::clone(self), id, signals))
            }
            Event::Moved { from, to, cause, stall } => {
                return self.moved(state, from, to, cause, stall);
            }
            Event::Doubt => {
                state.in_doubt.iter().for_each(|tell| tell());
                if matches!(state.events.back(), Some(SessionEvent::InDoubt)) {
                    return;
                }
                SessionEvent::InDoubt
            }
            Event::LegSuspect(leg) => {
                let same = |e: &SessionEvent| matches!(e, SessionEvent::LegSuspect(l) if *l == leg);
                if state.events.iter().any(same) {
                    return;
                }
                SessionEvent::LegSuspect(leg)
            }
            Event::LegLost { leg, error } => {
                if let Some(port) = state.ports.remove(&leg) {
                    port.gone.cancel();
                }
                SessionEvent::LegLost { leg, error }
            }
            Event::Down => SessionEvent::Down,
            Event::Resumed => SessionEvent::Resumed,
            Event::Closed(reason) => {
                state.ports.values().for_each(|port| port.wake.notify_one());
                self.alarm_earlier.notify_one();
                SessionEvent::Closed(reason)
            }
        };
        state.events.push_back(told);
        self.events_ready.notify_one();
    }

    /// Moves the owner has not heard of become one, so that a slow owner costs no memory.
    fn moved(
        self: &Arc<Self>,
        state: &mut State,
        from: Option<LegKind>,
        to: LegKind,
        cause: MoveCause,
        stall: Duration,
    ) {
        match state.events.back_mut() {
            Some(SessionEvent::Moved { to: last, cause: why, stall: sum, .. }) => {
                *last = to;
                if cause != MoveCause::Recovered {
                    *why = cause;
                }
                *sum += stall;
            }
            _ => {
                state.events.push_back(SessionEvent::Moved { from, to, cause, stall });
                self.events_ready.notify_one();
            }
        }
    }
}

/// How long legs may take to end once the session is over.
const GOODBYE: Duration = Duration::from_secs(2);

/// Wakes the core when its next deadline comes, until the session is over.
pub(super) async fn keep_time(shared: Arc<Shared>) {
    loop {
        let (alarm, closed) = shared.with(|state, _| {
            state.alarm = state.session.poll_timeout();
            (state.alarm, state.session.is_closed())
        });
        if closed {
            return say_goodbye(&shared).await;
        }
        let Some(at) = alarm else {
            shared.alarm_earlier.notified().await;
            continue;
        };
        tokio::select! {
            () = shared.alarm_earlier.notified() => {}
            () = tokio::time::sleep_until(at.into()) => {
                shared.with(|state, now| state.session.handle_timeout(now));
            }
        }
    }
}

/// Lets legs bring out their CLOSE, then ends those that have not ended by themselves.
async fn say_goodbye(shared: &Arc<Shared>) {
    if shared.with(|state, _| !state.ports.is_empty()) {
        tokio::time::sleep(GOODBYE).await;
        shared.with(|state, _| state.ports.drain().for_each(|(_, port)| port.gone.cancel()));
    }
}

/// Hands events to the owner, in order. An owner that dropped its receiver is told nothing: its channels are reset.
pub(super) async fn deliver_events(shared: Arc<Shared>, owner: mpsc::Sender<SessionEvent>) {
    loop {
        let Some(event) = shared.with(|state, _| state.events.pop_front()) else {
            shared.events_ready.notified().await;
            continue;
        };
        let last = matches!(event, SessionEvent::Closed(_));
        // An error gives the event back: a channel in it is dropped here, outside the lock.
        drop(owner.send(event).await);
        if last {
            return;
        }
    }
}
