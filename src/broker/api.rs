//! The broker as its callers see it: a cloneable handle whose calls answer when what they promise is on disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use super::ack_id::AckId;
use super::follow::{Followed, Page, Position};
use super::pipeline::{Publish, PublishResults};
use crate::admission::{Held, Outlet, Permit, memory_of};
use crate::core::pause::Target;
use crate::core::types::*;
use crate::ids::{Offset, QueueId, Uid};
use crate::names::{Name, QueueName, SubscriptionName};
use crate::record::{Lane, StoredParts};

/// Bytes of messages that a peek comes with memory for at first.
const PEEK_BYTES: u64 = 16 << 10;

/// Why the broker refused or failed a call. Nothing of a refused call took effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    #[error(transparent)]
    Rejected(#[from] Reject),
    #[error("the request takes {bytes} bytes in the log; at most {max} fit one commit")]
    RequestTooLarge { bytes: u64, max: u64 },
    #[error(
        "a message of queue {queue} is damaged on disk at offset {offset}; check the disk, and cancel the message to give it up"
    )]
    DataLoss { queue: QueueName, offset: Offset },
    #[error("the queue was deleted")]
    QueueDeleted,
    #[error(
        "the place to go on from is of another queue than {queue}, or of one of this name that was deleted; begin anew"
    )]
    OtherQueue { queue: QueueName },
    #[error("{max} tails are open, the most that this server serves; end one, or try again later")]
    TooManyTails { max: usize },
    #[error("the subscription was deleted")]
    SubscriptionDeleted,
    #[error(
        "the server's disk is full; finish messages, delete queues or give it more space: it goes on by itself then"
    )]
    DiskFull,
    #[error("the server is draining; try again after its restart")]
    Draining,
    #[error(
        "the log has stopped: {why}; the server exits, and once the cause is mended a restart recovers all that was acknowledged"
    )]
    LogStopped { why: String },
}

/// A message to publish, as it will be stored.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub lane: Lane,
    pub parts: StoredParts,
}

/// The answer to a publish: its messages have the offsets `first_offset..first_offset + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub queue_uid: Uid,
    pub first_offset: Offset,
    pub count: u32,
    pub publish_time_us: u64,
    /// The producer's request had been stored before; nothing was added.
    pub duplicate: bool,
    /// The queue is paused: delivered after the resume.
    pub held: bool,
}

/// A message as it was read back; `meta` is decoded by [`crate::record::meta`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    pub queue_uid: Uid,
    pub offset: Offset,
    pub lane: Lane,
    pub publish_time_us: u64,
    pub meta: Bytes,
    pub body: Bytes,
}

impl StoredMessage {
    /// Bytes of its metadata and body.
    pub(crate) fn len(&self) -> u64 {
        (self.meta.len() + self.body.len()) as u64
    }
}

/// A message handed to a consumer until its lease ends.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub ack_id: AckId,
    /// Deliveries so far, this one included.
    pub attempt: u32,
    /// How long the lease lasts from now, microseconds.
    pub lease_us: u64,
    pub message: StoredMessage,
}

/// Deliveries that belong together, and their memory.
pub type DeliveryBatch = Held<Vec<Delivery>>;

/// An answer to who came with memory for it.
#[derive(Debug)]
pub enum Fetched<T> {
    Whole(Held<T>),
    /// It takes this much memory.
    TooLarge {
        memory_bytes: u64,
    },
}

/// What a pull wants.
#[derive(Clone, Copy, Debug)]
pub struct PullOptions {
    pub messages_max: u32,
    pub bytes_max: u64,
    /// How long to wait for the first message; zero answers at once.
    pub wait: Duration,
    /// The lease, if other than the subscription's.
    pub lease_us: Option<u64>,
}

/// What one stream consumer wants: deliveries go to `sink`, as far as its credits reach.
#[derive(Debug)]
pub struct SubscribeOptions {
    pub lease_us: Option<u64>,
    /// Where the memory for deliveries comes from.
    pub outlet: Outlet,
    pub sink: mpsc::UnboundedSender<DeliveryBatch>,
}

/// One acknowledgement id and how its delivery ends.
#[derive(Clone, Debug)]
pub struct Settlement {
    pub ack_id: AckId,
    pub ending: Ending,
}

