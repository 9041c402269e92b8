//! The agent's legs: dialled for an offer, or warm, admitted and waiting.
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use switchback_shortpath::{LegKind, SessionHandle};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::agent::target::Target;
use crate::code::{Code, Fault};
use crate::dial::leg;
use crate::wire::{LegTicket, SessionId};

/// From a client's first bytes on a warm leg to the broker's offer that says whose they are: the two race.
const OFFER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a leg is for.
#[derive(Clone)]
pub(super) struct Purpose {
    /// For the log.
    pub(super) id: SessionId,
    /// Gets the leg.
    pub(super) session: SessionHandle,
    /// Knows the only client that may be at the other end.
    pub(super) tls: Arc<ServerConfig>,
    /// Whose options the leg takes on.
    pub(super) target: Arc<Target>,
    /// The leg takes the place of those that work.
    pub(super) instead: bool,
}

/// A warm leg is gone unused.
#[derive(Debug)]
pub(super) struct WarmGone {
    /// [`LegTicket::pair`].
    pub(super) pair: String,
    /// How long it lived.
    pub(super) lived: Duration,
}

/// Dials a leg and gives it to its session.
pub(super) async fn dial(ticket: LegTicket, home: Arc<str>, purpose: Purpose) {
    let outcome = match leg::present(&ticket, &home).await {
        Ok(stream) => finish(stream, &purpose).await,
        Err(fault) => Err(fault),
    };
    log(&purpose, outcome);
}

/// Dials a leg and lets it wait until a session wants it, the gateway sends it away, or it breaks.
pub(super) async fn wait(
    ticket: LegTicket,
    home: Arc<str>,
    mut wanted: oneshot::Receiver<Purpose>,
    gone: mpsc::Sender<WarmGone>,
) {
    let started = Instant::now();
    let taken = async {
        let stream = leg::present(&ticket, &home).await?;
        let purpose = tokio::select! {
            purpose = &mut wanted => purpose.map_err(|_| no_offer())?,
            first = first_bytes(&stream) => {
                first?;
                tokio::select! {
                    purpose = &mut wanted => purpose.map_err(|_| no_offer())?,
                    () = sleep(OFFER_TIMEOUT) => return Err(no_offer()),
                }
            }
        };
        Ok((stream, purpose))
    };
    match taken.await {
        Ok((stream, purpose)) => {
            let outcome = finish(stream, &purpose).await;
            log(&purpose, outcome);
        }
        Err(fault) => {
            let lived = started.elapsed();
            tracing::debug!(code = %fault.code, detail = fault.detail, ?lived, "warm leg gone");
            // The agent is stopping.
            let _ = gone.send(WarmGone { pair: ticket.pair, lived }).await;
        }
    }
}

/// Waits for a client's first bytes.
async fn first_bytes(stream: &TcpStream) -> Result<(), Fault> {
    let mut first = [0; leg::ALERT_BYTES];
    match stream.peek(&mut first).await {
        Ok(0) => Err(Code::LegFailed.because("the gateway hung up")),
        Ok(count) => leg::refusal(&first[..count]).map_or(Ok(()), |code| Err(code.into())),
        Err(error) => Err(Code::LegFailed.because(error.to_string())),
    }
}

async fn finish(stream: TcpStream, purpose: &Purpose) -> Result<(), Fault> {
    // A warm leg only now learns what it is for.
    let tuned = purpose.target.tuning.apply_to_connection(&stream);
    tuned.map_err(|refused| Code::TuningUnsupported.because(refused.to_string()))?;
    let stream = leg::accept(stream, purpose.tls.clone()).await?;
    let leg = if purpose.instead {
        purpose.session.attach_instead(stream, LegKind::TcpReverse)
    } else {
        purpose.session.attach(stream, LegKind::TcpReverse)
    };
    tracing::debug!(session = %purpose.id, %leg, "leg attached");
    Ok(())
}

fn log(purpose: &Purpose, outcome: Result<(), Fault>) {
    match outcome {
        Ok(()) => {}
        Err(fault) if fault.code == Code::PeerKeyMismatch => {
            tracing::warn!(session = %purpose.id, %fault, "leg refused");
        }
        Err(fault) => tracing::info!(session = %purpose.id, %fault, "leg failed"),
    }
}

fn no_offer() -> Fault {
    Code::LegUnpaired.because("no offer came for this leg")
}
