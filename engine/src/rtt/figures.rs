//! One leg's readings, and what they say.
//!
//! Pure. Counters of the kernel only grow; the difference of two readings tells how the time between them was spent.
use std::time::{Duration, Instant};

use super::info::{Arrivals, TcpInfo, Transfer};
use super::window::Window;

/// What is known about one leg. Sending is the gateway's sending on this leg, towards its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LegFigures {
    /// Round-trip time.
    pub rtt: RttFigures,
    /// Segments sent again since the connection began.
    pub retransmits: u32,
    /// Segments sent and not yet acknowledged.
    pub unacked_segments: u32,
    /// Congestion window, in segments.
    pub cwnd_segments: u32,
    /// Since the last acknowledgement, as of the sample.
    pub since_ack: Duration,
    /// More about sending; `None` on kernels before 4.19.
    pub sending: Option<SendingFigures>,
    /// Share of the segments received since the sample before that came behind a gap, 0 to 1: something before them was
    /// lost or overtaken on the way to the gateway. `None` on kernels before 5.4.
    pub out_of_order_share: Option<f32>,
    /// Between the last two samples, or since the pair started. What "share" and "since the sample before" refer to.
    pub interval: Duration,
    /// Since the sample.
    pub age: Duration,
}

/// Round-trip time of one leg, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RttFigures {
    /// The kernel's smoothed value (RFC 6298) at the last sample.
    pub smoothed_us: u32,
    /// The kernel's minimum since the connection began (or its own window, see `tcp_min_rtt_wlen`).
    pub min_us: u32,
    /// Median of the last 64 samples.
    pub p50_us: u32,
    /// 99th percentile of the last 64 samples.
    pub p99_us: u32,
    /// The kernel's mean deviation (RTTVAR of RFC 6298) at the last sample.
    pub var_us: u32,
}

/// How sending on a leg went between its last two samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SendingFigures {
    /// Bytes sent again since the connection began.
    pub retransmitted_bytes: u64,
    /// Share of the bytes sent since the sample before that had been sent already, 0 to 1.
    pub retransmitted_share: f32,
    /// Segments sent again since the sample before.
    pub retransmitted_segments: u32,
    /// Best recent rate of delivery by the kernel's estimate, bits per second.
    pub delivery_bits_per_second: u64,
    /// That rate was bounded by what there was to send: the path may carry more.
    pub app_limited: bool,
    /// Bytes acknowledged since the sample before, per second, in bits.
    pub acked_bits_per_second: u64,
    /// Bytes that wait in the gateway's send buffer and were never sent.
    pub notsent_bytes: u32,
    /// Share of the time with bytes queued or unacknowledged, 0 to 1.
    pub busy_share: f32,
    /// Share of that busy time in which the receiver's window stopped us, 0 to 1.
    pub rwnd_limited_share: f32,
    /// Share of that busy time in which our send buffer was too small for the path, 0 to 1.
    pub sndbuf_limited_share: f32,
}

/// The readings of one leg: the last, and what was learnt from the one before it.
#[derive(Debug)]
pub(crate) struct LegRecord {
    window: Window,
    last: TcpInfo,
    recent: Recent,
    at: Instant,
}

/// What the last two readings say together.
#[derive(Debug, Default)]
struct Recent {
    interval: Duration,
    acked_bits_per_second: u64,
    retransmitted_share: f32,
    retransmitted_segments: u32,
    busy_share: f32,
    rwnd_limited_share: f32,
    sndbuf_limited_share: f32,
    out_of_order_share: f32,
}

impl LegRecord {
    /// The first reading. Before `started` the connection only carried its hello.
    pub(crate) fn first(started: Instant, now: Instant, info: TcpInfo) -> Self {
        let nothing = TcpInfo {
            retransmits: 0,
            transfer: info.transfer.map(|_| Transfer::default()),
            arrivals: info.arrivals.map(|_| Arrivals::default()),
            ..info
        };
        let mut record = Self {
            window: Window::default(),
            last: nothing,
            recent: Recent::default(),
            at: started,
        };
        record.next(now, info);
        record
    }

