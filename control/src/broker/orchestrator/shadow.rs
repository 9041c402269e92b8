//! Watching sessions: whose consent is awaited, who watches whom, who is told; and pauses and messages. Pure.
//!
//! A wish to watch comes in after the broker has judged the watcher's right. If the session's user is to be asked, it waits
//! here for the answer, 30 s at most; then it is granted or refused like any other. A watch whose session is gone ends.
use std::collections::HashMap;
use std::time::{Duration, Instant};

use switchback_engine::LegSide;

use super::Orchestrator;
use super::agents::Agent;
use super::io::{LinkId, Notice, Output, Wish};
use super::life::Lineage;
use super::pool;
use super::sessions::{Session, Snapshot};
use crate::api::{SessionState, Watcher};
use crate::broker::shadow::{Audit, Deed};
use crate::code::{Code, Fault};
use crate::shadow::WATCHERS_MAX;
use crate::wire::{SessionId, SessionNotice};

/// How long a user has for an answer; then it is no.
pub(crate) const CONSENT_WITHIN: Duration = Duration::from_secs(30);
/// Questions that wait for one session's user: nobody is to be worn down.
const ASKED_PER_SESSION: usize = 2;
/// Questions that wait in all.
const ASKED_MAX: usize = 1024;
/// A watch may outlive its session by this: the last bytes are on their way, and after the broker's restart the watched one
/// may be told of later.
const ORPHAN_MAX: Duration = Duration::from_secs(10);

/// A wish that waits for consent.
#[derive(Debug)]
struct Asked {
    wish: Wish,
    asker: LinkId,
    by: String,
    user: LinkId,
    until: Instant,
}

/// What the orchestrator remembers for this.
#[derive(Debug, Default)]
pub(super) struct Shadows {
    asked: HashMap<u64, Asked>,
    next: u64,
    pub(super) lineage: Lineage,
}

impl Orchestrator {
    /// Asks the user of the session to be watched, if that is due; the wish, if it can be granted now.
    pub(super) fn consent_first(
        &mut self,
        now: Instant,
        asker: LinkId,
        wish: Wish,
    ) -> Option<Wish> {
        let Some(shadow) = wish.purpose.shadow().filter(|_| wish.consent).cloned() else {
            return Some(wish);
        };
        let refuse = |this: &mut Self, fault: Fault| {
            this.out.push(Output::RefuseClient { link: asker, request: wish.request, fault });
            None
        };
        let Some(client) = self.clients.get(&asker) else {
            return refuse(self, Code::TokenInvalid.into());
        };
        let by = client.user.clone();
        let Some(watched) = self.sessions.get(&shadow.session) else {
            return refuse(self, Code::SessionUnknown.into());
        };
        let Some(user) = watched.client else {
            let why = "the session's user cannot be asked now";
            return refuse(self, Code::ConsentRefused.because(why));
        };
        let of_session = |asked: &&Asked| asked.watched() == Some(&shadow.session);
        let waiting = self.shadows.asked.values().filter(of_session).count();
        if waiting >= ASKED_PER_SESSION || self.shadows.asked.len() >= ASKED_MAX {
            let why = "the session's user is being asked already";
            return refuse(self, Code::RateLimited.because(why));
        }
        let id = self.shadows.next;
        self.shadows.next += 1;
        let notice = SessionNotice::ConsentAsked {
            session: shadow.session.clone(),
            id,
            by: by.clone(),
            control: shadow.control,
        };
        self.out.push(Output::Notify { link: user, notice });
        self.audit(Deed::ConsentAsked, &shadow.session, &wish.session, &by, shadow.control);
        let until = now + CONSENT_WITHIN;
        self.shadows.asked.insert(id, Asked { wish, asker, by, user, until });
        None
    }

    /// The user's answer.
    pub(super) fn consent(&mut self, now: Instant, link: LinkId, id: u64, yes: bool) {
        // Another's answer leaves the question open.
        if self.shadows.asked.get(&id).is_none_or(|asked| asked.user != link) {
            return;
        }
        let Some(asked) = self.shadows.asked.remove(&id) else { return };
        if !yes {
            return self.decline(asked, Deed::ConsentRefused, Code::ConsentRefused);
        }
        self.audit_asked(&asked, Deed::ConsentGiven);
        let wish = Wish { consent: false, ..asked.wish };
        self.open(now, asked.asker, wish);
    }

