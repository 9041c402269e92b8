//! What is known of the network around the process: our candidates, always fresh.
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::Inner;
use super::interfaces::{Changes, host_candidates};
use crate::path::{Candidate, LocalId};

/// What sessions need to know.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Our candidates and their sockets.
    pub(super) locals: Vec<(Candidate, LocalId)>,
    /// The gateways' STUN and TURN addresses.
    pub(super) servers: Vec<SocketAddr>,
    /// Goes up whenever addresses or mappings change.
    pub(super) network_changes: u64,
}

impl Known {
    /// What our side of the network makes impossible.
    pub(super) fn nat_reasons(&self) -> impl Iterator<Item = &'static str> {
        None.into_iter()
    }
}

/// Reads the machine's addresses.
pub(super) fn look(inner: &Inner) {
    let hosts = host_candidates(&inner.config, &inner.wire.sockets);
    inner.known.send_if_modified(|known| {
        let changed = known.locals != hosts;
        known.network_changes += u64::from(changed);
        known.locals = hosts;
        changed
    });
}

/// Keeps [`Known`] fresh until the underlay ends.
pub(super) async fn keep(inner: Arc<Inner>, mut servers: watch::Receiver<Vec<SocketAddr>>) {
    let mut changes = Changes::new();
    loop {
        look(&inner);
        let asked = servers.borrow_and_update().clone();
        inner.known.send_if_modified(|known| {
            let changed = known.servers != asked;
            known.servers = asked;
            changed
        });
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = changes.next() => {}
            changed = servers.changed() => if changed.is_err() { return },
        }
    }
}
