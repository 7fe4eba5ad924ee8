//! The bodies of the log's own records. More may follow the fields of a body; readers skip it.
//!
//! ```text
//! ServerStarted  incarnation u32 | node uid, 16 bytes | wall time u64, microseconds since the Unix epoch
//! SegmentAdded   segment u64 | bytes of its file u64
//! SegmentDropped count u32 | segment u64, as often
//! SegmentReplaced
//!                count u32 | replaced segment u64, as often
//!                count u32 | packed segment u64, bytes of its file u64, place u64, merged u8 (0 or 1), as often
//! NoOp           nothing
//! ```

use crate::ids::{Offset, QueueId, SegmentNumber, Uid};
use crate::record::wire::{Put, Reader, WireError};
use crate::record::{Body, Kind, Record};

/// A start of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerStarted {
    /// Counts the starts, from 1.
    pub incarnation: u32,
    /// Names this run of the server across machines.
    pub node: Uid,
    /// Microseconds since the Unix epoch.
    pub wall_time_us: u64,
}

impl ServerStarted {
    pub fn record(&self) -> Record {
        let mut body = Vec::new();
        body.put_u32(self.incarnation);
        body.extend_from_slice(&self.node.0);
        body.put_u64(self.wall_time_us);
        record(Kind::ServerStarted, body)
    }

    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        Ok(Self { incarnation: reader.u32()?, node: Uid(reader.array()?), wall_time_us: reader.u64()? })
    }
}

/// A segment that belongs to the log from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentAdded {
    pub segment: SegmentNumber,
    /// Length of its file.
    pub bytes: u64,
}

impl SegmentAdded {
    pub fn record(&self) -> Record {
        let mut body = Vec::new();
        body.put_u64(self.segment.0);
        body.put_u64(self.bytes);
        record(Kind::SegmentAdded, body)
    }

    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        Ok(Self { segment: SegmentNumber(reader.u64()?), bytes: reader.u64()? })
    }
}

/// Segments that are no longer of the log: nothing in them is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentsDropped {
    pub segments: Vec<SegmentNumber>,
}

impl SegmentsDropped {
    pub fn record(&self) -> Record {
        let mut body = Vec::new();
        put_count(&mut body, self.segments.len());
        self.segments.iter().for_each(|segment| body.put_u64(segment.0));
        record(Kind::SegmentDropped, body)
    }

    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let count = reader.u32()?;
        let segments = (0..count).map(|_| Ok(SegmentNumber(reader.u64()?)));
        Ok(Self { segments: segments.collect::<Result<_, WireError>>()? })
    }
}

/// A packed segment: see [`super::packed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedSegment {
    pub segment: SegmentNumber,
    /// Length of its file.
    pub bytes: u64,
    /// The segment of the log in whose place it stands in the order of records. No two segments have the same.
    pub place: SegmentNumber,
    /// It comes of a merge: its queues are not mixed any more.
    pub merged: bool,
}

/// Segments whose needed records are in packed ones from here on; those take the places of some of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentsReplaced {
    pub old: Vec<SegmentNumber>,
    pub new: Vec<PackedSegment>,
}

impl SegmentsReplaced {
    pub fn record(&self) -> Record {
        let mut body = Vec::new();
        put_count(&mut body, self.old.len());
        self.old.iter().for_each(|segment| body.put_u64(segment.0));
        put_count(&mut body, self.new.len());
        self.new.iter().for_each(|packed| packed.encode(&mut body));
        record(Kind::SegmentReplaced, body)
    }

    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let count = reader.u32()?;
        let old = (0..count).map(|_| Ok(SegmentNumber(reader.u64()?))).collect::<Result<_, WireError>>()?;
        let count = reader.u32()?;
        let new = (0..count).map(|_| PackedSegment::decode(&mut reader)).collect::<Result<_, _>>()?;
        Ok(Self { old, new })
    }
}

impl PackedSegment {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.segment.0);
        out.put_u64(self.bytes);
        out.put_u64(self.place.0);
        out.put_u8(u8::from(self.merged));
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            segment: SegmentNumber(reader.u64()?),
            bytes: reader.u64()?,
            place: SegmentNumber(reader.u64()?),
            merged: reader.u8()? != 0,
        })
    }
}

fn put_count(body: &mut Vec<u8>, count: usize) {
    body.put_u32(u32::try_from(count).expect("fewer than 2^32 segments"));
}

/// Says nothing, so that what came before has a successor.
pub fn no_op() -> Record {
    record(Kind::NoOp, Vec::new())
}

fn record(kind: Kind, body: Vec<u8>) -> Record {
    Record {
        kind,
        flags: 0,
        queue: QueueId(0),
        offset: Offset(0),
        headers: Vec::new(),
        body: Body::Plain(body),
    }
}
