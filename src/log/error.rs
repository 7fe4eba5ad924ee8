//! What can be wrong with a log. One enum for the layer; each case says what was found and what to do.

use std::path::PathBuf;

use super::checkpoint::CheckpointFault;
use super::directory::DirectoryError;
use crate::disk::DiskError;
use crate::ids::{Lsn, SegmentNumber, Uid};
use crate::record::RecordError;

/// Why the log could not be opened, or stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the option {option} is {value}; {rule}")]
    Options { option: &'static str, value: u64, rule: &'static str },
    #[error(
        "{} has format version {found}; this build reads up to {supported}: use a newer build", path.display()
    )]
    NewerFormat { path: PathBuf, found: u32, supported: u32 },
    #[error("{} needs features {flags:#x} that this build does not have: use a newer build", path.display())]
    UnknownFeatures { path: PathBuf, flags: u64 },
    #[error("{} belongs to cluster {found}, not to {expected}: files of two servers are mixed", path.display())]
    WrongCluster { path: PathBuf, found: Uid, expected: Uid },
    #[error(
        "data loss: the log begins at record {first_lsn} and no checkpoint can be used; restore one from a backup, or \
         run `forebay fsck --rebuild {}`: every stored message then waits again",
        data_dir.display()
    )]
    NotFromStart { data_dir: PathBuf, first_lsn: Lsn },
    #[error(
        "data loss: segment {segment} belongs to the log, but {} is missing; restore the file", path.display()
    )]
    SegmentMissing { segment: SegmentNumber, path: PathBuf },
    #[error(
        "data loss: segment {segment} has {found} bytes and needs at least {expected}: {} was cut short; restore the file",
        path.display()
    )]
    SegmentShort { segment: SegmentNumber, path: PathBuf, found: u64, expected: u64 },
    #[error(
        "data loss: segment {segment} is damaged at byte {position} ({what}), and the log goes on behind that; \
         nothing was changed"
    )]
    Corrupt { segment: SegmentNumber, position: u64, what: FrameFault },
    #[error("segment {segment} holds a record at byte {position} that this build cannot take: {why}")]
    Record { segment: SegmentNumber, position: u64, why: RecordError },
    #[error(
        "segment {segment} holds another record at byte {position} than its index says: {found} instead of {index}"
    )]
    NotOfIndex { segment: SegmentNumber, position: u64, index: String, found: String },
    #[error("record {lsn} in segment {segment} at byte {position} cannot be replayed: {why}")]
    Replay { segment: SegmentNumber, position: u64, lsn: Lsn, why: ReplayError },
    #[error(
        "the checkpoint at record {lsn} is whole, but this build cannot take its state: {why}; use a newer build"
    )]
    Checkpoint { lsn: Lsn, why: ReplayError },
    #[error(
        "the checkpoint {} was whole when it was read first and is damaged now: {what}; start again: what is damaged is \
         set aside then", path.display()
    )]
    CheckpointDamaged { path: PathBuf, what: CheckpointFault },
    #[error("a thread of the log has panicked; this is a bug")]
    Panicked,
}

impl LogError {
    /// Whether the disk is full, and nothing worse.
    pub fn is_no_space(&self) -> bool {
        matches!(self, LogError::Disk(error) if error.is_no_space())
    }

    /// Whether stored data is missing or damaged.
    pub fn is_data_loss(&self) -> bool {
        match self {
            LogError::Directory(error) => error.is_data_loss(),
            LogError::NotFromStart { .. }
            | LogError::SegmentMissing { .. }
            | LogError::SegmentShort { .. }
            | LogError::Corrupt { .. } => true,
            _ => false,
        }
    }
}

/// Why the one who applies the records refused one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReplayError(pub String);

impl From<RecordError> for ReplayError {
    fn from(error: RecordError) -> Self {
        Self(error.to_string())
    }
}

/// What is wrong with the bytes where a frame or a segment's header should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    #[error("there is no frame")]
    Missing,
    #[error("the frame's header fails its checksum")]
    HeaderChecksum,
    #[error("the frame's lengths do not fit")]
    Length,
    #[error("the frame is of another place in the log")]
    Place,
    #[error("the frame does not follow the one before it")]
    Chain,
    #[error("the frame's records fail their checksum")]
    PayloadChecksum,
    #[error("the segment's header is damaged")]
    SegmentHeader,
    #[error("the segment holds records that the log does not lead to")]
    Unlisted,
}
