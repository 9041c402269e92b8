//! Which connection ids are a connection's: those that packets which it could decrypt were addressed to. And how many it could
//! not, although they came by a proved route and for an id of ours.
//!
//! quinn asks for most ids without saying for whom, and its servers prefer such a one to the first, which names its slot.
//! Where several sessions share a route, nothing in a packet tells whose such an id is, but the keys do. So the keys for
//! packets that arrive are wrapped: after a success they tell the [`Wire`] whose id that was.
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use quinn::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey,
    ServerConfig, Session, UnsupportedVersion,
};
use quinn::{ConnectError, ConnectionId, Side};
use quinn_proto::TransportError;
use quinn_proto::transport_parameters::TransportParameters;

use super::demux::CID_LEN;
use super::ignored::count;
use super::paths::{SlotId, number_of};
use super::wire::Wire;

/// The TLS of a client (`dyn ClientConfig`) or a server, whose sessions tell which ids are theirs.
pub(super) struct Witnessed<T: ?Sized> {
    inner: Arc<T>,
    witness: Arc<Witness>,
}

impl<T: ?Sized> Witnessed<T> {
    pub(super) fn new(inner: Arc<T>, wire: Arc<Wire>, slot: SlotId) -> Self {
        let witness = Witness { wire, slot, last: AtomicU64::new(NONE) };
        Self { inner, witness: Arc::new(witness) }
    }
}

struct Witness {
    wire: Arc<Wire>,
    slot: SlotId,
    /// Number of the id seen last, and how often the wire had forgotten whose an id is: all but a few packets of a connection
    /// come to the same.
    last: AtomicU64,
}

/// Before the first. Should it be a real one, that id stays unknown, which costs copies where sessions share a route.
const NONE: u64 = u64::MAX;

impl Witness {
    /// A packet with this header was decrypted. Only short headers have ids of ours, and those alone repeat.
    fn saw(&self, header: &[u8]) {
        if header.first().is_none_or(|first| first & 0x80 != 0) {
            return;
        }
        let Some(id) = header.get(1..=CID_LEN) else { return };
        let seen = u64::from(self.wire.forgotten()) << 32 | u64::from(number_of(id));
        // Read first: a line of memory that is not written stays shared.
        if self.last.load(Ordering::Relaxed) != seen {
            self.last.store(seen, Ordering::Relaxed);
            self.wire.learn(self.slot, id);
        }
    }
}

impl ServerConfig for Witnessed<dyn ServerConfig> {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        self.inner.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.inner.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let inner = Arc::clone(&self.inner).start_session(version, params);
        Box::new(WitnessedSession { inner, witness: Arc::clone(&self.witness) })
    }
}

impl ClientConfig for Witnessed<dyn ClientConfig> {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let inner = Arc::clone(&self.inner).start_session(version, server_name, params)?;
        Ok(Box::new(WitnessedSession { inner, witness: Arc::clone(&self.witness) }))
    }
}

struct WitnessedSession {
    inner: Box<dyn Session>,
    witness: Arc<Witness>,
}

impl WitnessedSession {
    fn wrap(&self, key: Box<dyn PacketKey>) -> Box<dyn PacketKey> {
        Box::new(WitnessedKey { inner: key, witness: Arc::clone(&self.witness) })
    }
}

impl Session for WitnessedSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let Keys { header, packet: KeyPair { local, remote } } = self.inner.write_handshake(buf)?;
        Some(Keys { header, packet: KeyPair { local, remote: self.wrap(remote) } })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let KeyPair { local, remote } = self.inner.next_1rtt_keys()?;
        Some(KeyPair { local, remote: self.wrap(remote) })
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

struct WitnessedKey {
    inner: Box<dyn PacketKey>,
    witness: Arc<Witness>,
}

impl PacketKey for WitnessedKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        self.inner.encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        let opened = self.inner.decrypt(packet, header, payload);
        match &opened {
            Ok(()) => self.witness.saw(header),
            Err(_) => count(&self.witness.wire.counters.quic_undecryptable),
        }
        opened
    }

    fn tag_len(&self) -> usize {
        self.inner.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.inner.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.inner.integrity_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::super::paths::Refusal;
    use super::*;

    #[test]
    fn an_owner_that_was_forgotten_is_learnt_from_its_next_packet() {
        let wire = Arc::new(Wire::new(Vec::new()));
        let slot = wire.paths(|paths| paths.open(None)).unwrap();
        let witness = Witness { wire: Arc::clone(&wire), slot, last: AtomicU64::new(NONE) };
        let id = wire.ids.make(None, 7);
        let header = [&[0x41][..], &id].concat();
        let owner = || match wire.paths(|paths| paths.arrive(&wire.ids, &[], &id)) {
            Err(Refusal::Stranger(owner)) => owner,
            other => panic!("{other:?}"),
        };
        witness.saw(&header);
        assert_eq!(owner(), Some(slot));
        // quinn is offered the number anew, and refuses it as it holds the id still.
        wire.forget_id(7);
        assert_eq!(owner(), None);
        witness.saw(&header);
        assert_eq!(owner(), Some(slot));
    }
}
