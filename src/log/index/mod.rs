//! Which runs hold which messages, and where they lie.
//!
//! # Contract
//! - A run is found from the moment it is inserted until its segment is dropped. Whether a segment is open, sealed in
//!   memory or sealed in a file, whether its file is there, missing or damaged: the answers are the same.
//! - In memory are the runs of the newest segment, those of sealed segments whose file is not written yet, a few
//!   hundred bytes for each other segment, and at most 32 MiB of opened files and rebuilt runs. Nothing is kept for
//!   each queue, or queue and segment, besides that.
//! - Index files are disposable ([`file`] has their layout): one that is missing or damaged is rebuilt from its
//!   segment, counted and logged, and written again with the next files.
//! - Looking up may read files; the broker's task must not.
//!
//! # How a message is found
//! Segments are in order of their records, and so are the offsets of a queue; a queue's runs in one segment are
//! therefore between those in the segments before and after. Packed segments replace neighbours, and stand in the
//! places of those, so that this holds for them too. The open segment is asked first. Then the sealed ones
//! are halved: the middle one is asked, or the next behind it that has runs of the queue. A filter of queue ids says
//! of most that have none that they need not be opened. A segment whose runs cannot be read at all is passed over:
//! it costs its own messages, and no others.
//!
//! # Files in memory
//! They are mapped, populated and verified when they are opened, and unmapped when they have not been used for
//! longest. They are never changed in place. The kernel may take populated pages back and read them again; that they
//! cannot be read just then would end the process.

mod check;
mod file;
mod held;
mod look;
mod memory;
mod plan;
mod rebuild;
mod sealed;
mod summary;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

pub use check::{IndexState, check, packed_runs};
pub use file::{is_temp_name, write_sorted};
pub use look::Look;
pub use memory::Run;
pub use plan::{Piece, Plan};
pub use sealed::Sealed;

use super::counters::LogCounters;
use super::error::LogError;
use super::system::PackedSegment;
use super::{Location, Placed};
use crate::disk::Disk;
use crate::ids::{Offset, QueueId, SegmentNumber};
use file::FileRuns;
use held::Held;
use memory::{MemoryRuns, Probe};

/// Runs at which a segment is sealed early, so that the open one's stay within memory.
pub const INDEX_RUNS_MAX: usize = 262_144;

/// The runs of a shard's log; clones share them. See the module's header.
#[derive(Clone, Debug)]
pub struct Index {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    counters: Arc<LogCounters>,
    segments: Mutex<Segments>,
    held: Mutex<Held>,
    /// Locked while a file is opened or its runs are rebuilt, so that both are done once.
    opening: Mutex<()>,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Segments {
    newest: Option<Newest>,
    /// In order of their places, oldest first; readers look at one version of the list.
    sealed: Arc<Vec<Arc<Sealed>>>,
}

#[derive(Debug)]
struct Newest {
    segment: SegmentNumber,
    runs: MemoryRuns,
}

/// The runs of a sealed segment.
#[derive(Debug)]
pub enum Runs {
    Memory(MemoryRuns),
    File(FileRuns),
}

impl Runs {
    fn probe(&self, queue: QueueId, offset: Offset) -> Probe {
        match self {
            Runs::Memory(runs) => runs.probe(queue, offset),
            Runs::File(runs) => runs.probe(queue, offset),
        }
    }

