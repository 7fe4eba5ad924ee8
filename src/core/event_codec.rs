//! The bodies of the core's records.
//!
//! A record's header carries the queue's id and, where there is one, the first offset; here is what follows. Numbers
//! are varints unless a width is given; text has a u16 length; `uid` is 16 bytes; `runs` is a count, then for each
//! run its first offset (the first as it is, the others as the distance from the end of the run before, zigzag) and
//! its count; configurations are described in [`config_codec`], `refs` in [`ref_codec`].
//!
//! ```text
//! QueueCreated         uid | flags u8 (1 = holds dead letters) | create_time_us | namespace | queue | config | fields
//! QueueDeleted         fields
//! SubscriptionCreated  subscription | uid | start | create_time_us | name | config | fields
//! SubscriptionDeleted  subscription | fields
//! Leased               subscription | incarnation | first lease number | deadline_us | runs | fields
//! LeaseExtended        subscription | deadline_us | runs | fields
//! Acked                subscription | runs | fields
//! Requeued             subscription | due_us (0 = now) | flags u8 (1 = the attempt counts) | runs | fields
//! DeadLettered         subscription | to queue | to offset | fields             (the offset is in the header)
//! Purged               fields                                 (the offset behind the last one is in the header)
//! Cancelled            fields                                                    (the offset is in the header)
//! Spilled              queue | refs | fields    (the header has the subscription's store of refs, and the place there)
//! Recalled             subscription | place | flags u8 (1 = it goes on) | if so, position and due_us | refs | fields
//! QueueUpdated         update_time_us | config | fields
//! SubscriptionUpdated  subscription | update_time_us | config | fields
//! Paused               subscription (0 = all) | flags u8 (1 = publishes are refused) | time_us | reason | fields
//!                                                               (the queue's next offset is in the header)
//! Resumed              subscription (0 = all) | fields
//! OffsetsSkipped       fields                                 (the offset behind the last one is in the header)
//! Publish              header PRODUCER_STAMP: epoch | sequence | count of the whole request | log_us | id (the rest)
//! ```
//! `fields` are tagged values ([`tlv`]) for what later builds add; this build writes none and refuses critical ones.

use super::config_codec;
use super::delivery::LeaseId;
use super::event::*;
use super::ref_codec::{self, distance, put_distance};
use super::runs::OffsetRun;
use super::spilled::{Ref, RestOfRun};
use super::types::{Pause, ProducerStamp};
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::names::{Name, QueueName};
use crate::record::envelope::PRODUCER_STAMP;
use crate::record::tlv::{self, TlvError};
use crate::record::wire::{Put, Reader, WireError};
use crate::record::{Body, Kind, MessageRun, Record, RecordHead, StoredParts};

