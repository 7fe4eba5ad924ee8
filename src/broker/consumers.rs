//! Who waits for messages: pulls that wait once, and streams with credits.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::api::{ConsumerId, DeliveryBatch, PullOptions, Reply};
use crate::admission::{Line, Outlet, Permit};
use crate::ids::{Offset, SubscriptionId};
use crate::limits::{PULL_BYTES_MAX, PULL_MESSAGES_MAX};

/// Messages of one delivery to a stream.
const STREAM_BATCH_MESSAGES: u64 = 256;
/// Bytes of one delivery to a stream, unless a single message is larger.
const STREAM_BATCH_BYTES: u64 = 1 << 20;
/// Deliveries on their way to a stream that it has not taken yet; more would be memory without bound.
const STREAM_UNTAKEN_MAX: u32 = 2;

/// A consumer and what it can take.
pub struct Consumer {
    pub subscription: SubscriptionId,
    pub lease_us: u64,
    /// Bodies are being read for it.
    pub reading: bool,
    /// It has a place in line.
    pub in_line: bool,
    /// Where its memory comes from, and whether it waits for some.
    pub outlet: Outlet,
    pub memory: Memory,
    pub kind: ConsumerKind,
}

/// How a consumer stands for memory.
#[derive(Default)]
pub enum Memory {
    #[default]
    NotAsked,
    Awaited {
        _place: Place,
    },
    /// Granted for the delivery that is being made up, or given back.
    Granted(Permit),
}

/// A place among those who wait for memory, given up when this is dropped.
pub struct Place(pub AbortHandle);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub enum ConsumerKind {
    Pull { options: PullOptions, reply: Reply<DeliveryBatch> },
    Stream(Stream),
}

/// A stream's credits and its way out.
pub struct Stream {
    pub messages: u64,
    /// Of bodies; below 0 if the last message overdrew it.
    pub bytes: i64,
    pub untaken: u32,
    pub sink: mpsc::UnboundedSender<DeliveryBatch>,
}

/// How much a consumer takes in one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub messages: usize,
    pub bytes: u64,
}

impl Consumer {
    pub fn new(subscription: SubscriptionId, lease_us: u64, outlet: Outlet, kind: ConsumerKind) -> Self {
        let memory = Memory::NotAsked;
        Self { subscription, lease_us, reading: false, in_line: false, outlet, memory, kind }
    }

    pub fn awaits_memory(&self) -> bool {
        matches!(self.memory, Memory::Awaited { .. })
    }

    /// Memory that was granted, if it was.
    pub fn take_granted(&mut self) -> Option<Permit> {
        match std::mem::take(&mut self.memory) {
            Memory::Granted(memory) => Some(memory),
            other => {
                self.memory = other;
                None
            }
        }
    }

    /// What may be sent now; none if nothing may.
    pub fn room(&self) -> Option<Room> {
        if self.reading || self.awaits_memory() {
            return None;
        }
        let (messages, bytes) = match &self.kind {
            ConsumerKind::Pull { reply, .. } if reply.is_closed() => return None,
            ConsumerKind::Pull { options, .. } => {
                (options.messages_max.min(PULL_MESSAGES_MAX).into(), options.bytes_max.min(PULL_BYTES_MAX))
            }
            ConsumerKind::Stream(stream) if stream.untaken >= STREAM_UNTAKEN_MAX => return None,
            ConsumerKind::Stream(stream) => {
                let bytes = u64::try_from(stream.bytes).unwrap_or(0);
                (stream.messages.min(STREAM_BATCH_MESSAGES), bytes.min(STREAM_BATCH_BYTES))
            }
        };
        (messages > 0 && bytes > 0).then_some(Room { messages: messages as usize, bytes })
    }
}

/// All consumers, and for each subscription those that may have room, in turn.
#[derive(Default)]
pub struct Consumers {
    by_id: FxHashMap<ConsumerId, Consumer>,
    waiting: FxHashMap<SubscriptionId, VecDeque<ConsumerId>>,
    /// Of each subscription that had a consumer who had to wait for memory.
    lines: FxHashMap<SubscriptionId, Line>,
    /// Of each subscription the last message that was too large for the memory of its reader, and its bytes.
    large: FxHashMap<SubscriptionId, (Offset, u64)>,
}

