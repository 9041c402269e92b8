//! The server of one worker: control messages in, answers out (RFC 8489, RFC 8656).
//!
//! Pure: sockets are opened and closed through [`RelaySockets`], the time comes with each call. Data takes the short way in
//! `forward.rs`.
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::UdpConfig;
use super::allocation::{Allocation, Made, Tuple};
use super::binding::{self, Answer, Site, Sites};
use super::counts::{Count, Counters, UdpDrop, UdpRefusal};
use super::credentials::{RelayCredentials, RelayUser};
use super::nonce::Nonces;
use super::peers::{Peers, Standing};
use super::shared::{Owner, Shared};
use super::throttle::Throttle;
use super::wire::{Key, Stun, Writer, attribute, kind};
use crate::gateway::Source;

/// The moment of a call, on the clocks that matter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    /// Seconds since 1970, for the expiry of credentials alone: this clock may jump.
    pub(crate) unix_s: u64,
    /// Seconds since the service started, for nonces.
    pub(crate) uptime_s: u32,
}

/// Where allocations get their sockets. Ids are small and used again.
pub(crate) trait RelaySockets {
    /// Opens a socket for an allocation; `None` if there is none to be had.
    fn open(&mut self, wish: &Wish) -> Option<Opened>;
    /// Closes an allocation's socket.
    fn close(&mut self, id: usize);
}

/// What an Allocate request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) bind: IpAddr,
    /// EVEN-PORT.
    pub(crate) even: bool,
    /// Its R bit: keep the next higher port for a later Allocate.
    pub(crate) reserve: bool,
    /// RESERVATION-TOKEN: the port that was kept.
    pub(crate) token: Option<[u8; 8]>,
    /// DONT-FRAGMENT.
    pub(crate) whole: bool,
}

/// A socket for an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) id: usize,
    /// Where it is bound.
    pub(crate) bound: SocketAddr,
    /// Of the port that was kept, if it was asked for.
    pub(crate) token: Option<[u8; 8]>,
}

/// What all workers' servers have in common.
pub(crate) struct Common {
    pub(crate) config: UdpConfig,
    pub(crate) sites: Sites,
    pub(crate) nonces: Nonces,
    pub(crate) credentials: Arc<dyn RelayCredentials>,
    pub(crate) shared: Shared,
}

/// One worker's allocations and answers.
pub(crate) struct Server {
    pub(super) common: Arc<Common>,
    pub(super) counters: Arc<Counters>,
    throttle: Throttle,
    pub(super) peers: Peers,
    pub(super) by_client: HashMap<Tuple, usize>,
    /// [`Shared::revocations`] that have been heeded.
    heeded: u64,
    /// By the id of their socket.
    pub(super) allocations: Vec<Option<Box<Allocation>>>,
}

/// Who signed a request.
pub(super) struct Signer {
    pub(super) username: String,
    /// Known when the credentials were looked up.
    pub(super) owner: Owner,
    pub(super) key: Key,
}

/// A reply to be signed, or why there is none.
pub(super) type Outcome = Result<Writer, Refused>;

pub(super) enum Refused {
    Plain(UdpRefusal),
    Unknown(Vec<u16>),
}

impl From<UdpRefusal> for Refused {
    fn from(why: UdpRefusal) -> Self {
        Self::Plain(why)
    }
}

/// Longest control message: a Binding request with PADDING of an MTU fits.
const CONTROL_MAX: usize = 2048;
/// Comprehension-required attributes that TURN requests may carry (RFC 8656 section 18).
const KNOWN: [u16; 13] = [
    attribute::USERNAME,
    attribute::MESSAGE_INTEGRITY,
    attribute::REALM,
    attribute::NONCE,
    attribute::CHANNEL_NUMBER,
    attribute::LIFETIME,
    attribute::XOR_PEER_ADDRESS,
    attribute::REQUESTED_ADDRESS_FAMILY,
    attribute::EVEN_PORT,
    attribute::REQUESTED_TRANSPORT,
    attribute::DONT_FRAGMENT,
    attribute::RESERVATION_TOKEN,
    attribute::MESSAGE_INTEGRITY_SHA256,
];
/// Listed in one refusal.
const UNKNOWN_MAX: usize = 8;

