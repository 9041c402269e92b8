//! Gateway data plane: admits legs, pairs them and moves their bytes.
//!
//! Two TCP connections, one from the client and one from the agent, each open with a TLS ClientHello whose server
//! name carries a ticket. The [`Gateway`]'s relay workers accept them, read that hello and ask an [`Admission`] about it;
//! the worker where the legs meet, or a less loaded one, splices the two until both directions have ended. The engine
//! never holds a key and never sees plaintext.
//!
//! The engine knows nothing of users, resources or sessions: its nouns are *leg*, *pair* and *flow*.

mod admission;
mod config;
mod datagram;
mod event;
mod gateway;
mod id;
mod limits;
mod outcome;
mod port;
mod relay;
#[allow(unsafe_code)]
mod ring;
mod rtt;
mod stats;
mod tuning;
mod worker;

pub use admission::{Admission, Admitted, Refusal, Verdict};
pub use config::{EngineConfig, IoChoice};
#[doc(hidden)]
pub use datagram::Trial;
pub use datagram::{
    Network, NoRelay, RelayAddress, RelayCredentials, RelayUser, SharedSecret, UdpConfig, UdpDrop,
    UdpMetrics, UdpRefusal, UdpService, UdpSockets, UdpTraffic, bind_udp, relay_password,
};
pub use event::{ForeignConnection, GatewayEvent};
pub use gateway::hello;
pub use gateway::{Backend, BackendKind, ForeignPlace, Gateway, StartError, bind_listeners};
pub use id::{LegSide, PairId};
pub use limits::Limits;
pub use outcome::{Cause, Outcome, Phase};
pub use relay::{PairFigures, PairMeter};
pub use rtt::{Because, Finding, LegFigures, RttFigures, SendingFigures, Slow};
pub use stats::{Metrics, WorkerLoad};
pub use tuning::{
    Keepalive, Tuning, TuningInvalid, TuningOption, TuningRefused, congestion_controls,
};
