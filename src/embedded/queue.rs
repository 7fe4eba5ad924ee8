//! A queue: publishing, and its subscriptions.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::Shared;
use super::error::Error;
use super::message::{Message, Stored};
use super::options::SubscriptionOptions;
use super::subscription::Subscription;
use crate::broker::pipeline::{Publish, Publishing};
use crate::names::{Name, QueueName, SubscriptionName};
use crate::record::bounds;

/// A queue, by its name: if it is deleted and made again, the handle stands for the new one.
#[derive(Clone, Debug)]
pub struct Queue {
    pub(super) shared: Arc<Shared>,
    pub(super) name: QueueName,
}

/// The answer to messages that were sent: ready when they are on disk, all or none. They are stored whether it is kept
/// or dropped.
///
/// # Errors
/// As [`Queue::publish`].
#[derive(Debug)]
#[must_use = "the messages are on disk only when the receipt is ready"]
pub struct Receipt {
    publishing: Publishing,
    shared: Arc<Shared>,
}

impl Future for Receipt {
    type Output = Result<Stored, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut results = ready!(Pin::new(&mut self.publishing).poll(cx));
        let result = results.pop().expect("a publish has a result");
        Poll::Ready(result.map(Stored::of).map_err(|error| self.shared.error(error)))
    }
}

impl Queue {
    /// Its full name.
    pub fn name(&self) -> String {
        self.name.to_string()
    }

    /// Stores a message, and answers when it is on disk.
    ///
    /// Dropped before it is ready, the message may be stored or not.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`]; [`Error::DiskFull`]; [`Error::Refused`] if the queue was deleted; [`Error::Closed`];
    /// [`Error::Stopped`].
    pub async fn publish(&self, message: Message) -> Result<Stored, Error> {
        self.publish_batch(vec![message]).await
    }

    /// Stores 1 to 1,000 messages of up to 8 MiB in all, all or none, and answers when they are on disk.
    ///
    /// Dropped before it is ready, they may be stored or not: all or none.
    ///
    /// # Errors
    /// As [`Queue::publish`].
    pub async fn publish_batch(&self, messages: Vec<Message>) -> Result<Stored, Error> {
        self.send(messages).await?.await
    }

    /// Hands over 1 to 1,000 messages of up to 8 MiB in all, to be stored all or none; waits only for memory. Messages
    /// are stored in the order in which they were handed over.
    ///
    /// Dropped before it is ready, nothing is stored.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`]. The receipt has the others.
    pub async fn send(&self, messages: Vec<Message>) -> Result<Receipt, Error> {
        bounds::check_count(messages.len())?;
        let messages: Vec<_> = messages.into_iter().map(Message::into_new).collect::<Result<_, _>>()?;
        let bytes = messages.iter().map(|message| message.parts.meta.len() + message.parts.body.len()).sum();
        bounds::check_bytes(bytes)?;
        let memory = self.shared.admission.wait(bytes as u64).await;
        let publish = Publish { queue: self.name.clone(), messages, producer: None };
        let publishing = self.shared.broker.publish_all(vec![publish], Some(memory));
        Ok(Receipt { publishing, shared: self.shared.clone() })
    }

    /// Makes a subscription: a reader of all messages of the queue with its own state.
    ///
    /// Dropped before it is ready, the subscription may exist or not.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Range`]; [`Error::Refused`] if it exists, if the queue does not, or if the start or
    /// the dead-letter queue does not fit.
    pub async fn create_subscription(
        &self,
        name: &str,
        options: SubscriptionOptions,
    ) -> Result<Subscription, Error> {
        let name = self.subscription_name(name)?;
        let created = self.shared.broker.create_subscription(name, options.config()?, options.start).await;
        created.map(|view| self.handle(view.name)).map_err(|error| self.shared.error(error))
    }

    /// A subscription that exists; every queue is made with one that is called `default`. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Refused`] if it does not exist.
    pub async fn subscription(&self, name: &str) -> Result<Subscription, Error> {
        let found = self.shared.broker.get_subscription(self.subscription_name(name)?).await;
        found.map(|view| self.handle(view.name)).map_err(|error| self.shared.error(error))
    }

    /// Deletes the queue, its subscriptions and its messages.
    ///
    /// Dropped before it is ready, it may exist or not.
    ///
    /// # Errors
    /// [`Error::Refused`] if it does not exist.
    pub async fn delete(self) -> Result<(), Error> {
        let deleted = self.shared.broker.delete_queue(self.name, None).await;
        deleted.map_err(|error| self.shared.error(error))
    }

    fn subscription_name(&self, name: &str) -> Result<SubscriptionName, Error> {
        Ok(SubscriptionName { queue: self.name.clone(), subscription: Name::new(name)? })
    }

    fn handle(&self, name: SubscriptionName) -> Subscription {
        Subscription { shared: self.shared.clone(), name }
    }
}
