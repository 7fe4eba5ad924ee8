//! The state of a shard as bytes: what replaying the log up to here would give.
//!
//! ```text
//! snapshot   version u32 | shard blob | count | a blob for each queue, in order of id
//! shard      last queue | last subscription | last lease | incarnation | producers_expired_us
//! queue      id | uid | flags u8 (1 = holds dead letters) | namespace | queue | create_time_us | first offset
//!            | purge end | next offset | last_publish_us | published_bytes | config blob | update_time_us | revision | pause
//!            | count | a blob for each producer, in order of id | count | a blob for each subscription, in order of name
//! producer   id | epoch | sequence | last_used_us | answers: count, then first offset, count, publish_time_us
//! subscription
//!            id | uid | name | create_time_us | config blob | update_time_us | revision | pause | delivery blob
//! pause      0 u8 (none) | 1 u8 (publishes are held) or 2 u8 (refused), time_us, next offset, reason
//! delivery   floor | finished | cursor | outstanding: count, then in order of offset: offset less that of the one
//!            before (at first 0), attempts, incarnation and number of the lease, phase
//!            | place of the next run of refs | runs: count, then in order of place: place less that of the one before
//!            (at first 0), position, due_us
//! finished   0 u8 | runs above the floor: distance from the end of the one before (at first the floor), length; a
//!            distance of 0 ends them
//!            1 u8 | count | words u64, of which the first has the bit of the floor; whichever form is shorter
//! phase      0 u8 (ready) | 1 u8, due_us (delayed) | 2 u8, deadline_us (leased)
//! ```
//! A blob is a u32 length and its bytes; a later build may add to its end, which this one skips, as it skips what
//! follows the queues. Other numbers are varints unless a width is given; text has a u16 length; `uid` is 16 bytes;
//! configurations are described in [`config_codec`](super::config_codec).
//!
//! Invariants:
//! 1. The same state gives the same bytes, whatever the order of its hash maps.
//! 2. What follows from the rest is not stored: names, counts, what is ready, due or leased.
//! 3. Any bytes are decoded without a panic and in memory that is bounded: by their number, and for what is finished,
//!    where few bytes say much, by [`FINISHED_WORDS_MAX`].

mod delivery;
mod queue;

use super::state::{Counters, State};
use crate::ids::{QueueId, SubscriptionId};
use crate::record::wire::{Put, Reader, WireError};

/// The layout that this build writes, and the newest that it reads.
const VERSION: u32 = 1;

/// Words of 64 finished messages that a snapshot may stand for: 4 GiB of them, more than a server can use.
const FINISHED_WORDS_MAX: u64 = 1 << 29;

/// Why bytes are no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("the snapshot ends too early")]
    Truncated,
    #[error("the snapshot has version {version}; this build reads up to {VERSION}")]
    NewerVersion { version: u32 },
    #[error("{what} of the snapshot is not valid")]
    Invalid { what: &'static str },
}

impl From<WireError> for SnapshotError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Truncated => Self::Truncated,
            WireError::Invalid { what } => Self::Invalid { what },
        }
    }
}

/// Appends the state.
pub fn encode(state: &State, out: &mut Vec<u8>) {
    out.put_u32(VERSION);
    put_blob(out, |out| put_counters(out, state.counters()));
    let mut ids: Vec<QueueId> = state.queue_ids().collect();
    ids.sort_unstable();
    out.put_varint(ids.len() as u64);
    for id in ids {
        let queue = state.queue(id).expect("the state has named it");
        put_blob(out, |out| queue::put(out, state, queue));
    }
}

/// Makes the state again.
///
/// # Errors
/// What keeps the bytes from being a snapshot that this build can read.
pub fn decode(bytes: &[u8]) -> Result<State, SnapshotError> {
    decode_within(bytes, FINISHED_WORDS_MAX)
}

/// [`decode`] with another bound on the words of what is finished.
fn decode_within(bytes: &[u8], words_max: u64) -> Result<State, SnapshotError> {
    let mut reader = Reader::new(bytes);
    match reader.u32()? {
        0 => return Err(invalid("the version")),
        VERSION => {}
        version => return Err(SnapshotError::NewerVersion { version }),
    }
    let mut decoded = queue::Decoded::within(counters(&mut Reader::new(reader.bytes()?))?, words_max);
    let count = reader.varint()?;
    for _ in 0..count {
        decoded.queue(&mut Reader::new(reader.bytes()?))?;
    }
    Ok(decoded.state())
}

fn put_counters(out: &mut Vec<u8>, counters: Counters) {
    out.put_varint(counters.last_queue.0);
    out.put_varint(counters.last_subscription.0);
    out.put_varint(counters.last_lease);
    out.put_varint(counters.incarnation.into());
    out.put_varint(counters.producers_expired_us);
}

fn counters(reader: &mut Reader<'_>) -> Result<Counters, SnapshotError> {
    Ok(Counters {
        last_queue: QueueId(reader.varint()?),
        last_subscription: SubscriptionId(reader.varint()?),
        last_lease: reader.varint()?,
        incarnation: narrow(reader.varint()?, "an incarnation")?,
        producers_expired_us: reader.varint()?,
    })
}

/// Writes a blob whose length is known afterwards.
fn put_blob(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.put_u32(0);
    let start = out.len();
    fill(out);
    let length = u32::try_from(out.len() - start).expect("a blob is shorter than 4 GiB");
    out[start - 4..start].copy_from_slice(&length.to_le_bytes());
}

fn invalid(what: &'static str) -> SnapshotError {
    SnapshotError::Invalid { what }
}

fn narrow(value: u64, what: &'static str) -> Result<u32, SnapshotError> {
    u32::try_from(value).map_err(|_| invalid(what))
}

/// Fails with `what` unless it holds.
fn check(holds: bool, what: &'static str) -> Result<(), SnapshotError> {
    if holds { Ok(()) } else { Err(invalid(what)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        assert_eq!(decode(&[]).unwrap_err(), SnapshotError::Truncated);
        assert_eq!(decode(&[0; 64]).unwrap_err(), invalid("the version"));
        assert_eq!(decode(&[2, 0, 0, 0]).unwrap_err(), SnapshotError::NewerVersion { version: 2 });
        let mut bytes = Vec::new();
        encode(&State::default(), &mut bytes);
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]).unwrap_err(), SnapshotError::Truncated);
        }
    }

    /// What this build does not know of, at the end of every blob and behind the queues, is passed over.
    #[test]
    fn a_later_build_may_add_to_the_end() {
        let mut bytes = Vec::new();
        bytes.put_u32(VERSION);
        put_blob(&mut bytes, |out| {
            let last_lease = 77;
            put_counters(out, Counters { last_lease, ..Counters::default() });
            out.extend_from_slice(b"later");
        });
        bytes.put_varint(0);
        bytes.extend_from_slice(b"later still");
        assert_eq!(decode(&bytes).unwrap().last_lease(), 77);
    }
}
