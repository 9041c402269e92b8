//! An endpoint's WebSocket link to the broker: made, watched, and made again until someone stops it.
//!
//! The owner gets a fresh outgoing queue with every [`LinkEvent::Up`]: what was queued on a link that broke is gone
//! with it, so no message meant for one link (a `register`, an answer) can slip onto the next.

#[cfg(test)]
pub(crate) mod fake_broker;
mod first;
mod pass;
pub mod report;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::code::{Code, Fault};
use crate::dial::{self, Backoff};
pub use first::FirstWord;
pub use pass::Pass;

/// Pauses between attempts: quick after a broker restart, gentle on a broker that thousands have lost. The cap is what
/// a session may have to wait for its way back after a long outage.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_CAP: Duration = Duration::from_secs(3);
/// Pauses in the first seconds after a link that was good: a broker that restarts is back within them, and sessions on TCP
/// wait for it. Two attempts a second and end, most of them refused by the kernel.
const RESTART: Duration = Duration::from_secs(6);
const RESTART_CAP: Duration = Duration::from_millis(500);
/// A link that lived this long was no attempt that the broker turned down.
const SETTLED_LINK: Duration = Duration::from_secs(1);
/// A link that lived this long was a good one: the next attempt starts with a short pause again.
const GOOD_LINK: Duration = Duration::from_secs(5);
/// Messages queued per link at most; whoever sends more waits.
pub(crate) const OUTGOING_MAX: usize = 256;
/// Places of them that are left to everything else by whoever has something to tell of each session.
pub(crate) const PLACES_LEFT: usize = OUTGOING_MAX / 2;
/// Between looks whether a link has sent what filled its queue: 2,500 sessions a second at most.
pub(crate) const TELL_PAUSE: Duration = Duration::from_millis(50);

/// What an owner learns of its link.
#[derive(Debug)]
pub enum LinkEvent<Out, In> {
    /// The link is up; send on this queue until it is down.
    Up(mpsc::Sender<Out>),
    /// A message came.
    Message(In),
    /// The link broke, or an attempt failed; another follows.
    Down(Fault),
}

/// Says that the network may have changed: whoever sees another connection fall silent raises it, and the link is asked
/// for a sign of life at once instead of at its next ping. While that is missing for longer than round trips explain, another
/// link is made beside it, and whichever speaks first stays.
#[derive(Clone, Debug, Default)]
pub struct Doubt(Arc<Notify>);

impl Doubt {
    /// Has the link prove itself. Cheap and harmless if it is well.
    pub fn raise(&self) {
        self.0.notify_one();
    }
}

/// Keeps a link to `path` at the pass's broker until `stop`, or until the owner drops the events' receiver. What waits
/// in `first` travels with each request for a link until a broker takes it.
///
/// # Errors
/// The fault that no retry will mend, see [`is_final`]; [`Code::BrokerPinMismatch`] only if no link was ever up.
pub async fn run<Out, In>(
    pass: &impl Pass,
    path: &'static str,
    events: mpsc::Sender<LinkEvent<Out, In>>,
    doubt: Doubt,
    first: FirstWord<Out>,
    stop: CancellationToken,
) -> Result<(), Fault>
where
    Out: Serialize,
    In: DeserializeOwned,
{
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_CAP);
    let mut quick = Backoff::new(BACKOFF_FIRST, RESTART_CAP);
    let mut lost = None;
    let mut spare = None;
    let mut was_up = false;
    loop {
        let started = Instant::now();
        let Ended { fault, next, up } = tokio::select! {
            ended = attempt((pass, path), &events, &doubt, &first, &stop, spare.take()) => ended,
            () = events.closed() => return Ok(()),
        };
        if stop.is_cancelled() {
            return Ok(());
        }
        was_up |= up;
        let never = is_final(fault.code) || pass.is_hopeless(fault.code);
        if never && !(was_up && may_be_interception(fault.code)) {
            return Err(fault);
        }
        if started.elapsed() >= GOOD_LINK {
            backoff.reset();
        }
        if started.elapsed() >= SETTLED_LINK {
            quick.reset();
            lost = Some(Instant::now());
        }
        let restarts = lost.is_some_and(|at| at.elapsed() < RESTART);
        let backoff = if restarts { &mut quick } else { &mut backoff };
        spare = next;
        let pause = if spare.is_some() { Duration::ZERO } else { backoff.pause(rand::random()) };
        tracing::debug!(code = %fault.code, detail = fault.detail, "no link to the broker");
        let pause = async {
            // Whether the owner still listens is noticed at the top of the loop.
            let _ = events.send(LinkEvent::Down(fault)).await;
            sleep(pause).await;
        };
        tokio::select! {
            () = pause => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// Whether a link that failed with this code will fail again whatever time passes.
#[must_use]
pub fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerPinMismatch
            | Code::TokenInvalid
            | Code::TokenRevoked
            | Code::TokenExpired
            | Code::InviteInvalid
            | Code::ProtocolVersion
    )
}

