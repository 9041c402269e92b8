//! Policies in parts by their scopes, so that a question meets only those that may have a say, and what does not look at a
//! resource is asked once for all resources.
//!
//! Nothing but a scope is read here, and in a scope nothing can fail: a policy whose scope does not fit holds not, whatever its
//! conditions are.
use std::collections::{BTreeSet, HashMap};

use cedar_policy::{
    ActionConstraint, EntityUid, Policy, PolicySet, PrincipalConstraint, ResourceConstraint,
};

use super::request::{BROKER, GROUP, RESOURCE, SESSION, USER, action_uid};
use super::{Action, Subject};

/// Policies of one scope.
#[derive(Clone, Debug)]
pub(super) struct Part {
    who: Who,
    actions: [bool; Action::ALL.len()],
    pub(super) about: About,
    pub(super) policies: PolicySet,
}

/// Whom policies are about. Who asks is a user, always.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Anyone,
    Only(EntityUid),
    /// Or that very one.
    In(EntityUid),
}

/// What policies look at of the thing that a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum About {
    /// Nothing: they say the same of all things.
    Nothing,
    /// Something: each thing has to be judged.
    Each,
    /// They are about this one.
    One(EntityUid),
}

impl Part {
    /// Whether its scope holds for this principal, who is in `groups` as well.
    pub(super) fn fits(&self, user: &EntityUid, groups: &[EntityUid], action: Action) -> bool {
        let who = match &self.who {
            Who::Anyone => true,
            Who::Only(one) => one == user,
            Who::In(one) => one == user || groups.contains(one),
        };
        who && Action::ALL.into_iter().zip(self.actions).any(|(it, fits)| fits && it == action)
    }
}

/// Every policy is in one part, but for those that hold for nobody who asks.
pub(super) fn of(set: &PolicySet) -> Vec<Part> {
    let mut places = HashMap::new();
    let mut parts: Vec<(_, Vec<Policy>)> = Vec::new();
    for policy in set.policies() {
        let Some(who) = who(policy) else { continue };
        let scope = (who, actions(policy), about(policy));
        let place = *places.entry(scope.clone()).or_insert_with(|| {
            parts.push((scope, Vec::new()));
            parts.len() - 1
        });
        parts[place].1.push(policy.clone());
    }
    let part = |((who, actions, about), policies)| {
        // Their ids differ: they come from one set.
        let policies = PolicySet::from_policies(policies).expect("a part of a set is a set");
        Part { who, actions, about, policies }
    };
    parts.into_iter().map(part).collect()
}

/// Names of the groups that policies speak of. Those of a user that are not among them make no difference.
pub(super) fn groups(set: &PolicySet) -> BTreeSet<String> {
    let named = set.policies().flat_map(Policy::entity_literals);
    let groups = named.filter(|uid| uid.type_name() == &*GROUP);
    groups.map(|uid| uid.id().unescaped().to_owned()).collect()
}

/// The groups of a subject that policies speak of.
pub(super) fn groups_of(subject: &Subject, spoken_of: &BTreeSet<String>) -> Vec<EntityUid> {
    let groups = subject.claims.groups.intersection(spoken_of);
    groups.map(|group| super::request::uid(&GROUP, group)).collect()
}

fn who(policy: &Policy) -> Option<Who> {
    match policy.principal_constraint() {
        PrincipalConstraint::Any => Some(Who::Anyone),
        PrincipalConstraint::Eq(one) => Some(Who::Only(one)),
        PrincipalConstraint::In(one) => Some(Who::In(one)),
        PrincipalConstraint::Is(of) => (of == *USER).then_some(Who::Anyone),
        PrincipalConstraint::IsIn(of, one) => (of == *USER).then_some(Who::In(one)),
    }
}

fn actions(policy: &Policy) -> [bool; Action::ALL.len()] {
    let constraint = policy.action_constraint();
    Action::ALL.map(|action| match &constraint {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(one) => *one == action_uid(action),
        // No action is in another.
        ActionConstraint::In(any) => any.contains(&action_uid(action)),
    })
}

fn about(policy: &Policy) -> About {
    match policy.resource_constraint() {
        ResourceConstraint::Eq(one) => About::One(one),
        ResourceConstraint::Any if !looks_at_a_thing(policy) => About::Nothing,
        _ => About::Each,
    }
}

/// Whether conditions may depend on what is asked about: they say `resource`, or name a thing, which is known only while it
/// is asked about. The scope says `resource` once; a comment or a text may, and then it is looked at in vain.
fn looks_at_a_thing(policy: &Policy) -> bool {
    let names = |uid: EntityUid| {
        let of = uid.type_name();
        [&RESOURCE, &SESSION, &BROKER].into_iter().any(|thing| of == &**thing)
    };
    policy.to_string().matches("resource").count() != 1
        || policy.entity_literals().into_iter().any(names)
}
