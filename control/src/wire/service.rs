//! What is said of a service besides where it is: how it looks in a feed, how agents share its sessions, and how it is.
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::code::Code;

/// Characters of a title at most: a line of a list.
pub const TITLE_CHARS_MAX: usize = 80;
/// Characters of an icon's name, a tag, or one folder of a path at most.
pub const WORD_CHARS_MAX: usize = 63;
/// Folders within folders at most.
pub const FOLDER_DEPTH_MAX: usize = 8;
/// Tags of one resource at most.
pub const TAGS_MAX: usize = 16;

/// How a resource looks in a feed.
#[derive(utoipa::ToSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Look {
    /// For people, in place of the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Name of an icon, for whoever draws the feed; Switchback has none of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icon: Option<String>,
    /// Where it is listed, `Berlin/Servers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// What policies and people find it by.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
}

impl Look {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks what is said against the limits above.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.title.as_ref().is_some_and(|title| !is_text(title, TITLE_CHARS_MAX)) {
            return Err(format!(
                "a title is 1 to {TITLE_CHARS_MAX} characters without control characters"
            ));
        }
        if self.icon.iter().chain(&self.tags).any(|word| !is_word(word)) {
            return Err(format!(
                "an icon or tag is 1 to {WORD_CHARS_MAX} of a-z 0-9 - _ . : and nothing else"
            ));
        }
        if self.tags.len() > TAGS_MAX {
            return Err(format!("a resource has {TAGS_MAX} tags at most"));
        }
        let is_path = |path: &String| {
            path.split('/').count() <= FOLDER_DEPTH_MAX
                && path.split('/').all(|folder| is_text(folder, WORD_CHARS_MAX))
        };
        if self.folder.as_ref().is_some_and(|path| !is_path(path)) {
            return Err(format!(
                "a folder is NAME/NAME, {FOLDER_DEPTH_MAX} deep at most, {WORD_CHARS_MAX} characters each"
            ));
        }
        Ok(())
    }
}

fn is_text(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.chars().count())
        && text.trim() == text
        && !text.chars().any(char::is_control)
}

fn is_word(text: &str) -> bool {
    let fits = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.' | ':');
    (1..=WORD_CHARS_MAX).contains(&text.len()) && text.chars().all(fits)
}

/// How the agents that offer one resource share its sessions.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The agent with the fewest sessions gets the next: everybody has most room.
    #[default]
    Breadth,
    /// The agent with the most sessions, while there is room, gets the next: others stay free, or can be switched off.
    Depth,
}

impl Balance {
    /// Lower-case name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Breadth => "breadth",
            Self::Depth => "depth",
        }
    }

    /// The other way round.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Breadth, Self::Depth].into_iter().find(|balance| balance.as_str() == text)
    }
}

/// What one agent takes of a resource's sessions.
#[derive(utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolShare {
    /// How to choose among agents; where they differ, the one connected longest says.
    pub balance: Balance,
    /// Sessions of this resource at this agent at once; absent: no limit of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_max: Option<u32>,
}

impl PoolShare {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether an agent reaches one of its targets.
#[derive(utoipa::ToSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetHealth {
    /// The resource.
    pub resource: String,
    /// Why it does not; absent: it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Code>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_no_plain_text_is_refused() {
        let good = Look {
            title: Some("Office SSH – Berlin".into()),
            icon: Some("terminal".into()),
            folder: Some("Berlin/Server room".into()),
            tags: ["env:prod".to_owned(), "ssh".to_owned()].into(),
        };
        assert_eq!(good.check(), Ok(()));
        let text = |text: &str| Some(text.to_owned());
        let deep = ["a"; FOLDER_DEPTH_MAX + 1].join("/");
        for bad in [
            Look { title: text(""), ..good.clone() },
            Look { title: text("\u{1b}[31mred"), ..good.clone() },
            Look { title: Some("x".repeat(TITLE_CHARS_MAX + 1)), ..good.clone() },
            Look { icon: text("../../etc"), ..good.clone() },
            Look { folder: text("/Berlin"), ..good.clone() },
            Look { folder: Some(deep), ..good.clone() },
            Look { tags: (0..=TAGS_MAX).map(|n| format!("t{n}")).collect(), ..good.clone() },
            Look { tags: ["Prod".to_owned()].into(), ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
