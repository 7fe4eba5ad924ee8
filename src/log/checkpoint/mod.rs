//! Checkpoints: the state of the log and of what is built on it, as of one record, so that a start replays only what
//! came after it.
//!
//! The state of what is built on the log is a *head* and *parts*, each with a key, in order of key; their bytes mean
//! nothing here. A **base** holds all parts. A **delta** holds those that have changed since a base, cumulatively, with a
//! mark for those that are gone; parts are absolute, so a delta is right on top of every base from the one that it
//! goes on from (`since`) to its own place.
//!
//! # Layout
//! `checkpoint/%020d.base.ckpt` and `%020d.delta.ckpt`, named by the LSN of the first record that is not included;
//! little-endian:
//! ```text
//!   0 magic "FOREBAYP"                   40 since: LSN u64; of a base its own
//!   8 format version u32 (1)             48 bytes of the log's part u64, CRC-32/IEEE over it u32
//!  12 crc u32: CRC-32/IEEE over the      60 bytes of the head u64, CRC-32/IEEE over it u32
//!     rest of these 88 bytes             72 bytes of the parts u64, CRC-32/IEEE over them u32
//!  16 cluster uid, 16 bytes              84 kind u32: 1 base, 2 delta
//!  32 LSN u64                            88 the log's part, the head, the parts
//! ```
//! The log's part: start of the replay (segment u64 | LSN, sequence, epoch, log time u64 each | checksum of the frame
//! before u32) | incarnation u32 | highest segment u64 | the [`SegmentSet`]. A part:
//! `key u64 | stamp u64 | length u32 | bytes`, keys going up; the stamp is the LSN of the checkpoint that brought it, and
//! no bytes say that it is gone, which a base leaves out.
//!
//! # How it goes on
//! What is built on the log gives the parts that have changed since the last checkpoint that was written. The new
//! delta is those, over the parts of the last delta that came after the older kept base. Then, if there are fewer than
//! two bases, or the deltas since the newer one have taken as many bytes as it has, a new base is made of the newer one
//! and the new delta, of the same place; the state is not asked. Both merge streams in order of key, in memory
//! of 1 MiB for each, or of the largest part. The first base is made of the first parts, which are all.
//!
//! So bases take no more bytes than deltas and one base, besides the first two. A delta holds what has changed since the older base:
//! if always the same `c` bytes change, a checkpoint takes about `2c`; if always others, of `s` in all, at most about
//! `2.5 √(sc)`; if all change, `2s`. What is asked of the state is `c` in each case.
//!
//! # Invariants
//! - A checkpoint is written only when every record before its LSN is durable; a file gets its name when it is durable
//!   itself, and goes when those after it are.
//! - The newest two bases and two deltas are kept, and the deltas go on from the older base or before. So whichever one
//!   file is damaged, or all of the last place, the others lead to a state: that of the last checkpoint, or of the one
//!   before. The lowest of these places is the *fallback*; nothing that a replay from there needs is removed.
//! - A file that fails a checksum is never used and never deleted: it is set aside, when a start or a merge meets it. If
//!   the others do not lead to the last place then, all parts are asked for, and the next checkpoint is a base.
//! - A crash between two steps leaves files of before, or more than are kept, or one without its name.
//!
//! `checkpoint/RESERVE` is space for the next checkpoint, given up when the disk is full: without checkpoints nothing
//! could ever be removed. A base that there is still no space for is put off.

mod file;
mod found;
mod kept;
mod parts;

pub use file::{Kept, Kind, Name};
pub use found::{Found, Image, Point, find, image, list, points, remove_temps};
pub use kept::{Checkpoints, New, Taken};
pub use parts::Parts;

use std::path::PathBuf;

use super::error::LogError;
use super::set::SegmentSet;
use super::tail::Chain;
use crate::disk::{Disk, DiskError};
use crate::ids::{Lsn, SegmentNumber, Uid};
use crate::record::wire::{Put, Reader, WireError};
use file::Draft;
use parts::{Fresh, Merged};

