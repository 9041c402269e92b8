//! How much memory the readers of a leg hold while they wait.
//!
//! A stream's buffer grows with what it brings, up to a size worth a system call. A peer may open many streams, fill each
//! buffer once and fall silent, so what all readers of a leg hold together is bounded: beyond, a reader has room for what it
//! has and a little more.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;

/// Room for reading at first, for streams that carry little; it doubles whenever it was filled.
const FIRST: usize = 4 * 1024;
/// Most room of one reader; frames are cut out of it without copying.
const MOST: usize = 256 * 1024;
/// Most room of a leg's readers, but for what each needs at least: 32 streams that move bulk at once.
const ALL: usize = 32 * MOST;

/// What all readers of a leg hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Hall(Arc<AtomicUsize>);

/// What one of them holds, and how much it asks for.
#[derive(Debug)]
pub(super) struct Room {
    hall: Hall,
    held: usize,
    size: usize,
}

impl Hall {
    /// For one more reader.
    pub(super) fn room(&self) -> Room {
        Room { hall: self.clone(), held: 0, size: FIRST }
    }
}

impl Room {
    /// Makes room to read into; returns how much.
    pub(super) fn make(&mut self, buffer: &mut BytesMut) -> usize {
        if buffer.capacity() - buffer.len() < self.size / 4 {
            let others = self.hall.0.load(Ordering::Relaxed).saturating_sub(self.held);
            let is_full = others + self.size > ALL;
            if is_full {
                self.size = FIRST;
            }
            // `reserve` would double what is there.
            if is_full || !buffer.try_reclaim(self.size) {
                let mut fresh = BytesMut::with_capacity(buffer.len() + self.size);
                fresh.extend_from_slice(buffer);
                *buffer = fresh;
            }
            self.hold(buffer.capacity());
        }
        buffer.capacity() - buffer.len()
    }

    /// What there was room for has come: more of it may be waiting.
    pub(super) fn was_filled(&mut self) {
        self.size = (2 * self.size).min(MOST);
    }

    fn hold(&mut self, bytes: usize) {
        self.hall.0.fetch_add(bytes, Ordering::Relaxed);
        self.hall.0.fetch_sub(self.held, Ordering::Relaxed);
        self.held = bytes;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    /// A reader that was fed `fills` buffers, of which `rest` bytes are no whole frame yet.
    fn fed(hall: &Hall, fills: usize, rest: usize) -> (Room, BytesMut) {
        let (mut room, mut buffer) = (hall.room(), BytesMut::new());
        for _ in 0..fills {
            let spare = room.make(&mut buffer);
            buffer.resize(buffer.len() + spare, 7);
            room.was_filled();
            buffer.advance(buffer.len().saturating_sub(rest));
        }
        room.make(&mut buffer);
        (room, buffer)
    }

    #[test]
    fn a_peer_that_fills_every_stream_once_and_falls_silent_pins_little() {
        let hall = Hall::default();
        let readers: Vec<_> = (0..1024).map(|_| fed(&hall, 8, 1)).collect();
        let pinned: usize = readers.iter().map(|(_, buffer)| buffer.capacity()).sum();
        assert!(pinned <= ALL + 1024 * 2 * FIRST, "{pinned}");
        drop(readers);
        assert_eq!(hall.0.load(Ordering::Relaxed), 0);
        // The longest frame, but for its last byte, in each: nearly all of it has really come.
        let frame = 16 * 1024;
        let readers: Vec<_> = (0..1024).map(|_| fed(&hall, 8, frame)).collect();
        let pinned: usize = readers.iter().map(|(_, buffer)| buffer.capacity()).sum();
        assert!(pinned <= ALL + 1024 * (frame + FIRST), "{pinned}");
    }

    #[test]
    fn streams_that_move_bulk_have_room_for_it() {
        let hall = Hall::default();
        let readers: Vec<_> = (0..30).map(|_| fed(&hall, 8, 1)).collect();
        assert!(readers.iter().all(|(room, _)| room.size == MOST));
    }
}
