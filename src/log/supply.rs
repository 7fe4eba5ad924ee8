//! Where the files of new segments come from: those of segments that have left, else made anew.
//!
//! The space of a new file is reserved, and it is filled with zeroes from the front, piece by piece: there a commit
//! changes nothing of the file system, which makes a small one half as long. Filling writes everything twice, and commits
//! wait for the disk meanwhile; so the log says after each piece whether the file is good as it is ([`Step`]). The
//! file of a segment that has left has its blocks already, and maybe its pages; only the block of the header is zeroed.
//! What stands behind stays until frames are written over it, and [`super::salvage`] says how it is told from them.
//!
//! # From one life to the next
//! ```text
//!   number.seg ─▶ number.free ─▶ names synced ─▶ header zeroed, synced ─▶ next.seg ─▶ names synced ─▶ listed
//!        (no reader has it open)
//! ```
//! A crash at any arrow loses nothing. Before the first names are durable there is a dropped segment that no start
//! reads, and that leaves once more. A `.free` file is never of the log; a start takes it up again. `next.seg` that is
//! not listed is removed by a start: its header is zero, and it has no frame with its salt. Once listed, it is a
//! segment that was not begun.
//!
//! # How many are kept
//! As many as were used since files came last, so that a flow that begins n segments between two checkpoints finds n;
//! at least what the log keeps ready and one more, at most [`KEPT_MAX`]. The others are unlinked, so that space is free
//! when a backlog is gone. On a full disk all are used before a new one is tried, but one for each reserve that was drawn
//! on ([`super::reserve`]).

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use super::counters::LogCounters;
use super::error::LogError;
use super::reserve::Reserve;
use super::segment::{self, Blank, SEGMENT_HEADER_BYTES};
use super::tail::AHEAD;
use crate::disk::{Disk, DiskError, DiskFile, Operation};
use crate::ids::SegmentNumber;
use crate::planted;

const KEPT_MIN: usize = AHEAD + 1;
/// At 64 MiB a file: half a GiB.
const KEPT_MAX: usize = 8;
/// Of a new file: a commit waits for no more than this.
pub const PIECE_BYTES: u64 = 256 << 10;

/// How far a new file is, after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filling {
    /// Bytes that are filled with zeroes and synced.
    pub filled: u64,
    /// What the log had written before the first piece.
    pub before: Written,
}

/// What the log has written since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub bytes: u64,
    pub commits: u64,
}

/// What is to be done with a file that is being filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One more piece.
    Fill,
    /// It is used as it is; where it is not filled, a commit makes the file system note what it has written. Where
    /// space cannot be reserved, it is filled nevertheless.
    Enough,
    /// Nobody needs it.
    GiveUp,
}

/// Says after each piece what is next, and may take its time.
pub type Pace<'a> = &'a dyn Fn(Filling) -> Step;

/// See the module's header.
#[derive(Debug)]
pub struct Supply {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    counters: Arc<LogCounters>,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// Segments whose files wait; the one that came last is likely to be in the page cache, and goes first.
    files: VecDeque<SegmentNumber>,
    /// Files used since some came last.
    used: usize,
    /// Reserves that were drawn on and are not whole again.
    claims: Vec<Reserve>,
}

/// About the free space with which a full disk is full no more: for the files that are kept ready, and a segment for each
/// reserve; that of the checkpoints is larger where they are.
pub fn free_bytes_wanted(segment_bytes: u64) -> u64 {
    (AHEAD as u64 + 2) * segment_bytes
}

