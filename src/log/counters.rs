//! What the log has done since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts and gauges; shared, and read at any time.
#[derive(Debug, Default)]
pub struct LogCounters {
    /// Syncs of the commit path.
    pub syncs: Counter,
    /// Frames written and synced, the empty ones too.
    pub frames: Counter,
    /// Records in these frames, the log's own too.
    pub records: Counter,
    /// Bytes written on the commit path: frames with their padding, segment headers.
    pub bytes_written: Counter,
    /// Segments of the log, the next one too.
    pub segments: Counter,
    /// Bytes of their files.
    pub segment_bytes: Counter,
    /// Index files that were missing or damaged and made again from their segments.
    pub index_rebuilds: Counter,
    /// Holes that opening found in the log.
    pub damage: Counter,
    /// Segments taken out of the log since it was opened: nothing in them was needed.
    pub segments_dropped: Counter,
    /// Files of new segments that were made, and bytes of zeroes written into them.
    pub segments_created: Counter,
    pub zero_filled_bytes: Counter,
    /// Files of new segments that were those of segments that had left.
    pub segments_recycled: Counter,
    /// Checkpoints written.
    pub checkpoints: Counter,
}

/// A number that threads may change and read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
