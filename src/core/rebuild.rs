//! The state of a shard whose checkpoints are lost, made of what its log still has.
//!
//! The log is replayed from wherever it can be read, every event mended ([`super::misfit`]); then:
//! - Every message that was found waits in its queue, for each of its subscriptions, from the first attempt on:
//!   acknowledgements before the log begins are unknown, so all count as unknown, and messages may come again.
//! - Offsets between them that were not found count as finished: there is nothing to deliver.
//! - A queue whose creation is lost gets a subscription `default`. One of which no event is left, but messages that
//!   were moved into packed segments, is made again too.
//! - Offsets, ids, the places of runs of refs and the incarnation go on above everything that was seen. What was given
//!   before the log begins and does not occur in it is not known, so [`IDS_SKIPPED`] are left out; of places too, as
//!   the runs that are still there must not be taken for later ones.

use std::collections::{BTreeMap, BTreeSet};

use super::delivery::Delivery;
use super::event::{Event, SubscriptionCreated};
use super::misfit::recovered_uid;
use super::runs::OffsetRun;
use super::state::State;
use super::types::SubscriptionConfig;
use crate::ids::{Offset, QueueId, SubscriptionId};
use crate::names::{DEFAULT_SUBSCRIPTION, Name};

/// Ids and incarnations left out above the highest that was seen; more than any server gives.
pub const IDS_SKIPPED: u32 = 1 << 20;

/// Offsets of one queue, as a few ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// First offset to the offset behind the last; disjoint, not adjacent.
    ranges: BTreeMap<Offset, Offset>,
}

impl Ranges {
    /// Adds `first..end`.
    pub fn add(&mut self, mut first: Offset, mut end: Offset) {
        if first >= end {
            return;
        }
        while let Some((start, stop)) = self.ranges.range(..=end).next_back().map(|(a, b)| (*a, *b))
            && stop >= first
        {
            self.ranges.remove(&start);
            (first, end) = (first.min(start), end.max(stop));
        }
        self.ranges.insert(first, end);
    }

    /// The ranges in order: first offset, offset behind the last.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Offset, Offset)> + '_ {
        self.ranges.iter().map(|(first, end)| (*first, *end))
    }

    /// What of `first..end` is not in it, in order.
    pub fn gaps(&self, first: Offset, end: Offset) -> Vec<(Offset, Offset)> {
        let mut gaps = Vec::new();
        let mut at = first;
        for (start, stop) in self.iter().filter(|(_, stop)| *stop > first) {
            if at < start.min(end) {
                gaps.push((at, start.min(end)));
            }
            at = at.max(stop);
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    /// How many offsets it has.
    pub fn count(&self) -> u64 {
        self.iter().map(|(first, end)| end.0 - first.0).sum()
    }
}

/// What was seen while the log was replayed.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The messages that are there.
    pub messages: BTreeMap<QueueId, Ranges>,
    /// Behind the last run of refs that is there.
    pub ends_of_refs: BTreeMap<SubscriptionId, Offset>,
    /// Queues that events speak of: if the state does not know one, it was deleted.
    pub spoken_of: BTreeSet<QueueId>,
    pub last_queue: QueueId,
    pub last_subscription: SubscriptionId,
    pub incarnation: u32,
}

impl Seen {
    /// Takes in a run that is there, of messages or in a store of refs.
    pub fn stored(&mut self, queue: QueueId, first: Offset, count: u32) {
        let end = first.plus(count.into());
        if let Some(subscription) = queue.refs_of() {
            let known = self.ends_of_refs.entry(subscription).or_default();
            *known = end.max(*known);
            self.last_subscription = self.last_subscription.max(subscription);
        } else {
            self.messages.entry(queue).or_default().add(first, end);
            self.last_queue = self.last_queue.max(queue);
        }
    }

    /// Takes in the ids of an event, which is told of a queue or of a store of refs.
    pub fn note(&mut self, queue: QueueId, event: &Event) {
        if queue.refs_of().is_none() {
            self.last_queue = self.last_queue.max(queue);
            self.spoken_of.insert(queue);
        }
        let subscription = match event {
            Event::SubscriptionCreated(created) => created.subscription,
            Event::Leased { subscription, first, .. } => {
                self.incarnation = self.incarnation.max(first.incarnation);
                *subscription
            }
            Event::DeadLettered { subscription, to, .. } => {
                self.last_queue = self.last_queue.max(*to);
                *subscription
            }
            Event::SubscriptionDeleted { subscription, .. }
            | Event::LeaseExtended { subscription, .. }
            | Event::Acked { subscription, .. }
            | Event::Spilled { subscription, .. }
            | Event::Recalled { subscription, .. }
            | Event::Requeued { subscription, .. } => *subscription,
            _ => SubscriptionId(0),
        };
        self.last_subscription = self.last_subscription.max(subscription);
    }
}

/// What became of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    pub queue: QueueId,
    /// Messages that wait.
    pub waiting: u64,
    /// Offsets between them that were not found: first, and behind the last.
    pub absent: Vec<(Offset, Offset)>,
    /// Its creation is lost.
    pub made_again: bool,
    /// It was given the subscription `default`.
    pub subscribed: bool,
}

