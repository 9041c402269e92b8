//! Keeps one session carried: makes its legs, follows its events, and ends it once.
mod second;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use switchback_shortpath::{LegId, LegKind, MoveCause, SessionEvent, SessionHandle, Wide};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::DropGuard;

use crate::client::desk::{Desk, Ending};
use crate::client::legs::{Action, LegPlan};
use crate::client::second::Second;
use crate::code::{Code, Fault};
use crate::dial::leg::{self, Ahead};
use crate::reason;
use crate::udp::session::{SessionUdp, Wanted};
use crate::wire::{
    FromClient, LegTicket, LegWish, SealedGrant, SessionId, Standby, ToClient, UdpAccess,
};

/// From our close to the session layer's last word: it gives its own CLOSE 2 s.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A leg whose place is taken is let go after so long, once nothing is on its way: by then the other end has left it too.
const LEAVE_AFTER: Duration = Duration::from_secs(2);

/// A session without standby lets its TCP legs go after so long on UDP: what fails at once does so before.
const COLD_AFTER: Duration = Duration::from_secs(5);

/// How far a session is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Its first leg is being made.
    Starting,
    /// It was carried, and may be again.
    Up,
    /// It is over.
    Over(Fault),
}

pub(super) struct Keeper {
    pub(super) desk: Arc<Desk>,
    /// The desk stays open until the broker was told of the end.
    pub(super) guard: Arc<DropGuard>,
    pub(super) id: SessionId,
    pub(super) grant: SealedGrant,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) handle: SessionHandle,
    pub(super) phase: watch::Sender<Phase>,
    /// Legs attached and not lost; the last is the newest.
    pub(super) legs: BTreeSet<LegId>,
    pub(super) udp: Arc<SessionUdp>,
    /// To look for the agent by UDP again.
    pub(super) wanted: Wanted,
    /// When legs that are not needed are let go, in a session without standby.
    pub(super) cold_at: Option<Instant>,
    /// The broker wants it to leave its gateway.
    pub(super) relocate: Arc<Notify>,
    pub(super) moving: Moving,
    /// A leg through another gateway, where the resource wants one.
    pub(super) second: Second<LegId>,
}

/// From which gateway to which.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// The gateway of the newest leg, as its ticket had it, or of an attempt that failed since.
    via: String,
    /// The gateway of the attempt that runs, once there is a ticket.
    tried: Arc<Mutex<Option<String>>>,
    /// It failed: the next leg shall go another way.
    failed: bool,
    /// The next leg takes the place of those that work.
    instead: bool,
    /// Legs whose place is taken, and when to let go of them.
    left: BTreeSet<LegId>,
    leave_at: Option<Instant>,
}

impl Moving {
    /// What to ask for.
    fn wish(&self) -> LegWish {
        let not_via = self.failed.then(|| self.via.clone());
        LegWish { not_via, instead: self.instead, second: false }
    }

    /// An attempt failed: if it had come as far as to a gateway, that is the one to avoid.
    fn attempt_failed(&mut self) {
        if let Some(tried) = self.tried.lock().unwrap_or_else(PoisonError::into_inner).take() {
            (self.via, self.failed) = (tried, true);
        }
    }
}

/// A leg, and the gateway it leads through.
struct Made {
    stream: TlsStream<Wide<TcpStream>>,
    via: String,
    instead: bool,
}

type Attempt = Pin<Box<dyn Future<Output = Result<Made, Fault>> + Send>>;

/// What ended the loop, and whom to tell.
struct End {
    fault: Fault,
    tell_broker: bool,
    close: bool,
}

impl Keeper {
    /// Keeps the session until it is over. `first` is the admission of its first leg, which must be up at `start_by`, and a
    /// connection for it.
    pub(super) async fn run(
        mut self,
        first: (LegTicket, Ahead),
        start_by: Instant,
        mut events: mpsc::Receiver<SessionEvent>,
        mut orders: mpsc::Receiver<Ending>,
    ) {
        let mut plan = LegPlan::new(Instant::now(), start_by);
        let mut first = Some(first);
        let (mut attempt, mut second): (Option<Attempt>, Option<Attempt>) = (None, None);
        let mut relayed = self.udp.relayed();
        let end = loop {
            let wake = match plan.poll(Instant::now()) {
                Action::GiveUp(fault) => break End { fault, tell_broker: true, close: true },
                Action::Wait(until) => until,
                Action::Dial => {
                    attempt = Some(self.attempt(first.take()));
                    continue;
                }
            };
            tokio::select! {
                event = events.recv() => {
                    if let Some(fault) = self.follow(event, &mut plan) {
                        break End { fault, tell_broker: true, close: false };
                    }
                }
                made = next(&mut attempt) => {
                    attempt = None;
                    self.settle(made, &mut plan);
                }
                order = orders.recv() => break match order {
                    Some(Ending::ByBroker(code)) => {
                        End { fault: code.into(), tell_broker: false, close: true }
                    }
                    Some(Ending::ByUs) | None => {
                        End { fault: Code::SessionClosed.into(), tell_broker: true, close: true }
                    }
                },
                Ok(()) = relayed.changed() => {
                    let relayed = *relayed.borrow_and_update();
                    self.desk.tell_relayed(&self.id, relayed);
                }
                made = next(&mut second) => {
                    second = None;
                    self.settle_second(made);
                }
                () = at(self.second.due()) => {
                    let wanted = self.wants_second();
                    second = self.second.begin(Instant::now(), wanted).then(|| self.attempt_second());
                }
                () = at(wake) => {}
                () = at(self.cold_at) => self.let_go(),
                () = at(self.moving.leave_at) => self.leave(),
                () = self.relocate.notified() => {
                    tracing::info!(session = %self.id, "its gateway is about to go, asking for another leg");
                    self.moving.instead = plan.replace(Instant::now());
                }
            }
        };
        self.end(end, events).await;
    }

