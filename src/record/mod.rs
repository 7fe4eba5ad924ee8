//! Records: facts as they lie in the log, and the formats inside them. Pure; no input or output.

pub mod bounds;
pub mod envelope;
pub mod kind;
pub mod meta;
pub mod run;
pub mod tlv;
pub mod wire;

use bytes::Bytes;

use crate::ids::{Offset, QueueId};
pub use envelope::{RecordError, RecordHead};
pub use kind::Kind;

/// One fact on its way into the log. Its LSN and checksums are given by the log writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    pub flags: u8,
    /// The queue it is about; `QueueId(0)` where it is about none.
    pub queue: QueueId,
    /// The first offset it is about; 0 where it is about none.
    pub offset: Offset,
    /// TLV headers, encoded by [`tlv`].
    pub headers: Vec<u8>,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Bytes whose layout belongs to the record's kind.
    Plain(Vec<u8>),
    /// Messages of one queue and lane at consecutive offsets (`Kind::Publish` only).
    Run(MessageRun),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRun {
    pub lane: Lane,
    /// Wall time of the publish, microseconds since the Unix epoch.
    pub publish_time_us: u64,
    pub messages: Vec<StoredParts>,
}

/// A message as it lies in the log: metadata in TLVs ([`meta`]) and the body as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredParts {
    pub meta: Bytes,
    pub body: Bytes,
}

/// An order inside a queue, fixed at publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    pub priority: u8,
    pub bucket: u16,
}
