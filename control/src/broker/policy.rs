//! The judge that everything goes through: policies, named locations, and what is known of who asks.
mod files;
mod live;
mod questions;
mod sight;
mod watch;

pub use files::read_policies;
pub(crate) use questions::{Judged, SessionFacts, watch_rights};
pub(in crate::broker) use watch::run;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use self::questions::bound;
use crate::api::{AuditRecord, PolicyStatus, PolicyText};
use crate::broker::clock;
use crate::broker::config::ServeConfig;
use crate::broker::locations::Location;
use crate::broker::store::{ANNOUNCED_MAX, Owner, Standing};
use crate::code::{Code, Fault};
use crate::policy::{
    Action, Asker, Circumstances, Complaint, Decision, Object, Obligations, Policies, PolicyFile,
    Request, Subject, Thing, Trial,
};

/// Characters of a request's id in the audit trail.
const REQUEST_CHARS: usize = 12;

/// What a session may do under the policies that granted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Rights {
    /// Narrows its transport and its rate.
    #[serde(rename = "o", skip_serializing_if = "Obligations::is_none")]
    pub(crate) obligations: Obligations,
    /// When it ends, Unix milliseconds, and why.
    #[serde(rename = "e", skip_serializing_if = "Option::is_none")]
    pub(crate) ends: Option<(u64, Code)>,
}

impl Rights {
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The policies that hold, and how to ask them.
#[derive(Debug)]
pub(crate) struct Judge {
    path: Option<PathBuf>,
    locations: Vec<Location>,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    policies: Arc<Policies>,
    files: Vec<PolicyFile>,
    loaded_ms: u64,
    reloads: u64,
    failures: u64,
    wrong: Vec<Complaint>,
}

impl Judge {
    /// Reads the policies; at the start there are no good ones to keep, so wrong ones are an error.
    ///
    /// # Errors
    /// [`Code::PolicyInvalid`], [`Code::ConfigInvalid`].
    pub(crate) fn new(config: &ServeConfig) -> Result<Self, Fault> {
        Location::judge(&config.locations)?;
        let (policies, files) = match &config.policy {
            None => (Policies::built_in(), vec![built_in_file()]),
            Some(path) => {
                let files = files::read(path)?;
                let policies = Policies::check(&files).map_err(|wrong| invalid(&wrong))?;
                (policies, files)
            }
        };
        let held = Held {
            policies: Arc::new(policies),
            files,
            loaded_ms: clock::unix_ms(),
            reloads: 0,
            failures: 0,
            wrong: Vec::new(),
        };
        let (path, locations) = (config.policy.clone(), config.locations.clone());
        Ok(Self { path, locations, held: Mutex::new(held) })
    }

    /// Where they are read from, if they are not the built-in ones.
    pub(crate) const fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    pub(crate) fn policies(&self) -> Arc<Policies> {
        self.held().policies.clone()
    }

    pub(crate) fn is_built_in(&self) -> bool {
        self.path.is_none()
    }

    pub(crate) fn status(&self, with_text: bool) -> PolicyStatus {
        let held = self.held();
        let text =
            |file: &PolicyFile| PolicyText { name: file.name.clone(), text: file.text.clone() };
        PolicyStatus {
            path: self.path.as_ref().map(|path| path.display().to_string()),
            policies: held.policies.len(),
            loaded_ms: held.loaded_ms,
            reloads: held.reloads,
            failures: held.failures,
            wrong: held.wrong.clone(),
            locations: self.locations.iter().map(|it| it.name().to_owned()).collect(),
            files: if with_text { held.files.iter().map(text).collect() } else { Vec::new() },
        }
    }

    /// Takes new files in; `Err`: they are wrong, and the policies from before hold.
    fn replace(&self, files: Result<Vec<PolicyFile>, Fault>) -> Result<usize, String> {
        let checked = files.map_err(|fault| vec![whole(&fault)]);
        let checked = checked.and_then(|files| Ok((Policies::check(&files)?, files)));
        let mut held = self.held();
        match checked {
            Ok((policies, files)) => {
                let (policies, loaded_ms) = (Arc::new(policies), clock::unix_ms());
                let (reloads, failures) = (held.reloads + 1, held.failures);
                let count = policies.len();
                *held = Held { policies, files, loaded_ms, reloads, failures, wrong: Vec::new() };
                Ok(count)
            }
            Err(wrong) => {
                held.failures += 1;
                let said = invalid(&wrong).detail;
                held.wrong = wrong;
                Err(said)
            }
        }
    }

