//! The agent's end of the sessions it serves.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use rustls::ServerConfig;
use switchback_shortpath::{
    Channel, MoveCause, Role, SessionConfig, SessionEvent, SessionHandle, SessionKey, server_config,
};
use tokio::sync::{mpsc, watch};

use crate::agent::health::Faults;
use crate::agent::legs::Purpose;
use crate::agent::rate::{Capped, RateCap};
use crate::agent::target::{self, Target};
use crate::code::{Code, Fault};
use crate::link::Doubt;
use crate::link::report::figures;
use crate::reason;
use crate::shadow::frame::{Hello, VERSION};
use crate::shadow::{self, Budget, Tapped, Tee, unix_micros};
use crate::udp::reach::Reach;
use crate::udp::session::{SessionUdp, SessionWatch, Wanted, under};
use crate::wire::{
    Candidate, ClientAddress, PathReport, PublicKey, RelayAccess, Resource, SealedGrant, SessionId,
    SessionOffer, SessionPurpose, SessionReport, TransportPolicy, UdpUse,
};

/// Part of an agent's sessions that may be ready ones: most of its room is for those in use.
const READY_PART: usize = 4;

/// A session ended by itself or by its client.
#[derive(Debug)]
pub(super) struct SessionOver {
    pub(super) id: SessionId,
    pub(super) code: Code,
}

/// What a session tells its agent, in order.
#[derive(Debug)]
pub(super) enum News {
    /// A ready session is being used.
    Begun(SessionId),
    /// It is over.
    Over(SessionOver),
    /// It has a relay, or another one.
    Relayed(SessionId),
}

/// The live sessions.
pub(super) struct Sessions {
    key: SessionKey,
    targets: HashMap<String, Arc<Target>>,
    faults: Arc<Faults>,
    config: SessionConfig,
    sessions_max: usize,
    reach: Option<Reach>,
    live: HashMap<SessionId, Live>,
    /// Of those, the ones that nobody uses yet.
    ready: HashSet<SessionId>,
    news: mpsc::Sender<News>,
    doubt: Doubt,
    backlog: Arc<Budget>,
}

struct Live {
    handle: SessionHandle,
    tls: Arc<ServerConfig>,
    client_key: PublicKey,
    grant: SealedGrant,
    target: Arc<Target>,
    client_address: watch::Sender<Option<ClientAddress>>,
    udp: Arc<SessionUdp>,
    rate: Arc<RateCap>,
    /// To look for the client by UDP.
    wanted: Wanted,
    /// What watchers see.
    tee: Arc<Tee>,
    since_us: u64,
    user: String,
    resource: String,
    purpose: SessionPurpose,
    /// Who paused it.
    held: Option<String>,
}

impl Sessions {
    pub(super) fn new(
        key: SessionKey,
        resources: &[Resource],
        config: SessionConfig,
        (sessions_max, reach, backlog): (usize, Option<Reach>, Arc<Budget>),
        news: mpsc::Sender<News>,
        doubt: Doubt,
    ) -> Self {
        let faults = Arc::<Faults>::default();
        let target = |resource: &Resource| {
            (resource.name.clone(), Arc::new(Target::new(resource, faults.clone())))
        };
        let targets = resources.iter().map(target).collect();
        let (live, ready) = (HashMap::new(), HashSet::new());
        Self {
            key,
            targets,
            faults,
            config,
            sessions_max,
            reach,
            live,
            ready,
            news,
            doubt,
            backlog,
        }
    }

