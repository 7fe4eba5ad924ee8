//! What the log has done since it was opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::set::SegmentSet;
use crate::disk::Traffic;

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
    /// What went through the log to its disk: the commit path, new segments, indexes, checkpoints, reclaim, readers.
    pub traffic: Arc<Traffic>,
    /// Bytes of the records that were given to the log to keep.
    pub bytes_appended: Counter,
    /// Segments of the log, the next one and the packed ones too.
    pub segments: Counter,
    /// Bytes of their files.
    pub segment_bytes: Counter,
    /// Packed segments, and bytes of their files.
    pub packed_segments: Counter,
    pub packed_bytes: Counter,
    /// Bytes of records that may still be needed, and of the rest, in the segments that reclaim has looked through:
    /// those before the fallback of the checkpoints. As of the last look, which is at a checkpoint.
    pub live_bytes: Counter,
    pub dead_bytes: Counter,
    /// Bytes that are kept free for checkpoints and for rewriting when the disk is full.
    pub reserve_bytes: Counter,
    /// Segments that were rewritten because little in them was needed, and because their queues were mixed.
    pub segments_rewritten: Counter,
    pub segments_merged: Counter,
    /// Bytes written into packed segments.
    pub bytes_packed: Counter,
    /// Segments in which reclaim met records that cannot be read; they stay.
    pub segments_unreadable: Counter,
    /// Times that reclaim came to the end of its work.
    pub reclaim_passes: Counter,
    /// Index files that were missing or damaged and made again from their segments.
    pub index_rebuilds: Counter,
    /// Holes that opening found in the log.
    pub damage: Counter,
    /// Segments taken out of the log since it was opened: nothing in them was needed.
    pub segments_dropped: Counter,
    /// Files of new segments that were made, and bytes of zeroes that were written into them ahead of frames.
    pub segments_created: Counter,
    pub zero_filled_bytes: Counter,
    /// Files of new segments that were those of segments that had left.
    pub segments_recycled: Counter,
    /// Checkpoints written, and bases made besides the first.
    pub checkpoints: Counter,
    pub checkpoint_bases: Counter,
    /// Parts of the state that were given for them, and bytes of all their files.
    pub checkpoint_parts: Counter,
    pub checkpoint_bytes: Counter,
}

impl LogCounters {
    pub(super) fn note_set(&self, set: &SegmentSet) {
        self.segments.set(set.len());
        self.segment_bytes.set(set.bytes());
        self.packed_segments.set(set.packed().count() as u64);
        self.packed_bytes.set(set.packed_bytes());
    }
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

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
