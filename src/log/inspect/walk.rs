//! A walk through one segment that verifies every byte of it that means something.
//!
//! Frames are followed by their lengths. Where none stands, the next one of this segment is looked for, by the salted
//! checksum of its header. In a frame whose checksum fails, each record and each message is judged by its own.

use std::ops::ControlFlow;

use super::super::error::{FrameFault, LogError};
use super::super::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FRAME_TRAILER_BYTES, FrameHeader, salted};
use super::super::recovery::{FIRST_FRAME_AT, Opened};
use super::super::segment::SegmentHeader;
use super::super::window::Window;
use super::super::{Location, Placed, ReadError, Reader, Replayed};
use crate::ids::{Lsn, Offset, QueueId, SegmentNumber};
use crate::record::run::RunHead;
use crate::record::{Lane, RecordError, RecordHead};

/// Whether a walk goes on.
pub type Flow = ControlFlow<()>;

/// What a walk comes upon, in order of position.
#[derive(Debug)]
pub enum Item<'a> {
    /// A record whose head is good; its good messages follow.
    Record(Replayed<'a>),
    Message(StoredMessage<'a>),
    Damage(SegmentDamage),
}

/// A message that is what was stored.
#[derive(Clone, Copy, Debug)]
pub struct StoredMessage<'a> {
    pub queue: QueueId,
    pub offset: Offset,
    pub lane: Lane,
    /// Wall time of the publish, microseconds since the Unix epoch.
    pub publish_time_us: u64,
    /// Of its first byte in the segment's file.
    pub position: u64,
    /// Tagged values, see [`crate::record::meta`].
    pub meta: &'a [u8],
    pub body: &'a [u8],
}

/// A part of a segment that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentDamage {
    pub position: u64,
    pub bytes: u64,
    pub what: SegmentFault,
    /// The messages that it hit, where that is known: queue, first and last.
    pub messages: Option<(QueueId, Offset, Offset)>,
}

/// What is wrong with a part of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentFault {
    #[error(transparent)]
    Frame(FrameFault),
    #[error(transparent)]
    Record(RecordError),
    #[error("the message fails its checksum")]
    Message,
    #[error("the copy of a frame's header at the frame's end is damaged")]
    Trailer,
}

type Each<'e> = dyn FnMut(Item<'_>) -> Flow + 'e;

/// Walks through an open segment up to `end`. `follower` is the header of the next segment.
pub fn walk(
    opened: Opened,
    end: u64,
    follower: Option<SegmentHeader>,
    each: &mut Each<'_>,
) -> Result<Flow, LogError> {
    let bytes = opened.current.bytes;
    let Some(header) = opened.header else {
        let what = SegmentFault::Frame(FrameFault::SegmentHeader);
        return Ok(each(Item::Damage(SegmentDamage { position: 0, bytes, what, messages: None })));
    };
    let next = Next { lsn: header.first_lsn, sequence: None, previous_crc: 0 };
    let mut walk = Walk { segment: header.segment, salt: header.salt, window: opened.window, end, next };
    walk.run(follower, each)
}

struct Walk {
    segment: SegmentNumber,
    salt: u64,
    window: Window,
    end: u64,
    next: Next,
}

/// What the next frame must say of its place.
struct Next {
    lsn: Lsn,
    /// Unknown before the first frame.
    sequence: Option<u64>,
    previous_crc: u32,
}

/// Blocks without a frame.
struct Passed {
    from: u64,
    /// End of the last that belongs to the segment.
    used_to: u64,
    what: FrameFault,
}

impl Walk {
    fn run(&mut self, follower: Option<SegmentHeader>, each: &mut Each<'_>) -> Result<Flow, LogError> {
        let mut position = FIRST_FRAME_AT;
        let mut passed: Option<Passed> = None;
        while position < self.end {
            let (header, crc) = match self.header(position)? {
                Ok(found) => found,
                Err(what) => {
                    let ours = self.is_ours(position)?;
                    let passed = passed.get_or_insert(Passed { from: position, used_to: position, what });
                    position = (position + FRAME_ALIGN).min(self.end);
                    if ours {
                        passed.used_to = position;
                    }
                    continue;
                }
            };
            let flow = match passed.take() {
                Some(passed) => lost(passed.from, position, passed.what, each),
                None if self.follows(&header) => Flow::Continue(()),
                None => lost(position, position, FrameFault::Chain, each),
            };
            if flow.is_break() || self.frame(position, &header, each)?.is_break() {
                return Ok(Flow::Break(()));
            }
            let lsn = header.first_lsn.plus(header.count.into());
            self.next = Next { lsn, sequence: Some(header.sequence + 1), previous_crc: crc };
            position += header.frame_len();
        }
        Ok(self.judge_end(passed, follower, each))
    }