    /// Takes in an event; a fault if it was the session's last.
    fn follow(&mut self, event: Option<SessionEvent>, plan: &mut LegPlan) -> Option<Fault> {
        match event {
            Some(SessionEvent::InDoubt) => self.desk.doubt_link(),
            Some(SessionEvent::LegSuspect(leg)) if self.is_spare(leg) => {
                tracing::debug!(session = %self.id, %leg, "UDP leg suspect");
            }
            Some(SessionEvent::LegSuspect(leg)) => {
                tracing::debug!(session = %self.id, %leg, "leg suspect, dialling another");
                self.desk.doubt_link();
                plan.suspect(Instant::now(), rand::random());
            }
            Some(SessionEvent::LegLost { leg, error }) => {
                tracing::info!(session = %self.id, %leg, error, "leg lost");
                self.lost(leg, plan);
            }
            Some(SessionEvent::Down) => {
                tracing::info!(session = %self.id, "session paused");
                self.udp.pause();
                if self.legs.is_empty() {
                    plan.down(Instant::now(), rand::random());
                }
            }
            Some(SessionEvent::Resumed) => {
                tracing::info!(session = %self.id, "session carried");
                self.udp.resume(&self.handle);
            }
            Some(SessionEvent::Incoming(mut channel)) => {
                // Agents open no channels; one that does is refused, not obeyed.
                channel.reset(reason::to_wire(Code::ChannelLimit));
            }
            Some(SessionEvent::IncomingDatagrams(flow)) => {
                flow.reset(reason::to_wire(Code::ChannelLimit));
            }
            Some(SessionEvent::Moved { from, to, cause, stall }) => {
                let moved = self.udp.moved((from, to), cause, stall, &self.handle);
                if cause == MoveCause::Recovered {
                    tracing::debug!(session = %self.id, on = moved.to, stall_us = moved.stall_us, "session stalled");
                } else {
                    tracing::info!(
                        session = %self.id, to = moved.to, cause = moved.cause, stall_us = moved.stall_us, "session moved"
                    );
                    self.cool(to);
                }
                self.desk.moved(self.id.clone(), moved);
            }
            Some(SessionEvent::Closed(why)) => return Some(reason::of_session(&why)),
            None => return Some(Code::SessionClosed.into()),
        }
        None
    }

    /// Not one of those that are dialled here, while there are such: the search for UDP makes its legs anew itself.
    fn is_spare(&self, leg: LegId) -> bool {
        !self.legs.is_empty() && !self.legs.contains(&leg)
    }

    /// A session may lose a leg before it ever carried anything, or have another under way already.
    fn lost(&mut self, leg: LegId, plan: &mut LegPlan) {
        self.moving.left.remove(&leg);
        self.second.lost(Instant::now(), leg);
        if self.is_spare(leg) || (!self.legs.contains(&leg) && self.handle.stats().leg.is_some()) {
            return;
        }
        let newest = self.legs.last() == Some(&leg);
        self.legs.remove(&leg);
        // What broke was as a rule the gateway.
        self.moving.failed |= newest;
        if self.legs.is_empty()
            && let Some((second, via)) = self.second.take(Instant::now())
        {
            tracing::info!(session = %self.id, leg = %second, "on through its second gateway");
            (self.moving.via, self.moving.failed) = (via, false);
            self.legs.insert(second);
            return;
        }
        if self.legs.is_empty() && self.handle.stats().leg.is_none() {
            plan.down(Instant::now(), rand::random());
        } else if newest {
            // UDP carries the session, or those that are left were suspect when it was dialled.
            plan.suspect(Instant::now(), rand::random());
        }
    }

