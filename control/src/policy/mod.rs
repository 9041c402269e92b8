//! Conditional access: who may do what, where from and how, decided by Cedar policies. Pure: no clock, no file, no network.
//!
//! * `schema.cedarschema` is what policies may speak of, `default.cedar` what holds without any of one's own.
//! * [`Policies`] is a checked set of them, [`Request`] a question, [`Decision`] the answer; an [`Asker`] asks many at once.
//! * [`Obligations`] come with a permit as annotations and only ever narrow what a session may do.
//!
//! A policy that cannot be evaluated does not permit; one that forbids and cannot be evaluated denies. Cedar by itself would
//! skip it, and a broken `forbid` must not open a door.

mod asker;
mod bounds;
pub mod cases;
mod check;
mod obligations;
mod parts;
mod request;
#[cfg(test)]
mod tests;
mod trial;

use std::collections::{BTreeSet, HashMap};

use cedar_policy::{PolicyId, PolicySet};
use serde::{Deserialize, Serialize};

pub use asker::Asker;
pub use bounds::{FILES_MAX, POLICIES_MAX, POLICY_BYTES_MAX};
pub use check::{Complaint, PolicyFile};
pub use obligations::{Consent, Obligations};
pub use request::{
    Action, Circumstances, Object, Request, ResourceFacts, Subject, Thing, seconds_of,
};
pub use trial::{PolicyVerdict, Trial};

use self::parts::Part;
use crate::code::Code;

/// What policies may speak of, in Cedar's schema syntax.
pub const SCHEMA: &str = include_str!("schema.cedarschema");
/// What holds without any policy of one's own.
pub const BUILT_IN: &str = include_str!("default.cedar");
/// Ids and messages in one decision; a hostile set of policies must not fill a log.
const TOLD_MAX: usize = 16;

/// A checked set of policies.
#[derive(Clone, Debug)]
pub struct Policies {
    set: PolicySet,
    /// The same ones.
    parts: Vec<Part>,
    /// Groups that they speak of.
    groups: BTreeSet<String>,
    obligations: HashMap<PolicyId, Obligations>,
    built_in: bool,
}

/// The answer to a [`Request`].
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// What the deciding permits oblige to; the strictest of them all.
    pub obligations: Obligations,
    /// Ids of the policies that decided; none if nothing permits.
    pub deciding: Vec<String>,
    /// Policies that could not be evaluated, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

impl Decision {
    /// What whoever asks for a session is told, if it is denied.
    #[must_use]
    pub const fn code(&self) -> Option<Code> {
        if self.allowed { None } else { Some(Code::PolicyDenied) }
    }

    /// Both must allow it, and the strictest of what they oblige to binds. A denial stands for itself.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if !self.allowed || !other.allowed {
            return if self.allowed { other } else { self };
        }
        let mut obligations = self.obligations.and(&other.obligations);
        if self.obligations.consent != other.obligations.consent {
            // Saying nothing is stricter than to notify.
            obligations.consent = Some(self.consent().max(other.consent()));
        }
        let mut deciding = [self.deciding, other.deciding].concat();
        deciding.sort_unstable();
        deciding.dedup();
        let mut errors = [self.errors, other.errors].concat();
        errors.sort_unstable();
        errors.dedup();
        errors.truncate(TOLD_MAX);
        Self { allowed: true, obligations, deciding: told(deciding), errors }
    }

    /// Whether shadowing needs consent. Required unless every deciding permit that says something says `notify`.
    #[must_use]
    pub fn consent(&self) -> Consent {
        self.obligations.consent.unwrap_or(Consent::Required)
    }
}

impl Policies {
    /// What holds without any of one's own.
    #[must_use]
    pub fn built_in() -> Self {
        let file = PolicyFile { name: "built-in".into(), text: BUILT_IN.into() };
        let checked = Self::check(&[file]).unwrap_or_else(|complaints| {
            // The text is part of this program, and a test reads it.
            panic!("the built-in policies are wrong: {complaints:?}")
        });
        Self { built_in: true, ..checked }
    }

    /// Parses files, in the order of their names, and checks them against the schema.
    ///
    /// # Errors
    /// Everything that is wrong, with its place.
    pub fn check(files: &[PolicyFile]) -> Result<Self, Vec<Complaint>> {
        let (set, obligations) = check::check(files)?;
        let (parts, groups) = (parts::of(&set), parts::groups(&set));
        Ok(Self { set, parts, groups, obligations, built_in: false })
    }

    /// Whether these are [`Self::built_in`].
    #[must_use]
    pub const fn is_built_in(&self) -> bool {
        self.built_in
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.set.num_of_policies()
    }

    /// Whether there is none, so that nothing is permitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decides.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let Request { subject, action, object, circumstances } = request;
        self.asker(subject, *action, circumstances).decide(&(*object).clone().into())
    }
}

fn told(mut ids: Vec<String>) -> Vec<String> {
    ids.sort_unstable();
    ids.truncate(TOLD_MAX);
    ids
}
