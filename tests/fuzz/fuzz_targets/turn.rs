//! What a client of the relay may send: any datagram, and any attributes behind good credentials.
#![no_main]
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use switchback_engine::Trial;

const KINDS: [u16; 5] = [1, 3, 4, 8, 9];

// Pieces of a length byte, an order byte and bytes: a datagram, or the attributes of a request of one of the kinds.
fuzz_target!(|bytes: &[u8]| {
    let mut trial = Trial::new(Instant::now());
    trial.allocate();
    let mut rest = bytes;
    while let [length, order, after @ ..] = rest {
        let (piece, next) = after.split_at(usize::from(*length).min(after.len()));
        let reply = match order {
            0..=127 => trial.datagram(piece),
            order => trial.signed(KINDS[usize::from(*order) % KINDS.len()], piece),
        };
        if let Some(reply) = reply {
            let body = usize::from(u16::from_be_bytes([reply[2], reply[3]]));
            assert!(body + 20 == reply.len() && reply[0] == 1, "a response of its length");
        }
        rest = next;
    }
});
