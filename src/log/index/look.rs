//! What reclaim wants to know of a sealed segment.

use super::{Index, Sealed};
use crate::ids::{Offset, QueueId};
use crate::log::error::LogError;
use crate::log::segment;

/// What a segment holds, and how much of it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Bytes of the records of runs, and of those that may still be needed.
    pub run_bytes: u64,
    pub live_bytes: u64,
    /// Queues that the needed ones are of.
    pub live_queues: u64,
    /// Of the segment's file.
    pub file_bytes: u64,
    /// Nobody is at work in it, see `reclaim::policy`.
    pub settled: bool,
}

impl Index {
    /// Looks through all runs of a sealed segment; `live(queue, offset behind the run)` says whether one is needed.
    ///
    /// # Errors
    /// The segment's runs can neither be read from its index file nor be rebuilt.
    pub(in crate::log) fn look(
        &self,
        sealed: &Sealed,
        live: &dyn Fn(QueueId, Offset) -> bool,
    ) -> Result<Look, LogError> {
        let runs = self.runs_of(sealed)?;
        let file_bytes = self.inner.disk.open(&segment::path(sealed.segment))?.length()?;
        let (mut look, mut last) = (Look { file_bytes, ..Look::default() }, None);
        for (queue, run) in runs.sorted() {
            look.run_bytes += u64::from(run.length);
            if live(queue, run.end()) {
                look.live_bytes += u64::from(run.length);
                look.live_queues += u64::from(last != Some(queue));
                last = Some(queue);
            }
        }
        Ok(look)
    }
}
