//! What the serving process and the one that takes over say to each other. Pure.
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::code::{Code, Fault};

/// Version of these messages. It has nothing to do with the version of the links' protocol.
pub(super) const PROTOCOL: u32 = 1;

/// What the new process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToServing {
    /// First.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Its software's version, for the log.
        version: String,
        /// The address it was told to listen on.
        listen: SocketAddr,
    },
    /// It needs nothing but the lock to serve.
    Ready,
    /// It accepts connections.
    Serving,
}

/// What the serving process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToSuccessor {
    /// The answer to a hello. Comes with the listeners' descriptors, and last, if `stun`, the UDP socket's.
    Offer {
        /// [`PROTOCOL`].
        protocol: u32,
        /// How many TCP listeners come with it.
        listeners: usize,
        /// Whether the UDP socket for STUN does.
        stun: bool,
    },
    /// No takeover; the connection ends.
    Refused(Fault),
    /// The answer to `ready`: the sockets and the database are yours. Comes with the descriptor of the data directory's lock.
    Go,
}

/// Whether a server that was configured to listen on `configured` and got `bound` yields to a process with this hello.
///
/// # Errors
/// [`Code::ProtocolVersion`], [`Code::TakeoverMismatch`].
pub(super) fn judge(
    protocol: u32,
    listen: SocketAddr,
    configured: SocketAddr,
    bound: SocketAddr,
) -> Result<(), Fault> {
    if protocol != PROTOCOL {
        return Err(Code::ProtocolVersion.because(format!(
            "the new process takes over by version {protocol}, the running server by {PROTOCOL}; stop it and start anew"
        )));
    }
    // Port 0 in the arguments of both means: whatever the first of us was given.
    if listen != bound && listen != configured {
        return Err(Code::TakeoverMismatch
            .because(format!("the running server listens on {bound}, not on {listen}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_for_the_same_address_and_version_takes_over() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let judged = |protocol, listen: &str, configured: &str| {
            let bound = address("127.0.0.1:4430");
            judge(protocol, address(listen), address(configured), bound).map_err(|fault| fault.code)
        };
        assert_eq!(judged(1, "127.0.0.1:4430", "127.0.0.1:4430"), Ok(()));
        assert_eq!(judged(1, "127.0.0.1:4430", "127.0.0.1:0"), Ok(()));
        assert_eq!(judged(1, "127.0.0.1:0", "127.0.0.1:0"), Ok(()));
        let mismatch = Err(Code::TakeoverMismatch);
        assert_eq!(judged(1, "127.0.0.1:0", "127.0.0.1:4430"), mismatch);
        assert_eq!(judged(1, "0.0.0.0:4430", "127.0.0.1:4430"), mismatch);
        assert_eq!(judged(1, "127.0.0.1:443", "127.0.0.1:4430"), mismatch);
        assert_eq!(judged(2, "127.0.0.1:4430", "127.0.0.1:4430"), Err(Code::ProtocolVersion));
    }

    #[test]
    fn messages_keep_their_form_between_versions() {
        let text = |message: &ToSuccessor| serde_json::to_string(message).unwrap();
        let offer = ToSuccessor::Offer { protocol: 1, listeners: 2, stun: true };
        assert_eq!(text(&offer), r#"{"type":"offer","protocol":1,"listeners":2,"stun":true}"#);
        assert_eq!(text(&ToSuccessor::Go), r#"{"type":"go"}"#);
        let refused = ToSuccessor::Refused(Code::TakeoverBusy.because("wait"));
        let wire = r#"{"type":"refused","code":"TAKEOVER_BUSY","message":"wait"}"#;
        assert_eq!(text(&refused), wire);
        assert_eq!(serde_json::from_str::<ToSuccessor>(wire).unwrap(), refused);
    }
}
