//! Deliveries: a stream of them, and how each ends.
//!
//! 1. Credit is given for what is asked for and the prefetch, no more. Of bodies at most two batches of 1 MiB (or one
//!    message) wait at the broker's side of the channel, and one here.
//! 2. What was leased for a stream and never given out is released when the stream is dropped.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio_stream::Stream;

use super::Shared;
use super::error::Error;
use super::message::{Message, system_time};
use super::options::{duration_us, lease_us};
use super::subscription::Subscription;
use crate::broker::api::{self, AckId, Consumer, Settlement};
use crate::core::types::{Ending, Settled};
use crate::limits::{CREDIT_BYTES_MAX, ERROR_TEXT_BYTES_MAX, RETRY_DELAY_US_MAX};
use crate::names::SubscriptionName;
use crate::record::bounds::OutOfBounds;
use crate::record::meta::{DeadLetter, Meta};

/// A message that was handed out, until its lease ends.
///
/// It is ended by [`ack`](Self::ack), [`retry`](Self::retry), [`release`](Self::release) or [`reject`](Self::reject),
/// and the end is durable when the call is ready. Dropped without an end, the message comes again when its lease ends,
/// and the attempt counts. An end that failed, or whose future was dropped, may be tried again: the first one holds.
#[derive(Clone, Debug)]
#[must_use = "a delivery that is not ended comes again when its lease ends"]
pub struct Delivery {
    pub message: Message,
    /// Its place in the queue.
    pub offset: u64,
    /// Deliveries of this message on this subscription so far, this one included.
    pub attempt: u32,
    /// How long the lease lasted when the message was handed out.
    pub lease: Duration,
    /// When it was published, by the wall clock.
    pub publish_time: SystemTime,
    /// How it came into a dead-letter queue, if this is one.
    pub dead_letter: Option<DeadLetter>,
    ack_id: AckId,
    subscription: Subscription,
}

impl Delivery {
    pub(super) fn new(
        shared: &Arc<Shared>,
        name: &SubscriptionName,
        delivery: api::Delivery,
    ) -> Result<Self, Error> {
        let api::Delivery { ack_id, attempt, lease_us, message } = delivery;
        let damaged = |_| Error::DataLoss { queue: name.queue.clone(), offset: message.offset };
        let meta = Meta::decode(&message.meta).map_err(damaged)?;
        let attributes = meta.attributes.into_iter().collect();
        Ok(Self {
            message: Message { body: message.body, attributes, source: meta.source.unwrap_or_default() },
            offset: message.offset.0,
            attempt,
            lease: Duration::from_micros(lease_us),
            publish_time: system_time(message.publish_time_us),
            dead_letter: meta.dead_letter,
            ack_id,
            subscription: Subscription { shared: shared.clone(), name: name.clone() },
        })
    }

    pub(super) fn ack_id(&self) -> AckId {
        self.ack_id
    }

    /// Finishes the message: it does not come to this subscription again. Counts even if the lease has run out, as long
    /// as the message was not handed out again.
    ///
    /// # Errors
    /// [`Error::LeaseLost`]; [`Error::Refused`] if the subscription is gone; [`Error::DiskFull`] if not even this can
    /// be written; [`Error::Closed`]; [`Error::Stopped`].
    pub async fn ack(&self) -> Result<(), Error> {
        self.end(Ending::Ack).await
    }

    /// Lets the message come again after a delay of up to 7 days; none means as the subscription's backoff says. After
    /// the last attempt it goes to the dead-letter queue, with the error of up to 1,024 bytes.
    ///
    /// # Errors
    /// As [`Delivery::ack`]; [`Error::Range`]; [`Error::OutOfBounds`]; [`Error::NotNow`] and [`Error::NotPossible`] as
    /// [`Delivery::reject`].
    pub async fn retry(&self, delay: Option<Duration>, error: &str) -> Result<(), Error> {
        let delay_us = |delay| duration_us("the delay", delay, 0..=RETRY_DELAY_US_MAX);
        let delay_us = delay.map(delay_us).transpose()?;
        self.end(Ending::Retry { delay_us, error: error_text(error)? }).await
    }

    /// Lets the message come again at once; the attempt does not count. For what was taken and not begun.
    ///
    /// # Errors
    /// As [`Delivery::ack`].
    pub async fn release(&self) -> Result<(), Error> {
        self.end(Ending::Release).await
    }

    /// Moves the message to the dead-letter queue, with the error of up to 1,024 bytes.
    ///
    /// # Errors
    /// As [`Delivery::ack`]; [`Error::OutOfBounds`]; [`Error::NotNow`] if the message cannot be read;
    /// [`Error::NotPossible`] if there is no dead-letter queue that it could go to: the lease goes on.
    pub async fn reject(&self, error: &str) -> Result<(), Error> {
        self.end(Ending::Reject { error: error_text(error)? }).await
    }

    /// Lets the lease last this long from now, 1 s to 12 h. Dropped before it is ready, it may have been extended.
    ///
    /// # Errors
    /// As [`Delivery::ack`]; [`Error::Range`].
    pub async fn extend(&self, lease: Duration) -> Result<(), Error> {
        let Subscription { shared, name } = &self.subscription;
        let extended = shared.broker.extend(name.clone(), vec![self.ack_id], lease_us(lease)?).await;
        self.outcome(extended)
    }

