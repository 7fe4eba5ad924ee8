//! Sequential reading of a file through one reused buffer.

use std::sync::Arc;

use crate::disk::{DiskError, DiskFile};

/// Least bytes that are read at a time, the file permitting.
const READ_BYTES: usize = 1 << 20;

/// A stretch of a file in memory that moves forward.
#[derive(Debug)]
pub struct Window {
    file: Arc<dyn DiskFile>,
    file_len: u64,
    /// Place of the buffer's first byte.
    start: u64,
    /// Only grows, so that it is zeroed once; the first `held` bytes are the file's.
    buffer: Vec<u8>,
    held: usize,
    bytes_read: u64,
}

impl Window {
    pub fn new(file: Arc<dyn DiskFile>, file_len: u64) -> Self {
        Self { file, file_len, start: 0, buffer: Vec::new(), held: 0, bytes_read: 0 }
    }

    /// Turns to another file with what was read of it already.
    pub fn go_on_with(&mut self, next: Self) {
        let before = self.bytes_read;
        *self = next;
        self.bytes_read += before;
    }

    /// Bytes read since it was made, and by those that it went on from.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// `length` bytes from `position` on; `None` if the file ends before that.
    pub fn get(&mut self, position: u64, length: usize) -> Result<Option<&[u8]>, DiskError> {
        if position.checked_add(length as u64).is_none_or(|end| end > self.file_len) {
            return Ok(None);
        }
        let held = self.start..=self.start + self.held as u64;
        if !held.contains(&position) || !held.contains(&(position + length as u64)) {
            self.load(position, length)?;
        }
        let from = (position - self.start) as usize;
        Ok(Some(&self.buffer[from..from + length]))
    }

    fn load(&mut self, position: u64, length: usize) -> Result<(), DiskError> {
        let held_end = self.start + self.held as u64;
        if position < self.start || position > held_end {
            self.held = 0;
        } else {
            let dropped = (position - self.start) as usize;
            self.buffer.copy_within(dropped..self.held, 0);
            self.held -= dropped;
        }
        self.start = position;
        let left = usize::try_from(self.file_len - position).unwrap_or(usize::MAX);
        let wanted = length.max(READ_BYTES).min(left);
        if self.buffer.len() < wanted {
            let mut larger = vec![0; wanted];
            larger[..self.held].copy_from_slice(&self.buffer[..self.held]);
            self.buffer = larger;
        }
        self.file.read_at(&mut self.buffer[self.held..wanted], position + self.held as u64)?;
        self.bytes_read += (wanted - self.held) as u64;
        self.held = wanted;
        Ok(())
    }
}
