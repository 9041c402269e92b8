//! Packets of peers that came a moment before the check which proves their route. Pure.
//!
//! A peer dials as soon as a signed check of ours has reached it: its answer, its own check and its first QUIC packet leave
//! together, and the network or our own tasks may turn their order. Dropped, the packet would come again only after a
//! timeout of three round trips nobody has measured yet. After an address has changed the same holds for all that the peer
//! sends. Only packets that name a session, by its token or a connection id, are kept, and none is let in before its route
//! is proved.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::paths::SlotId;
use crate::path::Route;

/// How long a packet waits: below quinn's first timeout, after which another one comes.
const KEPT: Duration = Duration::from_millis(300);
/// Packets kept of one slot: a client's first flight twice, or what a peer in doubt sends of interactive channels.
const SLOT_MAX: usize = 16;
/// Packets kept in all.
const ALL_MAX: usize = 128;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Early {
    packets: VecDeque<(Instant, SlotId, Route, Bytes)>,
}

impl Early {
    /// Keeps a packet, if there is room.
    pub(super) fn keep(&mut self, now: Instant, slot: SlotId, route: Route, datagram: &[u8]) {
        self.forget(now);
        let of_slot = self.packets.iter().filter(|(_, other, ..)| *other == slot).count();
        if of_slot < SLOT_MAX && self.packets.len() < ALL_MAX {
            self.packets.push_back((now, slot, route, Bytes::copy_from_slice(datagram)));
        }
    }

    /// The packets that came by a route which is proved now, in order.
    pub(super) fn take(&mut self, now: Instant, slot: SlotId, route: Route) -> Vec<Bytes> {
        self.forget(now);
        let mut taken = Vec::new();
        self.packets.retain(|(_, of, by, packet)| {
            let proved = (*of, *by) == (slot, route);
            if proved {
                taken.push(packet.clone());
            }
            !proved
        });
        taken
    }

    fn forget(&mut self, now: Instant) {
        while self.packets.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) > KEPT)
        {
            self.packets.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::LocalId;
    use crate::underlay::paths::Paths;

    fn slots(count: usize) -> Vec<SlotId> {
        let mut paths = Paths::default();
        (0..count).map(|_| paths.open(None).unwrap()).collect()
    }

    fn route(port: u16) -> Route {
        Route { local: LocalId(0), remote: ([192, 0, 2, 1], port).into() }
    }

    #[test]
    fn a_first_packet_waits_for_the_proof_of_its_route_and_only_so_long() {
        let (slots, now, mut early) = (slots(2), Instant::now(), Early::default());
        early.keep(now, slots[0], route(1), b"one");
        early.keep(now, slots[0], route(2), b"two");
        assert!(early.take(now, slots[1], route(1)).is_empty());
        assert_eq!(early.take(now, slots[0], route(1)), [&b"one"[..]]);
        assert!(early.take(now, slots[0], route(1)).is_empty());
        assert!(early.take(now + KEPT * 2, slots[0], route(2)).is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded_for_each_session_and_in_all() {
        let (slots, now, mut early) = (slots(ALL_MAX), Instant::now(), Early::default());
        for slot in &slots {
            (0..100).for_each(|port| early.keep(now, *slot, route(port), b"x"));
        }
        assert_eq!(early.packets.len(), ALL_MAX);
        assert_eq!(
            early.packets.iter().filter(|(_, slot, ..)| *slot == slots[0]).count(),
            SLOT_MAX
        );
    }
}