    async fn end(&self, ending: Ending) -> Result<(), Error> {
        let Subscription { shared, name } = &self.subscription;
        let settlement = Settlement { ack_id: self.ack_id, ending };
        let settled = shared.broker.settle(name.clone(), vec![settlement]).await;
        self.outcome(settled)
    }

    fn outcome(&self, answer: Result<Vec<Settled>, api::BrokerError>) -> Result<(), Error> {
        let settled = answer.map_err(|error| self.subscription.shared.error(error))?;
        settled.into_iter().try_for_each(Error::settled)
    }
}

fn error_text(text: &str) -> Result<String, Error> {
    if text.len() > ERROR_TEXT_BYTES_MAX {
        let (unit, actual, limit) = ("bytes", text.len(), ERROR_TEXT_BYTES_MAX);
        return Err(OutOfBounds::Over { field: "error".to_owned(), unit, actual, limit }.into());
    }
    Ok(text.to_owned())
}

/// A stream of deliveries. It ends when the broker is closed, or after an error that is for good: the subscription was
/// deleted, or the log has stopped. [`Error::DataLoss`] stands for one message, and the stream goes on.
///
/// Dropping it releases what was taken ahead; deliveries that it gave out stay leased.
#[must_use = "a stream takes messages when it is polled"]
pub struct Deliveries {
    subscription: Subscription,
    consumer: Consumer,
    batches: mpsc::UnboundedReceiver<api::DeliveryBatch>,
    ready: VecDeque<api::Delivery>,
    prefetch: u64,
    /// Messages that the broker may send and that were not given out yet.
    granted: u64,
    /// Body bytes given out since the last grant.
    bytes: u64,
    end: End,
}

enum End {
    NotYet,
    /// The broker has ended the stream and is asked why.
    Asking(Pin<Box<dyn Future<Output = Option<Error>> + Send>>),
    Reached,
}

impl Deliveries {
    pub(super) fn new(
        subscription: Subscription,
        consumer: Consumer,
        batches: mpsc::UnboundedReceiver<api::DeliveryBatch>,
        prefetch: u32,
    ) -> Self {
        let (ready, prefetch) = (VecDeque::new(), prefetch.into());
        let (granted, bytes, end) = (0, CREDIT_BYTES_MAX, End::NotYet);
        Self { subscription, consumer, batches, ready, prefetch, granted, bytes, end }
    }

    /// The next delivery, when there is one. Nothing is lost if it is dropped before it is ready: what had come is
    /// given out next time.
    pub async fn next(&mut self) -> Option<Result<Delivery, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Lets the broker send what is asked for now, and the prefetch.
    fn grant(&mut self) {
        let more = (1 + self.prefetch).saturating_sub(self.granted);
        if more > 0 {
            self.granted += more;
            self.consumer.add_credit(more, std::mem::take(&mut self.bytes));
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Option<api::Delivery>> {
        while self.ready.is_empty() {
            let Some(batch) = ready!(self.batches.poll_recv(cx)) else { return Poll::Ready(None) };
            self.consumer.taken();
            // What is taken from here on is the caller's, and counts no more.
            self.ready = batch.value.into();
        }
        Poll::Ready(self.ready.pop_front())
    }

    /// Why the broker has ended the deliveries; nothing if it was closed.
    fn ask(&self) -> Pin<Box<dyn Future<Output = Option<Error>> + Send>> {
        let Subscription { shared, name } = self.subscription.clone();
        Box::pin(async move {
            match shared.broker.get_subscription(name).await.map_err(|error| shared.error(error)) {
                Err(Error::Closed) => None,
                Err(Error::Stopped { why }) => Some(Error::Stopped { why }),
                // If it is there, it was made again.
                Ok(_) | Err(_) => Some(Error::SubscriptionDeleted),
            }
        })
    }
}

impl Stream for Deliveries {
    type Item = Result<Delivery, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let End::NotYet = this.end {
            this.grant();
            match ready!(this.poll_ready(cx)) {
                Some(delivery) => {
                    this.granted -= 1;
                    this.bytes += delivery.message.body.len() as u64;
                    let Subscription { shared, name } = &this.subscription;
                    return Poll::Ready(Some(Delivery::new(shared, name, delivery)));
                }
                None => this.end = End::Asking(this.ask()),
            }
        }
        let End::Asking(asking) = &mut this.end else { return Poll::Ready(None) };
        let why = ready!(asking.as_mut().poll(cx));
        this.end = End::Reached;
        Poll::Ready(why.map(Err))
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.batches.close();
        let mut unseen: Vec<api::Delivery> = std::mem::take(&mut self.ready).into();
        while let Ok(batch) = self.batches.try_recv() {
            unseen.extend(batch.value);
        }
        if !unseen.is_empty() {
            let Subscription { shared, name } = &self.subscription;
            shared.broker.release(name.clone(), unseen.into_iter().map(|delivery| delivery.ack_id));
        }
    }
}

impl std::fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deliveries").field("subscription", &self.subscription.name()).finish_non_exhaustive()
    }
}
