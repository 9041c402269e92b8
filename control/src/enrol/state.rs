//! What an end keeps of its enrolment: `enrolment.json` in its state directory, replaced whole with every change.
//!
//! Both keys are in it before the broker hears of either, so whenever the end is killed, one that the broker takes is there.
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::proof::{EndKey, fingerprint};
use crate::api::TokenKind;
use crate::client::profile::write_private;
use crate::code::{Code, Fault};
use crate::invite::{Invite, InviteKind};
use crate::secret::Secret;

const STATE_FILE: &str = "enrolment.json";

/// An end's enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) kind: TokenKind,
    pub(super) name: String,
    pub(super) url: String,
    pub(super) pin: String,
    /// Of the token that it was made with.
    pub(super) join: String,
    /// Absent until the broker has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    pub(super) key: Secret,
    /// When `key` was made or last replaced, Unix milliseconds.
    pub(super) made_ms: u64,
    /// The key before, or the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) other: Option<Secret>,
    /// `other` is the next one, and the broker has not said yet that it takes it.
    #[serde(default)]
    pub(super) rotating: bool,
}

impl State {
    /// Of an end that is yet to enrol.
    pub(super) fn fresh(
        invite: &Invite,
        kind: TokenKind,
        name: &str,
        now_ms: u64,
    ) -> Result<Self, Fault> {
        Ok(Self {
            kind,
            name: name.to_owned(),
            url: invite.url.clone(),
            pin: invite.pin.clone(),
            join: fingerprint(invite.token.reveal()),
            id: None,
            key: EndKey::generate()?.to_text(),
            made_ms: now_ms,
            other: None,
            rotating: false,
        })
    }

    /// The state in this directory, if there is one.
    ///
    /// # Errors
    /// [`Code::DataDirUnusable`], [`Code::DataCorrupt`].
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Fault> {
        let path = path(dir);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Code::DataDirUnusable.because(format!("{}: {error}", path.display())));
            }
        };
        // No detail from serde: it may quote a value.
        let state: Option<Self> = serde_json::from_slice(&text).ok();
        let keys = |state: &Self| state.keys().all(|key| EndKey::from_text(key).is_some());
        state.filter(keys).map(Some).ok_or_else(|| {
            let text = format!("{} is damaged; remove it and join anew", path.display());
            Code::DataCorrupt.because(text)
        })
    }

    /// Keeps it, whole or not at all.
    ///
    /// # Errors
    /// [`Code::DataDirUnusable`].
    pub(super) fn save(&self, dir: &Path) -> Result<(), Fault> {
        let path = path(dir);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Code::Internal.because(error.to_string()))?;
        write_private(&path, &text)
            .map_err(|error| Code::DataDirUnusable.because(format!("{}: {error}", path.display())))
    }

    /// Has the other key be the one to sign with.
    pub(super) fn swap(&mut self) {
        if let Some(other) = &mut self.other {
            std::mem::swap(&mut self.key, other);
        }
    }

    fn keys(&self) -> impl Iterator<Item = &Secret> {
        std::iter::once(&self.key).chain(&self.other)
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(STATE_FILE)
}

/// What an end starts from: its state, or a fresh one that is yet to enrol by the invitation's token.
///
/// # Errors
/// [`Code::UsageInvalid`] without either; [`Code::ConfigInvalid`] if the state is another end's, which is not overwritten.
pub(super) fn choose(
    stored: Option<State>,
    invite: &Invite,
    (kind, name): (TokenKind, &str),
    now_ms: u64,
) -> Result<State, Fault> {
    let joins = !invite.token.reveal().is_empty();
    if let Some(state) = stored.filter(|state| state.pin == invite.pin) {
        let same = state.kind == kind && state.name == name;
        let enrolled = state.id.is_some();
        if enrolled && !same {
            return Err(not_its(&state));
        }
        // A string that may have been used up by this very key, whose answer was lost.
        let asked = same && state.join == fingerprint(invite.token.reveal());
        if enrolled || asked {
            return Ok(State { url: invite.url.clone(), ..state });
        }
    }
    if joins { State::fresh(invite, kind, name, now_ms) } else { Err(no_string()) }
}

/// Which broker an end goes to, and under which name: from its flags, and from the state that an earlier run left in `dir`.
/// Without a join string the invitation that comes back holds no token.
///
/// # Errors
/// [`Code::UsageInvalid`] without a join string where nothing is enrolled; [`Code::ConfigInvalid`] for a name that is not the
/// state's; [`Code::DataDirUnusable`], [`Code::DataCorrupt`].
pub fn joining(
    dir: &Path,
    kind: TokenKind,
    join: Option<Invite>,
    name: Option<String>,
    host_name: impl FnOnce() -> String,
) -> Result<(Invite, String), Fault> {
    let stored = State::load(dir)?.filter(|state| state.kind == kind && state.id.is_some());
    match (join, stored) {
        (Some(invite), Some(state)) if state.pin == invite.pin => {
            Ok((invite, name.unwrap_or(state.name)))
        }
        (Some(invite), _) => Ok((invite, name.unwrap_or_else(host_name))),
        (None, Some(state)) if name.as_ref().is_some_and(|name| *name != state.name) => {
            Err(not_its(&state))
        }
        (None, Some(State { url, pin, name, .. })) => {
            let (kind, token) = (invite_kind(kind), Secret::new(""));
            Ok((Invite { kind, url, pin, token }, name))
        }
        (None, None) => Err(no_string()),
    }
}

