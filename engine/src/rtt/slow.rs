//! Who is slow: which part of a session holds it back.
//!
//! Pure. Each direction is judged by the leg it leaves on, where the gateway is the sender and the kernel knows what it waits
//! for. The direction that lost more of its time names the culprit. Rows in order of precedence within a direction:
//!
//! | of the interval between two samples | verdict | because |
//! |---|---|---|
//! | a quarter and more: stopped by the receiver's window, and that is the largest part | `Receiver` | `ReceiveWindow` |
//! | a quarter and more: our send buffer too small, and that is the largest part | `Gateway` | `SendBuffer` |
//! | a quarter and more: bytes wait and neither of these stops them: the congestion window does | `Path` | `Retransmits`, else `Queued` |
//! | 1 % of the bytes were sent again | `Path` | `Retransmits` |
//! | round trip 250 ms over its minimum and three times of it | `Path` | `Delayed` |
//! | 1 % of the segments from the other leg came behind a gap | `Path` of that leg | `OutOfOrder` |
//! | nothing of that, in either direction | `Sender` | `NothingWaits` |
use super::figures::{LegFigures, SendingFigures};
use crate::LegSide;

/// Which part of a pair holds it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// Not sampled yet, or the kernel tells too little (before 4.19).
    Unmeasured,
    /// No bytes move.
    Idle,
    /// Neither leg: what the ends send goes through at once, so the applications set the pace.
    Sender,
    /// The network between the gateway and this end.
    Path(LegSide),
    /// This end does not read fast enough.
    Receiver(LegSide),
    /// The gateway's send buffer towards this end.
    Gateway(LegSide),
}

/// The figure that a verdict rests on. Shares are 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Because {
    /// There is no sample to judge by.
    NoSample,
    /// Nothing moved and nothing was outstanding.
    NoTraffic,
    /// Nothing waited for anything.
    NothingWaits,
    /// The receiver's window was the limit for this share of the time.
    ReceiveWindow(f32),
    /// The gateway's send buffer was the limit for this share of the time.
    SendBuffer(f32),
    /// So many bytes wait for the congestion window.
    Queued {
        /// Bytes never sent yet.
        bytes: u32,
        /// For this share of the time.
        share: f32,
    },
    /// This share of the bytes sent had been sent already.
    Retransmits(f32),
    /// The round trip is far over its minimum.
    Delayed {
        /// Smoothed, microseconds.
        smoothed_us: u32,
        /// Minimum, microseconds.
        min_us: u32,
    },
    /// This share of the segments received came behind a gap.
    OutOfOrder(f32),
}

/// A verdict and its reason.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// Who is slow.
    pub slow: Slow,
    /// Why we say so.
    pub because: Because,
}

/// Judges a pair by its client's and its agent's leg. `active` is whether bytes move or are outstanding.
pub(crate) fn who_is_slow(active: bool, legs: [Option<&LegFigures>; 2]) -> Finding {
    if !active && legs.iter().any(Option::is_some) {
        return Finding { slow: Slow::Idle, because: Because::NoTraffic };
    }
    let [client, agent] = legs;
    let found = [(LegSide::Client, client, agent), (LegSide::Agent, agent, client)]
        .into_iter()
        .filter_map(|(sink, to, from)| towards(sink, to, from))
        .max_by(|one, other| one.lost.total_cmp(&other.lost));
    match found {
        Some(found) => found.finding,
        None if legs.iter().all(|leg| leg.is_some_and(|leg| leg.sending.is_some())) => {
            Finding { slow: Slow::Sender, because: Because::NothingWaits }
        }
        None => Finding { slow: Slow::Unmeasured, because: Because::NoSample },
    }
}

/// A finding, and how much of its time the direction lost by it, 0 to 1.
struct Weighed {
    finding: Finding,
    lost: f32,
}

fn weigh(slow: Slow, because: Because, lost: f32) -> Weighed {
    Weighed { finding: Finding { slow, because }, lost }
}

/// What holds back the direction that leaves on the leg of `sink`.
fn towards(sink: LegSide, to: Option<&LegFigures>, from: Option<&LegFigures>) -> Option<Weighed> {
    let sending = to.and_then(|to| to.sending);
    sending
        .and_then(|sending| waiting(sink, &sending))
        .or_else(|| sending.and_then(|sending| resending(sink, &sending)))
        .or_else(|| delayed(sink, to?))
        .or_else(|| arriving(sink.mate(), from?))
}

