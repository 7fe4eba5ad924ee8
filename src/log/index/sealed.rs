//! One sealed segment of the index: how its runs are come by, and how they go to their file.

use std::sync::{Arc, Mutex};

use super::file::{self, FileRuns};
use super::memory::MemoryRuns;
use super::rebuild;
use super::summary::Summary;
use super::{Inner, Look, Runs, locked};
use crate::ids::{Offset, QueueId, SegmentNumber};
use crate::log::error::{FrameFault, LogError};

/// What is kept of a sealed segment.
#[derive(Debug)]
pub struct Sealed {
    pub segment: SegmentNumber,
    /// The segment of the log in whose place it stands: itself, unless it is packed.
    pub place: SegmentNumber,
    /// It comes of a merge.
    pub merged: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// All its runs, until they are in its file.
    kept: Option<Arc<Runs>>,
    /// Known once its file was written or read.
    summary: Option<Summary>,
    file: File,
    /// A run that was live when this was last asked: queue, and offset behind the run.
    witness: Option<(QueueId, Offset)>,
    /// What reclaim saw in it last.
    look: Option<Look>,
    /// Some of its records cannot be read: it is not rewritten, so that the bytes stay.
    damaged: bool,
}

/// What is known of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Unknown,
    /// Missing or damaged, or not written yet.
    Wanted,
    Written,
}

impl Sealed {
    /// A segment that was just sealed.
    pub fn in_memory(segment: SegmentNumber, runs: MemoryRuns) -> Self {
        Self::new(segment, segment, false, Some(Arc::new(Runs::Memory(runs))), File::Wanted)
    }

    /// A segment whose runs are in its file, or else must be rebuilt.
    pub fn in_file(segment: SegmentNumber, place: SegmentNumber, merged: bool) -> Self {
        Self::new(segment, place, merged, None, File::Unknown)
    }

    fn new(
        segment: SegmentNumber,
        place: SegmentNumber,
        merged: bool,
        kept: Option<Arc<Runs>>,
        file: File,
    ) -> Self {
        let state = State { kept, summary: None, file, witness: None, look: None, damaged: false };
        Self { segment, place, merged, state: Mutex::new(state) }
    }

    pub fn look(&self) -> Option<Look> {
        locked(&self.state).look
    }

    pub fn set_look(&self, look: Look) {
        locked(&self.state).look = Some(look);
    }

    pub fn is_damaged(&self) -> bool {
        locked(&self.state).damaged
    }

    pub fn set_damaged(&self) {
        locked(&self.state).damaged = true;
    }

    pub fn witness(&self) -> Option<(QueueId, Offset)> {
        locked(&self.state).witness
    }

    pub fn set_witness(&self, witness: Option<(QueueId, Offset)>) {
        locked(&self.state).witness = witness;
    }

    fn kept(&self) -> Option<Arc<Runs>> {
        locked(&self.state).kept.clone()
    }

    /// Whether the queue may have runs here, as far as is known without reading.
    fn may_hold(&self, queue: QueueId) -> Option<bool> {
        locked(&self.state).summary.as_ref().map(|summary| summary.may_hold(queue))
    }

    fn set(&self, summary: Summary, file: File) {
        let mut state = locked(&self.state);
        state.summary = Some(summary);
        state.file = file;
    }
}

impl Inner {
    /// The segment's runs if the queue may have some among them.
    pub(super) fn open_for(&self, sealed: &Sealed, queue: QueueId) -> Result<Option<Arc<Runs>>, LogError> {
        if let Some(runs) = sealed.kept() {
            return Ok(Some(runs));
        }
        if sealed.may_hold(queue).is_none() {
            self.learn(sealed)?;
        }
        match sealed.may_hold(queue) {
            Some(false) => Ok(None),
            _ => self.open(sealed, true).map(Some),
        }
    }

    /// Reads the header of the segment's file; leaves one that is not good to [`Self::open`].
    fn learn(&self, sealed: &Sealed) -> Result<(), LogError> {
        let salt = rebuild::salt(&*self.disk, sealed.segment)?;
        if let Ok(summary) = file::read_summary(&*self.disk, sealed.segment, salt) {
            sealed.set(summary, File::Written);
        }
        Ok(())
    }

