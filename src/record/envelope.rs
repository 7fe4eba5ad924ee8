//! The layout of a record, the same wherever it lies.
//!
//! ```text
//!  0  crc          u32   CRC-32/IEEE over bytes 4..head_len
//!  4  length       u32   of the whole record
//!  8  head_len     u32   bytes up to and with the last one that crc covers
//! 12  headers_len  u16
//! 14  kind         u8    0 is invalid
//! 15  flags        u8    meaning belongs to the kind
//! 16  lsn          u64
//! 24  queue        u64   0: about none
//! 32  offset       u64   0: about none
//! 40  headers            tagged values (see tlv)
//!     body               plain: the rest of the record, and head_len = length
//!                        run: see run.rs; its messages follow head_len
//! ```
//! Invariants: a head can be read and verified without the messages behind it. The checksum is neither salted nor
//! tied to a place: a record that is moved keeps it, and its LSN. All-zero bytes never decode.

use super::run::{self, RunHead};
use super::tlv::{self, TlvError};
use super::wire::{Put, Reader, WireError};
use super::{Body, Kind, Record};
use crate::ids::{Lsn, Offset, QueueId};
use crate::record::kind::UnknownKind;

/// Bytes of a record before its headers.
pub const RECORD_HEADER_BYTES: usize = 40;

/// Tag of a publish's producer stamp (layout: `core::event_codec`). Critical: without it a retry is stored twice.
pub const PRODUCER_STAMP: u16 = tlv::CRITICAL | 0x0001;
/// Tags that a record's headers may hold and that this build knows.
pub const KNOWN_HEADERS: &[u16] = &[PRODUCER_STAMP];

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the record needs {need} bytes and {have} are there")]
    Truncated { need: u64, have: u64 },
    #[error("the record's head fails its checksum")]
    Checksum,
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    #[error("the record is inconsistent: {what}")]
    Invalid { what: &'static str },
    #[error("the record's headers: {0}")]
    Headers(#[from] TlvError),
}

impl From<WireError> for RecordError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Truncated => RecordError::Invalid { what: "its body ends too early" },
            WireError::Invalid { what } => RecordError::Invalid { what },
        }
    }
}

/// Bytes that `record` takes in the log, messages included.
pub fn encoded_len(record: &Record) -> usize {
    let fixed = RECORD_HEADER_BYTES + record.headers.len();
    match &record.body {
        Body::Plain(body) => fixed + body.len(),
        Body::Run(messages) => fixed + run::head_len(messages) + run::messages_len(messages),
    }
}

/// Appends the head: all of a plain record; all but the messages of a run. Limits (64 KiB of headers, 4 GiB of
/// record) and a body that does not fit its kind are bugs.
pub fn encode_head(record: &Record, lsn: Lsn, out: &mut Vec<u8>) {
    let is_run = matches!(record.body, Body::Run(_));
    assert_eq!(is_run, record.kind == Kind::Publish, "runs and only runs are published");
    let start = out.len();
    out.put_u32(0);
    out.put_u32(u32::try_from(encoded_len(record)).expect("a record is shorter than 4 GiB"));
    out.put_u32(0);
    out.put_u16(u16::try_from(record.headers.len()).expect("headers are shorter than 64 KiB"));
    out.put_u8(record.kind as u8);
    out.put_u8(record.flags);
    out.put_u64(lsn.0);
    out.put_u64(record.queue.0);
    out.put_u64(record.offset.0);
    out.extend_from_slice(&record.headers);
    match &record.body {
        Body::Plain(body) => out.extend_from_slice(body),
        Body::Run(messages) => run::encode_head(messages, out),
    }
    let head_len = u32::try_from(out.len() - start).expect("a head is shorter than 4 GiB");
    out[start + 8..start + 12].copy_from_slice(&head_len.to_le_bytes());
    let crc = crc32fast::hash(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Appends the whole record.
pub fn encode(record: &Record, lsn: Lsn, out: &mut Vec<u8>) {
    encode_head(record, lsn, out);
    if let Body::Run(run) = &record.body {
        for message in &run.messages {
            out.extend_from_slice(&message.meta);
            out.extend_from_slice(&message.body);
        }
    }
}

/// The sizes that a record claims; not verified, for finding how much to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub length: u32,
    pub head_len: u32,
}

impl Claimed {
    /// Reads the sizes from the first bytes of a record, and refuses what cannot be.
    pub fn read(bytes: &[u8]) -> Result<Self, RecordError> {
        let header = bytes
            .get(..RECORD_HEADER_BYTES)
            .ok_or(RecordError::Truncated { need: RECORD_HEADER_BYTES as u64, have: bytes.len() as u64 })?;
        let mut reader = Reader::new(&header[4..]);
        let claimed = Self { length: reader.u32()?, head_len: reader.u32()? };
        if (claimed.head_len as usize) < RECORD_HEADER_BYTES || claimed.head_len > claimed.length {
            return Err(RecordError::Invalid { what: "its lengths" });
        }
        Ok(claimed)
    }
}

/// The verified head of a record.
#[derive(Clone, Copy, Debug)]
pub struct RecordHead<'a> {
    pub lsn: Lsn,
    pub kind: Kind,
    pub flags: u8,
    pub queue: QueueId,
    pub offset: Offset,
    /// Tagged values.
    pub headers: &'a [u8],
    /// The body of a plain record; of a run, what comes before its messages.
    pub body: &'a [u8],
    /// Bytes of the head; the messages of a run begin here, from the record's first byte.
    pub head_len: u32,
    /// Bytes of the whole record.
    pub length: u32,
    run: Option<RunHead<'a>>,
}

impl<'a> RecordHead<'a> {
    /// Verifies and reads a head from the front of `bytes`, which need not reach to the record's end.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let Claimed { length, head_len } = Claimed::read(bytes)?;
        let head = bytes
            .get(..head_len as usize)
            .ok_or(RecordError::Truncated { need: u64::from(head_len), have: bytes.len() as u64 })?;
        let mut reader = Reader::new(head);
        if reader.u32()? != crc32fast::hash(&head[4..]) {
            return Err(RecordError::Checksum);
        }
        reader.take(8)?;
        let headers_len = reader.u16()?;
        let kind = Kind::try_from(reader.u8()?)?;
        let (flags, lsn) = (reader.u8()?, Lsn(reader.u64()?));
        let (queue, offset) = (QueueId(reader.u64()?), Offset(reader.u64()?));
        let headers = reader.take(usize::from(headers_len))?;
        let body = reader.rest();
        let run = match kind {
            Kind::Publish => Some(RunHead::decode(body, head_len, length)?),
            _ if head_len != length => return Err(RecordError::Invalid { what: "bytes behind its head" }),
            _ => None,
        };
        let count = run.map_or(u64::from(kind.is_indexed()), |run| u64::from(run.count));
        if offset.0.checked_add(count).is_none() {
            return Err(RecordError::Invalid { what: "its offsets" });
        }
        Ok(Self { lsn, kind, flags, queue, offset, headers, body, head_len, length, run })
    }

    /// Refuses headers that are damaged, or that are critical and unknown to this build.
    pub fn check_headers(&self) -> Result<(), RecordError> {
        Ok(tlv::check(self.headers, KNOWN_HEADERS)?)
    }

    /// The run, if the record is one.
    pub fn run(&self) -> Option<RunHead<'a>> {
        self.run
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