/// Figures of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    pub queues: u64,
    pub subscriptions: u64,
    pub producers: u64,
    pub consumers: u64,
    pub log_bytes: u64,
    pub segments: u64,
    pub packed_segments: u64,
    pub packed_bytes: u64,
    /// Bytes that may still be needed, and that are not, in the segments that reclaim looks at; as of the last
    /// checkpoint.
    pub live_bytes: u64,
    pub dead_bytes: u64,
    pub reserve_bytes: u64,
    /// Segments that were rewritten since the start, as the next one: little in them was needed; queues were mixed.
    pub segments_rewritten: u64,
    pub segments_merged: u64,
    /// Segments in which reclaim found records that cannot be read.
    pub segments_unreadable: u64,
    /// Bytes of records that were given to the log, and all bytes that were written to its disk.
    pub bytes_appended: u64,
    pub bytes_written: u64,
    /// Segments that have left the log since the start.
    pub segments_dropped: u64,
    /// Files of new segments: made, and taken from segments that had left.
    pub segments_created: u64,
    pub segments_recycled: u64,
    /// Checkpoints since the start, bases made of those before, and bytes of the files of both.
    pub checkpoints: u64,
    pub checkpoint_bases: u64,
    pub checkpoint_bytes: u64,
    /// Publishing is refused for want of space.
    pub disk_full: bool,
    pub commits: u64,
    pub syncs: u64,
    pub records: u64,
    /// Index files that were missing or damaged and made again.
    pub index_rebuilds: u64,
    /// Holes that the start found in the log.
    pub damage: u64,
    /// Messages whose delays were lost to damage since the start; they are delivered again.
    pub delays_lost: u64,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, BrokerError>>;

/// A call on its way to the broker's task.
#[derive(Debug)]
pub(crate) enum Request {
    CreateQueue {
        name: QueueName,
        config: QueueConfig,
        default_subscription: bool,
        reply: Reply<QueueView>,
    },
    GetQueue {
        name: QueueName,
        reply: Reply<QueueView>,
    },
    ListQueues {
        namespace: Name,
        after: Option<Name>,
        limit: usize,
        reply: Reply<Vec<QueueView>>,
    },
    UpdateQueue {
        name: QueueName,
        expected: Option<Version>,
        config: QueueConfig,
        reply: Reply<QueueView>,
    },
    DeleteQueue {
        name: QueueName,
        expected: Option<Version>,
        reply: Reply<()>,
    },
    CreateSubscription {
        name: SubscriptionName,
        config: SubscriptionConfig,
        start: Start,
        reply: Reply<SubscriptionView>,
    },
    GetSubscription {
        name: SubscriptionName,
        reply: Reply<SubscriptionView>,
    },
    ListSubscriptions {
        queue: QueueName,
        after: Option<Name>,
        limit: usize,
        reply: Reply<Vec<SubscriptionView>>,
    },
    UpdateSubscription {
        name: SubscriptionName,
        expected: Option<Version>,
        config: SubscriptionConfig,
        reply: Reply<SubscriptionView>,
    },
    DeleteSubscription {
        name: SubscriptionName,
        expected: Option<Version>,
        reply: Reply<()>,
    },
    Pause {
        target: Target,
        refuses: bool,
        reason: String,
        reply: Reply<Pause>,
    },
    Resume {
        target: Target,
        reply: Reply<u64>,
    },
    Locate {
        queue: QueueName,
        time_us: u64,
        reply: Reply<Offset>,
    },
    /// `memory` is that of the messages; it is given back when the answer is there, whether or not its caller is.
    Publish {
        publish: Publish,
        memory: Option<Permit>,
        reply: Reply<Published>,
    },
    /// Publishes that came together; they are taken in one turn.
    PublishAll {
        publishes: Vec<Publish>,
        memory: Option<Permit>,
        reply: oneshot::Sender<PublishResults>,
    },
    Pull {
        consumer: ConsumerId,
        name: SubscriptionName,
        options: PullOptions,
        outlet: Outlet,
        reply: Reply<DeliveryBatch>,
    },
    Subscribe {
        consumer: ConsumerId,
        name: SubscriptionName,
        options: SubscribeOptions,
        reply: Reply<()>,
    },
    Credit {
        consumer: ConsumerId,
        messages: u64,
        bytes: u64,
    },
    Taken {
        consumer: ConsumerId,
    },
    /// The consumer has gone: a stream that ended, or a pull whose caller left before its answer.
    Leave {
        consumer: ConsumerId,
    },
    Settle {
        name: SubscriptionName,
        settlements: Vec<Settlement>,
        reply: Reply<Vec<Settled>>,
    },
    Extend {
        name: SubscriptionName,
        ack_ids: Vec<AckId>,
        lease_us: u64,
        reply: Reply<Vec<Settled>>,
    },
    Peek {
        queue: QueueName,
        from: Option<Offset>,
        messages_max: u32,
        bytes_max: u64,
        memory: Permit,
        reply: Reply<Fetched<Vec<StoredMessage>>>,
    },
    Follow {
        queue: QueueName,
        from: Position,
        reply: Reply<Followed>,
    },
    ReadOn {
        queue: QueueId,
        from: Offset,
        memory: Permit,
        reply: Reply<Fetched<Page>>,
    },
    Purge {
        queue: QueueName,
        end: Option<Offset>,
        reply: Reply<Offset>,
    },
    Cancel {
        queue: QueueName,
        queue_uid: Uid,
        offset: Offset,
        reply: Reply<()>,
    },
    QueueStats {
        queue: QueueName,
        reply: Reply<QueueStats>,
    },
    ServerStats {
        reply: Reply<ServerStats>,
    },
    Drain {
        reply: Reply<()>,
    },
    Close {
        reply: Reply<()>,
    },
}