    fn decline(&mut self, asked: Asked, deed: Deed, code: Code) {
        self.audit_asked(&asked, deed);
        let (link, request) = (asked.asker, asked.wish.request);
        self.out.push(Output::RefuseClient { link, request, fault: code.into() });
    }

    /// Someone lost a right: what was asked for under the old ones is asked for anew, or not.
    pub(super) fn forget_asked(&mut self) {
        let asked: Vec<_> = self.shadows.asked.drain().collect();
        asked.into_iter().for_each(|(_, asked)| {
            self.decline(asked, Deed::ConsentExpired, Code::ConsentRefused);
        });
    }

    pub(super) fn shadow_tick(&mut self, now: Instant) {
        let due = self.shadows.asked.extract_if(|_, asked| now >= asked.until);
        let due: Vec<_> = due.collect();
        for (_, asked) in due {
            self.decline(asked, Deed::ConsentExpired, Code::ConsentUnanswered);
        }
        self.shadows.lineage.tick(now);
        let known: Vec<_> = self.sessions.watches().collect();
        for (watch, watched) in known {
            let gone = self.sessions.get(&watched).is_none();
            let Some(session) = self.sessions.get_mut(&watch) else { continue };
            if !gone {
                session.life.orphan_since = None;
            } else if now.saturating_duration_since(*session.life.orphan_since.get_or_insert(now))
                >= ORPHAN_MAX
            {
                self.kill(now, &watch, Code::SessionClosed);
            }
        }
    }

    /// A client's link is gone: nobody answers there, and nobody waits.
    pub(super) fn asked_link_down(&mut self, link: LinkId) {
        let due =
            self.shadows.asked.extract_if(|_, asked| asked.user == link || asked.asker == link);
        let due: Vec<_> = due.collect();
        for (_, asked) in due {
            self.decline(asked, Deed::ConsentRefused, Code::ConsentRefused);
        }
    }

    /// The agent for a wish: the one that serves what is to be watched, or any that offers the resource.
    pub(super) fn agent_for(
        &self,
        now: Instant,
        user: &str,
        wish: &Wish,
    ) -> Result<(LinkId, &Agent), Fault> {
        let Some(shadow) = wish.purpose.shadow() else {
            let link = pool::choose(&self.members(now, user, &wish.resource))?;
            let agent = self.agents.get(link).ok_or(Code::AgentOffline)?;
            return Ok((link, agent));
        };
        let watched = self.sessions.get(&shadow.session).ok_or(Code::SessionUnknown)?;
        if self.sessions.watchers_of(&shadow.session).len() >= WATCHERS_MAX {
            return Err(Code::SessionLimit.because("as many watch this session as may"));
        }
        self.agents.by_name(&watched.grant.agent).ok_or_else(|| Code::AgentOffline.into())
    }

    /// A session was granted, or begins to be used: watching begins, or a lost one goes on.
    pub(super) fn life_began(&mut self, now: Instant, id: &SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        let grant = session.grant.clone();
        match grant.purpose.shadow() {
            Some(shadow) => {
                self.audit(Deed::WatchBegan, &shadow.session, id, &grant.user, shadow.control);
                self.tell_watched(&shadow.session, &grant.user, shadow.control, true);
            }
            None => {
                let lost = self.shadows.lineage.take(now, &grant.user, &grant.resource);
                if let Some(session) = self.sessions.get_mut(id) {
                    session.life.continues = lost;
                }
            }
        }
    }

    /// A session that had begun is over.
    pub(super) fn life_over(&mut self, now: Instant, session: &Session, code: Code) {
        let grant = &session.grant;
        if let Some(shadow) = grant.purpose.shadow() {
            self.audit(
                Deed::WatchEnded,
                &shadow.session,
                &grant.session,
                &grant.user,
                shadow.control,
            );
            self.tell_watched(&shadow.session, &grant.user, shadow.control, false);
            return;
        }
        let count = session.life.continues.as_ref().map_or(0, |(_, count)| *count);
        let (of, was) = ((&*grant.user, &*grant.resource), (&grant.session, count));
        self.shadows.lineage.over(now, of, was, code);
    }

