//! Server names that claim to be tickets.
#![no_main]
use libfuzzer_sys::fuzz_target;
use switchback_control::ticket::{Ticket, TicketKey};
use switchback_engine::{LegSide, PairId};

fuzz_target!(|input: (String, [u8; 16], bool, u32, u64)| {
    let (name, pair, warm, expiry, now) = input;
    let key = TicketKey::new(&[42; 32]);
    // Nobody forges a MAC by chance: an arbitrary name is never admitted.
    assert!(!matches!(key.verify(&name, now), Some(Ok(_))));
    for side in [LegSide::Client, LegSide::Agent] {
        let ticket = Ticket::new(PairId(pair), side, warm, expiry);
        let minted = key.mint(&ticket);
        if now <= u64::from(expiry) {
            assert!(matches!(key.verify(minted.reveal(), 0), Some(Ok(_))));
        }
    }
});
