//! What policies let a session do: judged when it is granted, again when it is shown, and again while it lives.
use std::net::IpAddr;
use std::time::Instant;

use switchback_engine::LegSide;

use super::io::Notice;
use super::sessions::Session;
use super::{End, LinkId, Orchestrator};
use crate::broker::policy::Rights;
use crate::broker::seal::Grant;
use crate::code::{Code, Fault};
use crate::policy::Obligations;
use crate::wire::{SessionId, TransportPolicy, UdpUse};

impl Orchestrator {
    /// Grants of live sessions that `choose` chooses, and where their clients are as far as their links tell.
    pub(crate) fn live(&self, choose: impl Fn(&Grant) -> bool) -> Vec<(Grant, Option<IpAddr>)> {
        let chosen = self.sessions.iter().filter(|session| choose(&session.grant));
        chosen.map(|session| (session.grant.clone(), self.client_address(session))).collect()
    }

    /// Where the client of a session is, as far as its link tells.
    pub(crate) fn whereabouts(&self, id: &SessionId) -> Option<IpAddr> {
        self.client_address(self.sessions.get(id)?)
    }

    fn client_address(&self, session: &Session) -> Option<IpAddr> {
        let client = self.clients.get(&session.client?)?;
        Some(client.address?.client.ip())
    }

    /// The grant of a live session as its policies bind it, with where its client is now.
    pub(super) fn bound(&mut self, shown: &Grant) -> Result<Grant, Fault> {
        let Some(session) = self.sessions.get_mut(&shown.session) else {
            let code = self.sessions.tombstone(&shown.session).unwrap_or(Code::SessionLimit);
            return Err(code.because("the session has ended"));
        };
        session.grant.source = shown.source.or(session.grant.source);
        Ok(session.grant.clone())
    }

    /// An end that a session belongs to showed that the session may not go on: where its client is now, say.
    pub(super) fn condemned(&mut self, now: Instant, link: LinkId, grant: &Grant, code: Code) {
        let end = self.end_of(link);
        if end.is_some_and(|end| self.may_speak_for(link, &end, grant))
            && self.sessions.get(&grant.session).is_some()
        {
            self.kill(now, &grant.session, code);
        }
    }

    /// A live session was judged anew.
    pub(super) fn judged(&mut self, now: Instant, id: &SessionId, verdict: Result<Rights, Code>) {
        let rights = match verdict {
            Ok(rights) => rights,
            Err(code) => {
                if self.sessions.get(id).is_some() {
                    self.kill(now, id, code);
                }
                return;
            }
        };
        let Some(session) = self.sessions.get_mut(id) else { return };
        let (before, ends) = (session.grant.rights, rights.ends);
        let obligations = kept(before.obligations, rights.obligations);
        session.grant.rights = Rights { obligations, ends };
        let grant = session.grant.clone();
        if obligations == before.obligations {
            return;
        }
        let offered = self.offered(&grant);
        if offered.is_some_and(|offered| obligations.narrow(offered).is_none()) {
            return self.kill(now, id, Code::PolicyConflict);
        }
        for end in [LegSide::Client, LegSide::Agent] {
            self.tell_policy(&grant, end);
        }
    }

    /// An end shows a session: it may not know yet what policy says of it. An agent is also told that nothing binds the
    /// session, as it may have missed that a rate was lifted; a client holds to what is never given back.
    pub(super) fn tell_policy_again(&mut self, end: &End, id: &SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        let grant = session.grant.clone();
        match end {
            End::Agent => self.tell_policy(&grant, LegSide::Agent),
            End::Client if grant.rights.obligations.is_none() => {}
            End::Client => self.tell_policy(&grant, LegSide::Client),
        }
    }

    fn tell_policy(&mut self, grant: &Grant, end: LegSide) {
        let Some(offered) = self.offered(grant) else { return };
        let transport = narrowed(offered, &grant.rights);
        let rate_bits = grant.rights.obligations.rate_bits;
        self.tell(grant, end, Notice::Policy { transport, rate_bits });
    }

    /// What may carry a session now, while its agent is connected.
    pub(crate) fn transport_now(&self, id: &SessionId) -> Option<TransportPolicy> {
        let grant = &self.sessions.get(id)?.grant;
        self.offered(grant).map(|offered| narrowed(offered, &grant.rights))
    }

    /// What the resource's agent allows, while it is connected.
    fn offered(&self, grant: &Grant) -> Option<TransportPolicy> {
        self.transport(&grant.agent, &grant.resource)
    }
}

/// What may carry a session. Demands that exclude each other let nothing carry it, and it was refused or ended for that; until
/// that is done it has the narrowest way that there is.
pub(super) fn narrowed(offered: TransportPolicy, rights: &Rights) -> TransportPolicy {
    let nothing = TransportPolicy { udp: UdpUse::Off, ..offered };
    rights.obligations.narrow(offered).unwrap_or(nothing)
}

/// Ends of a live session narrow and never widen what carries it: what once was taken away comes back with the next session.
const fn kept(before: Obligations, mut now: Obligations) -> Obligations {
    now.no_udp |= before.no_udp;
    now.relay_only |= before.relay_only;
    now.direct_required |= before.direct_required;
    now
}
