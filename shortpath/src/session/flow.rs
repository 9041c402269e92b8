//! The datagrams of a channel that wait to leave or to be read: a few, and the newest win.
use std::collections::VecDeque;

use bytes::Bytes;

/// Datagrams kept per direction: what a service at 1,000 a second sends while a path is found dead.
const DATAGRAMS: usize = 256;
/// Bytes kept per direction: four datagrams of the greatest size.
const BYTES: usize = 256 * 1024;

#[derive(Debug, Default)]
pub(super) struct Flow {
    pub(super) out: Queue,
    pub(super) arrived: Queue,
    /// It stands in the session's line.
    pub(super) queued: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// Datagrams given up for newer ones.
    pub(super) dropped: u64,
}

impl Queue {
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.waiting.push_back(bytes);
        while self.waiting.len() > DATAGRAMS || self.bytes > BYTES {
            self.pop();
            self.dropped += 1;
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let bytes = self.waiting.pop_front()?;
        self.bytes -= bytes.len();
        Some(bytes)
    }

    /// Length of the next one.
    pub(super) fn next_len(&self) -> Option<usize> {
        self.waiting.front().map(Bytes::len)
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_datagrams_win_when_there_is_no_room() {
        let mut queue = Queue::default();
        for i in 0..1_000_u32 {
            queue.push(Bytes::copy_from_slice(&i.to_be_bytes()));
        }
        assert_eq!(
            (queue.pop().unwrap(), queue.dropped),
            (Bytes::copy_from_slice(&744_u32.to_be_bytes()), 744)
        );
        for _ in 0..10 {
            queue.push(Bytes::from(vec![0; 65_507]));
        }
        assert!(queue.bytes <= BYTES && queue.waiting.len() == 4);
    }
}