/// A consumer's identity in this run of the server, given by its caller, so that a caller who leaves at any moment
/// can say who has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConsumerId(pub u64);

/// What a call to a broker that has ended is told.
pub(crate) fn gone(stop_reason: &OnceLock<String>) -> BrokerError {
    let why = stop_reason.get().map_or("the broker was closed", String::as_str);
    BrokerError::LogStopped { why: why.to_owned() }
}

/// The way to the broker. Calls answer only when what they report is on disk, refusals too.
#[derive(Clone, Debug)]
pub struct Broker {
    pub(crate) requests: mpsc::UnboundedSender<Request>,
    /// Set when the broker has ended.
    pub(crate) stop_reason: Arc<OnceLock<String>>,
    last_consumer: Arc<AtomicU64>,
}

/// A stream consumer; dropping it ends its deliveries. Its leases live on.
#[derive(Debug)]
pub struct Consumer {
    id: ConsumerId,
    requests: mpsc::UnboundedSender<Request>,
}

impl Consumer {
    /// Lets the broker send this many more messages and body bytes.
    pub fn add_credit(&self, messages: u64, bytes: u64) {
        let _ = self.requests.send(Request::Credit { consumer: self.id, messages, bytes });
    }

    /// Says that a delivery was taken out of the sink; only a few are sent ahead of this.
    pub fn taken(&self) {
        let _ = self.requests.send(Request::Taken { consumer: self.id });
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.requests.send(Request::Leave { consumer: self.id });
    }
}

/// A pull under way. When its caller goes away, its place in line ends, and messages that were just handed to it are
/// released: nobody will see them.
struct Pulling<'a> {
    consumer: ConsumerId,
    name: SubscriptionName,
    requests: &'a mpsc::UnboundedSender<Request>,
    answer: oneshot::Receiver<Result<DeliveryBatch, BrokerError>>,
    answered: bool,
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.answer.close();
        let name = self.name.clone();
        let request = match self.answer.try_recv() {
            Ok(Ok(batch)) if !batch.value.is_empty() => {
                release(name, batch.value.into_iter().map(|delivery| delivery.ack_id))
            }
            _ => Request::Leave { consumer: self.consumer },
        };
        // Should it fail, the broker has ended.
        let _ = self.requests.send(request);
    }
}

/// Gives deliveries back that nobody will see, without having counted; nobody waits for the answer.
fn release(name: SubscriptionName, ack_ids: impl IntoIterator<Item = AckId>) -> Request {
    let release = |ack_id| Settlement { ack_id, ending: Ending::Release };
    let settlements = ack_ids.into_iter().map(release).collect();
    Request::Settle { name, settlements, reply: oneshot::channel().0 }
}

impl Broker {
    pub(crate) fn new(requests: mpsc::UnboundedSender<Request>, stop_reason: Arc<OnceLock<String>>) -> Self {
        Self { requests, stop_reason, last_consumer: Arc::default() }
    }

