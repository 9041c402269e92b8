//! A client's desk at the broker: one link, the requests in flight on it, and the sessions that live.
mod moves;
mod whereabouts;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use switchback_shortpath::SessionHandle;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::code::{Code, Fault};
use crate::dial::leg::Ahead;
use crate::invite::Invite;
use crate::link::report::{REPORT_INTERVAL, Reporter, figures};
use crate::link::{self, Doubt, FirstWord, LinkEvent, TELL_PAUSE};
use crate::survey::Survey;
use crate::udp;
use crate::udp::reach::Reach;
use crate::udp::session::SessionUdp;
use crate::wire::{
    AboutSession, CLIENT_LINK, Candidate, FromClient, GatewayRtt, SealedGrant, SessionId,
    SessionNotice, ToClient,
};

/// A broker answers in one round trip; a slow one is asked again.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests in flight: a thousand sessions that lost the same gateway ask at once.
const REQUESTS_MAX: usize = 4096;
/// Sessions whose candidates came before they were admitted: their grants are being unpacked.
const EARLY_MAX: usize = 64;
/// Notices that wait for a slow listener; the oldest go.
const NOTICES_MAX: usize = 64;
/// Events of the link that wait for the desk.
const EVENTS_MAX: usize = 64;

/// The link as others see it.
#[derive(Clone, Debug)]
pub(super) enum LinkState {
    /// It is being made; the last attempt failed with this.
    Down(Option<Fault>),
    /// It is up: send here.
    Up(mpsc::Sender<FromClient>),
    /// It will not come back.
    Over(Fault),
}

/// What the desk knows of a session.
pub(super) struct Live {
    /// For its figures.
    pub(super) handle: SessionHandle,
    /// To prove it to a broker that restarted.
    pub(super) grant: SealedGrant,
    /// Ends it.
    pub(super) end: mpsc::Sender<Ending>,
    /// Its UDP.
    pub(super) udp: Arc<SessionUdp>,
    /// Has it ask for a leg through another gateway.
    pub(super) relocate: Arc<Notify>,
    /// Nobody uses it yet, so there is nothing to report.
    pub(super) ready: bool,
}

/// An order to end a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By this end's user.
    ByUs,
    /// By the broker.
    ByBroker(Code),
}

pub(super) struct Desk {
    invite: Invite,
    home: String,
    link: watch::Sender<LinkState>,
    doubt: Doubt,
    /// A request that goes along with the one for the link.
    first: FirstWord<FromClient>,
    requests: Mutex<HashMap<u64, Waiting>>,
    next_request: AtomicU64,
    sessions: Mutex<HashMap<SessionId, Live>>,
    /// Candidates for sessions that are not admitted yet; the oldest go.
    early: Mutex<VecDeque<(SessionId, Vec<Candidate>)>>,
    /// Sessions whose agents are still to be told where this client is.
    untold: Mutex<BTreeSet<SessionId>>,
    moves: Mutex<moves::Moves>,
    /// Where the last ticket led, `HOST:PORT`.
    gateway: Mutex<String>,
    /// What users are to be told.
    notices: broadcast::Sender<SessionNotice>,
}

impl Desk {
    /// A desk that is not open yet; `home` is the broker's `HOST:PORT`.
    pub(super) fn new(invite: Invite, home: String) -> Arc<Self> {
        Arc::new(Self {
            invite,
            gateway: Mutex::new(home.clone()),
            home,
            link: watch::Sender::new(LinkState::Down(None)),
            doubt: Doubt::default(),
            first: FirstWord::default(),
            requests: Mutex::default(),
            // 0 is the broker's for "no request".
            next_request: AtomicU64::new(1),
            sessions: Mutex::default(),
            early: Mutex::default(),
            untold: Mutex::default(),
            moves: Mutex::default(),
            notices: broadcast::Sender::new(NOTICES_MAX),
        })
    }

    /// Where legs go whose ticket names no gateway.
    pub(super) fn home(&self) -> &str {
        &self.home
    }

    /// Begins to dial the gateway that the next ticket will most likely name: the one of the last.
    pub(super) fn dial_ahead(&self) -> Ahead {
        Ahead::to(lock(&self.gateway).clone())
    }

    /// A session's ticket came: `gateway` as it says.
    pub(super) fn note_gateway(&self, gateway: Option<&str>) {
        let gateway = gateway.unwrap_or(&self.home);
        let mut last = lock(&self.gateway);
        if *last != gateway {
            gateway.clone_into(&mut last);
        }
    }

