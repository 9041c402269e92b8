//! The first word: a message that travels with the request for a link, so that its answer comes right behind the link.
//!
//! RFC 6455 section 4.1 forbids to send on a WebSocket before the other end has agreed to it, so the word is a header of the
//! request. A broker that takes it says so in a header of its answer; without that, as from an older broker, the message is
//! sent on the link like any other. It is asked for when the request leaves, so that it is of that moment.
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::BASE64URL_NOPAD;
use hyper::header::HeaderValue;
use serde::Serialize;

use crate::wire::FIRST_WORD_BYTES_MAX;

/// Makes the message.
type Word<Out> = Arc<dyn Fn() -> Out + Send + Sync>;
/// A word, with the number that names it.
type Numbered<Out> = (u64, Word<Out>);

/// The place for one first word. Clones share it. `Debug` shows no message.
pub struct FirstWord<Out>(Arc<Mutex<Option<Numbered<Out>>>>);

impl<Out> Default for FirstWord<Out> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<Out> Clone for FirstWord<Out> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Out> fmt::Debug for FirstWord<Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstWord").field("number", &self.number()).finish()
    }
}

/// A word on its way with a request.
pub(super) struct Leaving {
    number: u64,
    pub(super) header: HeaderValue,
}

impl<Out: Serialize> FirstWord<Out> {
    /// The word as a header, if there is one that fits. It stays in its place until [`Self::said`].
    pub(super) fn leave(&self) -> Option<Leaving> {
        let (number, word) = self.place().clone()?;
        let text = serde_json::to_string(&word()).ok()?;
        if text.len() > FIRST_WORD_BYTES_MAX {
            return None;
        }
        let mut header = HeaderValue::try_from(BASE64URL_NOPAD.encode(text.as_bytes())).ok()?;
        header.set_sensitive(true);
        Some(Leaving { number, header })
    }
}

impl<Out> FirstWord<Out> {
    /// Puts a word into the place, named by a number of the caller's; false if another is there.
    pub fn offer(&self, number: u64, word: Word<Out>) -> bool {
        let mut place = self.place();
        let free = place.is_none();
        place.get_or_insert((number, word));
        free
    }

    /// Takes the word back; false if it was said, or never there.
    pub fn withdraw(&self, number: u64) -> bool {
        self.place().take_if(|(known, _)| *known == number).is_some()
    }

    /// The number of the word that waits.
    pub fn number(&self) -> Option<u64> {
        self.place().as_ref().map(|(number, _)| *number)
    }

    /// The broker took it.
    pub(super) fn said(&self, leaving: &Leaving) {
        self.withdraw(leaving.number);
    }

    fn place(&self) -> MutexGuard<'_, Option<Numbered<Out>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Word<String> {
        let text = text.to_owned();
        Arc::new(move || text.clone())
    }

    #[test]
    fn there_is_one_first_word_until_it_was_said_or_withdrawn() {
        let first = FirstWord::default();
        assert!(first.offer(1, word("one")) && !first.offer(2, word("two")));
        assert!(!first.withdraw(2) && first.number() == Some(1));
        let leaving = first.leave().unwrap();
        assert_eq!(first.number(), Some(1), "an attempt that fails has said nothing");
        first.said(&leaving);
        assert!(first.number().is_none() && !first.withdraw(1));
        assert!(first.offer(2, word("two")));
    }

    #[test]
    fn a_word_that_is_too_long_for_a_header_waits_for_the_link() {
        let first = FirstWord::default();
        first.offer(1, word(&"x".repeat(FIRST_WORD_BYTES_MAX)));
        assert!(first.leave().is_none());
        assert!(first.withdraw(1));
    }

    #[test]
    fn a_first_word_is_shown_nowhere() {
        let first = FirstWord::default();
        first.offer(1, word("secret"));
        let shown = format!("{first:?} {:?}", first.leave().unwrap().header);
        assert!(!shown.contains("secret") && !shown.contains("c2Vj"), "{shown}");
    }
}