impl Consumers {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn add(&mut self, id: ConsumerId, consumer: Consumer) {
        self.by_id.insert(id, consumer);
        self.line_up(id);
    }

    pub fn get_mut(&mut self, id: ConsumerId) -> Option<&mut Consumer> {
        self.by_id.get_mut(&id)
    }

    /// Takes a consumer out, and out of its line.
    pub fn remove(&mut self, id: ConsumerId) -> Option<Consumer> {
        let consumer = self.by_id.remove(&id)?;
        if consumer.in_line
            && let Some(line) = self.waiting.get_mut(&consumer.subscription)
        {
            line.retain(|other| *other != id);
            if line.is_empty() {
                self.waiting.remove(&consumer.subscription);
            }
        }
        Some(consumer)
    }

    /// Takes out every consumer of a subscription.
    pub fn remove_all(&mut self, subscription: SubscriptionId) -> Vec<Consumer> {
        self.waiting.remove(&subscription);
        self.large.remove(&subscription);
        self.lines.remove(&subscription);
        let ids: Vec<ConsumerId> =
            self.by_id.iter().filter(|(_, c)| c.subscription == subscription).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.by_id.remove(&id)).collect()
    }

    /// The consumers' ids that are pulls.
    pub fn pulls(&self) -> Vec<ConsumerId> {
        let is_pull = |consumer: &Consumer| matches!(consumer.kind, ConsumerKind::Pull { .. });
        self.by_id.iter().filter(|(_, consumer)| is_pull(consumer)).map(|(id, _)| *id).collect()
    }

    /// Puts a consumer back in line, because it may have room again.
    pub fn line_up(&mut self, id: ConsumerId) {
        let Some(consumer) = self.by_id.get_mut(&id) else { return };
        if !std::mem::replace(&mut consumer.in_line, true) {
            self.waiting.entry(consumer.subscription).or_default().push_back(id);
        }
    }

    /// Puts a consumer at the head of its line.
    pub fn line_up_first(&mut self, id: ConsumerId) {
        let Some(consumer) = self.by_id.get_mut(&id) else { return };
        let line = self.waiting.entry(consumer.subscription).or_default();
        if std::mem::replace(&mut consumer.in_line, true) {
            line.retain(|other| *other != id);
        }
        line.push_front(id);
    }

    /// The next consumer with room; those without leave the line until something changes for them.
    pub fn next(&mut self, subscription: SubscriptionId) -> Option<(ConsumerId, Room)> {
        let line = self.waiting.get_mut(&subscription)?;
        while let Some(id) = line.front() {
            let consumer = self.by_id.get_mut(id).expect("who is in line is there");
            if let Some(room) = consumer.room() {
                return Some((*id, room));
            }
            consumer.in_line = false;
            line.pop_front();
        }
        self.waiting.remove(&subscription);
        None
    }

    /// Sends the first in line to its end.
    pub fn rotate(&mut self, subscription: SubscriptionId) {
        if let Some(line) = self.waiting.get_mut(&subscription) {
            line.rotate_left(usize::from(line.len() > 1));
        }
    }

    /// Where the consumers of a subscription wait for memory.
    pub fn line(&mut self, subscription: SubscriptionId) -> Line {
        self.lines.entry(subscription).or_default().clone()
    }

    /// A message was too large for the memory of its reader: whoever is to have it next knows. Else consumers could
    /// take it from each other for ever, each waiting for memory while another one reads it with too little.
    pub fn note_large(&mut self, subscription: SubscriptionId, offset: Offset, bytes: u64) {
        self.large.insert(subscription, (offset, bytes));
    }

    /// The bytes of a message, if it was too large for its last reader.
    pub fn large(&self, subscription: SubscriptionId, offset: Offset) -> Option<u64> {
        self.large.get(&subscription).filter(|(large, _)| *large == offset).map(|(_, bytes)| *bytes)
    }

    pub fn has_waiting(&self, subscription: SubscriptionId) -> bool {
        self.waiting.contains_key(&subscription)
    }
}