    /// The segment's runs: as they are kept or held, from its file, or rebuilt. They are held from then on if `hold`
    /// says so, or if they were rebuilt.
    pub(super) fn open(&self, sealed: &Sealed, hold: bool) -> Result<Arc<Runs>, LogError> {
        let at_hand = || sealed.kept().or_else(|| locked(&self.held).get(sealed.segment));
        if let Some(runs) = at_hand() {
            return Ok(runs);
        }
        let _opening = locked(&self.opening);
        if let Some(runs) = at_hand() {
            return Ok(runs);
        }
        let salt = rebuild::salt(&*self.disk, sealed.segment)?;
        match FileRuns::open(&*self.disk, sealed.segment, salt) {
            Ok((runs, summary)) => {
                sealed.set(summary, File::Written);
                let runs = Arc::new(Runs::File(runs));
                if hold {
                    locked(&self.held).put(sealed.segment, sealed.place, runs.clone());
                }
                Ok(runs)
            }
            Err(fault) => {
                let segment = sealed.segment;
                tracing::warn!(%segment, %fault, "an index file cannot be used; it is made again from its segment");
                self.rebuild(sealed, salt)
            }
        }
    }

    fn rebuild(&self, sealed: &Sealed, salt: Option<u64>) -> Result<Arc<Runs>, LogError> {
        let segment = sealed.segment;
        let what = FrameFault::SegmentHeader;
        let salt = salt.ok_or(LogError::Corrupt { segment, position: 0, what })?;
        let rebuilt = rebuild::rebuild(&*self.disk, segment, salt)?;
        self.counters.index_rebuilds.add(1);
        for hole in &rebuilt.holes {
            let (from, to, what) = (hole.from, hole.to, hole.what);
            tracing::error!(%segment, from, to, %what, "data loss: a segment is damaged; its messages there are lost");
        }
        if !rebuilt.holes.is_empty() {
            sealed.set_damaged();
        }
        sealed.set(summary(segment, salt, &rebuilt.runs), File::Wanted);
        let runs = Arc::new(Runs::Memory(rebuilt.runs));
        locked(&self.held).put(segment, sealed.place, runs.clone());
        Ok(runs)
    }

    /// Writes the segment's file unless it has one, and lets go of the runs in memory.
    pub(super) fn write(&self, sealed: &Sealed) -> Result<(), LogError> {
        let segment = sealed.segment;
        let known = locked(&sealed.state).file;
        // One that cannot be looked at is as good as missing.
        let there = || self.disk.exists(&file::path(segment)).unwrap_or(false);
        if known == File::Written || (known == File::Unknown && there()) {
            return Ok(());
        }
        let (runs, salt) = match self.to_write(sealed) {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%segment, %error, "the index file of a segment cannot be made");
                return Ok(());
            }
        };
        // Another thread may have found the file to be good meanwhile.
        let Runs::Memory(in_memory) = &*runs else { return Ok(()) };
        let summary = summary(segment, salt, in_memory);
        file::write(&*self.disk, &summary, in_memory.sorted())?;
        sealed.set(summary, File::Written);
        locked(&sealed.state).kept = None;
        locked(&self.held).remove(segment);
        Ok(())
    }

    /// The runs for a file, and the salt that goes into it.
    fn to_write(&self, sealed: &Sealed) -> Result<(Arc<Runs>, u64), LogError> {
        let runs = self.open(sealed, false)?;
        let known = locked(&sealed.state).summary.map(|summary| summary.salt);
        let salt = match known {
            Some(salt) => Some(salt),
            None => rebuild::salt(&*self.disk, sealed.segment)?,
        };
        let (segment, what) = (sealed.segment, FrameFault::SegmentHeader);
        Ok((runs, salt.ok_or(LogError::Corrupt { segment, position: 0, what })?))
    }

    /// Removes the file of a segment that was dropped while it was written.
    pub(super) fn remove_file(&self, segment: SegmentNumber) -> Result<(), LogError> {
        let path = file::path(segment);
        if self.disk.exists(&path)? {
            self.disk.remove(&path)?;
        }
        Ok(())
    }
}

fn summary(segment: SegmentNumber, salt: u64, runs: &MemoryRuns) -> Summary {
    Summary::new(segment, salt, runs.count(), runs.queues())
}
