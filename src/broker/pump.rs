//! From waiting messages to consumers.
//!
//! A round serves each subscription that may have something: choose as many messages as are likely to fit, take memory
//! for them, lease them, then deliver from the cache at once, or after a read. A consumer that finds no memory leaves
//! its line and waits; others go on. It holds no lease meanwhile. What a read leaves out goes back without having
//! counted; if that is a first message that is larger than was thought, its consumer waits for memory of that size.

use std::vec;

use super::api::{
    BrokerError, ConsumerId, Delivery, DeliveryBatch, Fetched, PullOptions, Reply, StoredMessage,
    SubscribeOptions,
};
use super::commits::Answer;
use super::consumers::{Consumer, ConsumerKind, Memory, Place, Stream};
use super::reads::{self, Done, Found, Peek, Purpose, ReadDone, Source, Wanted};
use super::shell::Shell;
use super::timers::Key;
use crate::admission::{Held, Outlet, Permit, bytes_within, memory_of};
use crate::clock::Now;
use crate::core::consume::{self, Handed};
use crate::core::settle::AckToken;
use crate::core::types::Reject;
use crate::ids::{Offset, QueueId, SubscriptionId};
use crate::limits::PULL_BYTES_MAX;
use crate::log::{LogError, ReadRoom};
use crate::names::{QueueName, SubscriptionName};

/// Deliveries of one round; bounds the time that the runtime's other tasks wait.
const DELIVERIES_PER_ROUND: usize = 32;
/// How long a pull waits at least if only memory is short, microseconds.
const STARVED_WAIT_US: u64 = 1_000_000;
/// Bytes of one delivery, metadata and bodies, unless a single message is larger.
const BATCH_BYTES_MAX: u64 = PULL_BYTES_MAX;
/// Bytes that a delivery from disk takes memory for at least, if it has room for them.
const COLD_BYTES: u64 = 128 << 10;
/// How long a damaged message is set aside before it is tried again, microseconds.
pub(super) const DAMAGED_RETRY_US: u64 = 60_000_000;

