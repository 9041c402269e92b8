//! What the kernel tells about one TCP connection: `struct tcp_info` of `include/uapi/linux/tcp.h`.
//!
//! Pure. The structure is stable ABI and only ever extended at its end; an older kernel returns less of it. What was not
//! returned is absent, never zero.

/// One reading. Everything about sending is the gateway's sending on this leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// Smoothed round-trip time, microseconds (`tcpi_rtt`, RFC 6298). 0 while there is none.
    pub(crate) rtt_us: u32,
    /// Its mean deviation, microseconds (`tcpi_rttvar`).
    pub(crate) rttvar_us: u32,
    /// Segments sent and not yet acknowledged (`tcpi_unacked`).
    pub(crate) unacked_segments: u32,
    /// Congestion window, segments (`tcpi_snd_cwnd`).
    pub(crate) cwnd_segments: u32,
    /// Milliseconds since the last acknowledgement came (`tcpi_last_ack_recv`).
    pub(crate) since_ack_ms: u32,
    /// Segments sent again since the connection began (`tcpi_total_retrans`).
    pub(crate) retransmits: u32,
    /// Linux 4.19.
    pub(crate) transfer: Option<Transfer>,
    /// Linux 5.4.
    pub(crate) arrivals: Option<Arrivals>,
}

/// What Linux 4.19 and newer tell about sending; most of it appeared in 4.1 to 4.10.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// Smallest round-trip time, microseconds (`tcpi_min_rtt`); `None` while there is none.
    pub(crate) min_rtt_us: Option<u32>,
    /// Bytes accepted from us and not yet sent once (`tcpi_notsent_bytes`).
    pub(crate) notsent_bytes: u32,
    /// Bytes acknowledged (`tcpi_bytes_acked`, RFC 4898).
    pub(crate) acked_bytes: u64,
    /// Bytes sent, repetitions included (`tcpi_bytes_sent`).
    pub(crate) sent_bytes: u64,
    /// Bytes sent again (`tcpi_bytes_retrans`).
    pub(crate) resent_bytes: u64,
    /// Most recent best rate of delivery, bytes per second (`tcpi_delivery_rate`).
    pub(crate) delivery_rate: u64,
    /// That rate was bounded by what there was to send, not by the path (`tcpi_delivery_rate_app_limited`).
    pub(crate) app_limited: bool,
    /// Time with bytes queued or unacknowledged, microseconds (`tcpi_busy_time`). The clock is the kernel's tick.
    pub(crate) busy_us: u64,
    /// Of it: stopped by the peer's receive window, microseconds (`tcpi_rwnd_limited`).
    pub(crate) rwnd_limited_us: u64,
    /// Of it: everything sent while the sender waited for room in the send buffer, microseconds (`tcpi_sndbuf_limited`).
    pub(crate) sndbuf_limited_us: u64,
}

/// What Linux 5.4 and newer tell about receiving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrivals {
    /// Segments with data received (`tcpi_data_segs_in`).
    pub(crate) segments: u32,
    /// Of them: behind a gap, so that something before them was lost or overtaken (`tcpi_rcv_ooopack`).
    pub(crate) out_of_order: u32,
}

/// Bytes of `struct tcp_info` that are understood: up to and including `tcpi_rcv_ooopack`.
pub(crate) const INFO_BYTES: usize = 228;

impl TcpInfo {
    /// Reads what the kernel returned; `None` if that is too short even for `tcpi_total_retrans` (Linux 2.6).
    pub(crate) fn parse(info: &[u8]) -> Option<Self> {
        Some(Self {
            unacked_segments: u32_at(info, 24)?,
            since_ack_ms: u32_at(info, 56)?,
            rtt_us: u32_at(info, 68)?,
            rttvar_us: u32_at(info, 72)?,
            cwnd_segments: u32_at(info, 80)?,
            retransmits: u32_at(info, 100)?,
            transfer: Transfer::parse(info),
            arrivals: Arrivals::parse(info),
        })
    }

    /// Bytes are on their way or wait to be sent.
    pub(crate) fn outstanding(&self) -> bool {
        self.unacked_segments > 0
            || self.transfer.is_some_and(|transfer| transfer.notsent_bytes > 0)
    }
}

