//! The name that a request goes by in the log, so that its caller and its broker mean the same one.
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::broker::clock;

/// Callers may name their request in this header; every answer has it.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Characters of a name: room for a UUID and a prefix.
const CHARS_MAX: usize = 64;
/// Characters of a name made here: 80 random bits.
const MADE_CHARS: usize = 16;

/// A request's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// The caller's name for it, if it is fit for a log; else a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let named = headers.get(&HEADER).filter(|name| is_sane(name.as_bytes()));
        Self(named.cloned().unwrap_or_else(|| {
            let made = HeaderValue::from_str(&clock::random_name(MADE_CHARS));
            made.unwrap_or(HeaderValue::from_static("unnamed"))
        }))
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(super) fn put_into(self, headers: &mut HeaderMap) {
        headers.insert(HEADER, self.0);
    }
}

fn is_sane(name: &[u8]) -> bool {
    (1..=CHARS_MAX).contains(&name.len())
        && name.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, name.parse().unwrap());
        RequestId::of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_sane_name_is_kept_and_any_other_replaced() {
        for sane in ["a", "0189-ab_c.d", &"x".repeat(64)] {
            assert_eq!(of(sane), sane);
        }
        for other in ["", "a b", "a\"b", "x=y", &"x".repeat(65)] {
            assert!(of(other) != other && of(other).len() == MADE_CHARS, "{other:?}");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}
