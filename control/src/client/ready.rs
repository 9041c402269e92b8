//! Sessions held ready: granted, carried and unused, so that the next use of a resource starts with its first byte.
//!
//! One task per resource in use keeps one session ready, replaces it when it was taken or ended, and stops ten minutes after
//! the last use. It holds the client weakly: ready sessions end with the client's last clone. A ready session belongs to the
//! link it was asked for on; with the link it goes, and comes back with the next.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::DropGuard;

use crate::client::desk::{Desk, LinkState};
use crate::client::keeper::Phase;
use crate::client::{Client, ClientOptions, ClientSession, legs};
use crate::code::{Code, Fault};
use crate::dial::Backoff;
use crate::udp::reach::Reach;
use crate::wire::SessionPurpose;

/// A resource that was not opened for this long is in use no more. Shorter than the broker's limit of 15 minutes.
const IN_USE: Duration = Duration::from_secs(600);
/// Between attempts to have a session ready: nobody waits for it, and whoever does opens one of his own.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_CAP: Duration = Duration::from_secs(30);

/// The ready sessions of one client.
pub(super) struct Shelf {
    max: usize,
    places: Mutex<HashMap<String, Place>>,
}

struct Place {
    session: Option<ClientSession>,
    used_at: Instant,
    /// The session was taken.
    taken: Arc<Notify>,
}

impl Shelf {
    /// A shelf for `max` resources.
    pub(super) fn new(max: usize) -> Self {
        Self { max, places: Mutex::default() }
    }

    /// The session that is ready for `resource`, if one is and something carries it.
    pub(super) fn take(&self, resource: &str) -> Option<ClientSession> {
        let mut places = self.places();
        let place = places.get_mut(resource)?;
        place.used_at = Instant::now();
        let session = place.session.take()?;
        place.taken.notify_one();
        session.is_carried().then_some(session)
    }

    /// Whether one is ready and carried.
    pub(super) fn is_ready(&self, resource: &str) -> bool {
        let places = self.places();
        let session = places.get(resource).and_then(|place| place.session.as_ref());
        session.is_some_and(ClientSession::is_carried)
    }

    /// A place for `resource`; `None` if it has one, or if there is none left.
    fn claim(&self, resource: &str) -> Option<Arc<Notify>> {
        let (mut places, used_at) = (self.places(), Instant::now());
        if let Some(place) = places.get_mut(resource) {
            place.used_at = used_at;
            return None;
        }
        if places.len() >= self.max {
            return None;
        }
        let taken = Arc::new(Notify::new());
        let place = Place { session: None, used_at, taken: taken.clone() };
        places.insert(resource.to_owned(), place);
        Some(taken)
    }

    /// Puts a session into its place, or takes out what is there.
    fn put(&self, resource: &str, session: Option<ClientSession>) {
        if let Some(place) = self.places().get_mut(resource) {
            place.session = session;
        }
    }

    /// Until when the resource counts as in use.
    fn in_use_until(&self, resource: &str) -> Option<Instant> {
        self.places().get(resource).map(|place| place.used_at + IN_USE)
    }

    fn release(&self, resource: &str) {
        self.places().remove(resource);
    }