    /// Whether what is behind the last frame was ever a frame.
    fn judge_end(
        &self,
        passed: Option<Passed>,
        follower: Option<SegmentHeader>,
        each: &mut Each<'_>,
    ) -> Flow {
        let Some(passed) = passed else { return Flow::Continue(()) };
        match follower {
            Some(follower) if follower.first_lsn == self.next.lsn => Flow::Continue(()),
            // No segment can have been dropped between neighbours.
            Some(follower) if follower.segment == self.segment.next() => {
                lost(passed.from, passed.used_to, passed.what, each)
            }
            _ if passed.used_to > passed.from => lost(passed.from, passed.used_to, passed.what, each),
            _ => Flow::Continue(()),
        }
    }

    fn follows(&self, header: &FrameHeader) -> bool {
        let Next { lsn, sequence, previous_crc } = self.next;
        header.first_lsn == lsn
            && sequence
                .is_none_or(|sequence| header.sequence == sequence && header.previous_crc == previous_crc)
    }

    /// The frame's header at `position`, if one of this segment stands there that comes later than those before it.
    fn header(&mut self, position: u64) -> Result<Result<(FrameHeader, u32), FrameFault>, LogError> {
        let Some(bytes) = self.window.get(position, FRAME_HEADER_BYTES)? else {
            return Ok(Err(FrameFault::Missing));
        };
        let (header, crc) = match FrameHeader::decode(bytes, self.salt) {
            Ok(found) => found,
            Err(fault) => return Ok(Err(fault)),
        };
        Ok(if header.segment != self.segment {
            Err(FrameFault::Place)
        } else if header.sequence < self.next.sequence.unwrap_or(0) || header.first_lsn < self.next.lsn {
            Err(FrameFault::Chain)
        } else if header.frame_len() > self.window.file_len() - position {
            Err(FrameFault::Length)
        } else {
            Ok((header, crc))
        })
    }

    /// Whether a block belongs to the segment, by the rule of [`super::super::salvage`].
    fn is_ours(&mut self, position: u64) -> Result<bool, LogError> {
        let length = FRAME_ALIGN.min(self.window.file_len() - position) as usize;
        let block = self.window.get(position, length)?.expect("within the file");
        let header = FrameHeader::decode(block, self.salt).ok().map(|(header, _)| header);
        let trailer = FrameHeader::decode_trailer(block, self.salt).ok();
        let next = self.next.sequence.unwrap_or(0);
        let ours = |header: &FrameHeader| header.segment == self.segment && header.sequence >= next;
        Ok(header.iter().chain(&trailer).any(ours))
    }

    fn frame(&mut self, at: u64, header: &FrameHeader, each: &mut Each<'_>) -> Result<Flow, LogError> {
        let payload_at = at + FRAME_HEADER_BYTES as u64;
        let payload = self.window.get(payload_at, header.payload_len as usize)?.expect("within the file");
        let good = salted(self.salt, payload) == header.payload_crc;
        let mut damaged = false;
        let mut watch = |item: Item<'_>| {
            damaged |= matches!(item, Item::Damage(_));
            each(item)
        };
        let flow = records(self.segment, payload_at, header, payload, &mut watch);
        if flow.is_continue() && !good && !damaged {
            return Ok(lost(at, at + header.frame_len(), FrameFault::PayloadChecksum, each));
        }
        if flow.is_break() { Ok(flow) } else { self.trailer(at + header.frame_len(), header, each) }
    }

    /// Judges the copy of the header that ends a frame.
    fn trailer(&mut self, end: u64, header: &FrameHeader, each: &mut Each<'_>) -> Result<Flow, LogError> {
        let position = end - FRAME_TRAILER_BYTES as u64;
        let trailer = self.window.get(position, FRAME_TRAILER_BYTES)?.expect("within the file");
        if FrameHeader::decode_trailer(trailer, self.salt).as_ref() == Ok(header) {
            return Ok(Flow::Continue(()));
        }
        let (bytes, what) = (FRAME_TRAILER_BYTES as u64, SegmentFault::Trailer);
        Ok(each(Item::Damage(SegmentDamage { position, bytes, what, messages: None })))
    }
}

fn lost(from: u64, to: u64, what: FrameFault, each: &mut Each<'_>) -> Flow {
    let what = SegmentFault::Frame(what);
    each(Item::Damage(SegmentDamage { position: from, bytes: to.saturating_sub(from), what, messages: None }))
}