    /// The next reading.
    pub(crate) fn next(&mut self, now: Instant, info: TcpInfo) {
        if info.rtt_us > 0 {
            self.window.record(info.rtt_us);
        }
        self.recent = Recent::between(&self.last, &info, now.saturating_duration_since(self.at));
        (self.last, self.at) = (info, now);
    }

    /// What is known; `None` while the kernel has no round-trip time.
    pub(crate) fn figures(&self, now: Instant) -> Option<LegFigures> {
        let (p50_us, p99_us) = self.window.p50_p99()?;
        let TcpInfo { rtt_us: smoothed_us, rttvar_us: var_us, .. } = self.last;
        let min_us =
            self.last.transfer.and_then(|transfer| transfer.min_rtt_us).unwrap_or(smoothed_us);
        Some(LegFigures {
            rtt: RttFigures { smoothed_us, min_us, p50_us, p99_us, var_us },
            retransmits: self.last.retransmits,
            unacked_segments: self.last.unacked_segments,
            cwnd_segments: self.last.cwnd_segments,
            since_ack: Duration::from_millis(self.last.since_ack_ms.into()),
            sending: self.last.transfer.map(|transfer| self.recent.sending(&transfer)),
            out_of_order_share: self.last.arrivals.map(|_| self.recent.out_of_order_share),
            interval: self.recent.interval,
            age: now.saturating_duration_since(self.at),
        })
    }
}

impl Recent {
    fn between(before: &TcpInfo, after: &TcpInfo, interval: Duration) -> Self {
        let mut recent = Self {
            interval,
            retransmitted_segments: after.retransmits.wrapping_sub(before.retransmits),
            ..Self::default()
        };
        if let (Some(before), Some(after)) = (before.transfer, after.transfer) {
            recent.add_transfer(&before, &after);
        }
        if let (Some(before), Some(after)) = (before.arrivals, after.arrivals) {
            let segments = after.segments.wrapping_sub(before.segments);
            let out_of_order = after.out_of_order.wrapping_sub(before.out_of_order);
            recent.out_of_order_share = share(out_of_order.into(), segments.into());
        }
        recent
    }

    fn add_transfer(&mut self, before: &Transfer, after: &Transfer) {
        let grown = |pick: fn(&Transfer) -> u64| pick(after).saturating_sub(pick(before));
        let interval_us = u64::try_from(self.interval.as_micros()).unwrap_or(u64::MAX);
        let busy_us = grown(|transfer| transfer.busy_us);
        self.busy_share = share(busy_us, interval_us);
        self.rwnd_limited_share = share(grown(|transfer| transfer.rwnd_limited_us), busy_us);
        self.sndbuf_limited_share = share(grown(|transfer| transfer.sndbuf_limited_us), busy_us);
        self.retransmitted_share =
            share(grown(|transfer| transfer.resent_bytes), grown(|transfer| transfer.sent_bytes));
        self.acked_bits_per_second = (grown(|transfer| transfer.acked_bytes) as f64 * 8.0
            / self.interval.as_secs_f64()) as u64;
    }

    fn sending(&self, transfer: &Transfer) -> SendingFigures {
        SendingFigures {
            retransmitted_bytes: transfer.resent_bytes,
            retransmitted_share: self.retransmitted_share,
            retransmitted_segments: self.retransmitted_segments,
            delivery_bits_per_second: transfer.delivery_rate.saturating_mul(8),
            app_limited: transfer.app_limited,
            acked_bits_per_second: self.acked_bits_per_second,
            notsent_bytes: transfer.notsent_bytes,
            busy_share: self.busy_share,
            rwnd_limited_share: self.rwnd_limited_share,
            sndbuf_limited_share: self.sndbuf_limited_share,
        }
    }
}

