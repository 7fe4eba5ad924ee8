//! Metrics of how the log uses its disk.

use metrics::{Counter, Gauge};

use super::metrics::{described_counter, described_gauge};
use crate::broker::api::ServerStats;

/// Handles for what reclaim sees and does.
pub(super) struct SpaceFigures {
    packed_bytes: Gauge,
    packed_segments: Gauge,
    live_bytes: Gauge,
    dead_bytes: Gauge,
    reserve_bytes: Gauge,
    segments_rewritten: Counter,
    segments_merged: Counter,
    segments_unreadable: Counter,
    appended_bytes: Counter,
    written_bytes: Counter,
}

impl SpaceFigures {
    pub fn describe() -> Self {
        Self {
            packed_bytes: described_gauge("forebay_log_packed_bytes", "Disk space of packed segments, bytes"),
            packed_segments: described_gauge("forebay_log_packed_segments", "Packed segments"),
            live_bytes: described_gauge(
                "forebay_log_live_bytes",
                "Records that may still be needed in segments before the older checkpoint, as of the last, bytes",
            ),
            dead_bytes: described_gauge(
                "forebay_log_dead_bytes",
                "All else in segments before the older checkpoint, as of the last, bytes",
            ),
            reserve_bytes: described_gauge(
                "forebay_log_reserve_bytes",
                "Files kept for a full disk: for checkpoints, rewriting and new segments; bytes",
            ),
            segments_rewritten: described_counter(
                "forebay_log_segments_rewritten_total",
                "Segments that were rewritten since the start, because little in them was needed",
            ),
            segments_merged: described_counter(
                "forebay_log_segments_merged_total",
                "Segments that were merged since the start, because their queues were mixed",
            ),
            segments_unreadable: described_counter(
                "forebay_log_segments_unreadable_total",
                "Segments that are not rewritten, because records in them cannot be read",
            ),
            appended_bytes: described_counter(
                "forebay_log_appended_bytes_total",
                "Records given to the log since the start, bytes",
            ),
            written_bytes: described_counter(
                "forebay_log_written_bytes_total",
                "All that was written to the log's disk since the start, bytes; by the appended ones it is the write \
                 amplification",
            ),
        }
    }

    pub fn set(&self, stats: &ServerStats) {
        for (gauge, value) in [
            (&self.packed_bytes, stats.packed_bytes),
            (&self.packed_segments, stats.packed_segments),
            (&self.live_bytes, stats.live_bytes),
            (&self.dead_bytes, stats.dead_bytes),
            (&self.reserve_bytes, stats.reserve_bytes),
        ] {
            gauge.set(value as f64);
        }
        self.segments_rewritten.absolute(stats.segments_rewritten);
        self.segments_merged.absolute(stats.segments_merged);
        self.segments_unreadable.absolute(stats.segments_unreadable);
        self.appended_bytes.absolute(stats.bytes_appended);
        self.written_bytes.absolute(stats.bytes_written);
    }
}
