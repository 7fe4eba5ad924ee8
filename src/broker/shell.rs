//! The task: takes calls, the log's word and finished reads in turn, then serves whom they concern.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::{mpsc, oneshot};

use super::ack_id::AckIds;
use super::api::{BrokerError, Reply, Request};
use super::cache::TailCache;
use super::checkpoints::Checkpoints;
use super::commits::{Answer, Commits};
use super::consumers::Consumers;
use super::follow::Follows;
use super::give_up::GivingUp;
use super::needs::Needs;
use super::own::OwnReads;
use super::reads::{Done, Peek, Readers};
use super::recall::Recalls;
use super::timers::{Key, Timers};
use crate::clock::{Clock, Now};
use crate::core::types::Reject;
use crate::core::{Decision, Event, State, admin, event_codec, pause, remove};
use crate::drill;
use crate::host::Host;
use crate::ids::{Offset, QueueId, SubscriptionId, Ticket};
use crate::log::{Log, LogError, LogEvent, Placed, Room};

/// Calls taken in one turn; bounds the time that the runtime's other tasks wait.
const CALLS_PER_TURN: usize = 256;

/// Timers that are looked at in one turn; the others that are due have the next one.
pub(super) const TIMERS_PER_TURN: usize = 64;

/// See [`super`].
pub struct Shell {
    pub(super) host: Arc<dyn Host>,
    pub(super) state: State,
    /// The offset behind the last durable message of each queue that has any.
    pub(super) ends: FxHashMap<QueueId, Offset>,
    pub(super) log: Log,
    pub(super) clock: Clock,
    pub(super) ack_ids: AckIds,
    pub(super) commits: Commits,
    pub(super) cache: TailCache,
    pub(super) consumers: Consumers,
    pub(super) timers: Timers,
    pub(super) giving_up: GivingUp,
    pub(super) checkpoints: Checkpoints,
    /// What the log must keep.
    pub(super) needs: Needs,
    /// How much the log may still write.
    pub(super) room: Room,
    /// Subscriptions that may have something for someone; each once.
    pub(super) dirty: VecDeque<SubscriptionId>,
    pub(super) is_dirty: FxHashSet<SubscriptionId>,
    pub(super) own_reads: OwnReads,
    pub(super) readers: Readers,
    pub(super) reads_done: mpsc::UnboundedSender<Done>,
    pub(super) recalls: Recalls,
    pub(super) follows: Follows,
    pub(super) draining: bool,
    /// Told to those who call after the end.
    pub(super) stop_reason: Arc<OnceLock<String>>,
}

/// What reaches the task.
pub struct Inbox {
    pub calls: mpsc::UnboundedReceiver<Request>,
    pub log_events: mpsc::UnboundedReceiver<LogEvent>,
    pub reads: mpsc::UnboundedReceiver<Done>,
}