    fn places(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a session to `resource` ready from now on, if there is a place and nobody does so already.
pub(super) fn keep(client: &Client, resource: &str) {
    if let Some(taken) = client.shelf.claim(resource) {
        let owner = Owner::of(client);
        let resource = resource.to_owned();
        tokio::spawn(async move {
            owner.keep(&resource, &taken).await;
            if let Some(shelf) = owner.shelf.upgrade() {
                shelf.release(&resource);
            }
        });
    }
}

/// A client, held weakly.
struct Owner {
    desk: Arc<Desk>,
    options: ClientOptions,
    guard: Weak<DropGuard>,
    shelf: Weak<Shelf>,
    reach: Option<Reach>,
}

/// Why a ready session is ready no more.
enum Gone {
    Taken,
    Over(Code),
    LinkDown,
    Unused,
}

impl Owner {
    fn of(client: &Client) -> Self {
        Self {
            desk: client.desk.clone(),
            options: client.options.clone(),
            reach: client.reach.clone(),
            guard: Arc::downgrade(&client.guard),
            shelf: Arc::downgrade(&client.shelf),
        }
    }

    fn client(&self) -> Option<Client> {
        Some(Client {
            desk: self.desk.clone(),
            options: self.options.clone(),
            reach: self.reach.clone(),
            guard: self.guard.upgrade()?,
            shelf: self.shelf.upgrade()?,
        })
    }

    /// Until the resource is in use no more, the client is gone, or the broker refuses for good.
    async fn keep(&self, resource: &str, taken: &Notify) {
        let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_CAP);
        while self.link_is_up().await {
            let Some(client) = self.client() else { return };
            let made = client.make(resource, SessionPurpose::Use, true).await;
            drop(client);
            let gone = match made {
                Ok(session) => {
                    tracing::debug!(resource, session = %session.id(), "a session is ready");
                    let phase = session.phase();
                    self.put(resource, Some(session));
                    self.watch(resource, phase, taken).await
                }
                Err(fault) if legs::may_pass(fault.code) => Gone::Over(fault.code),
                Err(fault) => return refused(resource, &fault),
            };
            match gone {
                Gone::Taken => {
                    backoff.reset();
                    continue;
                }
                Gone::Over(code) => tracing::debug!(resource, %code, "no session is ready"),
                Gone::LinkDown | Gone::Unused => {}
            }
            self.put(resource, None);
            if self.is_unused(resource) {
                return;
            }
            if matches!(gone, Gone::Over(_)) {
                sleep(backoff.pause(rand::random())).await;
            }
        }
    }

    /// Waits for the link; false if it will not come.
    async fn link_is_up(&self) -> bool {
        let mut link = self.desk.link();
        let state = link.wait_for(|state| !matches!(state, LinkState::Down(_))).await;
        matches!(state.as_deref(), Ok(LinkState::Up(_)))
    }

    async fn watch(
        &self,
        resource: &str,
        mut phase: watch::Receiver<Phase>,
        taken: &Notify,
    ) -> Gone {
        let mut link = self.desk.link();
        loop {
            let until = self.in_use_until(resource).unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                () = taken.notified() => return Gone::Taken,
                over = phase.wait_for(|phase| matches!(phase, Phase::Over(_))) => {
                    return Gone::Over(match over.as_deref() {
                        Ok(Phase::Over(fault)) => fault.code,
                        _ => Code::SessionClosed,
                    });
                }
                _ = link.wait_for(|state| !matches!(state, LinkState::Up(_))) => {
                    return Gone::LinkDown;
                }
                () = sleep_until(until) => if self.is_unused(resource) {
                    return Gone::Unused;
                },
            }
        }
    }

    fn put(&self, resource: &str, session: Option<ClientSession>) {
        if let Some(shelf) = self.shelf.upgrade() {
            shelf.put(resource, session);
        }
    }

    fn in_use_until(&self, resource: &str) -> Option<Instant> {
        self.shelf.upgrade()?.in_use_until(resource)
    }

    fn is_unused(&self, resource: &str) -> bool {
        self.in_use_until(resource).is_none_or(|until| Instant::now() >= until)
    }
}

fn refused(resource: &str, fault: &Fault) {
    tracing::debug!(resource, %fault, "no session may be held ready");
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_resource_that_is_prepared_again_counts_as_used_again() {
        let shelf = Shelf::new(1);
        assert!(shelf.claim("ssh").is_some());
        advance(IN_USE - Duration::from_secs(1)).await;
        assert!(shelf.claim("ssh").is_none(), "somebody keeps it ready already");
        assert_eq!(shelf.in_use_until("ssh"), Some(Instant::now() + IN_USE));
    }
}
