//! The queues and subscriptions of a state, and which queues have changed since that was last asked.
//!
//! Nothing is changed but through here, so no change is forgotten: whoever takes a queue or a subscription to change it
//! has marked the queue. One that was removed has changed too. What is marked may be more than what is different.

use rustc_hash::{FxHashMap, FxHashSet};

use super::state::{Queue, Subscription};
use crate::ids::{Offset, QueueId, SubscriptionId};

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub struct Tracked {
    queues: FxHashMap<QueueId, Queue>,
    subscriptions: FxHashMap<SubscriptionId, Subscription>,
    changed: FxHashSet<QueueId>,
}

impl Tracked {
    /// These, none of them changed. The subscriptions are listed in their queues already.
    pub fn unchanged(queues: Vec<Queue>, subscriptions: Vec<Subscription>) -> Self {
        Self {
            queues: queues.into_iter().map(|queue| (queue.id, queue)).collect(),
            subscriptions: subscriptions.into_iter().map(|one| (one.id, one)).collect(),
            changed: FxHashSet::default(),
        }
    }

    pub fn queue(&self, id: QueueId) -> Option<&Queue> {
        self.queues.get(&id)
    }

    pub fn subscription(&self, id: SubscriptionId) -> Option<&Subscription> {
        self.subscriptions.get(&id)
    }

    pub fn queue_ids(&self) -> impl ExactSizeIterator<Item = QueueId> {
        self.queues.keys().copied()
    }

    pub fn subscription_ids(&self) -> impl ExactSizeIterator<Item = SubscriptionId> {
        self.subscriptions.keys().copied()
    }

    /// A queue, to be changed.
    pub fn queue_mut(&mut self, id: QueueId) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(&id)?;
        self.changed.insert(id);
        Some(queue)
    }

    /// A subscription, to be changed.
    pub fn subscription_mut(&mut self, id: SubscriptionId) -> Option<&mut Subscription> {
        let subscription = self.subscriptions.get_mut(&id)?;
        self.changed.insert(subscription.queue);
        Some(subscription)
    }

    pub fn add_queue(&mut self, queue: Queue) {
        self.changed.insert(queue.id);
        self.queues.insert(queue.id, queue);
    }

    /// Removes a queue with its subscriptions.
    pub fn remove_queue(&mut self, id: QueueId) -> Option<Queue> {
        let queue = self.queues.remove(&id)?;
        self.changed.insert(id);
        for subscription in queue.subscriptions.values() {
            self.subscriptions.remove(subscription);
        }
        Some(queue)
    }

    pub fn add_subscription(&mut self, subscription: Subscription) {
        self.changed.insert(subscription.queue);
        self.subscriptions.insert(subscription.id, subscription);
    }

    pub fn remove_subscription(&mut self, id: SubscriptionId) -> Option<Subscription> {
        let subscription = self.subscriptions.remove(&id)?;
        self.changed.insert(subscription.queue);
        Some(subscription)
    }

    /// Goes through all queues; `change` says whether it has changed the one.
    pub fn change_queues(&mut self, mut change: impl FnMut(&mut Queue) -> bool) {
        let changed = self.queues.values_mut().filter_map(|queue| change(queue).then_some(queue.id));
        self.changed.extend(changed);
    }

    /// Goes through all subscriptions; `change` says whether it has changed the one.
    pub fn change_subscriptions(&mut self, mut change: impl FnMut(&mut Subscription) -> bool) {
        let changed = self.subscriptions.values_mut().filter_map(|one| change(one).then_some(one.queue));
        self.changed.extend(changed);
    }

    /// Takes leases that ended by `log_us` out of the deadline list. That is no change: the list follows from the rest.
    pub fn take_expired(&mut self, id: SubscriptionId, log_us: u64) -> Vec<Offset> {
        self.subscriptions.get_mut(&id).map_or_else(Vec::new, |one| one.delivery.expired(log_us))
    }

    /// The queues that have changed since the last call, in order.
    pub fn take_changed(&mut self) -> Vec<QueueId> {
        // A set that was large once would make every later call slow.
        let mut changed: Vec<QueueId> = std::mem::take(&mut self.changed).into_iter().collect();
        changed.sort_unstable();
        changed
    }

    /// Counts queues as changed.
    pub fn mark(&mut self, queues: impl IntoIterator<Item = QueueId>) {
        self.changed.extend(queues);
    }
}
