//! The broker in a process of your own: the same queues, the same log, no server and no network.
//!
//! # Contract
//! 1. What a call reports is on disk, synced, as with the server: a publish, an ending of a delivery, a queue that was
//!    made. Calls under way at one time share their syncs, so many tasks, or [`Queue::send`], are faster than one.
//! 2. A data directory belongs to one process, and in it to one [`Forebay`]: it is locked while it is open, by a
//!    server too. A second [`Forebay::open`] fails and names the holder.
//! 3. The broker has a thread and a small runtime of its own. The calls work on any executor, and a caller who blocks
//!    holds up nobody else.
//! 4. Memory is bounded: bodies wait on disk; publishes without an answer hold at most 64 MiB, messages that were read
//!    and not given out 24 MiB; further ones wait.
//! 5. At least once: a delivery that is not ended comes again when its lease does, here or after a restart.
//! 6. After the first failed write or sync every call fails with [`Error::Stopped`]. Drop everything and open again:
//!    what was reported is there.
//!
//! Each call says what remains when its future is dropped before it is ready.

mod delivery;
mod error;
mod message;
mod options;
mod queue;
mod subscription;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

pub use delivery::{Deliveries, Delivery};
pub use error::{Error, OpenError};
pub use message::{Message, Stored};
pub use options::SubscriptionOptions;
pub use queue::{Queue, Receipt};
pub use subscription::Subscription;

pub use crate::broker::QueueOffsets;
pub use crate::core::types::{Reject, Start};
pub use crate::log::{Damage, Torn};
pub use crate::record::bounds::OutOfBounds;
pub use crate::record::meta::{DeadLetter, DeadLetterReason};

use crate::admission::{Admission, Outflow};
use crate::broker::Opened;
use crate::broker::api::{Broker, BrokerError};
use crate::core::types::QueueConfig;
use crate::ids::SegmentNumber;
use crate::limits::REQUEST_BYTES_MAX;
use crate::log::SEGMENT_BYTES_DEFAULT;
use crate::names::{DEFAULT_NAMESPACE, Name, NameError, QueueName};
use crate::node;

/// Memory for publishes under way, bytes.
const PUBLISH_BUDGET_BYTES: u64 = 64 << 20;

/// A broker at work in this process, on a data directory of its own.
///
/// Queues are named `jobs`, in the namespace `default`, or in full `namespaces/{namespace}/queues/{queue}`. Handles of
/// queues and subscriptions are names: they are cheap to clone, and share the broker. When the last handle is dropped
/// the broker closes in the background; [`Forebay::close`] waits for that.
///
/// ```
/// use std::time::Duration;
///
/// use forebay::Forebay;
/// use forebay::embedded::Message;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let data_dir = folder.path().join("data");
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let forebay = Forebay::open(&data_dir).await?;
/// let jobs = forebay.create_queue("jobs").await?;
///
/// // On disk when it answers.
/// let stored = jobs.publish(Message::new("resize 1.png").attribute("tenant", "acme")).await?;
/// assert_eq!(stored.offsets, 0..1);
///
/// // Pipelined: both are under way before the first is on disk.
/// let second = jobs.send(vec![Message::new("resize 2.png")]).await?;
/// let third = jobs.send(vec![Message::new("resize 3.png")]).await?;
/// assert_eq!((second.await?.offsets, third.await?.offsets), (1..2, 2..3));
///
/// let mut deliveries = jobs.subscription("default").await?.subscribe(0).await?;
/// for offset in 0..3 {
///     let delivery = deliveries.next().await.expect("the broker is open")?;
///     assert_eq!((delivery.offset, delivery.attempt), (offset, 1));
///     delivery.extend(Duration::from_secs(60)).await?; // if it takes longer than its lease
///     delivery.ack().await?;
/// }
/// forebay.close().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })
/// # }
/// ```
#[derive(Debug)]
pub struct Forebay {
    shared: Arc<Shared>,
    recovery: Recovery,
    ended: oneshot::Receiver<Result<(), BrokerError>>,
}

/// What opening found. Nothing of it is lost silently: who opens a data directory should look at it.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Messages that wait for some subscription.
    pub waiting_messages: u64,
    /// A last commit that was never finished, as after a crash, and so never reported. Its bytes are kept.
    pub torn: Vec<Torn>,
    /// Data loss: parts of the log that could not be read. Their bytes are kept.
    pub damage: Vec<Damage>,
    /// Data loss: messages that are known to be lost with them.
    pub lost: Vec<QueueOffsets>,
    /// Data loss: offsets of messages that may be lost with them, and that are given to no others.
    pub left_out: Vec<QueueOffsets>,
    /// Data loss: segments whose files are missing.
    pub missing: Vec<SegmentNumber>,
    /// Files that were not of the log, where they are now.
    pub set_aside: Vec<PathBuf>,
}