/// The largest of the three things that bytes can wait for, if it is felt.
fn waiting(sink: LegSide, sending: &SendingFigures) -> Option<Weighed> {
    let busy = sending.busy_share;
    let (window, buffer) = (busy * sending.rwnd_limited_share, busy * sending.sndbuf_limited_share);
    let path = if sending.notsent_bytes > 0 { busy - window - buffer } else { 0.0 };
    let because = match resent(sending) {
        Some(resent) => resent,
        None => Because::Queued { bytes: sending.notsent_bytes, share: path },
    };
    [
        weigh(Slow::Path(sink), because, path),
        weigh(Slow::Gateway(sink), Because::SendBuffer(buffer), buffer),
        weigh(Slow::Receiver(sink), Because::ReceiveWindow(window), window),
    ]
    .into_iter()
    .max_by(|one, other| one.lost.total_cmp(&other.lost))
    .filter(|most| most.lost >= FELT)
}

fn resending(sink: LegSide, sending: &SendingFigures) -> Option<Weighed> {
    Some(weigh(Slow::Path(sink), resent(sending)?, sending.retransmitted_share.min(FELT)))
}

fn resent(sending: &SendingFigures) -> Option<Because> {
    let lossy =
        sending.retransmitted_share >= LOSSY && sending.retransmitted_segments >= RESENT_MIN;
    lossy.then_some(Because::Retransmits(sending.retransmitted_share))
}

fn delayed(sink: LegSide, to: &LegFigures) -> Option<Weighed> {
    let (smoothed_us, min_us) = (to.rtt.smoothed_us, to.rtt.min_us);
    let far = smoothed_us >= min_us.saturating_add(DELAY_US) && smoothed_us / 3 >= min_us;
    far.then(|| weigh(Slow::Path(sink), Because::Delayed { smoothed_us, min_us }, 0.0))
}

fn arriving(source: LegSide, from: &LegFigures) -> Option<Weighed> {
    let share = from.out_of_order_share.filter(|&share| share >= LOSSY)?;
    Some(weigh(Slow::Path(source), Because::OutOfOrder(share), share.min(FELT)))
}

