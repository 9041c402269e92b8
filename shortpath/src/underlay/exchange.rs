//! Which task a STUN message is for: requests by the username they name, answers by the transaction they belong to.
//!
//! Nothing here is authenticated yet; the receiver verifies. What belongs to nobody is counted and costs one look-up.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use super::demux;
use crate::path::Route;

/// A STUN message, and the way it came.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) route: Route,
    pub(super) datagram: Vec<u8>,
}

/// Where a task hears.
pub(super) type Ear = mpsc::Sender<Heard>;

/// Messages waiting for one task: a peer's checks come at 200/s, so a task that is busy for a second loses none.
pub(super) const EAR: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Exchange(Mutex<Books>);

#[derive(Debug, Default)]
struct Books {
    names: HashMap<Vec<u8>, Ear>,
    /// Transactions asked lately, in two generations: the older one is forgotten when the younger is full.
    asked: HashMap<[u8; 12], Ear>,
    asked_before: HashMap<[u8; 12], Ear>,
}

/// Transactions per generation. Sessions in their first second ask 200/s and answers come within seconds: 16,384 serve
/// 20 sessions that all start at once for 4 s. Beyond, answers are lost and the checks repeated.
const ASKED_MAX: usize = 16 * 1024;

impl Exchange {
    fn with<T>(&self, act: impl FnOnce(&mut Books) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests that name this username fragment go to `ear`.
    pub(super) fn listen(&self, name: &str, ear: &Ear) {
        self.with(|books| books.names.insert(name.as_bytes().to_vec(), ear.clone()));
    }

    /// Nobody listens to that name any more.
    pub(super) fn forget(&self, name: &str) {
        self.with(|books| books.names.remove(name.as_bytes()));
    }

    /// `ear` sends this datagram; if it is a request, answers go there.
    pub(super) fn sends(&self, ear: &Ear, datagram: &[u8]) {
        let Some(id) = demux::transaction(datagram).filter(|_| demux::is_request(datagram)) else {
            return;
        };
        self.with(|books| {
            if books.asked.len() >= ASKED_MAX {
                books.asked_before = std::mem::take(&mut books.asked);
            }
            books.asked.insert(id, ear.clone());
        });
    }

    /// Hands a STUN message to its task. False when it belongs to nobody, or its task is behind.
    pub(super) fn deliver(&self, route: Route, datagram: &[u8]) -> bool {
        let ear = self.with(|books| {
            if demux::is_request(datagram) {
                return books.names.get(demux::asked(datagram)?).cloned();
            }
            let id = demux::transaction(datagram)?;
            books.asked.get(&id).or_else(|| books.asked_before.get(&id)).cloned()
        });
        let heard = Heard { route, datagram: datagram.to_vec() };
        ear.is_some_and(|ear| ear.try_send(heard).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::LocalId;

    fn message(class: u8, id: u8, name: &str) -> Vec<u8> {
        let mut message = vec![class, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        message.extend([id; 12]);
        message.extend([0, 6, 0, u8::try_from(name.len()).unwrap()]);
        message.extend(name.as_bytes());
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn route() -> Route {
        Route { local: LocalId(0), remote: "192.0.2.1:1".parse().unwrap() }
    }

    #[tokio::test]
    async fn requests_go_by_name_and_answers_by_transaction() {
        let exchange = Exchange::default();
        let (one, mut hears_one) = mpsc::channel(EAR);
        let (two, mut hears_two) = mpsc::channel(EAR);
        exchange.listen("oned", &one);
        exchange.listen("twod", &two);
        assert!(exchange.deliver(route(), &message(0, 1, "twod:peer")));
        assert_eq!(hears_two.recv().await.unwrap().route, route());
        exchange.sends(&one, &message(0, 9, "peer:oned"));
        assert!(exchange.deliver(route(), &message(1, 9, "")));
        assert!(hears_one.recv().await.is_some());
        assert!(!exchange.deliver(route(), &message(1, 8, "")), "an answer nobody waits for");
        assert!(!exchange.deliver(route(), &message(0, 1, "nobody:peer")));
        exchange.forget("twod");
        assert!(!exchange.deliver(route(), &message(0, 1, "twod:peer")));
    }

    #[tokio::test]
    async fn a_flood_costs_a_bounded_amount_of_memory() {
        let exchange = Exchange::default();
        let (ear, _hears) = mpsc::channel(EAR);
        exchange.listen("oned", &ear);
        let taken = (0..10_000).filter(|_| exchange.deliver(route(), &message(0, 1, "oned:p")));
        assert_eq!(taken.count(), EAR);
        for n in 0..100_000_u32 {
            let mut request = message(0, 0, "");
            request[8..12].copy_from_slice(&n.to_be_bytes());
            exchange.sends(&ear, &request);
        }
        exchange
            .with(|books| assert!(books.asked.len() + books.asked_before.len() <= 2 * ASKED_MAX));
    }
}
