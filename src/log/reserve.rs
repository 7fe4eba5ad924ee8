//! Space that is kept for when the disk is full: files that say nothing.
//!
//! Checkpoints have one, without which nothing may be removed, and reclaim, which gives back more than it takes. Who has
//! drawn on its reserve claims space until it is whole again: so long the log, which would use up what the two have freed,
//! leaves a file or as much free space for each claim ([`super::supply`]). A reserve that was never drawn on claims
//! nothing: a disk may be too small for it.

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
        let there = self.bytes(disk)?;
        // Not much more, either: what it is for may have become smaller.
        if there > 4 * bytes {
            self.release(disk)?;
        } else if there >= bytes {
            return Ok(true);
        }
        let file = match disk.open(self.path()) {
            Err(error) if error.is_not_found() => disk.create(self.path()),
            opened => opened,
        };
        match file.and_then(|file| file.allocate(bytes)) {
            Ok(_) => Ok(true),
            Err(error) if error.is_no_space() => Ok(false),
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
