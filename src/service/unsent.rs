//! Deliveries that were made up for a stream and did not go out: they go back at once, without having counted. What HTTP/2
//! has taken is the client's; whether it has read it, nobody knows, and its lease says when it comes again.

use crate::broker::api::{AckId, Broker};
use crate::names::SubscriptionName;

/// Where the deliveries of one stream go back to.
#[derive(Debug)]
pub struct Unsent {
    pub broker: Broker,
    pub name: SubscriptionName,
}

impl Unsent {
    pub fn give_back(&self, ack_ids: Vec<AckId>) {
        if !ack_ids.is_empty() {
            self.broker.release(self.name.clone(), ack_ids);
        }
    }
}