impl Shell {
    pub(super) fn pull(
        &mut self,
        consumer: ConsumerId,
        name: &SubscriptionName,
        options: PullOptions,
        outlet: Outlet,
        now: Now,
        reply: Reply<DeliveryBatch>,
    ) {
        let (id, lease_us) = match self.consumable(name) {
            Ok(subscription) => subscription,
            Err(error) => return self.commits.answer(Answer::new(reply, Err(error))),
        };
        let lease_us = options.lease_us.unwrap_or(lease_us);
        let kind = ConsumerKind::Pull { options, reply };
        self.consumers.add(consumer, Consumer::new(id, lease_us, outlet, kind));
        self.mark(id);
        self.serve_all(id, now);
        self.recall(id, now);
        let mut wait_us = u64::try_from(options.wait.as_micros()).unwrap_or(u64::MAX / 2);
        let awaits_memory = self.consumers.get_mut(consumer).is_some_and(|pull| pull.awaits_memory());
        if awaits_memory || self.recalls.is_under_way(id) {
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
            let (lease_us, kind) = (options.lease_us.unwrap_or(lease_us), ConsumerKind::Stream(stream));
            self.consumers.add(consumer, Consumer::new(id, lease_us, options.outlet, kind));
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
                self.commits.answer(Answer::new(reply, Ok(Held::free(Vec::new()))));
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

    /// Hands one delivery to the next consumer in line, or has it wait for memory; false if there is nothing to hand
    /// out or nobody to take it.
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
        let waiting = self.consumers.get_mut(consumer).expect("it is in line");
        let (lease_us, outlet, granted) = (waiting.lease_us, waiting.outlet.clone(), waiting.take_granted());
        let memory_max = granted.as_ref().map_or(u64::MAX, Permit::bytes);
        let Chosen { count, memory_bytes, cached } =
            self.choose((queue, id), &candidates, room.bytes, memory_max);
        let memory_bytes = match cached.is_some() {
            true => memory_bytes,
            // The mean may be of smaller ones. What is not needed is given back after the read.
            false => memory_bytes.max(memory_of(count as u64, COLD_BYTES.min(room.bytes))).min(memory_max),
        };
        let granted = granted.filter(|granted| granted.bytes() >= memory_bytes);
        let Some(memory) = granted.or_else(|| outlet.try_take(memory_bytes)) else {
            self.await_memory(consumer, memory_bytes);
            return true;
        };
        let chosen = &candidates[..count];
        let leased = consume::lease(&self.state, subscription, chosen, lease_us, now);
        self.enact_lazily(&leased.events, now);
        self.schedule(id);
        self.consumers.rotate(id);
        match cached {
            Some(messages) => self.deliver(consumer, id, leased.answer, messages, memory, now),
            None => {
                self.consumers.get_mut(consumer).expect("it is in line").reading = true;
                let room = room_within(&memory, count as u64, room.bytes);
                let purpose = Purpose::Deliver { consumer, subscription: id, handed: leased.answer, memory };
                self.start_read(queue, chosen.to_vec(), room, purpose);
            }
        }
        true
    }

    /// Has a consumer wait for memory, out of its line.
    fn await_memory(&mut self, id: ConsumerId, bytes: u64) {
        let Some(subscription) = self.consumers.get_mut(id).map(|consumer| consumer.subscription) else {
            return;
        };
        let (line, done) = (self.consumers.line(subscription), self.reads_done.clone());
        let consumer = self.consumers.get_mut(id).expect("seen above");
        let outlet = consumer.outlet.clone();
        let waiting = tokio::spawn(async move {
            let memory = outlet.wait_in(&line, bytes).await;
            // The receiver is gone only if the task has ended, and then nobody waits.
            let _ = done.send(Done::Memory(id, memory));
        });
        consumer.memory = Memory::Awaited { _place: Place(waiting.abort_handle()) };
    }

    /// Serves a consumer that has waited for memory. What it has no use for any more is given back.
    fn memory_came(&mut self, id: ConsumerId, memory: Permit, now: Now) {
        let Some(consumer) = self.consumers.get_mut(id) else { return };
        consumer.memory = Memory::Granted(memory);
        let subscription = consumer.subscription;
        self.consumers.line_up_first(id);
        self.serve(subscription, now);
        if let Some(consumer) = self.consumers.get_mut(id) {
            drop(consumer.take_granted());
        }
        self.mark(subscription);
    }

    /// As many of the candidates as are likely to fit, bodies and memory, at least one. Those that are not cached count
    /// as the mean of their queue, unless more is known.
    fn choose(
        &self,
        (queue, id): (QueueId, SubscriptionId),
        candidates: &[Offset],
        bytes_max: u64,
        memory_max: u64,
    ) -> Chosen {
        let mean = self.mean_bytes(queue);
        let mut chosen = Chosen { count: 0, memory_bytes: 0, cached: Some(Vec::new()) };
        let (mut bodies, mut bytes) = (0, 0);
        for (offset, count) in candidates.iter().zip(1..) {
            let message = self.cache.get(queue, *offset);
            let likely = self.consumers.large(id, *offset).unwrap_or(mean);
            bodies += message.map_or(likely, |message| message.body.len() as u64);
            bytes += message.map_or(likely, StoredMessage::len);
            let memory_bytes = memory_of(count, bytes);
            let fits = bodies <= bytes_max && bytes <= BATCH_BYTES_MAX && memory_bytes <= memory_max;
            if chosen.count > 0 && !fits {
                break;
            }
            chosen.count += 1;
            chosen.memory_bytes = memory_bytes;
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

    /// Reads messages, for which memory was taken.
    pub(super) fn start_read(
        &mut self,
        queue: QueueId,
        offsets: Vec<Offset>,
        room: ReadRoom,
        purpose: Purpose,
    ) {
        let queue_uid = self.state.queue(queue).expect("only existing queues are read").uid;
        let source = self.source();
        let done = self.reads_done.clone();
        self.readers.run(move || {
            let found = reads::read(&source, &Wanted { queue, queue_uid, offsets, room });
            // The receiver is gone only if the task has ended, and then nobody waits.
            let _ = done.send(Done::Messages(ReadDone { queue, purpose, found }));
        });
    }

    pub(super) fn source(&self) -> Source {
        Source { index: self.log.index(), reader: self.log.reader() }
    }

    pub(super) fn done(&mut self, done: Done) -> Result<(), BrokerError> {
        let now = self.clock.now();
        match done {
            Done::Messages(read) => self.read_done(read, now),
            Done::Refs(read) => self.refs_done(read, now),
            Done::Page(read) => self.page_read(read),
            Done::Memory(consumer, memory) => self.memory_came(consumer, memory, now),
            Done::Panicked => return Err(self.stop(&LogError::Panicked)),
        }
        Ok(())
    }

    /// Tells the operator which messages cannot be served, and what to do.
    fn tell_loss(&self, queue: QueueId, damaged: &[Offset]) {
        let name = self.state.queue(queue).map(|queue| &queue.name);
        if let (Some(name), [first, ..]) = (name, damaged) {
            let count = damaged.len();
            tracing::error!(queue = %name, %first, count, "data loss: messages of a queue cannot be read; stop the server and run forebay fsck to see what is hit");
        }
    }

    fn read_done(&mut self, done: ReadDone, now: Now) {
        let ReadDone { queue, purpose, found } = done;
        let Found { messages, mut damaged, missing, too_large } = found;
        let missing_at = missing.as_ref().map(|(offset, _)| *offset);
        let reclaimed = missing.as_ref().is_some_and(|(offset, _)| !self.must_be_there(queue, *offset));
        if let Some((offset, error)) = missing.filter(|_| !reclaimed) {
            tracing::error!(%queue, %offset, %error, "a message cannot be found");
            damaged.push(offset);
        }
        self.tell_loss(queue, &damaged);
        match purpose {
            Purpose::Deliver { consumer, subscription, handed, memory } => {
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
                let handed: Vec<Handed> = handed.into_iter().filter(good).collect();
                if let (Some(bytes), Some(first)) = (too_large, handed.first())
                    && self.state.subscription(subscription).is_some()
                {
                    self.consumers.note_large(subscription, first.offset, bytes);
                }
                self.deliver(consumer, subscription, handed, messages, memory, now);
                match too_large {
                    Some(bytes) => self.await_memory(consumer, memory_of(1, bytes)),
                    None => self.consumers.line_up(consumer),
                }
                self.mark(subscription);
            }
            Purpose::Peek { peek, memory, reply, .. } if messages.is_empty() && reclaimed => {
                self.start_peek(queue, peek, memory, reply);
            }
            Purpose::Peek { peek, count, memory, reply } => {
                let came = (messages.len() + damaged.len()) as u64;
                let most = memory_of(count, peek.bytes_max);
                let is_short = came < count && !reclaimed && memory.bytes() < most;
                let result = match (too_large, damaged.first()) {
                    (Some(bytes), _) => Ok(Fetched::TooLarge { memory_bytes: memory_of(1, bytes) }),
                    // They are larger than the mean.
                    (None, None) if is_short => {
                        Ok(Fetched::TooLarge { memory_bytes: most.min(2 * memory.bytes()) })
                    }
                    (None, Some(offset)) if messages.is_empty() => Err(self.data_loss(queue, *offset)),
                    _ => Ok(Fetched::Whole(held(messages, memory))),
                };
                self.commits.answer(Answer::new(reply, result));
            }
            Purpose::GiveUp { subscription, memory } => {
                damaged.extend(missing_at);
                let found = Found { messages, damaged, missing: None, too_large };
                self.given_up_read(subscription, found, memory, now);
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
        memory: Permit,
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
        let mut messages = messages.into_iter();
        let mut unused = Vec::new();
        let mut given = Vec::with_capacity(messages.len());
        let mut deliveries = Vec::with_capacity(messages.len());
        // What was purged while its bytes were read is nobody's any more.
        for handed in handed.into_iter().filter(is_leased) {
            let Some(message) = take_at(&mut messages, handed.offset) else {
                unused.push(handed);
                continue;
            };
            let token = AckToken { offset: handed.offset, lease: handed.lease };
            let ack_id = self.ack_ids.encode(subscription, token);
            given.push(handed);
            deliveries.push(Delivery { ack_id, attempt: handed.attempt, lease_us, message });
        }
        if !deliveries.is_empty() && !self.hand_over(id, deliveries, memory) {
            unused.append(&mut given);
        }
        if let Some(subscription) = self.state.subscription(subscription)
            && !unused.is_empty()
        {
            let events = consume::give_back(subscription, &unused);
            self.enact_lazily(&events, now);
        }
        self.mark(subscription);
    }

    /// Sends deliveries; false if nobody was there to take them.
    fn hand_over(&mut self, id: ConsumerId, deliveries: Vec<Delivery>, mut memory: Permit) -> bool {
        memory.shrink_to(stored_memory(deliveries.iter().map(|delivery| &delivery.message)));
        let Some(consumer) = self.consumers.get_mut(id) else { return false };
        if let ConsumerKind::Stream(stream) = &mut consumer.kind {
            let bytes: u64 = deliveries.iter().map(|delivery| delivery.message.body.len() as u64).sum();
            stream.messages = stream.messages.saturating_sub(deliveries.len() as u64);
            stream.bytes = stream.bytes.saturating_sub_unsigned(bytes);
            stream.untaken += 1;
            let sent = stream.sink.send(Held { value: deliveries, memory: Some(memory) }).is_ok();
            if !sent {
                self.consumers.remove(id);
            }
            return sent;
        }
        self.timers.remove(Key::Pull(id));
        let consumer = self.consumers.remove(id).expect("seen above");
        let ConsumerKind::Pull { reply, .. } = consumer.kind else {
            unreachable!("streams are handled above")
        };
        reply.send(Ok(Held { value: deliveries, memory: Some(memory) })).is_ok()
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
        peek: Peek,
        memory: Permit,
        reply: Reply<Fetched<Vec<StoredMessage>>>,
    ) {
        let queue = match self.state.queue_named(name) {
            Ok(queue) => queue,
            Err(error) => return self.commits.answer(Answer::new(reply, Err(BrokerError::Rejected(error)))),
        };
        if let Some(offset) = peek.from.filter(|offset| *offset > queue.next_offset) {
            let error = Reject::OffsetOutOfRange { queue: name.clone(), offset, next: queue.next_offset };
            return self.commits.answer(Answer::new(reply, Err(BrokerError::Rejected(error))));
        }
        self.start_peek(queue.id, peek, memory, reply);
    }

    fn start_peek(
        &mut self,
        id: QueueId,
        peek: Peek,
        memory: Permit,
        reply: Reply<Fetched<Vec<StoredMessage>>>,
    ) {
        let Some(queue) = self.state.queue(id) else {
            return self.commits.answer(Answer::new(reply, Err(BrokerError::QueueDeleted)));
        };
        let first = peek.from.unwrap_or(queue.first_offset).max(queue.first_offset);
        let end = self.end(id).min(first.plus(peek.messages_max.into()));
        let offsets: Vec<Offset> = (first.0..end.0).map(Offset).collect();
        if offsets.is_empty() {
            let none = Fetched::Whole(Held::free(Vec::new()));
            return self.commits.answer(Answer::new(reply, Ok(none)));
        }
        let (mean, count) = (self.mean_bytes(id), offsets.len() as u64);
        let memory_bytes = memory_of(count, (mean * count).min(peek.bytes_max.max(mean)));
        if memory.bytes() < memory_bytes {
            return self.commits.answer(Answer::new(reply, Ok(Fetched::TooLarge { memory_bytes })));
        }
        let room = room_within(&memory, count, peek.bytes_max);
        self.start_read(id, offsets, room, Purpose::Peek { peek, count, memory, reply });
    }
}

/// Takes the message at `offset` out of messages in order; those before it are passed over. Nothing is moved but what is
/// taken.
fn take_at(messages: &mut vec::IntoIter<StoredMessage>, offset: Offset) -> Option<StoredMessage> {
    while messages.as_slice().first()?.offset < offset {
        messages.next();
    }
    match messages.as_slice().first()?.offset == offset {
        true => messages.next(),
        false => None,
    }
}

/// Room for `count` messages in memory that was taken.
pub(super) fn room_within(memory: &Permit, count: u64, bytes_max: u64) -> ReadRoom {
    ReadRoom {
        bytes_max: bytes_max.min(bytes_within(memory.bytes(), count)),
        first_max: bytes_within(memory.bytes(), 1),
    }
}

/// Messages with the memory that they take; what was taken beyond it is given back.
fn held(messages: Vec<StoredMessage>, mut memory: Permit) -> Held<Vec<StoredMessage>> {
    memory.shrink_to(stored_memory(messages.iter()));
    Held { value: messages, memory: Some(memory) }
}

/// The memory that messages take until their answer has gone.
pub(super) fn stored_memory<'a>(messages: impl Iterator<Item = &'a StoredMessage>) -> u64 {
    let (count, bytes) = messages.fold((0, 0), |(count, bytes), message| (count + 1, bytes + message.len()));
    memory_of(count, bytes)
}

/// Candidates that are likely to fit.
struct Chosen {
    count: usize,
    /// Memory to take.
    memory_bytes: u64,
    /// All of them, if all are cached.
    cached: Option<Vec<StoredMessage>>,
}
