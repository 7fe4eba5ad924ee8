//! Streams of deliveries: most requests are acks alone, read straight into ids; most messages have a body and nothing
//! that their publisher added, and are written piece by piece as the network takes them, each body copied once.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tonic::Status;

use super::{number, number_len, part, part_len, put_message, put_number, put_part};
use super::{parts, take_part, take_tag, take_varint};
use crate::broker::api::{AckId, Delivery};
use crate::limits::ACK_IDS_MAX;
use crate::names::QueueName;
use crate::proto::v1::{ReceivedMessage, SubscribeRequest};
use crate::service::check::at_most;
use crate::service::explain::undecodable;
use crate::service::status::Refusal;
use crate::service::time::{NS_PER_US, US_PER_S};
use crate::service::unsent::Unsent;
use crate::service::{message, token};

/// Tags of the fields that are read and written here.
mod tag {
    use super::{number, part};

    pub const REQUEST_ACKS: u32 = part(3);
    pub const ACKS_CORRELATION_ID: u32 = number(1);
    pub const ACKS_ACK_IDS: u32 = part(2);
    pub const ACKS_NACKS: u32 = part(3);
    pub const ACKS_EXTEND_ACK_IDS: u32 = part(4);
    pub const ANSWER_DELIVERIES: u32 = part(2);
    pub const DELIVERIES_MESSAGES: u32 = part(1);
    pub const RECEIVED_ACK_ID: u32 = part(1);
    pub const RECEIVED_MESSAGE: u32 = part(2);
    pub const RECEIVED_ATTEMPT: u32 = number(3);
    pub const RECEIVED_LEASE_EXPIRE_TIME: u32 = part(4);
    pub const MESSAGE_BODY: u32 = part(1);
    // Tags above 15 have two bytes.
    pub const MESSAGE_ID: u32 = part(20);
    pub const MESSAGE_OFFSET: u32 = number(21);
    pub const MESSAGE_PUBLISH_TIME: u32 = part(22);
    pub const TIMESTAMP_SECONDS: u32 = number(1);
    pub const TIMESTAMP_NANOS: u32 = number(2);
}

/// The most that a plain message has before its body, and behind it.
pub const AROUND_BYTES_MAX: usize = 128;

/// A request of a stream.
#[derive(Debug)]
pub enum Request {
    /// Acks alone.
    Acks {
        correlation_id: u64,
        ack_ids: Vec<AckId>,
    },
    Any(SubscribeRequest),
}

/// Reads a request.
///
/// # Errors
/// The status for a stream that goes on with what is no request.
pub fn read(bytes: &Bytes) -> Result<Request, Status> {
    match read_acks(bytes) {
        Some(acks) => Ok(acks),
        None => {
            check_counts(bytes)?;
            SubscribeRequest::decode(bytes.clone())
                .map(Request::Any)
                .map_err(|error| undecodable(&Status::internal(error.to_string())))
        }
    }
}

/// Generated code makes a hundred bytes of two: what is too much is refused before it is decoded.
fn check_counts(bytes: &[u8]) -> Result<(), Refusal> {
    let acks = parts(bytes, tag::REQUEST_ACKS);
    let ids = [tag::ACKS_ACK_IDS, tag::ACKS_NACKS, tag::ACKS_EXTEND_ACK_IDS];
    let count = acks.flat_map(|acks| ids.map(|field| parts(acks, field).count())).sum();
    at_most("acks", "ack ids", count, ACK_IDS_MAX)
}

/// Reads a request of acks alone; none if it is another.
fn read_acks(bytes: &[u8]) -> Option<Request> {
    let mut rest = bytes;
    if take_tag(&mut rest)?? != tag::REQUEST_ACKS {
        return None;
    }
    let mut acks = take_part(&mut rest)?;
    let (mut correlation_id, mut ack_ids) = (0, Vec::new());
    while let Some(tag) = take_tag(&mut acks)? {
        match tag {
            tag::ACKS_CORRELATION_ID => correlation_id = take_varint(&mut acks)?,
            tag::ACKS_ACK_IDS => {
                let id = take_part(&mut acks)?;
                if ack_ids.is_empty() {
                    // The others are as long.
                    ack_ids.reserve((1 + acks.len() / id.len().max(8)).min(ACK_IDS_MAX));
                } else if ack_ids.len() == ACK_IDS_MAX {
                    return None;
                }
                ack_ids.push(AckId::from(std::str::from_utf8(id).ok()?));
            }
            _ => return None,
        }
    }
    rest.is_empty().then_some(Request::Acks { correlation_id, ack_ids })
}