    /// The session of an offer, as its leg must know it; created if it is new.
    ///
    /// # Errors
    /// [`Code::PeerKeyMismatch`] if the session is known with another client's key; [`Code::ResourceUnknown`],
    /// [`Code::SessionLimit`], [`Code::MessageMalformed`].
    pub(super) fn accept(&mut self, offer: SessionOffer) -> Result<Purpose, Fault> {
        let id = offer.id.clone();
        if let Some(live) = self.live.get_mut(&id) {
            if live.client_key != offer.client_key {
                return Err(Code::PeerKeyMismatch.because("the session has another client"));
            }
            live.grant = offer.grant;
            // None: the client's link is down just now. Its address has not changed for that.
            if offer.client_address.is_some() {
                live.client_address.send_replace(offer.client_address);
            }
            if let Some(access) = offer.udp {
                live.udp.begin(live.wanted.clone(), *access, &live.handle);
            }
            return Ok(live.purpose(id, offer.instead));
        }
        if self.live.len() >= self.sessions_max {
            return Err(Code::SessionLimit.because("this agent serves as many as it may"));
        }
        let ready = offer.ready;
        if ready && self.ready.len() >= self.sessions_max.div_ceil(READY_PART) {
            return Err(Code::SessionLimit.because("this agent holds as many ready as it may"));
        }
        let live = self.create(offer)?;
        let purpose = live.purpose(id.clone(), false);
        if ready {
            self.ready.insert(id.clone());
        }
        self.live.insert(id, live);
        Ok(purpose)
    }

    fn create(&self, offer: SessionOffer) -> Result<Live, Fault> {
        let SessionOffer {
            id,
            user,
            resource,
            client_key,
            grant,
            client_address,
            transport,
            udp: access,
            purpose,
            ready,
            instead: _,
            rate_bits,
        } = offer;
        let target = self.targets.get(&resource).ok_or_else(|| {
            Code::ResourceUnknown.because(format!("this agent does not offer `{resource}`"))
        })?;
        let work = self.work(&purpose, &resource)?;
        let malformed = || Code::MessageMalformed.because("the client's key is malformed");
        let peer_key = BASE64URL_NOPAD.decode(client_key.0.as_bytes()).map_err(|_| malformed())?;
        let tls = server_config(&self.key, &peer_key).map_err(|_| malformed())?;
        let config = under(transport, &self.config);
        let (handle, events) = SessionHandle::start(Role::Agent, &id.0, config);
        tracing::info!(session = %id, user, resource, ready, "session offered");
        let (client_address, client) = watch::channel(client_address);
        let target = target.clone();
        let udp = SessionUdp::new(transport, self.reach.clone());
        let (key, dscp) = (self.key.clone(), target.tuning.dscp);
        let wanted = Wanted { role: Role::Agent, key, peer_key, dscp };
        if let Some(access) = access {
            udp.begin(wanted.clone(), *access, &handle);
        }
        if transport.udp == UdpUse::Require {
            tokio::spawn(udp.clone().enforce(SessionWatch(handle.clone())));
        }
        let paths = Paths { udp: udp.clone() };
        let (tee, rate) = (Tee::new(self.backlog.clone()), RateCap::new(rate_bits));
        let (of, shown, capped) = (target.clone(), tee.clone(), rate.clone());
        let service = Service { target: of, client, work, tee: shown, rate: capped, ready, paths };
        tokio::spawn(follow(id, events, service, self.news.clone(), self.doubt.clone()));
        let (since_us, held) = (unix_micros(), None);
        Ok(Live {
            handle,
            tls,
            client_key,
            grant,
            target,
            client_address,
            udp,
            rate,
            wanted,
            tee,
            since_us,
            user,
            resource,
            purpose,
            held,
        })
    }

    /// What channels of a session for this purpose get.
    fn work(&self, purpose: &SessionPurpose, resource: &str) -> Result<Work, Fault> {
        let wish = match purpose {
            SessionPurpose::Use => return Ok(Work::Use),
            SessionPurpose::Echo => return Ok(Work::Echo),
            SessionPurpose::Shadow(wish) => wish,
        };
        let of_resource =
            |live: &&Live| live.resource == resource && live.purpose == SessionPurpose::Use;
        let watched = self.live.get(&wish.session).filter(of_resource);
        let watched = watched.filter(|_| !self.ready.contains(&wish.session));
        let watched = watched.ok_or(Code::SessionUnknown)?;
        if let (Some(target), Some(shadow)) = (watched.target.of_watchers(), &watched.target.shadow)
        {
            if !shadow.view_only && !wish.control {
                return Err(Code::ShadowNeedsControl.into());
            }
            return Ok(Work::WatchTarget(Arc::new(target)));
        }
        let hello = Hello {
            version: VERSION,
            session: wish.session.clone(),
            user: watched.user.clone(),
            resource: resource.to_owned(),
            kind: watched.target.kind(),
            port: watched.target.port(),
            since_us: watched.since_us,
            control: wish.control,
        };
        Ok(Work::Watch(watched.tee.clone(), Box::new(hello)))
    }

