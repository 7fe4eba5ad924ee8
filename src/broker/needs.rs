//! Which messages and runs of refs may still be needed, as the log asks when it looks for what can go.
//!
//! It is kept beside the state, and told of what has changed with each checkpoint, once that is durable: what was
//! acknowledged in memory alone is needed again after a crash. What is not needed once never is again. Queues and
//! subscriptions that came later are unknown here, so all of theirs is needed.

use std::sync::{Arc, PoisonError, RwLock};

use rustc_hash::FxHashMap;

use crate::core::State;
use crate::ids::{Offset, QueueId, SubscriptionId};
use crate::log::Live;

/// What is needed of queues, as of some moment.
#[derive(Clone, Debug)]
pub struct Noted {
    queues: Vec<(QueueId, Option<NeededOfQueue>)>,
    last_queue: QueueId,
    last_subscription: SubscriptionId,
}

#[derive(Clone, Debug)]
struct NeededOfQueue {
    /// Below it no message is needed.
    first: Offset,
    /// Of each subscription, the place below which no run of refs is needed.
    first_runs: Vec<(SubscriptionId, Offset)>,
}

impl Noted {
    /// No queues; what is made later than now is not known.
    pub fn now(state: &State) -> Self {
        Self {
            queues: Vec::new(),
            last_queue: QueueId(state.next_queue_id().0 - 1),
            last_subscription: SubscriptionId(state.next_subscription_id().0 - 1),
        }
    }

    /// Notes a queue as it is now; one that is not there is deleted.
    pub fn note(&mut self, state: &State, id: QueueId) {
        let first_run =
            |id: &SubscriptionId| Some((*id, state.subscription(*id)?.delivery.spilled().first()));
        let needed = state.queue(id).map(|queue| NeededOfQueue {
            first: queue.first_offset,
            first_runs: queue.subscriptions.values().filter_map(first_run).collect(),
        });
        self.queues.push((id, needed));
    }

    /// These queues as they are now.
    pub fn of(state: &State, queues: impl IntoIterator<Item = QueueId>) -> Self {
        let mut noted = Self::now(state);
        queues.into_iter().for_each(|id| noted.note(state, id));
        noted
    }
}

/// See the module's header. Clones share what they know.
#[derive(Clone, Debug)]
pub struct Needs(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    queues: FxHashMap<QueueId, Offset>,
    /// Of each queue, those that `first_runs` has.
    subscriptions: FxHashMap<QueueId, Vec<SubscriptionId>>,
    first_runs: FxHashMap<SubscriptionId, Offset>,
    last_queue: QueueId,
    last_subscription: SubscriptionId,
}

impl Needs {
    /// Knows the whole state.
    pub fn of(state: &State) -> Self {
        let needs = Self(Arc::default());
        needs.take(Noted::of(state, state.queue_ids()));
        needs
    }

    /// Takes in what is durable.
    pub fn take(&self, mut noted: Noted) {
        while !self.take_some(&mut noted, usize::MAX) {}
    }

    /// Takes some queues in; whether they were the last ones. Until then those that were made since the last time are
    /// unknown, or needed as far as was noted.
    pub fn take_some(&self, noted: &mut Noted, count: usize) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let rest = noted.queues.len().saturating_sub(count);
        for (id, needed) in noted.queues.drain(rest..) {
            known.forget(id);
            if let Some(needed) = needed {
                known.queues.insert(id, needed.first);
                known.subscriptions.insert(id, needed.first_runs.iter().map(|(one, _)| *one).collect());
                known.first_runs.extend(needed.first_runs);
            }
        }
        if rest == 0 {
            known.last_queue = noted.last_queue;
            known.last_subscription = noted.last_subscription;
        }
        rest == 0
    }

    /// For the log.
    pub fn live(&self) -> Live {
        let known = self.0.clone();
        Arc::new(move |queue, end| known.read().unwrap_or_else(PoisonError::into_inner).is_live(queue, end))
    }
}

impl Known {
    fn forget(&mut self, id: QueueId) {
        self.queues.remove(&id);
        for subscription in self.subscriptions.remove(&id).into_iter().flatten() {
            self.first_runs.remove(&subscription);
        }
    }