impl Shell {
    /// Runs until it is closed, or until the log stops, which is the error.
    pub async fn run(mut self, mut inbox: Inbox) -> Result<(), BrokerError> {
        let mut calls = Vec::with_capacity(CALLS_PER_TURN);
        loop {
            let wake_at = self.wake_at();
            let timer = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = inbox.log_events.recv() => self.log_event(event)?,
                Some(done) = inbox.reads.recv() => self.done(done)?,
                count = inbox.calls.recv_many(&mut calls, CALLS_PER_TURN) => {
                    if count == 0 {
                        return self.close().await;
                    }
                    if let Some(reply) = self.take(calls.drain(..)) {
                        let closed = self.close().await;
                        let _ = reply.send(closed.clone());
                        return closed;
                    }
                }
                () = timer => {}
                () = std::future::ready(()), if self.has_work() => {}
            }
            let now = self.clock.now();
            self.wake(now);
            self.pump(now);
            self.take_turns(now);
            self.commits.flush(&self.log, now.log_us);
            self.begin_checkpoint(now);
            self.go_on_with_checkpoint();
            if self.has_work() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Whether there is something to do in the next turn, whatever comes.
    fn has_work(&self) -> bool {
        !self.dirty.is_empty() || self.checkpoints.has_work()
    }

    /// Takes calls in order, publishes that follow each other together; up to the call that closes the broker, if
    /// there is one.
    fn take(&mut self, calls: impl Iterator<Item = Request>) -> Option<Reply<()>> {
        drill::point("broker");
        let (mut publishes, mut replies) = (Vec::new(), Vec::new());
        for call in calls {
            if let Request::Publish { publish, memory, reply } = call {
                publishes.push(publish);
                replies.push((memory, reply));
                continue;
            }
            self.publish_each(std::mem::take(&mut publishes), std::mem::take(&mut replies));
            match call {
                Request::Close { reply } => return Some(reply),
                call => self.call(call),
            }
        }
        self.publish_each(publishes, replies);
        None
    }

    /// Hands the rest to the log and closes it. Whoever still waits is answered by what the log says.
    async fn close(self) -> Result<(), BrokerError> {
        let Self { host, mut commits, log, clock, .. } = self;
        commits.flush_all(&log, clock.now().log_us);
        let (done, closing) = oneshot::channel();
        host.spawn_blocking(Box::new(move || drop(done.send(log.close()))));
        match closing.await.expect("closing does not panic") {
            Ok(()) => {
                commits.committed(Ticket(u64::MAX));
                Ok(())
            }
            Err(error) => {
                let error = BrokerError::LogStopped { why: error.to_string() };
                commits.stopped(&error);
                Err(error)
            }
        }
    }

    fn call(&mut self, call: Request) {
        let now = self.clock.now();
        match call {
            Request::CreateQueue { name, config, default_subscription, reply } => {
                self.create_queue(name, config, default_subscription, now, reply);
            }
            Request::GetQueue { name, reply } => self.get_queue(&name, reply),
            Request::ListQueues { namespace, after, limit, reply } => {
                self.list_queues(&namespace, after.as_ref(), limit, reply);
            }
            Request::UpdateQueue { name, expected, config, reply } => {
                let decision = admin::update_queue(&self.state, &name, expected, config, now);
                self.enact_and_answer(decision, now, reply, |shell, id| shell.existing_queue(id).view());
            }
            Request::DeleteQueue { name, expected, reply } => self.delete_queue(&name, expected, now, reply),
            Request::CreateSubscription { name, config, start, reply } => {
                self.create_subscription(name, config, start, now, reply);
            }
            Request::GetSubscription { name, reply } => self.get_subscription(&name, now, reply),
            Request::ListSubscriptions { queue, after, limit, reply } => {
                self.list_subscriptions(&queue, after.as_ref(), limit, now, reply);
            }
            Request::UpdateSubscription { name, expected, config, reply } => {
                self.update_subscription(&name, expected, config, now, reply);
            }
            Request::DeleteSubscription { name, expected, reply } => {
                self.delete_subscription(&name, expected, now, reply);
            }
            Request::Pause { target, refuses, reason, reply } => {
                let decision = pause::pause(&self.state, &target, refuses, reason, now);
                self.enact_and_answer(decision, now, reply, |_, pause| pause);
            }
            Request::Resume { target, reply } => self.resume(&target, now, reply),
            Request::Locate { queue, time_us, reply } => self.locate(&queue, time_us, reply),
            Request::PublishAll { publishes, memory, reply } => {
                self.publish_all(publishes, memory, now, reply);
            }
            Request::Pull { consumer, name, options, outlet, reply } => {
                self.pull(consumer, &name, options, outlet, now, reply);
            }
            Request::Subscribe { consumer, name, options, reply } => {
                self.subscribe(consumer, &name, options, reply);
            }
            Request::Credit { consumer, messages, bytes } => self.credit(consumer, messages, bytes),
            Request::Taken { consumer } => self.taken(consumer),
            Request::Leave { consumer } => self.leave(consumer),
            Request::Settle { name, settlements, reply } => self.settle(&name, settlements, now, reply),
            Request::Extend { name, ack_ids, lease_us, reply } => {
                self.extend(&name, &ack_ids, lease_us, now, reply);
            }
            Request::Peek { queue, from, messages_max, bytes_max, memory, reply } => {
                self.peek(&queue, Peek { from, messages_max, bytes_max }, memory, reply);
            }
            Request::Follow { queue, from, reply } => self.follow(&queue, from, reply),
            Request::ReadOn { queue, from, memory, reply } => self.read_on(queue, from, memory, reply),
            Request::Purge { queue, end, reply } => self.purge(&queue, end, now, reply),
            Request::Cancel { queue, queue_uid, offset, reply } => {
                let decision = remove::cancel(&self.state, &queue, queue_uid, offset);
                let queue = self.state.queue_named(&queue).map(|queue| queue.id);
                self.enact_and_answer(decision, now, reply, |_, ()| ());
                queue.into_iter().for_each(|queue| self.schedule_queue(queue));
            }
            Request::QueueStats { queue, reply } => self.queue_stats(&queue, now, reply),
            Request::ServerStats { reply } => self.server_stats(reply),
            Request::Drain { reply } => self.drain(now, reply),
            Request::Publish { .. } | Request::Close { .. } => unreachable!("taken before"),
        }
    }

    pub(super) fn log_event(&mut self, event: Option<LogEvent>) -> Result<(), BrokerError> {
        match event.unwrap_or(LogEvent::Failed(LogError::Panicked)) {
            LogEvent::Committed { through, placed, batches } => {
                for placed in placed {
                    self.visible(placed);
                }
                self.commits.committed(through);
                drop(batches);
                Ok(())
            }
            LogEvent::SegmentBegun => {
                self.checkpoints.due = true;
                Ok(())
            }
            LogEvent::Room(room) => {
                self.room_changed(room, self.clock.now());
                Ok(())
            }
            LogEvent::Marked(mark) => {
                self.marked(mark);
                Ok(())
            }
            LogEvent::CheckpointEnded(end) => {
                self.checkpoint_ended(end);
                Ok(())
            }
            LogEvent::Failed(error) => Err(self.stop(&error)),
        }
    }

    /// Tells everybody why the broker ends.
    pub(super) fn stop(&mut self, error: &LogError) -> BrokerError {
        let stopped = BrokerError::LogStopped { why: error.to_string() };
        tracing::error!(%error, "the log has stopped; nothing more is accepted");
        let _ = self.stop_reason.set(error.to_string());
        self.commits.stopped(&stopped);
        stopped
    }

    /// Messages are durable: consumers may have them.
    fn visible(&mut self, placed: Placed) {
        if let Some(subscription) = placed.queue.refs_of() {
            return self.run_visible(subscription, placed);
        }
        let Some(queue) = self.state.queue(placed.queue) else { return };
        let end = placed.first_offset.plus(placed.count.into());
        self.ends.insert(placed.queue, end);
        self.follows.advance(placed.queue, end);
        for subscription in queue.subscriptions.values() {
            if self.consumers.has_waiting(*subscription) && self.is_dirty.insert(*subscription) {
                self.dirty.push_back(*subscription);
            }
        }
    }

    /// The offset behind the queue's last durable message.
    pub(super) fn end(&self, queue: QueueId) -> Offset {
        self.ends.get(&queue).copied().unwrap_or_default()
    }

    /// Looks at the subscription in the next round.
    pub(super) fn mark(&mut self, subscription: SubscriptionId) {
        if self.consumers.has_waiting(subscription) && self.is_dirty.insert(subscription) {
            self.dirty.push_back(subscription);
        }
    }

    /// Changes the state by what has happened; a checkpoint that is being made keeps what was before.
    pub(super) fn apply(&mut self, event: &Event) {
        self.checkpoints.keep(&self.state, event);
        self.state.apply(event);
    }

    /// Makes decided events true, and adds their records to the next commit.
    pub(super) fn enact(&mut self, events: &[Event], now: Now) {
        if events.is_empty() {
            return;
        }
        self.checkpoints.count(events);
        events.iter().for_each(|event| self.apply(event));
        let records = events.iter().map(event_codec::encode).collect();
        self.commits.add(records, &self.log, now.log_us);
    }

    /// The same for events that no answer waits for.
    pub(super) fn enact_lazily(&mut self, events: &[Event], now: Now) {
        self.checkpoints.count(events);
        for event in events {
            self.apply(event);
            self.commits.add_lazily(event_codec::encode(event), &self.log, now.log_us);
        }
    }

    /// Enacts a decision and answers it, or its refusal, when the disk has it.
    pub(super) fn enact_and_answer<A, T: Send + 'static>(
        &mut self,
        decision: Result<Decision<A>, Reject>,
        now: Now,
        reply: Reply<T>,
        view: impl FnOnce(&mut Self, A) -> T,
    ) {
        let result = decision.map_err(BrokerError::Rejected).and_then(|decision| {
            if !decision.events.is_empty() {
                self.check_room()?;
            }
            self.enact(&decision.events, now);
            Ok(view(self, decision.answer))
        });
        self.commits.answer(Answer::new(reply, result));
    }

