//! Reading bodies from the log, off the broker's thread.

use super::api::{ConsumerId, Reply, StoredMessage};
use super::settle::JobId;
use crate::core::consume::Handed;
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::log::{Index, Location, ReadMessage, Reader};

/// Bytes that all reads under way may be about to bring into memory.
pub const READ_BYTES_MAX: u64 = 32 << 20;

/// Consecutive messages of one record.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub location: Location,
    pub first_offset: Offset,
    /// The first message's place in the record.
    pub first: u32,
    pub count: u32,
    /// Bytes to expect.
    pub bytes: u64,
}

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub pieces: Vec<Piece>,
    pub bytes: u64,
    pub messages: usize,
}

impl Plan {
    /// Covers `offsets` in order until about `bytes_max`, at least the first.
    pub fn new(index: &Index, queue: QueueId, offsets: &[Offset], bytes_max: u64) -> Self {
        let mut plan = Self::default();
        for offset in offsets {
            let Some((run, place)) = index.find(queue, *offset) else { break };
            let bytes = run.bytes.div_ceil(run.count.into());
            if plan.messages > 0 && plan.bytes + bytes > bytes_max {
                break;
            }
            plan.messages += 1;
            plan.bytes += bytes;
            match plan.pieces.last_mut() {
                Some(last) if last.location == run.location && last.first + last.count == place => {
                    last.count += 1;
                    last.bytes += bytes;
                }
                _ => plan.pieces.push(Piece {
                    location: run.location,
                    first_offset: *offset,
                    first: place,
                    count: 1,
                    bytes,
                }),
            }
        }
        plan
    }
}

/// Why a read was made.
pub enum Purpose {
    Deliver { consumer: ConsumerId, subscription: SubscriptionId, handed: Vec<Handed> },
    Peek { reply: Reply<Vec<StoredMessage>> },
    DeadLetter { job: JobId, slot: usize },
}

/// A finished read.
pub struct ReadDone {
    pub queue: QueueId,
    pub purpose: Purpose,
    /// Bytes that its plan had reserved.
    pub reserved: u64,
    pub messages: Vec<StoredMessage>,
    /// Messages that are on disk no more as they were written.
    pub damaged: Vec<Offset>,
}

/// Reads a plan until `bytes_max`, at least one message. What cannot be read counts as damaged and is logged.
pub fn read(
    reader: &Reader,
    queue: QueueId,
    queue_uid: Uid,
    plan: &Plan,
    bytes_max: u64,
) -> (Vec<StoredMessage>, Vec<Offset>) {
    let mut messages: Vec<StoredMessage> = Vec::with_capacity(plan.messages);
    let mut damaged = Vec::new();
    let mut left = bytes_max;
    for piece in &plan.pieces {
        if left == 0 {
            break;
        }
        match reader.read(piece.location, piece.first, piece.count, left) {
            Ok(run) => {
                for offset in &run.damaged {
                    tracing::error!(%queue, %offset, location = ?piece.location, "a message fails its checksum");
                }
                damaged.extend(run.damaged);
                let bytes: u64 = run.messages.iter().map(|m| (m.meta.len() + m.body.len()) as u64).sum();
                let over = bytes > left && !messages.is_empty();
                if over {
                    break;
                }
                left = left.saturating_sub(bytes);
                messages.extend(run.messages.into_iter().map(|message| stored(queue_uid, message)));
                if !run.complete {
                    break;
                }
            }
            Err(error) => {
                tracing::error!(%queue, first_offset = %piece.first_offset, count = piece.count, %error, "messages cannot be read");
                damaged.extend((0..piece.count.into()).map(|index| piece.first_offset.plus(index)));
            }
        }
    }
    (messages, damaged)
}

fn stored(queue_uid: Uid, message: ReadMessage) -> StoredMessage {
    let ReadMessage { offset, lane, publish_time_us, meta, body } = message;
    StoredMessage { queue_uid, offset, lane, publish_time_us, meta, body }
}
