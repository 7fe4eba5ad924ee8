//! Messages between their protobuf form and the form in which the broker keeps them.

use std::fmt::{Arguments, Display};

use tonic::Status;

use super::check::{at_most, invalid, not_built, output_only};
use super::status::Refusal;
use super::{time, token};
use crate::broker::api::{BrokerError, Delivery, NewMessage, StoredMessage};
use crate::limits::*;
use crate::names::QueueName;
use crate::proto::v1;
use crate::record::bounds::{self, OutOfBounds};
use crate::record::meta::{DeadLetter, DeadLetterReason, Meta};
use crate::record::{Lane, StoredParts};

/// Checks the messages of one publish and turns them into what is stored.
pub fn to_store(messages: Vec<v1::Message>) -> Result<Vec<NewMessage>, Refusal> {
    bounds::check_count(messages.len()).map_err(|out| refusal("", out))?;
    let mut bytes = 0;
    let mut stored = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        let message = one_to_store(format_args!("messages[{index}]."), message)?;
        bytes += message.parts.meta.len() + message.parts.body.len();
        stored.push(message);
    }
    bounds::check_bytes(bytes).map_err(|out| refusal("", out))?;
    Ok(stored)
}

fn one_to_store(path: Arguments<'_>, message: v1::Message) -> Result<NewMessage, Refusal> {
    output_only(
        path,
        &[
            ("message_id", !message.message_id.is_empty()),
            ("offset", message.offset != 0),
            ("publish_time", message.publish_time.is_some()),
            ("origin_id", !message.origin_id.is_empty()),
            ("hops", message.hops != 0),
            ("dead_letter", message.dead_letter.is_some()),
        ],
    )?;
    use v1::message::{Delivery, Expiry};
    not_built(
        path,
        &[
            ("ordering_key", !message.ordering_key.is_empty()),
            ("priority", message.priority.is_some()),
            ("delay", matches!(message.delivery, Some(Delivery::Delay(_)))),
            ("deliver_time", matches!(message.delivery, Some(Delivery::DeliverTime(_)))),
            ("ttl", matches!(message.expiry, Some(Expiry::Ttl(_)))),
            ("expire_time", matches!(message.expiry, Some(Expiry::ExpireTime(_)))),
            ("dedupe_id", !message.dedupe_id.is_empty()),
            ("caused_by", !message.caused_by.is_empty()),
            ("new_origin", message.new_origin),
        ],
    )?;
    let meta = Meta {
        attributes: message.attributes.into_iter().collect(),
        source: Some(message.source).filter(|source| !source.is_empty()),
        ..Meta::default()
    };
    bounds::check_message(&meta, &message.body).map_err(|out| refusal(path, out))?;
    let lane = Lane { priority: PRIORITY_DEFAULT, ..Lane::default() };
    Ok(NewMessage { lane, parts: StoredParts { meta: meta.encode(), body: message.body } })
}

fn refusal(path: impl Display, out: OutOfBounds) -> Refusal {
    match out {
        OutOfBounds::Empty { field, why } => invalid(format!("{path}{field}"), why),
        OutOfBounds::Over { field, unit, actual, limit } => {
            let field = format!("{path}{field}");
            Refusal::Limit { field, unit, actual: actual as u64, limit: limit as u64 }
        }
    }
}

/// Who publishes, if anyone says so.
pub fn producer(
    producer: Option<v1::Producer>,
) -> Result<Option<crate::core::types::ProducerStamp>, Refusal> {
    let Some(producer) = producer else { return Ok(None) };
    let v1::Producer { producer_id: id, epoch, sequence } = producer;
    if id.is_empty() {
        let why = format!("is empty; give 1 to {PRODUCER_ID_BYTES_MAX} bytes, or no producer");
        return Err(invalid("producer.producer_id", why));
    }
    at_most("producer.producer_id", "bytes", id.len(), PRODUCER_ID_BYTES_MAX)?;
    if epoch == 0 {
        return Err(invalid("producer.epoch", "is 0; epochs count from 1"));
    }
    if sequence == 0 {
        return Err(invalid("producer.sequence", "is 0; sequences count from 1"));
    }
    Ok(Some(crate::core::types::ProducerStamp { id, epoch, sequence }))
}

/// A stored message of a queue as its readers see it. Metadata that cannot be read is damage.
pub fn to_show(queue: &QueueName, stored: StoredMessage) -> Result<v1::Message, Status> {
    let damaged = |_| BrokerError::DataLoss { queue: queue.clone(), offset: stored.offset };
    let meta = Meta::decode(&stored.meta).map_err(damaged)?;
    Ok(v1::Message {
        body: stored.body,
        attributes: meta.attributes.into_iter().collect(),
        ordering_key: meta.ordering_key.unwrap_or_default(),
        source: meta.source.unwrap_or_default(),
        message_id: token::message_id(stored.queue_uid, stored.offset),
        offset: stored.offset.0,
        publish_time: Some(time::timestamp(stored.publish_time_us)),
        dead_letter: meta.dead_letter.map(dead_letter),
        ..v1::Message::default()
    })
}

/// A delivery as its consumer sees it; `now_us` is the wall time.
pub fn to_deliver(queue: &QueueName, delivery: Delivery, now_us: u64) -> Result<v1::ReceivedMessage, Status> {
    Ok(v1::ReceivedMessage {
        ack_id: delivery.ack_id.as_str().to_owned(),
        message: Some(to_show(queue, delivery.message)?),
        attempt: delivery.attempt,
        lease_expire_time: Some(time::timestamp(now_us.saturating_add(delivery.lease_us))),
    })
}

fn dead_letter(letter: DeadLetter) -> v1::DeadLetter {
    use v1::dead_letter::Reason;
    let reason = match letter.reason {
        DeadLetterReason::Rejected => Reason::Rejected,
        DeadLetterReason::AttemptsExhausted => Reason::AttemptsExhausted,
        DeadLetterReason::HopLimit => Reason::HopLimit,
        DeadLetterReason::Expired => Reason::Expired,
        DeadLetterReason::DroppedOldest => Reason::DroppedOldest,
    };
    v1::DeadLetter {
        reason: reason.into(),
        error: letter.error,
        queue: letter.queue,
        queue_uid: letter.queue_uid.to_string(),
        offset: letter.offset.0,
        subscription: letter.subscription,
        attempts: letter.attempts,
        dead_letter_time: Some(time::timestamp(letter.time_us)),
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
