//! Publishes, of streams and of calls: most requests are a queue and bodies, read straight into what is stored. Of every other request the
//! generated code says what is wrong with it, if anything is. Errors among the answers are written by it, too.

use std::iter;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use tonic::Status;

use super::{Value, fields, parts, take_part, take_tag, take_varint};
use super::{number, number_len, part, part_len, put_message, put_number, put_part};
use crate::broker::api::{NewMessage, Published};
use crate::broker::pipeline::Publish;
use crate::ids::Offset;
use crate::limits::*;
use crate::names::QueueName;
use crate::proto::v1::publish_stream_response::Result as Shown;
use crate::proto::v1::{CallError, PublishRequest, PublishStreamRequest, PublishStreamResponse};
use crate::record::{Lane, StoredParts};
use crate::service::admit::PREFIX_BYTES;
use crate::service::explain::undecodable;
use crate::service::messages::checked_publish;
use crate::service::status::Refusal;
use crate::service::{check, time, token};

/// Tags of the fields that are read and written here.
mod tag {
    use super::{number, part};

    pub const REQUEST_CORRELATION_ID: u32 = number(1);
    pub const REQUEST_PUBLISH: u32 = part(2);
    pub const PUBLISH_QUEUE: u32 = part(1);
    pub const PUBLISH_MESSAGES: u32 = part(2);
    pub const MESSAGE_BODY: u32 = part(1);
    pub const MESSAGE_CAUSED_BY: u32 = part(11);
    pub const ANSWER_CORRELATION_ID: u32 = number(1);
    pub const ANSWER_RESPONSE: u32 = part(2);
    pub const RESPONSE_RESULTS: u32 = part(1);
    pub const RESPONSE_PUBLISH_TIME: u32 = part(2);
    pub const RESULT_MESSAGE_ID: u32 = part(1);
    pub const RESULT_OFFSET: u32 = number(2);
    pub const RESULT_DUPLICATE: u32 = number(3);
    pub const RESULT_HELD: u32 = number(5);
}

/// What one result, or the time behind all of them, takes at most: an id of 32 bytes and numbers.
const RESULT_BYTES_MAX: usize = 64;
/// Most `caused_by` of a request that are decoded at all.
const CAUSES_MAX: usize = 10_000;

/// How a queue's name is checked.
pub trait Naming: FnMut(&str) -> Result<QueueName, Refusal> {}

impl<F: FnMut(&str) -> Result<QueueName, Refusal>> Naming for F {}

/// A request of a stream, checked.
#[derive(Debug)]
pub struct Request {
    pub correlation_id: u64,
    pub publish: Result<Publish, Refusal>,
}

/// Reads a request.
///
/// # Errors
/// The status for a stream that goes on with what is no request.
pub fn read(bytes: &Bytes, mut name: impl Naming) -> Result<Request, Status> {
    match read_plain(bytes, &mut name) {
        Some(request) => Ok(request),
        None => read_any(bytes, name),
    }
}

/// Reads the request of a call of its own.
///
/// # Errors
/// Why it is refused.
pub fn read_call(bytes: &Bytes) -> Result<Publish, Status> {
    if let Some(publish) = read_publish(bytes, bytes, queue_name) {
        return Ok(publish);
    }
    check_counts(iter::once(&bytes[..]))?;
    let request = PublishRequest::decode(bytes.clone())
        .map_err(|error| undecodable(&Status::internal(error.to_string())))?;
    Ok(checked_publish(request, queue_name)?)
}

/// Checks the name of the only queue that matters.
fn queue_name(text: &str) -> Result<QueueName, Refusal> {
    check::queue_name("queue", text)
}

/// Generated code makes hundreds of bytes of two: what is too much is refused before it is decoded.
fn check_counts<'a>(publishes: impl Iterator<Item = &'a [u8]> + Clone) -> Result<(), Refusal> {
    let messages = publishes.flat_map(|publish| parts(publish, tag::PUBLISH_MESSAGES));
    let counts = [
        ("messages", messages.clone().count(), PUBLISH_MESSAGES_MAX),
        (
            "caused_by",
            messages.flat_map(|message| parts(message, tag::MESSAGE_CAUSED_BY)).count(),
            CAUSES_MAX,
        ),
    ];
    counts.into_iter().try_for_each(|(field, actual, limit)| check::at_most(field, field, actual, limit))
}