    /// Pauses a session, or lets it go on.
    pub(super) fn hold(&mut self, id: &SessionId, held: Option<String>) {
        if let Some(live) = self.live.get_mut(id) {
            let by = held.as_deref().unwrap_or("-");
            tracing::info!(session = %id, held = held.is_some(), by, "session held");
            live.tee.hold(held.is_some());
            live.held = held;
        }
    }

    /// A session is over: so is every watch of it. One that sees frames ends when its watcher has the last of them.
    fn end_watches(&self, watched: &SessionId) {
        let watches = self.live.values().filter(|live| {
            live.purpose.shadow().is_some_and(|wish| wish.session == *watched && wish.target)
        });
        watches.for_each(|live| live.handle.close(reason::to_wire(Code::SessionClosed)));
    }

    /// The client of a session can also be reached here.
    pub(super) fn add_candidates(&self, id: &SessionId, candidates: Vec<Candidate>) {
        if let Some(live) = self.live.get(id) {
            live.udp.add(candidates);
        }
    }

    /// A session's right to use the relay was renewed.
    pub(super) fn renew(&self, id: &SessionId, relay: RelayAccess) {
        if let Some(live) = self.live.get(id) {
            live.udp.renew(relay);
        }
    }

    /// Policy changed: this may carry the session from now on, at this rate.
    pub(super) fn narrow(
        &self,
        id: &SessionId,
        transport: TransportPolicy,
        rate_bits: Option<u64>,
    ) {
        if let Some(live) = self.live.get(id) {
            live.udp.narrow(transport, &live.handle);
            live.rate.set(rate_bits);
        }
    }

    /// Sessions that have relays of ours.
    pub(super) fn relayed(&self) -> impl Iterator<Item = &SessionId> {
        self.live.keys().filter(|id| self.relayed_at(id).is_some())
    }

    /// Where a session has a relay of ours.
    pub(super) fn relayed_at(&self, id: &SessionId) -> Option<Candidate> {
        self.live.get(id).and_then(|live| *live.udp.relayed().borrow())
    }

    /// What this agent sees of a session's paths.
    pub(super) fn explain(&self, id: &SessionId) -> Option<PathReport> {
        self.live.get(id).map(|live| live.udp.report(&live.handle))
    }

    /// A ready session is used from now on; false if it was before, or is over by now.
    pub(super) fn begin(&mut self, id: &SessionId) -> bool {
        self.ready.remove(id)
    }

    /// Ends the sessions that nobody uses: the broker, whose word they wait on, is out of reach.
    pub(super) fn end_ready(&mut self) {
        for id in std::mem::take(&mut self.ready) {
            self.end(&id, Code::BrokerUnreachable);
        }
    }

    /// Ends a session at the broker's word; its last event then forgets it.
    pub(super) fn end(&mut self, id: &SessionId, code: Code) {
        self.ready.remove(id);
        if let Some(live) = self.live.remove(id) {
            tracing::info!(session = %id, %code, "session ended by the broker");
            live.handle.close(reason::to_wire(code));
            self.end_watches(id);
        }
    }

    /// Ends all sessions: the agent stops.
    pub(super) fn end_all(&mut self) {
        for (_, live) in self.live.drain() {
            live.handle.close(reason::to_wire(Code::SessionClosed));
        }
    }

