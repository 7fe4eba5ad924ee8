//! From waiting messages to consumers.
//!
//! A round serves each subscription that may have something: choose as many messages as are likely to fit, lease
//! them, then deliver from the cache at once, or after a read. What a read leaves out goes back without having
//! counted.

use super::api::{BrokerError, ConsumerId, Delivery, PullOptions, Reply, StoredMessage, SubscribeOptions};
use super::commits::Answer;
use super::consumers::{Consumer, ConsumerKind, Stream};
use super::reads::{self, Done, Found, Peek, Purpose, READ_BYTES_MAX, ReadDone, Source, Wanted};
use super::shell::Shell;
use super::timers::Key;
use crate::clock::Now;
use crate::core::consume::{self, Handed};
use crate::core::settle::AckToken;
use crate::core::types::Reject;
use crate::ids::{Offset, QueueId, SubscriptionId};
use crate::names::{QueueName, SubscriptionName};

/// Deliveries of one round; bounds the time that the runtime's other tasks wait.
const DELIVERIES_PER_ROUND: usize = 32;
/// How long a pull waits at least if only the room for reads is short, microseconds.
const STARVED_WAIT_US: u64 = 1_000_000;
/// How long a damaged message is set aside before it is tried again, microseconds.
pub(super) const DAMAGED_RETRY_US: u64 = 60_000_000;

impl Shell {
    pub(super) fn pull(
        &mut self,
        consumer: ConsumerId,
        name: &SubscriptionName,
        options: PullOptions,
        now: Now,
        reply: Reply<Vec<Delivery>>,
    ) {
        let (id, lease_us) = match self.consumable(name) {
            Ok(subscription) => subscription,
            Err(error) => return self.commits.answer(Answer::new(reply, Err(error))),
        };
        let lease_us = options.lease_us.unwrap_or(lease_us);
        let kind = ConsumerKind::Pull { options, reply };
        let pull = Consumer { subscription: id, lease_us, reading: false, in_line: false, kind };
        self.consumers.add(consumer, pull);
        self.mark(id);
        self.serve_all(id, now);
        self.recall(id, now);
        let mut wait_us = u64::try_from(options.wait.as_micros()).unwrap_or(u64::MAX / 2);
        if self.starved.contains(&id) || self.recalls.is_under_way(id) {
            // Messages are there: "none" would be wrong.
            wait_us = wait_us.max(STARVED_WAIT_US);
        }
        if wait_us == 0 {
            self.pull_ends(consumer);
        } else {
            self.timers.set(Key::Pull(consumer), now.log_us + wait_us);
        }
    }

    pub(super) fn subscribe(
        &mut self,
        consumer: ConsumerId,
        name: &SubscriptionName,
        options: SubscribeOptions,
        reply: Reply<()>,
    ) {
        let added = self.consumable(name).map(|(id, lease_us)| {
            let stream = Stream { messages: 0, bytes: 0, untaken: 0, sink: options.sink };
            let stream = Consumer {
                subscription: id,
                lease_us: options.lease_us.unwrap_or(lease_us),
                reading: false,
                in_line: false,
                kind: ConsumerKind::Stream(stream),
            };
            self.consumers.add(consumer, stream);
        });
        self.commits.answer(Answer::new(reply, added));
    }

    fn consumable(&self, name: &SubscriptionName) -> Result<(SubscriptionId, u64), BrokerError> {
        if self.draining {
            return Err(BrokerError::Draining);
        }
        let subscription = self.state.subscription_named(name)?;
        Ok((subscription.id, subscription.config.lease_us))
    }

    pub(super) fn credit(&mut self, id: ConsumerId, messages: u64, bytes: u64) {
        self.change_stream(id, |stream| {
            stream.messages = stream.messages.saturating_add(messages);
            stream.bytes = stream.bytes.saturating_add_unsigned(bytes);
        });
    }

    pub(super) fn taken(&mut self, id: ConsumerId) {
        self.change_stream(id, |stream| stream.untaken = stream.untaken.saturating_sub(1));
    }

    fn change_stream(&mut self, id: ConsumerId, change: impl FnOnce(&mut Stream)) {
        let Some(consumer) = self.consumers.get_mut(id) else { return };
        if let ConsumerKind::Stream(stream) = &mut consumer.kind {
            change(stream);
        }
        let subscription = consumer.subscription;
        self.consumers.line_up(id);
        self.mark(subscription);
    }

    /// A consumer has gone. Its leases live on.
    pub(super) fn leave(&mut self, id: ConsumerId) {
        self.timers.remove(Key::Pull(id));
        self.consumers.remove(id);
    }

