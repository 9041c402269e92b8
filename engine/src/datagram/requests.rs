//! What a signed request does: allocations, permissions and channels come, are renewed and go (RFC 8656 sections 7 to 12).
//!
//! Pure.
use std::net::SocketAddr;
use std::time::Duration;

use super::RelayAddress;
use super::allocation::{Allocation, Made, Tuple, Unbound};
use super::counts::{Count, UdpRefusal};
use super::peers::Standing;
use super::server::{Now, Outcome, Refused, RelaySockets, Server, Signer, Wish};
use super::shared::Over;
use super::wire::{CHANNELS, Stun, Writer, attribute, decode_address, kind};

/// The IP protocol number that REQUESTED-TRANSPORT must name.
const UDP: u8 = 17;

impl Server {
    pub(super) fn authenticated(
        &mut self,
        now: Now,
        tuple: Tuple,
        known: Option<usize>,
        signer: Signer,
        request: &Stun<'_>,
        sockets: &mut dyn RelaySockets,
    ) -> Outcome {
        let success = Writer::new(request.kind() + kind::SUCCESS, request.transaction());
        let Some(id) = known else {
            return match request.kind() {
                kind::ALLOCATE => self.allocate(now, tuple, signer, request, sockets),
                _ => Err(UdpRefusal::AllocationMismatch.into()),
            };
        };
        let allocation = self.allocation(id).ok_or(UdpRefusal::AllocationMismatch)?;
        if allocation.made.username != signer.username {
            return Err(UdpRefusal::WrongCredentials.into());
        }
        match request.kind() {
            kind::ALLOCATE if allocation.made.transaction == request.transaction() => {
                Ok(describe(allocation, success))
            }
            kind::REFRESH => self.refresh(now, id, request, success, sockets),
            kind::CREATE_PERMISSION => self.create_permission(now, id, request, success),
            kind::CHANNEL_BIND => self.channel_bind(now, id, request, success),
            _ => Err(UdpRefusal::AllocationMismatch.into()),
        }
    }

    /// RFC 8656 section 7.2.
    fn allocate(
        &mut self,
        now: Now,
        tuple: Tuple,
        signer: Signer,
        request: &Stun<'_>,
        sockets: &mut dyn RelaySockets,
    ) -> Outcome {
        let wish = self.wish(tuple, request)?;
        self.common.shared.enter(&signer.owner).map_err(|over| match over {
            Over::User => UdpRefusal::QuotaReached,
            Over::Total => UdpRefusal::InsufficientCapacity,
            Over::Revoked => UdpRefusal::Revoked,
        })?;
        // An allocation that is over may not have been swept yet.
        if let Some(id) = self.by_client.get(&tuple).copied() {
            self.free(id, sockets);
        }
        let Some(opened) = sockets.open(&wish) else {
            self.common.shared.leave(&signer.owner);
            return Err(UdpRefusal::InsufficientCapacity.into());
        };
        let (bind, relayed) = (opened.bound.ip(), self.public_side(opened.bound));
        let allocation = Allocation::new(
            now.instant,
            Made {
                tuple,
                username: signer.username,
                owner: signer.owner,
                key: signer.key,
                transaction: request.transaction(),
                bind,
                relayed,
                token: opened.token,
                lifetime: self.lifetime(request),
            },
        );
        let success = Writer::new(request.kind() + kind::SUCCESS, request.transaction());
        let reply = describe(&allocation, success);
        self.common.shared.set_relayed(bind, relayed, true);
        self.by_client.insert(tuple, opened.id);
        self.allocations.resize_with(self.allocations.len().max(opened.id + 1), || None);
        self.allocations[opened.id] = Some(Box::new(allocation));
        self.counters.add(Count::Allocated, 1);
        Ok(reply)
    }

    fn wish(&self, tuple: Tuple, request: &Stun<'_>) -> Result<Wish, UdpRefusal> {
        match request.word(attribute::REQUESTED_TRANSPORT) {
            None => return Err(UdpRefusal::BadRequest),
            Some([UDP, ..]) => {}
            Some(_) => return Err(UdpRefusal::TransportNotSupported),
        }
        let even = request
            .get(attribute::EVEN_PORT)
            .map(|value| value.first().is_some_and(|bits| bits >> 7 == 1));
        let token = request.get(attribute::RESERVATION_TOKEN);
        let token =
            token.map(|token| <[u8; 8]>::try_from(token).map_err(|_| UdpRefusal::BadRequest));
        let token = token.transpose()?;
        let family = request.get(attribute::REQUESTED_ADDRESS_FAMILY);
        if token.is_some() && (even.is_some() || family.is_some()) {
            return Err(UdpRefusal::BadRequest);
        }
        let address = match family {
            None | Some([1, ..]) => self.relay_address(tuple, true),
            Some([2, ..]) => self.relay_address(tuple, false),
            Some(_) => None,
        };
        let address = address.ok_or(UdpRefusal::FamilyNotSupported)?;
        Ok(Wish {
            bind: address.bind,
            even: even.is_some(),
            reserve: even.unwrap_or(false),
            token,
            whole: request.get(attribute::DONT_FRAGMENT).is_some(),
        })
    }

    fn relay_address(&self, tuple: Tuple, v4: bool) -> Option<RelayAddress> {
        let reached = tuple.reached.to_canonical();
        let own =
            (!reached.is_unspecified()).then_some(RelayAddress { bind: reached, public: reached });
        let configured = self.common.config.relay_addresses.iter().copied();
        configured.chain(own).find(|address| address.bind.is_ipv4() == v4)
    }

