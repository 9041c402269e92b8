//! What a link is asked for with: a user's token, or whatever else the owner of the link comes up with each time.
use std::future::{Future, ready};

use crate::code::{Code, Fault};
use crate::invite::Invite;

/// Attempts that may follow a refusal at once, as what was refused was mended: the clock, the key, the join string.
pub(super) const MENDS_MAX: usize = 3;

/// The right to a link.
pub trait Pass: Sync {
    /// The broker, and the bearer token for the next request.
    fn invite(&self) -> impl Future<Output = Result<Invite, Fault>> + Send;

    /// What the broker's clock showed with a refusal, Unix milliseconds.
    fn heard_time(&self, _broker_ms: u64) {}

    /// Whether another attempt, at once, can be expected to fare better than the one that this code refused.
    fn mend(&self, _code: Code) -> bool {
        false
    }

    /// The broker has let us in.
    fn accepted(&self) {}

    /// Whether no retry mends this, beyond what is final for every link.
    fn is_hopeless(&self, _code: Code) -> bool {
        false
    }
}

impl Pass for Invite {
    fn invite(&self) -> impl Future<Output = Result<Invite, Fault>> + Send {
        ready(Ok(self.clone()))
    }
}
