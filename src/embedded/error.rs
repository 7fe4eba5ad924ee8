//! What callers are told.

use crate::broker;
use crate::broker::api::BrokerError;
use crate::core::types::{Reject, Settled};
use crate::ids::Offset;
use crate::names::{NameError, QueueName};
use crate::record::bounds::OutOfBounds;

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Log(#[from] broker::OpenError),
    #[error("the broker's thread cannot be started: {0}")]
    Thread(#[source] std::io::Error),
    #[error("recovery has panicked, which is a bug; the data directory is as it was")]
    Panicked,
}

/// Why something was not done. Nothing of a refused call took effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Name(#[from] NameError),
    /// A message or a publish has a size that is not allowed.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
    /// A value is out of its range.
    #[error("{what} is {given}; give {allowed}")]
    Range { what: &'static str, given: String, allowed: String },
    /// It does not fit what exists.
    #[error(transparent)]
    Refused(#[from] Reject),
    #[error("the request takes {bytes} bytes in the log; at most {max} fit one commit")]
    RequestTooLarge { bytes: u64, max: u64 },
    #[error("a message of queue {queue} is damaged on disk at offset {offset}; check the disk")]
    DataLoss { queue: QueueName, offset: Offset },
    #[error("the queue was deleted")]
    QueueDeleted,
    #[error("the subscription was deleted")]
    SubscriptionDeleted,
    /// Publishing goes on by itself when there is space again; endings of deliveries are still taken.
    #[error("the disk is full; finish messages, delete queues or give it more space")]
    DiskFull,
    /// The message was handed out again since, or is finished: somebody else decides, or has decided, how it ends.
    #[error("the delivery's lease is lost; its message is with another consumer, or finished")]
    LeaseLost,
    /// The lease goes on; the same call may succeed later.
    #[error("not now: {why}")]
    NotNow { why: String },
    /// The lease goes on; end the delivery in another way.
    #[error("not possible for this message: {why}")]
    NotPossible { why: String },
    #[error("the broker was closed")]
    Closed,
    /// A write or a sync has failed. Whether the request took effect is known after the directory is opened again.
    #[error("the log has stopped: {why}; open the data directory again once the cause is mended")]
    Stopped { why: String },
}

impl Error {
    /// `closing`: the broker was asked to close, so its end is no failure.
    pub(super) fn of(error: BrokerError, closing: bool) -> Self {
        match error {
            BrokerError::Rejected(reject) => Self::Refused(reject),
            BrokerError::RequestTooLarge { bytes, max } => Self::RequestTooLarge { bytes, max },
            BrokerError::DataLoss { queue, offset } => Self::DataLoss { queue, offset },
            BrokerError::QueueDeleted => Self::QueueDeleted,
            BrokerError::OtherQueue { .. } | BrokerError::TooManyTails { .. } => {
                unreachable!("nothing is followed in process")
            }
            BrokerError::SubscriptionDeleted => Self::SubscriptionDeleted,
            BrokerError::DiskFull => Self::DiskFull,
            BrokerError::Draining => Self::Closed,
            BrokerError::LogStopped { .. } if closing => Self::Closed,
            BrokerError::LogStopped { why } => Self::Stopped { why },
        }
    }

    /// What became of one delivery that was to be ended or extended.
    pub(super) fn settled(settled: Settled) -> Result<(), Self> {
        match settled {
            Settled::Ok => Ok(()),
            // One of a subscription that was deleted and made again under its name is not known to the new one.
            Settled::Stale | Settled::Invalid => Err(Self::LeaseLost),
            Settled::Transient { why } => Err(Self::NotNow { why }),
            Settled::Refused { why } => Err(Self::NotPossible { why }),
        }
    }
}
