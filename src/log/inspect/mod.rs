//! Looking through a data directory that no server holds.
//!
//! # Contract
//! - The directory's lock is held meanwhile. Nothing is changed but the lock's text, except by
//!   [`Inspection::restart_at`].
//! - The log is read by the decoders and the recovery of the server itself: what is said here is what a start meets.
//! - Memory is bounded whatever the size of the log: windows of two files, the runs of one segment, the segment set. Nothing is kept for each record.

mod adopt;
mod survivors;
mod walk;

use std::path::PathBuf;
use std::sync::Arc;

pub use super::checkpoint::Point;
pub use survivors::Survivors;
pub use walk::{Flow, Item, SegmentDamage, SegmentFault, StoredMessage};

use super::checkpoint::{self, CheckpointFault, Image, Mark, Parts};
use super::counters::LogCounters;
use super::directory::{self, DirectoryError, Examined};
use super::ending::{self, Judged};
use super::error::{FrameFault, LogError, ReplayError};
use super::index::{self, Index, IndexState};
use super::recovery::{self, Recovery};
use super::segment::Salts;
use super::set::SegmentSet;
use super::{Placed, Reader, Replayed, StateMachine, packed, segment};
use crate::disk::Disk;
use crate::ids::{SegmentNumber, Uid};

/// A data directory that this process holds in order to look at it.
#[derive(Debug)]
pub struct Inspection {
    disk: Arc<dyn Disk>,
    cluster: Uid,
    /// Of no use, and no harm, if the identity is lost: then only headers say which salt a segment has.
    salts: Salts,
    examined: Examined,
}

/// Where reading the log begins.
#[derive(Clone, Debug)]
pub enum Start {
    Checkpoint(Mark),
    /// The log's first record.
    Beginning,
    /// The lowest segment that can be read.
    Survivors(Survivors),
}

/// A log that was read to its end.
pub struct Scan<'a> {
    recovery: Recovery<'a>,
    judged: Judged,
}

/// A part of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub segment: SegmentNumber,
    pub from: u64,
    pub to: u64,
    pub what: FrameFault,
}

/// The checkpoints of a data directory.
#[derive(Clone, Debug)]
pub struct CheckpointsChecked {
    /// The states that can be restored, newest first.
    pub points: Vec<Point>,
    /// The paths of files that cannot be used.
    pub damaged: Vec<(String, CheckpointFault)>,
}

/// A file in a data directory, by its path there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFile {
    pub path: String,
    pub bytes: u64,
}

/// What the index file of a segment is worth.
#[derive(Debug)]
pub struct IndexChecked {
    pub path: String,
    pub state: IndexState,
    /// Runs that only the index file leads to: they lie where the segment is damaged.
    pub only_here: Vec<Placed>,
}

