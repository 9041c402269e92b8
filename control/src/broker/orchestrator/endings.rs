//! How sessions end before their time, and who is told.
use std::time::Instant;

use super::io::{LinkId, Output};
use super::sessions::Session;
use super::{End, Orchestrator};
use crate::code::Code;
use crate::wire::SessionId;

impl Orchestrator {
    pub(super) fn ended(&mut self, now: Instant, link: LinkId, id: &SessionId, code: Code) {
        let (Some(end), Some(session)) = (self.end_of(link), self.sessions.get(id)) else { return };
        if !self.may_speak_for(link, &end, &session.grant) {
            return;
        }
        match end {
            End::Client => self.tell_agent_of(id, code),
            End::Agent => self.tell_client_of(id, code),
        }
        self.drain_session(now, id, code);
    }

    pub(super) fn kill(&mut self, now: Instant, id: &SessionId, code: Code) {
        self.tell_agent_of(id, code);
        self.tell_client_of(id, code);
        self.cut_session(now, id, code);
    }

    fn kill_where(&mut self, now: Instant, code: Code, choose: impl Fn(&Self, &Session) -> bool) {
        for id in self.sessions.ids_where(|session| choose(self, session)) {
            self.kill(now, &id, code);
        }
    }

    pub(super) fn token_revoked(&mut self, now: Instant, token: &str) {
        self.forget_asked();
        self.token_ended(now, token, Code::TokenRevoked);
    }

    pub(super) fn token_expired(&mut self, now: Instant, token: &str) {
        self.token_ended(now, token, Code::TokenExpired);
    }

    /// The links that know the old sign-in end; the ends make new ones, and their sessions notice nothing.
    pub(super) fn signin_changed(&mut self, now: Instant, token: &str) {
        for link in self.clients_with(token) {
            self.out.push(Output::Close { link });
            self.client_down(now, link);
        }
    }

    fn clients_with(&self, token: &str) -> Vec<LinkId> {
        let of_token = self.clients.iter().filter(|(_, client)| client.token == token);
        of_token.map(|(link, _)| *link).collect()
    }

    fn token_ended(&mut self, now: Instant, token: &str, code: Code) {
        let agents = self.agents.with_token(token);
        self.kill_where(now, code, |this, session| {
            let by_link = session.client.and_then(|link| this.clients.get(&link));
            let served_by = this.agents.by_name(&session.grant.agent);
            session.grant.token == token
                || session.grant.agent_token == token
                || by_link.is_some_and(|client| client.token == token)
                || served_by.is_some_and(|(link, _)| agents.contains(&link))
        });
        for link in agents {
            self.out.push(Output::RefuseAgent { link, fault: code.into() });
            self.out.push(Output::Close { link });
            self.agent_down(now, link);
        }
        for link in self.clients_with(token) {
            let fault = code.into();
            self.out.push(Output::RefuseClient { link, request: 0, fault });
            self.out.push(Output::Close { link });
            self.client_down(now, link);
        }
    }

    pub(super) fn grants_changed(&mut self, now: Instant, user: &str, resources: &[String]) {
        self.forget_asked();
        let allowed =
            |name: &str| resources.iter().any(|granted| granted == "*" || granted == name);
        self.kill_where(now, Code::ResourceNotGranted, |_, session| {
            // Watching is another right than use.
            let uses = session.grant.purpose.shadow().is_none();
            uses && session.grant.user == user && !allowed(&session.grant.resource)
        });
    }

    pub(super) fn tell_end(&mut self, link: LinkId, end: &End, id: &SessionId, code: Code) {
        let session = id.clone();
        self.out.push(match end {
            End::Client => Output::EndAtClient { link, session, code },
            End::Agent => Output::EndAtAgent { link, session, code },
        });
    }

    fn tell_agent_of(&mut self, id: &SessionId, code: Code) {
        let agent = self.sessions.get(id).and_then(|s| self.agents.by_name(&s.grant.agent));
        if let Some((link, _)) = agent {
            self.tell_end(link, &End::Agent, id, code);
        }
    }

    fn tell_client_of(&mut self, id: &SessionId, code: Code) {
        if let Some(link) = self.sessions.get(id).and_then(|session| session.client) {
            self.tell_end(link, &End::Client, id, code);
        }
    }
}
