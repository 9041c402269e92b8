//! At which address a session's relay is asked.
use std::net::SocketAddr;

use tokio_util::sync::DropGuard;

use super::{RELAY_RETRY, RelayStage};
use crate::path::TURN_TRIES;
use crate::time::now;
use crate::underlay::driver::{Driver, Outcome};
use crate::underlay::whereabouts::{Choice, RelayServer, Turns, look_up};

/// What is known of the relay's addresses.
#[derive(Default)]
pub(in crate::underlay::driver) struct RelayPlace {
    pub(super) turns: Turns,
    /// What its name resolved to.
    found: Vec<SocketAddr>,
    /// The task that looks its name up; dropped, it ends.
    locating: Option<DropGuard>,
}

impl Driver {
    /// Looks the relay's name up, if it has one of its own. Nothing waits for it but the relay.
    pub(in crate::underlay::driver) fn locate_relay(&mut self) {
        let relay = self.plan.relay.as_ref().filter(|_| !matches!(self.relay, RelayStage::Never));
        let Some(RelayServer::Named(name)) = relay.map(|relay| &relay.server) else { return };
        let (name, tell, stop) = (name.clone(), self.tell.clone(), self.stop.child_token());
        self.relay_place.locating = Some(stop.clone().drop_guard());
        let locate = async move {
            loop {
                match look_up(&name).await {
                    // The driver may be gone by then.
                    Ok(found) => return drop(tell.send(Outcome::Located(found)).await),
                    Err(error) => tracing::warn!(name, %error, "the relay's name does not resolve"),
                }
                tokio::time::sleep(RELAY_RETRY).await;
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = locate => {}
            }
        });
    }

    /// The relay's name resolves. An allocation at an address that is not its any more gets its heir at one that is.
    pub(in crate::underlay::driver) fn relay_located(&mut self, found: Vec<SocketAddr>) {
        self.relay_place.found = found;
        self.heed_servers();
        if let RelayStage::Asked(asked) = &self.relay
            && !self.relay_place.found.contains(&asked.server)
        {
            self.ask_heir();
        }
    }

    /// Servers are no candidates; and a relay that waited for its address is asked.
    pub(in crate::underlay::driver) fn heed_servers(&mut self) {
        let mut servers = self.known.borrow().servers.clone();
        servers.extend(&self.relay_place.found);
        for search in &mut self.searches {
            search.finder.set_servers(servers.clone());
        }
        if matches!(self.relay, RelayStage::Nowhere) && self.relay_choice().is_some() {
            self.relay = RelayStage::At(now());
        }
    }

    /// Where the relay is, as far as is known.
    pub(in crate::underlay::driver) fn relay_addresses(&self) -> Vec<SocketAddr> {
        match self.plan.relay.as_ref().map(|relay| &relay.server) {
            Some(RelayServer::Gateway) => self.known.borrow().servers.clone(),
            Some(RelayServer::Named(_)) => self.relay_place.found.clone(),
            None => Vec::new(),
        }
    }

    /// The address to ask next.
    pub(super) fn relay_choice(&self) -> Option<Choice> {
        let known = self.known.borrow();
        let servers = known.nats.iter().flat_map(|nat| &nat.servers);
        let answered: Vec<_> =
            servers.filter_map(|(server, seen, _)| seen.map(|_| *server)).collect();
        self.relay_place.turns.next(&self.relay_addresses(), &answered)
    }

    /// An allocation beside the one that is there, at the same address if the relay still has it.
    pub(super) fn ask_heir(&mut self) {
        let (RelayStage::Asked(asked), None) = (&self.relay, &self.heir) else { return };
        let stays = self.relay_addresses().contains(&asked.server);
        let same = Choice { server: asked.server, tries: TURN_TRIES };
        let choice = if stays { Some(same) } else { self.relay_choice() };
        self.heir = choice.and_then(|choice| self.open_relay(choice));
    }

    /// The relay was asked there in vain. True if it is to be asked elsewhere at once; else its name is looked up anew.
    pub(super) fn relay_failed(&mut self, server: SocketAddr) -> bool {
        let all = self.relay_addresses();
        let another = self.relay_place.turns.fail(server, &all);
        if !another {
            self.locate_relay();
        }
        another
    }
}
