//! Space for the next checkpoint on a full disk: without checkpoints nothing could ever be removed.

use crate::disk::Disk;
use crate::log::error::LogError;

pub const RESERVE: &str = "checkpoint/RESERVE";
/// Its least bytes.
const BYTES_MIN: u64 = 1 << 20;

/// Sees to it that there is this much; false if the disk is full.
pub fn keep(disk: &dyn Disk, bytes: u64) -> Result<bool, LogError> {
    let bytes = bytes.max(BYTES_MIN);
    if disk.exists(RESERVE)? {
        if disk.open(RESERVE)?.length()? >= bytes {
            return Ok(true);
        }
        disk.remove(RESERVE)?;
    }
    match disk.create(RESERVE)?.allocate(bytes) {
        Err(error) if error.is_no_space() => disk.remove(RESERVE).map(|()| false),
        allocated => allocated.map(|()| true),
    }
    .map_err(Into::into)
}

/// Gives it up; whether there was one.
pub fn release(disk: &dyn Disk) -> Result<bool, LogError> {
    let there = disk.exists(RESERVE)?;
    if there {
        disk.remove(RESERVE)?;
    }
    Ok(there)
}