/// 0 to 1; 0 of nothing. The kernel's clock is coarser than ours, so a part may look larger than its whole.
fn share(part: u64, whole: u64) -> f32 {
    if whole == 0 { 0.0 } else { (part as f32 / whole as f32).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(rtt_us: u32, transfer: Option<Transfer>) -> TcpInfo {
        TcpInfo {
            rtt_us,
            rttvar_us: 5,
            unacked_segments: 3,
            cwnd_segments: 10,
            since_ack_ms: 20,
            retransmits: 0,
            transfer,
            arrivals: None,
        }
    }

    #[test]
    fn shares_are_of_the_time_between_two_readings() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let busy = |busy_us, rwnd_limited_us, sndbuf_limited_us, acked_bytes| Transfer {
            busy_us,
            rwnd_limited_us,
            sndbuf_limited_us,
            acked_bytes,
            sent_bytes: acked_bytes * 2,
            resent_bytes: acked_bytes / 5,
            ..Transfer::default()
        };
        let mut early = reading(700, Some(busy(50_000, 50_000, 0, 1000)));
        early.arrivals = Some(Arrivals { segments: 100, out_of_order: 0 });
        let mut record = LegRecord::first(start, at(100), early);
        let first = record.figures(at(100)).unwrap();
        assert_eq!(first.interval, Duration::from_millis(100));
        let sending = first.sending.unwrap();
        assert_eq!((sending.busy_share, sending.rwnd_limited_share), (0.5, 1.0));
        assert_eq!(sending.acked_bits_per_second, 80_000);

        let mut later = reading(900, Some(busy(850_000, 250_000, 400_000, 126_000)));
        later.retransmits = 7;
        later.arrivals = Some(Arrivals { segments: 500, out_of_order: 100 });
        record.next(at(1100), later);
        let second = record.figures(at(1600)).unwrap();
        assert_eq!((second.interval, second.age), (at(1100) - at(100), at(1600) - at(1100)));
        let sending = second.sending.unwrap();
        assert_eq!((sending.busy_share, sending.rwnd_limited_share), (0.8, 0.25));
        assert_eq!((sending.sndbuf_limited_share, sending.retransmitted_share), (0.5, 0.1));
        assert_eq!((sending.acked_bits_per_second, sending.retransmitted_segments), (1_000_000, 7));
        assert_eq!((second.retransmits, second.out_of_order_share), (7, Some(0.25)));
        assert_eq!((second.rtt.p50_us, second.rtt.p99_us, second.rtt.var_us), (700, 900, 5));
    }

    #[test]
    fn an_older_kernel_leaves_figures_out_and_the_smallest_round_trip_is_the_smoothed_one() {
        let start = Instant::now();
        let figures = LegRecord::first(start, start, reading(700, None)).figures(start).unwrap();
        assert_eq!((figures.sending, figures.out_of_order_share), (None, None));
        assert_eq!((figures.rtt.min_us, figures.rtt.smoothed_us), (700, 700));
    }

    #[test]
    fn without_a_round_trip_time_there_are_no_figures_yet() {
        let start = Instant::now();
        let mut record = LegRecord::first(start, start, reading(0, None));
        assert_eq!(record.figures(start), None);
        record.next(start, reading(9, None));
        assert_eq!(record.figures(start).unwrap().rtt.p99_us, 9);
    }

    #[test]
    fn no_time_and_no_bytes_make_no_share() {
        let start = Instant::now();
        let record = LegRecord::first(start, start, reading(1, Some(Transfer::default())));
        let sending = record.figures(start).unwrap().sending.unwrap();
        assert_eq!((sending.busy_share, sending.retransmitted_share), (0.0, 0.0));
        assert_eq!((sending.rwnd_limited_share, sending.acked_bits_per_second), (0.0, 0));
        assert_eq!(share(12, 10), 1.0, "the kernel's tick is coarser than our clock");
    }
}