/// Whether somebody on the way (a captive portal, a middlebox, an attacker) can cause this refusal. Once the true broker
/// was seen, it ends no session: whoever can answer in its place for a moment would end them all.
pub(crate) fn may_be_interception(code: Code) -> bool {
    matches!(code, Code::BrokerPinMismatch | Code::PeerKeyMismatch)
}

/// How a link ended, and the one that was made in its place, if there is one already.
struct Ended {
    fault: Fault,
    next: Option<Made>,
    /// It was up before it ended.
    up: bool,
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Self { fault, next: None, up: false }
    }
}

/// A link that nothing was said on yet.
struct Made {
    socket: socket::Socket,
    /// What making it took: three round trips and the ends' arithmetic.
    took: Duration,
}

/// Makes a link, and says the first word with it. What a refusal shows how to mend is mended.
async fn open<Out: Serialize>(
    (pass, path): (&impl Pass, &'static str),
    first: &FirstWord<Out>,
) -> Result<Made, Fault> {
    let mut mends_left = pass::MENDS_MAX;
    loop {
        match open_once((pass, path), first).await {
            Err(fault) if mends_left > 0 && pass.mend(fault.code) => mends_left -= 1,
            opened => {
                if opened.is_ok() {
                    pass.accepted();
                }
                return opened;
            }
        }
    }
}

async fn open_once<Out: Serialize>(
    (pass, path): (&impl Pass, &'static str),
    first: &FirstWord<Out>,
) -> Result<Made, Fault> {
    let invite = pass.invite().await?;
    let began = Instant::now();
    let stream = dial::connect_broker(&invite).await?;
    let leaving = first.leave();
    let word = leaving.as_ref().map(|leaving| leaving.header.clone());
    let heard_time = |ms| pass.heard_time(ms);
    let (socket, taken) = socket::upgrade(stream, &invite, path, word, heard_time).await?;
    if let Some(leaving) = leaving.filter(|_| taken) {
        first.said(&leaving);
    }
    Ok(Made { socket, took: began.elapsed() })
}

async fn attempt<Out: Serialize, In: DeserializeOwned>(
    to: (&impl Pass, &'static str),
    events: &mpsc::Sender<LinkEvent<Out, In>>,
    doubt: &Doubt,
    first: &FirstWord<Out>,
    stop: &CancellationToken,
    spare: Option<Made>,
) -> Ended {
    let opening = async {
        match spare {
            Some(made) => Ok(made),
            None => open(to, first).await,
        }
    };
    let opened = tokio::select! {
        opened = opening => opened,
        () = stop.cancelled() => return stopped().into(),
    };
    let made = match opened {
        Ok(made) => made,
        Err(fault) => return fault.into(),
    };
    let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
    if events.send(LinkEvent::Up(sender)).await.is_err() {
        return stopped().into();
    }
    // What is asked while this one is up is asked on it, and one that is made beside it may never be used.
    let nothing = FirstWord::<Out>::default();
    let another = || open(to, &nothing);
    let ended = socket::converse(made, outgoing, events, doubt, stop, another).await;
    Ended { up: true, ..ended }
}

fn stopped() -> Fault {
    Code::SessionClosed.because("the link was stopped")
}
