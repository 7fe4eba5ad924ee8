//! The state of a shard as bytes: what replaying the log up to here would give.
//!
//! It is a head and a part for each queue, which is known by the queue's id. What has not changed since a snapshot need
//! not be put again: the part of before still says the same.
//!
//! ```text
//! head       version u16 | last queue | last subscription | last lease | incarnation | producers_expired_us
//! part       version u16 | queue
//! queue      uid | flags u8 (1 = holds dead letters) | namespace | queue | create_time_us | first offset
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
//! A blob is a u32 length and its bytes. A later build may add to the end of a blob, of the head and of a part, which
//! this one skips; parts keep the version of the build that put them. Other numbers are varints unless a width is given; text has a u16 length; `uid` is 16 bytes;
//! configurations are described in [`config_codec`](super::config_codec).
//!
//! Invariants:
//! 1. The same state gives the same bytes, whatever the order of its hash maps.
//! 2. What follows from the rest is not stored: names, counts, what is ready, due or leased.
//! 3. Any bytes are decoded without a panic and in memory that is bounded: by their number, and for what is finished,
//!    where few bytes say much, by [`FINISHED_WORDS_MAX`].

mod delivery;
mod queue;

use self::queue::Decoded;
use super::state::{Counters, Queue, State};
use crate::ids::{QueueId, SubscriptionId};
use crate::record::wire::{Put, Reader, WireError};

/// The layout that this build writes, and the newest that it reads.
const VERSION: u16 = 1;

/// Words of 64 finished messages that a snapshot may stand for: 4 GiB of them, more than a server can use.
const FINISHED_WORDS_MAX: u64 = 1 << 29;

/// Why bytes are no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("the snapshot ends too early")]
    Truncated,
    #[error("the snapshot has version {version}; this build reads up to {VERSION}")]
    NewerVersion { version: u16 },
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

/// Appends the head.
pub fn put_head(out: &mut Vec<u8>, state: &State) {
    out.put_u16(VERSION);
    put_counters(out, state.counters());
}

/// Appends the part of a queue.
pub fn put_part(out: &mut Vec<u8>, state: &State, queue: &Queue) {
    out.put_u16(VERSION);
    queue::put(out, state, queue);
}

/// A state that is made again.
pub struct Decoding(Decoded);

impl Decoding {
    /// Begins with the head.
    ///
    /// # Errors
    /// As [`Self::part`].
    pub fn begin(head: &[u8]) -> Result<Self, SnapshotError> {
        let counters = counters(&mut versioned(head)?)?;
        Ok(Self(Decoded::within(counters, FINISHED_WORDS_MAX)))
    }

    /// Takes the part of the next queue; ids go up.
    ///
    /// # Errors
    /// What keeps the bytes from being a snapshot that this build can read.
    pub fn part(&mut self, id: QueueId, part: &[u8]) -> Result<(), SnapshotError> {
        self.0.queue(id, &mut versioned(part)?)
    }

    /// The state, in which nothing counts as changed.
    pub fn end(self) -> State {
        self.0.state()
    }
}

/// What follows the version.
fn versioned(bytes: &[u8]) -> Result<Reader<'_>, SnapshotError> {
    let mut reader = Reader::new(bytes);
    match reader.u16()? {
        0 => Err(invalid("the version")),
        VERSION => Ok(reader),
        version => Err(SnapshotError::NewerVersion { version }),
    }
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

    fn head_of(counters: Counters) -> Vec<u8> {
        let mut head = Vec::new();
        put_head(&mut head, &State::restored(counters, Vec::new(), Vec::new()));
        head
    }

    fn refusal(head: &[u8]) -> SnapshotError {
        Decoding::begin(head).err().expect("it is refused")
    }

    #[test]
    fn versions_are_told_apart() {
        assert_eq!(refusal(&[]), SnapshotError::Truncated);
        assert_eq!(refusal(&[0; 64]), invalid("the version"));
        assert_eq!(refusal(&[2, 0, 0, 0]), SnapshotError::NewerVersion { version: 2 });
        let head = head_of(Counters::default());
        for end in 0..head.len() {
            assert_eq!(refusal(&head[..end]), SnapshotError::Truncated);
        }
        let mut decoding = Decoding::begin(&head).unwrap();
        let newer = SnapshotError::NewerVersion { version: 7 };
        assert_eq!(decoding.part(QueueId(1), &[7, 0, 1]), Err(newer), "of a part");
    }

    /// What this build does not know of, at the end of the head, is passed over.
    #[test]
    fn a_later_build_may_add_to_the_end() {
        let mut head = head_of(Counters { last_lease: 77, ..Counters::default() });
        head.extend_from_slice(b"later");
        assert_eq!(Decoding::begin(&head).unwrap().end().last_lease(), 77);
    }
}