    pub(crate) fn circumstances(
        &self,
        source: Option<IpAddr>,
        granted: bool,
        transport: Option<String>,
    ) -> Circumstances {
        let locations = source.map_or_else(BTreeSet::new, |it| Location::of(&self.locations, it));
        Circumstances { source, locations, now_ms: clock::unix_ms(), granted, transport }
    }

    /// About a resource as each of its agents announced it: all of it must be allowed.
    pub(crate) fn decide_all(
        &self,
        subject: &Subject,
        action: Action,
        objects: Vec<Object>,
        circumstances: &Circumstances,
    ) -> Decision {
        let things: Vec<_> = objects.into_iter().map(Thing::from).collect();
        all_of(&self.policies().asker(subject, action, circumstances), &things)
    }

    /// As [`Self::decide_all`], with the grounds.
    pub(crate) fn try_out(
        &self,
        subject: &Subject,
        action: Action,
        objects: &[Object],
        circumstances: &Circumstances,
    ) -> Trial {
        if objects.len() > ANNOUNCED_MAX {
            return Trial { decision: too_many(), ..Trial::default() };
        }
        let locations: Vec<_> = self.locations.iter().map(|it| it.name().to_owned()).collect();
        let policies = self.policies();
        let try_out = |object| {
            policies.try_out(&Request { subject, action, object, circumstances }, &locations)
        };
        objects.iter().map(try_out).reduce(Trial::and).unwrap_or_default()
    }

    /// What a session may do that was granted at `created_ms`.
    fn rights(
        &self,
        standing: &Standing,
        decision: &Decision,
        created_ms: u64,
        now_ms: u64,
    ) -> Result<Rights, Code> {
        if !decision.allowed {
            let plain = self.is_built_in() && !standing.granted;
            return Err(if plain { Code::ResourceNotGranted } else { Code::PolicyDenied });
        }
        bound(&standing.subject, decision, created_ms, now_ms)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owner {
    /// As policies see them.
    pub(crate) fn subject(&self) -> Subject {
        Subject {
            name: self.name.clone(),
            admin: self.admin,
            claims: self.claims.clone(),
            signed_in_ms: self.signed_in_ms(),
        }
    }

    /// A login string's user signed in when it was minted. Of its own users only a provider can tell: they get a new token here
    /// by an ID token that a refresh token brought, with nobody present.
    fn signed_in_ms(&self) -> Option<u64> {
        let minted = self.claims.issuer.is_none().then_some(self.created_ms);
        self.claims.auth_time_ms.or(minted)
    }
}

/// All of them must be allowed.
fn all_of(asker: &Asker<'_>, things: &[Thing]) -> Decision {
    if things.len() > ANNOUNCED_MAX {
        return too_many();
    }
    let decisions = things.iter().map(|thing| asker.decide(thing));
    decisions.reduce(Decision::and).unwrap_or_default()
}

fn too_many() -> Decision {
    let error = format!("agents announce the resource in more than {ANNOUNCED_MAX} ways");
    Decision { errors: vec![error], ..Decision::default() }
}

/// A record of what `user` wanted, still to be filled in with the outcome.
pub(crate) fn record(
    user: &str,
    action: &str,
    resource: &str,
    decision: &Decision,
    source: Option<IpAddr>,
) -> AuditRecord {
    AuditRecord {
        at_ms: clock::unix_ms(),
        correlation: clock::random_name(REQUEST_CHARS),
        user: user.to_owned(),
        action: action.to_owned(),
        resource: resource.to_owned(),
        allowed: decision.allowed,
        policies: decision.deciding.clone(),
        obligations: decision.obligations.words(),
        source: source.map(|source| source.to_canonical().to_string()),
        code: None,
        detail: decision.errors.first().cloned(),
    }
}

fn built_in_file() -> PolicyFile {
    PolicyFile { name: "built-in".into(), text: crate::policy::BUILT_IN.into() }
}

fn whole(fault: &Fault) -> Complaint {
    let message = fault.detail.clone();
    Complaint { file: "policy".into(), line: 0, column: 0, message, help: None }
}

/// The first of what is wrong, and how much more there is.
fn invalid(wrong: &[Complaint]) -> Fault {
    let first = wrong.first().map(ToString::to_string).unwrap_or_default();
    match wrong.len() {
        0 | 1 => Code::PolicyInvalid.because(first),
        more => Code::PolicyInvalid.because(format!("{first}; and {} more", more - 1)),
    }
}
