//! The state of one shard and how events change it.
//!
//! `apply` is the only writer. It reads no clock, randomness, file or socket: replaying the log gives the same state
//! (iteration over hash maps never decides anything).

use std::collections::BTreeMap;

use super::delivery::Delivery;
use super::directory::Directory;
use super::event::{Event, PublishedRun, QueueCreated, SubscriptionCreated};
use super::producers::Producers;
use super::runs::OffsetRun;
use super::tracked::Tracked;
use super::types::{Pause, ProducerStamp, QueueConfig, Reject, SubscriptionConfig};
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::limits::PRODUCER_IDLE_US;
use crate::names::{Name, QueueName, SubscriptionName};

/// How long leases last at least after a restart, microseconds.
const RESTART_GRACE_US: u64 = 1_000_000;

/// Queues, subscriptions and their delivery.
#[derive(Clone, Debug, Default)]
pub struct State {
    held: Tracked,
    names: Directory,
    counters: Counters,
    producers: usize,
}

/// What a shard counts, besides what its queues tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub last_queue: QueueId,
    pub last_subscription: SubscriptionId,
    /// The number of the last lease; numbers are not reused while the server runs.
    pub last_lease: u64,
    pub incarnation: u32,
    /// When idle producers were last looked for, on the log's clock, microseconds.
    pub producers_expired_us: u64,
}

/// One queue.
#[derive(Clone, Debug)]
pub struct Queue {
    pub id: QueueId,
    pub uid: Uid,
    pub name: QueueName,
    pub config: QueueConfig,
    pub create_time_us: u64,
    /// Of the last change of its configuration.
    pub update_time_us: u64,
    /// Counts the changes of its configuration.
    pub revision: u64,
    pub pause: Option<Pause>,
    /// It holds dead letters and has none of its own.
    pub dead_letters: bool,
    /// Below it every message is finished by all subscriptions. Never decreases.
    pub first_offset: Offset,
    /// Below it every message was purged, whether it was finished before or not. Never decreases.
    pub purge_end: Offset,
    pub next_offset: Offset,
    pub last_publish_us: u64,
    pub published_bytes: u64,
    pub subscriptions: BTreeMap<Name, SubscriptionId>,
    pub producers: Producers,
}

/// One subscription.
#[derive(Clone, Debug)]
pub struct Subscription {
    pub id: SubscriptionId,
    pub queue: QueueId,
    pub uid: Uid,
    pub name: Name,
    pub config: SubscriptionConfig,
    pub create_time_us: u64,
    /// Of the last change of its configuration.
    pub update_time_us: u64,
    /// Counts the changes of its configuration.
    pub revision: u64,
    /// Its own; its queue may be paused besides.
    pub pause: Option<Pause>,
    pub delivery: Delivery,
}

