//! Why a session's path is not better, in words: the codes that ends report, what they mean, and what would mend it.
//!
//! Codes are stable symbols like those of [`crate::code`], but they are no refusals: the session goes on, by another way.
//! A newer end may report one that is not in the table; it is shown as it is.

/// A code's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// The symbol.
    pub code: &'static str,
    /// What it says, one sentence.
    pub words: &'static str,
    /// What would mend it; empty if nothing is wrong.
    pub remedy: &'static str,
}

/// Of an end whose candidates the broker did not pass on: the twin of [`crate::Code::CandidateRefused`].
pub const CANDIDATE_REFUSED: &str = "candidate_refused";
/// Of both ends, when each reports `hard_nat`.
pub const HARD_NAT_BOTH_SIDES: &str = "hard_nat_both_sides";

/// Every known code.
pub const TABLE: &[Meaning] = &[
    of("policy_no_udp", "The resource's policy allows TCP only.", "Offer it with udp=prefer."),
    of(
        "policy_relay_only",
        "The resource's policy allows no direct path.",
        "Offer it with udp=prefer.",
    ),
    of("udp_disabled", "This end was started without UDP.", "Start it without --no-udp."),
    of(
        "udp_egress_blocked",
        "Nothing that this end sends by UDP comes back, not even from the gateway.",
        "Firewall: allow outbound UDP to the gateway's port, and replies.",
    ),
    of(
        "no_local_candidates",
        "This end has no address that policy lets it offer.",
        "Widen --udp-networks, or look at the machine's interfaces.",
    ),
    of(
        "no_remote_candidates",
        "The other end has offered no address.",
        "Run `switchback netcheck` there.",
    ),
    of(
        HARD_NAT_BOTH_SIDES,
        "Both ends are behind NATs that give each destination another port; nobody can guess both.",
        "Firewall: endpoint-independent mapping (\"full cone\") at one end, or forward a port of --udp-ports to it.",
    ),
    of(
        "consent_expired",
        "A path that worked stopped answering.",
        "Firewall: raise the UDP timeout of NATs on the way above 30 s.",
    ),
    of(
        "quic_failed",
        "Checks are answered, but QUIC is not.",
        "Firewall: let QUIC pass; some middleboxes drop UDP they do not know.",
    ),
    of(
        "relay_unresolved",
        "The name of the relay (TURN) does not resolve at this end.",
        "Look into this machine's DNS, or give the relay by its address.",
    ),
    of(
        "relay_unreachable",
        "The relay (TURN) does not answer.",
        "Firewall: allow UDP to the gateway's port, and from its --turn-ports.",
    ),
    of(
        "relay_refused",
        "The relay (TURN) answers with an error.",
        "Look into the relay's log; it must be a TURN server (RFC 8656) that serves UDP.",
    ),
    of(
        "relay_unauthorized",
        "The relay (TURN) does not accept the credentials.",
        "Compare the clocks of broker and relay, and the secret they share.",
    ),
    of("relay_full", "The relay (TURN) has no place left.", "Raise the relay's limits."),
    of(
        "relay_mismatch",
        "The relay (TURN) has forgotten the allocation: it was started anew.",
        "Nothing: another is asked for within 30 s.",
    ),
    of(
        "relay_forbids_peer",
        "The relay (TURN) may not send to the other end's address.",
        "Offer an address of the other end that the relay allows.",
    ),
    of(
        "relay_no_socket",
        "This end has no socket left for a relay.",
        "Widen --udp-ports, or raise the limit of open files.",
    ),
    of("no_relay", "The gateway offers no relay.", "Start it without --no-turn."),
    of(
        "throttled",
        "UDP passes, but slower or with more loss than the other way.",
        "Ask the network's owner whether UDP is rate-limited or deprioritised.",
    ),
    of("slower", "The direct path was measured and is slower than the one in use.", ""),
    of("quarantined", "The path failed lately and is being watched before it is used again.", ""),
    of("searching", "The search is under way.", ""),
    of(
        "local_removed",
        "The address in use is gone from this end: its network has changed.",
        "Nothing: the search has begun anew.",
    ),
    of(
        CANDIDATE_REFUSED,
        "Some addresses that this end offered are none that a peer may be sent to (loopback, multicast, the gateway itself).",
        "Keep them out with --udp-networks, or look at the machine's interfaces.",
    ),
    of(
        "peer_silent",
        "The other end's checks do not arrive.",
        "Firewall: allow outbound UDP to any port, and replies, at both ends, or forward the agent's --managed-port.",
    ),
    of("bad_key", "The other end's key is malformed.", "Update both ends to the same version."),
    of(
        "hard_nat",
        "The NAT here gives each destination another port; peers behind such a NAT too are reached through the relay only.",
        "Firewall: endpoint-independent mapping (\"full cone\"), or forward a port of --udp-ports.",
    ),
    of(
        "one_stun_address",
        "The gateway answers STUN on one address, so the kind of NAT cannot be told whole.",
        "Give the gateway --stun-alternate addresses.",
    ),
    of(
        "tls_intercepted",
        "Something between here and the broker answers TLS in its place: a proxy, or a captive portal.",
        "Sign in to the network, or exempt the gateway's address from TLS inspection.",
    ),
    of(
        "captive_portal",
        "Something answers HTTP where the broker should answer TLS: the network wants a sign-in first.",
        "Sign in to the network with a browser.",
    ),
    of(
        "mtu_too_small",
        "Packets as large as QUIC's smallest do not pass, so no UDP path can be used.",
        "Raise the MTU of tunnels on the way to at least 1280 bytes.",
    ),
    of(
        "gateway_unreachable",
        "The gateway does not answer TCP.",
        "Firewall: allow outbound TCP to the gateway's port.",
    ),
];

const fn of(code: &'static str, words: &'static str, remedy: &'static str) -> Meaning {
    Meaning { code, words, remedy }
}

/// The meaning of a code, if it is known.
#[must_use]
pub fn meaning(code: &str) -> Option<&'static Meaning> {
    TABLE.iter().find(|meaning| meaning.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_search_reports_has_a_meaning() {
        for code in switchback_shortpath::underlay::REASONS {
            assert!(meaning(code).is_some(), "{code}");
        }
    }

    #[test]
    fn a_blocked_path_is_told_with_the_firewall_rule_that_would_mend_it() {
        for code in [
            "udp_egress_blocked",
            HARD_NAT_BOTH_SIDES,
            "consent_expired",
            "quic_failed",
            "relay_unreachable",
            "hard_nat",
            "peer_silent",
        ] {
            let remedy = meaning(code).unwrap().remedy;
            assert!(remedy.starts_with("Firewall: "), "{code}: {remedy}");
        }
    }

    #[test]
    fn every_code_is_there_once_and_is_told_in_whole_sentences() {
        for (at, of) in TABLE.iter().enumerate() {
            assert!(TABLE[at + 1..].iter().all(|other| other.code != of.code), "{}", of.code);
            assert!(of.words.ends_with('.') && (of.remedy.is_empty() || of.remedy.ends_with('.')));
            assert_eq!(meaning(of.code), Some(of));
        }
        assert_eq!(meaning("sunspots"), None);
    }
}