fn no_string() -> Fault {
    Code::UsageInvalid.because(
        "no join string, and none was used here before: pass --join or set SWITCHBACK_JOIN",
    )
}

fn not_its(State { kind, name, .. }: &State) -> Fault {
    let kind = kind.as_str();
    let text = format!(
        "the state directory is that of {kind} `{name}`: pass another one with --state, or --name {name}"
    );
    Code::ConfigInvalid.because(text)
}

pub(super) const fn invite_kind(kind: TokenKind) -> InviteKind {
    match kind {
        TokenKind::User => InviteKind::Login,
        TokenKind::Agent => InviteKind::Join,
        TokenKind::Gateway => InviteKind::Gateway,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LAB: (TokenKind, &str) = (TokenKind::Agent, "lab");

    fn invite(pin: &str, token: &str) -> Invite {
        let (url, pin, token) = ("https://gate.example".into(), pin.into(), Secret::new(token));
        Invite { kind: InviteKind::Join, url, pin, token }
    }

    fn enrolled() -> State {
        let fresh = State::fresh(&invite("pin", "used"), LAB.0, LAB.1, 1).unwrap();
        State { id: Some("id".into()), ..fresh }
    }

    fn chosen(stored: &State, invite: &Invite, end: (TokenKind, &str)) -> Result<State, Code> {
        choose(Some(stored.clone()), invite, end, 2).map_err(|fault| fault.code)
    }

    #[test]
    fn the_state_is_private_whole_and_shows_no_key() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("agent");
        assert_eq!(State::load(&dir).unwrap(), None);
        let mut state = enrolled();
        state.other = Some(EndKey::generate().unwrap().to_text());
        state.save(&dir).unwrap();
        assert_eq!(State::load(&dir).unwrap(), Some(state.clone()));
        let mode = fs::metadata(path(&dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{state:?}").contains(state.key.reveal()));
        let text = fs::read_to_string(path(&dir)).unwrap();
        for damaged in [&text[..text.len() / 2], "", &text.replace(state.key.reveal(), "AAAA")] {
            fs::write(path(&dir), damaged).unwrap();
            assert_eq!(State::load(&dir).unwrap_err().code, Code::DataCorrupt);
        }
    }

    #[test]
    fn an_enrolled_end_needs_no_string_and_spends_none() {
        let state = enrolled();
        for token in ["", "used", "another"] {
            let kept = chosen(&state, &invite("pin", token), LAB).unwrap();
            assert_eq!(kept, state, "{token}");
        }
        let moved = Invite { url: "https://new.example".into(), ..invite("pin", "") };
        assert_eq!(chosen(&state, &moved, LAB).unwrap().url, "https://new.example");
    }

    #[test]
    fn a_string_for_another_broker_enrols_anew_and_a_lost_answer_keeps_its_key() {
        let state = enrolled();
        let anew = chosen(&state, &invite("other", "t"), LAB).unwrap();
        assert!(anew.id.is_none() && anew.key != state.key);
        let pending = State { id: None, ..state.clone() };
        assert_eq!(chosen(&pending, &invite("pin", "used"), LAB).unwrap(), pending);
        let anew = chosen(&pending, &invite("pin", "another"), LAB).unwrap();
        assert_ne!(anew.key, pending.key, "a key is shown with one string only");
        assert_eq!(chosen(&pending, &invite("pin", ""), LAB), Err(Code::UsageInvalid));
        assert_eq!(chosen(&state, &invite("other", ""), LAB), Err(Code::UsageInvalid));
    }

    #[test]
    fn no_end_takes_anothers_state() {
        for end in [(TokenKind::Agent, "annex"), (TokenKind::Gateway, "lab")] {
            let refused = chosen(&enrolled(), &invite("pin", "t"), end);
            assert_eq!(refused, Err(Code::ConfigInvalid), "{end:?}");
        }
    }

    #[test]
    fn flags_and_state_say_together_who_it_is() {
        let root = tempfile::tempdir().unwrap();
        let host = || "host".to_owned();
        let who = |join: Option<Invite>, name: Option<&str>| {
            joining(root.path(), TokenKind::Agent, join, name.map(str::to_owned), host)
                .map(|(invite, name)| (invite.pin, name))
                .map_err(|fault| fault.code)
        };
        let said = |pin: &str, name: &str| Ok((pin.to_owned(), name.to_owned()));
        assert_eq!(who(None, None), Err(Code::UsageInvalid));
        assert_eq!(who(Some(invite("pin", "t")), None), said("pin", "host"));
        enrolled().save(root.path()).unwrap();
        assert_eq!(who(None, None), said("pin", "lab"));
        assert_eq!(who(None, Some("lab")), said("pin", "lab"));
        assert_eq!(who(None, Some("annex")), Err(Code::ConfigInvalid));
        assert_eq!(who(Some(invite("pin", "t")), None), said("pin", "lab"));
        assert_eq!(who(Some(invite("other", "t")), None), said("other", "host"));
    }
}
