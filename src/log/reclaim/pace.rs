//! How fast reclaim goes.
//!
//! Commits wait for the disk, and so does what reclaim writes. After each piece it rests, at most for a second, if
//! something was committed meanwhile. Where nobody commits, nobody is held up.
//!
//! | Rewritten for | Rests as long as the piece took, times | Its share of the disk |
//! |---|---|---|
//! | reads that seek less | 3: it can wait | a quarter |
//! | space | 1 | half |
//! | space, and segments come to be sparse faster than they are rewritten | 0: the space is wanted more | all |

use std::time::{Duration, Instant};

use super::Shared;
use crate::log::counters::LogCounters;

/// Longest rest; a disk that is this slow is not helped by more.
const REST_MAX: Duration = Duration::from_secs(1);

/// See the module's header.
pub struct Pace<'a> {
    counters: &'a LogCounters,
    pub shared: &'a Shared,
    rests: u32,
    frames: u64,
    since: Instant,
}

impl<'a> Pace<'a> {
    pub fn new(counters: &'a LogCounters, shared: &'a Shared, rests: u32) -> Self {
        Self { counters, shared, rests, frames: counters.frames.get(), since: shared.now() }
    }

    /// A piece is written. Whether to go on.
    pub fn after_piece(&mut self) -> bool {
        let frames = self.counters.frames.get();
        if frames != self.frames {
            let took = self.shared.now().saturating_duration_since(self.since);
            self.shared.rest((took * self.rests).min(REST_MAX));
        }
        self.frames = self.counters.frames.get();
        self.since = self.shared.now();
        !self.shared.is_stopped()
    }
}