/// Of the time. Less than that is not what somebody complains about.
const FELT: f32 = 0.25;
/// Where loss-based congestion control begins to feel it at ordinary round trips: at 1 % and 50 ms, Reno carries 3 Mbit/s.
const LOSSY: f32 = 0.01;
/// A single one is often the sender's own tail loss probe.
const RESENT_MIN: u32 = 2;
/// Delayed acknowledgements add up to 200 ms to the round trip of somebody who sends little.
const DELAY_US: u32 = 250_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::RttFigures;
    use LegSide::{Agent, Client};

    fn leg(sending: SendingFigures) -> LegFigures {
        LegFigures {
            rtt: RttFigures { smoothed_us: 20_000, min_us: 10_000, ..RttFigures::default() },
            retransmits: 0,
            unacked_segments: 0,
            cwnd_segments: 10,
            since_ack: Duration::ZERO,
            sending: Some(sending),
            out_of_order_share: Some(0.0),
            interval: Duration::from_secs(1),
            age: Duration::ZERO,
        }
    }

    /// Busy all the time; window and buffer are shares of it.
    fn busy(window: f32, buffer: f32, notsent_bytes: u32) -> LegFigures {
        leg(SendingFigures {
            busy_share: 1.0,
            rwnd_limited_share: window,
            sndbuf_limited_share: buffer,
            notsent_bytes,
            ..SendingFigures::default()
        })
    }

    fn lossy(
        retransmitted_share: f32,
        retransmitted_segments: u32,
        notsent_bytes: u32,
    ) -> LegFigures {
        let mut leg = busy(0.0, 0.0, notsent_bytes);
        if let Some(sending) = &mut leg.sending {
            (sending.retransmitted_share, sending.retransmitted_segments) =
                (retransmitted_share, retransmitted_segments);
        }
        leg
    }

    fn delay(smoothed_us: u32, min_us: u32) -> LegFigures {
        let rtt = RttFigures { smoothed_us, min_us, ..RttFigures::default() };
        LegFigures { rtt, ..busy(0.0, 0.0, 0) }
    }

    fn gaps(share: f32) -> LegFigures {
        LegFigures { out_of_order_share: Some(share), ..busy(0.0, 0.0, 0) }
    }

    #[test]
    fn every_row_of_the_table_names_its_culprit() {
        let calm = || busy(0.0, 0.0, 0);
        let mut brief = busy(1.0, 0.0, 9);
        if let Some(sending) = &mut brief.sending {
            sending.busy_share = 0.2;
        }
        let queued = |bytes, share| Because::Queued { bytes, share };
        let slow = Because::Delayed { smoothed_us: 400_000, min_us: 20_000 };
        // client's leg, agent's leg, verdict, reason
        let rows = [
            (busy(0.9, 0.0, 9), calm(), Slow::Receiver(Client), Because::ReceiveWindow(0.9)),
            (calm(), busy(0.25, 0.0, 0), Slow::Receiver(Agent), Because::ReceiveWindow(0.25)),
            (calm(), busy(0.2, 0.0, 0), Slow::Sender, Because::NothingWaits),
            (brief, calm(), Slow::Sender, Because::NothingWaits),
            (busy(0.1, 0.6, 0), calm(), Slow::Gateway(Client), Because::SendBuffer(0.6)),
            (busy(0.0, 0.0, 7), calm(), Slow::Path(Client), queued(7, 1.0)),
            (calm(), busy(0.25, 0.25, 7), Slow::Path(Agent), queued(7, 0.5)),
            (busy(0.75, 0.0, 7), calm(), Slow::Receiver(Client), Because::ReceiveWindow(0.75)),
            (lossy(0.05, 9, 7), calm(), Slow::Path(Client), Because::Retransmits(0.05)),
            (calm(), lossy(0.01, 2, 0), Slow::Path(Agent), Because::Retransmits(0.01)),
            (lossy(0.5, 1, 0), calm(), Slow::Sender, Because::NothingWaits),
            (delay(400_000, 20_000), calm(), Slow::Path(Client), slow),
            (delay(240_000, 20_000), calm(), Slow::Sender, Because::NothingWaits),
            (delay(900_000, 500_000), calm(), Slow::Sender, Because::NothingWaits),
            (calm(), gaps(0.03), Slow::Path(Agent), Because::OutOfOrder(0.03)),
            (gaps(0.009), calm(), Slow::Sender, Because::NothingWaits),
            (calm(), calm(), Slow::Sender, Because::NothingWaits),
        ];
        for (client, agent, slow, because) in rows {
            let found = who_is_slow(true, [Some(&client), Some(&agent)]);
            assert_eq!(found, Finding { slow, because }, "{client:?}\n{agent:?}");
        }
    }

    #[test]
    fn the_direction_that_lost_more_names_the_culprit() {
        let (client, agent) = (busy(0.4, 0.0, 0), busy(0.9, 0.0, 0));
        assert_eq!(who_is_slow(true, [Some(&client), Some(&agent)]).slow, Slow::Receiver(Agent));
        assert_eq!(who_is_slow(true, [Some(&agent), Some(&client)]).slow, Slow::Receiver(Client));
        // Waiting counts for more than a little loss elsewhere.
        let (waits, loses) = (busy(0.3, 0.0, 0), lossy(0.02, 5, 0));
        assert_eq!(who_is_slow(true, [Some(&loses), Some(&waits)]).slow, Slow::Receiver(Agent));
    }

    #[test]
    fn nobody_is_blamed_without_traffic_or_figures() {
        let full = busy(1.0, 0.0, 9);
        let old = LegFigures { sending: None, out_of_order_share: None, ..full };
        let slow = |active, legs| who_is_slow(active, legs).slow;
        assert_eq!(slow(false, [Some(&full), Some(&full)]), Slow::Idle);
        assert_eq!(slow(false, [None, None]), Slow::Unmeasured);
        assert_eq!(slow(true, [None, None]), Slow::Unmeasured);
        assert_eq!(slow(true, [Some(&old), Some(&old)]), Slow::Unmeasured);
        // One leg is enough to see that it is full.
        assert_eq!(slow(true, [Some(&full), None]), Slow::Receiver(Client));
    }
}