    /// Forgets a session that is over; false if it was forgotten before.
    pub(super) fn forget(&mut self, id: &SessionId) -> bool {
        self.ready.remove(id);
        let known = self.live.remove(id).is_some();
        self.end_watches(id);
        known
    }

    /// Sessions in use.
    pub(super) fn len(&self) -> usize {
        self.live.len() - self.ready.len()
    }

    /// What its channels learn of the targets.
    pub(super) fn faults(&self) -> Arc<Faults> {
        self.faults.clone()
    }

    /// The agent's public key.
    pub(super) fn public_key(&self) -> PublicKey {
        PublicKey(BASE64URL_NOPAD.encode(&self.key.public()))
    }

    /// Proof of every live session.
    pub(super) fn grants(&self) -> impl Iterator<Item = SealedGrant> {
        self.in_use().map(|(_, live)| live.grant.clone())
    }

    /// Figures and proof of every live session.
    pub(super) fn figures(&self) -> impl Iterator<Item = (SessionReport, SealedGrant)> {
        self.in_use().map(|(id, live)| {
            let stats = live.handle.stats();
            let mut report = figures(id.clone(), &stats, stats.bytes_received, stats.bytes_sent);
            report.held.clone_from(&live.held);
            (report, live.grant.clone())
        })
    }

    fn in_use(&self) -> impl Iterator<Item = (&SessionId, &Live)> {
        self.live.iter().filter(|(id, _)| !self.ready.contains(*id))
    }
}

impl Live {
    fn purpose(&self, id: SessionId, instead: bool) -> Purpose {
        let (tls, target) = (self.tls.clone(), self.target.clone());
        Purpose { id, session: self.handle.clone(), tls, target, instead }
    }
}

/// Where a session's channels go, and where its client was by the last offer that said so: one that moved is known to
/// have moved with the next.
struct Service {
    target: Arc<Target>,
    client: watch::Receiver<Option<ClientAddress>>,
    work: Work,
    tee: Arc<Tee>,
    rate: Arc<RateCap>,
    /// Its use is yet to be told.
    ready: bool,
    /// Dropped with the rest.
    paths: Paths,
}

/// What a session's channels get.
enum Work {
    /// A connection to the target each.
    Use,
    /// Their own bytes back.
    Echo,
    /// What another session carries.
    Watch(Arc<Tee>, Box<Hello>),
    /// A connection to the target for watchers.
    WatchTarget(Arc<Target>),
}

/// A session's UDP, which ends with its events.
struct Paths {
    udp: Arc<SessionUdp>,
}

impl Drop for Paths {
    fn drop(&mut self) {
        self.udp.end();
    }
}

impl Service {
    /// Gives a channel what it is for, in a task of its own.
    fn serve(&self, channel: Channel, id: &SessionId) {
        let id = id.clone();
        match &self.work {
            Work::Use => {
                let (target, client, tap) =
                    (self.target.clone(), *self.client.borrow(), self.tap());
                tokio::spawn(async move {
                    target::serve(channel, &target, &id, client, &tap).await;
                });
            }
            Work::Echo => drop(tokio::spawn(target::echo(channel))),
            Work::Watch(tee, hello) => {
                let (hello, pace) = (Hello::clone(hello), self.without_tap());
                drop(tokio::spawn(shadow::serve(channel, tee.clone(), hello, pace)));
            }
            Work::WatchTarget(target) => {
                let (target, tap) = (target.clone(), self.without_tap());
                tokio::spawn(async move { target::serve(channel, &target, &id, None, &tap).await });
            }
        }
    }

    /// Of a channel that opens: seen by watchers, and no faster than policy lets it go.
    fn tap(&self) -> Capped<Tapped> {
        Capped { tap: self.tee.tap(), rate: self.rate.clone() }
    }

    /// Of a watcher's channel: seen by nobody, and no faster either.
    fn without_tap(&self) -> Capped<()> {
        Capped { tap: (), rate: self.rate.clone() }
    }
}

