//! Bytes that both ends can make for themselves: a seed and an offset say which.
//!
//! Word n of a content is SplitMix64 (Steele, Lea, Flood 2014) of seed and n: no two blocks are alike, so a byte that is
//! lost, doubled or moved changes the hash, and nothing need be kept to know what it should have been.
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use sha2::{Digest, Sha256};

/// Size of a block: four of the session layer's largest frames.
const BLOCK_BYTES: usize = 64 * 1024;

/// A content that is still to be sent, as an HTTP body.
#[derive(Debug)]
pub(crate) struct Content {
    seed: u64,
    sent: u64,
    length: u64,
    /// Counts the bytes as they leave.
    meter: Arc<AtomicU64>,
}

impl Content {
    /// The content of this seed and length, counted on `meter` as it is sent.
    pub(crate) fn new(seed: u64, length: u64, meter: Arc<AtomicU64>) -> Self {
        Self { seed, sent: 0, length, meter }
    }

    fn next_block(&mut self) -> Option<Bytes> {
        let left = usize::try_from(self.length - self.sent).unwrap_or(usize::MAX);
        let size = left.min(BLOCK_BYTES);
        if size == 0 {
            return None;
        }
        let block = block(self.seed, self.sent, size);
        self.sent += size as u64;
        Some(block)
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let block = self.next_block();
        if let Some(block) = &block {
            self.meter.fetch_add(block.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(block.map(|block| Ok(Frame::data(block))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.sent)
    }
}

/// SHA-256 of a whole content.
pub(crate) fn digest(seed: u64, length: u64) -> [u8; 32] {
    let mut content = Content::new(seed, length, Arc::default());
    let mut hash = Sha256::new();
    while let Some(block) = content.next_block() {
        hash.update(&block);
    }
    hash.finalize().into()
}

/// Lower-case hexadecimal, as `sha256sum` prints it.
pub(crate) fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `size` bytes from `offset` on, which must be a multiple of 8.
fn block(seed: u64, offset: u64, size: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(size.next_multiple_of(8));
    for word in (offset / 8..).take(size.div_ceil(8)) {
        bytes.extend_from_slice(&split_mix(seed, word).to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

fn split_mix(seed: u64, word: u64) -> u64 {
    let mut z = seed.wrapping_add((word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_the_same_every_time_and_another_for_another_seed() {
        let length = BLOCK_BYTES as u64 * 2 + 13;
        assert_eq!(digest(1, length), digest(1, length));
        assert_ne!(digest(1, length), digest(2, length));
        assert_ne!(digest(1, length), digest(1, length - 1));
        // First output of the published generator for seed 0.
        assert_eq!(split_mix(0, 0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn blocks_join_without_a_seam_and_are_counted() {
        let meter = Arc::new(AtomicU64::new(0));
        let length = BLOCK_BYTES as u64 + 100;
        let mut content = Content::new(7, length, meter);
        let mut joined = Vec::new();
        while let Some(block) = content.next_block() {
            joined.extend_from_slice(&block);
        }
        assert_eq!(joined, block(7, 0, BLOCK_BYTES + 100));
        assert_eq!(content.size_hint().exact(), Some(0));
    }

    #[test]
    fn hashes_read_like_those_of_sha256sum() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(&digest(0, 0)), empty);
    }
}