const DIR: &str = "checkpoint";

/// A place in the log that a checkpoint can be taken at: the end of a durable frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Of the first record behind it.
    pub(super) lsn: Lsn,
    /// Where reading begins: the first frame of the segment that holds the place.
    pub(super) start: ReplayStart,
    pub(super) incarnation: u32,
    /// The largest number that any segment ever had.
    pub(super) highest: SegmentNumber,
    pub(super) set: SegmentSet,
}

/// The first frame of a segment, and what it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReplayStart {
    pub segment: SegmentNumber,
    pub chain: Chain,
}

impl Mark {
    /// LSN of the first record behind it.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let ReplayStart { segment, chain } = self.start;
        out.put_u64(segment.0);
        out.put_u64(chain.lsn.0);
        out.put_u64(chain.sequence);
        out.put_u64(chain.epoch);
        out.put_u64(chain.log_time_us);
        out.put_u32(chain.previous_crc);
        out.put_u32(self.incarnation);
        out.put_u64(self.highest.0);
        self.set.encode(&mut out);
        out
    }

    fn decode(lsn: Lsn, bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let segment = SegmentNumber(reader.u64()?);
        let chain = Chain {
            lsn: Lsn(reader.u64()?),
            sequence: reader.u64()?,
            epoch: reader.u64()?,
            log_time_us: reader.u64()?,
            previous_crc: reader.u32()?,
        };
        Ok(Self {
            lsn,
            start: ReplayStart { segment, chain },
            incarnation: reader.u32()?,
            highest: SegmentNumber(reader.u64()?),
            set: SegmentSet::decode(&mut reader)?,
        })
    }
}

/// What is wrong with a checkpoint's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFault {
    #[error("its header is damaged")]
    Header,
    #[error("its length is not what its header says")]
    Length,
    #[error("it is of another data directory or of another place in the log")]
    Place,
    #[error("the log's part fails its checksum")]
    Log { position: u64 },
    #[error("the head of the state fails its checksum")]
    Head { position: u64 },
    #[error("the parts of the state fail their checksum")]
    Parts { position: u64 },
    #[error("it is whole, but there is no base left that it goes on from")]
    NoBase,
}

impl CheckpointFault {
    /// Where the damaged part begins in the file.
    pub fn position(&self) -> u64 {
        match self {
            Self::Header | Self::Length | Self::Place | Self::NoBase => 0,
            Self::Log { position } | Self::Head { position } | Self::Parts { position } => *position,
        }
    }
}

/// Why a file cannot be read or written.
#[derive(Debug)]
pub enum Broken {
    Log(LogError),
    Damaged(Name, CheckpointFault),
}

impl From<LogError> for Broken {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl From<DiskError> for Broken {
    fn from(error: DiskError) -> Self {
        Self::Log(error.into())
    }
}

/// For those who read what was verified just before.
impl From<Broken> for LogError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Log(error) => error,
            Broken::Damaged(name, what) => Self::CheckpointDamaged { path: name.path().into(), what },
        }
    }
}

/// Writes a base that takes the place of all checkpoints.
pub fn write_base(
    disk: &dyn Disk,
    cluster: Uid,
    mark: &Mark,
    head: &[u8],
    parts: &Parts,
) -> Result<Kept, LogError> {
    let draft = Draft { cluster, kind: Kind::Base, since: mark.lsn, mark, head };
    Ok(draft.write(disk, Merged::new(vec![Box::new(Fresh::new(parts, mark.lsn))]))?)
}

/// Moves a file to `quarantine/`; where it is now.
pub fn set_aside(disk: &dyn Disk, name: Name) -> Result<PathBuf, LogError> {
    super::ending::move_to_quarantine(disk, DIR, &name.to_string())
}

#[cfg(test)]
mod tests;
