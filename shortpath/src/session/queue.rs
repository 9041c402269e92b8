//! A queue of bytes that keeps large pieces as they are and joins small ones.
use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::limits::COPY_BELOW;

/// Bytes in order. However small the pieces pushed, what is held is at most twice its length and a constant.
#[derive(Debug, Default)]
pub(super) struct ByteQueue {
    whole: VecDeque<Bytes>,
    small: BytesMut,
    len: usize,
}

impl ByteQueue {
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() < COPY_BELOW {
            self.small.extend_from_slice(&bytes);
            if self.small.len() >= COPY_BELOW {
                self.settle();
            }
        } else {
            self.settle();
            self.whole.push_back(bytes);
        }
    }

    pub(super) fn append(&mut self, mut other: Self) {
        while let Some(bytes) = other.pop() {
            self.push(bytes);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.whole.is_empty() {
            self.settle();
        }
        let bytes = self.whole.pop_front()?;
        self.len -= bytes.len();
        Some(bytes)
    }

    /// Drops the first `count` bytes, or all.
    pub(super) fn skip(&mut self, mut count: usize) {
        while count > 0 {
            let Some(mut bytes) = self.pop() else { return };
            if bytes.len() > count {
                self.len += bytes.len() - count;
                self.whole.push_front(bytes.split_off(count));
                return;
            }
            count -= bytes.len();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn settle(&mut self) {
        if !self.small.is_empty() {
            self.whole.push_back(self.small.split().freeze());
        }
    }
}
