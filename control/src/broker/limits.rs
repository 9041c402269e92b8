//! Every maximum of the broker that is not a session's, with its reason.
use std::time::Duration;

/// HTTPS connections at once, links among them: 10,000 agents, and their users. A link costs about 40 KiB, most of it TLS
/// and WebSocket buffers.
pub(super) const CONNECTIONS_MAX: usize = 16_384;
/// HTTPS connections at once of one source (an IPv4 address, or an IPv6 /64). A sixteenth of all: a company behind one
/// address fits, with a link for each of its people and machines, and no single source locks the others out.
pub(super) const SOURCE_CONNECTIONS_MAX: usize = 1024;
/// Links at once of one user. A link carries any number of sessions, so this is one for each `switchback` command that
/// runs; links of dead connections linger for up to 45 s.
pub(super) const USER_LINKS_MAX: usize = 256;
/// Links at once of one agent or gateway. One is in use; the others are one that is made beside a silent one, and those of
/// dead connections, which linger for up to 45 s.
pub(super) const ENROLMENT_LINKS_MAX: usize = 64;
/// TLS handshakes at once. The hello has arrived whole, so one costs about 1 ms of CPU and then a round trip of waiting:
/// 1,024 keep two cores busy for half a second, and slow peers must be many to keep others waiting.
pub(super) const HANDSHAKES_MAX: usize = 1024;
/// From the first byte to the end of the TLS handshake. Three TCP retransmissions on a slow link fit (1 + 2 + 4 s).
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// From the start of a request, or of an idle connection, to the end of its head: nobody types requests by hand.
pub(super) const HEAD_DEADLINE: Duration = Duration::from_secs(15);
/// From the end of a request's head to its answer, body included.
pub(super) const REQUEST_DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of a request's head. Tokens and paths are short; 16 KiB is what other servers allow.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header lines of a request. Browsers send about 20.
pub(super) const HEADERS_MAX: usize = 64;
/// Bytes of a request's body: as of a message on a link.
pub(super) const BODY_BYTES_MAX: usize = crate::wire::MESSAGE_BYTES_MAX;
/// Time for a request that is under way at shutdown to be answered. Answers take milliseconds; who is slow to ask must not
/// hold up a takeover, during which new connections wait.
pub(super) const REQUEST_GRACE: Duration = Duration::from_secs(1);
/// Time for connections to end at shutdown before they are dropped.
pub(super) const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// Messages waiting for a link to take them. A thousand sessions that start at once are a thousand offers to one agent.
pub(super) const LINK_QUEUE_MAX: usize = 2048;
/// A WebSocket message up to this is read whole, so that the refusal of an oversized one reaches its sender; a longer one
/// breaks the link.
pub(super) const LINK_READ_MAX: usize = 4 * crate::wire::MESSAGE_BYTES_MAX;
/// Between two pings on a link. NATs forget an idle TCP connection after minutes at the earliest (RFC 5382 REQ-5 asks for
/// two hours, some take two minutes).
pub(super) const PING_EVERY: Duration = Duration::from_secs(20);
/// A link without a message or pong for this is dead: two pings and their answers are missing.
pub(super) const LINK_SILENCE_MAX: Duration = Duration::from_secs(45);
/// One message must leave within this, or the peer does not drain its link.
pub(super) const LINK_SEND_DEADLINE: Duration = Duration::from_secs(10);
/// From the link's start to the agent's `register`.
pub(super) const REGISTER_DEADLINE: Duration = Duration::from_secs(10);
/// Time for a peer to read the refusal that a link ends with.
pub(super) const FAREWELL_DEADLINE: Duration = Duration::from_secs(2);
/// Resources of one agent.
pub(super) const RESOURCES_MAX: usize = 100;
/// Longest public key, in characters: an Ed25519 SubjectPublicKeyInfo has 59, one of P-384 160.
pub(super) const KEY_CHARS_MAX: usize = 256;
/// Longest `HOST:PORT` of a target: a DNS name has at most 253 characters.
pub(super) const TARGET_CHARS_MAX: usize = 280;
/// Longest software version and transport label that peers may report.
pub(super) const LABEL_CHARS_MAX: usize = 64;
/// Gateway events waiting for the broker. A pair makes four; reaching this means the broker is stuck, and then the gateway
/// waits for it rather than lose one.
pub(super) const EVENTS_MAX: usize = 65_536;
/// Test pairs of one request.
pub(super) const TEST_PAIRS_MAX: u32 = 1000;

/// Whether `name` may name an agent or a resource: 1 to 63 of `a-z 0-9 - _ .`.
pub(super) fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

/// Whether `name` may name a user: like an agent's, and also capital letters, `@` and `+`, for mail addresses.
pub(crate) fn is_user_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@+".contains(&b))
}

/// Whether `text` is a label fit for logs and lists.
pub(super) fn is_label(text: &str) -> bool {
    text.len() <= LABEL_CHARS_MAX && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}