impl State {
    /// Makes everything that was seen wait again; see the module's header. What became of each queue, in order of id.
    pub fn rebuild(&mut self, seen: &Seen, log_us: u64) -> Vec<Rebuilt> {
        let skipped = u64::from(IDS_SKIPPED);
        let last_queue = seen.last_queue.max(QueueId(self.next_queue_id().0 - 1));
        let last_subscription = seen.last_subscription.max(SubscriptionId(self.next_subscription_id().0 - 1));
        self.use_up_queue_ids(last_queue.plus(skipped).next());
        self.use_up_subscription_ids(last_subscription.plus(skipped).next());
        let incarnation = seen.incarnation.max(self.incarnation()).saturating_add(IDS_SKIPPED);
        self.apply(&Event::Started { incarnation, log_us });
        for queue in seen.messages.keys().filter(|queue| !seen.spoken_of.contains(queue)) {
            if self.queue(*queue).is_none() {
                // Id 0 is no queue's: nothing was ever stored in it.
                let _ = self.make_again(*queue);
            }
        }
        let mut ids: Vec<QueueId> = self.queue_ids().collect();
        ids.sort_unstable();
        let none = Ranges::default();
        let rebuild = |id| self.rebuild_queue(id, seen.messages.get(&id).unwrap_or(&none));
        let rebuilt = ids.into_iter().map(rebuild).collect();
        for (id, end) in &seen.ends_of_refs {
            if self.subscription(*id).is_some() {
                self.use_up_runs(*id, *end);
            }
        }
        self.leave_out_places();
        rebuilt
    }

    /// Leaves out places of runs of refs. Behind damage some may have been given that nothing speaks of any more; if
    /// they were given again, an index file that is older than the damage might lead to the runs of before.
    pub fn leave_out_places(&mut self) {
        for id in self.subscription_ids().collect::<Vec<_>>() {
            let next = self.subscription(id).expect("it was just listed").delivery.spilled().next();
            self.use_up_runs(id, next.plus(IDS_SKIPPED.into()));
        }
    }

    fn rebuild_queue(&mut self, id: QueueId, there: &Ranges) -> Rebuilt {
        let end = there.iter().next_back().map_or(Offset(0), |(_, end)| end);
        self.lose_messages(id, end);
        let queue = self.queue(id).expect("the state has named it");
        let next = queue.next_offset;
        let made_again = queue.uid == recovered_uid(id.0);
        let subscribed = made_again && !queue.subscriptions.contains_key(&default_name());
        if subscribed {
            self.subscribe_by_default(id);
        }
        let first = there.iter().next().map_or(next, |(first, _)| first);
        let absent = there.gaps(first, next);
        let mut delivery = Delivery::starting_at(first);
        let runs = absent.iter().map(|(first, end)| OffsetRun { first: *first, count: end.0 - first.0 });
        delivery.finish(&runs.collect::<Vec<_>>());
        self.deliver_anew(id, first, &delivery);
        Rebuilt { queue: id, waiting: there.count(), absent, made_again, subscribed }
    }

    fn subscribe_by_default(&mut self, queue: QueueId) {
        let subscription = self.next_subscription_id();
        self.apply(&Event::SubscriptionCreated(SubscriptionCreated {
            queue,
            subscription,
            uid: recovered_uid(subscription.0),
            name: default_name(),
            config: SubscriptionConfig::default(),
            start: Offset(0),
            create_time_us: 0,
        }));
    }

    /// Whether some subscription has not finished the message; without any, whether it is retained.
    pub fn waits(&self, queue: QueueId, offset: Offset) -> bool {
        let retained = self.queue(queue).is_some_and(|queue| queue.first_offset <= offset);
        retained && self.first_needed(queue, offset) == offset
    }

    /// The first offset of a queue from `from` on that some subscription has not finished; without subscriptions
    /// that is `from`.
    pub fn first_needed(&self, queue: QueueId, from: Offset) -> Offset {
        let Some(queue) = self.queue(queue) else { return from };
        let subscriptions = queue.subscriptions.values().filter_map(|id| self.subscription(*id));
        subscriptions.map(|one| one.delivery.finished().next_unfinished(from)).min().unwrap_or(from)
    }
}

fn default_name() -> Name {
    Name::new(DEFAULT_SUBSCRIPTION).expect("the default name is a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u64, u64)]) -> Ranges {
        let mut ranges = Ranges::default();
        list.iter().for_each(|(first, end)| ranges.add(Offset(*first), Offset(*end)));
        ranges
    }

    fn plain(list: impl IntoIterator<Item = (Offset, Offset)>) -> Vec<(u64, u64)> {
        list.into_iter().map(|(first, end)| (first.0, end.0)).collect()
    }

    #[test]
    fn ranges_join_in_any_order() {
        let joined = ranges(&[(5, 7), (10, 12), (7, 9), (20, 20), (11, 15), (0, 1), (9, 10)]);
        assert_eq!(plain(joined.iter()), [(0, 1), (5, 15)]);
        assert_eq!(joined.count(), 11);
        assert_eq!(plain(joined.gaps(Offset(0), Offset(17))), [(1, 5), (15, 17)]);
        assert_eq!(plain(joined.gaps(Offset(3), Offset(4))), [(3, 4)]);
        assert_eq!(plain(joined.gaps(Offset(6), Offset(15))), []);
        assert_eq!(plain(Ranges::default().gaps(Offset(2), Offset(4))), [(2, 4)]);
    }
}