    /// The link's state, to watch.
    pub(super) fn link(&self) -> watch::Receiver<LinkState> {
        self.link.subscribe()
    }

    /// A leg fell silent: what ails it may ail the link too.
    pub(super) fn doubt_link(&self) {
        self.doubt.raise();
    }

    /// Asks the broker and waits for the answer: for the link to come up as long as it takes, then 10 s. What is asked
    /// while there is no link travels with the request for one, if nothing else does; `message` is called when it leaves.
    ///
    /// # Errors
    /// The broker's refusal; [`Code::BrokerUnreachable`] if the link breaks or falls silent; [`Code::RateLimited`] if too
    /// many requests are in flight; the link's final fault.
    pub(super) async fn ask(
        &self,
        message: impl Fn(u64) -> FromClient + Send + Sync + 'static,
    ) -> Result<ToClient, Fault> {
        self.ask_within(ANSWER_TIMEOUT, message).await
    }

    /// As [`Self::ask`], with another patience.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn ask_within(
        &self,
        patience: Duration,
        message: impl Fn(u64) -> FromClient + Send + Sync + 'static,
    ) -> Result<ToClient, Fault> {
        let unreachable = |detail| Code::BrokerUnreachable.because(detail);
        let (request, mut answer) = self.enlist()?;
        let number = request.number;
        let message = Arc::new(move || message(number));
        let ahead = !self.is_up() && self.first.offer(number, message.clone());
        request.set(if ahead { Stage::Ahead } else { Stage::Waits });
        let answered = |answer: Result<_, _>| {
            answer.unwrap_or_else(|_| Err(unreachable("the link to the broker broke")))
        };
        let queue = tokio::select! {
            biased;
            answer = &mut answer => return answered(answer),
            queue = self.up() => queue?,
        };
        if !ahead || self.first.withdraw(number) {
            request.set(Stage::Sent);
            if queue.send(message()).await.is_err() {
                return Err(unreachable("the link to the broker broke"));
            }
        }
        match timeout(patience, answer).await {
            Ok(answer) => answered(answer),
            Err(_) => Err(unreachable("the broker did not answer in time")),
        }
    }

    fn is_up(&self) -> bool {
        matches!(&*self.link.borrow(), LinkState::Up(_))
    }

    /// Waits for the link to be up.
    async fn up(&self) -> Result<mpsc::Sender<FromClient>, Fault> {
        let mut link = self.link();
        let state = link.wait_for(|state| !matches!(state, LinkState::Down(_))).await;
        match state.as_deref() {
            Ok(LinkState::Up(queue)) => Ok(queue.clone()),
            Ok(LinkState::Over(fault)) => Err(fault.clone()),
            Ok(LinkState::Down(_)) | Err(_) => Err(Code::BrokerUnreachable.into()),
        }
    }

    fn enlist(&self) -> Result<(Request<'_>, Answer), Fault> {
        let mut requests = lock(&self.requests);
        if requests.len() >= REQUESTS_MAX {
            return Err(Code::RateLimited.because("too many requests wait for the broker"));
        }
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        requests.insert(number, Waiting { answered, stage: Stage::Waits });
        Ok((Request { desk: self, number }, answer))
    }

    /// A session begins to live.
    pub(super) fn admit(&self, id: SessionId, live: Live) {
        let mut sessions = lock(&self.sessions);
        let mut early = lock(&self.early);
        let (its, others): (VecDeque<_>, _) =
            std::mem::take(&mut *early).into_iter().partition(|(of, _)| *of == id);
        *early = others;
        its.into_iter().for_each(|(_, candidates)| live.udp.add(candidates));
        sessions.insert(id, live);
    }

    /// The agent of a session can also be reached here.
    fn add_candidates(&self, session: SessionId, candidates: Vec<Candidate>) {
        let sessions = lock(&self.sessions);
        if let Some(live) = sessions.get(&session) {
            return live.udp.add(candidates);
        }
        let mut early = lock(&self.early);
        if early.len() >= EARLY_MAX {
            early.pop_front();
        }
        early.push_back((session, candidates));
    }

    /// A ready session is used from now on. If that cannot be said now, the agent says it.
    pub(super) fn begin(&self, id: &SessionId) {
        if let Some(live) = lock(&self.sessions).get_mut(id) {
            live.ready = false;
        }
        self.tell(FromClient::Begun { session: id.clone() });
    }

    /// A session is over; unless the broker said so itself, it is told when the link is up.
    pub(super) fn dismiss(&self, id: &SessionId, tell: Option<Code>) {
        lock(&self.sessions).remove(id);
        if let Some(code) = tell {
            self.tell(FromClient::Ended { session: id.clone(), code });
        }
    }

    /// Says something that needs no answer and is worth nothing on a later link.
    fn tell(&self, message: FromClient) {
        if let LinkState::Up(queue) = &*self.link.borrow() {
            // A full queue means a link in trouble; the agent tells the broker of an end as well.
            let _ = queue.try_send(message);
        }
    }

    /// The broker hears how far the gateways are.
    fn tell_ways(&self, ways: &mut watch::Receiver<Vec<GatewayRtt>>) {
        let rtts = ways.borrow_and_update().clone();
        if !rtts.is_empty() {
            self.tell(FromClient::Rtts { rtts });
        }
    }

    /// Runs the desk until `stop`, or until the link is over.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken, reach: Option<Reach>) {
        let (sender, mut events) = mpsc::channel(EVENTS_MAX);
        let (doubt, first) = (self.doubt.clone(), self.first.clone());
        let link = link::run(&self.invite, CLIENT_LINK, sender, doubt, first, stop);
        tokio::pin!(link);
        let mut reporter = Reporter::default();
        let mut tick = interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut again = interval(TELL_PAUSE);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut network = reach.as_ref().map(Reach::changed);
        let survey = Survey::start(self.home.clone(), reach.is_some());
        let mut ways = survey.found();
        loop {
            tokio::select! {
                ended = &mut link => {
                    let fault = ended.err().unwrap_or_else(|| Code::SessionClosed.into());
                    // Those that wait for the link see that.
                    self.link.send_replace(LinkState::Over(fault.clone()));
                    return self.fail_requests(&fault);
                }
                Some(event) = events.recv() => {
                    if let (LinkEvent::Up(_), Some(reach)) = (&event, &reach) {
                        reach.locate();
                    }
                    let up = matches!(event, LinkEvent::Up(_));
                    match event {
                        LinkEvent::Message(ToClient::Gateways { gateways }) => survey.set(gateways),
                        event => self.handle(event, &mut reporter),
                    }
                    if up {
                        self.tell_ways(&mut ways);
                    }
                }
                Ok(()) = ways.changed() => self.tell_ways(&mut ways),
                _ = tick.tick() => {
                    self.report(&mut reporter);
                    self.tell_moves();
                }
                _ = again.tick(), if self.has_untold() => self.tell_untold(),
                () = udp::changed(&mut network) => {
                    // The link may be of an address that is gone.
                    self.doubt.raise();
                    survey.again();
                    self.tell_all();
                }
            }
        }
    }

    fn handle(&self, event: LinkEvent<FromClient, ToClient>, reporter: &mut Reporter) {
        match event {
            LinkEvent::Up(queue) => {
                reporter.link_up();
                tracing::debug!("signed in");
                self.link.send_replace(LinkState::Up(queue));
                // A broker that was started anew knows sessions by their reports.
                self.report(reporter);
                self.tell_moves();
                // It may have changed while nobody could be told, or been told on a link that was dead already.
                self.tell_all();
            }
            LinkEvent::Down(fault) => {
                self.link.send_replace(LinkState::Down(Some(fault.clone())));
                self.fail_requests(&fault);
            }
            LinkEvent::Message(ToClient::End { session, code }) => {
                if let Some(live) = lock(&self.sessions).get(&session) {
                    // Full: it is ending already.
                    let _ = live.end.try_send(Ending::ByBroker(code));
                }
            }
            LinkEvent::Message(ToClient::Relocate { session }) => {
                if let Some(live) = lock(&self.sessions).get(&session) {
                    live.relocate.notify_one();
                }
            }
            // It is for the survey.
            LinkEvent::Message(ToClient::Gateways { .. }) => {}
            LinkEvent::Message(ToClient::Refused { request, code, message }) => {
                self.answer(request, Err(code.because(message)));
            }
            LinkEvent::Message(ToClient::Notice(notice)) => self.notice(notice),
            LinkEvent::Message(ToClient::About(about)) => self.told_of(about),
            LinkEvent::Message(answer @ (ToClient::Granted { .. } | ToClient::Leg { .. })) => {
                let (ToClient::Granted { request, .. } | ToClient::Leg { request, .. }) = &answer
                else {
                    return;
                };
                if let ToClient::Granted { ticket, .. } = &answer {
                    self.note_gateway(ticket.gateway.as_deref());
                }
                self.answer(*request, Ok(answer));
            }
        }
    }

    /// What users are to be told from now on.
    pub(super) fn notices(&self) -> broadcast::Receiver<SessionNotice> {
        self.notices.subscribe()
    }

    fn notice(&self, notice: SessionNotice) {
        // Where nobody listens, nobody agrees.
        if let Err(broadcast::error::SendError(SessionNotice::ConsentAsked { id, .. })) =
            self.notices.send(notice)
        {
            self.consent(id, false);
        }
    }

    /// The answer to a question for consent.
    pub(super) fn consent(&self, id: u64, yes: bool) {
        self.tell(FromClient::Consent { id, yes });
    }

    fn told_of(&self, about: AboutSession) {
        match about {
            // For agents.
            AboutSession::Hold { .. } => {}
            AboutSession::Explain { session } => self.explain(session),
            AboutSession::Candidates { session, candidates } => {
                self.add_candidates(session, candidates);
            }
            AboutSession::Policy { session, transport, .. } => {
                if let Some(live) = lock(&self.sessions).get(&session) {
                    live.udp.narrow(transport, &live.handle);
                }
            }
            AboutSession::Relay { session, relay } => {
                if let Some(live) = lock(&self.sessions).get(&session) {
                    live.udp.renew(relay);
                }
            }
        }
    }

    fn answer(&self, request: u64, answer: Result<ToClient, Fault>) {
        let waiting = lock(&self.requests).remove(&request);
        let unwanted = match waiting {
            Some(waiting) => match waiting.answered.send(answer) {
                Ok(()) => return,
                Err(answer) => answer,
            },
            None => answer,
        };
        match unwanted {
            // Whoever asked has given up since.
            Ok(ToClient::Granted { session, .. }) => {
                self.tell(FromClient::Ended { session, code: Code::SessionClosed });
            }
            Err(fault) if request == 0 => tracing::warn!(%fault, "refused by the broker"),
            _ => {}
        }
    }

    fn explain(&self, session: SessionId) {
        let paths = lock(&self.sessions).get(&session).map(|live| live.udp.report(&live.handle));
        if let Some(paths) = paths {
            self.tell(FromClient::Paths { session, paths: Box::new(paths) });
        }
    }

    /// The link is gone, and with it what was asked on it; the rest waits for the next one.
    fn fail_requests(&self, fault: &Fault) {
        let waits = self.first.number();
        let asked = |number: u64, stage| match stage {
            Stage::Waits => false,
            Stage::Ahead => waits != Some(number),
            Stage::Sent => true,
        };
        for (_, waiting) in lock(&self.requests).extract_if(|number, it| asked(*number, it.stage)) {
            // The asker may have left.
            let _ = waiting.answered.send(Err(fault.clone()));
        }
    }

    fn report(&self, reporter: &mut Reporter) {
        let LinkState::Up(queue) = &*self.link.borrow() else { return };
        let sessions = lock(&self.sessions);
        let live = sessions.iter().filter(|(_, live)| !live.ready).map(|(id, live)| {
            let stats = live.handle.stats();
            (
                figures(id.clone(), &stats, stats.bytes_sent, stats.bytes_received),
                live.grant.clone(),
            )
        });
        for sessions in reporter.due(live) {
            if queue.try_send(FromClient::Report { sessions }).is_err() {
                // A link in trouble: say everything again.
                return reporter.link_up();
            }
        }
    }
}

type Answer = oneshot::Receiver<Result<ToClient, Fault>>;

/// Who waits for an answer.
struct Waiting {
    answered: oneshot::Sender<Result<ToClient, Fault>>,
    stage: Stage,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It waits for the link.
    Waits,
    /// It is the first word, or was.
    Ahead,
    /// It was sent on the link.
    Sent,
}

/// A request in flight; it is forgotten when its asker leaves.
struct Request<'desk> {
    desk: &'desk Desk,
    number: u64,
}

impl Request<'_> {
    fn set(&self, stage: Stage) {
        if let Some(waiting) = lock(&self.desk.requests).get_mut(&self.number) {
            waiting.stage = stage;
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.desk.first.withdraw(self.number);
        lock(&self.desk.requests).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