/// Judges the records of a frame, up to the first whose own head is damaged: behind it none can be told from a body.
fn records(
    segment: SegmentNumber,
    payload_at: u64,
    header: &FrameHeader,
    payload: &[u8],
    each: &mut Each<'_>,
) -> Flow {
    let mut rest = payload;
    for place in 0..u64::from(header.count) {
        let position = payload_at + (payload.len() - rest.len()) as u64;
        let (head, record, behind) = match first_record(rest, header.first_lsn.plus(place)) {
            Ok(found) => found,
            Err(why) => return damaged_record(position, rest.len() as u64, why, each),
        };
        if let Err(why) = head.check_headers() {
            damaged_record(position, record.len() as u64, why, each)?;
        }
        let location = Location { segment, position, length: head.length };
        let after_damage = false;
        let log_time_us = header.log_time_us;
        each(Item::Record(Replayed { head, location, log_time_us, after_damage }))?;
        if let Some(run) = head.run() {
            messages(&head, &run, record, position, each)?;
        }
        rest = behind;
    }
    if rest.is_empty() {
        return Flow::Continue(());
    }
    let position = payload_at + (payload.len() - rest.len()) as u64;
    let why = RecordError::Invalid { what: "bytes behind the last record of its frame" };
    damaged_record(position, rest.len() as u64, why, each)
}

/// The head of the first record, the whole of it, and what follows.
fn first_record(rest: &[u8], lsn: Lsn) -> Result<(RecordHead<'_>, &[u8], &[u8]), RecordError> {
    let head = RecordHead::decode(rest)?;
    if head.lsn != lsn {
        return Err(RecordError::Invalid { what: "its place in the log" });
    }
    let (record, behind) =
        rest.split_at_checked(head.length as usize).ok_or(RecordError::Invalid { what: "its length" })?;
    Ok((head, record, behind))
}

fn damaged_record(position: u64, bytes: u64, why: RecordError, each: &mut Each<'_>) -> Flow {
    let what = SegmentFault::Record(why);
    each(Item::Damage(SegmentDamage { position, bytes, what, messages: None }))
}

fn messages(
    head: &RecordHead<'_>,
    run: &RunHead<'_>,
    record: &[u8],
    record_at: u64,
    each: &mut Each<'_>,
) -> Flow {
    for entry in run.entries() {
        let bytes = &record[entry.position as usize..][..entry.len() as usize];
        let offset = head.offset.plus(entry.index.into());
        let position = record_at + u64::from(entry.position);
        if !entry.verify(bytes) {
            each(Item::Damage(SegmentDamage {
                position,
                bytes: bytes.len() as u64,
                what: SegmentFault::Message,
                messages: Some((head.queue, offset, offset)),
            }))?;
            continue;
        }
        let (meta, body) = bytes.split_at(entry.meta_len as usize);
        let (queue, lane, publish_time_us) = (head.queue, run.lane, run.publish_time_us);
        each(Item::Message(StoredMessage { queue, offset, lane, publish_time_us, position, meta, body }))?;
    }
    Flow::Continue(())
}

/// Reads a run where an index says that it is; its messages in order, the damaged ones last.
pub fn read(reader: &Reader, run: &Placed, each: &mut Each<'_>) -> Flow {
    let Placed { queue, first_offset, count, location, .. } = *run;
    let damaged = |first, last, what| {
        let (position, bytes) = (location.position, location.length.into());
        Item::Damage(SegmentDamage { position, bytes, what, messages: Some((queue, first, last)) })
    };
    let read = match reader.read(location, 0, count, u64::MAX) {
        Ok(read) => read,
        // A plain record, which was verified as a whole.
        Err(ReadError::NotARun { .. }) => return Flow::Continue(()),
        Err(error) => {
            let why = match error {
                ReadError::Damaged { why, .. } => why,
                _ => RecordError::Invalid { what: "its place in the segment" },
            };
            let last = Offset(first_offset.0 + u64::from(count) - 1);
            return each(damaged(first_offset, last, SegmentFault::Record(why)));
        }
    };
    for message in &read.messages {
        each(Item::Message(StoredMessage {
            queue,
            offset: message.offset,
            lane: message.lane,
            publish_time_us: message.publish_time_us,
            position: location.position,
            meta: &message.meta,
            body: &message.body,
        }))?;
    }
    for offset in read.damaged {
        each(damaged(offset, offset, SegmentFault::Message))?;
    }
    Flow::Continue(())
}
