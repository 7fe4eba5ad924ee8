//! What the core speaks of: configurations, views and outcomes. Plain data.

use crate::ids::{Offset, Uid};
use crate::names::{QueueName, SubscriptionName};

/// What an owner may choose about a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// Labels for people and tools, sorted by key.
    pub labels: Vec<(String, String)>,
}

/// What an owner may choose about a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionConfig {
    /// How long a delivered message is leased unless its consumer asks otherwise, microseconds.
    pub lease_us: u64,
    /// Most messages leased at one time.
    pub in_flight_max: u64,
    pub retry: RetryPolicy,
    /// Where given-up messages go; without a choice to `<queue>-dead`.
    pub dead_letter_queue: Option<QueueName>,
}

/// How often and when a message is delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Deliveries after which a message is given up, at least 1.
    pub attempts_max: u32,
    /// The delay after the first attempt, microseconds; 0 = at once, always.
    pub backoff_us_min: u64,
    /// The longest delay, microseconds.
    pub backoff_us_max: u64,
}

/// A stop of delivery. What is held meanwhile is delivered after the resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Publishes are refused, not held.
    pub refuses: bool,
    /// For those who ask why.
    pub reason: String,
    /// Wall time, microseconds since the Unix epoch.
    pub time_us: u64,
    /// The offset that the next message had.
    pub from: Offset,
}

/// One state of a queue's or subscription's configuration: a change may ask that it is still this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub uid: Uid,
    /// Counts the changes since it was made.
    pub revision: u64,
}

/// Where a new subscription begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// The earliest message that is still retained.
    #[default]
    Earliest,
    /// Only what is published after the subscription was made.
    Latest,
    /// This offset, moved to the earliest retained if older; newer than the next offset is refused.
    Offset(Offset),
}

/// A queue as shown to its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueView {
    pub name: QueueName,
    pub uid: Uid,
    pub config: QueueConfig,
    /// Wall time of creation, microseconds since the Unix epoch.
    pub create_time_us: u64,
    /// Of the last change of its configuration.
    pub update_time_us: u64,
    pub revision: u64,
    pub pause: Option<Pause>,
    pub first_offset: Offset,
    pub next_offset: Offset,
}

/// A subscription as shown to its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionView {
    pub name: SubscriptionName,
    pub uid: Uid,
    pub config: SubscriptionConfig,
    pub create_time_us: u64,
    /// Of the last change of its configuration.
    pub update_time_us: u64,
    pub revision: u64,
    /// Its own; its queue may be paused besides.
    pub pause: Option<Pause>,
    pub stats: SubscriptionStats,
}

/// Figures of one subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionStats {
    /// Every message below it is finished here.
    pub ack_floor: Offset,
    /// Messages not finished: waiting, delayed or leased.
    pub backlog_messages: u64,
    /// Of these, leased now.
    pub leased_messages: u64,
    /// Of these, waiting for a retry delay.
    pub delayed_messages: u64,
    /// Age of the oldest message that is not finished, microseconds; 0 without any.
    pub oldest_age_us: u64,
}

/// Figures of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStats {
    pub name: QueueName,
    pub next_offset: Offset,
    /// The largest backlog of its subscriptions, or all retained messages without any.
    pub waiting_messages: u64,
    /// Messages and bytes accepted since the queue was made.
    pub published_messages: u64,
    pub published_bytes: u64,
    pub subscriptions: Vec<(SubscriptionName, SubscriptionStats)>,
}

/// Who publishes, for de-duplication: sequences count requests from 1 within (queue, id, epoch).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerStamp {
    pub id: String,
    pub epoch: u64,
    pub sequence: u64,
}

/// How a consumer ends a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Finished.
    Ack,
    /// Deliver again after this delay, microseconds, or as the retry policy says; the attempt counts. After the last
    /// attempt the message is given up, with the error.
    Retry { delay_us: Option<u64>, error: String },
    /// Deliver again at once; the attempt does not count.
    Release,
    /// Move to the dead-letter queue now.
    Reject { error: String },
}

/// What became of one acknowledgement id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    Ok,
    /// The message was handed out again since, or is finished and can no longer be retried.
    Stale,
    /// Not an acknowledgement id of this subscription.
    Invalid,
    /// Not done now; try again.
    Transient {
        why: String,
    },
    /// Not possible for this message, with the reason; the lease goes on.
    Refused {
        why: String,
    },
}

/// Where a publish landed: offsets `first_offset..first_offset + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishAnswer {
    pub first_offset: Offset,
    pub count: u32,
    pub publish_time_us: u64,
    /// The producer's request had been stored before; nothing was added.
    pub duplicate: bool,
}

/// Why the core refused a command. Nothing of it took effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error("queue {0} does not exist; create it first")]
    QueueNotFound(QueueName),
    #[error("queue {0} exists already")]
    QueueExists(QueueName),
    #[error("subscription {0} does not exist; create it first")]
    SubscriptionNotFound(SubscriptionName),
    #[error("subscription {0} exists already")]
    SubscriptionExists(SubscriptionName),
    #[error("messages of queue {queue} cannot be given up to {target}, which {why}")]
    DeadLetterQueue { queue: QueueName, target: QueueName, why: &'static str },
    #[error("queue {queue} has no message of this id at offset {offset} that waits; it may be finished")]
    MessageNotFound { queue: QueueName, offset: Offset },
    #[error(
        "the message at offset {offset} is leased from subscription {subscription}; try again when it is not"
    )]
    MessageLeased { offset: Offset, subscription: SubscriptionName },
    #[error("offset {offset} is not in queue {queue}, whose next offset is {next}")]
    OffsetOutOfRange { queue: QueueName, offset: Offset, next: Offset },
    #[error("producer {producer:?} of queue {queue} sent sequence {got}; {expected} must come next")]
    SequenceGap { queue: QueueName, producer: String, got: u64, expected: u64 },
    #[error(
        "producer {producer:?} of queue {queue} asks again for sequence {got}, which was stored; only the last {kept} answers are kept"
    )]
    SequenceTooOld { queue: QueueName, producer: String, got: u64, kept: usize },
    #[error(
        "producer {producer:?} of queue {queue} has epoch {got}, but epoch {current} has taken over; this producer must stop"
    )]
    ProducerFenced { queue: QueueName, producer: String, got: u64, current: u64 },
    #[error("{resource} has changed since its etag was read; read it again")]
    VersionMismatch { resource: String },
    #[error("queue {queue} is paused and takes no messages until it is resumed{}", because(reason))]
    Paused { queue: QueueName, reason: String },
    #[error("{max} producers are remembered, the most there may be; try again when idle ones have expired")]
    TooManyProducers { max: usize },
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}