impl Inspection {
    /// Takes a data directory.
    ///
    /// # Errors
    /// It is none, it is in use, or it is so damaged that not even its identity can be told.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self, LogError> {
        let examined = directory::examine(&*disk)?;
        let cluster = match &examined.identity {
            Ok(identity) => identity.cluster,
            Err(fault) => survivors::cluster(&*disk)?.ok_or_else(|| fault.clone())?,
        };
        let key = examined.identity.as_ref().map_or([0; 32], |identity| identity.mac_key);
        Ok(Self { disk, cluster, salts: Salts::new(&key), examined })
    }

    /// What is wrong with the identity file, if anything.
    pub fn identity_fault(&self) -> Option<&DirectoryError> {
        self.examined.identity.as_ref().err()
    }

    /// Reads all checkpoints and verifies every part of them.
    pub fn checkpoints(&self) -> Result<CheckpointsChecked, LogError> {
        let found = checkpoint::find(&*self.disk, self.cluster)?;
        let damaged = found.damaged.iter().map(|(name, fault)| (name.path(), *fault));
        Ok(CheckpointsChecked {
            points: checkpoint::points(&found.files).collect(),
            damaged: damaged.collect(),
        })
    }

    /// Opens the state of a checkpoint.
    pub fn image(&self, point: &Point) -> Result<(Mark, Image), LogError> {
        Ok(checkpoint::image(&*self.disk, self.cluster, point)?)
    }

    /// What a log without checkpoints still has.
    ///
    /// # Errors
    /// Nothing there can be read, or it needs a newer build.
    pub fn survivors(&self) -> Result<Survivors, LogError> {
        survivors::find(&*self.disk, self.cluster, &self.salts)
    }

    /// Reads the log to its end.
    ///
    /// # Errors
    /// What would keep a server from starting there.
    pub fn scan(&self, start: Start, machine: &mut dyn StateMachine) -> Result<Scan<'_>, LogError> {
        let disk = &*self.disk;
        let (mark, adopted) = match start {
            Start::Checkpoint(mark) => (Some(mark), None),
            Start::Beginning => (None, None),
            Start::Survivors(found) => (Some(found.mark), Some(found.adopted)),
        };
        let given = mark.as_ref().map_or_else(SegmentSet::default, |mark| mark.set.clone());
        let index = Index::new(self.disk.clone(), Arc::<LogCounters>::default());
        let mut machine = Forgetful { machine, index: index.clone(), segment: SegmentNumber(0) };
        let (mut recovery, fault) =
            Recovery::run(disk, self.cluster, self.salts.clone(), mark, &mut machine, &index)?;
        let judged = ending::judge(&recovery, fault)?;
        if let Some(adopted) = adopted {
            // The files say which segments are of the log, not the records that happen to be left.
            recovery.set = adopted.set(given.members().chain(recovery.set.members()));
        }
        Ok(Scan { recovery, judged })
    }

    /// Walks through one segment of the log that `scan` has read, verifying everything in it.
    ///
    /// # Errors
    /// The file cannot be read, or a newer build is needed for it.
    pub fn walk(
        &self,
        scan: &Scan<'_>,
        segment: SegmentNumber,
        each: &mut dyn FnMut(Item<'_>) -> Flow,
    ) -> Result<Flow, LogError> {
        let opened = recovery::open_segment(&*self.disk, segment, self.cluster)?;
        let current = &scan.recovery.current;
        let end = if segment == current.segment { current.position } else { opened.current.bytes };
        let mut follower = None;
        let mut begun = scan.begun();
        if let Some(behind) = begun.find(|other| *other > segment)
            && self.segment_bytes(behind)?.is_some()
        {
            follower = recovery::open_segment(&*self.disk, behind, self.cluster)?.header;
        }
        walk::walk(opened, end, follower, each)
    }

    /// Compares the index file of a segment with what the segment says.
    pub fn index(&self, segment: SegmentNumber) -> Result<IndexChecked, LogError> {
        let (state, only_here) = index::check(&*self.disk, segment)?;
        Ok(IndexChecked { path: segment::index_path(segment), state, only_here })
    }

    /// The runs of a packed segment, sorted by queue and offset, and the parts of it that cannot be read.
    ///
    /// # Errors
    /// The file cannot be read, or its header is damaged.
    pub fn packed(&self, segment: SegmentNumber) -> Result<(Vec<Placed>, Vec<Part>), LogError> {
        index::packed_runs(&*self.disk, segment)
    }

    /// Reads a run where an index file says that it is, as a server would.
    pub fn run(&self, run: &Placed, each: &mut dyn FnMut(Item<'_>) -> Flow) -> Flow {
        walk::read(&Reader::new(self.disk.clone()), run, each)
    }

    /// What is in one of the data directory's own directories, by name.
    pub fn files(&self, dir: &str) -> Result<Vec<FoundFile>, LogError> {
        let mut files = Vec::new();
        for entry in directory::list_if_there(&*self.disk, dir)? {
            let path = crate::disk::join(dir, &entry.name);
            let bytes = if entry.is_dir { 0 } else { self.disk.open(&path)?.length()? };
            files.push(FoundFile { path, bytes });
        }
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// Length of a segment's file; none if it is missing.
    pub fn segment_bytes(&self, segment: SegmentNumber) -> Result<Option<u64>, LogError> {
        match self.disk.open(&segment::path(segment)) {
            Err(error) if error.is_not_found() => Ok(None),
            opened => Ok(Some(opened?.length()?)),
        }
    }

    /// The path of a segment's file in the data directory.
    pub fn path(segment: SegmentNumber) -> String {
        segment::path(segment)
    }

    /// The segment whose file has this path in the data directory.
    pub fn segment_at(path: &str) -> Option<SegmentNumber> {
        path.split_once('/').and_then(|(_, name)| segment::parse_name(name))
    }

    /// Whether a packed segment was not finished: a start removes it, as all of it is in segments of the log.
    pub fn is_unfinished(&self, scan: &Scan<'_>, segment: SegmentNumber) -> Result<bool, LogError> {
        Ok(packed::is_packed(segment)
            && packed::unfinished(&*self.disk, self.cluster, &scan.recovery.set)?.contains(&segment))
    }

    /// Whether nothing was ever written into a segment's file.
    pub fn is_blank(&self, segment: SegmentNumber) -> Result<bool, LogError> {
        ending::is_blank_file(&*self.disk, segment, &self.salts)
    }

    /// Sets all checkpoints aside and writes one of the end that `scan` has come to. Where the new one is, and the old ones now.
    ///
    /// # Errors
    /// A failed write or sync. Repeating it is safe: nothing is removed.
    pub fn restart_at(
        &self,
        scan: Scan<'_>,
        incarnation: u32,
        head: &[u8],
        parts: &Parts,
    ) -> Result<(PathBuf, Vec<PathBuf>), LogError> {
        let disk = &*self.disk;
        let Scan { recovery, judged } = scan;
        // A checkpoint holds only what is durable, whatever the page cache says.
        ending::rewrite_last_frame(&recovery)?;
        let mark = Mark {
            lsn: recovery.chain.lsn,
            start: recovery.start,
            incarnation,
            highest: judged.highest,
            set: recovery.set,
        };
        ["quarantine", "checkpoint"].into_iter().try_for_each(|dir| disk.create_dir(dir))?;
        let mut aside = Vec::new();
        for name in checkpoint::list(disk)? {
            aside.push(checkpoint::set_aside(disk, name)?);
        }
        let base = checkpoint::write_base(disk, self.cluster, &mark, head, parts)?;
        Ok((disk.full_path(&base.name.path()), aside))
    }
}

impl Scan<'_> {
    /// Segments of the log that were begun, in order.
    pub fn segments(&self) -> Vec<SegmentNumber> {
        self.begun().collect()
    }

    fn begun(&self) -> impl Iterator<Item = SegmentNumber> + '_ {
        let last = self.recovery.current.segment;
        let members = self.recovery.set.members().map(|member| member.segment);
        members.filter(move |segment| *segment <= last)
    }

    /// Every segment of the log, packed ones too, and the length that its file must have.
    pub fn listed(&self) -> Vec<(SegmentNumber, u64)> {
        let packed = self.recovery.set.packed().map(|packed| (packed.segment, packed.bytes));
        self.recovery.set.members().map(|member| (member.segment, member.bytes)).chain(packed).collect()
    }

    /// The packed segments of the log.
    pub fn packed(&self) -> Vec<SegmentNumber> {
        self.recovery.set.packed().map(|packed| packed.segment).collect()
    }

    /// Whether the log may lead to this segment's file.
    pub fn knows(&self, segment: SegmentNumber) -> bool {
        self.recovery.set.contains(segment) || self.recovery.set.was_dropped(segment)
    }

    /// What was passed over on the way to the end.
    pub fn holes(&self) -> impl Iterator<Item = Part> + '_ {
        self.recovery.holes.iter().map(|hole| Part {
            segment: hole.segment,
            from: hole.from,
            to: hole.to,
            what: hole.what,
        })
    }

    /// What is at the end and no whole frame.
    pub fn remains(&self) -> impl Iterator<Item = Part> + '_ {
        self.judged.remains.iter().map(|remains| Part {
            segment: remains.segment,
            from: remains.from,
            to: remains.to,
            what: remains.what,
        })
    }

    /// Incarnation of the last start, with those counted that may be lost.
    pub fn incarnation(&self) -> u32 {
        let lost = u32::try_from(self.recovery.starts_lost).unwrap_or(u32::MAX);
        self.recovery.incarnation.saturating_add(lost)
    }

    /// The log's clock at its end, microseconds.
    pub fn log_time_us(&self) -> u64 {
        self.recovery.chain.log_time_us
    }

    /// Where the log ends in its newest segment: the next frame would begin there.
    pub fn end(&self) -> u64 {
        self.recovery.current.position
    }

    /// The segment that is written, whose index is in memory while a server runs.
    pub fn newest(&self) -> SegmentNumber {
        self.recovery.current.segment
    }
}

/// Lets go of the index of what was read: it would grow with the log, and nobody asks it.
struct Forgetful<'a> {
    machine: &'a mut dyn StateMachine,
    index: Index,
    segment: SegmentNumber,
}

impl StateMachine for Forgetful<'_> {
    fn restore(&mut self, image: Image) -> Result<(), LogError> {
        self.machine.restore(image)
    }

    fn apply(&mut self, record: Replayed<'_>) -> Result<(), ReplayError> {
        if record.location.segment != self.segment {
            self.segment = record.location.segment;
            let sealed = self.index.sealed_before(SegmentNumber(u64::MAX));
            sealed.iter().for_each(|sealed| self.index.drop_segment(sealed.segment));
        }
        self.machine.apply(record)
    }
}
