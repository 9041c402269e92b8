//! When a provider's keys are asked for. Pure: the shell in `provider` fetches.
//!
//! Keys are kept for a day though the provider may be down; they are fetched anew, in the background, once they are an
//! hour old, and at once for a key id that is not among them: that is how a provider rotates. Tokens are strangers' text,
//! so what they name has the provider asked every 30 s at most.
use std::time::{Duration, Instant};

use super::document::Keys;

/// Keys this old are fetched anew behind the scenes.
const REFRESH_AFTER: Duration = Duration::from_secs(3600);
/// Keys this old are not believed any more: by then the provider may have withdrawn them long ago.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Between two fetches while there are keys to go on with.
const PAUSE: Duration = Duration::from_secs(30);
/// Between two fetches while there are no keys to go on with.
const PAUSE_WITHOUT: Duration = Duration::from_secs(3);

/// What a request for keys gets.
pub(crate) enum Answer {
    /// Go on with these; `fetch`: and have newer ones fetched meanwhile.
    Keys { keys: std::sync::Arc<Keys>, fetch: bool },
    /// Wait for a fetch, one of one's own or the one that runs.
    Wait,
    /// The last fetch failed moments ago.
    Failed(String),
    /// The provider has no such key, as of moments ago.
    UnknownKey,
}

/// A provider's keys, and how old they are.
#[derive(Default)]
pub(crate) struct Cache {
    known: Option<(std::sync::Arc<Keys>, Instant)>,
    tried: Option<Instant>,
    /// The last fetch while there were keys already: the first one says nothing of how often tokens make us ask.
    again: Option<Instant>,
    fetching: bool,
    trouble: Option<String>,
}

impl Cache {
    /// The keys to verify a token by that names `kid`.
    pub(crate) fn ask(&self, now: Instant, kid: Option<&str>) -> Answer {
        let since = |at: Instant| now.saturating_duration_since(at);
        let within = |pause: Duration, at: Option<Instant>| at.is_some_and(|at| since(at) < pause);
        let young = self.known.as_ref().filter(|(_, at)| since(*at) < MAX_AGE);
        match young {
            Some((keys, at)) if keys.knows(kid) => {
                let old = since(*at) >= REFRESH_AFTER;
                Answer::Keys {
                    keys: keys.clone(),
                    fetch: old && !self.fetching && !within(PAUSE, self.again),
                }
            }
            _ if self.fetching => Answer::Wait,
            Some(_) if within(PAUSE, self.again) => Answer::UnknownKey,
            None if within(PAUSE_WITHOUT, self.tried) => {
                let trouble = self.trouble.clone();
                Answer::Failed(trouble.unwrap_or_else(|| "it could not be asked".into()))
            }
            _ => Answer::Wait,
        }
    }

    /// Whether the asker shall fetch: nobody else does. From then on it counts as under way, until [`Cache::fetched`].
    pub(crate) fn begin(&mut self, now: Instant) -> bool {
        if self.fetching {
            return false;
        }
        self.fetching = true;
        self.tried = Some(now);
        if self.known.is_some() {
            self.again = Some(now);
        }
        true
    }

    /// A fetch is over.
    pub(crate) fn fetched(&mut self, now: Instant, fetched: Result<Keys, String>) {
        self.fetching = false;
        match fetched {
            Ok(keys) => {
                self.known = Some((keys.into(), now));
                self.trouble = None;
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oidc::test_tokens::Signer;

    fn keys(kid: &str) -> Keys {
        let set = serde_json::json!({ "keys": [Signer::p256(kid).jwk()] });
        Keys::read(set.to_string().as_bytes()).unwrap()
    }

    fn known(kid: &str, now: Instant) -> Cache {
        let mut cache = Cache::default();
        assert!(cache.begin(now));
        cache.fetched(now, Ok(keys(kid)));
        cache
    }

    #[test]
    fn a_flood_of_unknown_key_ids_asks_the_provider_once_in_thirty_seconds() {
        let start = Instant::now();
        let mut cache = known("old", start);
        let mut fetches = 0;
        for second in 0..300 {
            let now = start + Duration::from_secs(second);
            for _ in 0..100 {
                if matches!(cache.ask(now, Some("made up")), Answer::Wait) && cache.begin(now) {
                    fetches += 1;
                    cache.fetched(now, Ok(keys("old")));
                }
            }
            assert!(matches!(cache.ask(now, Some("old")), Answer::Keys { .. }));
        }
        assert_eq!(fetches, 10, "seconds 0, 30 ... 270");
    }

    #[test]
    fn a_rotated_key_is_found_at_once_unless_another_was_looked_for_moments_ago() {
        let now = Instant::now();
        let mut cache = known("old", now);
        assert!(matches!(cache.ask(now, Some("new")), Answer::Wait));
        assert!(cache.begin(now) && !cache.begin(now), "one fetch, however many wait");
        assert!(matches!(cache.ask(now, Some("old")), Answer::Keys { fetch: false, .. }));
        cache.fetched(now, Ok(keys("new")));
        assert!(matches!(cache.ask(now, Some("new")), Answer::Keys { .. }));
        assert!(
            matches!(cache.ask(now, Some("old")), Answer::UnknownKey),
            "withdrawn keys are gone"
        );
    }

    #[test]
    fn known_keys_serve_while_the_provider_is_down_for_a_day() {
        let start = Instant::now();
        let mut cache = known("key", start);
        let now = start + REFRESH_AFTER;
        assert!(matches!(cache.ask(now, Some("key")), Answer::Keys { fetch: true, .. }));
        assert!(cache.begin(now));
        cache.fetched(now, Err("down".into()));
        assert!(matches!(cache.ask(now, Some("key")), Answer::Keys { fetch: false, .. }));
        let last = start + MAX_AGE - Duration::from_secs(1);
        assert!(matches!(cache.ask(last, Some("key")), Answer::Keys { fetch: true, .. }));
        assert!(matches!(cache.ask(start + MAX_AGE, Some("key")), Answer::Wait));
    }

    #[test]
    fn a_provider_that_fails_is_left_alone_for_a_moment() {
        let start = Instant::now();
        let mut cache = Cache::default();
        assert!(matches!(cache.ask(start, None), Answer::Wait));
        assert!(cache.begin(start));
        cache.fetched(start, Err("refused".into()));
        assert!(matches!(cache.ask(start, None), Answer::Failed(why) if why == "refused"));
        assert!(matches!(cache.ask(start + PAUSE_WITHOUT, None), Answer::Wait));
    }
}
