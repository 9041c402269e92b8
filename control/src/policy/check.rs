//! From files to a checked set of policies, or to everything that is wrong with them, each with its line and column.
use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use serde::{Deserialize, Serialize};

use super::bounds::{self, FILES_MAX, POLICIES_MAX, POLICY_BYTES_MAX};
use super::{Obligations, SCHEMA};

/// Complaints kept; whoever mends those comes back for more.
const COMPLAINTS_MAX: usize = 50;
/// Characters of a policy's `@id`.
const ID_CHARS_MAX: usize = 128;

/// A file of policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFile {
    /// Its name, for people.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// Something that is wrong with a policy file.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// Which.
    pub file: String,
    /// From 1; 0 if it is about the file as a whole.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message, help } = self;
        match line {
            0 => write!(f, "{file}: {message}")?,
            _ => write!(f, "{file}:{line}:{column}: {message}")?,
        }
        help.as_ref().map_or(Ok(()), |help| write!(f, " ({help})"))
    }
}

static THE_SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let read = Schema::from_cedarschema_str(SCHEMA);
    // It is part of this program, and tests read it.
    read.expect("the built-in schema is sound").0
});

/// Policies with what each obliges to.
type Checked = (PolicySet, HashMap<PolicyId, Obligations>);

pub(super) fn check(files: &[PolicyFile]) -> Result<Checked, Vec<Complaint>> {
    too_much(files)?;
    let mut reading = Reading::default();
    let mut files: Vec<_> = files.iter().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    for file in &files {
        reading.read(file);
    }
    if reading.set.num_of_policies() > POLICIES_MAX && reading.wrong.is_empty() {
        let message = format!("more than {POLICIES_MAX} policies in all");
        reading.wrong.push(about(files[0], None, message, None));
    }
    if reading.wrong.is_empty() {
        reading.validate(&files);
    }
    let Reading { set, obligations, mut wrong, .. } = reading;
    if wrong.is_empty() {
        return Ok((set, obligations));
    }
    wrong.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    wrong.truncate(COMPLAINTS_MAX);
    Err(wrong)
}

fn too_much(files: &[PolicyFile]) -> Result<(), Vec<Complaint>> {
    let Some(first) = files.first() else { return Ok(()) };
    let whole = |message: String| Err(vec![about(first, None, message, None)]);
    if files.len() > FILES_MAX {
        return whole(format!("more than {FILES_MAX} files"));
    }
    let bytes: usize = files.iter().map(|file| file.text.len()).sum();
    if bytes > POLICY_BYTES_MAX {
        return whole(format!("the policies exceed {} KiB", POLICY_BYTES_MAX / 1024));
    }
    let judged = |file: &PolicyFile| {
        bounds::judge(&file.text).map(|(at, message)| about(file, Some(at), message, None))
    };
    let wrong: Vec<_> = files.iter().filter_map(judged).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// What was read so far.
#[derive(Default)]
struct Reading {
    set: PolicySet,
    obligations: HashMap<PolicyId, Obligations>,
    /// Which file a policy is in, by its place in the order.
    homes: HashMap<PolicyId, String>,
    wrong: Vec<Complaint>,
}

impl Reading {
    fn read(&mut self, file: &PolicyFile) {
        match file.text.parse::<PolicySet>() {
            Ok(set) => {
                if let Some(template) = set.templates().next() {
                    let message =
                        format!("`{}` is a template; only plain policies are used", template.id());
                    self.wrong.push(about(file, None, message, None));
                }
                let mut policies: Vec<_> = set.policies().collect();
                // "policy0", "policy1", ...: the order of the file.
                policies.sort_by_key(|policy| number_of(policy.id()));
                let mut from = 0;
                for policy in policies {
                    let at = place_of_policy(&file.text, from, policy);
                    from = at.map_or(from, |at| at + 1);
                    self.take(file, policy, at);
                }
            }
            Err(errors) => {
                let errors = errors.iter().map(|error| detailed(file, &DetailedError::from(error)));
                self.wrong.extend(errors);
            }
        }
    }

    fn take(&mut self, file: &PolicyFile, policy: &Policy, at: Option<usize>) {
        let number = number_of(policy.id()) + 1;
        let named = policy.annotation("id").filter(|id| !id.is_empty());
        let id = named.map_or_else(|| format!("{}#{number}", file.name), str::to_owned);
        if id.len() > ID_CHARS_MAX || id.chars().any(char::is_control) {
            let message = format!("@id: is at most {ID_CHARS_MAX} plain characters");
            return self.wrong.push(about(file, at, message, None));
        }
        let policy = policy.new_id(PolicyId::new(&id));
        match Obligations::read(policy.annotations(), policy.effect()) {
            Ok(obligations) => {
                if !obligations.is_none() {
                    self.obligations.insert(policy.id().clone(), obligations);
                }
            }
            Err(errors) => {
                let complaints = errors.into_iter().map(|message| about(file, at, message, None));
                self.wrong.extend(complaints);
            }
        }
        self.homes.insert(policy.id().clone(), file.name.clone());
        if self.set.add(policy).is_err() {
            self.wrong.push(about(file, at, format!("another policy has the id `{id}`"), None));
        }
    }

    fn validate(&mut self, files: &[&PolicyFile]) {
        let result = Validator::new(THE_SCHEMA.clone()).validate(&self.set, ValidationMode::Strict);
        for error in result.validation_errors() {
            let home = self.homes.get(error.policy_id());
            let file = files.iter().find(|file| Some(&file.name) == home);
            if let Some(file) = file.or(files.first()) {
                self.wrong.push(detailed(file, &DetailedError::from(error)));
            }
        }
    }
}

/// Cedar numbers the policies of a text.
fn number_of(id: &PolicyId) -> usize {
    let id = id.to_string();
    id.strip_prefix("policy").and_then(|number| number.parse().ok()).unwrap_or(usize::MAX - 1)
}

/// Where the policy stands, if its text is found as it was read, behind those before it.
fn place_of_policy(text: &str, from: usize, policy: &Policy) -> Option<usize> {
    Some(from + text.get(from..)?.find(policy.to_string().trim())?)
}

fn detailed(file: &PolicyFile, error: &DetailedError) -> Complaint {
    let at = error.source_locations.first().map(|label| label.loc.start);
    about(file, at, error.message.clone(), error.help.clone())
}

fn about(file: &PolicyFile, at: Option<usize>, message: String, help: Option<String>) -> Complaint {
    let (line, column) = at.map_or((0, 0), |at| place_of(&file.text, at));
    Complaint { file: file.name.clone(), line, column, message, help }
}

/// Line and column of a byte position.
fn place_of(text: &str, at: usize) -> (usize, usize) {
    let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}
