//! The agent's end of the sessions it serves.
use std::collections::HashMap;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use rustls::ServerConfig;
use switchback_shortpath::{
    Role, SessionConfig, SessionEvent, SessionHandle, SessionKey, server_config,
};
use tokio::sync::{mpsc, watch};

use crate::agent::legs::Purpose;
use crate::agent::target::{self, Target};
use crate::code::{Code, Fault};
use crate::link::Doubt;
use crate::link::report::figures;
use crate::reason;
use crate::wire::{
    ClientAddress, PublicKey, Resource, SealedGrant, SessionId, SessionOffer, SessionReport,
};

/// A session ended by itself or by its client.
#[derive(Debug)]
pub(super) struct SessionOver {
    pub(super) id: SessionId,
    pub(super) code: Code,
}

/// The live sessions.
pub(super) struct Sessions {
    key: SessionKey,
    targets: HashMap<String, Arc<Target>>,
    config: SessionConfig,
    sessions_max: usize,
    live: HashMap<SessionId, Live>,
    over: mpsc::Sender<SessionOver>,
    doubt: Doubt,
}

struct Live {
    handle: SessionHandle,
    tls: Arc<ServerConfig>,
    client_key: PublicKey,
    grant: SealedGrant,
    target: Arc<Target>,
    client_address: watch::Sender<Option<ClientAddress>>,
}

impl Sessions {
    pub(super) fn new(
        key: SessionKey,
        resources: &[Resource],
        config: SessionConfig,
        sessions_max: usize,
        over: mpsc::Sender<SessionOver>,
        doubt: Doubt,
    ) -> Self {
        let target = |resource: &Resource| (resource.name.clone(), Arc::new(resource.into()));
        let targets = resources.iter().map(target).collect();
        Self { key, targets, config, sessions_max, live: HashMap::new(), over, doubt }
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
            return Ok(live.purpose(id));
        }
        if self.live.len() >= self.sessions_max {
            return Err(Code::SessionLimit.because("this agent serves as many as it may"));
        }
        let live = self.create(offer)?;
        let purpose = live.purpose(id.clone());
        self.live.insert(id, live);
        Ok(purpose)
    }

    fn create(&self, offer: SessionOffer) -> Result<Live, Fault> {
        let SessionOffer { id, user, resource, client_key, grant, client_address } = offer;
        let target = self.targets.get(&resource).ok_or_else(|| {
            Code::ResourceUnknown.because(format!("this agent does not offer `{resource}`"))
        })?;
        let tls = BASE64URL_NOPAD
            .decode(client_key.0.as_bytes())
            .ok()
            .and_then(|spki| server_config(&self.key, &spki).ok())
            .ok_or_else(|| Code::MessageMalformed.because("the client's key is malformed"))?;
        let (handle, events) = SessionHandle::start(Role::Agent, &id.0, self.config.clone());
        tracing::info!(session = %id, user, resource, "session offered");
        let (client_address, client) = watch::channel(client_address);
        let target = target.clone();
        let service = Service { target: target.clone(), client };
        tokio::spawn(follow(id, events, service, self.over.clone(), self.doubt.clone()));
        Ok(Live { handle, tls, client_key, grant, target, client_address })
    }

    /// Ends a session at the broker's word; its last event then forgets it.
    pub(super) fn end(&mut self, id: &SessionId, code: Code) {
        if let Some(live) = self.live.remove(id) {
            tracing::info!(session = %id, %code, "session ended by the broker");
            live.handle.close(reason::to_wire(code));
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
        self.live.remove(id).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    /// The agent's public key.
    pub(super) fn public_key(&self) -> PublicKey {
        PublicKey(BASE64URL_NOPAD.encode(&self.key.public()))
    }

    /// Proof of every live session.
    pub(super) fn grants(&self) -> impl Iterator<Item = SealedGrant> {
        self.live.values().map(|live| live.grant.clone())
    }

    /// Figures and proof of every live session.
    pub(super) fn figures(&self) -> impl Iterator<Item = (SessionReport, SealedGrant)> {
        self.live.iter().map(|(id, live)| {
            let stats = live.handle.stats();
            let report = figures(id.clone(), &stats, stats.bytes_received, stats.bytes_sent);
            (report, live.grant.clone())
        })
    }
}

impl Live {
    fn purpose(&self, id: SessionId) -> Purpose {
        let (tls, target) = (self.tls.clone(), self.target.clone());
        Purpose { id, session: self.handle.clone(), tls, target }
    }
}

/// Where a session's channels go, and where its client was by the last offer that said so: one that moved is known to
/// have moved with the next.
struct Service {
    target: Arc<Target>,
    client: watch::Receiver<Option<ClientAddress>>,
}

/// Connects a session's channels to their target until it is over.
async fn follow(
    id: SessionId,
    mut events: mpsc::Receiver<SessionEvent>,
    service: Service,
    over: mpsc::Sender<SessionOver>,
    doubt: Doubt,
) {
    let mut fault = Fault::from(Code::SessionClosed);
    while let Some(event) = events.recv().await {
        match event {
            SessionEvent::Incoming(channel) => {
                // Bounded by the session's own limit of channels.
                let (id, target) = (id.clone(), service.target.clone());
                let client = *service.client.borrow();
                tokio::spawn(async move { target::serve(channel, &target, &id, client).await });
            }
            SessionEvent::LegSuspect(leg) => {
                tracing::debug!(session = %id, %leg, "leg suspect");
                // What ails the leg may ail the link, and the next leg is offered on that.
                doubt.raise();
            }
            SessionEvent::LegLost { leg, error } => {
                tracing::info!(session = %id, %leg, error, "leg lost");
            }
            // Dropped, it is reset: a resource of TCP carries no datagrams.
            SessionEvent::IncomingDatagrams(flow) => drop(flow),
            SessionEvent::Moved { to, cause, stall, .. } => {
                tracing::info!(session = %id, to = to.as_str(), cause = cause.as_str(), ?stall, "session moved");
            }
            SessionEvent::Down => tracing::info!(session = %id, "session paused"),
            SessionEvent::Resumed => tracing::info!(session = %id, "session carried"),
            SessionEvent::Closed(why) => {
                fault = reason::of_session(&why);
                break;
            }
        }
    }
    tracing::info!(session = %id, %fault, "session over");
    // The agent is stopping.
    let _ = over.send(SessionOver { id, code: fault.code }).await;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::secret::Secret;

    fn sessions(sessions_max: usize) -> (Sessions, mpsc::Receiver<SessionOver>) {
        let resources = [Resource::tcp("ssh", "127.0.0.1:22")];
        let (sender, over) = mpsc::channel(4);
        let (key, config) = (SessionKey::generate().unwrap(), SessionConfig::default());
        (Sessions::new(key, &resources, config, sessions_max, sender, Doubt::default()), over)
    }

    fn offer(id: &str, client: &SessionKey) -> SessionOffer {
        SessionOffer {
            id: SessionId(id.into()),
            user: "ada".into(),
            resource: "ssh".into(),
            client_key: PublicKey(BASE64URL_NOPAD.encode(&client.public())),
            grant: Secret::new("sealed"),
            client_address: None,
        }
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
        let last = over.recv().await.unwrap();
        assert_eq!((last.id.0.as_str(), last.code), ("a", Code::SessionKilled));
        assert!(!sessions.forget(&last.id));
    }
}