    /// A pull's wait is over: it gets nothing, unless its messages are being read.
    pub(super) fn pull_ends(&mut self, id: ConsumerId) {
        if self.consumers.get_mut(id).is_some_and(|consumer| !consumer.reading) {
            let consumer = self.consumers.remove(id).expect("seen above");
            if let ConsumerKind::Pull { reply, .. } = consumer.kind {
                self.commits.answer(Answer::new(reply, Ok(Vec::new())));
            }
        }
    }

    /// Ends a consumer whose subscription is gone. A stream sees its deliveries end and asks why.
    pub(super) fn end_consumer(&mut self, consumer: Consumer, error: BrokerError) {
        if let ConsumerKind::Pull { reply, .. } = consumer.kind {
            self.commits.answer(Answer::new(reply, Err(error)));
        }
    }

    /// One round of deliveries.
    pub(super) fn pump(&mut self, now: Now) {
        for _ in 0..DELIVERIES_PER_ROUND {
            let Some(id) = self.dirty.pop_front() else { return };
            self.is_dirty.remove(&id);
            if self.serve(id, now) {
                self.mark(id);
            }
        }
    }

    /// Serves a subscription until nothing more can be handed out at once.
    fn serve_all(&mut self, id: SubscriptionId, now: Now) {
        while self.serve(id, now) {}
    }

    /// Hands one delivery to the next consumer in line; false if there is nothing to hand out or nobody to take it.
    fn serve(&mut self, id: SubscriptionId, now: Now) -> bool {
        if self.check_room().is_err() {
            return false;
        }
        let Some((consumer, room)) = self.consumers.next(id) else { return false };
        let Some(subscription) = self.state.subscription(id) else { return false };
        if self.state.is_paused(subscription) {
            return false;
        }
        let queue = subscription.queue;
        let end = self.end(queue);
        let candidates = consume::candidates(subscription, room.messages, end);
        self.cache.want(queue, candidates.last().copied().unwrap_or(end));
        if candidates.is_empty() {
            return false;
        }
        let Chosen { count, bytes, cached } = self.choose(queue, &candidates, room.bytes);
        let chosen = &candidates[..count];
        if cached.is_none() && self.reading_bytes > 0 && self.reading_bytes + bytes > READ_BYTES_MAX {
            self.starved.push(id);
            return false;
        }
        let lease_us = self.consumers.get_mut(consumer).expect("it is in line").lease_us;
        let leased = consume::lease(&self.state, subscription, chosen, lease_us, now);
        self.enact_lazily(&leased.events, now);
        self.schedule(id);
        self.consumers.rotate(id);
        match cached {
            Some(messages) => self.deliver(consumer, id, leased.answer, messages, now),
            None => {
                self.consumers.get_mut(consumer).expect("it is in line").reading = true;
                let purpose = Purpose::Deliver { consumer, subscription: id, handed: leased.answer };
                self.start_read(queue, chosen.to_vec(), room.bytes, bytes, purpose);
            }
        }
        true
    }

    /// As many of the candidates as their bodies are likely to fit, at least one. Those that are not cached count as
    /// the mean of their queue.
    fn choose(&self, queue: QueueId, candidates: &[Offset], bytes_max: u64) -> Chosen {
        let mean = self.mean_bytes(queue);
        let mut chosen = Chosen { count: 0, bytes: 0, cached: Some(Vec::new()) };
        for offset in candidates {
            let message = self.cache.get(queue, *offset);
            let bytes = message.map_or(mean, |message| message.body.len() as u64);
            if chosen.count > 0 && chosen.bytes + bytes > bytes_max {
                break;
            }
            chosen.count += 1;
            chosen.bytes += bytes;
            match (message, &mut chosen.cached) {
                (Some(message), Some(cached)) => cached.push(message.clone()),
                _ => chosen.cached = None,
            }
        }
        chosen
    }

    /// What a message of the queue takes in the log on average, at least one byte.
    pub(super) fn mean_bytes(&self, queue: QueueId) -> u64 {
        let queue = self.state.queue(queue);
        queue.map_or(1, |queue| queue.published_bytes / queue.next_offset.0.max(1)).max(1)
    }

    /// Reads messages; `reserved` bytes are expected to come into memory.
    pub(super) fn start_read(
        &mut self,
        queue: QueueId,
        offsets: Vec<Offset>,
        bytes_max: u64,
        reserved: u64,
        purpose: Purpose,
    ) {
        let queue_uid = self.state.queue(queue).expect("only existing queues are read").uid;
        self.reading_bytes += reserved;
        let source = self.source();
        let done = self.reads_done.clone();
        tokio::task::spawn_blocking(move || {
            let found = reads::read(&source, &Wanted { queue, queue_uid, offsets, bytes_max });
            // The receiver is gone only if the task has ended, and then nobody waits.
            let _ = done.send(Done::Messages(ReadDone { queue, purpose, reserved, found }));
        });
    }

