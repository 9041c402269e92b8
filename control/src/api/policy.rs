//! What administrators see of policies and of what was decided by them.
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::policy::{Complaint, Trial};

/// One decision.
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// The session's id, or one of its own for what is no session: what logs and lists know it by.
    pub correlation: String,
    /// Who asked: a user, or the end that enrols (`agent/NAME`, `gateway/NAME`); empty if it was the broker itself, or nobody known.
    pub user: String,
    /// `connect`, `kill`, `admin`, `enrol`, `policy-reload`, ...
    pub action: String,
    /// What it was about: a resource, a session, an agent or a gateway, or a request to the API.
    pub resource: String,
    /// Whether it was allowed.
    pub allowed: bool,
    /// Policies that decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// What they oblige to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obligations: Vec<String>,
    /// Where the asker's connection came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What the asker was told, if it was denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// More, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Which policies hold.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// `serve --policy`; absent for the built-in ones.
    pub path: Option<String>,
    /// How many policies.
    pub policies: usize,
    /// When they were read, Unix milliseconds.
    pub loaded_ms: u64,
    /// Times they were read anew and hold since.
    pub reloads: u64,
    /// Times they were not, because something was wrong.
    pub failures: u64,
    /// What is wrong with the files as they are now; the last good ones hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<Complaint>,
    /// Named locations.
    pub locations: Vec<String>,
    /// Their text, file by file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PolicyText>,
}

/// A policy file as it holds.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// A question to the broker's policies.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainPolicy {
    /// Who would ask.
    pub user: String,
    /// About which resource.
    #[serde(default)]
    pub resource: String,
    /// What for; `connect` if left out.
    #[serde(default)]
    pub action: Option<String>,
    /// Where from.
    #[serde(default)]
    pub source: Option<String>,
    /// In more groups than their sign-in brought.
    #[serde(default)]
    pub groups: Vec<String>,
    /// With these methods as well.
    #[serde(default)]
    pub amr: Vec<String>,
    /// Unix milliseconds; now if left out.
    #[serde(default)]
    pub at_ms: Option<u64>,
    /// `udp` or `tcp`.
    #[serde(default)]
    pub transport: Option<String>,
}

/// The answer.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyExplained {
    /// The decision, its grounds, and what would change it.
    #[serde(flatten)]
    pub trial: Trial,
    /// Whether a grant covers it.
    pub granted: bool,
    /// Named locations of the source.
    pub locations: Vec<String>,
}
