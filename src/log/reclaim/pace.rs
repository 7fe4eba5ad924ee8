//! How fast reclaim goes.
//!
//! Commits wait for the disk, and so does what reclaim writes. After each piece it rests as long as the piece took, if
//! something was committed meanwhile: so it has at most about half of the disk's time, and none of it for longer than
//! one piece takes. Where nobody commits, nobody is held up. It does not rest when segments come to be sparse faster
//! than it rewrites them: then the space is wanted more.

use std::time::{Duration, Instant};

use super::Shared;
use crate::log::counters::LogCounters;

/// Longest rest; a disk that is this slow is not helped by more.
const REST_MAX: Duration = Duration::from_secs(1);

/// See the module's header.
pub struct Pace<'a> {
    counters: &'a LogCounters,
    pub shared: &'a Shared,
    behind: bool,
    frames: u64,
    since: Instant,
}

impl<'a> Pace<'a> {
    pub fn new(counters: &'a LogCounters, shared: &'a Shared, behind: bool) -> Self {
        Self { counters, shared, behind, frames: counters.frames.get(), since: shared.now() }
    }

    /// A piece is written. Whether to go on.
    pub fn after_piece(&mut self) -> bool {
        let frames = self.counters.frames.get();
        if frames != self.frames && !self.behind {
            self.shared.rest(self.shared.now().saturating_duration_since(self.since).min(REST_MAX));
        }
        self.frames = self.counters.frames.get();
        self.since = self.shared.now();
        !self.shared.is_stopped()
    }
}