    fn is_live(&self, queue: QueueId, end: Offset) -> bool {
        let (first, is_later) = match queue.refs_of() {
            Some(subscription) => (self.first_runs.get(&subscription), subscription > self.last_subscription),
            None => (self.queues.get(&queue), queue > self.last_queue),
        };
        first.map_or(is_later, |first| end > *first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;
    use crate::core::publish::{LaneRun, publish};
    use crate::core::spilled::Ref;
    use crate::core::types::QueueConfig;
    use crate::core::{Decision, Event, admin, remove};
    use crate::ids::Uid;
    use crate::names::QueueName;
    use crate::record::Lane;

    const NOW: Now = Now { log_us: 1, wall_us: 1 };

    fn enact<T>(state: &mut State, decision: Decision<T>) -> T {
        decision.events.iter().for_each(|event| state.apply(event));
        decision.answer
    }

    fn name(name: &str) -> QueueName {
        QueueName::parse(&format!("namespaces/n/queues/{name}")).unwrap()
    }

    /// A queue with a subscription and three messages.
    fn create(state: &mut State, name: &QueueName) -> QueueId {
        let (config, uid) = (QueueConfig::default(), Uid::random());
        let made = admin::create_queue(state, name.clone(), config, uid, Some(Uid::random()), NOW).unwrap();
        let id = enact(state, made);
        let run = LaneRun { lane: Lane::default(), count: 3, bytes: 3 };
        let stored = publish(state, state.queue_named(name).unwrap(), &[run], None, NOW).unwrap();
        enact(state, stored);
        id
    }

    #[test]
    fn what_is_not_finished_lives_and_so_does_what_is_not_known() {
        let mut state = State::default();
        state.apply(&Event::Started { incarnation: 1, log_us: 0 });
        let (first, second) = (create(&mut state, &name("a")), create(&mut state, &name("b")));
        let needs = Needs::of(&state);
        let live = needs.live();
        state.take_changed();
        let decision = remove::purge(&state, &name("a"), Some(Offset(2))).unwrap();
        enact(&mut state, decision);
        let decision = admin::delete_queue(&state, &name("b"), None).unwrap();
        enact(&mut state, decision);
        let third = create(&mut state, &name("c"));
        assert_eq!([1, 2, 3].map(|end| live(first, Offset(end))), [true; 3], "nothing was told");
        assert!(live(second, Offset(3)) && live(third, Offset(1)));
        let changed = state.take_changed();
        assert_eq!(changed, [first, second, third]);
        let mut noted = Noted::of(&state, [third, second, first]);
        while !needs.take_some(&mut noted, 1) {
            assert!(live(third, Offset(1)), "it is not told yet, or needed");
        }
        assert_eq!([2, 3].map(|end| live(first, Offset(end))), [false, true]);
        assert!(!live(second, Offset(3)), "the queue is gone");
        assert!(live(third, Offset(1)) && live(third.next(), Offset(1)), "a queue that is made later");
    }

    #[test]
    fn runs_of_refs_live_as_long_as_their_subscription_needs_them() {
        let mut state = State::default();
        let queue = create(&mut state, &name("a"));
        let subscription = state.subscription_ids().next().unwrap();
        let lease = |first| Event::Leased {
            queue,
            subscription,
            runs: vec![crate::core::runs::OffsetRun { first: Offset(first), count: 1 }],
            first: crate::core::delivery::LeaseId { incarnation: 1, number: 1 },
            deadline_us: 9,
        };
        let spill = |place| Event::Spilled {
            queue,
            subscription,
            place: Offset(place),
            refs: vec![Ref { due_us: 5, offset: Offset(place), attempts: 1 }],
        };
        let recall = |place| Event::Recalled {
            queue,
            subscription,
            place: Offset(place),
            rest: None,
            refs: Vec::new(),
        };
        [lease(0), lease(1), spill(0), spill(1)].iter().for_each(|event| state.apply(event));
        let needs = Needs::of(&state);
        let (live, store) = (needs.live(), QueueId::of_refs(subscription));
        let later = QueueId::of_refs(subscription.next());
        assert!(live(store, Offset(1)) && live(store, Offset(2)) && live(later, Offset(1)));
        state.apply(&recall(0));
        needs.take(Noted::of(&state, [queue]));
        assert!(!live(store, Offset(1)) && live(store, Offset(2)) && live(later, Offset(1)));
        let decision = admin::delete_queue(&state, &name("a"), None).unwrap();
        enact(&mut state, decision);
        needs.take(Noted::of(&state, [queue]));
        assert!(!live(store, Offset(2)) && live(later, Offset(1)));
    }
}
