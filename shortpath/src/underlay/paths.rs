//! Virtual addresses: what quinn takes for the peer's address, and where packets to it really go, in pure code.
//!
//! One *slot* stands for one session and leg kind. Its QUIC connections see one peer address for life, while the route
//! behind it changes as often as NATs and networks do: to quinn a rebinding is nothing, and no congestion state is lost.
//! Packets find their slot by the connection id they are addressed to, so several sessions between the same two sockets stay
//! apart. A packet counts only when it came by a route that connectivity checks have proved for that slot.
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv6Addr, SocketAddr};

use super::demux::{CID_LEN, TOKEN_CID_LEN};
use crate::LegKind;
use crate::path::Route;

/// Names one session and leg kind in this process; below 2^24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SlotId(u32);

/// Slots at once: a process of 16 million sessions has other worries. The number itself stands for no slot.
const SLOTS_MAX: u32 = (1 << 24) - 1;
/// In connection ids that were made without knowing for whom.
const NOBODY: SlotId = SlotId(SLOTS_MAX);
/// Routes admitted per slot; the oldest goes. A session has a few pairs that answer (the finder holds 96 in all).
const ROUTES_MAX: usize = 16;

/// Ids learnt per slot; the oldest goes. A peer uses one at a time, of five that quinn gives it.
const LEARNT_MAX: usize = 8;

/// What a peer presents in its first packet: the broker's token for the session, and the leg kind.
pub(super) type Token = [u8; 17];

/// The token of one leg kind.
pub(super) fn token_of(session: &[u8; 16], kind: LegKind) -> Token {
    let mut token = [0; 17];
    token[..16].copy_from_slice(session);
    token[16] = match kind {
        LegKind::TcpReverse => 0,
        LegKind::UdpDirect => 1,
        LegKind::UdpManaged => 2,
        LegKind::UdpRelay => 3,
    };
    token
}

/// Why a QUIC packet is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its connection id is not one of ours.
    UnknownId,
    /// A first packet with a token nobody announced.
    UnknownToken,
    /// A connection id of ours, by a route that no check has proved: the peer's NAT may have rebound. The slot, if that is
    /// known.
    Stranger(Option<SlotId>),
    /// A first packet with the slot's token, by a route that no check has proved: the check may be a moment behind it.
    Early(SlotId),
}

/// Where a QUIC packet belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Slot(SlotId),
    /// Its connection id was made without knowing for whom: one of those that the route is proved for. quinn finds the
    /// connection by the id, and ignores the packet where the address does not fit.
    AnyAdmitted,
}

#[derive(Debug, Default)]
struct Slot {
    /// Where packets go.
    out: Option<Route>,
    admitted: Vec<Route>,
    /// What makes a peer's first packet belong here.
    token: Option<Token>,
    /// Code point of its packets.
    dscp: Option<u8>,
    /// Numbers of ids that were made for nobody and turned out to be of this slot, oldest first.
    learnt: Vec<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Paths {
    slots: HashMap<SlotId, Slot>,
    routes: HashMap<Route, Vec<SlotId>>,
    tokens: HashMap<Token, SlotId>,
    /// Whose ids are that were made for nobody, by number.
    learnt: HashMap<u32, SlotId>,
    next: u32,
}

impl Paths {
    /// A slot for a leg we dial (`None`), or are dialled for with this token. `None` when there is no room, or another slot
    /// has the token.
    pub(super) fn open(&mut self, token: Option<Token>) -> Option<SlotId> {
        if token.is_some_and(|token| self.tokens.contains_key(&token)) {
            return None;
        }
        let tries = (0..64).map(|step| SlotId((self.next + step) % SLOTS_MAX));
        let id = tries.into_iter().find(|id| !self.slots.contains_key(id))?;
        self.next = (id.0 + 1) % SLOTS_MAX;
        if let Some(token) = token {
            self.tokens.insert(token, id);
        }
        self.slots.insert(id, Slot { token, ..Slot::default() });
        Some(id)
    }

    /// Forgets the slot and its routes.
    pub(super) fn close(&mut self, id: SlotId) {
        let Some(slot) = self.slots.remove(&id) else { return };
        if let Some(token) = slot.token {
            self.tokens.remove(&token);
        }
        slot.admitted.iter().for_each(|route| self.dismiss(id, *route));
        self.learnt.retain(|_, known| *known != id);
    }

