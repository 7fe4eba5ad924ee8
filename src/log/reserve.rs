//! Space that is kept for when the disk is full: files that say nothing.
//!
//! Space goes first to checkpoints then, without which nothing may be removed; next to reclaim, which gives back more
//! than it takes; and to the log last, which would use up what the two have freed. Who has drawn on a reserve claims
//! space until it is whole again, and as long as somebody does the log gets no file ([`super::supply`]).

use super::error::LogError;
use crate::disk::Disk;

/// What space is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    Checkpoint,
    Reclaim,
}

impl Reserve {
    /// Where the file is.
    pub fn path(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint/RESERVE",
            Self::Reclaim => "packed/RESERVE",
        }
    }

    /// Sees to it that there are so many bytes; false if the disk is full.
    pub fn keep(self, disk: &dyn Disk, bytes: u64) -> Result<bool, LogError> {
        if self.bytes(disk)? >= bytes {
            return Ok(true);
        }
        self.release(disk)?;
        match disk.create(self.path()).and_then(|file| file.allocate(bytes)) {
            Ok(()) => Ok(true),
            Err(error) if error.is_no_space() => self.release(disk).map(|()| false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the space up, if there is any.
    pub fn release(self, disk: &dyn Disk) -> Result<(), LogError> {
        match disk.remove(self.path()) {
            Err(error) if error.is_not_found() => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// How many there are.
    pub fn bytes(self, disk: &dyn Disk) -> Result<u64, LogError> {
        match disk.open(self.path()) {
            Ok(file) => Ok(file.length()?),
            Err(error) if error.is_not_found() => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}