    fn next_consumer(&self) -> ConsumerId {
        ConsumerId(self.last_consumer.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(super) async fn call<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, BrokerError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(make(reply)).map_err(|_| self.gone())?;
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// A call that comes with memory for its answer: at first for `memory_bytes`, then for what it takes.
    pub(super) async fn fetch<T>(
        &self,
        outlet: &Outlet,
        mut memory_bytes: u64,
        make: impl Fn(Permit, Reply<Fetched<T>>) -> Request,
    ) -> Result<Held<T>, BrokerError> {
        loop {
            let memory = outlet.wait_to_look(memory_bytes).await;
            match self.call(|reply| make(memory, reply)).await? {
                Fetched::Whole(answer) => return Ok(answer),
                Fetched::TooLarge { memory_bytes: needed } => memory_bytes = needed.max(memory_bytes),
            }
        }
    }

    fn gone(&self) -> BrokerError {
        gone(&self.stop_reason)
    }

    pub async fn create_queue(
        &self,
        name: QueueName,
        config: QueueConfig,
        default_subscription: bool,
    ) -> Result<QueueView, BrokerError> {
        self.call(|reply| Request::CreateQueue { name, config, default_subscription, reply }).await
    }

    pub async fn get_queue(&self, name: QueueName) -> Result<QueueView, BrokerError> {
        self.call(|reply| Request::GetQueue { name, reply }).await
    }

    /// Queues of a namespace in order of name, those after `after`.
    pub async fn list_queues(
        &self,
        namespace: Name,
        after: Option<Name>,
        limit: usize,
    ) -> Result<Vec<QueueView>, BrokerError> {
        self.call(|reply| Request::ListQueues { namespace, after, limit, reply }).await
    }

    /// Gives a queue another configuration, if it still has the version that is `expected`.
    pub async fn update_queue(
        &self,
        name: QueueName,
        expected: Option<Version>,
        config: QueueConfig,
    ) -> Result<QueueView, BrokerError> {
        self.call(|reply| Request::UpdateQueue { name, expected, config, reply }).await
    }

    pub async fn delete_queue(&self, name: QueueName, expected: Option<Version>) -> Result<(), BrokerError> {
        self.call(|reply| Request::DeleteQueue { name, expected, reply }).await
    }

    pub async fn create_subscription(
        &self,
        name: SubscriptionName,
        config: SubscriptionConfig,
        start: Start,
    ) -> Result<SubscriptionView, BrokerError> {
        self.call(|reply| Request::CreateSubscription { name, config, start, reply }).await
    }

    pub async fn get_subscription(&self, name: SubscriptionName) -> Result<SubscriptionView, BrokerError> {
        self.call(|reply| Request::GetSubscription { name, reply }).await
    }

    /// Subscriptions of a queue in order of name, those after `after`.
    pub async fn list_subscriptions(
        &self,
        queue: QueueName,
        after: Option<Name>,
        limit: usize,
    ) -> Result<Vec<SubscriptionView>, BrokerError> {
        self.call(|reply| Request::ListSubscriptions { queue, after, limit, reply }).await
    }

    /// Gives a subscription another configuration, if it still has the version that is `expected`.
    pub async fn update_subscription(
        &self,
        name: SubscriptionName,
        expected: Option<Version>,
        config: SubscriptionConfig,
    ) -> Result<SubscriptionView, BrokerError> {
        self.call(|reply| Request::UpdateSubscription { name, expected, config, reply }).await
    }

    pub async fn delete_subscription(
        &self,
        name: SubscriptionName,
        expected: Option<Version>,
    ) -> Result<(), BrokerError> {
        self.call(|reply| Request::DeleteSubscription { name, expected, reply }).await
    }

    /// Stops delivery until the resume; publishes are held, or refused.
    pub async fn pause(&self, target: Target, refuses: bool, reason: String) -> Result<Pause, BrokerError> {
        self.call(|reply| Request::Pause { target, refuses, reason, reply }).await
    }

    /// Goes on with delivery; gives how many messages were published during the pause.
    pub async fn resume(&self, target: Target) -> Result<u64, BrokerError> {
        self.call(|reply| Request::Resume { target, reply }).await
    }

    /// The offset of the first retained message that was published at `time_us` or later, or the queue's next one.
    pub async fn locate(&self, queue: QueueName, time_us: u64) -> Result<Offset, BrokerError> {
        self.call(|reply| Request::Locate { queue, time_us, reply }).await
    }

    /// Stores messages, all or none, and answers when they are on disk.
    pub async fn publish(
        &self,
        queue: QueueName,
        messages: Vec<NewMessage>,
        producer: Option<ProducerStamp>,
    ) -> Result<Published, BrokerError> {
        self.publish_held(Publish { queue, messages, producer }, None).await
    }

    /// The same for messages that have memory: the broker holds it for as long as it has them, though the call is dropped.
    pub async fn publish_held(
        &self,
        publish: Publish,
        memory: Option<Permit>,
    ) -> Result<Published, BrokerError> {
        self.call(|reply| Request::Publish { publish, memory, reply }).await
    }

    /// Leases waiting messages; an empty answer means that none came within the wait.
    pub async fn pull(
        &self,
        name: SubscriptionName,
        options: PullOptions,
        outlet: Outlet,
    ) -> Result<DeliveryBatch, BrokerError> {
        let (reply, answer) = oneshot::channel();
        let consumer = self.next_consumer();
        let request = Request::Pull { consumer, name: name.clone(), options, outlet, reply };
        self.requests.send(request).map_err(|_| self.gone())?;
        let mut pulling = Pulling { consumer, name, requests: &self.requests, answer, answered: false };
        let answer = (&mut pulling.answer).await;
        pulling.answered = true;
        answer.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Opens a stream of deliveries; it starts without credit.
    pub async fn subscribe(
        &self,
        name: SubscriptionName,
        options: SubscribeOptions,
    ) -> Result<Consumer, BrokerError> {
        let consumer = Consumer { id: self.next_consumer(), requests: self.requests.clone() };
        self.call(|reply| Request::Subscribe { consumer: consumer.id, name, options, reply }).await?;
        Ok(consumer)
    }

    /// Ends deliveries; one outcome per settlement, in order.
    pub async fn settle(
        &self,
        name: SubscriptionName,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Settled>, BrokerError> {
        self.call(|reply| Request::Settle { name, settlements, reply }).await
    }

    /// Gives deliveries back that nobody will see, without having counted. Does not wait; calls made after it find it
    /// done.
    pub fn release(&self, name: SubscriptionName, ack_ids: impl IntoIterator<Item = AckId>) {
        // Should it fail, the broker has ended.
        let _ = self.requests.send(release(name, ack_ids));
    }

    /// Lets leases last `lease_us` from now; one outcome per id, in order.
    pub async fn extend(
        &self,
        name: SubscriptionName,
        ack_ids: Vec<AckId>,
        lease_us: u64,
    ) -> Result<Vec<Settled>, BrokerError> {
        self.call(|reply| Request::Extend { name, ack_ids, lease_us, reply }).await
    }

    /// Reads messages without leasing them, from `from` or the earliest that is waiting for some subscription.
    pub async fn peek(
        &self,
        queue: QueueName,
        from: Option<Offset>,
        messages_max: u32,
        bytes_max: u64,
        outlet: &Outlet,
    ) -> Result<Held<Vec<StoredMessage>>, BrokerError> {
        let make = |memory, reply| {
            let queue = queue.clone();
            Request::Peek { queue, from, messages_max, bytes_max, memory, reply }
        };
        self.fetch(outlet, memory_of(1, PEEK_BYTES), make).await
    }

    /// Finishes the messages of a queue below `end`, by default all; gives the offset below which none comes any more.
    pub async fn purge(&self, queue: QueueName, end: Option<Offset>) -> Result<Offset, BrokerError> {
        self.call(|reply| Request::Purge { queue, end, reply }).await
    }

    /// Finishes a message that nobody holds.
    pub async fn cancel(&self, queue: QueueName, queue_uid: Uid, offset: Offset) -> Result<(), BrokerError> {
        self.call(|reply| Request::Cancel { queue, queue_uid, offset, reply }).await
    }

    pub async fn queue_stats(&self, queue: QueueName) -> Result<QueueStats, BrokerError> {
        self.call(|reply| Request::QueueStats { queue, reply }).await
    }

    pub async fn server_stats(&self) -> Result<ServerStats, BrokerError> {
        self.call(|reply| Request::ServerStats { reply }).await
    }

    /// Refuses new work, answers what is under way, and returns when all of it is on disk; fails if there is no space for
    /// it.
    pub async fn drain(&self) -> Result<(), BrokerError> {
        self.call(|reply| Request::Drain { reply }).await
    }

    /// Writes what is left, closes the log and ends the broker; calls after it fail.
    pub async fn close(&self) -> Result<(), BrokerError> {
        self.call(|reply| Request::Close { reply }).await
    }
}