/// Connects a session's channels to their target until it is over.
async fn follow(
    id: SessionId,
    mut events: mpsc::Receiver<SessionEvent>,
    mut service: Service,
    news: mpsc::Sender<News>,
    doubt: Doubt,
) {
    let mut fault = Fault::from(Code::SessionClosed);
    let mut relayed = service.paths.udp.relayed();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            Ok(()) = relayed.changed() => {
                if relayed.borrow_and_update().is_some() {
                    // The agent is stopping.
                    let _ = news.send(News::Relayed(id.clone())).await;
                }
                continue;
            }
        };
        let Some(event) = event else { break };
        match event {
            SessionEvent::Incoming(channel) => {
                if std::mem::take(&mut service.ready) {
                    // The agent is stopping.
                    let _ = news.send(News::Begun(id.clone())).await;
                }
                // Bounded by the session's own limit of channels.
                service.serve(channel, &id);
            }
            SessionEvent::IncomingDatagrams(flow) if !matches!(service.work, Work::Use) => {
                flow.reset(reason::to_wire(Code::ChannelLimit));
            }
            SessionEvent::IncomingDatagrams(flow) => {
                if std::mem::take(&mut service.ready) {
                    // The agent is stopping.
                    let _ = news.send(News::Begun(id.clone())).await;
                }
                // Bounded by the session's own limit of channels.
                let (id, target) = (id.clone(), service.target.clone());
                let tap = service.tap();
                tokio::spawn(
                    async move { target::serve_datagrams(flow, &target, &id, &tap).await },
                );
            }
            SessionEvent::Moved { to, cause: MoveCause::Recovered, stall, .. } => {
                tracing::debug!(session = %id, on = to.label(), stall_us = stall.as_micros(), "session stalled");
            }
            SessionEvent::Moved { from, to, cause, stall } => {
                let from = from.map_or("-", switchback_shortpath::LegKind::label);
                let (to, cause, stall_us) = (to.label(), cause.as_str(), stall.as_micros());
                tracing::info!(session = %id, from, to, cause, stall_us, "session moved");
            }
            // What ails the session may ail the link, and the next leg is offered on that.
            SessionEvent::InDoubt => doubt.raise(),
            SessionEvent::LegSuspect(leg) => {
                tracing::debug!(session = %id, %leg, "leg suspect");
                doubt.raise();
            }
            SessionEvent::LegLost { leg, error } => {
                tracing::info!(session = %id, %leg, error, "leg lost");
            }
            SessionEvent::Down => {
                tracing::info!(session = %id, "session paused");
                service.paths.udp.pause();
            }
            SessionEvent::Resumed => tracing::info!(session = %id, "session carried"),
            SessionEvent::Closed(why) => {
                fault = reason::of_session(&why);
                break;
            }
        }
    }
    tracing::info!(session = %id, %fault, "session over");
    service.tee.end(&fault.to_string());
    // The agent is stopping.
    let _ = news.send(News::Over(SessionOver { id, code: fault.code })).await;
}

#[cfg(test)]
impl Sessions {
    /// Gives all sessions a relay, without a search.
    pub(super) fn relay_at(&mut self, relayed: Candidate) {
        self.live.values_mut().for_each(|live| live.udp = SessionUdp::relayed_at(relayed));
    }
}

