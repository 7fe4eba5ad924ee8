//! Deliveries: most messages have a body and nothing else, and their fields are written as they are. A message with
//! metadata goes by way of the generated code.

use prost::Message as _;
use tonic::Status;

use super::{number, number_len, part, part_len, put_message, put_number, put_part};
use crate::broker::api::Delivery;
use crate::names::QueueName;
use crate::proto::v1;
use crate::service::rope::Rope;
use crate::service::{message, time, token};

/// Tags of the fields that are written here.
mod tag {
    use super::{number, part};

    pub const RESPONSE_DELIVERIES: u32 = part(2);
    pub const DELIVERIES_MESSAGES: u32 = part(1);
    pub const RECEIVED_ACK_ID: u32 = part(1);
    pub const RECEIVED_MESSAGE: u32 = part(2);
    pub const RECEIVED_ATTEMPT: u32 = number(3);
    pub const RECEIVED_LEASE_EXPIRE_TIME: u32 = part(4);
    pub const MESSAGE_BODY: u32 = part(1);
    pub const MESSAGE_ID: u32 = part(20);
    pub const MESSAGE_OFFSET: u32 = number(21);
    pub const MESSAGE_PUBLISH_TIME: u32 = part(22);
}

/// A delivery as its consumer will see it.
#[derive(Debug)]
pub struct Received(Form);

#[derive(Debug)]
enum Form {
    /// Without metadata.
    Plain {
        delivery: Delivery,
        publish_time: prost_types::Timestamp,
        lease_expire_time: prost_types::Timestamp,
    },
    Any(Box<v1::ReceivedMessage>),
}

impl Received {
    /// `now_us` is the wall time.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    pub fn new(queue: &QueueName, delivery: Delivery, now_us: u64) -> Result<Self, Status> {
        Ok(Self(if delivery.message.meta.is_empty() {
            let publish_time = time::timestamp(delivery.message.publish_time_us);
            let lease_expire_time = time::timestamp(now_us.saturating_add(delivery.lease_us));
            Form::Plain { delivery, publish_time, lease_expire_time }
        } else {
            Form::Any(Box::new(message::to_deliver(queue, delivery, now_us)?))
        }))
    }

    /// Bytes of it in an answer.
    pub fn encoded_len(&self) -> usize {
        part_len(tag::DELIVERIES_MESSAGES, self.len())
    }

    fn len(&self) -> usize {
        match &self.0 {
            Form::Any(received) => received.encoded_len(),
            Form::Plain { delivery, publish_time, lease_expire_time } => {
                part_len(tag::RECEIVED_ACK_ID, delivery.ack_id.len())
                    + part_len(tag::RECEIVED_MESSAGE, message_len(delivery, publish_time))
                    + number_len(tag::RECEIVED_ATTEMPT, delivery.attempt.into())
                    + part_len(tag::RECEIVED_LEASE_EXPIRE_TIME, lease_expire_time.encoded_len())
            }
        }
    }

    fn write(&self, out: &mut Rope) {
        put_part(tag::DELIVERIES_MESSAGES, self.len(), out.end());
        match &self.0 {
            Form::Any(received) => received.encode(out.end()).expect("a buffer grows"),
            Form::Plain { delivery, publish_time, lease_expire_time } => {
                put_part(tag::RECEIVED_ACK_ID, delivery.ack_id.len(), out.end());
                out.end().extend_from_slice(delivery.ack_id.as_bytes());
                put_part(tag::RECEIVED_MESSAGE, message_len(delivery, publish_time), out.end());
                write_message(delivery, publish_time, out);
                put_number(tag::RECEIVED_ATTEMPT, delivery.attempt.into(), out.end());
                put_message(tag::RECEIVED_LEASE_EXPIRE_TIME, lease_expire_time, out.end());
            }
        }
    }
}

fn message_len(delivery: &Delivery, publish_time: &prost_types::Timestamp) -> usize {
    let message = &delivery.message;
    let body_len = if message.body.is_empty() { 0 } else { part_len(tag::MESSAGE_BODY, message.body.len()) };
    body_len
        + part_len(tag::MESSAGE_ID, token::MESSAGE_ID_BYTES)
        + number_len(tag::MESSAGE_OFFSET, message.offset.0)
        + part_len(tag::MESSAGE_PUBLISH_TIME, publish_time.encoded_len())
}

fn write_message(delivery: &Delivery, publish_time: &prost_types::Timestamp, out: &mut Rope) {
    let message = &delivery.message;
    if !message.body.is_empty() {
        put_part(tag::MESSAGE_BODY, message.body.len(), out.end());
        out.append(&message.body);
    }
    put_part(tag::MESSAGE_ID, token::MESSAGE_ID_BYTES, out.end());
    out.end().extend_from_slice(&token::message_id_text(message.queue_uid, message.offset));
    put_number(tag::MESSAGE_OFFSET, message.offset.0, out.end());
    put_message(tag::MESSAGE_PUBLISH_TIME, publish_time, out.end());
}

/// Bytes of a stream's answer with these.
pub fn answer_len(deliveries: &[Received]) -> usize {
    part_len(tag::RESPONSE_DELIVERIES, deliveries_len(deliveries))
}

fn deliveries_len(deliveries: &[Received]) -> usize {
    deliveries.iter().map(Received::encoded_len).sum()
}

/// Appends a stream's answer with these.
pub fn write_answer(deliveries: &[Received], out: &mut Rope) {
    put_part(tag::RESPONSE_DELIVERIES, deliveries_len(deliveries), out.end());
    deliveries.iter().for_each(|received| received.write(out));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::broker::api::StoredMessage;
    use crate::ids::{Offset, Uid};
    use crate::proto::v1::subscribe_response::{Deliveries, Response};
    use crate::record::Lane;
    use crate::record::meta::Meta;

    fn delivery(offset: u64, attempt: u32, body: usize, with_metadata: bool) -> Delivery {
        let attributes = vec![("k".to_owned(), "v".to_owned())];
        let meta = Meta { attributes, ..Meta::default() };
        let message = StoredMessage {
            queue_uid: Uid([3; 16]),
            offset: Offset(offset),
            lane: Lane::default(),
            publish_time_us: offset / 3,
            meta: if with_metadata { meta.encode() } else { Bytes::new() },
            body: vec![5; body].into(),
        };
        Delivery { ack_id: format!("ack-{offset}"), attempt, lease_us: 30_000_000, message }
    }

    proptest! {
        #[test]
        fn answers_are_what_the_generated_code_reads(
            now_us in 0..1_u64 << 60,
            of in prop::collection::vec((any::<u64>(), any::<u32>(), 0..2_000_usize, any::<bool>()), 0..20),
        ) {
            let queue = QueueName::parse("namespaces/n/queues/q").unwrap();
            let made = |&(offset, attempt, body, metadata): &_| delivery(offset, attempt, body, metadata);
            let received = |delivery| Received::new(&queue, delivery, now_us).unwrap();
            let deliveries: Vec<Received> = of.iter().map(made).map(received).collect();
            let mut rope = Rope::default();
            write_answer(&deliveries, &mut rope);
            prop_assert_eq!(rope.len(), answer_len(&deliveries));
            let shown = |delivery| message::to_deliver(&queue, delivery, now_us).unwrap();
            let expected = Response::Deliveries(Deliveries { messages: of.iter().map(made).map(shown).collect() });
            let read = v1::SubscribeResponse::decode(rope.take_all()).unwrap();
            prop_assert_eq!(read.response, Some(expected));
        }
    }
}