impl Server {
    pub(crate) fn new(
        common: Arc<Common>,
        counters: Arc<Counters>,
        peers: Peers,
        now: Instant,
    ) -> Self {
        let throttle = Throttle::new(common.config.answers_per_s, common.config.answers_burst, now);
        let (by_client, allocations) = (HashMap::new(), Vec::new());
        Self { common, counters, throttle, peers, by_client, heeded: 0, allocations }
    }

    /// The host's addresses have changed.
    pub(crate) fn set_peers(&mut self, peers: Peers) {
        self.peers = peers;
    }

    /// Answers a control message; `None` if it gets none.
    pub(crate) fn control(
        &mut self,
        now: Now,
        at: Site,
        tuple: Tuple,
        bytes: &[u8],
        sockets: &mut dyn RelaySockets,
    ) -> Option<(Vec<u8>, Site)> {
        if bytes.len() > CONTROL_MAX {
            return self.dropped(UdpDrop::Oversized);
        }
        let Some(request) = Stun::parse(bytes) else { return self.dropped(UdpDrop::Malformed) };
        match request.kind() {
            kind::BINDING => self.binding(now, at, tuple, &request),
            kind::ALLOCATE | kind::REFRESH | kind::CREATE_PERMISSION | kind::CHANNEL_BIND
                if at == Site::PRIMARY =>
            {
                Some((self.turn(now, tuple, &request, sockets)?, at))
            }
            _ => self.dropped(UdpDrop::Malformed),
        }
    }

    /// Frees allocations whose time has come, or whose user was revoked. To be called every second or so; nothing is relayed
    /// for an allocation whose time is over, called or not.
    pub(crate) fn expire(&mut self, now: Instant, sockets: &mut dyn RelaySockets) {
        self.heed_revocations(sockets);
        for id in 0..self.allocations.len() {
            if self.allocation(id).is_some_and(|allocation| allocation.expires <= now) {
                self.free(id, sockets);
            }
        }
    }

    fn heed_revocations(&mut self, sockets: &mut dyn RelaySockets) {
        let revocations = self.common.shared.revocations();
        if std::mem::replace(&mut self.heeded, revocations) == revocations {
            return;
        }
        let known = self.allocations.iter().enumerate();
        let owners =
            known.filter_map(|(id, known)| Some((id, known.as_deref()?.made.owner.name.as_str())));
        for id in self.common.shared.revoked(owners) {
            self.counters.add(Count::Revoked, 1);
            self.free(id, sockets);
        }
    }

    pub(super) fn allocation(&self, id: usize) -> Option<&Allocation> {
        self.allocations.get(id)?.as_deref()
    }

    pub(super) fn find(&self, now: Instant, tuple: &Tuple) -> Option<usize> {
        let id = *self.by_client.get(tuple)?;
        self.allocation(id).filter(|allocation| allocation.expires > now).map(|_| id)
    }

    /// The port of a permitted peer may be sent to.
    pub(super) fn port_is_open(&self, standing: Standing, peer: SocketAddr) -> bool {
        Peers::port_is_open(standing, peer, |peer| self.common.shared.is_relayed(peer))
    }

    fn dropped<T>(&self, why: UdpDrop) -> Option<T> {
        self.counters.add(Count::Dropped(why), 1);
        None
    }

    fn pays(&mut self, now: Now, tuple: Tuple) -> bool {
        let paid = self.throttle.take(Source::of(tuple.client), now.instant);
        paid || self.dropped::<()>(UdpDrop::RateLimited).is_some()
    }

    fn binding(
        &mut self,
        now: Now,
        at: Site,
        tuple: Tuple,
        request: &Stun<'_>,
    ) -> Option<(Vec<u8>, Site)> {
        if !self.pays(now, tuple) {
            return None;
        }
        let port = self.common.sites[at.index()].map_or(0, |site| site.port());
        let reached = SocketAddr::new(tuple.reached, port);
        match binding::answer(request, tuple.client, at, reached, &self.common.sites) {
            Answer::Success(bytes, from) => {
                self.counters.add(Count::Binding, 1);
                Some((bytes, from))
            }
            Answer::UnknownAttributes(bytes) => {
                self.counters.add(Count::Refused(UdpRefusal::UnknownAttributes), 1);
                Some((bytes, at))
            }
        }
    }