impl Supply {
    /// A supply of files of `segment_bytes`, which has none yet.
    pub fn new(disk: Arc<dyn Disk>, segment_bytes: u64, counters: Arc<LogCounters>) -> Self {
        Self { disk, segment_bytes, counters, free: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What the log has written so far.
    pub fn written(&self) -> Written {
        Written { bytes: self.counters.bytes_written.get(), commits: self.counters.syncs.get() }
    }

    /// Takes up what an earlier run has left.
    pub fn take_up(&self) -> Result<(), LogError> {
        let entries = self.disk.list("log")?;
        self.give(entries.iter().filter_map(|entry| segment::parse_free_name(&entry.name)).collect())
    }

    /// Takes the files of these segments, which have their free names durably and nobody reads; unlinks what is too
    /// much.
    pub fn give(&self, segments: Vec<SegmentNumber>) -> Result<(), LogError> {
        let mut surplus = Vec::new();
        let mut free = self.lock();
        let most = std::mem::take(&mut free.used).clamp(KEPT_MIN, KEPT_MAX);
        free.files.extend(segments);
        while free.files.len() > most {
            surplus.extend(free.files.pop_front());
        }
        drop(free);
        self.unlink(surplus)
    }

    /// Unlinks all: their space is needed for something else.
    pub fn give_up(&self) -> Result<(), LogError> {
        let all = std::mem::take(&mut self.lock().files);
        self.unlink(all)
    }

    /// Gives a reserve's space to what it is for.
    pub fn draw_on(&self, reserve: Reserve) -> Result<(), LogError> {
        self.claim(reserve);
        reserve.release(&*self.disk)
    }

    /// From now on the log leaves space for this reserve, until it is whole.
    pub fn claim(&self, reserve: Reserve) {
        let mut free = self.lock();
        if !free.claims.contains(&reserve) {
            free.claims.push(reserve);
        }
    }

    /// Makes a reserve whole, if it claims space with that of a file that is kept.
    pub fn restore(&self, reserve: Reserve, bytes: u64) -> Result<(), LogError> {
        let claims = self.lock().claims.contains(&reserve);
        let keep = || reserve.keep(&*self.disk, bytes);
        if keep()? || (claims && self.give_up_one()? && keep()?) {
            self.lock().claims.retain(|other| *other != reserve);
        }
        Ok(())
    }

    fn give_up_one(&self) -> Result<bool, LogError> {
        let one = self.lock().files.pop_front();
        self.unlink(one)?;
        Ok(one.is_some())
    }

    fn unlink(&self, segments: impl IntoIterator<Item = SegmentNumber>) -> Result<(), LogError> {
        Ok(segments.into_iter().try_for_each(|segment| self.disk.remove(&segment::free_path(segment)))?)
    }

    /// A file for `segment`; `None` if `pace` gave it up. Leaves nothing behind on failure, as far as the disk
    /// lets it.
    pub fn prepare(&self, segment: SegmentNumber, pace: Pace<'_>) -> Result<Option<Blank>, LogError> {
        loop {
            let mut free = self.lock();
            let left = if planted::bug("reserve-eaten-by-the-log") { 0 } else { free.claims.len() };
            let old = if free.files.len() > left { free.files.pop_back() } else { None };
            let kept = free.files.len();
            drop(free);
            let Some(old) = old else {
                self.check_space(segment, left.saturating_sub(kept))?;
                break;
            };
            if let Some(blank) = self.recycle(old, segment)? {
                self.lock().used += 1;
                self.counters.segments_recycled.add(1);
                return Ok(Some(blank));
            }
        }
        let made = self.make(segment, pace)?;
        if made.is_some() {
            self.lock().used += 1;
            self.counters.segments_created.add(1);
        }
        Ok(made)
    }

    /// Whether the disk seems to be too full for so many files.
    pub fn lacks_space(&self, files: usize) -> Result<bool, LogError> {
        let free = self.lock();
        let new = (files + free.claims.len()).saturating_sub(free.files.len());
        drop(free);
        Ok(new > 0 && self.has_less_than(new)?)
    }

    fn has_less_than(&self, new_files: usize) -> Result<bool, LogError> {
        Ok(self.disk.free_bytes()? < self.segment_bytes * new_files as u64)
    }

    /// The disk counts as full unless there is space for so many files more besides the one that is made.
    fn check_space(&self, segment: SegmentNumber, more: usize) -> Result<(), LogError> {
        if more == 0 || !self.has_less_than(1 + more)? {
            return Ok(());
        }
        let path = self.disk.full_path(&segment::path(segment));
        Err(DiskError::io(Operation::Allocate, path, ErrorKind::StorageFull.into()).into())
    }

    /// Makes the file of a segment that has left that of a new one, unless it is of another length: then it goes.
    fn recycle(&self, old: SegmentNumber, segment: SegmentNumber) -> Result<Option<Blank>, LogError> {
        let from = segment::free_path(old);
        let (file, bytes) = (self.disk.open(&from)?, self.segment_bytes);
        if file.length()? != bytes {
            self.disk.remove(&from)?;
            return Ok(None);
        }
        // A copy of a data directory can have holes where there were zeroes; a commit must not run out of space there.
        if let Err(error) = file.allocate(bytes) {
            self.disk.remove(&from)?;
            return Err(error.into());
        }
        file.write_at(&mut [IoSlice::new(&[0; SEGMENT_HEADER_BYTES])], 0)?;
        file.sync_data()?;
        self.name(&from, segment)?;
        Ok(Some(Blank { segment, file, bytes }))
    }

    fn make(&self, segment: SegmentNumber, pace: Pace<'_>) -> Result<Option<Blank>, LogError> {
        let (temp, bytes) = (segment::temp_path(segment), self.segment_bytes);
        let file = self.disk.create(&temp)?;
        match self.fill(&*file, pace) {
            Ok(true) => {}
            // A failed allocation can leave a file that has grown; the space must not stay taken.
            other => {
                let removed = self.disk.remove(&temp);
                other?;
                removed?;
                return Ok(None);
            }
        }
        self.name(&temp, segment)?;
        Ok(Some(Blank { segment, file, bytes }))
    }

    fn name(&self, from: &str, segment: SegmentNumber) -> Result<(), DiskError> {
        self.disk.rename(from, &segment::path(segment))?;
        if planted::bug("segment-name-not-synced") {
            return Ok(());
        }
        self.disk.sync_dir("log")
    }

    fn fill(&self, file: &dyn DiskFile, pace: Pace<'_>) -> Result<bool, DiskError> {
        let bytes = self.segment_bytes;
        let reserved = file.allocate(bytes)?;
        let zeroes = vec![0; PIECE_BYTES.min(bytes) as usize];
        let mut filling = Filling { filled: 0, before: self.written() };
        loop {
            let length = (zeroes.len() as u64).min(bytes - filling.filled);
            file.write_at(&mut [IoSlice::new(&zeroes[..length as usize])], filling.filled)?;
            // Piece by piece, so that commits never wait behind a whole segment of dirty pages.
            file.sync_data()?;
            self.counters.zero_filled_bytes.add(length);
            filling.filled += length;
            if filling.filled == bytes {
                return Ok(true);
            }
            match pace(filling) {
                Step::GiveUp => return Ok(false),
                Step::Enough if reserved => return Ok(true),
                Step::Enough | Step::Fill => {}
            }
        }
    }
}