/// A delivery of a response.
#[derive(Debug)]
enum Item {
    /// It has a body and nothing that its publisher added.
    Plain(Delivery),
    Any(Box<ReceivedMessage>),
    /// The whole of one that is being written.
    Encoded(Vec<u8>),
}

impl Item {
    /// None of one that is being written.
    fn ack_id(self) -> Option<AckId> {
        match self {
            Self::Plain(delivery) => Some(delivery.ack_id),
            Self::Any(received) => Some(AckId::from(received.ack_id)),
            Self::Encoded(_) => None,
        }
    }

    /// What is written bit by bit.
    fn bulk(&self) -> &[u8] {
        match self {
            Self::Plain(delivery) => &delivery.message.body,
            Self::Encoded(bytes) => bytes,
            Self::Any(_) => unreachable!("it is encoded when its turn comes"),
        }
    }
}

/// Deliveries of one response.
#[derive(Debug)]
pub struct Deliveries {
    items: Vec<Item>,
    /// When each lease ends counts from here, microseconds of wall time.
    now_us: u64,
    /// Bytes of the items.
    length: usize,
    is_begun: bool,
    /// Those of which something is written; of the last of them maybe not all.
    written: usize,
    /// How much of its bulk.
    bulk_at: Option<usize>,
    /// Where those go back to of which nothing was written.
    unsent: Arc<Unsent>,
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.unsent.give_back(self.items.drain(self.written..).filter_map(Item::ack_id).collect());
    }
}

/// Deliveries that are gathered for one response.
#[derive(Debug, Default)]
pub struct Gathered {
    items: Vec<Item>,
    length: usize,
}

