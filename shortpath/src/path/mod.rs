//! Finding UDP paths, in pure code: no clock, no socket, no task.
//!
//! * [`Candidate`], [`IceCredentials`], [`Route`]: the words.
//! * [`Finder`]: ICE connectivity checks (RFC 8445) of one session and leg kind.
//! * [`Keeper`]: one per socket; keeps its server-reflexive addresses fresh and learns what the NAT does
//!   ([`LifetimeProbe`], [`predict_ports`]).
//! * [`Discovery`]: the RFC 5780 tests behind `switchback netcheck`.
//! * [`TurnClient`]: one allocation on a TURN server (RFC 8656).
//!
//! **Contract of all of them**: after every call that takes `now`, drain `poll_transmit` and `poll_event`, then ask
//! `poll_timeout` when to call `handle_timeout` (`None`: never, until the next input). Times never go backwards; an
//! earlier `now` than before is taken for the same moment.
mod candidate;
mod checks;
mod choose;
mod discovery;
mod finder;
#[cfg(test)]
mod fixture;
mod keeper;
#[cfg(test)]
mod keeping;
#[cfg(test)]
mod lab;
mod lifetime;
mod message;
mod network;
mod pair;
mod predict;
#[cfg(test)]
mod tests;
mod turn;

pub use candidate::{
    Candidate, CandidateKind, CandidateRefusal, IceCredentials, LocalId, RemoteCandidates,
    RemoteLimits, Route, canonical,
};
pub use discovery::{Discovery, DiscoveryReport, Filtering};
pub use finder::{CauseText, Finder, FinderConfig, FinderCounters, FinderEvent, FinderTiming};
pub use keeper::{Keeper, KeeperConfig, KeeperEvent, KeeperView};
pub use lifetime::{LifetimeProbe, MappingLifetime};
pub use message::is_stun;
pub use network::{Network, NetworkError, NetworkFilter};
pub use pair::{PairState, PairView};
pub use predict::{Mapping, Observation, Ports, judge_mapping, judge_ports, predict_ports};
pub use turn::{TurnClient, TurnConfig, TurnEvent, TurnFailure};