fn read_any(bytes: &Bytes, name: impl Naming) -> Result<Request, Status> {
    if let Err(refusal) = check_counts(parts(bytes, tag::REQUEST_PUBLISH)) {
        return Ok(Request { correlation_id: correlation_id(bytes), publish: Err(refusal) });
    }
    let request = PublishStreamRequest::decode(bytes.clone())
        .map_err(|error| undecodable(&Status::internal(error.to_string())))?;
    let publish =
        check::required("publish", request.publish).and_then(|publish| checked_publish(publish, name));
    Ok(Request { correlation_id: request.correlation_id, publish })
}

/// The correlation id of a request that is not decoded.
fn correlation_id(bytes: &[u8]) -> u64 {
    let id = |(tag, value)| match value {
        Value::Number(id) if tag == tag::REQUEST_CORRELATION_ID => Some(id),
        _ => None,
    };
    fields(bytes).filter_map(id).last().unwrap_or(0)
}

/// Reads a request of a queue and bodies alone, all of them within their limits; none if it is another.
fn read_plain(bytes: &Bytes, name: impl Naming) -> Option<Request> {
    let mut rest = &bytes[..];
    let (mut correlation_id, mut publish) = (0, None);
    while let Some(tag) = take_tag(&mut rest)? {
        match tag {
            tag::REQUEST_CORRELATION_ID => correlation_id = take_varint(&mut rest)?,
            tag::REQUEST_PUBLISH if publish.is_none() => publish = Some(take_part(&mut rest)?),
            _ => return None,
        }
    }
    let publish = read_publish(bytes, publish?, name)?;
    Some(Request { correlation_id, publish: Ok(publish) })
}

fn read_publish(bytes: &Bytes, mut rest: &[u8], mut name: impl Naming) -> Option<Publish> {
    let (mut queue, mut messages, mut total) = (None, Vec::new(), 0);
    while let Some(tag) = take_tag(&mut rest)? {
        match tag {
            tag::PUBLISH_QUEUE if queue.is_none() => {
                let text = std::str::from_utf8(take_part(&mut rest)?).ok()?;
                queue = Some(name(text).ok()?);
            }
            tag::PUBLISH_MESSAGES if messages.len() < PUBLISH_MESSAGES_MAX => {
                let body = read_message(take_part(&mut rest)?)?;
                total += body.len();
                if messages.is_empty() {
                    // The others are likely to be as large.
                    messages.reserve((1 + rest.len() / body.len().max(8)).min(PUBLISH_MESSAGES_MAX));
                }
                let lane = Lane { priority: PRIORITY_DEFAULT, ..Lane::default() };
                let parts = StoredParts { meta: Bytes::new(), body: bytes.slice_ref(body) };
                messages.push(NewMessage { lane, parts });
            }
            _ => return None,
        }
    }
    let within = (1..=PUBLISH_MESSAGES_MAX).contains(&messages.len()) && total <= PUBLISH_BYTES_MAX;
    within.then_some(Publish { queue: queue?, messages, producer: None })
}

/// The body of a message that has nothing else.
fn read_message(mut rest: &[u8]) -> Option<&[u8]> {
    match take_tag(&mut rest)? {
        None => Some(rest),
        Some(tag::MESSAGE_BODY) => {
            let body = take_part(&mut rest)?;
            (rest.is_empty() && body.len() <= BODY_BYTES_MAX).then_some(body)
        }
        Some(_) => None,
    }
}

/// Appends the answer of a stream to a request that was stored.
pub fn write_published(correlation_id: u64, published: &Published, out: &mut BytesMut) {
    put_number(tag::ANSWER_CORRELATION_ID, correlation_id, out);
    put_part(tag::ANSWER_RESPONSE, response_len(published), out);
    put_response(published, out);
}

