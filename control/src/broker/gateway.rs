//! The data plane, as the broker sees it: something that joins pairs, ends them and tells.
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};

use switchback_engine::{
    Admission, Cause, EngineConfig, ForeignConnection, Gateway, GatewayEvent, Metrics, PairId,
    StartError, StunCounters, StunResponder, bind_listener,
};

use crate::broker::config::ServeConfig;
use crate::broker::hub::Hub;
use crate::broker::limits::EVENTS_MAX;
use crate::code::{Code, Fault};

/// The gateway and the STUN responder; absent before the start and after the end.
#[derive(Default)]
pub(crate) struct DataPlane {
    gateway: RwLock<Option<Gateway>>,
    stun: RwLock<Option<StunResponder>>,
}

impl DataPlane {
    /// Cuts a pair, or sends the leg away that waits for it. Returns at once.
    pub(crate) fn end_pair(&self, pair: PairId) {
        if let Some(gateway) = &*read(&self.gateway) {
            gateway.end_pair(pair, Cause::Killed);
        }
    }

    pub(crate) fn metrics(&self) -> Option<Metrics> {
        read(&self.gateway).as_ref().map(Gateway::metrics)
    }

    pub(crate) fn stun(&self) -> Option<StunCounters> {
        read(&self.stun).as_ref().map(StunResponder::counters)
    }

    /// Name of the readiness source, and why it was chosen.
    pub(crate) fn backend(&self) -> (&'static str, String) {
        read(&self.gateway)
            .as_ref()
            .map_or(("none", "the gateway does not run".into()), |gateway| {
                (gateway.backend().kind.as_str(), gateway.backend().reason.clone())
            })
    }

    /// Ends every pair and joins the gateway's threads: blocks for up to 3 s.
    pub(crate) fn shutdown(&self) {
        let gateway = self.gateway.write().unwrap_or_else(PoisonError::into_inner).take();
        let stun = self.stun.write().unwrap_or_else(PoisonError::into_inner).take();
        drop((gateway, stun));
    }

    fn set<T>(slot: &RwLock<Option<T>>, value: T) {
        *slot.write().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

fn read<T>(slot: &RwLock<Option<T>>) -> std::sync::RwLockReadGuard<'_, Option<T>> {
    slot.read().unwrap_or_else(PoisonError::into_inner)
}

/// Binds the one TCP port. Blocks for up to 2 s.
///
/// # Errors
/// [`Code::AddressInUse`], [`Code::PortNotPermitted`], [`Code::AddressUnavailable`].
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Fault> {
    bind_listener(address).map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::AddrInUse => Code::AddressInUse,
            io::ErrorKind::PermissionDenied => Code::PortNotPermitted,
            io::ErrorKind::AddrNotAvailable => Code::AddressUnavailable,
            // EAFNOSUPPORT: an IPv6 address on a machine without IPv6.
            _ if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
                Code::AddressUnavailable
            }
            _ => Code::Internal,
        };
        code.because(format!("{address}: {error}"))
    })
}

/// Starts relaying, and tells `hub` what happens.
///
/// # Errors
/// [`Code::UringUnavailable`] if io_uring was demanded; [`Code::TuningUnsupported`]; [`Code::Internal`] if the system refused threads or descriptors.
pub(crate) fn start(
    listener: TcpListener,
    config: &ServeConfig,
    admission: Arc<dyn Admission>,
    foreign: Box<dyn Fn(ForeignConnection) + Send + Sync>,
    hub: &Arc<Hub>,
) -> Result<(), Fault> {
    let address =
        listener.local_addr().map_err(|error| Code::Internal.because(error.to_string()))?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let engine = EngineConfig {
        io: config.io,
        workers: config.workers.unwrap_or_else(cores),
        limits: config.gateway_limits,
        tuning: config.tuning.clone(),
    };
    let events = events_to(hub.clone())?;
    let gateway = Gateway::start(listener, engine, admission, foreign, events).map_err(
        |error| match error {
            StartError::UringUnavailable(reason) => Code::UringUnavailable.because(reason),
            StartError::Tuning(refused) => Code::TuningUnsupported.because(refused.to_string()),
            StartError::System(error) => Code::Internal.because(format!("gateway: {error}")),
        },
    )?;
    DataPlane::set(&hub.data_plane.gateway, gateway);
    match UdpSocket::bind(address).and_then(StunResponder::start) {
        Ok(stun) => DataPlane::set(&hub.data_plane.stun, stun),
        Err(error) => tracing::warn!(%address, %error, "no STUN: the UDP port could not be had"),
    }
    Ok(())
}

/// A thread that hands the gateway's events to `hub`, one after the other; it ends with the gateway.
fn events_to(hub: Arc<Hub>) -> Result<Arc<dyn Fn(GatewayEvent) + Send + Sync>, Fault> {
    let (sender, events) = crossbeam::channel::bounded(EVENTS_MAX);
    std::thread::Builder::new()
        .name("broker-events".into())
        .spawn(move || events.into_iter().for_each(|event| hub.gateway_event(event)))
        .map_err(|error| Code::Internal.because(format!("no thread: {error}")))?;
    // Nobody listens only while everything is shutting down.
    Ok(Arc::new(move |event| drop(sender.send(event))))
}
