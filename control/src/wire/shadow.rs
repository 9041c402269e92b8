//! What the links say about watching, messages and pauses.
use serde::{Deserialize, Serialize};

use crate::wire::SessionId;

/// What a watcher asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowWish {
    /// The session to be watched.
    pub session: SessionId,
    /// Whether input may be injected.
    #[serde(default)]
    pub control: bool,
    /// Its user is not to be asked, where that is permitted.
    #[serde(default)]
    pub no_prompt: bool,
    /// The watch is connected to the resource's shadow target: the broker says so.
    #[serde(default)]
    pub target: bool,
}

/// A second target of a resource, for watchers of services whose streams cannot be joined in mid-stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowTarget {
    /// Where the agent reaches it, `HOST:PORT`, TCP.
    pub target: String,
    /// The service behind it only shows: the right to view is enough.
    #[serde(default)]
    pub view_only: bool,
}

/// From the broker to a client: what its user is to be told about a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionNotice {
    /// Someone asks to watch; `consent` is the answer.
    ConsentAsked {
        /// Which session.
        session: SessionId,
        /// Names the question.
        id: u64,
        /// Who asks.
        by: String,
        /// Whether input would be injected.
        control: bool,
    },
    /// Watching began or ended.
    Watched {
        /// Which session.
        session: SessionId,
        /// Who watches.
        by: String,
        /// Whether input may be injected.
        control: bool,
        /// False: it ended.
        began: bool,
    },
    /// From person to person.
    Message {
        /// Which session it is about.
        session: SessionId,
        /// Who writes.
        from: String,
        /// Plain text, 500 characters at most.
        text: String,
    },
    /// The session was paused, or goes on.
    Held {
        /// Which session.
        session: SessionId,
        /// By whom.
        by: String,
        /// False: it goes on.
        held: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{SessionPurpose, ToClient};

    #[test]
    fn a_watch_and_what_is_told_of_it_survive_the_wire() {
        let session = SessionId("k3m9x2q7w4ht".into());
        let wish =
            ShadowWish { session: session.clone(), control: true, no_prompt: false, target: true };
        let purpose = SessionPurpose::Shadow(wish);
        let text = serde_json::to_string(&purpose).unwrap();
        assert_eq!(serde_json::from_str::<SessionPurpose>(&text).unwrap(), purpose);
        assert_eq!(serde_json::to_string(&SessionPurpose::Echo).unwrap(), "\"echo\"");
        let by = "ada".to_owned();
        let told =
            ToClient::Notice(SessionNotice::Watched { session, by, control: false, began: true });
        let text = serde_json::to_string(&told).unwrap();
        assert_eq!(serde_json::from_str::<ToClient>(&text).unwrap(), told);
    }
}
