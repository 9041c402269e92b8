//! Finding UDP paths, in pure code: no clock, no socket, no task.
//!
//! * [`Candidate`], [`IceCredentials`], [`Route`]: the words.
//! * [`Finder`]: ICE connectivity checks (RFC 8445) of one session and leg kind.
//! * [`Keeper`]: one per socket; keeps its server-reflexive addresses fresh and learns what the NAT does
//!   ([`LifetimeProbe`], [`predict_ports`]).
//! * [`Shifts`]: two sockets in turns, where the NAT ends mappings at an age.
//! * [`Discovery`]: the RFC 5780 tests behind `switchback netcheck`.
//! * [`MtuProbe`]: the largest packet that passes, for netcheck, too.
//! * [`PortMapper`]: when to ask the router for a port (PCP, NAT-PMP, UPnP).
//! * [`TurnClient`]: one allocation on a TURN server (RFC 8656).
//!
//! **Contract of all of them**: after every call that takes `now`, drain `poll_transmit` and `poll_event`, then ask
//! `poll_timeout` when to call `handle_timeout` (`None`: never, until the next input). Times never go backwards; an
//! earlier `now` than before is taken for the same moment.
mod age;
mod candidate;
mod checks;
mod choose;
pub mod discovery;
pub mod finder;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod hostile;
pub mod keeper;
mod keeper_words;
#[cfg(test)]
mod keeping;
#[cfg(test)]
mod lab;
#[cfg(test)]
pub(crate) mod lab_server;
mod lifetime;
mod message;
mod mtu;
mod network;
mod pair;
mod portmap;
mod predict;
mod probe;
mod remote;
mod settings;
mod shift;
#[cfg(test)]
mod shifting;
#[cfg(test)]
mod tests;
pub mod turn;
mod turn_peers;
mod turn_words;

pub use candidate::{Candidate, CandidateKind, IceCredentials, LocalId, Route, canonical};
pub use discovery::{Discovery, DiscoveryReport, Filtering};
pub use finder::Finder;
pub use keeper::Keeper;
pub use keeper_words::{KeeperConfig, KeeperEvent, KeeperView};
pub use lifetime::{LifetimeProbe, MappingLifetime};
pub use message::is_stun;
pub use mtu::MtuProbe;
pub use network::{Network, NetworkError, NetworkFilter};
pub use pair::{PairState, PairView};
pub use portmap::{MAPPING_LIFETIME, MappingFailure, MappingGrant, MappingProtocol, PortMapper};
pub use predict::{Mapping, Observation, Ports, judge_mapping, judge_ports, predict_ports};
pub use probe::Probe;
pub use remote::{CandidateRefusal, RemoteCandidates, RemoteLimits};
pub use settings::{CauseText, FinderConfig, FinderCounters, FinderEvent, FinderTiming};
pub use shift::{AgeLimit, Roster, Shift, Shifts};
pub use turn::TurnClient;
pub use turn_words::{TURN_TRIES, TurnConfig, TurnEvent, TurnFailure};
