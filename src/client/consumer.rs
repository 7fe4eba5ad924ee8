//! Consuming: a handler for each delivery, as many at once as wanted.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::error::ClientError;
use super::lease::Lease;
use super::session::Session;
use crate::proto::v1::Message;
use crate::proto::v1::message_service_client::MessageServiceClient;

/// How much a consumer takes at once.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerOptions {
    /// Handlers that run at one time, 1 to 10,000.
    pub concurrency: u32,
    /// Body bytes of the messages being handled; the last one may exceed it.
    pub bytes: u64,
    /// The lease of a delivery, 1 s to 12 h; none means the subscription's. It is extended at a third of it while the
    /// handler runs.
    pub lease: Option<Duration>,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self { concurrency: 100, bytes: 64 << 20, lease: None }
    }
}

/// A message to handle.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub message: Message,
    /// Deliveries of this message on this subscription so far, this one included.
    pub attempt: u32,
    /// Says when the message may be with another consumer.
    pub lease: Lease,
}

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Done: not delivered to this subscription again.
    Ack,
    /// Deliver again after a delay of up to 7 days; none means as the subscription says. The attempt counts.
    Retry { delay: Option<Duration> },
    /// Deliver again at once; the attempt does not count.
    Release,
    /// Move to the dead-letter queue; why, in up to 1,024 bytes.
    Reject { error: String },
}

/// A consumer at work. Dropping it drops its handlers where they are; their messages come again when their leases
/// end.
#[derive(Debug)]
#[must_use = "a consumer ends when it is dropped"]
pub struct Consumer {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), ClientError>>,
}

impl Consumer {
    pub(super) fn start<F, R>(
        client: MessageServiceClient<Channel>,
        subscription: String,
        options: ConsumerOptions,
        handler: F,
    ) -> Self
    where
        F: Fn(Delivery) -> R + Send + Sync + 'static,
        R: Future<Output = Ending> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        let session = Session::new(client, subscription, options, handler);
        Self { stop, task: tokio::spawn(session.run(stopped)) }
    }

    /// Takes nothing more, waits for the handlers that run and until the server knows how they ended, and releases
    /// what had come besides. If the server is away that is when it is back.
    ///
    /// Dropped before it is ready, the consumer is dropped, and its handlers where they are.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the consumer had ended before: the subscription is gone, or never was.
    pub async fn stop(mut self) -> Result<(), ClientError> {
        self.stop.send_replace(true);
        self.ended().await
    }

    /// Waits until it ends by itself, which it does only for good. Waiting may be given up and begun again.
    ///
    /// # Errors
    /// As [`Consumer::stop`].
    pub async fn ended(&mut self) -> Result<(), ClientError> {
        (&mut self.task).await.unwrap_or(Err(ClientError::Ended))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
