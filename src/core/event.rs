//! What has happened: the only things that change the state, and what the log keeps of them.

use super::delivery::LeaseId;
use super::runs::OffsetRun;
use super::spilled::{Ref, RestOfRun};
use super::types::{Pause, ProducerStamp, QueueConfig, SubscriptionConfig};
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::names::{Name, QueueName};
use crate::record::Lane;

/// One fact. Applying the same facts in the same order gives the same state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    QueueCreated(QueueCreated),
    QueueDeleted {
        queue: QueueId,
    },
    SubscriptionCreated(SubscriptionCreated),
    SubscriptionDeleted {
        queue: QueueId,
        subscription: SubscriptionId,
    },
    Published(PublishedRun),
    Leased {
        queue: QueueId,
        subscription: SubscriptionId,
        runs: Vec<OffsetRun>,
        first: LeaseId,
        deadline_us: u64,
    },
    LeaseExtended {
        queue: QueueId,
        subscription: SubscriptionId,
        runs: Vec<OffsetRun>,
        deadline_us: u64,
    },
    Acked {
        queue: QueueId,
        subscription: SubscriptionId,
        runs: Vec<OffsetRun>,
    },
    /// Back to waiting, at `due_us` of the log's clock (0 = now); `counted` keeps the attempt.
    Requeued {
        queue: QueueId,
        subscription: SubscriptionId,
        runs: Vec<OffsetRun>,
        due_us: u64,
        counted: bool,
    },
    /// Finished here, and published to the dead-letter queue by the record before it in the same commit.
    DeadLettered {
        queue: QueueId,
        subscription: SubscriptionId,
        offset: Offset,
        to: QueueId,
        to_offset: Offset,
    },
    /// Every message below `end` is finished for all subscriptions.
    Purged {
        queue: QueueId,
        end: Offset,
    },
    /// A message that nobody holds is finished for all subscriptions.
    Cancelled {
        queue: QueueId,
        offset: Offset,
    },
    /// Delayed messages have left memory: their refs lie in this event's record, which is found again by its place.
    Spilled {
        queue: QueueId,
        subscription: SubscriptionId,
        place: Offset,
        /// In order of their time.
        refs: Vec<Ref>,
    },
    /// Refs of a run have come back, those that still say something; it goes on at `rest`, or is used up.
    Recalled {
        queue: QueueId,
        subscription: SubscriptionId,
        place: Offset,
        rest: Option<RestOfRun>,
        refs: Vec<Ref>,
    },
    /// The queue's owner has changed what may be chosen about it.
    QueueUpdated {
        queue: QueueId,
        config: QueueConfig,
        update_time_us: u64,
    },
    SubscriptionUpdated {
        queue: QueueId,
        subscription: SubscriptionId,
        config: SubscriptionConfig,
        update_time_us: u64,
    },
    /// Nothing is delivered from here on, of the queue or of one subscription.
    Paused {
        queue: QueueId,
        subscription: Option<SubscriptionId>,
        pause: Pause,
    },
    Resumed {
        queue: QueueId,
        subscription: Option<SubscriptionId>,
    },
    /// Offsets before `end` that no message had until then are left out.
    OffsetsSkipped {
        queue: QueueId,
        end: Offset,
    },
    /// The server started again: leases go on from here on the log's clock.
    Started {
        incarnation: u32,
        log_us: u64,
    },
}

impl Event {
    /// The queue that it is of; the start of a server is of none.
    pub fn queue(&self) -> Option<QueueId> {
        match self {
            Event::QueueCreated(created) => Some(created.queue),
            Event::SubscriptionCreated(created) => Some(created.queue),
            Event::Published(run) => Some(run.queue),
            Event::QueueDeleted { queue }
            | Event::SubscriptionDeleted { queue, .. }
            | Event::Leased { queue, .. }
            | Event::LeaseExtended { queue, .. }
            | Event::Acked { queue, .. }
            | Event::Requeued { queue, .. }
            | Event::DeadLettered { queue, .. }
            | Event::Purged { queue, .. }
            | Event::Cancelled { queue, .. }
            | Event::Spilled { queue, .. }
            | Event::Recalled { queue, .. }
            | Event::QueueUpdated { queue, .. }
            | Event::SubscriptionUpdated { queue, .. }
            | Event::Paused { queue, .. }
            | Event::Resumed { queue, .. }
            | Event::OffsetsSkipped { queue, .. } => Some(*queue),
            Event::Started { .. } => None,
        }
    }

    /// About how many changes of single messages it is worth, to those who apply it.
    pub fn changes(&self) -> u64 {
        match self {
            Event::Leased { runs, .. }
            | Event::LeaseExtended { runs, .. }
            | Event::Acked { runs, .. }
            | Event::Requeued { runs, .. } => runs.iter().map(|run| run.count).sum(),
            Event::Spilled { refs, .. } | Event::Recalled { refs, .. } => refs.len() as u64,
            _ => 1,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueCreated {
    pub queue: QueueId,
    pub uid: Uid,
    pub name: QueueName,
    pub config: QueueConfig,
    pub create_time_us: u64,
    /// Made by the server to hold dead letters; it has none of its own.
    pub dead_letters: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionCreated {
    pub queue: QueueId,
    pub subscription: SubscriptionId,
    pub uid: Uid,
    pub name: Name,
    pub config: SubscriptionConfig,
    pub start: Offset,
    pub create_time_us: u64,
}

/// Messages of one lane at consecutive offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedRun {
    pub queue: QueueId,
    pub first: Offset,
    pub count: u32,
    /// Stored bytes: bodies and metadata.
    pub bytes: u64,
    pub lane: Lane,
    pub publish_time_us: u64,
    /// On the first run of a stamped request.
    pub request: Option<StampedRequest>,
}

/// The whole request of a producer that a run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StampedRequest {
    pub stamp: ProducerStamp,
    /// Messages of the request, over all its runs.
    pub count: u32,
    /// The log's clock at the publish, microseconds.
    pub log_us: u64,
}
