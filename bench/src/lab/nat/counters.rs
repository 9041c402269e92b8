//! What the box counts: packets by verdict, drops by reason.

use std::fmt;

use super::Verdict;

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Headers that contradict each other or the length.
    Malformed,
    /// An address that is never forwarded, or the box's own as a source.
    Martian,
    /// Neither UDP, TCP, ICMP echo nor an ICMP error.
    UnsupportedProtocol,
    /// Inbound to a port without a mapping.
    NoMapping,
    /// Inbound to a mapping whose filter does not admit the sender.
    Filtered,
    /// From inside to the external address, and hairpinning is off.
    HairpinOff,
    /// A later fragment whose first was not seen or not forwarded.
    UntrackedFragment,
    /// A TCP segment within a connection the box does not know.
    TcpWithoutState,
    /// An ICMP error about nothing the box knows.
    IcmpUnrelated,
    /// The policy forbids this UDP packet.
    UdpPolicy,
    /// The policy forbids this TCP segment.
    TcpPolicy,
    /// The policy swallows everything of this direction.
    Blackhole,
    /// The time to live ran out, and no error may be sent about it.
    TtlExpired,
}

impl Reason {
    /// All reasons, in the order they are counted.
    pub const ALL: [Reason; 13] = [
        Reason::Malformed,
        Reason::Martian,
        Reason::UnsupportedProtocol,
        Reason::NoMapping,
        Reason::Filtered,
        Reason::HairpinOff,
        Reason::UntrackedFragment,
        Reason::TcpWithoutState,
        Reason::IcmpUnrelated,
        Reason::UdpPolicy,
        Reason::TcpPolicy,
        Reason::Blackhole,
        Reason::TtlExpired,
    ];

    /// The symbolic code.
    pub fn code(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::Martian => "martian",
            Reason::UnsupportedProtocol => "unsupported_protocol",
            Reason::NoMapping => "no_mapping",
            Reason::Filtered => "filtered",
            Reason::HairpinOff => "hairpin_off",
            Reason::UntrackedFragment => "untracked_fragment",
            Reason::TcpWithoutState => "tcp_without_state",
            Reason::IcmpUnrelated => "icmp_unrelated",
            Reason::UdpPolicy => "udp_policy",
            Reason::TcpPolicy => "tcp_policy",
            Reason::Blackhole => "blackhole",
            Reason::TtlExpired => "ttl_expired",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Packets and mappings since the box was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatStats {
    /// Forwarded from inside to outside.
    pub outbound: u64,
    /// Forwarded from outside to inside.
    pub inbound: u64,
    /// Sent back to the inside.
    pub hairpinned: u64,
    /// Answered by an ICMP error of the box.
    pub replied: u64,
    /// Mappings made.
    pub mappings_created: u64,
    /// Mappings that ran out of time.
    pub mappings_expired: u64,
    /// Mappings thrown out because there were too many.
    pub mappings_evicted: u64,
    pub(super) dropped: [u64; Reason::ALL.len()],
}

impl NatStats {
    /// Packets dropped for this reason.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    /// The reasons that occurred, and how often.
    pub fn drops(&self) -> impl Iterator<Item = (Reason, u64)> {
        let counts = self.dropped;
        Reason::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0)
    }

    pub(super) fn count(&mut self, verdict: &Verdict, outbound: bool) {
        let counter = match verdict {
            Verdict::Forward if outbound => &mut self.outbound,
            Verdict::Forward => &mut self.inbound,
            Verdict::Hairpin => &mut self.hairpinned,
            Verdict::Reply(_) => &mut self.replied,
            Verdict::Drop(reason) => &mut self.dropped[*reason as usize],
        };
        *counter += 1;
    }
}
