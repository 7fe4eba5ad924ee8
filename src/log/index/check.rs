//! Compares an index file with its segment, for those who look through a data directory.

use super::file::{FileFault, FileRuns};
use super::memory::Run;
use super::rebuild::{self, Rebuilt};
use super::summary::Summary;
use crate::disk::Disk;
use crate::ids::{QueueId, SegmentNumber};
use crate::log::error::{FrameFault, LogError};
use crate::log::inspect::Part;
use crate::log::{Location, Placed};

/// What an index file is worth.
#[derive(Clone, Debug)]
pub enum IndexState {
    /// It says what its segment says.
    Good,
    /// It is not there. It may not have been written yet, and is made again.
    Missing,
    Damaged(FileFault),
    /// It is whole, and its segment says something else.
    Differs,
}

/// Runs of which only the file knows: they lie where the segment is damaged.
type OnlyHere = Vec<Placed>;

/// Compares the index file of a segment with what the segment says.
pub fn check(disk: &dyn Disk, segment: SegmentNumber) -> Result<(IndexState, OnlyHere), LogError> {
    let salt = rebuild::salt(disk, segment)?;
    let (file, summary) = match FileRuns::open(disk, segment, salt) {
        Ok(opened) => opened,
        Err(FileFault::Disk(error)) if error.is_not_found() => return Ok((IndexState::Missing, Vec::new())),
        Err(fault) => return Ok((IndexState::Damaged(fault), Vec::new())),
    };
    let Some(salt) = salt else {
        // All that is left of a segment without its header.
        let all = file.sorted().map(|(queue, run)| placed(segment, queue, run)).collect();
        return Ok((IndexState::Good, all));
    };
    let rebuilt = rebuild::rebuild(disk, segment, salt)?;
    let (same, only_here) = compare(segment, &file, &rebuilt);
    // The file may be older than the damage; then its header is of all its runs.
    let runs = &rebuilt.runs;
    let expected = Summary::new(segment, salt, runs.count(), runs.queues());
    let same = same && (!only_here.is_empty() || summary == expected);
    Ok((if same { IndexState::Good } else { IndexState::Differs }, only_here))
}

/// The runs that a packed segment holds, and what of it cannot be read.
pub fn packed_runs(disk: &dyn Disk, segment: SegmentNumber) -> Result<(Vec<Placed>, Vec<Part>), LogError> {
    let what = FrameFault::SegmentHeader;
    let salt = rebuild::salt(disk, segment)?.ok_or(LogError::Corrupt { segment, position: 0, what })?;
    let rebuilt = rebuild::rebuild(disk, segment, salt)?;
    let holes =
        rebuilt.holes.iter().map(|hole| Part { segment, from: hole.from, to: hole.to, what: hole.what });
    let runs = rebuilt.runs.sorted().map(|(queue, run)| placed(segment, queue, run));
    Ok((runs.collect(), holes.collect()))
}

/// Whether the file has just the runs of the segment, besides those that lie where the segment is damaged.
fn compare(segment: SegmentNumber, file: &FileRuns, rebuilt: &Rebuilt) -> (bool, OnlyHere) {
    let in_hole = |run: &Run| {
        let position = u64::from(run.position);
        rebuilt.holes.iter().any(|hole| hole.from <= position && position < hole.to)
    };
    let mut only_here = Vec::new();
    let mut expected = rebuilt.runs.sorted().peekable();
    for (queue, run) in file.sorted() {
        if expected.next_if_eq(&(queue, run)).is_some() {
            continue;
        }
        if !in_hole(&run) {
            return (false, only_here);
        }
        only_here.push(placed(segment, queue, run));
    }
    (expected.peek().is_none(), only_here)
}

fn placed(segment: SegmentNumber, queue: QueueId, run: Run) -> Placed {
    Placed {
        queue,
        first_offset: run.first_offset,
        count: run.count,
        bytes: run.bytes.into(),
        publish_time_us: run.publish_time_us,
        location: Location { segment, position: run.position.into(), length: run.length },
    }
}
