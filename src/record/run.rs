//! The body of a run: messages of one queue and lane at consecutive offsets.
//!
//! ```text
//!  0  count            u32
//!  4  priority         u8
//!  5  reserved         u8    0
//!  6  bucket           u16
//!  8  publish_time_us  u64   wall time, microseconds since the Unix epoch
//! 16  table, per message: meta_len u32 | body_len u32 | crc u32 (CRC-32/IEEE over meta and body)
//!     the record's head ends here
//!     messages: meta, body, back to back in order of the table
//! ```
//! So one message is read and verified from the head and its own bytes, and damage to one costs only that one.

use super::envelope::RecordError;
use super::wire::{Put, Reader};
use super::{Lane, MessageRun, StoredParts};

/// Bytes before the table.
pub const RUN_FIXED_BYTES: usize = 16;
/// Bytes of a table entry.
pub const RUN_ENTRY_BYTES: usize = 12;

/// Bytes of `run` up to its messages.
pub(super) fn head_len(run: &MessageRun) -> usize {
    RUN_FIXED_BYTES + RUN_ENTRY_BYTES * run.messages.len()
}

/// Bytes of the messages of `run`.
pub(super) fn messages_len(run: &MessageRun) -> usize {
    run.messages.iter().map(|message| message.meta.len() + message.body.len()).sum()
}

/// Appends everything but the messages.
pub(super) fn encode_head(run: &MessageRun, out: &mut Vec<u8>) {
    assert!(!run.messages.is_empty(), "a run has messages");
    out.put_u32(u32::try_from(run.messages.len()).expect("a run has fewer than 2^32 messages"));
    out.put_u8(run.lane.priority);
    out.put_u8(0);
    out.put_u16(run.lane.bucket);
    out.put_u64(run.publish_time_us);
    let length = |part: &[u8]| u32::try_from(part.len()).expect("a message is shorter than 4 GiB");
    for message in &run.messages {
        out.put_u32(length(&message.meta));
        out.put_u32(length(&message.body));
        out.put_u32(message_crc(message));
    }
}

fn message_crc(message: &StoredParts) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&message.meta);
    hasher.update(&message.body);
    hasher.finalize()
}

/// What a run's head says.
#[derive(Clone, Copy, Debug)]
pub struct RunHead<'a> {
    pub lane: Lane,
    pub publish_time_us: u64,
    /// Messages in it; at least one.
    pub count: u32,
    table: &'a [u8],
    head_len: u32,
}

/// One message of a run: where it lies and how to verify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunEntry {
    /// Its place in the run, from 0.
    pub index: u32,
    /// Of its first byte, from the first byte of the record.
    pub position: u32,
    pub meta_len: u32,
    pub body_len: u32,
    pub crc: u32,
}

impl RunEntry {
    /// Bytes of the message in the log: metadata and body.
    pub fn len(&self) -> u32 {
        self.meta_len + self.body_len
    }

    /// Whether the message has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `message`, metadata and body, is what was stored.
    pub fn verify(&self, message: &[u8]) -> bool {
        message.len() == self.len() as usize && crc32fast::hash(message) == self.crc
    }
}

impl<'a> RunHead<'a> {
    /// Reads the body part of a head of `head_len` bytes, whose record has `length` bytes.
    pub(super) fn decode(body: &'a [u8], head_len: u32, length: u32) -> Result<Self, RecordError> {
        let mut reader = Reader::new(body);
        let count = reader.u32()?;
        let priority = reader.u8()?;
        if reader.u8()? != 0 {
            return Err(RecordError::Invalid { what: "a reserved byte of its run" });
        }
        let lane = Lane { priority, bucket: reader.u16()? };
        let publish_time_us = reader.u64()?;
        let table = reader.rest();
        if count == 0 || table.len() as u64 != u64::from(count) * RUN_ENTRY_BYTES as u64 {
            return Err(RecordError::Invalid { what: "its table of messages" });
        }
        let sum = |entry: &[u8]| u64::from(le(entry, 0)) + u64::from(le(entry, 4));
        let messages: u64 = table.chunks_exact(RUN_ENTRY_BYTES).map(sum).sum();
        if u64::from(head_len) + messages != u64::from(length) {
            return Err(RecordError::Invalid { what: "the lengths of its messages" });
        }
        Ok(Self { lane, publish_time_us, count, table, head_len })
    }

    /// The messages in order.
    pub fn entries(&self) -> impl Iterator<Item = RunEntry> + use<'a> {
        let mut position = self.head_len;
        self.table.chunks_exact(RUN_ENTRY_BYTES).zip(0..).map(move |(entry, index)| {
            let entry = RunEntry {
                index,
                position,
                meta_len: le(entry, 0),
                body_len: le(entry, 4),
                crc: le(entry, 8),
            };
            position += entry.len();
            entry
        })
    }
}

fn le(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
