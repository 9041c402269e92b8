//! The one way to a decision: who asks and what for is prepared once, and then asked about as many things as there are.
use std::collections::HashMap;

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision as Verdict, Effect, Entities, EntityUid,
    PolicyId, PolicySet,
};

use super::parts::{self, About};
use super::request::{self, Thing};
use super::{Action, Circumstances, Decision, Obligations, Policies, Subject, TOLD_MAX, told};

/// Someone who wants to do something, at one moment.
#[derive(Debug)]
pub struct Asker<'a> {
    policies: &'a Policies,
    /// `Err`: it cannot be asked.
    ready: Result<Ready<'a>, String>,
}

#[derive(Debug)]
struct Ready<'a> {
    question: Question,
    /// What those say that look at no thing.
    votes: Votes,
    each: Vec<&'a PolicySet>,
    one: HashMap<&'a EntityUid, Vec<&'a PolicySet>>,
}

/// A question but for what it is about.
#[derive(Debug)]
struct Question {
    principal: EntityUid,
    action: EntityUid,
    context: Context,
    /// The principal and their device.
    entities: Entities,
}

/// What policies say: those that apply, and those that cannot be evaluated.
#[derive(Clone, Debug, Default)]
struct Votes {
    permits: Vec<PolicyId>,
    forbids: Vec<PolicyId>,
    /// Forbids that cannot be evaluated.
    broken: Vec<PolicyId>,
    /// A few of why.
    errors: Vec<String>,
}

impl Policies {
    /// Prepares questions of `subject`.
    #[must_use]
    pub fn asker(&self, subject: &Subject, action: Action, here: &Circumstances) -> Asker<'_> {
        Asker { policies: self, ready: self.ready(subject, action, here) }
    }

    fn ready(
        &self,
        subject: &Subject,
        action: Action,
        here: &Circumstances,
    ) -> Result<Ready<'_>, String> {
        let groups = parts::groups_of(subject, &self.groups);
        let question = Question::new(subject, &groups, action, here)?;
        let (mut votes, mut each, mut one) = (Votes::default(), Vec::new(), HashMap::new());
        let nothing = question.about_nothing()?;
        let fits = |part: &&parts::Part| part.fits(&question.principal, &groups, action);
        for part in self.parts.iter().filter(fits) {
            match &part.about {
                About::Nothing => votes.add(&part.policies, &nothing),
                About::Each => each.push(&part.policies),
                About::One(uid) => one.entry(uid).or_insert_with(Vec::new).push(&part.policies),
            }
        }
        Ok(Ready { question, votes, each, one })
    }

    fn count(&self, votes: Votes) -> Decision {
        let Votes { permits, forbids, broken, mut errors } = votes;
        errors.sort_unstable();
        if !broken.is_empty() {
            return Decision { deciding: ids(&broken), errors, ..Decision::default() };
        }
        if !forbids.is_empty() {
            return Decision { deciding: ids(&forbids), errors, ..Decision::default() };
        }
        let of = |id: &PolicyId| self.obligations.get(id);
        let obligations =
            permits.iter().filter_map(of).fold(Obligations::default(), |sum, more| sum.and(more));
        Decision { allowed: !permits.is_empty(), obligations, deciding: ids(&permits), errors }
    }
}

impl Asker<'_> {
    /// Decides about one thing.
    #[must_use]
    pub fn decide(&self, thing: &Thing) -> Decision {
        match self.votes(thing) {
            Ok(votes) => self.policies.count(votes),
            Err(error) => Decision { errors: vec![error], ..Decision::default() },
        }
    }

    /// What these policies alone would decide.
    pub(super) fn decide_by(&self, set: &PolicySet, thing: &Thing) -> Option<Decision> {
        let question = &self.ready.as_ref().ok()?.question;
        let mut votes = Votes::default();
        votes.add(set, &question.about(thing).ok()?);
        Some(self.policies.count(votes))
    }

    fn votes(&self, thing: &Thing) -> Result<Votes, String> {
        let ready = self.ready.as_ref().map_err(Clone::clone)?;
        let mut votes = ready.votes.clone();
        let one = ready.one.get(&thing.uid).into_iter().flatten();
        let mut sets = ready.each.iter().chain(one).peekable();
        if sets.peek().is_some() {
            let asked = ready.question.about(thing)?;
            sets.for_each(|set| votes.add(set, &asked));
        }
        Ok(votes)
    }
}

impl Question {
    fn new(
        subject: &Subject,
        groups: &[EntityUid],
        action: Action,
        here: &Circumstances,
    ) -> Result<Self, String> {
        let user = request::user(subject, groups)?;
        let principal = user.uid();
        let entities = Entities::from_entities([user, request::device(subject)?], None);
        let entities = entities.map_err(|error| error.to_string())?;
        let context = request::context(subject, here)?;
        Ok(Self { principal, action: request::action_uid(action), context, entities })
    }

    fn about(&self, thing: &Thing) -> Result<Asked, String> {
        let known = thing.entities()?.iter().cloned();
        let entities = self.entities.clone().add_entities(known, None);
        let entities = entities.map_err(|error| error.to_string())?;
        Ok(Asked { request: self.request(thing.uid.clone())?, entities })
    }

    /// For policies that do not look at what it is about.
    fn about_nothing(&self) -> Result<Asked, String> {
        let request = self.request(request::broker())?;
        Ok(Asked { request, entities: self.entities.clone() })
    }

    fn request(&self, about: EntityUid) -> Result<cedar_policy::Request, String> {
        let (principal, action) = (self.principal.clone(), self.action.clone());
        let request =
            cedar_policy::Request::new(principal, action, about, self.context.clone(), None);
        request.map_err(|error| error.to_string())
    }
}

/// A whole question, as Cedar takes it.
struct Asked {
    request: cedar_policy::Request,
    entities: Entities,
}

impl Votes {
    fn add(&mut self, set: &PolicySet, asked: &Asked) {
        let response = Authorizer::new().is_authorized(&asked.request, set, &asked.entities);
        let diagnostics = response.diagnostics();
        for error in diagnostics.errors() {
            let AuthorizationError::PolicyEvaluationError(inner) = error;
            let id = inner.policy_id();
            if set.policy(id).is_some_and(|policy| policy.effect() == Effect::Forbid) {
                self.broken.push(id.clone());
            }
            if self.errors.len() < TOLD_MAX {
                self.errors.push(error.to_string());
            }
        }
        // Of a denial these are the forbids that apply, of which there may be none.
        let side = match response.decision() {
            Verdict::Allow => &mut self.permits,
            Verdict::Deny => &mut self.forbids,
        };
        side.extend(diagnostics.reason().cloned());
    }
}

fn ids(ids: &[PolicyId]) -> Vec<String> {
    told(ids.iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests;
