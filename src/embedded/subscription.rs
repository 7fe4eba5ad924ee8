//! A subscription: taking messages, once or as a stream.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Shared;
use super::delivery::{Deliveries, Delivery};
use super::error::Error;
use crate::broker::api::{PullOptions, Settlement, SubscribeOptions};
use crate::core::types::Ending;
use crate::limits::{PULL_BYTES_MAX, PULL_MESSAGES_MAX};
use crate::names::SubscriptionName;

/// A subscription, by its name: if it is deleted and made again, the handle stands for the new one.
#[derive(Clone, Debug)]
pub struct Subscription {
    pub(super) shared: Arc<Shared>,
    pub(super) name: SubscriptionName,
}

impl Subscription {
    /// Its full name.
    pub fn name(&self) -> String {
        self.name.to_string()
    }

    /// Takes up to `most` waiting messages, at most 1,000 and about 8 MiB, as soon as there are any; none if none
    /// came within `wait`, or if the broker is closing.
    ///
    /// Dropped before it is ready, no message is taken: what had been is released.
    ///
    /// # Errors
    /// [`Error::Refused`] if the subscription does not exist; [`Error::SubscriptionDeleted`] if it is deleted
    /// meanwhile; [`Error::DataLoss`] if all that it would have got is damaged; [`Error::Closed`]; [`Error::Stopped`].
    pub async fn pull(&self, most: u32, wait: Duration) -> Result<Vec<Delivery>, Error> {
        let messages_max = most.clamp(1, PULL_MESSAGES_MAX);
        let options = PullOptions { messages_max, bytes_max: PULL_BYTES_MAX, wait, lease_us: None };
        let outlet = self.shared.outflow.outlet();
        let pulled = self.shared.broker.pull(self.name.clone(), options, outlet).await;
        // What is given out is the caller's, and counts no more.
        let pulled = pulled.map_err(|error| self.shared.error(error))?.value;
        pulled.into_iter().map(|delivery| Delivery::new(&self.shared, &self.name, delivery)).collect()
    }

    /// Opens a stream of deliveries. Each is taken when it is asked for, and `prefetch` more besides: that saves time
    /// where handling is short, but their leases run while they wait. 0 is right where a message takes a while.
    ///
    /// Dropped before it is ready, no message is taken.
    ///
    /// # Errors
    /// [`Error::Refused`] if the subscription does not exist; [`Error::Closed`]; [`Error::Stopped`].
    pub async fn subscribe(&self, prefetch: u32) -> Result<Deliveries, Error> {
        let (sink, batches) = mpsc::unbounded_channel();
        let outlet = self.shared.outflow.outlet();
        let options = SubscribeOptions { lease_us: None, outlet, sink };
        let opened = self.shared.broker.subscribe(self.name.clone(), options).await;
        let consumer = opened.map_err(|error| self.shared.error(error))?;
        Ok(Deliveries::new(self.clone(), consumer, batches, prefetch))
    }

    /// Acknowledges many deliveries with one sync; the results are in their order, as of [`Delivery::ack`].
    ///
    /// Dropped before it is ready, they may be finished or not; they may be acknowledged again.
    ///
    /// # Errors
    /// [`Error::Refused`] if the subscription does not exist; [`Error::DiskFull`] if not even this can be written;
    /// [`Error::Closed`]; [`Error::Stopped`]. A delivery of another subscription counts as [`Error::LeaseLost`].
    pub async fn ack_batch(&self, deliveries: &[Delivery]) -> Result<Vec<Result<(), Error>>, Error> {
        let ack = |delivery: &Delivery| Settlement { ack_id: delivery.ack_id(), ending: Ending::Ack };
        let settlements = deliveries.iter().map(ack).collect();
        let settled = self.shared.broker.settle(self.name.clone(), settlements).await;
        let settled = settled.map_err(|error| self.shared.error(error))?;
        Ok(settled.into_iter().map(Error::settled).collect())
    }

    /// Deletes the subscription: its streams end, and its messages are kept for others only.
    ///
    /// Dropped before it is ready, it may exist or not.
    ///
    /// # Errors
    /// [`Error::Refused`] if it does not exist.
    pub async fn delete(self) -> Result<(), Error> {
        let deleted = self.shared.broker.delete_subscription(self.name, None).await;
        deleted.map_err(|error| self.shared.error(error))
    }
}