#[cfg(test)]
pub(super) fn offer(id: &str, client: &SessionKey) -> SessionOffer {
    SessionOffer {
        id: SessionId(id.into()),
        user: "ada".into(),
        resource: "ssh".into(),
        client_key: PublicKey(BASE64URL_NOPAD.encode(&client.public())),
        grant: crate::secret::Secret::new("sealed"),
        client_address: None,
        transport: crate::wire::TransportPolicy::default(),
        udp: None,
        purpose: SessionPurpose::Use,
        ready: false,
        instead: false,
        rate_bits: None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn sessions(sessions_max: usize) -> (Sessions, mpsc::Receiver<News>) {
        let resources = [Resource::tcp("ssh", "127.0.0.1:22")];
        let (sender, over) = mpsc::channel(4);
        let (key, config) = (SessionKey::generate().unwrap(), SessionConfig::default());
        (
            Sessions::new(
                key,
                &resources,
                config,
                (sessions_max, None, Budget::new(1024, 1024)),
                sender,
                Doubt::default(),
            ),
            over,
        )
    }

    #[tokio::test]
    async fn ready_sessions_are_bounded_uncounted_and_end_with_the_link() {
        let (mut sessions, _over) = sessions(8);
        let client = SessionKey::generate().unwrap();
        let ready = |id| SessionOffer { ready: true, ..offer(id, &client) };
        sessions.accept(ready("a")).unwrap();
        sessions.accept(ready("b")).unwrap();
        assert_eq!(sessions.accept(ready("c")).err().unwrap().code, Code::SessionLimit);
        assert_eq!((sessions.len(), sessions.grants().count()), (0, 0));
        assert!(sessions.begin(&SessionId("a".into())));
        assert!(!sessions.begin(&SessionId("a".into())), "it began before");
        assert_eq!((sessions.len(), sessions.figures().count()), (1, 1));
        sessions.end_ready();
        assert!(!sessions.begin(&SessionId("b".into())), "it is over");
        assert_eq!((sessions.len(), sessions.live.len()), (1, 1));
    }

    #[tokio::test]
    async fn a_second_leg_joins_its_session_and_another_client_does_not() {
        let (mut sessions, _over) = sessions(1);
        let client = SessionKey::generate().unwrap();
        sessions.accept(offer("a", &client)).unwrap();
        sessions.accept(offer("a", &client)).unwrap();
        let thief = SessionKey::generate().unwrap();
        let refused = sessions.accept(offer("a", &thief)).err().unwrap();
        assert_eq!((refused.code, sessions.len()), (Code::PeerKeyMismatch, 1));
    }

    #[tokio::test]
    async fn an_offer_without_the_clients_address_leaves_the_one_that_is_known() {
        let (mut sessions, _over) = sessions(1);
        let client = SessionKey::generate().unwrap();
        let home = |port| ClientAddress {
            client: SocketAddr::from(([192, 0, 2, 1], port)),
            gateway: SocketAddr::from(([192, 0, 2, 9], 443)),
        };
        for (told, known) in
            [(Some(home(1)), Some(home(1))), (None, Some(home(1))), (Some(home(2)), Some(home(2)))]
        {
            let offer = SessionOffer { client_address: told, ..offer("a", &client) };
            let id = offer.id.clone();
            sessions.accept(offer).unwrap();
            assert_eq!(*sessions.live[&id].client_address.borrow(), known);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_refused_with_its_reason() {
        let (mut sessions, _over) = sessions(1);
        let client = SessionKey::generate().unwrap();
        let mut unknown = offer("a", &client);
        unknown.resource = "web".into();
        assert_eq!(sessions.accept(unknown).err().unwrap().code, Code::ResourceUnknown);
        let mut damaged = offer("a", &client);
        damaged.client_key = PublicKey("AAAA".into());
        assert_eq!(sessions.accept(damaged).err().unwrap().code, Code::MessageMalformed);
        sessions.accept(offer("a", &client)).unwrap();
        let surplus = sessions.accept(offer("b", &client)).err().unwrap();
        assert_eq!(surplus.code, Code::SessionLimit);
    }

    #[tokio::test]
    async fn an_ended_session_is_forgotten_at_once_and_says_its_last_word() {
        let (mut sessions, mut over) = sessions(1);
        let client = SessionKey::generate().unwrap();
        drop(sessions.accept(offer("a", &client)).unwrap());
        sessions.end(&SessionId("a".into()), Code::SessionKilled);
        assert_eq!((sessions.len(), sessions.grants().count()), (0, 0));
        let Some(News::Over(last)) = over.recv().await else { panic!("its last word") };
        assert_eq!((last.id.0.as_str(), last.code), ("a", Code::SessionKilled));
        assert!(!sessions.forget(&last.id));
    }
}