    fn turn(
        &mut self,
        now: Now,
        tuple: Tuple,
        request: &Stun<'_>,
        sockets: &mut dyn RelaySockets,
    ) -> Option<Vec<u8>> {
        let known = self.find(now.instant, &tuple);
        // Strangers pay before anything is computed for them, clients only for requests that fail.
        if known.is_none() && !self.pays(now, tuple) {
            return None;
        }
        let signer = match self.authenticate(now, tuple, known, request) {
            Ok(signer) => signer,
            Err(why) => {
                let pays = known.is_none() || self.pays(now, tuple);
                return pays.then(|| self.challenge(now, tuple, request, why));
            }
        };
        let key = signer.key.clone();
        let outcome = match request.unknown(&KNOWN).take(UNKNOWN_MAX).collect::<Vec<_>>() {
            unknown if !unknown.is_empty() => Err(Refused::Unknown(unknown)),
            _ => self.authenticated(now, tuple, known, signer, request, sockets),
        };
        let reply = outcome.unwrap_or_else(|refused| self.refuse(request, &refused)).sign(&key);
        Some(finish(reply, request))
    }

    /// RFC 8489 section 9.2.4. The nonce is looked at first: it costs a stranger one hash, not three.
    fn authenticate(
        &self,
        now: Now,
        tuple: Tuple,
        known: Option<usize>,
        request: &Stun<'_>,
    ) -> Result<Signer, UdpRefusal> {
        if !request.is_signed() {
            return Err(UdpRefusal::Challenged);
        }
        let (Some(username), Some(realm), Some(nonce)) = (
            request.text(attribute::USERNAME),
            request.text(attribute::REALM),
            request.get(attribute::NONCE),
        ) else {
            return Err(UdpRefusal::BadRequest);
        };
        if !self.common.nonces.is_fresh(nonce, tuple.client, now.uptime_s) {
            return Err(UdpRefusal::StaleNonce);
        }
        let allocation = known.and_then(|id| self.allocation(id));
        let signer = match allocation.filter(|allocation| allocation.made.username == username) {
            Some(Allocation { made: Made { owner, key, .. }, .. }) => {
                Signer { username: username.to_owned(), owner: owner.clone(), key: key.clone() }
            }
            None => {
                let user = self.common.credentials.user(username, now.unix_s);
                let user = user.ok_or(UdpRefusal::Unauthorized)?;
                let key = Key::long_term(username, &self.common.config.realm, &user.password);
                let RelayUser { name, account, .. } = user;
                Signer { username: username.to_owned(), owner: Owner { name, account }, key }
            }
        };
        if realm == self.common.config.realm && request.verify(&signer.key) {
            Ok(signer)
        } else {
            Err(UdpRefusal::Unauthorized)
        }
    }

    /// A refusal that nobody can sign, with what the next try needs.
    fn challenge(&self, now: Now, tuple: Tuple, request: &Stun<'_>, why: UdpRefusal) -> Vec<u8> {
        self.counters.add(Count::Refused(why), 1);
        let mut out = Writer::new(request.kind() + kind::ERROR, request.transaction());
        out = out.put_error(why.code());
        if why != UdpRefusal::BadRequest {
            let nonce = self.common.nonces.mint(tuple.client, now.uptime_s);
            out = out
                .put(attribute::REALM, self.common.config.realm.as_bytes())
                .put(attribute::NONCE, nonce.as_bytes());
        }
        finish(out, request)
    }

    fn refuse(&self, request: &Stun<'_>, refused: &Refused) -> Writer {
        let why = match refused {
            Refused::Plain(why) => *why,
            Refused::Unknown(_) => UdpRefusal::UnknownAttributes,
        };
        self.counters.add(Count::Refused(why), 1);
        let out =
            Writer::new(request.kind() + kind::ERROR, request.transaction()).put_error(why.code());
        match refused {
            Refused::Plain(_) => out,
            Refused::Unknown(kinds) => out.put_unknown(kinds),
        }
    }
}

/// With FINGERPRINT if the request has one: it may be needed to tell STUN from what else is on that port.
fn finish(out: Writer, request: &Stun<'_>) -> Vec<u8> {
    if request.has_fingerprint() { out.finish_with_fingerprint() } else { out.finish() }
}
