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
//! therefore between those in the segments before and after. The open segment is asked first. Then the sealed ones
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
mod memory;
mod plan;
mod rebuild;
mod sealed;
mod summary;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

pub use check::{IndexState, check};
pub use file::is_temp_name;
pub use plan::{Piece, Plan};

use super::counters::LogCounters;
use super::error::LogError;
use super::{Location, Placed};
use crate::disk::Disk;
use crate::ids::{Offset, QueueId, SegmentNumber};
use file::FileRuns;
use held::Held;
use memory::{MemoryRuns, Probe, Run};
use sealed::Sealed;

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
    /// Oldest first; readers look at one version of the list.
    sealed: Arc<Vec<Arc<Sealed>>>,
}

#[derive(Debug)]
struct Newest {
    segment: SegmentNumber,
    runs: MemoryRuns,
}

/// The runs of a sealed segment.
#[derive(Debug)]
enum Runs {
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

    /// The first run, by queue and offset, that `wanted` holds for.
    fn find(&self, mut wanted: impl FnMut(QueueId, Run) -> bool) -> Option<(QueueId, Run)> {
        match self {
            Runs::Memory(runs) => runs.sorted().find(|(queue, run)| wanted(*queue, *run)),
            Runs::File(runs) => runs.sorted().find(|(queue, run)| wanted(*queue, *run)),
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

    /// A segment that was sealed before this start; its number is higher than all before. Its index is read from its
    /// file when it is first needed.
    pub(super) fn add_sealed(&self, segment: SegmentNumber) {
        let mut segments = locked(&self.inner.segments);
        segments.assert_later(segment);
        assert!(segments.newest.is_none(), "sealed segments come before the newest");
        segments.seal(Sealed::in_file(segment));
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
            if self.segment(sealed.segment).is_none() {
                self.inner.remove_file(sealed.segment)?;
            }
        }
        Ok(())
    }

    /// Lets [`Self::write_sealed`] end after the file under way.
    pub(super) fn stop(&self) {
        self.inner.stopped.store(true, Ordering::Relaxed);
    }

    /// Forgets a sealed segment that is no longer of the log. Its files are the caller's to remove.
    pub(super) fn drop_segment(&self, segment: SegmentNumber) {
        let mut segments = locked(&self.inner.segments);
        Arc::make_mut(&mut segments.sealed).retain(|sealed| sealed.segment != segment);
        drop(segments);
        locked(&self.inner.held).remove(segment);
    }

    /// Sealed segments, oldest first.
    pub(super) fn sealed(&self) -> Vec<SegmentNumber> {
        self.segments().iter().map(|sealed| sealed.segment).collect()
    }

    /// Some run of a sealed segment for which `live(queue, offset behind the run)` holds, and that offset; none also
    /// for a segment that is not in the index. Tries what it answered last before it opens anything.
    ///
    /// # Errors
    /// The segment's runs can neither be read from its index file nor be rebuilt.
    pub(super) fn find_live(
        &self,
        segment: SegmentNumber,
        live: &dyn Fn(QueueId, Offset) -> bool,
    ) -> Result<Option<(QueueId, Offset)>, LogError> {
        let Some(sealed) = self.segment(segment) else { return Ok(None) };
        if let Some((queue, end)) = sealed.witness()
            && live(queue, end)
        {
            return Ok(Some((queue, end)));
        }
        let runs = self.inner.open(&sealed, false)?;
        let found = runs.find(|queue, run| live(queue, run.end()));
        let witness = found.map(|(queue, run)| (queue, run.end()));
        sealed.set_witness(witness);
        Ok(witness)
    }

    fn segments(&self) -> Arc<Vec<Arc<Sealed>>> {
        locked(&self.inner.segments).sealed.clone()
    }

    fn segment(&self, segment: SegmentNumber) -> Option<Arc<Sealed>> {
        let segments = self.segments();
        let at = segments.binary_search_by_key(&segment, |sealed| sealed.segment).ok()?;
        Some(segments[at].clone())
    }
}

impl Segments {
    fn assert_later(&self, segment: SegmentNumber) {
        let newest = self.newest.as_ref().map(|newest| newest.segment);
        let last = newest.or(self.sealed.last().map(|sealed| sealed.segment));
        assert!(last.is_none_or(|last| last < segment), "segments come in order of their numbers");
    }

    fn seal(&mut self, sealed: Sealed) {
        Arc::make_mut(&mut self.sealed).push(Arc::new(sealed));
    }
}