    /// What peers reach a socket by.
    fn public_side(&self, bound: SocketAddr) -> SocketAddr {
        let known = &self.common.config.relay_addresses;
        let public = known.iter().find(|it| it.bind == bound.ip()).map(|it| it.public);
        SocketAddr::new(public.unwrap_or(bound.ip()), bound.port())
    }

    /// RFC 8656 section 7.2: between the default and the maximum.
    fn lifetime(&self, request: &Stun<'_>) -> Duration {
        let config = &self.common.config;
        let asked = request.word(attribute::LIFETIME).map_or(0, u32::from_be_bytes);
        Duration::from_secs(asked.into())
            .clamp(config.lifetime_default, config.lifetime_max.max(config.lifetime_default))
    }

    fn refresh(
        &mut self,
        now: Now,
        id: usize,
        request: &Stun<'_>,
        success: Writer,
        sockets: &mut dyn RelaySockets,
    ) -> Outcome {
        if let Some(family) = request.get(attribute::REQUESTED_ADDRESS_FAMILY) {
            let v4 = self.allocation(id).is_some_and(Allocation::is_v4);
            if family.first() != Some(if v4 { &1 } else { &2 }) {
                return Err(UdpRefusal::PeerFamilyMismatch.into());
            }
        }
        if request.word(attribute::LIFETIME) == Some([0; 4]) {
            self.free(id, sockets);
            return Ok(success.put(attribute::LIFETIME, &[0; 4]));
        }
        let lifetime = self.lifetime(request);
        if let Some(Some(allocation)) = self.allocations.get_mut(id) {
            allocation.expires = now.instant + lifetime;
        }
        Ok(put_lifetime(success, lifetime))
    }

    /// RFC 8656 section 10.2: a request that cannot be satisfied is refused as a whole, so all addresses or none.
    fn create_permission(
        &mut self,
        now: Now,
        id: usize,
        request: &Stun<'_>,
        success: Writer,
    ) -> Outcome {
        let mut wanted = Vec::new();
        for (kind, value) in request.attributes() {
            if kind == attribute::XOR_PEER_ADDRESS {
                let peer =
                    decode_address(value, &request.transaction()).ok_or(UdpRefusal::BadRequest)?;
                wanted.push((peer.ip(), self.standing(id, peer)?));
            }
        }
        if wanted.is_empty() {
            return Err(UdpRefusal::BadRequest.into());
        }
        let Some(Some(allocation)) = self.allocations.get_mut(id) else {
            return Err(UdpRefusal::AllocationMismatch.into());
        };
        allocation.permit(now.instant, &wanted).map_err(refusal)?;
        Ok(success)
    }

    /// RFC 8656 section 12.2.
    fn channel_bind(
        &mut self,
        now: Now,
        id: usize,
        request: &Stun<'_>,
        success: Writer,
    ) -> Outcome {
        let number =
            request.word(attribute::CHANNEL_NUMBER).map(|[a, b, ..]| u16::from_be_bytes([a, b]));
        let peer = request.get(attribute::XOR_PEER_ADDRESS);
        let peer = peer.and_then(|value| decode_address(value, &request.transaction()));
        let (Some(number), Some(peer)) = (number.filter(|number| CHANNELS.contains(number)), peer)
        else {
            return Err(UdpRefusal::BadRequest.into());
        };
        let standing = self.standing(id, peer)?;
        if !self.port_is_open(standing, peer) {
            return Err(UdpRefusal::ForbiddenPeer.into());
        }
        let Some(Some(allocation)) = self.allocations.get_mut(id) else {
            return Err(UdpRefusal::AllocationMismatch.into());
        };
        allocation.bind(now.instant, number, peer, standing).map_err(refusal)?;
        Ok(success)
    }

    fn standing(&self, id: usize, peer: SocketAddr) -> Result<Standing, UdpRefusal> {
        let v4 = self.allocation(id).is_some_and(Allocation::is_v4);
        if peer.is_ipv4() != v4 {
            return Err(UdpRefusal::PeerFamilyMismatch);
        }
        match self.peers.standing(peer.ip()) {
            Standing::Forbidden => Err(UdpRefusal::ForbiddenPeer),
            standing => Ok(standing),
        }
    }

    pub(super) fn free(&mut self, id: usize, sockets: &mut dyn RelaySockets) {
        let Some(allocation) = self.allocations.get_mut(id).and_then(Option::take) else { return };
        let Made { tuple, bind, relayed, owner, .. } = &allocation.made;
        self.by_client.remove(tuple);
        self.common.shared.set_relayed(*bind, *relayed, false);
        self.common.shared.leave(owner);
        self.counters.add(Count::Freed, 1);
        sockets.close(id);
    }
}

fn refusal(unbound: Unbound) -> Refused {
    match unbound {
        Unbound::Conflict => UdpRefusal::BadRequest.into(),
        Unbound::Full => UdpRefusal::InsufficientCapacity.into(),
    }
}

/// The success response of an Allocate request.
fn describe(allocation: &Allocation, out: Writer) -> Writer {
    let Made { tuple: Tuple { client, .. }, relayed, lifetime, token, .. } = allocation.made;
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let out = out.put_xor(attribute::XOR_RELAYED_ADDRESS, relayed);
    let out = put_lifetime(out, lifetime);
    let out = out.put_xor(attribute::XOR_MAPPED_ADDRESS, client);
    match token {
        Some(token) => out.put(attribute::RESERVATION_TOKEN, &token),
        None => out,
    }
}

fn put_lifetime(out: Writer, lifetime: Duration) -> Writer {
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    out.put(attribute::LIFETIME, &seconds.to_be_bytes())
}
