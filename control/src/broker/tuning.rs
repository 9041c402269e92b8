//! What agents may ask of the gateway's sockets for their resources, and which pair gets what.
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use switchback_engine::{PairId, Tuning, congestion_controls};

use crate::code::{Code, Fault};
use crate::ticket::TICKET_TTL;
use crate::wire::Resource;

/// Pairs that wait for their client's leg with a tuning, about 150 bytes each; as many as tickets are remembered. A pair
/// beyond them goes with what the listener has.
const PAIRS_MAX: usize = 262_144;

/// The listener's tuning, and the tunings of pairs whose clients' legs have not come yet.
#[derive(Debug)]
pub(crate) struct Tunings {
    address: SocketAddr,
    listener: Tuning,
    pairs: Mutex<Pairs>,
}

impl Tunings {
    /// For a gateway that listens on `address` with `listener`.
    pub(crate) fn new(address: SocketAddr, listener: Tuning) -> Self {
        Self { address, listener, pairs: Mutex::new(Pairs::new(PAIRS_MAX)) }
    }

    /// Judges what an agent asks for a resource, and cuts its rate to the listener's.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] for a value that nobody may have, [`Code::TuningUnsupported`] for one that this machine's
    /// kernel refuses.
    pub(crate) fn judge(&self, resource: &mut Resource) -> Result<(), Fault> {
        if resource.tuning.is_empty() {
            return Ok(());
        }
        let because = |code: Code, why: String| {
            Err(code.because(format!("resource {}, at the gateway: {why}", resource.name)))
        };
        if let Err(invalid) = resource.tuning.check_for_resource() {
            return because(Code::ConfigInvalid, invalid.to_string());
        }
        // Before the kernel is asked: it might look for a module of that name, at the word of an agent.
        if let Some(name) = &resource.tuning.congestion {
            let ready = congestion_controls();
            if !ready.contains(name) {
                let why =
                    format!("congestion={name} is not ready there; it has {}", ready.join(", "));
                return because(Code::TuningUnsupported, why);
            }
        }
        if let Err(refused) = resource.tuning.probe_connection(self.address) {
            return because(Code::TuningUnsupported, refused.to_string());
        }
        let wanted = std::mem::take(&mut resource.tuning);
        resource.tuning = wanted.within_rate_of(&self.listener);
        Ok(())
    }

    /// The client's leg of `pair`, whose ticket is about to be minted, brings `tuning` for both legs. `now` in Unix seconds.
    pub(crate) fn expect(&self, pair: PairId, tuning: Arc<Tuning>, now: u64) {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if !pairs.insert(pair, tuning, now) {
            tracing::warn!(%pair, "too many pairs wait with a tuning; this one goes without");
        }
    }

    /// What the client's leg of `pair`, which is being admitted, brings.
    pub(crate) fn take(&self, pair: PairId) -> Option<Arc<Tuning>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner).remove(pair)
    }
}

/// Tunings by pair, until their tickets have expired.
#[derive(Debug)]
struct Pairs {
    by_pair: HashMap<PairId, (u64, Arc<Tuning>)>,
    by_expiry: BTreeSet<(u64, PairId)>,
    max: usize,
}

impl Pairs {
    fn new(max: usize) -> Self {
        Self { by_pair: HashMap::new(), by_expiry: BTreeSet::new(), max }
    }

    /// False if there is no room.
    fn insert(&mut self, pair: PairId, tuning: Arc<Tuning>, now: u64) -> bool {
        while let Some(&(_, old)) = self.by_expiry.first().filter(|(expiry, _)| *expiry < now) {
            self.remove(old);
        }
        self.remove(pair);
        if self.by_pair.len() >= self.max {
            return false;
        }
        // A second more than the ticket, which is minted after this.
        let expiry = now + TICKET_TTL.as_secs() + 1;
        self.by_expiry.insert((expiry, pair));
        self.by_pair.insert(pair, (expiry, tuning));
        true
    }

    fn remove(&mut self, pair: PairId) -> Option<Arc<Tuning>> {
        let (expiry, tuning) = self.by_pair.remove(&pair)?;
        self.by_expiry.remove(&(expiry, pair));
        Some(tuning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning(text: &str) -> Tuning {
        text.parse().unwrap()
    }

    fn judged(listener: &str, asked: Tuning) -> Result<Tuning, Fault> {
        let tunings = Tunings::new("127.0.0.1:0".parse().unwrap(), tuning(listener));
        let mut resource = Resource { tuning: asked, ..Resource::tcp("rdp", "10.0.0.5:3389") };
        tunings.judge(&mut resource).map(|()| resource.tuning)
    }

    #[test]
    fn an_agent_gets_what_it_may_have_and_no_more_than_the_listeners_rate() {
        let asked = tuning("dscp=ef,max-pacing-rate=1gbit");
        assert_eq!(judged("dscp=cs1", asked.clone()), Ok(asked.clone()));
        let cut = tuning("dscp=ef,max-pacing-rate=20mbit");
        assert_eq!(judged("max-pacing-rate=20mbit", asked), Ok(cut));
    }

    #[test]
    fn what_nobody_may_have_or_the_kernel_refuses_is_told_with_the_resources_name() {
        for (asked, code, named) in [
            (Tuning { dscp: Some(64), ..Tuning::default() }, Code::ConfigInvalid, "dscp"),
            (tuning("fast-open=5"), Code::ConfigInvalid, "fast-open"),
            (tuning("congestion=nosuch"), Code::TuningUnsupported, "reno"),
        ] {
            let fault = judged("dscp=cs1", asked).unwrap_err();
            assert_eq!(fault.code, code);
            assert!(
                fault.detail.contains("resource rdp") && fault.detail.contains(named),
                "{fault}"
            );
        }
    }

    #[test]
    fn a_pair_is_remembered_until_its_client_comes_or_its_ticket_expires() {
        const NOW: u64 = 1_800_000_000;
        let (mut pairs, ef) = (Pairs::new(2), Arc::new(tuning("dscp=ef")));
        let id = |n| PairId([n; 16]);
        assert!(pairs.insert(id(1), ef.clone(), NOW));
        assert!(pairs.insert(id(2), ef.clone(), NOW));
        assert!(pairs.insert(id(2), ef.clone(), NOW), "the same pair again takes no more room");
        assert!(!pairs.insert(id(3), ef.clone(), NOW + TICKET_TTL.as_secs()));
        assert_eq!((pairs.remove(id(1)), pairs.remove(id(1))), (Some(ef.clone()), None));
        assert!(pairs.insert(id(3), ef.clone(), NOW + 30));
        assert!(
            pairs.insert(id(4), ef.clone(), NOW + TICKET_TTL.as_secs() + 2),
            "the second has expired"
        );
        assert_eq!((pairs.remove(id(2)), pairs.remove(id(3))), (None, Some(ef)));
        assert_eq!(pairs.by_expiry.len(), pairs.by_pair.len());
    }
}
