//! `policy explain`: what each policy says to a request, and what would change the answer.
use cedar_policy::{Effect, PolicySet};
use serde::{Deserialize, Serialize};

use super::{Decision, Obligations, Policies, Request};
use crate::policy::{Circumstances, Subject};

/// Groups tried; a set of policies names few.
const GROUPS_MAX: usize = 64;
/// Methods that stand for a strong sign-in (RFC 8176).
const METHODS: [&str; 4] = ["mfa", "otp", "hwk", "pop"];

/// What one policy says.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVerdict {
    /// Its id.
    pub policy: String,
    /// `permit` or `forbid`.
    pub effect: String,
    /// Whether its conditions hold.
    pub applies: bool,
    /// Why that cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it obliges to.
    pub obligations: Obligations,
}

/// A decision with its grounds.
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The decision.
    pub decision: Decision,
    /// Every policy, in the order of ids.
    pub policies: Vec<PolicyVerdict>,
    /// What would allow it, one at a time; empty if it is allowed.
    pub would_allow: Vec<String>,
}

impl Trial {
    /// Of one request about two things, both of which must be allowed, see [`Decision::and`].
    #[must_use]
    pub fn and(mut self, mut other: Self) -> Self {
        match (self.decision.allowed, other.decision.allowed) {
            (false, true) => self,
            (true, false) => other,
            (false, false) => {
                self.would_allow.retain(|change| other.would_allow.contains(change));
                self
            }
            (true, true) => {
                for verdict in &mut other.policies {
                    let same = self.policies.iter().find(|it| it.policy == verdict.policy);
                    verdict.applies |= same.is_some_and(|it| it.applies);
                }
                Self { decision: self.decision.and(other.decision), ..other }
            }
        }
    }
}

impl Policies {
    /// Decides, and says why.
    #[must_use]
    pub fn try_out(&self, request: &Request<'_>, locations: &[String]) -> Trial {
        let decision = self.decide(request);
        let would_allow =
            if decision.allowed { Vec::new() } else { self.would_allow(request, locations) };
        Trial { decision, policies: self.verdicts(request), would_allow }
    }

    fn verdicts(&self, request: &Request<'_>) -> Vec<PolicyVerdict> {
        let asker = self.asker(request.subject, request.action, request.circumstances);
        let thing = request.object.clone().into();
        let alone = |policy: &cedar_policy::Policy| {
            let set = PolicySet::from_policies([policy.clone()]).ok()?;
            let Decision { deciding, errors, .. } = asker.decide_by(&set, &thing)?;
            let error = errors.into_iter().next();
            let effect = if policy.effect() == Effect::Permit { "permit" } else { "forbid" };
            Some(PolicyVerdict {
                policy: policy.id().to_string(),
                effect: effect.to_owned(),
                applies: error.is_none() && !deciding.is_empty(),
                error,
                obligations: self.obligations.get(policy.id()).copied().unwrap_or_default(),
            })
        };
        let mut verdicts: Vec<_> = self.set.policies().filter_map(alone).collect();
        verdicts.sort_by(|a, b| a.policy.cmp(&b.policy));
        verdicts
    }

    /// Single changes that would turn a refusal into a permission.
    fn would_allow(&self, request: &Request<'_>, locations: &[String]) -> Vec<String> {
        let (subject, here) = (request.subject, request.circumstances);
        let mut tries: Vec<(String, Subject, Circumstances)> = Vec::new();
        let mut change = |what: String, subject: Subject, here: Circumstances| {
            tries.push((what, subject, here));
        };
        change("a grant".into(), subject.clone(), Circumstances { granted: true, ..here.clone() });
        let fresh = Subject { signed_in_ms: Some(here.now_ms), ..subject.clone() };
        change("a fresh sign-in".into(), fresh, here.clone());
        change(
            "being an administrator".into(),
            Subject { admin: true, ..subject.clone() },
            here.clone(),
        );
        for group in self.groups.iter().take(GROUPS_MAX) {
            let mut changed = subject.clone();
            changed.claims.groups.insert(group.clone());
            change(format!("membership of the group `{group}`"), changed, here.clone());
        }
        for method in METHODS {
            let mut changed = subject.clone();
            changed.claims.amr.insert(method.to_owned());
            change(format!("a sign-in with `{method}`"), changed, here.clone());
        }
        for location in locations {
            let mut changed = here.clone();
            changed.locations.insert(location.clone());
            change(format!("being at `{location}`"), subject.clone(), changed);
        }
        let allows = |(_, subject, here): &(String, Subject, Circumstances)| {
            let changed = Request { subject, circumstances: here, ..request.clone() };
            self.decide(&changed).allowed
        };
        tries.into_iter().filter(allows).map(|(what, ..)| what).collect()
    }
}