impl Transfer {
    fn parse(info: &[u8]) -> Option<Self> {
        Some(Self {
            app_limited: info.get(7)? & APP_LIMITED != 0,
            acked_bytes: u64_at(info, 120)?,
            notsent_bytes: u32_at(info, 144)?,
            // The kernel shows "none yet" as all ones.
            min_rtt_us: Some(u32_at(info, 148)?).filter(|&min| min != u32::MAX),
            delivery_rate: u64_at(info, 160)?,
            busy_us: u64_at(info, 168)?,
            rwnd_limited_us: u64_at(info, 176)?,
            sndbuf_limited_us: u64_at(info, 184)?,
            sent_bytes: u64_at(info, 200)?,
            resent_bytes: u64_at(info, 208)?,
        })
    }
}

impl Arrivals {
    fn parse(info: &[u8]) -> Option<Self> {
        Some(Self { segments: u32_at(info, 152)?, out_of_order: u32_at(info, 224)? })
    }
}

/// `tcpi_delivery_rate_app_limited:1` is the first bit field of its byte: the lowest bit where bit fields are filled from
/// below, as on every little-endian Linux, the highest elsewhere.
const APP_LIMITED: u8 = if cfg!(target_endian = "little") { 0x01 } else { 0x80 };

fn u32_at(info: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*info.get(offset..)?.first_chunk()?))
}

fn u64_at(info: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*info.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure whose every 32-bit word is its own offset, so that a wrong offset shows.
    fn offsets() -> Vec<u8> {
        (0..64u32).flat_map(|word| (word * 4).to_ne_bytes()).collect()
    }

    fn wide(offset: u64) -> u64 {
        let words = [offset as u32, offset as u32 + 4];
        u64::from_ne_bytes(words.map(u32::to_ne_bytes).concat().try_into().unwrap())
    }

    #[test]
    fn every_figure_is_read_from_its_place_in_the_header_file() {
        let info = TcpInfo::parse(&offsets()[..INFO_BYTES]).unwrap();
        assert_eq!((info.unacked_segments, info.since_ack_ms), (24, 56));
        assert_eq!((info.rtt_us, info.rttvar_us), (68, 72));
        assert_eq!((info.cwnd_segments, info.retransmits), (80, 100));
        let transfer = info.transfer.unwrap();
        assert_eq!((transfer.notsent_bytes, transfer.min_rtt_us), (144, Some(148)));
        assert_eq!((transfer.acked_bytes, transfer.delivery_rate), (wide(120), wide(160)));
        let busy = (transfer.busy_us, transfer.rwnd_limited_us, transfer.sndbuf_limited_us);
        assert_eq!(busy, (wide(168), wide(176), wide(184)));
        assert_eq!((transfer.sent_bytes, transfer.resent_bytes), (wide(200), wide(208)));
        assert_eq!(info.arrivals, Some(Arrivals { segments: 152, out_of_order: 224 }));
    }

    #[test]
    fn what_an_older_kernel_does_not_return_is_absent() {
        let bytes = offsets();
        let of = |length: usize| TcpInfo::parse(&bytes[..length]);
        assert_eq!(of(103), None);
        let oldest = of(104).unwrap();
        assert_eq!((oldest.rtt_us, oldest.transfer, oldest.arrivals), (68, None, None));
        assert!(of(192).unwrap().transfer.is_none(), "Linux 4.10");
        let linux_4_19 = of(224).unwrap();
        assert!(linux_4_19.transfer.is_some() && linux_4_19.arrivals.is_none());
        assert_eq!(of(256), of(228), "a newer kernel tells more than is understood");
    }

    #[test]
    fn no_smallest_round_trip_yet_is_absent_and_the_limit_of_the_rate_is_told() {
        let mut bytes = vec![0; INFO_BYTES];
        bytes[148..152].fill(0xff);
        let transfer = |bytes: &[u8]| TcpInfo::parse(bytes).unwrap().transfer.unwrap();
        assert_eq!((transfer(&bytes).min_rtt_us, transfer(&bytes).app_limited), (None, false));
        bytes[7] = !APP_LIMITED;
        assert!(!transfer(&bytes).app_limited, "the neighbouring bits mean something else");
        bytes[7] = APP_LIMITED;
        assert!(transfer(&bytes).app_limited);
    }
}
