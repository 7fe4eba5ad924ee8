//! When checkpoints are taken, and of what.
//!
//! One is due whenever the log has begun a segment, and after [`CHANGES_MAX`] changes: a few bytes can say much that
//! the next start must do again. It is of one moment, right behind everything that was submitted: the queues that have
//! changed since the last one are encoded as they are then, over as many turns as it takes ([`super::imaging`]). The log
//! says where that place is once all of it is durable, and only then is the checkpoint written, in the background. So a
//! checkpoint never holds what the disk could still lose. What was not written, for want of space, has changed since the
//! last one still. While messages that damage has stranded are looked for there is none: the next start would not know
//! of the damage.

use super::imaging::{Imaging, Made};
use super::shell::Shell;
use crate::clock::Now;
use crate::core::{Event, State};
use crate::ids::QueueId;
use crate::log::{Checkpoint, CheckpointEnd, Mark};

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
    /// The log has been asked for the place, and has told it or not.
    Imaging(Box<Imaging>, Option<Mark>),
    /// With the parts of these queues.
    Writing(Vec<QueueId>),
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

    /// Whether there is something to do in the next turn.
    pub fn has_work(&self) -> bool {
        matches!(&self.stage, Stage::Imaging(imaging, mark) if mark.is_some() || !imaging.is_encoded())
    }

    #[cfg(test)]
    pub fn queues_to_encode(&self) -> usize {
        match &self.stage {
            Stage::Imaging(imaging, _) => imaging.left(),
            Stage::Idle | Stage::Writing(_) => 0,
        }
    }

    /// Keeps what the event is about to change, if it belongs to the checkpoint that is being made.
    pub fn keep(&mut self, state: &State, event: &Event) {
        if let Stage::Imaging(imaging, _) = &mut self.stage {
            imaging.keep(state, event);
        }
    }

    /// The queues whose parts were written, or were not.
    fn ended(&mut self) -> Vec<QueueId> {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Writing(changed) => changed,
            Stage::Idle | Stage::Imaging(..) => Vec::new(),
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
        let imaging = Imaging::begin(&self.state, changed);
        self.checkpoints.stage = Stage::Imaging(Box::new(imaging), None);
        self.commits.mark(&self.log, now.log_us);
    }

    pub(super) fn marked(&mut self, place: Mark) {
        if let Stage::Imaging(_, mark) = &mut self.checkpoints.stage {
            *mark = Some(place);
        }
    }

    /// One turn's work on the checkpoint that is being made.
    pub(super) fn go_on_with_checkpoint(&mut self) {
        match std::mem::replace(&mut self.checkpoints.stage, Stage::Idle) {
            Stage::Imaging(mut imaging, mark) if !imaging.is_encoded() => {
                imaging.encode_some(&self.state);
                self.checkpoints.stage = Stage::Imaging(imaging, mark);
            }
            Stage::Imaging(mut imaging, Some(mark)) => {
                if !imaging.tell_some(&self.needs) {
                    self.checkpoints.stage = Stage::Imaging(imaging, Some(mark));
                    return;
                }
                let Made { queues, head, parts } = imaging.made();
                self.checkpoints.stage = Stage::Writing(queues);
                self.log.checkpoint(Checkpoint { mark, head, parts, live: self.needs.live() });
            }
            other => self.checkpoints.stage = other,
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
