//! Calls about queues, subscriptions and figures.

use super::api::{BrokerError, Reply, ServerStats};
use super::commits::Answer;
use super::shell::Shell;
use super::timers::Key;
use crate::clock::Now;
use crate::core::state::{Queue, Subscription};
use crate::core::types::*;
use crate::core::{admin, pause, remove};
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::names::{Name, QueueName, SubscriptionName};

impl Shell {
    pub(super) fn create_queue(
        &mut self,
        name: QueueName,
        config: QueueConfig,
        default_subscription: bool,
        now: Now,
        reply: Reply<QueueView>,
    ) {
        let uid = || Uid(self.host.random());
        let default_subscription = default_subscription.then(uid);
        let decision = admin::create_queue(&self.state, name, config, uid(), default_subscription, now);
        self.enact_and_answer(decision, now, reply, |shell, id| shell.existing_queue(id).view());
    }

    pub(super) fn get_queue(&mut self, name: &QueueName, reply: Reply<QueueView>) {
        let result = self.state.queue_named(name).map(Queue::view);
        self.commits.answer(Answer::new(reply, result.map_err(Into::into)));
    }

    pub(super) fn list_queues(
        &mut self,
        namespace: &Name,
        after: Option<&Name>,
        limit: usize,
        reply: Reply<Vec<QueueView>>,
    ) {
        let queues = self.state.queues_after(namespace, after).take(limit).map(Queue::view).collect();
        self.commits.answer(Answer::new(reply, Ok(queues)));
    }

    pub(super) fn delete_queue(
        &mut self,
        name: &QueueName,
        expected: Option<Version>,
        now: Now,
        reply: Reply<()>,
    ) {
        let decision = admin::delete_queue(&self.state, name, expected);
        let subscriptions: Vec<SubscriptionId> = match &decision {
            Ok(decision) => self.existing_queue(decision.answer).subscriptions.values().copied().collect(),
            Err(_) => Vec::new(),
        };
        self.enact_and_answer(decision, now, reply, |shell, id| {
            shell.ends.remove(&id);
            shell.follows.forget(id);
            shell.cache.forget(id);
            subscriptions.into_iter().for_each(|id| shell.end_consumers(id));
        });
    }

    pub(super) fn create_subscription(
        &mut self,
        name: SubscriptionName,
        config: SubscriptionConfig,
        start: Start,
        now: Now,
        reply: Reply<SubscriptionView>,
    ) {
        let uid = Uid(self.host.random());
        let decision = admin::create_subscription(&self.state, name, config, start, uid, now);
        let reply = self.aged(reply, now, view_stats);
        self.enact_and_answer(decision, now, reply, |shell, id| {
            let subscription = shell.state.subscription(id).expect("it was just created");
            (subscription.queue, shell.subscription_view(subscription))
        });
    }

    pub(super) fn get_subscription(
        &mut self,
        name: &SubscriptionName,
        now: Now,
        reply: Reply<SubscriptionView>,
    ) {
        let reply = self.aged(reply, now, view_stats);
        let result = self.state.subscription_named(name).map(|s| (s.queue, self.subscription_view(s)));
        self.commits.answer(Answer::new(reply, result.map_err(Into::into)));
    }

    pub(super) fn list_subscriptions(
        &mut self,
        queue: &QueueName,
        after: Option<&Name>,
        limit: usize,
        now: Now,
        reply: Reply<Vec<SubscriptionView>>,
    ) {
        let reply = self.aged(reply, now, |views: &mut Vec<SubscriptionView>| {
            views.iter_mut().map(|view| &mut view.stats).collect()
        });
        let result = self.state.queue_named(queue).map(|queue| {
            let later =
                queue.subscriptions.iter().filter(|(name, _)| after.is_none_or(|after| *name > after));
            let subscriptions = later.filter_map(|(_, id)| self.state.subscription(*id));
            (queue.id, subscriptions.take(limit).map(|s| self.subscription_view(s)).collect())
        });
        self.commits.answer(Answer::new(reply, result.map_err(Into::into)));
    }

    pub(super) fn update_subscription(
        &mut self,
        name: &SubscriptionName,
        expected: Option<Version>,
        config: SubscriptionConfig,
        now: Now,
        reply: Reply<SubscriptionView>,
    ) {
        let decision = admin::update_subscription(&self.state, name, expected, config, now);
        let reply = self.aged(reply, now, view_stats);
        self.enact_and_answer(decision, now, reply, |shell, id| {
            // It may have more in flight now.
            shell.mark(id);
            let subscription = shell.state.subscription(id).expect("it was just updated");
            (subscription.queue, shell.subscription_view(subscription))
        });
    }

