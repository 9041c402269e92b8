//! No peer at all: one TCP connection. The floor everything is compared with.

use anyhow::Result;
use rustix::process::Pid;

use super::socket::Dialer;
use super::{Dialling, Flow, Peer};

/// Name in reports; ratios and added latency refer to it.
pub(crate) const DIRECT: &str = "direct";

/// Nothing but the kernel: loopback, or two hops of veth.
#[derive(Debug)]
pub(crate) struct Direct {
    dialer: Dialer,
}

impl Direct {
    /// Flows made by `dialer`.
    pub(crate) fn new(dialer: Dialer) -> Direct {
        Direct { dialer }
    }
}

impl Peer for Direct {
    fn name(&self) -> &str {
        DIRECT
    }

    fn version(&self) -> &str {
        "the kernel alone"
    }

    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        Ok(())
    }

    fn open(&mut self, count: usize) -> Result<Vec<Flow>> {
        (0..count).map(|_| self.dialer.direct_flow()).collect()
    }

    fn dial(&mut self, _count: usize) -> Result<Dialling> {
        let far = self.dialer.listen()?;
        Ok(Dialling::Proxied { relay: far.local_addr()?, far })
    }

    fn pids(&self) -> Vec<Pid> {
        Vec::new()
    }
}