/// The answer to a call, in its gRPC frame: written piece by piece, so that a client that does not read it makes the server
/// hold a piece.
#[derive(Debug)]
pub struct CallAnswer {
    published: Published,
    /// The next message whose result is written; none before the beginning.
    next: Option<u64>,
    is_over: bool,
}

impl CallAnswer {
    pub fn new(published: Published) -> Self {
        Self { published, next: None, is_over: false }
    }

    /// The next piece, of `most` bytes or a result more; none at the end.
    pub fn next_piece(&mut self, most: usize) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        let mut out = BytesMut::new();
        if self.next.is_none() {
            let length = response_len(&self.published);
            out.reserve(PREFIX_BYTES + length.min(most + RESULT_BYTES_MAX));
            out.put_u8(0);
            out.put_u32(u32::try_from(length).expect("an answer is far below 4 GiB"));
        } else {
            out.reserve(most + RESULT_BYTES_MAX);
        }
        let mut next = self.next.unwrap_or(0);
        while next < u64::from(self.published.count) && out.len() < most {
            put_result(&self.published, self.published.first_offset.plus(next).0, &mut out);
            next += 1;
        }
        if next == u64::from(self.published.count) {
            put_publish_time(&self.published, &mut out);
            self.is_over = true;
        }
        self.next = Some(next);
        Some(out.freeze())
    }
}

fn offsets(published: &Published) -> impl Iterator<Item = u64> {
    (0..u64::from(published.count)).map(|index| published.first_offset.plus(index).0)
}

fn response_len(published: &Published) -> usize {
    let result_part = |offset| part_len(tag::RESPONSE_RESULTS, result_len(published, offset));
    let results_len: usize = offsets(published).map(result_part).sum();
    let publish_time = time::timestamp(published.publish_time_us);
    results_len + part_len(tag::RESPONSE_PUBLISH_TIME, publish_time.encoded_len())
}

fn put_response(published: &Published, out: &mut BytesMut) {
    offsets(published).for_each(|offset| put_result(published, offset, out));
    put_publish_time(published, out);
}

fn put_result(published: &Published, offset: u64, out: &mut BytesMut) {
    put_part(tag::RESPONSE_RESULTS, result_len(published, offset), out);
    put_part(tag::RESULT_MESSAGE_ID, token::MESSAGE_ID_BYTES, out);
    out.extend_from_slice(&token::message_id_text(published.queue_uid, Offset(offset)));
    put_number(tag::RESULT_OFFSET, offset, out);
    put_number(tag::RESULT_DUPLICATE, published.duplicate.into(), out);
    put_number(tag::RESULT_HELD, published.held.into(), out);
}

fn put_publish_time(published: &Published, out: &mut BytesMut) {
    put_message(tag::RESPONSE_PUBLISH_TIME, &time::timestamp(published.publish_time_us), out);
}

/// Appends the answer to a request that was refused.
pub fn write_error(correlation_id: u64, status: &Status, out: &mut BytesMut) {
    let error = CallError {
        code: status.code().into(),
        message: status.message().to_owned(),
        status: status.details().to_vec().into(),
    };
    let answer = PublishStreamResponse { correlation_id, result: Some(Shown::Error(error)) };
    answer.encode(out).expect("a buffer grows");
}

/// Bytes of one result.
fn result_len(published: &Published, offset: u64) -> usize {
    part_len(tag::RESULT_MESSAGE_ID, token::MESSAGE_ID_BYTES)
        + number_len(tag::RESULT_OFFSET, offset)
        + number_len(tag::RESULT_DUPLICATE, published.duplicate.into())
        + number_len(tag::RESULT_HELD, published.held.into())
}

/// A request that is read by hand is what the generated code reads.
#[cfg(any(test, feature = "fuzzing"))]
pub fn agrees(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let any = read_any(&bytes, queue_name);
    if let Some(plain) = read_plain(&bytes, queue_name) {
        assert_eq!(format!("{plain:?}"), format!("{:?}", any.expect("it is a request")));
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