    pub(super) fn source(&self) -> Source {
        Source { index: self.log.index(), reader: self.log.reader() }
    }

    pub(super) fn done(&mut self, done: Done) {
        let now = self.clock.now();
        self.reading_bytes -= match &done {
            Done::Messages(read) => read.reserved,
            Done::Refs(read) => read.reserved,
            Done::Page(read) => read.reserved,
        };
        for id in std::mem::take(&mut self.starved) {
            self.mark(id);
        }
        self.recall_starved();
        match done {
            Done::Messages(read) => self.read_done(read, now),
            Done::Refs(read) => self.refs_done(read, now),
            Done::Page(read) => self.page_read(read),
        }
        self.read_on_starved();
    }

    fn read_done(&mut self, done: ReadDone, now: Now) {
        let ReadDone { queue, purpose, found, .. } = done;
        let Found { messages, mut damaged, missing } = found;
        let reclaimed = missing.as_ref().is_some_and(|(offset, _)| !self.must_be_there(queue, *offset));
        if let Some((offset, error)) = missing.filter(|_| !reclaimed) {
            tracing::error!(%queue, %offset, %error, "a message cannot be found");
            damaged.push(offset);
        }
        match purpose {
            Purpose::Deliver { consumer, subscription, handed } => {
                if let Some(consumer) = self.consumers.get_mut(consumer) {
                    consumer.reading = false;
                }
                self.set_aside(subscription, &damaged, now);
                if messages.is_empty()
                    && let Some(offset) = damaged.first()
                {
                    self.report_loss(consumer, queue, *offset);
                }
                let good = |handed: &Handed| !damaged.contains(&handed.offset);
                let handed = handed.into_iter().filter(good).collect();
                self.deliver(consumer, subscription, handed, messages, now);
                self.consumers.line_up(consumer);
                self.mark(subscription);
            }
            Purpose::Peek { peek, reply } if messages.is_empty() && reclaimed => {
                self.start_peek(queue, peek, reply);
            }
            Purpose::Peek { reply, .. } => {
                let result = match (messages.is_empty(), damaged.first()) {
                    (true, Some(offset)) => Err(self.data_loss(queue, *offset)),
                    _ => Ok(messages),
                };
                self.commits.answer(Answer::new(reply, result));
            }
            Purpose::DeadLetter { job, slot } => {
                let message = messages.into_iter().next();
                self.dead_letter_read(job, slot, message, now);
            }
            Purpose::GiveUp { subscription, given_up } => {
                self.exhausted_read(subscription, given_up, messages, &damaged, now);
            }
        }
    }

    /// Whether the log must have this message: some subscription may still want it.
    fn must_be_there(&self, queue: QueueId, offset: Offset) -> bool {
        self.state.queue(queue).is_some_and(|queue| offset >= queue.first_offset)
    }

    /// Gives a consumer its messages; what was handed out and is not among them goes back.
    fn deliver(
        &mut self,
        id: ConsumerId,
        subscription: SubscriptionId,
        handed: Vec<Handed>,
        messages: Vec<StoredMessage>,
        now: Now,
    ) {
        let lease_us = self.consumers.get_mut(id).map_or(0, |consumer| consumer.lease_us);
        let state = self.state.subscription(subscription);
        // A pause that came while the bytes were read holds them back.
        let paused = state.is_some_and(|subscription| self.state.is_paused(subscription));
        let messages = if paused { Vec::new() } else { messages };
        let is_leased = |handed: &Handed| {
            let message = state.and_then(|subscription| subscription.delivery.outstanding(handed.offset));
            message.is_some_and(|message| message.lease == handed.lease)
        };
        let mut messages = messages.into_iter().peekable();
        let mut unused = Vec::new();
        let mut deliveries = Vec::with_capacity(messages.len());
        // What was purged while its bytes were read is nobody's any more.
        for handed in handed.into_iter().filter(is_leased) {
            while messages.next_if(|message| message.offset < handed.offset).is_some() {}
            let Some(message) = messages.next_if(|message| message.offset == handed.offset) else {
                unused.push(handed);
                continue;
            };
            let token = AckToken { offset: handed.offset, lease: handed.lease };
            let ack_id = self.ack_ids.encode(subscription, token);
            deliveries.push((handed, Delivery { ack_id, attempt: handed.attempt, lease_us, message }));
        }
        if !deliveries.is_empty() {
            unused.extend(self.hand_over(id, deliveries));
        }
        if let Some(subscription) = self.state.subscription(subscription)
            && !unused.is_empty()
        {
            let events = consume::give_back(subscription, &unused);
            self.enact_lazily(&events, now);
        }
        self.mark(subscription);
    }

