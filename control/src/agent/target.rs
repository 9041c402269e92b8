//! A channel's other end: the connection to the service.
use std::io;
use std::time::Duration;

use switchback_shortpath::{CarryEnd, Channel, carry};

use crate::code::{Code, Fault};
use crate::dial::tcp;
use crate::reason;
use crate::wire::SessionId;

/// From a channel's opening to the service's accept. Services are near their agent: a lost SYN or two (1 + 2 s) fit,
/// and a user need not wait longer to learn that nothing answers.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects a channel to the service at `target` (`HOST:PORT`) and carries it; a service that cannot be reached resets
/// the channel with the reason.
pub(super) async fn serve(mut channel: Channel, target: &str, session: &SessionId) {
    let socket = match tcp::connect(target, DIAL_TIMEOUT).await {
        Ok(socket) => socket,
        Err(error) => {
            let fault = unreachable(target, &error);
            tracing::warn!(%session, %fault, "target not reached");
            return channel.reset(reason::to_wire(fault.code));
        }
    };
    let outcome = carry(channel, socket).await;
    let (sent, received) = (outcome.bytes_out, outcome.bytes_in);
    match outcome.end {
        CarryEnd::Finished => tracing::debug!(%session, sent, received, "channel finished"),
        CarryEnd::Channel(error) => {
            tracing::debug!(%session, sent, received, %error, "channel ended early");
        }
        CarryEnd::Socket(error) => {
            tracing::debug!(%session, sent, received, %error, "target ended early");
        }
    }
}

fn unreachable(target: &str, error: &io::Error) -> Fault {
    let code = match error.kind() {
        io::ErrorKind::ConnectionRefused => Code::TargetRefused,
        io::ErrorKind::TimedOut => Code::TargetTimeout,
        io::ErrorKind::ConnectionReset => Code::TargetReset,
        _ => Code::TargetUnreachable,
    };
    code.because(format!("{target}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_not_to_reach_a_target_has_its_code() {
        for (kind, code) in [
            (io::ErrorKind::ConnectionRefused, Code::TargetRefused),
            (io::ErrorKind::TimedOut, Code::TargetTimeout),
            (io::ErrorKind::HostUnreachable, Code::TargetUnreachable),
            (io::ErrorKind::NotFound, Code::TargetUnreachable),
        ] {
            assert_eq!(unreachable("db:5432", &kind.into()).code, code);
        }
    }
}
