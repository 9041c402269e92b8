//! Frames, or bytes of a channel, for a vectored write: headers and small payloads are copied together, large ones are passed along.
use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::session::frame::Frame;

/// Payloads below this are cheaper to copy than to describe.
const COPY_BELOW: usize = 2048;
/// Room for a writing round where everything is copied.
const JOINED: usize = 65 * 1024;

#[derive(Default)]
pub(super) struct Rope {
    parts: VecDeque<Bytes>,
    heads: BytesMut,
    remaining: usize,
    joined: bool,
}

impl Rope {
    /// For a writer that keeps parts until they are acknowledged and looks through all of them for each packet, as quinn
    /// does: a batch is one part.
    pub(super) fn joined() -> Self {
        Self { joined: true, ..Self::default() }
    }

    pub(super) fn push(&mut self, frame: &Frame) {
        self.remaining += frame.wire_len();
        let Some(payload) = frame.encode_head(&mut self.heads) else { return };
        if self.joined || payload.len() < COPY_BELOW {
            if self.joined && self.heads.capacity() - self.heads.len() < payload.len() {
                self.heads.reserve(JOINED);
            }
            self.heads.extend_from_slice(payload);
        } else {
            self.seal();
            self.parts.push_back(payload.clone());
        }
    }

    /// Adds bytes as they are, behind what is sealed.
    pub(super) fn append(&mut self, bytes: Bytes) {
        self.remaining += bytes.len();
        self.parts.push_back(bytes);
    }

    /// Ends a batch: all of it can be written now.
    pub(super) fn seal(&mut self) {
        if !self.heads.is_empty() {
            self.parts.push_back(self.heads.split().freeze());
        }
    }

    /// Everything sealed, in order.
    pub(super) fn each(&self) -> impl Iterator<Item = &Bytes> {
        self.parts.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.remaining
    }

    pub(super) fn is_empty(&self) -> bool {
        self.remaining == 0
    }

    /// Everything sealed, for a writer that takes chunks off the front; [`Self::taken`] must follow.
    pub(super) fn parts(&mut self) -> &mut [Bytes] {
        self.parts.make_contiguous()
    }

    /// The writer emptied `chunks` of [`Self::parts`], and took `bytes` in all.
    pub(super) fn taken(&mut self, chunks: usize, bytes: usize) {
        self.parts.drain(..chunks);
        self.remaining -= bytes;
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        let mut used = 0;
        for (slot, part) in dst.iter_mut().zip(&self.parts) {
            *slot = IoSlice::new(part);
            used += 1;
        }
        used
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced beyond the end");
        self.remaining -= count;
        while let Some(part) = self.parts.front_mut() {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            self.parts.pop_front();
        }
    }
}
