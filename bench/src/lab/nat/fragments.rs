//! Later fragments follow their first: they carry no ports, so the first one's way is remembered.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use super::Reason;
use crate::lab::packet::Flow;

/// Datagrams under way at once; the oldest is forgotten.
const DATAGRAMS_MAX: usize = 256;

/// Longest wait for a datagram's last fragment: Linux's `ipfrag_time`.
const LIFETIME: Duration = Duration::from_secs(30);

/// The direction of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

#[derive(Clone, Copy, Debug)]
struct Datagram {
    way: Way,
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    first_at: Duration,
    rewritten: IpAddr,
}

/// The datagrams whose first fragment was forwarded.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    datagrams: VecDeque<Datagram>,
}

impl Fragments {
    /// The first fragment was forwarded; its source (out) or destination (in) became `rewritten`.
    pub(super) fn remember(
        &mut self,
        now: Duration,
        way: Way,
        flow: &Flow,
        id: u32,
        rewritten: IpAddr,
    ) {
        if self.datagrams.len() >= DATAGRAMS_MAX {
            self.datagrams.pop_front();
        }
        self.datagrams.push_back(Datagram {
            way,
            source: flow.source.ip(),
            destination: flow.destination.ip(),
            id,
            first_at: now,
            rewritten,
        });
    }

    /// What the address of a later fragment becomes.
    pub(super) fn find(
        &self,
        now: Duration,
        way: Way,
        flow: &Flow,
        id: u32,
    ) -> Result<IpAddr, Reason> {
        let matching = |datagram: &&Datagram| {
            datagram.way == way
                && datagram.id == id
                && datagram.source == flow.source.ip()
                && datagram.destination == flow.destination.ip()
                && now < datagram.first_at + LIFETIME
        };
        let latest = self.datagrams.iter().rev().find(matching);
        latest.map(|datagram| datagram.rewritten).ok_or(Reason::UntrackedFragment)
    }
}
