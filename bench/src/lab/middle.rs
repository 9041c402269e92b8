//! The links and NATs of a running lab: what can be asked of them and changed while packets flow.

use std::net::Ipv4Addr;

use super::handle::Lab;
use super::nat::{MappingView, NatSettings, NatStats, Policy};
use super::wire::WireStats;
use super::{LabError, presets};

/// A link of a running lab.
#[derive(Clone, Copy, Debug)]
pub struct LinkHandle<'a> {
    pub(super) lab: &'a Lab,
    pub(super) index: usize,
}

impl LinkHandle<'_> {
    /// Changes what the text names and leaves the rest: a preset, items for both directions, or
    /// after `up.` or `down.` for one, as in `4g`, `loss=5%,up.rate=1mbit`, `blackhole`. What is on
    /// the wire stays there.
    ///
    /// # Errors
    /// The message names the item and what would be right; nothing is changed.
    pub fn set(&self, text: &str) -> Result<(), LabError> {
        let mut settings = self.settings();
        settings.update(text).map_err(LabError::act("link settings"))?;
        self.lab.lock().links[self.index].settings = settings;
        self.lab.forwarder.with(|network, now| {
            network.wire_mut(self.index, 0).set(now, settings.up);
            network.wire_mut(self.index, 1).set(now, settings.down);
        });
        Ok(())
    }

    /// The settings in force.
    pub fn settings(&self) -> presets::Link {
        self.lab.lock().links[self.index].settings
    }

    /// Counters: up (away from the host), down.
    pub fn stats(&self) -> (WireStats, WireStats) {
        let index = self.index;
        self.lab
            .forwarder
            .with(|network, _| (network.wire(index, 0).stats(), network.wire(index, 1).stats()))
    }
}

/// A NAT, firewall or plain router of a running lab.
#[derive(Clone, Copy, Debug)]
pub struct NatHandle<'a> {
    pub(super) lab: &'a Lab,
    pub(super) index: usize,
}

impl NatHandle<'_> {
    /// Changes its behaviour, as in `symmetric`, `timeout=2s`. Mappings stay unless the mapping
    /// behaviour itself changes.
    ///
    /// # Errors
    /// The message names the item and what would be right; nothing is changed.
    pub fn set(&self, text: &str) -> Result<(), LabError> {
        let mut settings = self.settings();
        settings.update(text).map_err(LabError::act("NAT settings"))?;
        self.lab.lock().routers[self.index].nat = Some(settings);
        self.lab.forwarder.with(|network, _| network.nat_mut(self.index).set(settings));
        Ok(())
    }

    /// The settings in force.
    pub fn settings(&self) -> NatSettings {
        self.lab.forwarder.with(|network, _| *network.nat(self.index).settings())
    }

    /// Forbids or allows, as in `udp=drop`, `udp=reject`, `udp=only:192.0.2.1`, `tcp=443`,
    /// `blackhole=in`, `udp=allow`. What is not named stays; existing flows obey, too.
    ///
    /// # Errors
    /// The message names the item and what would be right; nothing is changed.
    pub fn block(&self, text: &str) -> Result<(), LabError> {
        let mut policy = self.policy();
        policy.update(text).map_err(LabError::act("policy"))?;
        self.lab.forwarder.with(|network, _| network.nat_mut(self.index).set_policy(policy));
        Ok(())
    }

    /// What is forbidden now.
    pub fn policy(&self) -> Policy {
        self.lab.forwarder.with(|network, _| network.nat(self.index).policy().clone())
    }

    /// Forgets all mappings, as after a restart: flows get other ports. With `address` the public
    /// address changes, too, and ports may stay.
    ///
    /// # Errors
    /// The router has no link out to have a public address on.
    pub fn rebind(&self, address: Option<Ipv4Addr>) -> Result<(), LabError> {
        let mut topology = self.lab.lock();
        if let Some(new) = address {
            let mut changed = topology.clone();
            let name = &topology.routers[self.index].name;
            let mut uplinks = changed.links.iter_mut().filter(|link| link.from.at == *name);
            let own = uplinks.next().map(|link| &mut link.from.addresses).into_iter().flatten();
            let public = own.into_iter().find(|own| own.ip.is_ipv4()).ok_or_else(|| {
                LabError::topology(&format!("router {name} has no public IPv4 address"))
            })?;
            public.ip = new.into();
            self.lab.adopt(&changed)?;
            *topology = changed;
        }
        self.lab.forwarder.with(|network, _| network.nat_mut(self.index).rebind(address));
        Ok(())
    }

    /// The public IPv4 address now.
    pub fn external(&self) -> Option<Ipv4Addr> {
        self.lab.forwarder.with(|network, _| network.nat(self.index).external())
    }

    /// The live mappings.
    pub fn mappings(&self) -> Vec<MappingView> {
        self.lab.forwarder.with(|network, now| network.nat(self.index).mappings(now))
    }

    /// Counters since the start.
    pub fn stats(&self) -> NatStats {
        self.lab.forwarder.with(|network, _| network.nat(self.index).stats())
    }
}