/// What the handles share.
#[derive(Debug)]
struct Shared {
    broker: Broker,
    admission: Admission,
    outflow: Outflow,
    closing: AtomicBool,
}

impl Shared {
    fn error(&self, error: BrokerError) -> Error {
        Error::of(error, self.closing.load(Ordering::Relaxed))
    }
}

impl Forebay {
    /// Opens a data directory, makes it if there is none, and recovers what it holds; how long that takes does not
    /// depend on the backlog. A new data directory takes a few hundred MiB for its first segments.
    ///
    /// Dropped before it is ready, the directory is closed again in the background.
    ///
    /// # Errors
    /// [`OpenError::Log`] if another process, or another handle in this one, has the directory, or if it cannot be
    /// read or written; the error says what to do.
    pub async fn open(data_dir: impl AsRef<Path>) -> Result<Self, OpenError> {
        let data_dir = data_dir.as_ref().to_owned();
        let (opened, opening) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("forebay".to_owned());
        thread.spawn(move || run(&data_dir, opened, end)).map_err(OpenError::Thread)?;
        let (broker, recovery) = opening.await.map_err(|_| OpenError::Panicked)??;
        let admission = Admission::new(PUBLISH_BUDGET_BYTES, REQUEST_BYTES_MAX as u64);
        let shared = Arc::new(Shared {
            broker,
            admission,
            outflow: Outflow::default(),
            closing: AtomicBool::new(false),
        });
        Ok(Self { shared, recovery, ended })
    }

    /// What opening found.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Makes a queue with the subscription `default`.
    ///
    /// Dropped before it is ready, the queue may exist or not.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Refused`] with [`Reject::QueueExists`].
    pub async fn create_queue(&self, name: &str) -> Result<Queue, Error> {
        let name = queue_name(name)?;
        let created = self.shared.broker.create_queue(name, QueueConfig::default(), true).await;
        created.map(|view| self.handle(view.name)).map_err(|error| self.shared.error(error))
    }

    /// A queue that exists. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Refused`] with [`Reject::QueueNotFound`].
    pub async fn queue(&self, name: &str) -> Result<Queue, Error> {
        let found = self.shared.broker.get_queue(queue_name(name)?).await;
        found.map(|view| self.handle(view.name)).map_err(|error| self.shared.error(error))
    }

    /// A queue, made as [`Forebay::create_queue`] does if there is none.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub async fn queue_or_create(&self, name: &str) -> Result<Queue, Error> {
        match self.create_queue(name).await {
            Err(Error::Refused(Reject::QueueExists(name))) => Ok(self.handle(name)),
            created => created,
        }
    }

    /// Takes nothing more, answers what is under way, and returns when all of it is on disk and the data directory can
    /// be opened again. Waiting pulls are answered with nothing, streams of deliveries end; leases stay as they are.
    ///
    /// Dropped before it is ready, it goes on in the background.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the log had failed, or fails now, also as the disk is full: then what was not reported is not
    /// on disk.
    pub async fn close(self) -> Result<(), Error> {
        let Self { shared, ended, .. } = self;
        shared.closing.store(true, Ordering::Relaxed);
        // Should they fail, the end says why.
        let _ = shared.broker.drain().await;
        let _ = shared.broker.close().await;
        let panicked = |_| Error::Stopped { why: "the broker has panicked, which is a bug".to_owned() };
        ended.await.map_err(panicked)?.map_err(|error| Error::of(error, false))
    }

    fn handle(&self, name: QueueName) -> Queue {
        Queue { shared: self.shared.clone(), name }
    }
}

/// The broker's thread.
fn run(
    data_dir: &Path,
    opened: oneshot::Sender<Result<(Broker, Recovery), OpenError>>,
    end: oneshot::Sender<Result<(), BrokerError>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let started = runtime.map_err(OpenError::Thread).and_then(|runtime| {
        let opened = node::open(data_dir, SEGMENT_BYTES_DEFAULT)?;
        Ok((runtime, opened))
    });
    let (runtime, found) = match started {
        Ok(started) => started,
        // Who has gone away wants no answer.
        Err(error) => return drop(opened.send(Err(error))),
    };
    let Opened { broker, task, waiting_messages, torn, damage, lost, left_out, set_aside, missing, .. } =
        found;
    let recovery = Recovery { waiting_messages, torn, damage, lost, left_out, missing, set_aside };
    // Should the caller have gone away, this was the last handle: the broker closes at once.
    let _ = opened.send(Ok((broker, recovery)));
    let result = runtime.block_on(task.run());
    // Waits for the reads that are under way.
    drop(runtime);
    let _ = end.send(result);
}

/// A queue's name, short or in full.
fn queue_name(text: &str) -> Result<QueueName, NameError> {
    if text.contains('/') {
        return QueueName::parse(text);
    }
    Ok(QueueName { namespace: Name::new(DEFAULT_NAMESPACE)?, queue: Name::new(text)? })
}

#[cfg(test)]
mod tests;