    /// A connection of the slot has proved that the id of this number is its own.
    pub(super) fn learn(&mut self, id: SlotId, number: u32) {
        self.forget_id(number);
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.learnt.len() == LEARNT_MAX {
            self.learnt.remove(&slot.learnt.remove(0));
        }
        slot.learnt.push(number);
        self.learnt.insert(number, id);
    }

    /// The number is given to a new id. Returns whether it was known whose it was.
    pub(super) fn forget_id(&mut self, number: u32) -> bool {
        let Some(id) = self.learnt.remove(&number) else { return false };
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.learnt.retain(|known| *known != number);
        }
        true
    }

    /// Lets in QUIC packets that come by this route.
    pub(super) fn admit(&mut self, id: SlotId, route: Route) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.admitted.contains(&route) {
            return;
        }
        let mut dismissed = None;
        if slot.admitted.len() == ROUTES_MAX {
            let oldest = slot.admitted.iter().position(|known| Some(*known) != slot.out);
            dismissed = oldest.map(|at| slot.admitted.remove(at));
        }
        slot.admitted.push(route);
        self.routes.entry(route).or_default().push(id);
        if let Some(route) = dismissed {
            self.dismiss(id, route);
        }
    }

    /// Sends packets of the slot by this route from now on, and lets in what comes back.
    pub(super) fn direct(&mut self, id: SlotId, route: Route) {
        self.admit(id, route);
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.out = Some(route);
        }
    }

    fn dismiss(&mut self, id: SlotId, route: Route) {
        if let Some(slots) = self.routes.get_mut(&route) {
            slots.retain(|slot| *slot != id);
            if slots.is_empty() {
                self.routes.remove(&route);
            }
        }
    }

    /// Where packets of the slot go.
    pub(super) fn route_of(&self, id: SlotId) -> Option<Route> {
        self.slots.get(&id)?.out
    }

    /// Its packets carry this code point.
    pub(super) fn mark(&mut self, id: SlotId, dscp: Option<u8>) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.dscp = dscp;
        }
    }

    /// The code point of the slot's packets, if it has one of its own.
    pub(super) fn mark_of(&self, id: SlotId) -> Option<u8> {
        self.slots.get(&id)?.dscp
    }

    /// The slots that a route is proved for.
    pub(super) fn admitted(&self, route: Route) -> &[SlotId] {
        self.routes.get(&route).map_or(&[], Vec::as_slice)
    }

    /// Where a QUIC packet to connection id `cid` belongs that came by a route proved for `admitted`.
    pub(super) fn arrive(
        &self,
        ids: &ConnectionIds,
        admitted: &[SlotId],
        cid: &[u8],
    ) -> Result<Arrival, Refusal> {
        let id = if cid.len() == TOKEN_CID_LEN {
            let token: Option<Token> = cid.get(..17).and_then(|token| token.try_into().ok());
            *token.and_then(|token| self.tokens.get(&token)).ok_or(Refusal::UnknownToken)?
        } else {
            match ids.slot_of(cid).ok_or(Refusal::UnknownId)? {
                NOBODY => match self.learnt.get(&number_of(cid)) {
                    Some(id) => *id,
                    None if admitted.is_empty() => return Err(Refusal::Stranger(None)),
                    None => return Ok(Arrival::AnyAdmitted),
                },
                id => id,
            }
        };
        if admitted.contains(&id) {
            return Ok(Arrival::Slot(id));
        }
        Err(match self.slots.contains_key(&id) {
            true if cid.len() == TOKEN_CID_LEN => Refusal::Early(id),
            true => Refusal::Stranger(Some(id)),
            false => Refusal::UnknownId,
        })
    }
}

/// Makes and reads the connection ids of this process: slot, number, and a keyed tag that nobody else can make, so that
/// guessing ids tells nothing and starts nothing. Numbers have 32 bits: quinn holds four or five ids of nobody per connection,
/// and asks for another, without end, until it gets one that it does not hold.
#[derive(Debug, Default)]
pub(super) struct ConnectionIds {
    key: RandomState,
}

impl ConnectionIds {
    /// The id of this number for a slot, or for one that is not known.
    pub(super) fn make(&self, slot: Option<SlotId>, number: u32) -> [u8; CID_LEN] {
        let SlotId(slot) = slot.unwrap_or(NOBODY);
        let mut id = [0; CID_LEN];
        id[..3].copy_from_slice(&slot.to_be_bytes()[1..]);
        id[3..7].copy_from_slice(&number.to_be_bytes());
        id[7..].copy_from_slice(&self.tag(slot, number));
        id
    }