    pub(super) fn delete_subscription(
        &mut self,
        name: &SubscriptionName,
        expected: Option<Version>,
        now: Now,
        reply: Reply<()>,
    ) {
        let decision = admin::delete_subscription(&self.state, name, expected);
        self.enact_and_answer(decision, now, reply, |shell, id| shell.end_consumers(id));
    }

    pub(super) fn resume(&mut self, target: &pause::Target, now: Now, reply: Reply<u64>) {
        let decision = pause::resume(&self.state, target);
        self.enact_and_answer(decision, now, reply, |_, held| held);
        for id in self.subscriptions_of(&target.queue) {
            self.mark(id);
        }
    }

    pub(super) fn purge(&mut self, name: &QueueName, end: Option<Offset>, now: Now, reply: Reply<Offset>) {
        let decision = remove::purge(&self.state, name, end);
        let subscriptions = self.subscriptions_of(name);
        self.enact_and_answer(decision, now, reply, |_, barrier| barrier);
        // Leases that became void leave room for what comes after the barrier.
        for id in subscriptions {
            self.mark(id);
            self.schedule(id);
        }
    }

    pub(super) fn queue_stats(&mut self, name: &QueueName, now: Now, reply: Reply<QueueStats>) {
        let reply = self.aged(reply, now, |stats: &mut QueueStats| {
            stats.subscriptions.iter_mut().map(|(_, stats)| stats).collect()
        });
        let result = self.state.queue_named(name).map(|queue| {
            let subscriptions = queue.subscriptions.values().filter_map(|id| self.state.subscription(*id));
            let subscriptions: Vec<_> = subscriptions.map(|s| (s.full_name(queue), s.stats(queue))).collect();
            let stats = QueueStats {
                name: queue.name.clone(),
                next_offset: queue.next_offset,
                waiting_messages: self.state.waiting_in(queue),
                published_messages: queue.next_offset.0,
                published_bytes: queue.published_bytes,
                subscriptions,
            };
            (queue.id, stats)
        });
        self.commits.answer(Answer::new(reply, result.map_err(Into::into)));
    }

    pub(super) fn server_stats(&mut self, reply: Reply<ServerStats>) {
        let log = self.log.counters();
        let stats = ServerStats {
            queues: self.state.queue_count() as u64,
            subscriptions: self.state.subscription_count() as u64,
            producers: self.state.producer_count() as u64,
            consumers: self.consumers.len() as u64,
            log_bytes: log.segment_bytes.get(),
            segments: log.segments.get(),
            packed_segments: log.packed_segments.get(),
            packed_bytes: log.packed_bytes.get(),
            live_bytes: log.live_bytes.get(),
            dead_bytes: log.dead_bytes.get(),
            reserve_bytes: log.reserve_bytes.get(),
            segments_rewritten: log.segments_rewritten.get(),
            segments_merged: log.segments_merged.get(),
            segments_unreadable: log.segments_unreadable.get(),
            bytes_appended: log.bytes_appended.get(),
            bytes_written: log.traffic.bytes_written(),
            segments_dropped: log.segments_dropped.get(),
            segments_created: log.segments_created.get(),
            segments_recycled: log.segments_recycled.get(),
            checkpoints: log.checkpoints.get(),
            checkpoint_bases: log.checkpoint_bases.get(),
            checkpoint_bytes: log.checkpoint_bytes.get(),
            disk_full: self.check_room_to_grow().is_err(),
            commits: log.frames.get(),
            syncs: log.syncs.get(),
            records: log.records.get(),
            index_rebuilds: log.index_rebuilds.get(),
            damage: log.damage.get(),
            delays_lost: self.recalls.delays_lost,
        };
        self.commits.answer(Answer::new(reply, Ok(stats)));
    }

    fn subscriptions_of(&self, name: &QueueName) -> Vec<SubscriptionId> {
        let queue = self.state.queue_named(name);
        queue.map_or_else(|_| Vec::new(), |queue| queue.subscriptions.values().copied().collect())
    }

    pub(super) fn existing_queue(&self, id: QueueId) -> &Queue {
        self.state.queue(id).expect("it was just decided on")
    }

    fn subscription_view(&self, subscription: &Subscription) -> SubscriptionView {
        let queue = self.existing_queue(subscription.queue);
        subscription.view(queue, subscription.stats(queue))
    }

    /// Ends the streams and pulls of a subscription that is gone.
    fn end_consumers(&mut self, id: SubscriptionId) {
        self.timers.remove(Key::Subscription(id));
        self.forget_runs(id);
        for consumer in self.consumers.remove_all(id) {
            self.end_consumer(consumer, BrokerError::SubscriptionDeleted);
        }
    }
}

fn view_stats(view: &mut SubscriptionView) -> Vec<&mut SubscriptionStats> {
    vec![&mut view.stats]
}
