//! Streams of deliveries: most requests are acks alone, read straight into ids; most messages have a body and nothing
//! that their publisher added, and are written piece by piece as the network takes them, each body copied once.

use std::sync::Arc;
use std::vec;

use bytes::{Buf, BufMut, Bytes};
use prost::Message as _;
use prost_types::Timestamp;
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
use crate::service::unsent::Unsent;
use crate::service::{message, time, token};

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

/// A delivery that is ready to be written.
#[derive(Debug)]
enum Item {
    /// It has a body and nothing that its publisher added.
    Plain(Delivery),
    Any(Box<ReceivedMessage>),
}

/// Deliveries of one response.
#[derive(Debug)]
pub struct Deliveries {
    items: vec::IntoIter<Item>,
    /// When each lease ends counts from here, microseconds of wall time.
    now_us: u64,
    /// Bytes of the items.
    length: usize,
    is_begun: bool,
    /// The one that is being written.
    current: Option<Current>,
    /// Where those go back to of which nothing was written.
    unsent: Arc<Unsent>,
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        let ack_id = |item| match item {
            Item::Plain(delivery) => delivery.ack_id,
            Item::Any(received) => AckId::from(received.ack_id),
        };
        self.unsent.give_back(self.items.by_ref().map(ack_id).collect());
    }
}

/// A delivery of which not all is written.
#[derive(Debug)]
struct Current {
    /// What is left of its body, or of all of it.
    rest: Bytes,
    /// What comes behind its body.
    behind: Option<(Delivery, Plain)>,
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
        Deliveries { items: items.into_iter(), now_us, length, is_begun: false, current: None, unsent }
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
        loop {
            if let Some(Current { rest, behind }) = &mut self.current {
                let (now, later) = rest.split_at(rest.len().min(most.saturating_sub(out.len())));
                out.extend_from_slice(now);
                if !later.is_empty() {
                    return rest.advance(now.len());
                }
                if let Some((delivery, fields)) = behind {
                    fields.put_behind(delivery, out);
                }
                self.current = None;
            }
            if out.len() >= most {
                return;
            }
            match self.items.next() {
                Some(Item::Plain(mut delivery)) => {
                    let fields = Plain::of(&delivery, self.now_us);
                    fields.put_before(&delivery, out);
                    let body = std::mem::take(&mut delivery.message.body);
                    self.current = Some(Current { rest: body, behind: Some((delivery, fields)) });
                }
                Some(Item::Any(received)) => {
                    let mut encoded = Vec::new();
                    put_message(tag::DELIVERIES_MESSAGES, &*received, &mut encoded);
                    self.current = Some(Current { rest: encoded.into(), behind: None });
                }
                None => return,
            }
        }
    }
}

/// The fields of a plain delivery that have to be worked out, and its bytes.
#[derive(Debug)]
struct Plain {
    publish_time: Timestamp,
    expire_time: Timestamp,
    message_length: usize,
    length: usize,
}

impl Plain {
    fn of(delivery: &Delivery, now_us: u64) -> Self {
        let message = &delivery.message;
        let publish_time = time::timestamp(message.publish_time_us);
        let expire_time = time::timestamp(now_us.saturating_add(delivery.lease_us));
        let body = &message.body;
        let body_length = if body.is_empty() { 0 } else { part_len(tag::MESSAGE_BODY, body.len()) };
        let message_length = body_length
            + part_len(tag::MESSAGE_ID, token::MESSAGE_ID_BYTES)
            + number_len(tag::MESSAGE_OFFSET, message.offset.0)
            + part_len(tag::MESSAGE_PUBLISH_TIME, publish_time.encoded_len());
        let length = part_len(tag::RECEIVED_ACK_ID, delivery.ack_id.as_str().len())
            + part_len(tag::RECEIVED_MESSAGE, message_length)
            + number_len(tag::RECEIVED_ATTEMPT, delivery.attempt.into())
            + part_len(tag::RECEIVED_LEASE_EXPIRE_TIME, expire_time.encoded_len());
        Self { publish_time, expire_time, message_length, length }
    }

    /// Appends what comes before the body.
    fn put_before(&self, delivery: &Delivery, out: &mut Vec<u8>) {
        put_part(tag::DELIVERIES_MESSAGES, self.length, out);
        let ack_id = delivery.ack_id.as_str();
        put_part(tag::RECEIVED_ACK_ID, ack_id.len(), out);
        out.put_slice(ack_id.as_bytes());
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
        out.put_slice(&token::message_id_text(message.queue_uid, message.offset));
        put_number(tag::MESSAGE_OFFSET, message.offset.0, out);
        put_message(tag::MESSAGE_PUBLISH_TIME, &self.publish_time, out);
        put_number(tag::RECEIVED_ATTEMPT, delivery.attempt.into(), out);
        put_message(tag::RECEIVED_LEASE_EXPIRE_TIME, &self.expire_time, out);
    }
}

#[cfg(test)]
#[path = "subscribe_tests.rs"]
mod tests;
