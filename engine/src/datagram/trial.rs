//! A server whose sockets are only numbers, fed with whatever a fuzzer thinks of.
//!
//! Pure.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::UdpConfig;
use super::allocation::Tuple;
use super::binding::Site;
use super::credentials::{RelayCredentials, RelayUser};
use super::forward::FromClient;
use super::nonce::Nonces;
use super::peers::Peers;
use super::server::{Common, Now, Opened, RelaySockets, Server, Wish};
use super::shared::{Limits, Shared};
use super::wire::{Key, Writer, attribute, kind};

/// One client at one server.
pub struct Trial {
    server: Server,
    sockets: Numbers,
    tuple: Tuple,
    now: Now,
}

#[derive(Default)]
struct Numbers(usize);

struct Anybody;

const NONCE_KEY: [u8; 32] = [0; 32];
const TRANSACTION: [u8; 16] = [0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

impl RelaySockets for Numbers {
    fn open(&mut self, wish: &Wish) -> Option<Opened> {
        self.0 += 1;
        assert!(self.0 == 1, "one client has one allocation");
        Some(Opened {
            id: 0,
            bound: SocketAddr::new(HOST, 50_000),
            token: wish.reserve.then_some([1; 8]),
        })
    }

    fn close(&mut self, id: usize) {
        assert!(id == 0 && self.0 == 1, "closed what was not open");
        self.0 = 0;
    }
}

impl RelayCredentials for Anybody {
    fn user(&self, username: &str, _unix_now: u64) -> Option<RelayUser> {
        Some(RelayUser { password: "p".into(), name: username.into(), account: username.into() })
    }
}

impl Trial {
    /// A client without allocation.
    #[must_use]
    pub fn new(started: Instant) -> Self {
        let config = UdpConfig { answers_burst: 1_000_000, ..UdpConfig::default() };
        let common = Arc::new(Common {
            sites: [Some(SocketAddr::new(HOST, 443)), None, None, None],
            nonces: Nonces::new(&NONCE_KEY, 60),
            credentials: Arc::new(Anybody),
            shared: Shared::new(Limits { total: 1, account: 1, name: 1 }),
            config,
        });
        let peers = Peers::new(vec![HOST], Vec::new());
        let server = Server::new(common, Arc::default(), peers, started);
        let client = SocketAddr::from(([192, 0, 2, 1], 4000));
        let now = Now { instant: started, unix_s: 0, uptime_s: 0 };
        Self { server, sockets: Numbers::default(), tuple: Tuple { client, reached: HOST }, now }
    }

    /// Takes a datagram as the client's; the reply, if there is one.
    ///
    /// # Panics
    /// If the server breaks a promise.
    pub fn datagram(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        match self.server.sort(self.now.instant, &self.tuple, bytes) {
            FromClient::Data(to) => {
                assert!(to.start + to.length <= bytes.len() && self.sockets.0 == 1);
                assert!(to.peer.ip() != HOST || to.peer.port() == 50_000, "the host is no peer");
                let back = self.server.route(self.now.instant, to.id, to.peer);
                if let Ok(back) = back {
                    back.head(to.length, 1);
                }
                None
            }
            FromClient::Dropped(_) => None,
            FromClient::Control => {
                let (now, tuple) = (self.now, self.tuple);
                let reply =
                    self.server.control(now, Site::PRIMARY, tuple, bytes, &mut self.sockets);
                reply.map(|(reply, _)| reply)
            }
        }
    }

    /// Signs a request of type `kind` with these attributes, as bytes, by a user that the server knows, and takes it.
    pub fn signed(&mut self, kind: u16, attributes: &[u8]) -> Option<Vec<u8>> {
        let nonce = Nonces::new(&NONCE_KEY, 60).mint(self.tuple.client, 0);
        let key = Key::long_term("u", "switchback", "p");
        let message = Writer::new(kind, TRANSACTION)
            .put(attribute::USERNAME, b"u")
            .put(attribute::REALM, b"switchback")
            .put(attribute::NONCE, nonce.as_bytes())
            .put_raw(attributes)
            .sign(&key);
        self.datagram(&message.finish())
    }

    /// Makes an allocation with a permission and a channel, unless there is one.
    pub fn allocate(&mut self) {
        let peer = [0, 1, 0x2e, 0xb2, 0xe7, 0x21, 0x92, 0x43];
        let peer = [&attribute::XOR_PEER_ADDRESS.to_be_bytes()[..], &[0, 8], &peer].concat();
        let number =
            [&attribute::CHANNEL_NUMBER.to_be_bytes()[..], &[0, 4, 0x40, 0, 0, 0], &peer].concat();
        let transport =
            [&attribute::REQUESTED_TRANSPORT.to_be_bytes()[..], &[0, 4, 17, 0, 0, 0]].concat();
        self.signed(kind::ALLOCATE, &transport);
        self.signed(kind::CHANNEL_BIND, &number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::wire::Stun;

    #[test]
    fn a_trial_reaches_what_lies_behind_the_credentials() {
        let mut trial = Trial::new(Instant::now());
        assert!(trial.signed(kind::ALLOCATE, &[]).is_some());
        assert_eq!(trial.sockets.0, 0, "no transport asked for");
        trial.allocate();
        assert_eq!(trial.sockets.0, 1);
        let data = trial.server.sort(trial.now.instant, &trial.tuple, b"\x40\x00\x00\x01x");
        assert!(matches!(data, FromClient::Data(_)), "{data:?}");
        let reply = trial.signed(kind::REFRESH, &[0, 13, 0, 4, 0, 0, 0, 0]).unwrap();
        assert_eq!(Stun::parse(&reply).unwrap().kind(), kind::REFRESH + kind::SUCCESS);
        assert_eq!(trial.sockets.0, 0);
    }
}
