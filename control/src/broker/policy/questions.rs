//! The questions that are asked: may this one have a session, watch one, end one, administer; do these grants still hold?
use std::net::IpAddr;

use super::Rights;
use crate::broker::app::App;
use crate::broker::clock;
use crate::broker::seal::Grant;
use crate::broker::shadow::Watch;
use crate::broker::store::{Owner, Standing};
use crate::code::{Code, Fault};
use crate::policy::{Action, Consent, Decision, Object, Obligations, ResourceFacts, Subject};
use crate::wire::{ShadowWish, TransportPolicy};

impl App {
    /// Whether the owner of a link may have a session with `resource`: what it may do then. A resource that they may not even
    /// see is unknown to them.
    ///
    /// # Errors
    /// [`Code::ResourceUnknown`], [`Code::PolicyDenied`], [`Code::PolicyConflict`], [`Code::Reauthenticate`],
    /// [`Code::TokenRevoked`], [`Code::TokenExpired`].
    pub(crate) async fn may_connect(
        &self,
        owner: &Owner,
        source: IpAddr,
        resource: &str,
        transport: &str,
    ) -> Result<(Rights, Decision), (Fault, Decision)> {
        let standing = self.store.standing(&owner.token, resource).await;
        let standing = standing.map_err(|fault| (fault, Decision::default()))?;
        if standing.announced.is_empty() {
            return Err((Code::ResourceUnknown.into(), Decision::default()));
        }
        let here =
            self.judge.circumstances(Some(source), standing.granted, Some(transport.to_owned()));
        let subject = &standing.subject;
        let ask = |action| {
            let objects = resources(&standing.announced);
            self.judge.decide_all(subject, action, objects, &here)
        };
        let decision = ask(Action::Connect);
        // A sign-in that was just judged good is not older than the clock it is compared with.
        let rights = self.judge.rights(&standing, &decision, here.now_ms, here.now_ms);
        match rights {
            Ok(rights) => Ok((rights, decision)),
            Err(code) => {
                let sees = ask(Action::See).allowed;
                self.counters.faults.add(code);
                tracing::info!(user = owner.name, resource, %code, "session refused");
                let told = if sees { code } else { Code::ResourceUnknown };
                Err((told.into(), decision))
            }
        }
    }

    /// Whether `owner` may do this to a session.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn judge_session(
        &self,
        owner: &Owner,
        source: IpAddr,
        action: Action,
        session: &SessionFacts<'_>,
    ) -> Result<Decision, Fault> {
        let here = self.judge.circumstances(Some(source), false, None);
        let facts = self.store.facts(session.resource).await?;
        let objects = Object::sessions(session.session, session.user, facts);
        Ok(self.judge.decide_all(&owner.subject(), action, objects, &here))
    }

    /// Whether `owner` may administer the broker, from `source`.
    pub(crate) fn administers(&self, owner: &Owner, source: IpAddr) -> Decision {
        let here = self.judge.circumstances(Some(source), false, None);
        self.judge.decide_all(&owner.subject(), Action::Admin, vec![Object::Broker], &here)
    }

    /// Judges grants that ends show, or that live: what each may do now. `source`: where the client that shows them is; for
    /// others, where their client was last.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn judge_grants(
        &self,
        grants: Vec<(Grant, Option<IpAddr>)>,
    ) -> Result<Vec<Judged>, Fault> {
        let (grants, sources): (Vec<_>, Vec<_>) = grants.into_iter().unzip();
        let found = self.store.standings(grants).await?;
        let judged = found.into_iter().zip(sources).map(|((mut grant, standing), source)| {
            grant.source = source.or(grant.source);
            let (decision, verdict) = match standing {
                Ok(standing) => self.judge_one(&grant, &standing),
                Err(code) => (Decision::default(), Err(code)),
            };
            let verdict = verdict.map(|rights| grant.rights = rights);
            Judged { grant, decision, verdict }
        });
        Ok(judged.collect())
    }

    fn judge_one(&self, grant: &Grant, standing: &Standing) -> (Decision, Result<Rights, Code>) {
        // Its agent may be restarting with other resources: what is no longer announced is judged by its name.
        let facts = standing.facts(&grant.resource);
        if let Some(wish) = grant.purpose.shadow() {
            return self.judge_watch(grant, wish, &standing.subject, facts);
        }
        let here = self.judge.circumstances(grant.source, standing.granted, grant.transport());
        let objects = resources(&facts);
        let decision = self.judge.decide_all(&standing.subject, Action::Connect, objects, &here);
        let rights = self.judge.rights(standing, &decision, grant.created_ms, here.now_ms);
        (decision, rights)
    }

    /// Watching is another right than use.
    fn judge_watch(
        &self,
        grant: &Grant,
        wish: &ShadowWish,
        subject: &Subject,
        facts: Vec<ResourceFacts>,
    ) -> (Decision, Result<Rights, Code>) {
        let Some(owner) = grant.watched.clone() else {
            return (Decision::default(), Err(Code::SessionUnknown));
        };
        let here = self.judge.circumstances(grant.source, false, None);
        let objects = Object::sessions(&wish.session.0, &owner, facts);
        let decision = self.judge.decide_all(subject, Watch::of(wish).action(), objects, &here);
        let rights = if !decision.allowed {
            Err(Code::SessionUnknown)
        } else if wish.no_prompt && decision.consent() == Consent::Required {
            // Nobody was asked, and by now somebody would have to be.
            Err(Code::ConsentRefused)
        } else {
            bound(subject, &decision, grant.created_ms, here.now_ms)
        };
        (decision, rights)
    }
}

fn resources(facts: &[ResourceFacts]) -> Vec<Object> {
    facts.iter().cloned().map(Object::Resource).collect()
}

/// A session judged anew, with what it may do from now on in its grant.
pub(crate) struct Judged {
    pub(crate) grant: Grant,
    pub(crate) decision: Decision,
    pub(crate) verdict: Result<(), Code>,
}

/// What a watch may do that begins now. One that is not allowed shows no session.
pub(crate) fn watch_rights(subject: &Subject, decision: &Decision) -> Result<Rights, Code> {
    let now = clock::unix_ms();
    if decision.allowed { bound(subject, decision, now, now) } else { Err(Code::SessionUnknown) }
}

/// What an allowed session may do that was granted at `created_ms`.
pub(super) fn bound(
    subject: &Subject,
    decision: &Decision,
    created_ms: u64,
    now_ms: u64,
) -> Result<Rights, Code> {
    // Consent is asked before a watch, and binds no session.
    let obligations = Obligations { consent: None, ..decision.obligations };
    if obligations.narrow(TransportPolicy::default()).is_none() {
        return Err(Code::PolicyConflict);
    }
    let end = |from: u64, seconds: Option<u64>, code| {
        seconds.map(|seconds| (from.saturating_add(seconds.saturating_mul(1000)), code))
    };
    let signed_in = subject.signed_in_ms.unwrap_or(0);
    let ends = [
        end(created_ms, obligations.max_session_s, Code::SessionExpired),
        end(signed_in, obligations.reauthenticate_s, Code::Reauthenticate),
    ];
    let ends = ends.into_iter().flatten().min();
    match ends {
        Some((at, code)) if at <= now_ms => Err(code),
        ends => Ok(Rights { obligations, ends }),
    }
}

/// A session, as far as policies care.
pub(crate) struct SessionFacts<'a> {
    pub(crate) session: &'a str,
    pub(crate) user: &'a str,
    pub(crate) resource: &'a str,
}