impl State {
    /// A state of these parts, none of them changed; subscriptions are listed in their queues already. What follows from
    /// them is made anew.
    pub(super) fn restored(counters: Counters, queues: Vec<Queue>, subscriptions: Vec<Subscription>) -> Self {
        Self {
            names: queues.iter().map(|queue| (queue.name.clone(), queue.id)).collect(),
            producers: queues.iter().map(|queue| queue.producers.len()).sum(),
            held: Tracked::unchanged(queues, subscriptions),
            counters,
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    pub fn queue(&self, id: QueueId) -> Option<&Queue> {
        self.held.queue(id)
    }

    pub fn queue_named(&self, name: &QueueName) -> Result<&Queue, Reject> {
        let id = self.names.get(name).ok_or_else(|| Reject::QueueNotFound(name.clone()))?;
        Ok(self.listed(id))
    }

    /// Queues of a namespace in order of name, those after `after`.
    pub fn queues_after<'a>(
        &'a self,
        namespace: &'a Name,
        after: Option<&Name>,
    ) -> impl Iterator<Item = &'a Queue> + use<'a> {
        self.names.after(namespace, after).map(|id| self.listed(id))
    }

    pub fn subscription(&self, id: SubscriptionId) -> Option<&Subscription> {
        self.held.subscription(id)
    }

    pub fn subscription_named(&self, name: &SubscriptionName) -> Result<&Subscription, Reject> {
        let queue = self.queue_named(&name.queue)?;
        let id = queue.subscriptions.get(&name.subscription);
        let id = id.ok_or_else(|| Reject::SubscriptionNotFound(name.clone()))?;
        Ok(self.subscription(*id).expect("a queue's subscription exists"))
    }

    /// Whether nothing is delivered on a subscription: it is paused, or its queue is.
    pub fn is_paused(&self, subscription: &Subscription) -> bool {
        let queue = self.queue(subscription.queue);
        subscription.pause.is_some() || queue.is_some_and(|queue| queue.pause.is_some())
    }

    pub fn subscription_ids(&self) -> impl Iterator<Item = SubscriptionId> {
        self.held.subscription_ids()
    }

    pub fn queue_ids(&self) -> impl Iterator<Item = QueueId> {
        self.held.queue_ids()
    }

    /// The queues that have changed since the last call, or since they were restored, in order; deleted ones too. A
    /// subscription is part of its queue.
    pub fn take_changed(&mut self) -> Vec<QueueId> {
        self.held.take_changed()
    }

    /// Counts queues as changed.
    pub fn mark_changed(&mut self, queues: impl IntoIterator<Item = QueueId>) {
        self.held.mark(queues);
    }

    /// Counts every queue as changed.
    pub fn mark_all_changed(&mut self) {
        let all: Vec<QueueId> = self.queue_ids().collect();
        self.held.mark(all);
    }

    /// Messages of a queue that wait: the largest backlog of its subscriptions, or all retained ones without any.
    pub fn waiting_in(&self, queue: &Queue) -> u64 {
        let subscriptions = queue.subscriptions.values().filter_map(|id| self.subscription(*id));
        let backlogs = subscriptions.map(|one| one.delivery.backlog(queue.next_offset));
        backlogs.max().unwrap_or(queue.next_offset.0 - queue.first_offset.0)
    }

    pub fn next_queue_id(&self) -> QueueId {
        self.counters.last_queue.next()
    }

    pub fn next_subscription_id(&self) -> SubscriptionId {
        self.counters.last_subscription.next()
    }

    pub fn last_lease(&self) -> u64 {
        self.counters.last_lease
    }

    pub fn incarnation(&self) -> u32 {
        self.counters.incarnation
    }

    pub fn queue_count(&self) -> usize {
        self.held.queue_ids().len()
    }

    pub fn subscription_count(&self) -> usize {
        self.held.subscription_ids().len()
    }

    pub fn producer_count(&self) -> usize {
        self.producers
    }

    /// Takes leases that ended by `log_us` out of the deadline list. What it gives must be requeued by an event.
    pub fn take_expired(&mut self, id: SubscriptionId, log_us: u64) -> Vec<Offset> {
        self.held.take_expired(id, log_us)
    }

    /// Changes the state by what has happened.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::QueueCreated(created) => self.queue_created(created),
            Event::QueueDeleted { queue } => self.queue_deleted(*queue),
            Event::SubscriptionCreated(created) => self.subscription_created(created),
            Event::SubscriptionDeleted { queue, subscription } => {
                self.subscription_deleted(*queue, *subscription);
            }
            Event::Published(run) => self.published(run),
            Event::Leased { subscription, runs, first, deadline_us, .. } => {
                let leased: u64 = runs.iter().map(|run| run.count).sum();
                self.counters.last_lease = self.counters.last_lease.max(first.number + leased - 1);
                self.delivery(*subscription).lease(runs, *first, *deadline_us);
            }
            Event::LeaseExtended { subscription, runs, deadline_us, .. } => {
                self.delivery(*subscription).extend(runs, *deadline_us);
            }
            Event::Acked { queue, subscription, runs } => self.finished(*queue, *subscription, runs),
            Event::Requeued { subscription, runs, due_us, counted, .. } => {
                self.delivery(*subscription).requeue(runs, *due_us, *counted);
            }
            Event::DeadLettered { queue, subscription, offset, .. } => {
                self.finished(*queue, *subscription, &[OffsetRun { first: *offset, count: 1 }]);
            }
            Event::Purged { queue, end } => self.purged(*queue, *end),
            Event::OffsetsSkipped { queue, end } => self.skip_offsets(*queue, *end),
            Event::Cancelled { queue, offset } => {
                let runs = [OffsetRun { first: *offset, count: 1 }];
                let subscriptions: Vec<_> = self.listed(*queue).subscriptions.values().copied().collect();
                subscriptions.into_iter().for_each(|id| self.finished(*queue, id, &runs));
            }
            Event::Spilled { subscription, place, refs, .. } => {
                self.delivery(*subscription).spill(*place, refs)
            }
            Event::Recalled { subscription, place, rest, refs, .. } => {
                self.delivery(*subscription).recall(*place, *rest, refs);
            }
            Event::QueueUpdated { queue, config, update_time_us } => {
                let queue = self.existing_queue(*queue);
                queue.config = config.clone();
                queue.update_time_us = *update_time_us;
                queue.revision += 1;
            }
            Event::SubscriptionUpdated { subscription, config, update_time_us, .. } => {
                let subscription = self.existing(*subscription);
                subscription.config = config.clone();
                subscription.update_time_us = *update_time_us;
                subscription.revision += 1;
            }
            Event::Paused { queue, subscription, pause } => {
                *self.pause_of(*queue, *subscription) = Some(pause.clone());
            }
            Event::Resumed { queue, subscription } => *self.pause_of(*queue, *subscription) = None,
            Event::Started { incarnation, log_us } => self.started(*incarnation, *log_us),
        }
    }

    /// The only queue that an event changes when it is applied; none if it may change any of them.
    pub fn changes(&self, event: &Event) -> Option<QueueId> {
        match event {
            Event::Published(PublishedRun { request: Some(request), .. })
                if self.looks_for_idle_producers(request.log_us) =>
            {
                None
            }
            event => event.queue(),
        }
    }

    fn queue_created(&mut self, created: &QueueCreated) {
        assert_eq!(created.queue, self.next_queue_id(), "queue ids are dense");
        self.counters.last_queue = created.queue;
        self.add_queue(created);
    }

    fn add_queue(&mut self, created: &QueueCreated) {
        self.names.insert(created.name.clone(), created.queue);
        let queue = Queue {
            id: created.queue,
            uid: created.uid,
            name: created.name.clone(),
            config: created.config.clone(),
            create_time_us: created.create_time_us,
            update_time_us: created.create_time_us,
            revision: 0,
            pause: None,
            dead_letters: created.dead_letters,
            first_offset: Offset(0),
            purge_end: Offset(0),
            next_offset: Offset(0),
            last_publish_us: 0,
            published_bytes: 0,
            subscriptions: BTreeMap::new(),
            producers: Producers::default(),
        };
        self.held.add_queue(queue);
    }

    fn queue_deleted(&mut self, id: QueueId) {
        let queue = self.held.remove_queue(id).expect("only a queue that exists is deleted");
        self.names.remove(&queue.name);
        self.producers -= queue.producers.len();
    }

    fn subscription_created(&mut self, created: &SubscriptionCreated) {
        assert_eq!(created.subscription, self.next_subscription_id(), "subscription ids are dense");
        self.counters.last_subscription = created.subscription;
        let queue = self.existing_queue(created.queue);
        queue.subscriptions.insert(created.name.clone(), created.subscription);
        let subscription = Subscription {
            id: created.subscription,
            queue: created.queue,
            uid: created.uid,
            name: created.name.clone(),
            config: created.config.clone(),
            create_time_us: created.create_time_us,
            update_time_us: created.create_time_us,
            revision: 0,
            pause: None,
            delivery: Delivery::starting_at(created.start),
        };
        self.held.add_subscription(subscription);
        self.advance_first_offset(created.queue);
    }

    fn subscription_deleted(&mut self, queue: QueueId, id: SubscriptionId) {
        let subscription =
            self.held.remove_subscription(id).expect("only a subscription that exists is deleted");
        let owner = self.existing_queue(queue);
        owner.subscriptions.remove(&subscription.name);
        self.advance_first_offset(queue);
    }

    fn published(&mut self, run: &PublishedRun) {
        let queue = self.existing_queue(run.queue);
        assert_eq!(run.first, queue.next_offset, "offsets are dense");
        queue.next_offset = run.first.plus(run.count.into());
        queue.last_publish_us = run.publish_time_us;
        queue.published_bytes += run.bytes;
        let Some(request) = &run.request else { return };
        let known = queue.producers.len();
        queue.producers.stored(request, run);
        self.producers += queue.producers.len() - known;
        self.expire_producers(request.log_us);
    }

    /// Looks for idle producers a few times in their lifetime, by the log's clock alone.
    fn expire_producers(&mut self, log_us: u64) {
        if !self.looks_for_idle_producers(log_us) {
            return;
        }
        self.counters.producers_expired_us = log_us;
        let mut expired = 0;
        self.held.change_queues(|queue| {
            let of_queue = queue.producers.expire(log_us);
            expired += of_queue;
            of_queue > 0
        });
        self.producers -= expired;
    }

    fn looks_for_idle_producers(&self, log_us: u64) -> bool {
        log_us >= self.counters.producers_expired_us + PRODUCER_IDLE_US / 4
    }

    fn finished(&mut self, queue: QueueId, subscription: SubscriptionId, runs: &[OffsetRun]) {
        let delivery = self.delivery(subscription);
        let floor = delivery.floor();
        delivery.finish(runs);
        if delivery.floor() != floor && self.listed(queue).first_offset == floor {
            self.advance_first_offset(queue);
        }
    }

    fn purged(&mut self, id: QueueId, end: Offset) {
        let queue = self.existing_queue(id);
        queue.first_offset = queue.first_offset.max(end);
        queue.purge_end = queue.purge_end.max(end);
        let subscriptions: Vec<_> = queue.subscriptions.values().copied().collect();
        subscriptions.into_iter().for_each(|one| self.delivery(one).finish_below(end));
        self.advance_first_offset(id);
    }

    fn skip_offsets(&mut self, id: QueueId, end: Offset) {
        let first = self.listed(id).next_offset;
        self.lose_messages(id, end);
        let skipped = [OffsetRun { first, count: end.0.saturating_sub(first.0) }];
        let subscriptions: Vec<_> = self.listed(id).subscriptions.values().copied().collect();
        subscriptions.into_iter().for_each(|one| self.finished(id, one, &skipped));
    }

    /// The lowest floor of the queue's subscriptions; without any, retention alone keeps messages.
    fn advance_first_offset(&mut self, id: QueueId) {
        let subscriptions = self.listed(id).subscriptions.values();
        let floors = subscriptions.filter_map(|id| self.subscription(*id)).map(|one| one.delivery.floor());
        let Some(lowest) = floors.min() else { return };
        let queue = self.existing_queue(id);
        queue.first_offset = queue.first_offset.max(lowest);
    }

    fn started(&mut self, incarnation: u32, log_us: u64) {
        self.counters.incarnation = incarnation;
        self.held.change_subscriptions(|one| one.delivery.grace(log_us + RESTART_GRACE_US));
    }

    /// Adds a queue that was made before; false if another has its name.
    pub(super) fn recover_queue(&mut self, created: QueueCreated) -> bool {
        let free = self.names.get(&created.name).is_none();
        if free {
            self.counters.last_queue = self.counters.last_queue.max(created.queue);
            self.add_queue(&created);
        }
        free
    }

    /// The ids before this one were given.
    pub(super) fn use_up_queue_ids(&mut self, next: QueueId) {
        self.counters.last_queue = QueueId(next.0 - 1);
    }

    /// The ids before this one were given.
    pub(super) fn use_up_subscription_ids(&mut self, next: SubscriptionId) {
        self.counters.last_subscription = SubscriptionId(next.0 - 1);
    }

    /// The runs of refs before this one were written.
    pub(super) fn use_up_runs(&mut self, subscription: SubscriptionId, next: Offset) {
        self.delivery(subscription).use_up_runs(next);
    }

    /// The messages of a queue before `end` were published.
    pub(super) fn lose_messages(&mut self, queue: QueueId, end: Offset) {
        let queue = self.existing_queue(queue);
        queue.next_offset = queue.next_offset.max(end);
    }

    /// Gives every subscription of a queue this delivery, and the queue this first offset.
    pub(super) fn deliver_anew(&mut self, queue: QueueId, first: Offset, delivery: &Delivery) {
        let queue = self.existing_queue(queue);
        queue.first_offset = first;
        let subscriptions: Vec<_> = queue.subscriptions.values().copied().collect();
        subscriptions.into_iter().for_each(|one| *self.delivery(one) = delivery.clone());
    }

    /// The requests of a producer before this one were stored.
    pub(super) fn go_on_at(&mut self, queue: QueueId, stamp: &ProducerStamp) {
        let queue = self.existing_queue(queue);
        let known = queue.producers.len();
        queue.producers.go_on_at(stamp);
        self.producers += queue.producers.len() - known;
    }

    /// A queue that something leads to.
    fn listed(&self, id: QueueId) -> &Queue {
        self.queue(id).expect("what leads to a queue goes with it")
    }

    fn existing_queue(&mut self, id: QueueId) -> &mut Queue {
        self.held.queue_mut(id).expect("an event's queue exists")
    }

    fn existing(&mut self, id: SubscriptionId) -> &mut Subscription {
        self.held.subscription_mut(id).expect("an event's subscription exists")
    }

    fn delivery(&mut self, id: SubscriptionId) -> &mut Delivery {
        &mut self.existing(id).delivery
    }

    fn pause_of(&mut self, queue: QueueId, subscription: Option<SubscriptionId>) -> &mut Option<Pause> {
        match subscription {
            Some(id) => &mut self.existing(id).pause,
            None => &mut self.existing_queue(queue).pause,
        }
    }
}
