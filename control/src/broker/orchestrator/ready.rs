//! Sessions that clients hold ready, so that a later use starts with its first application byte.
//!
//! A ready session is granted, offered and carried like any other, so that whatever ends a session (a right withdrawn, an
//! agent or a link that goes) ends it as well, at once. But it is shown nowhere, and counts against limits of its own, until
//! its client says that it takes it, or its agent that the client opened a channel: one that keeps its use to itself does
//! not escape the books.
use std::time::{Duration, Instant};

use super::io::{LinkId, Output};
use super::pool::has_room;
use super::sessions::Session;
use super::{End, Orchestrator};
use crate::broker::seal::Grant;
use crate::code::{Code, Fault};
use crate::wire::SessionId;

/// Ready sessions of one user over all links: several clients with a handful each.
const PER_USER_MAX: usize = 64;
/// Part of all sessions that may be held ready besides those in use: they take no more than an eighth of the gateway's pairs.
const TOTAL_PART: usize = 8;
/// A ready session older than this is ended. Clients give theirs up after ten minutes without use.
const AGE_MAX: Duration = Duration::from_secs(15 * 60);

impl Orchestrator {
    pub(super) fn check_ready_room(&self, user: &str) -> Result<(), Fault> {
        if self.sessions.ready() >= self.limits.total_max.div_ceil(TOTAL_PART) {
            return Err(Code::SessionLimit.because("the broker holds as many ready as it may"));
        }
        if self.sessions.ready_of_user(user) >= PER_USER_MAX {
            return Err(Code::SessionLimit.because("you hold as many ready as you may"));
        }
        Ok(())
    }

    /// An end says that a ready session is used.
    pub(super) fn begun(&mut self, now: Instant, link: LinkId, id: &SessionId) {
        let Some(session) = self.sessions.get(id).filter(|session| session.ready) else { return };
        let grant = session.grant.clone();
        let Some(end) = self.end_of(link).filter(|end| self.may_speak_for(link, end, &grant))
        else {
            return;
        };
        match self.check_room(&grant.user).and_then(|()| self.check_place(&grant)) {
            Ok(()) => {
                self.sessions.begin(id, now);
                let agent = self.agents.by_name(&grant.agent).map(|(agent, _)| agent);
                if let (End::Client, Some(link)) = (end, agent) {
                    self.out.push(Output::BegunAtAgent { link, session: id.clone() });
                }
                self.out.push(Output::Began { grant: Box::new(grant) });
                self.life_began(now, id);
            }
            Err(fault) => self.kill(now, id, fault.code),
        }
    }

    /// Others may have begun since it was made ready.
    fn check_place(&self, grant: &Grant) -> Result<(), Fault> {
        let (agent, resource) = (&grant.agent, &grant.resource);
        let found = self.agents.by_name(agent);
        let places = found.and_then(|(_, agent)| agent.service(resource)?.pool.sessions_max);
        let taken = self.sessions.of_service(agent, resource);
        if grant.purpose.is_default() && !has_room((taken, places)) {
            return Err(Code::PoolFull.into());
        }
        Ok(())
    }

    /// Without its client's link a ready session will not be used.
    pub(super) fn end_ready_without_client(&mut self, now: Instant) {
        self.end_ready(now, Code::SessionClosed, |session| session.client.is_none());
    }

    /// Without its agent's link the use of a ready session would go untold.
    pub(super) fn end_ready_of_agent(&mut self, now: Instant, agent: &str) {
        self.end_ready(now, Code::AgentOffline, |session| session.grant.agent == agent);
    }

    pub(super) fn end_old_ready(&mut self, now: Instant) {
        self.end_ready(now, Code::SessionClosed, |session| session.age(now) >= AGE_MAX);
    }

    fn end_ready(&mut self, now: Instant, code: Code, choose: impl Fn(&Session) -> bool) {
        if self.sessions.ready() == 0 {
            return;
        }
        for id in self.sessions.ids_where(|session| session.ready && choose(session)) {
            self.kill(now, &id, code);
        }
    }
}

#[cfg(test)]
#[path = "ready_tests.rs"]
mod tests;
