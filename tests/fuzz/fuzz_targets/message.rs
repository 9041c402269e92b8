//! Control messages, invitations and error codes: whatever parses, prints and parses again to the same.
#![no_main]
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use switchback_control::api::{GrantView, NewTestPairs, NewToken};
use switchback_control::invite::{Invite, InviteKind};
use switchback_control::wire::{FromAgent, FromClient, ToAgent, ToClient};

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&message).expect("a message that was read can be written");
        assert_eq!(serde_json::from_slice::<T>(&text).expect("and read again"), message);
    }
}

fuzz_target!(|bytes: &[u8]| {
    round_trip::<FromAgent>(bytes);
    round_trip::<FromClient>(bytes);
    round_trip::<ToAgent>(bytes);
    round_trip::<ToClient>(bytes);
    round_trip::<NewToken>(bytes);
    round_trip::<GrantView>(bytes);
    let _ = serde_json::from_slice::<NewTestPairs>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        for kind in [InviteKind::Join, InviteKind::Login] {
            if let Ok(invite) = Invite::parse(text, kind) {
                assert_eq!(Invite::parse(invite.to_text().reveal(), kind).as_ref(), Ok(&invite));
            }
        }
    }
});