    /// All runs, sorted by queue and offset.
    pub fn sorted(&self) -> Box<dyn Iterator<Item = (QueueId, Run)> + '_> {
        match self {
            Runs::Memory(runs) => Box::new(runs.sorted()),
            Runs::File(runs) => Box::new(runs.sorted()),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Runs::Memory(runs) => runs.count() * size_of::<Run>(),
            Runs::File(runs) => runs.bytes(),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Index {
    /// An index without segments, of the log on `disk`.
    pub(super) fn new(disk: Arc<dyn Disk>, counters: Arc<LogCounters>) -> Self {
        let inner = Inner {
            disk,
            counters,
            segments: Mutex::default(),
            held: Mutex::default(),
            opening: Mutex::default(),
            stopped: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Waits until no segment is being read that was still to be found when this was called.
    pub(super) fn wait_for_opening(&self) {
        drop(locked(&self.inner.opening));
    }

    /// A segment is begun; its number is higher than all before. The one before it, if any, is sealed.
    pub(super) fn begin(&self, segment: SegmentNumber) {
        let mut segments = locked(&self.inner.segments);
        segments.assert_later(segment);
        if let Some(before) = segments.newest.take() {
            segments.seal(Sealed::in_memory(before.segment, before.runs));
        }
        segments.newest = Some(Newest { segment, runs: MemoryRuns::default() });
    }

    /// Adds a run to the newest segment. It is of that segment and comes behind all others of its queue, or that is
    /// a bug.
    pub(super) fn insert(&self, placed: &Placed) {
        assert!(self.offer(placed), "runs of a queue are in order of offset");
    }

    /// Adds a run to the newest segment if it comes behind all others of its queue there.
    pub(super) fn offer(&self, placed: &Placed) -> bool {
        let mut segments = locked(&self.inner.segments);
        let newest = segments.newest.as_mut().expect("runs are inserted into a segment that was begun");
        assert_eq!(newest.segment, placed.location.segment, "runs are inserted into the newest segment");
        newest.runs.push(placed.queue, Run::of(placed))
    }

    /// A segment that was sealed before this start; its place is behind all before. Its index is read from its file
    /// when it is first needed.
    pub(super) fn add_sealed(&self, segment: SegmentNumber, place: SegmentNumber, merged: bool) {
        let mut segments = locked(&self.inner.segments);
        segments.assert_later(place);
        assert!(segments.newest.is_none(), "sealed segments come before the newest");
        segments.seal(Sealed::in_file(segment, place, merged));
    }

    /// Packed segments take the places of others; their index files are written.
    pub(super) fn replace(&self, old: &[SegmentNumber], new: &[PackedSegment]) {
        let mut segments = locked(&self.inner.segments);
        let sealed = Arc::make_mut(&mut segments.sealed);
        sealed.retain(|sealed| !old.contains(&sealed.segment));
        for packed in new {
            let new = Arc::new(Sealed::in_file(packed.segment, packed.place, packed.merged));
            match sealed.binary_search_by_key(&packed.place, |sealed| sealed.place) {
                Err(at) => sealed.insert(at, new),
                // Only where records were lost to damage: then what is there was replaced before.
                Ok(at) => sealed[at] = new,
            }
        }
        drop(segments);
        let mut held = locked(&self.inner.held);
        old.iter().for_each(|segment| held.remove(*segment));
    }

    /// Runs of the newest segment. The writer seals at [`INDEX_RUNS_MAX`].
    pub(super) fn open_runs(&self) -> usize {
        locked(&self.inner.segments).newest.as_ref().map_or(0, |newest| newest.runs.count())
    }

    /// Writes the index files of sealed segments that have none yet, and frees their runs. For one thread, in the
    /// background.
    ///
    /// # Errors
    /// A write that failed; the runs stay in memory. What cannot be rebuilt is logged and passed over.
    pub(super) fn write_sealed(&self) -> Result<(), LogError> {
        for sealed in self.segments().iter() {
            if self.inner.stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.inner.write(sealed)?;
            if !self.is_listed(sealed) {
                self.inner.remove_file(sealed.segment)?;
            }
        }
        Ok(())
    }

    /// Lets [`Self::write_sealed`] end after the file under way.
    pub(super) fn stop(&self) {
        self.inner.stopped.store(true, Ordering::Relaxed);
    }

    /// Forgets a sealed segment that is no longer needed. Its files are the caller's to remove.
    pub(super) fn drop_segment(&self, segment: SegmentNumber) {
        let mut segments = locked(&self.inner.segments);
        Arc::make_mut(&mut segments.sealed).retain(|sealed| sealed.segment != segment);
        drop(segments);
        locked(&self.inner.held).remove(segment);
    }

    /// Sealed segments in the places before `end`, oldest first.
    pub(super) fn sealed_before(&self, end: SegmentNumber) -> Vec<Arc<Sealed>> {
        self.segments().iter().take_while(|sealed| sealed.place < end).cloned().collect()
    }

    /// Some run of a sealed segment for which `live(queue, offset behind the run)` holds, and that offset. Tries what
    /// it answered last before it opens anything.
    ///
    /// # Errors
    /// The segment's runs can neither be read from its index file nor be rebuilt.
    pub(super) fn find_live(
        &self,
        sealed: &Sealed,
        live: &dyn Fn(QueueId, Offset) -> bool,
    ) -> Result<Option<(QueueId, Offset)>, LogError> {
        if let Some((queue, end)) = sealed.witness()
            && live(queue, end)
        {
            return Ok(Some((queue, end)));
        }
        let runs = self.inner.open(sealed, false)?;
        let found = runs.sorted().find(|(queue, run)| live(*queue, run.end()));
        let witness = found.map(|(queue, run)| (queue, run.end()));
        sealed.set_witness(witness);
        Ok(witness)
    }

    /// The runs of a sealed segment, not held for others.
    ///
    /// # Errors
    /// They can neither be read from its index file nor be rebuilt.
    pub(super) fn runs_of(&self, sealed: &Sealed) -> Result<Arc<Runs>, LogError> {
        self.inner.open(sealed, false)
    }

    fn segments(&self) -> Arc<Vec<Arc<Sealed>>> {
        locked(&self.inner.segments).sealed.clone()
    }

    fn is_listed(&self, sealed: &Sealed) -> bool {
        let segments = self.segments();
        let at = segments.binary_search_by_key(&sealed.place, |other| other.place);
        at.is_ok_and(|at| segments[at].segment == sealed.segment)
    }
}

impl Segments {
    fn assert_later(&self, segment: SegmentNumber) {
        let newest = self.newest.as_ref().map(|newest| newest.segment);
        let last = newest.or(self.sealed.last().map(|sealed| sealed.place));
        assert!(last.is_none_or(|last| last < segment), "segments come in order of their places");
    }

    fn seal(&mut self, sealed: Sealed) {
        Arc::make_mut(&mut self.sealed).push(Arc::new(sealed));
    }
}