/// Why a record's body is none of the core's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("the body: {0}")]
    Wire(#[from] WireError),
    #[error("the tagged values: {0}")]
    Fields(#[from] TlvError),
    #[error("a record of kind {0:?} is reserved for a newer build")]
    Reserved(Kind),
}

/// The record of a publish event, with its messages.
pub fn publish_record(run: &PublishedRun, messages: Vec<StoredParts>) -> Record {
    assert_eq!(run.count as usize, messages.len(), "an event counts the messages of its run");
    let mut headers = Vec::new();
    if let Some(request) = &run.request {
        tlv::put_with(&mut headers, PRODUCER_STAMP, |out| {
            out.put_varint(request.stamp.epoch);
            out.put_varint(request.stamp.sequence);
            out.put_varint(request.count.into());
            out.put_varint(request.log_us);
            out.extend_from_slice(request.stamp.id.as_bytes());
        });
    }
    let body = MessageRun { lane: run.lane, publish_time_us: run.publish_time_us, messages };
    Record {
        kind: Kind::Publish,
        flags: 0,
        queue: run.queue,
        offset: run.first,
        headers,
        body: Body::Run(body),
    }
}

/// The record of any event but a publish.
///
/// # Panics
/// On [`Event::Published`], whose messages are not here, and on [`Event::Started`], which the log writes itself.
pub fn encode(event: &Event) -> Record {
    let mut out = Vec::new();
    let (kind, queue, offset) = match event {
        Event::Published(_) | Event::Started { .. } => unreachable!("not written by the core"),
        Event::QueueCreated(created) => {
            put_queue(&mut out, created);
            (Kind::QueueCreated, created.queue, Offset(0))
        }
        Event::QueueDeleted { queue } => (Kind::QueueDeleted, *queue, Offset(0)),
        Event::SubscriptionCreated(created) => {
            put_subscription(&mut out, created);
            (Kind::SubscriptionCreated, created.queue, Offset(0))
        }
        Event::SubscriptionDeleted { queue, subscription } => {
            out.put_varint(subscription.0);
            (Kind::SubscriptionDeleted, *queue, Offset(0))
        }
        Event::Leased { queue, subscription, runs, first, deadline_us } => {
            out.put_varint(subscription.0);
            out.put_varint(first.incarnation.into());
            out.put_varint(first.number);
            out.put_varint(*deadline_us);
            (Kind::Leased, *queue, put_runs(&mut out, runs))
        }
        Event::LeaseExtended { queue, subscription, runs, deadline_us } => {
            out.put_varint(subscription.0);
            out.put_varint(*deadline_us);
            (Kind::LeaseExtended, *queue, put_runs(&mut out, runs))
        }
        Event::Acked { queue, subscription, runs } => {
            out.put_varint(subscription.0);
            (Kind::Acked, *queue, put_runs(&mut out, runs))
        }
        Event::Requeued { queue, subscription, runs, due_us, counted } => {
            out.put_varint(subscription.0);
            out.put_varint(*due_us);
            out.put_u8(u8::from(*counted));
            (Kind::Requeued, *queue, put_runs(&mut out, runs))
        }
        Event::DeadLettered { queue, subscription, offset, to, to_offset } => {
            out.put_varint(subscription.0);
            out.put_varint(to.0);
            out.put_varint(to_offset.0);
            (Kind::DeadLettered, *queue, *offset)
        }
        Event::Purged { queue, end } => (Kind::Purged, *queue, *end),
        Event::OffsetsSkipped { queue, end } => (Kind::OffsetsSkipped, *queue, *end),
        Event::Cancelled { queue, offset } => (Kind::Cancelled, *queue, *offset),
        Event::Spilled { queue, subscription, place, refs } => {
            out.put_varint(queue.0);
            ref_codec::put(&mut out, refs);
            (Kind::Spilled, QueueId::of_refs(*subscription), *place)
        }
        Event::Recalled { queue, subscription, place, rest, refs } => {
            out.put_varint(subscription.0);
            out.put_varint(place.0);
            put_rest(&mut out, *rest);
            (Kind::Recalled, *queue, put_refs(&mut out, refs))
        }
        Event::QueueUpdated { queue, config, update_time_us } => {
            out.put_varint(*update_time_us);
            config_codec::put_queue(&mut out, config);
            (Kind::QueueUpdated, *queue, Offset(0))
        }
        Event::SubscriptionUpdated { queue, subscription, config, update_time_us } => {
            out.put_varint(subscription.0);
            out.put_varint(*update_time_us);
            config_codec::put_subscription(&mut out, config);
            (Kind::SubscriptionUpdated, *queue, Offset(0))
        }
        Event::Paused { queue, subscription, pause } => {
            out.put_varint(subscription.map_or(0, |id| id.0));
            out.put_u8(u8::from(pause.refuses));
            out.put_varint(pause.time_us);
            out.put_str(&pause.reason);
            (Kind::Paused, *queue, pause.from)
        }
        Event::Resumed { queue, subscription } => {
            out.put_varint(subscription.map_or(0, |id| id.0));
            (Kind::Resumed, *queue, Offset(0))
        }
    };
    Record { kind, flags: 0, queue, offset, headers: Vec::new(), body: Body::Plain(out) }
}

/// The event of a record; `None` for a record of the log's own. (The log's own start record comes by another way.)
pub fn decode(head: &RecordHead<'_>) -> Result<Option<Event>, EventError> {
    let queue = head.queue;
    let mut body = Reader::new(head.body);
    let event = match head.kind {
        Kind::NoOp
        | Kind::ServerStarted
        | Kind::SegmentAdded
        | Kind::SegmentReplaced
        | Kind::SegmentDropped => {
            return Ok(None);
        }
        Kind::EpochStart | Kind::Membership | Kind::UploadChunk | Kind::UploadCommit | Kind::Prepare => {
            return Err(EventError::Reserved(head.kind));
        }
        Kind::Publish => return publish_event(head).map(Some),
        Kind::QueueCreated => Event::QueueCreated(queue_created(queue, &mut body)?),
        Kind::QueueDeleted => Event::QueueDeleted { queue },
        Kind::SubscriptionCreated => Event::SubscriptionCreated(subscription_created(queue, &mut body)?),
        Kind::SubscriptionDeleted => {
            Event::SubscriptionDeleted { queue, subscription: subscription(&mut body)? }
        }
        Kind::Leased => {
            let subscription = subscription(&mut body)?;
            let first =
                LeaseId { incarnation: narrow(body.varint()?, "an incarnation")?, number: body.varint()? };
            Event::Leased { queue, subscription, first, deadline_us: body.varint()?, runs: runs(&mut body)? }
        }
        Kind::LeaseExtended => Event::LeaseExtended {
            queue,
            subscription: subscription(&mut body)?,
            deadline_us: body.varint()?,
            runs: runs(&mut body)?,
        },
        Kind::Acked => Event::Acked { queue, subscription: subscription(&mut body)?, runs: runs(&mut body)? },
        Kind::Requeued => Event::Requeued {
            queue,
            subscription: subscription(&mut body)?,
            due_us: body.varint()?,
            counted: flag(&mut body)?,
            runs: runs(&mut body)?,
        },
        Kind::DeadLettered => Event::DeadLettered {
            queue,
            subscription: subscription(&mut body)?,
            offset: head.offset,
            to: QueueId(body.varint()?),
            to_offset: Offset(body.varint()?),
        },
        Kind::Purged => Event::Purged { queue, end: head.offset },
        Kind::OffsetsSkipped => Event::OffsetsSkipped { queue, end: head.offset },
        Kind::Cancelled => Event::Cancelled { queue, offset: head.offset },
        Kind::Spilled => Event::Spilled {
            queue: QueueId(body.varint()?),
            subscription: queue.refs_of().ok_or(WireError::Invalid { what: "a store of refs" })?,
            place: head.offset,
            refs: ref_codec::read(&mut body)?,
        },
        Kind::Recalled => Event::Recalled {
            queue,
            subscription: subscription(&mut body)?,
            place: Offset(body.varint()?),
            rest: rest_of_run(&mut body)?,
            refs: ref_codec::read(&mut body)?,
        },
        Kind::QueueUpdated => Event::QueueUpdated {
            queue,
            update_time_us: body.varint()?,
            config: config_codec::queue(&mut body)?,
        },
        Kind::SubscriptionUpdated => Event::SubscriptionUpdated {
            queue,
            subscription: subscription(&mut body)?,
            update_time_us: body.varint()?,
            config: config_codec::subscription(&mut body)?,
        },
        Kind::Paused => Event::Paused {
            queue,
            subscription: one_or_all(&mut body)?,
            pause: Pause {
                refuses: flag(&mut body)?,
                time_us: body.varint()?,
                reason: body.str()?.to_owned(),
                from: head.offset,
            },
        },
        Kind::Resumed => Event::Resumed { queue, subscription: one_or_all(&mut body)? },
    };
    tlv::check(body.rest(), &[])?;
    Ok(Some(event))
}

fn publish_event(head: &RecordHead<'_>) -> Result<Event, EventError> {
    let run = head.run().ok_or(WireError::Invalid { what: "a publish without a run" })?;
    let mut request = None;
    for field in tlv::iter(head.headers) {
        let (tag, value) = field?;
        if tag == PRODUCER_STAMP {
            request = Some(stamped_request(value)?);
        }
    }
    Ok(Event::Published(PublishedRun {
        queue: head.queue,
        first: head.offset,
        count: run.count,
        bytes: u64::from(head.length - head.head_len),
        lane: run.lane,
        publish_time_us: run.publish_time_us,
        request,
    }))
}

fn stamped_request(value: &[u8]) -> Result<StampedRequest, EventError> {
    let mut reader = Reader::new(value);
    let (epoch, sequence) = (reader.varint()?, reader.varint()?);
    let (count, log_us) = (narrow(reader.varint()?, "a count of messages")?, reader.varint()?);
    let id = text(reader.rest(), "a producer id")?;
    Ok(StampedRequest { stamp: ProducerStamp { id, epoch, sequence }, count, log_us })
}

fn put_queue(out: &mut Vec<u8>, created: &QueueCreated) {
    out.extend_from_slice(&created.uid.0);
    out.put_u8(u8::from(created.dead_letters));
    out.put_varint(created.create_time_us);
    out.put_str(created.name.namespace.as_str());
    out.put_str(created.name.queue.as_str());
    config_codec::put_queue(out, &created.config);
}

fn queue_created(queue: QueueId, body: &mut Reader<'_>) -> Result<QueueCreated, EventError> {
    let uid = Uid(body.array()?);
    let dead_letters = flag(body)?;
    let create_time_us = body.varint()?;
    let name = QueueName { namespace: name(body)?, queue: name(body)? };
    let config = config_codec::queue(body)?;
    Ok(QueueCreated { queue, uid, name, config, create_time_us, dead_letters })
}

fn put_subscription(out: &mut Vec<u8>, created: &SubscriptionCreated) {
    out.put_varint(created.subscription.0);
    out.extend_from_slice(&created.uid.0);
    out.put_varint(created.start.0);
    out.put_varint(created.create_time_us);
    out.put_str(created.name.as_str());
    config_codec::put_subscription(out, &created.config);
}

fn subscription_created(queue: QueueId, body: &mut Reader<'_>) -> Result<SubscriptionCreated, EventError> {
    Ok(SubscriptionCreated {
        queue,
        subscription: subscription(body)?,
        uid: Uid(body.array()?),
        start: Offset(body.varint()?),
        create_time_us: body.varint()?,
        name: name(body)?,
        config: config_codec::subscription(body)?,
    })
}

/// Writes runs; gives the first offset of the first, for the record's header.
fn put_runs(out: &mut Vec<u8>, runs: &[OffsetRun]) -> Offset {
    out.put_varint(runs.len() as u64);
    let mut end = 0u64;
    for run in runs {
        put_distance(out, end, run.first);
        out.put_varint(run.count);
        end = run.first.0 + run.count;
    }
    runs.first().map_or(Offset(0), |run| run.first)
}

fn runs(body: &mut Reader<'_>) -> Result<Vec<OffsetRun>, EventError> {
    let invalid = WireError::Invalid { what: "a run of offsets" };
    let count = body.varint()?;
    let mut runs = Vec::new();
    let mut end = 0u64;
    for _ in 0..count {
        let first = distance(body, end)?;
        let count = body.varint()?;
        end = first.0.checked_add(count).filter(|_| count > 0).ok_or(invalid)?;
        runs.push(OffsetRun { first, count });
    }
    if runs.is_empty() {
        return Err(invalid.into());
    }
    Ok(runs)
}

/// Writes refs; gives the offset of the first, for the record's header.
fn put_refs(out: &mut Vec<u8>, refs: &[Ref]) -> Offset {
    ref_codec::put(out, refs);
    refs.first().map_or(Offset(0), |entry| entry.offset)
}

fn put_rest(out: &mut Vec<u8>, rest: Option<RestOfRun>) {
    out.put_u8(u8::from(rest.is_some()));
    if let Some(rest) = rest {
        out.put_varint(rest.position);
        out.put_varint(rest.due_us);
    }
}

fn rest_of_run(body: &mut Reader<'_>) -> Result<Option<RestOfRun>, WireError> {
    let goes_on = flag(body)?;
    goes_on.then(|| Ok(RestOfRun { position: body.varint()?, due_us: body.varint()? })).transpose()
}

fn subscription(body: &mut Reader<'_>) -> Result<SubscriptionId, WireError> {
    body.varint().map(SubscriptionId)
}

fn one_or_all(body: &mut Reader<'_>) -> Result<Option<SubscriptionId>, WireError> {
    Ok(Some(subscription(body)?).filter(|id| id.0 > 0))
}

fn flag(body: &mut Reader<'_>) -> Result<bool, WireError> {
    match body.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::Invalid { what: "a flag" }),
    }
}

fn name(body: &mut Reader<'_>) -> Result<Name, WireError> {
    Name::new(body.str()?).map_err(|_| WireError::Invalid { what: "a name" })
}

fn text(bytes: &[u8], what: &'static str) -> Result<String, WireError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| WireError::Invalid { what })
}

fn narrow(value: u64, what: &'static str) -> Result<u32, WireError> {
    u32::try_from(value).map_err(|_| WireError::Invalid { what })
}

#[cfg(test)]
#[path = "event_codec_tests.rs"]
mod tests;
