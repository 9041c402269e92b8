//! How sessions and channels end on the wire: the 16-bit codes of the session layer, and the [`Code`] behind each.
//!
//! The numbers are part of the protocol: new ones are added, none changes its meaning.
use switchback_shortpath::CloseReason;
use switchback_shortpath::session::{
    CLOSE_NORMAL, CLOSE_PROTOCOL, CLOSE_RESTARTED, RESET_DROPPED, RESET_LIMIT, RESET_SOCKET,
};

use crate::code::{Code, Fault};

const TABLE: &[(u16, Code)] = &[
    (CLOSE_NORMAL, Code::SessionClosed),
    (1, Code::SessionKilled),
    (2, Code::SessionLimit),
    (3, Code::SessionLost),
    (4, Code::TokenRevoked),
    (5, Code::GrantInvalid),
    (6, Code::Internal),
    (7, Code::DirectUnavailable),
    (16, Code::TargetRefused),
    (17, Code::TargetTimeout),
    (18, Code::TargetUnreachable),
    (19, Code::TargetReset),
    (20, Code::ChannelLimit),
    (CLOSE_PROTOCOL, Code::SessionProtocol),
];

/// The number that tells the peer of this code; a code without a number of its own ends a session as closed.
#[must_use]
pub fn to_wire(code: Code) -> u16 {
    TABLE.iter().find(|(_, entry)| *entry == code).map_or(CLOSE_NORMAL, |(number, _)| *number)
}

/// The code behind a session's CLOSE; a number we do not know is of a newer peer, and closes all the same.
#[must_use]
pub fn of_close(number: u16) -> Code {
    match number {
        CLOSE_RESTARTED => Code::SessionLost,
        number => find(number).unwrap_or(Code::SessionClosed),
    }
}

/// The code behind a channel's RESET: without a code of the agent's, the socket behind it was reset.
#[must_use]
pub fn of_reset(number: u16) -> Code {
    match number {
        RESET_DROPPED | RESET_SOCKET => Code::TargetReset,
        RESET_LIMIT => Code::ChannelLimit,
        CLOSE_NORMAL => Code::SessionClosed,
        number => find(number).unwrap_or(Code::TargetReset),
    }
}

/// The fault behind the end of a session.
#[must_use]
pub fn of_session(reason: &CloseReason) -> Fault {
    match reason {
        CloseReason::Restarted | CloseReason::ByPeer(CLOSE_RESTARTED) => Code::SessionLost
            .because("the other end was started anew and does not know the session"),
        CloseReason::ByPeer(number) | CloseReason::ByUs(number) => of_close(*number).into(),
        CloseReason::Lost => Code::SessionLost.into(),
        CloseReason::Protocol(detail) => Code::SessionProtocol.because(detail),
    }
}

fn find(number: u16) -> Option<Code> {
    TABLE.iter().find(|(entry, _)| *entry == number).map(|(_, code)| *code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_and_every_code_of_the_table_is_unique_and_round_trips() {
        for (at, &(number, code)) in TABLE.iter().enumerate() {
            assert_eq!((to_wire(code), of_close(number)), (number, code));
            assert!(TABLE[at + 1..].iter().all(|&(n, c)| n != number && c != code));
        }
    }

    #[test]
    fn a_refused_target_is_told_from_a_reset_one() {
        assert_eq!(of_reset(to_wire(Code::TargetRefused)), Code::TargetRefused);
        assert_eq!(of_reset(RESET_DROPPED), Code::TargetReset);
        assert_eq!(of_reset(RESET_LIMIT), Code::ChannelLimit);
    }

    #[test]
    fn numbers_of_newer_peers_close_and_reset() {
        assert_eq!(of_close(9999), Code::SessionClosed);
        assert_eq!(of_reset(9999), Code::TargetReset);
        assert_eq!(to_wire(Code::AdminOnly), CLOSE_NORMAL);
    }
}
