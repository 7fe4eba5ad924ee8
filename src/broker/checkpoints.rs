//! When checkpoints are taken, and of what.
//!
//! One is due whenever the log has begun a segment, and after [`CHANGES_MAX`] changes: a few bytes can say much that
//! the next start must do again. The state is encoded in one turn, right behind everything that
//! was submitted; the log then says where that place is once all of it is durable, and only then is the checkpoint
//! written, in the background. So a checkpoint never holds what the disk could still lose. While messages that damage
//! has stranded are looked for there is none: the next start would not know of the damage.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::shell::Shell;
use crate::clock::Now;
use crate::core::{Event, State, snapshot};
use crate::ids::{Offset, QueueId, SubscriptionId};
use crate::log::{Checkpoint, Live, Mark};

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
    /// The log has been asked for the place that belongs to the state.
    Marking {
        state: Vec<u8>,
        live: Live,
    },
    Writing,
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
        if !self.checkpoints.due || !matches!(self.checkpoints.stage, Stage::Idle) || self.is_surveying() {
            return;
        }
        self.checkpoints.due = false;
        self.checkpoints.changes = 0;
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

/// Which messages and runs of refs may still be needed, as of now. Queues and subscriptions that come later are
/// unknown to it, so all of theirs are.
fn live(state: &State) -> Live {
    let last_queue = QueueId(state.next_queue_id().0 - 1);
    let last_store = QueueId::of_refs(SubscriptionId(state.next_subscription_id().0 - 1));
    let first = |id| state.queue(id).map(|queue| (id, queue.first_offset));
    let first_run = |id| {
        let spilled = state.subscription(id)?.delivery.spilled();
        Some((QueueId::of_refs(id), spilled.first()))
    };
    let queues = state.queue_ids().filter_map(first);
    let stores = state.subscription_ids().filter_map(first_run);
    let first: FxHashMap<QueueId, Offset> = queues.chain(stores).collect();
    Arc::new(move |queue, end| match first.get(&queue) {
        Some(first) => end > *first,
        None if queue.refs_of().is_some() => queue > last_store,
        None => queue > last_queue,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::publish::{LaneRun, publish};
    use crate::core::runs::OffsetRun;
    use crate::core::types::QueueConfig;
    use crate::core::{Decision, Event, admin, remove};
    use crate::ids::{SubscriptionId, Uid};
    use crate::names::QueueName;
    use crate::record::Lane;

    const NOW: Now = Now { log_us: 1, wall_us: 1 };

    fn enact<T>(state: &mut State, decision: Decision<T>) -> T {
        decision.events.iter().for_each(|event| state.apply(event));
        decision.answer
    }

    #[test]
    fn what_is_not_finished_lives_and_so_does_what_is_not_known() {
        let mut state = State::default();
        state.apply(&Event::Started { incarnation: 1, log_us: 0 });
        let queues = ["a", "b"].map(|name| {
            let name = QueueName::parse(&format!("namespaces/n/queues/{name}")).unwrap();
            let config = QueueConfig::default();
            let made = admin::create_queue(&state, name.clone(), config, Uid::random(), None, NOW).unwrap();
            let id = enact(&mut state, made);
            let run = LaneRun { lane: Lane::default(), count: 3, bytes: 3 };
            let stored = publish(&state, &name, &[run], None, NOW).unwrap();
            enact(&mut state, stored);
            (name, id)
        });
        let [(purged, first), (deleted, second)] = queues;
        let decision = remove::purge(&state, &purged, Some(Offset(2))).unwrap();
        enact(&mut state, decision);
        let decision = admin::delete_queue(&state, &deleted, None).unwrap();
        enact(&mut state, decision);
        let live = live(&state);
        assert_eq!([2, 3].map(|end| live(first, Offset(end))), [false, true]);
        assert!(!live(second, Offset(3)), "the queue is gone");
        assert!(live(second.next(), Offset(1)), "a queue that is made later");
    }

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