impl Gathered {
    pub fn with_capacity(deliveries: usize) -> Self {
        Self { items: Vec::with_capacity(deliveries), length: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes of a response of these.
    pub fn length(&self) -> usize {
        self.length
    }

    pub fn push(&mut self, ready: Ready) {
        self.length += ready.length;
        self.items.push(ready.item);
    }

    /// A response of these; `now_us` is that of all of them.
    pub fn close(self, now_us: u64, unsent: Arc<Unsent>) -> Deliveries {
        let Self { items, length } = self;
        Deliveries { items, now_us, length, is_begun: false, written: 0, bulk_at: None, unsent }
    }
}

/// One delivery and its bytes in a response.
#[derive(Debug)]
pub struct Ready {
    item: Item,
    length: usize,
}

impl Ready {
    /// A delivery as its consumer sees it.
    ///
    /// # Errors
    /// DATA_LOSS if its metadata cannot be read.
    pub fn new(queue: &QueueName, delivery: Delivery, now_us: u64) -> Result<Self, Status> {
        let (item, length) = if delivery.message.meta.is_empty() {
            let length = Plain::of(&delivery, now_us).length;
            (Item::Plain(delivery), length)
        } else {
            let received = message::to_deliver(queue, delivery, now_us)?;
            let length = received.encoded_len();
            (Item::Any(Box::new(received)), length)
        };
        Ok(Self { item, length: part_len(tag::DELIVERIES_MESSAGES, length) })
    }

    pub fn length(&self) -> usize {
        self.length
    }
}

impl Deliveries {
    /// Whether some of it is written.
    pub fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// Bytes of the response.
    pub fn encoded_len(&self) -> usize {
        part_len(tag::ANSWER_DELIVERIES, self.length)
    }

    /// Appends the next bytes of the response, until `out` has about `most` bytes: a body is cut there, the little
    /// around it is not ([`AROUND_BYTES_MAX`]).
    pub fn write(&mut self, most: usize, out: &mut Vec<u8>) {
        if !self.is_begun {
            self.is_begun = true;
            put_part(tag::ANSWER_DELIVERIES, self.length, out);
        }
        while self.write_bulk(most, out) && out.len() < most && self.written < self.items.len() {
            self.begin_next(out);
        }
    }

    /// Writes on at the delivery that was begun last; whether it is whole.
    fn write_bulk(&mut self, most: usize, out: &mut Vec<u8>) -> bool {
        let Some(at) = self.bulk_at else { return true };
        let item = &mut self.items[self.written - 1];
        let rest = &item.bulk()[at..];
        let now = &rest[..rest.len().min(most.saturating_sub(out.len()))];
        out.extend_from_slice(now);
        if now.len() < rest.len() {
            self.bulk_at = Some(at + now.len());
            return false;
        }
        match item {
            Item::Plain(delivery) => {
                Plain::of(delivery, self.now_us).put_behind(delivery, out);
                delivery.message.body = Bytes::new();
            }
            // The copy is not needed any more, nor what it was made of.
            written => *written = Item::Encoded(Vec::new()),
        }
        self.bulk_at = None;
        true
    }

    fn begin_next(&mut self, out: &mut Vec<u8>) {
        let item = &mut self.items[self.written];
        match item {
            Item::Plain(delivery) => Plain::of(delivery, self.now_us).put_before(delivery, out),
            Item::Any(received) => {
                let mut encoded = Vec::new();
                put_message(tag::DELIVERIES_MESSAGES, &**received, &mut encoded);
                *item = Item::Encoded(encoded);
            }
            Item::Encoded(_) => unreachable!("what is encoded is begun"),
        }
        self.written += 1;
        self.bulk_at = Some(0);
    }
}

/// The fields of a plain delivery that have to be worked out, and its bytes.
#[derive(Debug)]
struct Plain {
    publish_time: Time,
    expire_time: Time,
    message_length: usize,
    length: usize,
}

impl Plain {
    fn of(delivery: &Delivery, now_us: u64) -> Self {
        let message = &delivery.message;
        let publish_time = Time::of(message.publish_time_us);
        let expire_time = Time::of(now_us.saturating_add(delivery.lease_us));
        let body = &message.body;
        let body_length = if body.is_empty() { 0 } else { part_len(tag::MESSAGE_BODY, body.len()) };
        let message_length = body_length
            + part_len(tag::MESSAGE_ID, token::MESSAGE_ID_BYTES)
            + number_len(tag::MESSAGE_OFFSET, message.offset.0)
            + publish_time.len(tag::MESSAGE_PUBLISH_TIME);
        let length = part_len(tag::RECEIVED_ACK_ID, delivery.ack_id.as_bytes().len())
            + part_len(tag::RECEIVED_MESSAGE, message_length)
            + number_len(tag::RECEIVED_ATTEMPT, delivery.attempt.into())
            + expire_time.len(tag::RECEIVED_LEASE_EXPIRE_TIME);
        Self { publish_time, expire_time, message_length, length }
    }

    /// Appends what comes before the body.
    fn put_before(&self, delivery: &Delivery, out: &mut Vec<u8>) {
        put_part(tag::DELIVERIES_MESSAGES, self.length, out);
        let ack_id = delivery.ack_id.as_bytes();
        put_part(tag::RECEIVED_ACK_ID, ack_id.len(), out);
        out.extend_from_slice(ack_id);
        put_part(tag::RECEIVED_MESSAGE, self.message_length, out);
        let body = &delivery.message.body;
        if !body.is_empty() {
            put_part(tag::MESSAGE_BODY, body.len(), out);
        }
    }

    /// Appends what comes behind the body.
    fn put_behind(&self, delivery: &Delivery, out: &mut Vec<u8>) {
        let message = &delivery.message;
        put_part(tag::MESSAGE_ID, token::MESSAGE_ID_BYTES, out);
        out.extend_from_slice(&token::message_id_text(message.queue_uid, message.offset));
        put_number(tag::MESSAGE_OFFSET, message.offset.0, out);
        self.publish_time.put(tag::MESSAGE_PUBLISH_TIME, out);
        put_number(tag::RECEIVED_ATTEMPT, delivery.attempt.into(), out);
        self.expire_time.put(tag::RECEIVED_LEASE_EXPIRE_TIME, out);
    }
}

/// A `Timestamp`.
#[derive(Debug)]
struct Time {
    seconds: u64,
    nanos: u64,
}

impl Time {
    fn of(us: u64) -> Self {
        Self { seconds: us / US_PER_S, nanos: us % US_PER_S * u64::from(NS_PER_US) }
    }

    fn fields_len(&self) -> usize {
        number_len(tag::TIMESTAMP_SECONDS, self.seconds) + number_len(tag::TIMESTAMP_NANOS, self.nanos)
    }

    fn len(&self, tag: u32) -> usize {
        part_len(tag, self.fields_len())
    }

    fn put(&self, tag: u32, out: &mut Vec<u8>) {
        put_part(tag, self.fields_len(), out);
        put_number(tag::TIMESTAMP_SECONDS, self.seconds, out);
        put_number(tag::TIMESTAMP_NANOS, self.nanos, out);
    }
}

#[cfg(test)]
#[path = "subscribe_tests.rs"]
mod tests;
