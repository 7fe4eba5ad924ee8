//! When checkpoints are taken, and of what.
//!
//! One is due whenever the log has begun a segment, and after [`CHANGES_MAX`] changes: a few bytes can say much that
//! the next start must do again. The queues that have changed since the last one are encoded in one turn, right behind
//! everything that was submitted; the log then says where that place is once all of it is durable, and only then is the
//! checkpoint written, in the background. So a checkpoint never holds what the disk could still lose. What was not
//! written, for want of space, has changed since the last one still. While messages that damage has stranded are looked
//! for there is none: the next start would not know of the damage.

use super::needs::Noted;
use super::replica::image_of;
use super::shell::Shell;
use crate::clock::Now;
use crate::core::Event;
use crate::ids::QueueId;
use crate::log::{Checkpoint, CheckpointEnd, Live, Mark, Parts};

/// Changes of single messages that a start may have to apply again, besides those of one checkpoint's time.
pub const CHANGES_MAX: u64 = 250_000;

/// How far the next checkpoint is.
pub struct Checkpoints {
    pub due: bool,
    /// Since the last one was begun.
    changes: u64,
    stage: Stage,
}

enum Stage {
    Idle,
    /// The log has been asked for the place that belongs to what was encoded.
    Marking(Encoded),
    /// With the parts of these queues.
    Writing(Vec<QueueId>),
}

struct Encoded {
    changed: Vec<QueueId>,
    head: Vec<u8>,
    parts: Parts,
    noted: Noted,
}

impl Checkpoints {
    /// With so many changes since the last one.
    pub fn new(due: bool, changes: u64) -> Self {
        Self { due: due || changes >= CHANGES_MAX, changes, stage: Stage::Idle }
    }

    /// Events were applied.
    pub fn count(&mut self, events: &[Event]) {
        self.changes += events.iter().map(Event::changes).sum::<u64>();
        self.due |= self.changes >= CHANGES_MAX;
    }

    fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// Ends the wait for the log's word.
    fn marked(&mut self, mark: Mark, live: Live) -> Option<(Checkpoint, Noted)> {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Marking(Encoded { changed, head, parts, noted }) => {
                self.stage = Stage::Writing(changed);
                Some((Checkpoint { mark, head, parts, live }, noted))
            }
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// The queues whose parts were written, or were not.
    fn ended(&mut self) -> Vec<QueueId> {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Writing(changed) => changed,
            Stage::Idle | Stage::Marking(_) => Vec::new(),
        }
    }
}

impl Shell {
    /// Begins a checkpoint if one is due and none under way.
    pub(super) fn begin_checkpoint(&mut self, now: Now) {
        if !self.checkpoints.due || !self.checkpoints.is_idle() || self.is_surveying() {
            return;
        }
        self.checkpoints.due = false;
        self.checkpoints.changes = 0;
        let changed = self.state.take_changed();
        let (head, parts) = image_of(&self.state, changed.iter().copied());
        let noted = Noted::of(&self.state, changed.iter().copied());
        self.checkpoints.stage = Stage::Marking(Encoded { changed, head, parts, noted });
        self.commits.mark(&self.log, now.log_us);
    }

    pub(super) fn marked(&mut self, mark: Mark) {
        if let Some((checkpoint, noted)) = self.checkpoints.marked(mark, self.needs.live()) {
            self.needs.take(noted);
            self.log.checkpoint(checkpoint);
        }
    }

    pub(super) fn checkpoint_ended(&mut self, end: CheckpointEnd) {
        let changed = self.checkpoints.ended();
        match end {
            CheckpointEnd::Written => {}
            CheckpointEnd::NoSpace => {
                self.state.mark_changed(changed);
                tracing::warn!("the disk is full: a checkpoint was not written; it is tried again");
            }
            CheckpointEnd::AllNeeded => {
                self.state.mark_all_changed();
                self.checkpoints.due = true;
            }
        }
        self.force_checkpoint(self.clock.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::runs::OffsetRun;
    use crate::ids::{Offset, SubscriptionId};

    #[test]
    fn many_changes_make_one_due() {
        let acked = |count| {
            let runs = vec![OffsetRun { first: Offset(7), count }];
            Event::Acked { queue: QueueId(1), subscription: SubscriptionId(1), runs }
        };
        let mut checkpoints = Checkpoints::new(false, CHANGES_MAX - 10);
        checkpoints.count(&[acked(8), Event::QueueDeleted { queue: QueueId(1) }]);
        assert!(!checkpoints.due);
        checkpoints.count(&[acked(1)]);
        assert!(checkpoints.due);
        assert!(Checkpoints::new(false, CHANGES_MAX).due, "a start has counted them");
    }
}
