//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).

/// The one's complement sum of the bytes, folded to 16 bits; an odd last byte is padded with zero.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    let mut words = bytes.chunks_exact(2);
    let mut total: u64 = words.by_ref().map(|w| u64::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    total += words.remainder().first().map_or(0, |last| u64::from(*last) << 8);
    fold(total)
}

/// The one's complement sum of two folded sums.
pub(super) fn add(a: u16, b: u16) -> u16 {
    fold(u64::from(a) + u64::from(b))
}

/// Corrects the checksum at `at` for bytes that summed to `before` and now sum to `after`.
pub(super) fn update(bytes: &mut [u8], at: usize, before: u16, after: u16) {
    let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let new = !add(add(!old, !before), after);
    bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}
