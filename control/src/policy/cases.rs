//! `policy test`: a table of cases, each a question with the answer that it must get.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{
    Action, Circumstances, Object, Obligations, Policies, Request, ResourceFacts, Subject,
    seconds_of,
};
use crate::claims::Claims;

/// A file of cases: `[[case]]` tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// Them.
    #[serde(default, rename = "case")]
    pub cases: Vec<Case>,
}

/// What must come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// It is allowed.
    Allow,
    /// It is not.
    Deny,
}

/// A question and its answer. What is left out is not so: no group, no tag, no grant, no known source; Monday 12:00 UTC, signed in just
/// now.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// For people.
    #[serde(default)]
    pub name: String,
    /// Who asks.
    pub user: String,
    /// An administrator by the database.
    #[serde(default)]
    pub admin: bool,
    /// In which groups.
    #[serde(default)]
    pub groups: BTreeSet<String>,
    /// `see`, `connect`, `shadow-view`, `shadow-control`, `kill`, `admin`.
    pub action: Action,
    /// Which resource; for `kill` and shadowing, that of the session.
    #[serde(default)]
    pub resource: String,
    /// Its kind; `tcp` if left out.
    #[serde(default)]
    pub kind: Option<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Its folder.
    #[serde(default)]
    pub folder: String,
    /// Whose session it is.
    #[serde(default)]
    pub owner: Option<String>,
    /// A grant covers it.
    #[serde(default)]
    pub granted: bool,
    /// Source address.
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// Named locations it is in.
    #[serde(default)]
    pub locations: BTreeSet<String>,
    /// 1 (Monday) to 7.
    #[serde(default)]
    pub weekday: Option<u64>,
    /// 0 to 23, UTC.
    #[serde(default)]
    pub hour: Option<u64>,
    /// 0 to 59.
    #[serde(default)]
    pub minute: Option<u64>,
    /// OIDC issuer.
    #[serde(default)]
    pub issuer: Option<String>,
    /// Authentication context class.
    #[serde(default)]
    pub acr: Option<String>,
    /// Authentication methods.
    #[serde(default)]
    pub amr: BTreeSet<String>,
    /// Device claims.
    #[serde(default)]
    pub device: BTreeMap<String, String>,
    /// Seconds since the sign-in.
    #[serde(default)]
    pub signed_in: Option<u64>,
    /// `udp` or `tcp`.
    #[serde(default)]
    pub transport: Option<String>,
    /// What must come out.
    pub expect: Expected,
    /// What it must oblige to, exactly; not looked at if left out. `["no_udp", "max_session=8h"]`
    #[serde(default)]
    pub obligations: Option<Vec<String>>,
    /// Policies that must have decided, exactly; not looked at if left out.
    #[serde(default)]
    pub policies: Option<BTreeSet<String>>,
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseResult {
    /// Its name, or what it asks.
    pub case: String,
    /// What differs from what was expected; empty if it passed.
    pub differs: Vec<String>,
    /// Policies that decided.
    pub decided: Vec<String>,
}

impl Case {
    fn subject(&self, now_ms: u64) -> Subject {
        let claims = Claims {
            issuer: self.issuer.clone(),
            groups: self.groups.clone(),
            acr: self.acr.clone(),
            amr: self.amr.clone(),
            auth_time_ms: None,
            device: self.device.clone(),
        };
        let signed_in_ms =
            Some(now_ms.saturating_sub(self.signed_in.unwrap_or(0).saturating_mul(1000)));
        Subject { name: self.user.clone(), admin: self.admin, claims, signed_in_ms }
    }

    fn object(&self) -> Object {
        let resource = ResourceFacts {
            name: self.resource.clone(),
            kind: self.kind.clone().unwrap_or_else(|| "tcp".into()),
            tags: self.tags.clone(),
            folder: self.folder.clone(),
        };
        match self.action {
            Action::See | Action::Connect => Object::Resource(resource),
            Action::Admin => Object::Broker,
            Action::ShadowView | Action::ShadowControl | Action::Kill => {
                let owner = self.owner.clone().unwrap_or_default();
                Object::Session { id: "session".into(), owner, resource }
            }
        }
    }

    /// Asks, and compares.
    #[must_use]
    pub fn run(&self, policies: &Policies) -> CaseResult {
        let (day, hour) = (self.weekday.unwrap_or(1), self.hour.unwrap_or(12));
        let minute = self.minute.unwrap_or(0);
        let case = if self.name.is_empty() {
            format!("{} {} {}", self.user, self.action.as_str(), self.resource)
        } else {
            self.name.clone()
        };
        if !(1..=7).contains(&day) || hour > 23 || minute > 59 {
            let differs = vec!["weekday is 1 to 7, hour 0 to 23, minute 0 to 59".to_owned()];
            return CaseResult { case, differs, decided: Vec::new() };
        }
        // Years later than 1970, so that a sign-in may be as old as it likes.
        let now_ms = (seconds_of(day, hour, minute) + 2600 * 7 * 86_400) * 1000;
        let circumstances = Circumstances {
            source: self.source,
            locations: self.locations.clone(),
            now_ms,
            granted: self.granted,
            transport: self.transport.clone(),
        };
        let (subject, object) = (self.subject(now_ms), self.object());
        let (action, circumstances) = (self.action, &circumstances);
        let decision =
            policies.decide(&Request { subject: &subject, action, object: &object, circumstances });
        let mut differs = decision.errors.clone();
        let allowed = if decision.allowed { Expected::Allow } else { Expected::Deny };
        if allowed != self.expect {
            differs.push(format!("expected {}, got {}", word(self.expect), word(allowed)));
        }
        differs.extend(self.obligations_differ(&decision.obligations));
        let decided: BTreeSet<String> = decision.deciding.iter().cloned().collect();
        if let Some(expected) = self.policies.as_ref().filter(|expected| **expected != decided) {
            differs.push(format!("expected to be decided by {expected:?}, was by {decided:?}"));
        }
        CaseResult { case, differs, decided: decision.deciding }
    }

    fn obligations_differ(&self, got: &Obligations) -> Option<String> {
        let words = self.obligations.as_ref()?;
        match Obligations::from_words(words.iter().map(String::as_str)) {
            Err(error) => Some(error),
            Ok(expected) if expected != *got => {
                Some(format!("expected obligations [{expected}], got [{got}]"))
            }
            Ok(_) => None,
        }
    }
}

const fn word(expected: Expected) -> &'static str {
    match expected {
        Expected::Allow => "allow",
        Expected::Deny => "deny",
    }
}
