//! The runs of sealed segments that are at hand: opened index files, and what was rebuilt. Bounded in bytes; the
//! least recently used go first.

use std::sync::Arc;

use super::Runs;
use crate::ids::SegmentNumber;

/// Bytes of files and of rebuilt runs that are held, unless one alone is larger.
pub const HELD_BYTES_MAX: usize = 32 << 20;

/// A segment, its place, and its runs.
type Entry = (SegmentNumber, SegmentNumber, Arc<Runs>);

/// See the module's header.
#[derive(Debug, Default)]
pub struct Held {
    /// Most recently used last.
    runs: Vec<Entry>,
    bytes: usize,
}

impl Held {
    /// A segment's runs, if they are at hand.
    pub fn get(&mut self, segment: SegmentNumber) -> Option<Arc<Runs>> {
        let at = self.runs.iter().rposition(|(held, ..)| *held == segment)?;
        self.runs[at..].rotate_left(1);
        self.runs.last().map(|(_, _, runs)| runs.clone())
    }

    /// Up to `count` of the last used, without counting as a use.
    pub fn recent(&self, count: usize) -> Vec<Entry> {
        self.runs.iter().rev().take(count).cloned().collect()
    }

    /// Holds a segment's runs, instead of those that were held of it.
    pub fn put(&mut self, segment: SegmentNumber, place: SegmentNumber, runs: Arc<Runs>) {
        self.remove(segment);
        self.bytes += runs.bytes();
        self.runs.push((segment, place, runs));
        let mut dropped = 0;
        while self.bytes > HELD_BYTES_MAX && dropped + 1 < self.runs.len() {
            self.bytes -= self.runs[dropped].2.bytes();
            dropped += 1;
        }
        self.runs.drain(..dropped);
    }

    pub fn remove(&mut self, segment: SegmentNumber) {
        if let Some(at) = self.runs.iter().position(|(held, ..)| *held == segment) {
            let (_, _, runs) = self.runs.remove(at);
            self.bytes -= runs.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::{MemoryRuns, Run};
    use super::*;
    use crate::ids::{Offset, QueueId};

    fn runs(count: u64) -> Arc<Runs> {
        let mut runs = MemoryRuns::default();
        for first in 0..count {
            let first_offset = Offset(first);
            let run = Run { first_offset, publish_time_us: 0, position: 0, length: 1, count: 1, bytes: 1 };
            assert!(runs.push(QueueId(1), run));
        }
        Arc::new(Runs::Memory(runs))
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let mut held = Held::default();
        let third = runs((HELD_BYTES_MAX / 3 / runs(1).bytes()) as u64);
        for segment in 1..=3 {
            held.put(SegmentNumber(segment), SegmentNumber(segment), third.clone());
        }
        assert!(held.get(SegmentNumber(1)).is_some());
        held.put(SegmentNumber(4), SegmentNumber(4), third.clone());
        let left: Vec<u64> = held.recent(9).iter().map(|(segment, ..)| segment.0).collect();
        assert_eq!(left, [4, 1, 3]);
        assert!(held.bytes <= HELD_BYTES_MAX && held.get(SegmentNumber(2)).is_none());
        held.put(SegmentNumber(4), SegmentNumber(4), third);
        for segment in [1, 3, 4] {
            held.remove(SegmentNumber(segment));
        }
        assert_eq!((held.bytes, held.runs.len()), (0, 0));
    }

    #[test]
    fn one_is_held_however_large() {
        let mut held = Held::default();
        let large = runs((HELD_BYTES_MAX / runs(1).bytes()) as u64 + 1);
        held.put(SegmentNumber(1), SegmentNumber(1), large.clone());
        held.put(SegmentNumber(2), SegmentNumber(2), large);
        assert_eq!(held.recent(9).iter().map(|(segment, ..)| segment.0).collect::<Vec<_>>(), [2]);
    }
}