    /// Sends deliveries; gives what nobody was there to take.
    fn hand_over(&mut self, id: ConsumerId, deliveries: Vec<(Handed, Delivery)>) -> Vec<Handed> {
        let (handed, deliveries): (Vec<Handed>, Vec<Delivery>) = deliveries.into_iter().unzip();
        let Some(consumer) = self.consumers.get_mut(id) else { return handed };
        if let ConsumerKind::Stream(stream) = &mut consumer.kind {
            let bytes: u64 = deliveries.iter().map(|delivery| delivery.message.body.len() as u64).sum();
            stream.messages = stream.messages.saturating_sub(deliveries.len() as u64);
            stream.bytes = stream.bytes.saturating_sub_unsigned(bytes);
            stream.untaken += 1;
            if stream.sink.send(deliveries).is_ok() {
                return Vec::new();
            }
            self.consumers.remove(id);
            return handed;
        }
        self.timers.remove(Key::Pull(id));
        let consumer = self.consumers.remove(id).expect("seen above");
        let ConsumerKind::Pull { reply, .. } = consumer.kind else {
            unreachable!("streams are handled above")
        };
        if reply.send(Ok(deliveries)).is_ok() { Vec::new() } else { handed }
    }

    /// Sets damaged messages aside for a while: loud, and out of the others' way.
    fn set_aside(&mut self, id: SubscriptionId, damaged: &[Offset], now: Now) {
        let Some(subscription) = self.state.subscription(id) else { return };
        let events = consume::set_aside(subscription, damaged, now.log_us + DAMAGED_RETRY_US, false);
        self.enact_lazily(&events, now);
        self.schedule(id);
    }

    /// Tells a pull that all it would have got is damaged. A stream goes on with what is whole.
    fn report_loss(&mut self, id: ConsumerId, queue: QueueId, offset: Offset) {
        let is_pull = |consumer: &mut Consumer| matches!(consumer.kind, ConsumerKind::Pull { .. });
        if self.consumers.get_mut(id).is_some_and(is_pull) {
            self.timers.remove(Key::Pull(id));
            let consumer = self.consumers.remove(id).expect("seen above");
            let error = self.data_loss(queue, offset);
            self.end_consumer(consumer, error);
        }
    }

    fn data_loss(&self, queue: QueueId, offset: Offset) -> BrokerError {
        match self.state.queue(queue) {
            Some(queue) => BrokerError::DataLoss { queue: queue.name.clone(), offset },
            None => BrokerError::QueueDeleted,
        }
    }

    pub(super) fn peek(
        &mut self,
        name: &QueueName,
        from: Option<Offset>,
        messages_max: u32,
        bytes_max: u64,
        reply: Reply<Vec<StoredMessage>>,
    ) {
        let queue = match self.state.queue_named(name) {
            Ok(queue) => queue,
            Err(error) => return self.commits.answer(Answer::new(reply, Err(BrokerError::Rejected(error)))),
        };
        if let Some(offset) = from.filter(|offset| *offset > queue.next_offset) {
            let error = Reject::OffsetOutOfRange { queue: name.clone(), offset, next: queue.next_offset };
            return self.commits.answer(Answer::new(reply, Err(BrokerError::Rejected(error))));
        }
        let peek = Peek { from, messages_max, bytes_max };
        self.start_peek(queue.id, peek, reply);
    }

    fn start_peek(&mut self, id: QueueId, peek: Peek, reply: Reply<Vec<StoredMessage>>) {
        let Some(queue) = self.state.queue(id) else {
            return self.commits.answer(Answer::new(reply, Err(BrokerError::QueueDeleted)));
        };
        let first = peek.from.unwrap_or(queue.first_offset).max(queue.first_offset);
        let end = self.end(id).min(first.plus(peek.messages_max.into()));
        let offsets: Vec<Offset> = (first.0..end.0).map(Offset).collect();
        if offsets.is_empty() {
            return self.commits.answer(Answer::new(reply, Ok(Vec::new())));
        }
        let mean = self.mean_bytes(id);
        let reserved = (mean * offsets.len() as u64).min(peek.bytes_max.max(mean));
        self.start_read(id, offsets, peek.bytes_max, reserved, Purpose::Peek { peek, reply });
    }
}

/// Candidates that are likely to fit.
struct Chosen {
    count: usize,
    /// Bytes to expect.
    bytes: u64,
    /// All of them, if all are cached.
    cached: Option<Vec<StoredMessage>>,
}