    /// The number of an id that was made for nobody.
    pub(super) fn number_of_nobodys(&self, id: &[u8]) -> Option<u32> {
        (self.slot_of(id) == Some(NOBODY)).then(|| number_of(id))
    }

    /// The slot an id was made for.
    pub(super) fn slot_of(&self, id: &[u8]) -> Option<SlotId> {
        let id: &[u8; CID_LEN] = id.try_into().ok()?;
        let slot = u32::from_be_bytes([0, id[0], id[1], id[2]]);
        (self.tag(slot, number_of(id)) == id[7..]).then_some(SlotId(slot))
    }

    fn tag(&self, slot: u32, number: u32) -> [u8; 4] {
        let [a, b, c, d, ..] = self.key.hash_one((slot, number)).to_be_bytes();
        [a, b, c, d]
    }
}

/// The number in an id of [`CID_LEN`] bytes.
pub(super) fn number_of(id: &[u8]) -> u32 {
    id.get(3..7).and_then(|number| number.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// Prefix of virtual addresses: unique local (RFC 4193), never seen outside this process.
const PREFIX: [u16; 6] = [0xfd5b, 0x7377, 0x6263, 0, 0, 0];
/// quinn wants a port that is not 0.
const PORT: u16 = 1;

/// The peer address that quinn sees.
pub(super) fn virtual_address(id: SlotId) -> SocketAddr {
    let [a, b, c, d, e, f] = PREFIX;
    let [hi, lo] = [(id.0 >> 16) as u16, id.0 as u16];
    SocketAddr::new(Ipv6Addr::new(a, b, c, d, e, f, hi, lo).into(), PORT)
}

/// The slot behind an address that quinn sees.
pub(super) fn slot_at(address: SocketAddr) -> Option<SlotId> {
    let SocketAddr::V6(address) = address else { return None };
    let segments = address.ip().segments();
    let [.., hi, lo] = segments;
    (segments.starts_with(&PREFIX)).then(|| SlotId((u32::from(hi) << 16) | u32::from(lo)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::LocalId;

    fn route(port: u16) -> Route {
        Route { local: LocalId(0), remote: SocketAddr::new([192, 0, 2, 1].into(), port) }
    }

    fn first_packet(token: Token) -> Vec<u8> {
        let mut cid = token.to_vec();
        cid.extend([9; 3]);
        cid
    }

    #[test]
    fn addresses_name_slots_and_nothing_else_does() {
        let mut paths = Paths::default();
        for _ in 0..70_000 {
            let id = paths.open(None).unwrap();
            assert_eq!(slot_at(virtual_address(id)), Some(id));
        }
        assert_eq!(slot_at("192.0.2.1:1".parse().unwrap()), None);
        assert_eq!(slot_at("[2001:db8::1]:1".parse().unwrap()), None);
    }

    #[test]
    fn a_packet_needs_a_proved_route_and_an_id_of_ours() {
        let (mut paths, ids) = (Paths::default(), ConnectionIds::default());
        let id = paths.open(None).unwrap();
        let cid = ids.make(Some(id), 7);
        assert_eq!(
            paths.arrive(&ids, paths.admitted(route(1)), &cid),
            Err(Refusal::Stranger(Some(id)))
        );
        paths.direct(id, route(1));
        assert_eq!(paths.arrive(&ids, paths.admitted(route(1)), &cid), Ok(Arrival::Slot(id)));
        assert_eq!(
            paths.arrive(&ids, paths.admitted(route(2)), &cid),
            Err(Refusal::Stranger(Some(id)))
        );
        for at in 0..cid.len() {
            let mut forged = cid;
            forged[at] ^= 1;
            let refused = paths.arrive(&ids, paths.admitted(route(1)), &forged);
            assert_eq!(refused, Err(Refusal::UnknownId));
        }
        paths.close(id);
        assert_eq!(paths.arrive(&ids, &[], &cid), Err(Refusal::UnknownId));
        assert!(paths.admitted(route(1)).is_empty() && paths.routes.is_empty());
    }

    #[test]
    fn a_first_packet_is_known_by_its_token() {
        let (mut paths, ids) = (Paths::default(), ConnectionIds::default());
        let token = token_of(&[3; 16], LegKind::UdpDirect);
        let id = paths.open(Some(token)).unwrap();
        assert!(paths.open(Some(token)).is_none(), "a token names one slot");
        let other = token_of(&[3; 16], LegKind::UdpRelay);
        let early = paths.arrive(&ids, paths.admitted(route(1)), &first_packet(token));
        assert_eq!(early, Err(Refusal::Early(id)), "not before its route is proved");
        paths.admit(id, route(1));
        let arrive = |token| paths.arrive(&ids, paths.admitted(route(1)), &first_packet(token));
        assert_eq!(arrive(token), Ok(Arrival::Slot(id)));
        assert_eq!(arrive(other), Err(Refusal::UnknownToken));
    }

    #[test]
    fn sessions_between_the_same_sockets_stay_apart() {
        let (mut paths, ids) = (Paths::default(), ConnectionIds::default());
        let (one, two) = (paths.open(None).unwrap(), paths.open(None).unwrap());
        paths.direct(one, route(1));
        paths.direct(two, route(1));
        let arrive = |id| paths.arrive(&ids, paths.admitted(route(1)), &ids.make(Some(id), 0));
        assert_eq!(arrive(one), Ok(Arrival::Slot(one)));
        assert_eq!(arrive(two), Ok(Arrival::Slot(two)));
    }

    #[test]
    fn an_id_of_nobody_belongs_to_those_the_route_is_proved_for() {
        let (mut paths, ids) = (Paths::default(), ConnectionIds::default());
        let id = paths.open(None).unwrap();
        let cid = ids.make(None, 3);
        assert_eq!(paths.arrive(&ids, &[], &cid), Err(Refusal::Stranger(None)));
        paths.admit(id, route(1));
        let arrived = paths.arrive(&ids, paths.admitted(route(1)), &cid);
        assert_eq!(arrived, Ok(Arrival::AnyAdmitted));
    }

    #[test]
    fn an_id_of_nobody_is_its_owners_alone_once_that_is_known() {
        let (mut paths, ids) = (Paths::default(), ConnectionIds::default());
        let (one, two) = (paths.open(None).unwrap(), paths.open(None).unwrap());
        paths.admit(one, route(1));
        paths.admit(two, route(1));
        let cid = ids.make(None, 3);
        let number = ids.number_of_nobodys(&cid).unwrap();
        assert_eq!(ids.number_of_nobodys(&ids.make(Some(one), 3)), None);
        paths.learn(two, number);
        let at = |paths: &Paths, port| paths.arrive(&ids, paths.admitted(route(port)), &cid);
        assert_eq!(at(&paths, 1), Ok(Arrival::Slot(two)));
        assert_eq!(at(&paths, 2), Err(Refusal::Stranger(Some(two))), "only its owner looks there");
        // The number comes around, for another connection.
        assert!(paths.forget_id(number) && !paths.forget_id(number));
        assert_eq!(at(&paths, 1), Ok(Arrival::AnyAdmitted));
        (0..1000).for_each(|number| paths.learn(one, number));
        assert_eq!((paths.learnt.len(), paths.slots[&one].learnt.len()), (LEARNT_MAX, LEARNT_MAX));
        paths.close(one);
        assert!(paths.learnt.is_empty());
    }

    #[test]
    fn ids_of_nobody_do_not_run_out() {
        let ids = ConnectionIds::default();
        // As many sessions as an agent may hold, three connections each, and what quinn holds of ids for each of them; from
        // where numbers come around.
        let all = 8192 * 3 * 5;
        let numbers = (0..all).map(|step| (u32::MAX - 1000).wrapping_add(step));
        let made: std::collections::HashSet<_> =
            numbers.map(|number| ids.make(None, number)).collect();
        assert_eq!(made.len(), all as usize);
        assert!(made.iter().all(|id| ids.number_of_nobodys(id).is_some()));
    }

    #[test]
    fn a_thousand_rebindings_keep_the_last_few_routes() {
        let mut paths = Paths::default();
        let id = paths.open(None).unwrap();
        paths.direct(id, route(1));
        (2..1000).for_each(|port| paths.admit(id, route(port)));
        assert_eq!(paths.routes.len(), ROUTES_MAX);
        assert_eq!(paths.route_of(id), Some(route(1)), "the one in use stays");
        assert_eq!(paths.admitted(route(1)), [id]);
        assert_eq!(paths.admitted(route(999)), [id]);
    }
}
