//! Publish streams: most requests are a queue and bodies, read straight into what is stored. Of every other request the
//! generated code says what is wrong with it, if anything is. Errors among the answers are written by it, too.

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tonic::Status;

use super::{number, number_len, part, part_len, put_message, put_number, put_part};
use super::{take_part, take_tag, take_varint};
use crate::broker::api::{NewMessage, Published};
use crate::broker::pipeline::Publish;
use crate::ids::Offset;
use crate::limits::*;
use crate::proto::v1::publish_stream_response::Result as Shown;
use crate::proto::v1::{CallError, PublishStreamRequest, PublishStreamResponse};
use crate::record::{Lane, StoredParts};
use crate::service::explain::undecodable;
use crate::service::messages::{NameCache, checked_publish};
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
    pub const ANSWER_CORRELATION_ID: u32 = number(1);
    pub const ANSWER_RESPONSE: u32 = part(2);
    pub const RESPONSE_RESULTS: u32 = part(1);
    pub const RESPONSE_PUBLISH_TIME: u32 = part(2);
    pub const RESULT_MESSAGE_ID: u32 = part(1);
    pub const RESULT_OFFSET: u32 = number(2);
    pub const RESULT_DUPLICATE: u32 = number(3);
    pub const RESULT_HELD: u32 = number(5);
}

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
pub fn read(bytes: &Bytes, names: &mut NameCache) -> Result<Request, Status> {
    match read_plain(bytes, names) {
        Some(request) => Ok(request),
        None => read_any(bytes, names),
    }
}

fn read_any(bytes: &Bytes, names: &mut NameCache) -> Result<Request, Status> {
    let request = PublishStreamRequest::decode(bytes.clone())
        .map_err(|error| undecodable(&Status::internal(error.to_string())))?;
    let publish =
        check::required("publish", request.publish).and_then(|publish| checked_publish(publish, names));
    Ok(Request { correlation_id: request.correlation_id, publish })
}

/// Reads a request of a queue and bodies alone, all of them within their limits; none if it is another.
fn read_plain(bytes: &Bytes, names: &mut NameCache) -> Option<Request> {
    let mut rest = &bytes[..];
    let (mut correlation_id, mut publish) = (0, None);
    while let Some(tag) = take_tag(&mut rest)? {
        match tag {
            tag::REQUEST_CORRELATION_ID => correlation_id = take_varint(&mut rest)?,
            tag::REQUEST_PUBLISH if publish.is_none() => publish = Some(take_part(&mut rest)?),
            _ => return None,
        }
    }
    let publish = read_publish(bytes, publish?, names)?;
    Some(Request { correlation_id, publish: Ok(publish) })
}

fn read_publish(bytes: &Bytes, mut rest: &[u8], names: &mut NameCache) -> Option<Publish> {
    let (mut queue, mut messages, mut total) = (None, Vec::new(), 0);
    while let Some(tag) = take_tag(&mut rest)? {
        match tag {
            tag::PUBLISH_QUEUE if queue.is_none() => {
                let text = std::str::from_utf8(take_part(&mut rest)?).ok()?;
                queue = Some(names.queue(text).ok()?);
            }
            tag::PUBLISH_MESSAGES => {
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

/// Appends the answer to a request that was stored.
pub fn write_published(correlation_id: u64, published: &Published, out: &mut BytesMut) {
    let publish_time = time::timestamp(published.publish_time_us);
    let results = (0..u64::from(published.count)).map(|index| published.first_offset.plus(index).0);
    let result_part = |offset| part_len(tag::RESPONSE_RESULTS, result_len(published, offset));
    let results_len: usize = results.clone().map(result_part).sum();
    let response_len = results_len + part_len(tag::RESPONSE_PUBLISH_TIME, publish_time.encoded_len());
    put_number(tag::ANSWER_CORRELATION_ID, correlation_id, out);
    put_part(tag::ANSWER_RESPONSE, response_len, out);
    for offset in results {
        put_part(tag::RESPONSE_RESULTS, result_len(published, offset), out);
        put_part(tag::RESULT_MESSAGE_ID, token::MESSAGE_ID_BYTES, out);
        out.extend_from_slice(&token::message_id_text(published.queue_uid, Offset(offset)));
        put_number(tag::RESULT_OFFSET, offset, out);
        put_number(tag::RESULT_DUPLICATE, published.duplicate.into(), out);
        put_number(tag::RESULT_HELD, published.held.into(), out);
    }
    put_message(tag::RESPONSE_PUBLISH_TIME, &publish_time, out);
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

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
