//! The clocks and the randomness that the shells read, so that the pure modules need none.
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE32_NOPAD;

/// Unix time in milliseconds.
pub(crate) fn unix_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Unix time in seconds.
pub(crate) fn unix_seconds() -> u64 {
    unix_ms() / 1000
}

/// Bytes nobody can guess (a ChaCha generator seeded and reseeded by the kernel).
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes
}

/// `chars` (at most 16) random lower-case base32 characters, 5 bits each.
pub(crate) fn random_name(chars: usize) -> String {
    let mut name = BASE32_NOPAD.encode(&random::<10>());
    name.make_ascii_lowercase();
    name.truncate(chars);
    name
}

/// The monotonic clock.
pub(crate) fn now() -> std::time::Instant {
    std::time::Instant::now()
}
