//! Figures of the engine as the API shows them.
use switchback_engine::{
    Because, LegFigures, LegSide, PairFigures, RttFigures, SendingFigures, Slow,
};

use crate::api::{LegView, SendingView, SessionLegs, SlowPart, SlowView};
use crate::broker::clock;
use crate::wire::{PairView, RttView};

/// Figures of a pair as the API shows them, whichever gateway they are from.
pub(crate) fn pair_view(figures: &PairFigures) -> PairView {
    PairView {
        client_rtt: figures.client.map(|leg| rtt_view(leg.rtt)),
        agent_rtt: figures.agent.map(|leg| rtt_view(leg.rtt)),
        legs: legs_view(figures),
        slow: slow_view(figures),
    }
}

const fn rtt_view(rtt: RttFigures) -> RttView {
    let RttFigures { smoothed_us, min_us, p50_us, p99_us, var_us: _ } = rtt;
    RttView { smoothed_us, min_us, p50_us, p99_us }
}

fn legs_view(figures: &PairFigures) -> SessionLegs {
    SessionLegs { client: figures.client.map(leg_view), agent: figures.agent.map(leg_view) }
}

fn slow_view(figures: &PairFigures) -> SlowView {
    let finding = figures.who_is_slow();
    SlowView { who: part(finding.slow), because: reason(finding.slow, finding.because) }
}

fn leg_view(leg: LegFigures) -> LegView {
    LegView {
        rttvar_us: leg.rtt.var_us,
        retransmits: leg.retransmits,
        unacked_segments: leg.unacked_segments,
        cwnd_segments: leg.cwnd_segments,
        since_ack_ms: clock::millis(leg.since_ack),
        sending: leg.sending.map(sending_view),
        out_of_order_share: leg.out_of_order_share.map(rounded),
        interval_ms: clock::millis(leg.interval),
        age_ms: clock::millis(leg.age),
    }
}

fn sending_view(sending: SendingFigures) -> SendingView {
    SendingView {
        retransmitted_bytes: sending.retransmitted_bytes,
        retransmitted_share: rounded(sending.retransmitted_share),
        delivery_bits_per_second: sending.delivery_bits_per_second,
        app_limited: sending.app_limited,
        acked_bits_per_second: sending.acked_bits_per_second,
        notsent_bytes: sending.notsent_bytes,
        busy_share: rounded(sending.busy_share),
        rwnd_limited_share: rounded(sending.rwnd_limited_share),
        sndbuf_limited_share: rounded(sending.sndbuf_limited_share),
    }
}

const fn part(slow: Slow) -> SlowPart {
    match slow {
        Slow::Unmeasured => SlowPart::Unmeasured,
        Slow::Idle => SlowPart::Idle,
        Slow::Sender => SlowPart::Sender,
        Slow::Path(LegSide::Client) => SlowPart::ClientPath,
        Slow::Path(LegSide::Agent) => SlowPart::AgentPath,
        Slow::Receiver(LegSide::Client) => SlowPart::ClientReceiver,
        Slow::Receiver(LegSide::Agent) => SlowPart::AgentReceiver,
        Slow::Gateway(_) => SlowPart::Gateway,
    }
}

/// A sentence without its full stop.
fn reason(slow: Slow, because: Because) -> String {
    let side = match slow {
        Slow::Path(side) | Slow::Receiver(side) | Slow::Gateway(side) => side.as_str(),
        Slow::Unmeasured | Slow::Idle | Slow::Sender => "",
    };
    match because {
        Because::NoSample => "the legs have not been sampled yet".into(),
        Because::NoTraffic => "no bytes move and none are outstanding".into(),
        Because::NothingWaits => {
            "neither leg holds anything back: whoever sends sets the pace".into()
        }
        Because::ReceiveWindow(share) => format!(
            "the {side} does not read fast enough: its receive window was the limit for {} of the time",
            percent(share)
        ),
        Because::SendBuffer(share) => format!(
            "the gateway's send buffer towards the {side} was the limit for {} of the time",
            percent(share)
        ),
        Because::Queued { bytes, share } => format!(
            "the network to the {side} takes no more: its congestion window was the limit for {} of the time, {bytes} bytes wait",
            percent(share)
        ),
        Because::Retransmits(share) => format!(
            "the network to the {side} loses packets: {} of the bytes had to be sent again",
            percent(share)
        ),
        Because::Delayed { smoothed_us, min_us } => format!(
            "the network to the {side} delays: the round trip is {} ms, its minimum {} ms",
            smoothed_us / 1000,
            min_us / 1000
        ),
        Because::OutOfOrder(share) => format!(
            "the network from the {side} loses or reorders packets: {} came behind a gap",
            percent(share)
        ),
    }
}

/// Three digits are more than the kernel's clock gives.
fn rounded(share: f32) -> f32 {
    (share * 1000.0).round() / 1000.0
}

fn percent(share: f32) -> String {
    let percent = share * 100.0;
    if percent < 9.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_the_side_and_the_figure() {
        let receiver = Slow::Receiver(LegSide::Client);
        assert_eq!(
            reason(receiver, Because::ReceiveWindow(0.92)),
            "the client does not read fast enough: its receive window was the limit for 92 % of the time"
        );
        let path = Slow::Path(LegSide::Agent);
        assert_eq!(
            reason(path, Because::Retransmits(0.0123)),
            "the network to the agent loses packets: 1.2 % of the bytes had to be sent again"
        );
        let delayed = Because::Delayed { smoothed_us: 400_900, min_us: 20_000 };
        assert!(reason(path, delayed).ends_with("the round trip is 400 ms, its minimum 20 ms"));
        assert_eq!(serde_json::to_value(part(path)).unwrap(), "agent_path");
        assert_eq!(serde_json::to_value(part(receiver)).unwrap(), "client_receiver");
    }

    #[test]
    fn without_figures_nobody_is_blamed() {
        let figures = PairFigures::default();
        assert_eq!(slow_view(&figures).who, SlowPart::Unmeasured);
        assert_eq!(legs_view(&figures), SessionLegs::default());
    }

    #[test]
    fn shares_are_shown_to_three_digits() {
        assert_eq!(serde_json::to_string(&rounded(1.0 / 3.0)).unwrap(), "0.333");
        assert_eq!((percent(0.9949), percent(0.0005)), ("99 %".into(), "0.1 %".into()));
    }
}