    /// Sees to it that memory has not too many of the subscription's delays, and that it is looked at when the next
    /// of them or a lease ends.
    pub(super) fn schedule(&mut self, id: SubscriptionId) {
        let now = self.clock.now();
        self.spill(id, now);
        let in_memory = self.state.subscription(id).and_then(|s| s.delivery.next_due_us());
        let spilled = self.recall_due_us(id, now);
        if let Some(due_us) = in_memory.into_iter().chain(spilled).min() {
            self.timers.set(Key::Subscription(id), due_us);
        }
    }

    /// The same for the subscriptions of a queue.
    pub(super) fn schedule_queue(&mut self, queue: QueueId) {
        let subscriptions = self.state.queue(queue).map(|queue| queue.subscriptions.values());
        let ids: Vec<SubscriptionId> = subscriptions.into_iter().flatten().copied().collect();
        ids.into_iter().for_each(|id| self.schedule(id));
    }

    /// The same for every subscription.
    pub(super) fn schedule_all(&mut self) {
        let ids: Vec<SubscriptionId> = self.state.subscription_ids().collect();
        ids.into_iter().for_each(|id| self.schedule(id));
    }

    fn wake_at(&self) -> Option<Instant> {
        let due = self.timers.next_us().into_iter().chain(self.commits.lazy_due_us()).min();
        due.map(|log_us| self.clock.instant_of(log_us))
    }

    pub(super) fn wake(&mut self, now: Now) {
        for _ in 0..TIMERS_PER_TURN {
            let Some(key) = self.timers.pop(now.log_us) else { return };
            match key {
                Key::Subscription(id) => self.come_due(id, now),
                Key::Checkpoint => self.checkpoints.due = true,
                Key::Pull(consumer) => self.pull_ends(consumer),
            }
        }
    }

    fn drain(&mut self, now: Now, reply: Reply<()>) {
        self.draining = true;
        for consumer in self.consumers.pulls() {
            self.pull_ends(consumer);
        }
        self.commits.flush_all(&self.log, now.log_us);
        // Nobody may give any before the end.
        self.log.wait_no_more();
        self.commits.answer(Answer::new(reply, Ok(())));
    }
}
