//! When checkpoints are taken, and of what.
//!
//! One is due whenever the log has begun a segment. The state is encoded in one turn, right behind everything that
//! was submitted; the log then says where that place is once all of it is durable, and only then is the checkpoint
//! written, in the background. So a checkpoint never holds what the disk could still lose.

use rustc_hash::FxHashMap;

use super::shell::Shell;
use crate::clock::Now;
use crate::core::{State, snapshot};
use crate::ids::{Offset, QueueId};
use crate::log::{Checkpoint, Live, Mark};

/// How far the next checkpoint is.
pub struct Checkpoints {
    pub due: bool,
    stage: Stage,
}

enum Stage {
    Idle,
    /// The log has been asked for the place that belongs to the state.
    Marking {
        state: Vec<u8>,
        live: Live,
    },
    Writing,
}

impl Checkpoints {
    pub fn new(due: bool) -> Self {
        Self { due, stage: Stage::Idle }
    }

    /// Ends the wait for the log's word.
    fn marked(&mut self, mark: Mark) -> Option<Checkpoint> {
        match std::mem::replace(&mut self.stage, Stage::Writing) {
            Stage::Marking { state, live } => Some(Checkpoint { mark, state, live }),
            other => {
                self.stage = other;
                None
            }
        }
    }
}

impl Shell {
    /// Begins a checkpoint if one is due and none under way.
    pub(super) fn begin_checkpoint(&mut self, now: Now) {
        if !self.checkpoints.due || !matches!(self.checkpoints.stage, Stage::Idle) {
            return;
        }
        self.checkpoints.due = false;
        let mut state = Vec::new();
        snapshot::encode(&self.state, &mut state);
        let live = live(&self.state);
        self.checkpoints.stage = Stage::Marking { state, live };
        self.commits.mark(&self.log, now.log_us);
    }

    pub(super) fn marked(&mut self, mark: Mark) {
        if let Some(checkpoint) = self.checkpoints.marked(mark) {
            self.log.checkpoint(checkpoint);
        }
    }

    pub(super) fn checkpoint_ended(&mut self, written: bool) {
        self.checkpoints.stage = Stage::Idle;
        if !written {
            tracing::warn!("the disk is full: a checkpoint was not written; it is tried again");
        }
        self.force_checkpoint(self.clock.now());
    }
}

/// Which messages may still be needed, as of now. Queues that come later are unknown to it, so all of theirs are.
fn live(state: &State) -> Live {
    let last_queue = QueueId(state.next_queue_id().0 - 1);
    let first = |id| state.queue(id).map(|queue| (id, queue.first_offset));
    let first: FxHashMap<QueueId, Offset> = state.queue_ids().filter_map(first).collect();
    Box::new(move |queue, end| match first.get(&queue) {
        Some(first) => end > *first,
        None => queue > last_queue,
    })
}
