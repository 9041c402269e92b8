//! The control plane under load: how many links a broker holds, how fast it grants sessions, how soon a feed is read and a
//! policy decides.
//!
//! The broker is the real program, `switchback serve`, run as a process and looked at from outside (`broker`). Agents and
//! clients are simulated in this process (`agents`, `clients`, `feeds`, all over `ends`): real WebSocket links over TLS, to the
//! pinned key, with the product's own messages (`switchback_control::wire`), because JSON written by hand would be measured
//! against itself. They dial by themselves instead of with the product's `link` module: the broker lets one source hold 1,024
//! connections, so ten thousand agents need a dozen source addresses. They carry no bytes: nobody dials the gateway with the
//! tickets, and a session is over as soon as it was granted and offered. What legs cost is `compare`'s and `shortpath`'s to say.
//!
//! One thread simulates everybody, on a CPU of its own; the broker has another. `pace` keeps an open loop's times, `tally`
//! and `search` decide and are pure, `rules` writes policies, `experiments` has one file per claim, `runner` takes the rounds.
//! Goals, figures and reports are those of `shortpath`.

mod agents;
mod broker;
mod clients;
mod ends;
pub(crate) mod experiments;
mod feeds;
mod pace;
mod rules;
pub(crate) mod runner;
mod search;
mod tally;

/// Names the shape of a `control` run's report; the number changes when a reader would break.
pub(crate) const SCHEMA: &str = "switchback-bench/control/1";