    fn tell_watched(&mut self, watched: &SessionId, by: &str, control: bool, began: bool) {
        let (session, by) = (watched.clone(), by.to_owned());
        self.notify(watched, SessionNotice::Watched { session, by, control, began });
    }

    /// A client has a link again: it hears who watches.
    pub(super) fn tell_watchers(&mut self, id: &SessionId) {
        for Watcher { user, control, .. } in self.watchers(id) {
            self.tell_watched(id, &user, control, true);
        }
    }

    /// Tells the user of a session, if that can be done now.
    pub(super) fn notify(&mut self, id: &SessionId, notice: SessionNotice) {
        if let Some(link) = self.sessions.get(id).and_then(|session| session.client) {
            self.out.push(Output::Notify { link, notice });
        }
    }

    /// Pauses a session, or lets it go on.
    pub(super) fn hold(&mut self, id: &SessionId, by: String, held: bool) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.life.held = held.then(|| by.clone());
        let grant = session.grant.clone();
        self.tell(&grant, LegSide::Agent, Notice::Hold(held.then(|| by.clone())));
        let deed = if held { Deed::Paused } else { Deed::Resumed };
        self.audit(deed, id, id, &by, false);
        self.notify(id, SessionNotice::Held { session: id.clone(), by, held });
    }

    /// Passes a message on to the user of a session.
    pub(super) fn message(&mut self, id: &SessionId, from: String, text: String) {
        self.audit(Deed::Message, id, id, &from, false);
        self.notify(id, SessionNotice::Message { session: id.clone(), from, text });
    }

    /// What the API shows of a session, with who watches it.
    pub(super) fn snapshot_of(&self, session: &Session, now: Instant) -> Snapshot {
        let mut snapshot = session.snapshot(now);
        snapshot.life.watchers = self.watchers(&snapshot.session);
        (snapshot.pair, snapshot.gateway) = self.carried_by(session);
        if snapshot.state == SessionState::Active {
            snapshot.state = if session.life.held.is_some() {
                SessionState::Paused
            } else if !snapshot.life.watchers.is_empty() {
                SessionState::Shadowed
            } else if session.life.is_idle(now) {
                SessionState::Idle
            } else {
                SessionState::Active
            };
        }
        snapshot
    }

    fn watchers(&self, id: &SessionId) -> Vec<Watcher> {
        let watching = self.sessions.watchers_of(id).iter().filter_map(|watch| {
            let grant = &self.sessions.get(watch)?.grant;
            let control = grant.purpose.shadow()?.control;
            Some(Watcher { user: grant.user.clone(), session: watch.clone(), control })
        });
        watching.collect()
    }

    /// Whether watches of this session are connected to a target of their own, and whether that one only shows.
    pub(crate) fn shadow_target(&self, id: &SessionId) -> Option<bool> {
        let grant = &self.sessions.get(id)?.grant;
        self.agents.service(&grant.agent, &grant.resource)?.shadow_view_only
    }

    fn audit_asked(&mut self, asked: &Asked, deed: Deed) {
        let Some(shadow) = asked.wish.purpose.shadow().cloned() else { return };
        self.audit(deed, &shadow.session, &asked.wish.session, &asked.by, shadow.control);
    }

    fn audit(&mut self, deed: Deed, on: &SessionId, by: &SessionId, who: &str, control: bool) {
        let of = self.sessions.get(on).map(|session| &session.grant);
        let of = of.map(|grant| (grant.user.clone(), grant.resource.clone()));
        let (user, resource) = of.unwrap_or_default();
        self.out.push(Output::Audit(Audit {
            deed,
            session: on.clone(),
            user,
            resource,
            by: who.to_owned(),
            watch: (on != by).then(|| by.clone()),
            control,
        }));
    }
}

impl Asked {
    fn watched(&self) -> Option<&SessionId> {
        self.wish.purpose.shadow().map(|shadow| &shadow.session)
    }
}