    /// Gives a new leg to the session, or notes why there is none.
    fn settle(&mut self, made: Result<Made, Fault>, plan: &mut LegPlan) {
        match made {
            Ok(Made { stream, via, instead }) => {
                let now = Instant::now();
                let leg = if instead {
                    self.moving.left.append(&mut self.legs);
                    self.moving.left.extend(self.second.take(now).map(|(leg, _)| leg));
                    self.moving.leave_at = Some(now + LEAVE_AFTER);
                    self.handle.attach_instead(stream, LegKind::TcpReverse)
                } else {
                    self.handle.attach(stream, LegKind::TcpReverse)
                };
                if let Some(leg) = self.second.take_via(now, &via) {
                    self.moving.left.insert(leg);
                    self.moving.leave_at = Some(now + LEAVE_AFTER);
                }
                (self.moving.via, self.moving.failed, self.moving.instead) = (via, false, false);
                tracing::debug!(session = %self.id, %leg, "leg attached");
                self.legs.insert(leg);
                if let Some(carrier) = self.handle.stats().leg {
                    self.cool(carrier);
                }
                plan.attached(now);
                self.phase.send_replace(Phase::Up);
            }
            Err(fault) => {
                tracing::debug!(session = %self.id, code = %fault.code, detail = fault.detail, "no leg");
                self.moving.attempt_failed();
                plan.failed(Instant::now(), rand::random(), fault);
            }
        }
    }

    /// Without standby, the legs that are dialled here are for sessions that UDP does not carry.
    fn cool(&mut self, carrier: LegKind) {
        let cold = self.udp.transport().standby == Standby::Cold && carrier.is_udp();
        self.cold_at = cold.then(|| Instant::now() + COLD_AFTER);
    }

    fn let_go(&mut self) {
        let handle = &self.handle;
        self.legs.retain(|leg| !handle.let_go(*leg));
        // Those that still have something on their way are looked at again.
        self.cold_at = (!self.legs.is_empty()).then(|| Instant::now() + COLD_AFTER);
    }

    /// Lets go of legs whose place is taken; those that still have something on their way are looked at again.
    fn leave(&mut self) {
        let handle = &self.handle;
        self.moving.left.retain(|leg| !handle.let_go(*leg));
        self.moving.leave_at = (!self.moving.left.is_empty()).then(|| Instant::now() + LEAVE_AFTER);
    }

    fn attempt(&self, first: Option<(LegTicket, Ahead)>) -> Attempt {
        let (desk, grant, tls) = (self.desk.clone(), self.grant.clone(), self.tls.clone());
        let (udp, wanted, session) = (self.udp.clone(), self.wanted.clone(), self.handle.clone());
        let carried = matches!(*self.phase.borrow(), Phase::Up);
        let wish = self.moving.wish();
        let (instead, tried) = (wish.instead, self.moving.tried.clone());
        Box::pin(async move {
            let (ticket, ahead) = match first {
                Some(first) => first,
                None => {
                    let ahead = desk.dial_ahead();
                    let (ticket, access) = ask_ticket(&desk, grant, udp.clone(), wish).await?;
                    desk.note_gateway(ticket.gateway.as_deref());
                    if let Some(access) = access {
                        udp.begin(wanted, *access, &session);
                    }
                    (ticket, ahead)
                }
            };
            let via = ticket.gateway.clone().unwrap_or_default();
            *tried.lock().unwrap_or_else(PoisonError::into_inner) = Some(via.clone());
            let connecting = async {
                let stream = leg::connect(&ticket, desk.home(), tls, Some(ahead)).await?;
                Ok(Made { stream, via, instead })
            };
            if !carried {
                return connecting.await;
            }
            timeout(leg::RESUME_LEG_TIMEOUT, connecting).await.unwrap_or_else(|_| {
                desk.doubt_link();
                Err(Code::LegFailed.because("the leg was not up in time"))
            })
        })
    }

    async fn end(self, end: End, mut events: mpsc::Receiver<SessionEvent>) {
        let code = end.fault.code;
        tracing::debug!(session = %self.id, %code, "session over");
        if end.close {
            self.handle.close(reason::to_wire(code));
            let last_word = async { while events.recv().await.is_some() {} };
            // Later, the peer learns it from its broker or its resume window.
            let _ = timeout(CLOSE_TIMEOUT, last_word).await;
        }
        // After the last word, which may have a UDP leg only to leave on.
        self.udp.end();
        self.desk.dismiss(&self.id, end.tell_broker.then_some(code));
        self.phase.send_replace(Phase::Over(end.fault));
        drop(self.guard);
    }
}

/// What the broker answers to `leg`.
type Answer = (LegTicket, Option<Box<UdpAccess>>);

async fn ask_ticket(
    desk: &Desk,
    grant: SealedGrant,
    udp: Arc<SessionUdp>,
    wish: LegWish,
) -> Result<Answer, Fault> {
    let leg = move |request| {
        // Of UDP both ends were told with the first leg.
        let candidates = (!wish.second).then(|| udp.candidates()).flatten();
        let (grant, udp, wish) = (grant.clone(), candidates, wish.clone());
        FromClient::Leg { request, grant, udp, wish }
    };
    match desk.ask(leg).await? {
        ToClient::Leg { ticket, udp, .. } => Ok((ticket, udp)),
        _ => Err(Code::MessageMalformed.because("the broker answered another question")),
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn next(attempt: &mut Option<Attempt>) -> Result<Made, Fault> {
    match attempt {
        Some(attempt) => attempt.await,
        None => std::future::pending().await,
    }
}
