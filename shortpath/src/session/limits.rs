//! Every maximum of a session, with its reason.
use std::time::Duration;

use super::words::LegKind;

/// Window every channel has before its first acknowledgement, known to both ends without a word: what may be sent in the
/// same flight as OPEN. TCP's own first flight is 14 KB (RFC 6928), so it is never the brake.
pub const WINDOW_IMPLIED: u64 = 64 * 1024;
/// Channels of the peer's opening that a session holds beyond `channels_max`: the peer may forget one while our view of
/// that is still on its way on a slower leg. Twice the limit covers a whole generation of them. One more is reset.
pub const CHANNELS_LAG_FACTOR: usize = 2;
/// As many again are held while the peer has yet to learn that they were reset. No correct peer, which holds `channels_max`
/// itself, gets beyond: that ends the session.
pub const CHANNELS_TOLD_FACTOR: usize = 4;
/// Most `channels_max` may be: the states of own and peer's channels must fit one HELLO (5 x 600 x 21 bytes < 64 KiB).
pub const CHANNELS_MAX: usize = 600;
/// Legs attached at once: the reference uses five paths per session, and a re-dial overlaps the leg it replaces.
pub const LEGS_MAX: usize = 8;
/// Separate runs of out-of-order bytes per channel. Runs come from legs overtaking each other, so a handful is normal.
pub const RUNS_MAX: usize = 1024;
/// Acknowledge at once when this much is unacknowledged: half of the first full window.
pub const ACK_BYTES: u64 = 128 * 1024;
/// What keeping one unacknowledged chunk costs besides its bytes, charged against the replay limit so that one-byte
/// writes cannot fill memory with bookkeeping.
pub const CHUNK_COST: usize = 64;
/// Payloads smaller than this are copied out of the leg's read buffer, so that a few bytes never pin 64 KiB.
pub const COPY_BELOW: usize = 4096;
/// A channel with at most this much to send counts as interactive and goes before bulk.
pub const INTERACTIVE_BYTES: u64 = 4096;
/// Interactive frames in a row before a bulk frame gets its turn.
pub const INTERACTIVE_RUN: u32 = 16;

/// What second copies of small writes may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redundancy {
    /// Share of the application's bytes, in percent. Default 3.
    pub percent: u8,
    /// Or this many bytes a second, if that is more. Default 8,000 (64 kbit/s).
    pub bytes_per_second: u32,
}

impl Default for Redundancy {
    fn default() -> Self {
        Self { percent: 3, bytes_per_second: 8_000 }
    }
}

/// What a session holds and how long it waits.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// How long a session without a leg waits for one before it is lost, from the last sign of life; at least half of it
    /// from the loss of the last leg. Default 60 s. Longer keeps applications' sockets and replay bytes for peers that may
    /// never return.
    pub resume_window: Duration,
    /// Channels each end may have open at once, one value for both ends, 1 to [`CHANNELS_MAX`]. Default 512.
    pub channels_max: usize,
    /// Unacknowledged bytes kept over all channels. Default 32 MiB: 1 Gbit/s x 120 ms is half of it. Writes wait beyond.
    pub replay_bytes_max: usize,
    /// Sum of receive windows over all channels, not counting [`WINDOW_IMPLIED`] of each. Default 32 MiB.
    pub receive_bytes_max: u64,
    /// Window of a new channel in bytes, while `receive_bytes_max` has room for it. Default 256 KiB.
    pub window_initial: u64,
    /// Largest window of one channel in bytes. Default 4 MiB: 1 Gbit/s over 32 ms.
    pub window_max: u64,
    /// Longest an acknowledgement waits for company. Default 5 ms, a tenth of what TCP allows itself.
    pub ack_delay: Duration,
    /// Least silence, with something outstanding, before the owner is told to replace a leg. Default 2 s: above the
    /// delayed-ACK and retransmission pauses of a healthy TCP leg. Other legs carry copies long before; where there is none,
    /// 300 ms are enough.
    pub suspect_after: Duration,
    /// Silence with something outstanding after which a leg is given up. Default 30 s: by then the owner, told at the
    /// first suspicion, has had many tries to replace it.
    pub silent_after: Duration,
    /// The same for a leg that has not been heard of since another one broke: an end that dies takes its TCP connections
    /// along at once, while its UDP just falls silent. Default 8 s; one that lives has answered a PING by then.
    pub deserted_after: Duration,
    /// From attaching a leg to the peer's HELLO on it. Default 10 s.
    pub hello_within: Duration,
    /// Between PINGs on an idle leg. Default 15 s, the ICE keepalive interval (RFC 8445 section 11).
    pub ping_idle: Duration,
    /// Between PINGs while data moves. Default 1 s, the resolution RTT is shown with.
    pub ping_active: Duration,
    /// Between PINGs on a leg that stands by while another is in use. Default 5 s: often enough to know what it is worth.
    pub ping_standby: Duration,
    /// Between PINGs on a leg in quarantine that answers. Default 500 ms; one that does not is asked once.
    pub ping_quarantined: Duration,
    /// Kinds of legs that may carry channels; others only stand by. Default all.
    pub allowed: Vec<LegKind>,
    /// What second copies of small writes may cost; `None`: none are made.
    pub redundancy: Option<Redundancy>,
    /// How long a graceful close waits for queued frames to leave. Default 2 s.
    pub close_within: Duration,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            resume_window: Duration::from_secs(60),
            channels_max: 512,
            replay_bytes_max: 32 * 1024 * 1024,
            receive_bytes_max: 32 * 1024 * 1024,
            window_initial: 256 * 1024,
            window_max: 4 * 1024 * 1024,
            ack_delay: Duration::from_millis(5),
            suspect_after: Duration::from_secs(2),
            silent_after: Duration::from_secs(30),
            deserted_after: Duration::from_secs(8),
            hello_within: Duration::from_secs(10),
            ping_idle: Duration::from_secs(15),
            ping_active: Duration::from_secs(1),
            ping_standby: Duration::from_secs(5),
            ping_quarantined: Duration::from_millis(500),
            allowed: LegKind::ALL.to_vec(),
            redundancy: Some(Redundancy::default()),
            close_within: Duration::from_secs(2),
        }
    }
}

impl SessionConfig {
    /// Channels of the peer's opening held at most, those included that were turned away.
    pub(super) fn peer_channels_told_max(&self) -> usize {
        self.channels_max.min(CHANNELS_MAX) * CHANNELS_TOLD_FACTOR
    }

    /// Channels of the peer's opening that the application is given at most.
    pub(super) fn peer_channels_held_max(&self) -> usize {
        self.channels_max.min(CHANNELS_MAX) * CHANNELS_LAG_FACTOR
    }

    /// Channels of our opening held at most.
    pub(super) fn own_channels_max(&self) -> usize {
        self.channels_max.min(CHANNELS_MAX)
    }
}
