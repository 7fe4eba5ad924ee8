//! Copies what is needed of neighbouring segments into packed ones.
//!
//! The runs of each segment come sorted from its index, and are merged. A frame's worth of them at a time is read in
//! the order in which they lie in the files, near ones by one read, and verified.

use std::iter::Peekable;
use std::sync::Arc;

use super::Reclaim;
use super::pace::Pace;
use crate::disk::DiskError;
use crate::ids::{Lsn, QueueId, SegmentNumber};
use crate::log::error::LogError;
use crate::log::frame::{FRAME_HEADER_BYTES, frame_len};
use crate::log::index::{INDEX_RUNS_MAX, Run, Sealed};
use crate::log::packed::{PAYLOAD_BYTES, PackedFrame, PackedWriter};
use crate::log::system::{PackedSegment, SegmentsReplaced};
use crate::log::{Location, Placed};
use crate::planted;
use crate::record::{RecordError, RecordHead};

/// Records are read together if no more bytes than this lie between them.
const GAP_BYTES: u64 = 16 << 10;
/// Most bytes of one read of several records.
const READ_BYTES: u64 = 1 << 20;

/// Neighbouring segments to rewrite.
pub struct Job {
    pub inputs: Vec<Arc<Sealed>>,
    /// What comes of it counts as merged.
    pub merged: bool,
}

/// What became of a job.
pub enum Outcome {
    Packed(SegmentsReplaced),
    /// A segment, by its place among the inputs, that holds records which cannot be read.
    Unreadable(usize, LogError),
    /// A segment has left meanwhile.
    Gone,
    Stopped,
}

/// Why a job ends early.
enum Stop {
    Outcome(Outcome),
    Error(LogError),
}

impl From<DiskError> for Stop {
    fn from(error: DiskError) -> Self {
        Stop::Error(error.into())
    }
}

/// A run to copy: the input that it is in, and where in the frame it goes.
struct Pick {
    input: usize,
    queue: QueueId,
    run: Run,
    to: usize,
}

/// Makes the packed segments of a job, at most as many as it has inputs, numbered from `first` on.
///
/// # Errors
/// A write that failed. What was written is the caller's to remove unless the outcome is [`Outcome::Packed`].
pub fn run(reclaim: &Reclaim, job: &Job, first: SegmentNumber, pace: Pace<'_>) -> Result<Outcome, LogError> {
    let copy = Copy { reclaim, job, first, pace, writer: None, done: Vec::new(), buffer: Vec::new() };
    match copy.run() {
        Ok(new) => {
            let old = job.inputs.iter().map(|sealed| sealed.segment).collect();
            Ok(Outcome::Packed(SegmentsReplaced { old, new }))
        }
        Err(Stop::Outcome(outcome)) => Ok(outcome),
        Err(Stop::Error(error)) => Err(error),
    }
}

struct Copy<'a> {
    reclaim: &'a Reclaim,
    job: &'a Job,
    first: SegmentNumber,
    pace: Pace<'a>,
    writer: Option<PackedWriter>,
    done: Vec<PackedSegment>,
    /// Reads of several records.
    buffer: Vec<u8>,
}

impl Copy<'_> {
    fn run(mut self) -> Result<Vec<PackedSegment>, Stop> {
        let mut inputs = Vec::new();
        for (at, sealed) in self.job.inputs.iter().enumerate() {
            let runs = self.reclaim.index.runs_of(sealed);
            inputs.push(runs.map_err(|error| Stop::Outcome(unreadable(at, error)))?);
        }
        let sorted = inputs.iter().map(|runs| runs.sorted().peekable()).collect();
        let mut picks: Vec<Pick> = Vec::new();
        let mut end = FRAME_HEADER_BYTES;
        let mut live = self.reclaim_live()?;
        for (input, queue, run) in (Merge { sorted }) {
            let dropped = planted::bug("pack-drops-a-run") && picks.len() == 1;
            if !live(queue, run.end()) || dropped {
                continue;
            }
            if !picks.is_empty() && end + run.length as usize > FRAME_HEADER_BYTES + PAYLOAD_BYTES {
                self.copy(&picks, end)?;
                picks.clear();
                end = FRAME_HEADER_BYTES;
                live = self.reclaim_live()?;
            }
            picks.push(Pick { input, queue, run, to: end });
            end += run.length as usize;
        }
        if !picks.is_empty() {
            self.copy(&picks, end)?;
        }
        self.finish()?;
        Ok(self.done)
    }

    fn reclaim_live(&self) -> Result<super::Live, Stop> {
        self.pace.shared.live().ok_or(Stop::Outcome(Outcome::Stopped))
    }

    /// Copies the records of one frame, `end` bytes with its header.
    fn copy(&mut self, picks: &[Pick], end: usize) -> Result<(), Stop> {
        let mut buffer = vec![0; end];
        self.read(picks, &mut buffer)?;
        let mut first_lsn = None;
        for pick in picks {
            let record = &buffer[pick.to..pick.to + pick.run.length as usize];
            let lsn = verify(pick, record).map_err(|mismatch| {
                let (segment, position) = (self.job.inputs[pick.input].segment, pick.run.position.into());
                let error = mismatch.error(segment, position);
                Stop::Outcome(Outcome::Unreadable(pick.input, error))
            })?;
            first_lsn.get_or_insert(lsn);
        }
        let runs = picks.iter().map(|pick| {
            let position = u32::try_from(pick.to).expect("a frame is shorter than 4 GiB");
            (pick.queue, Run { position, ..pick.run })
        });
        let first_lsn = first_lsn.expect("a frame has records");
        let mut frame = PackedFrame { buffer, runs: runs.collect(), first_lsn };
        self.writer_for(end, picks.len())?.write(&mut frame)?;
        if self.pace.after_piece() { Ok(()) } else { Err(Stop::Outcome(Outcome::Stopped)) }
    }

    /// The packed segment that a frame goes to.
    fn writer_for(&mut self, bytes: usize, runs: usize) -> Result<&mut PackedWriter, Stop> {
        let bytes = frame_len((bytes - FRAME_HEADER_BYTES) as u64);
        let full = self.writer.as_ref().is_some_and(|writer| {
            writer.bytes() + bytes > self.reclaim.segment_bytes || writer.runs() + runs > INDEX_RUNS_MAX
        });
        // Each takes the place of one input; the last one takes what is left, whatever that is.
        if full && self.done.len() + 1 < self.job.inputs.len() {
            self.finish()?;
        }
        if self.writer.is_none() {
            let at = self.done.len();
            let old: Vec<SegmentNumber> = self.job.inputs.iter().map(|sealed| sealed.segment).collect();
            self.writer = Some(PackedWriter::begin(
                &*self.reclaim.disk,
                self.reclaim.cluster,
                self.first.plus(at as u64),
                self.job.inputs[at].place,
                &old,
                self.job.merged,
                u64::from_le_bytes(self.reclaim.host.random()),
            )?);
        }
        Ok(self.writer.as_mut().expect("one was just begun"))
    }

    fn finish(&mut self) -> Result<(), Stop> {
        if let Some(writer) = self.writer.take() {
            self.done.push(writer.finish(&*self.reclaim.disk)?);
        }
        Ok(())
    }

    /// Brings the records of all picks to their places in the frame.
    fn read(&mut self, picks: &[Pick], frame: &mut [u8]) -> Result<(), Stop> {
        let mut by_place: Vec<&Pick> = picks.iter().collect();
        by_place.sort_unstable_by_key(|pick| (pick.input, pick.run.position));
        let mut rest = by_place.as_slice();
        while let Some(first) = rest.first() {
            let (near, behind) = rest.split_at(count_near(rest));
            let from = u64::from(first.run.position);
            let to = near.last().map_or(from, |last| end_of(&last.run));
            self.buffer.resize((to - from) as usize, 0);
            self.read_at(first.input, from)?;
            for pick in near {
                let at = (u64::from(pick.run.position) - from) as usize;
                let length = pick.run.length as usize;
                frame[pick.to..pick.to + length].copy_from_slice(&self.buffer[at..at + length]);
            }
            rest = behind;
        }
        Ok(())
    }

    /// Fills the buffer from a place in an input.
    fn read_at(&mut self, input: usize, position: u64) -> Result<(), Stop> {
        let segment = self.job.inputs[input].segment;
        let file = self.reclaim.reader.file(segment);
        let read = file.and_then(|file| file.read_at(&mut self.buffer, position));
        read.map_err(|error| Stop::Outcome(unreadable(input, error.into())))
    }
}

/// What an error of reading an input means.
fn unreadable(input: usize, error: LogError) -> Outcome {
    match &error {
        LogError::Disk(disk) if disk.is_not_found() => Outcome::Gone,
        _ => Outcome::Unreadable(input, error),
    }
}

fn end_of(run: &Run) -> u64 {
    u64::from(run.position) + u64::from(run.length)
}

/// How many of the picks, which are in order, one read brings.
fn count_near(picks: &[&Pick]) -> usize {
    let first = picks[0];
    let near = |pair: &&[&Pick]| {
        let (before, next) = (pair[0], pair[1]);
        next.input == first.input
            && u64::from(next.run.position).saturating_sub(end_of(&before.run)) <= GAP_BYTES
            && end_of(&next.run) - u64::from(first.run.position) <= READ_BYTES
    };
    1 + picks.windows(2).take_while(near).count()
}

/// Why a record is not copied.
enum Mismatch {
    Record(RecordError),
    /// The index says one thing, the segment another.
    Index {
        index: String,
        found: String,
    },
}

impl Mismatch {
    fn error(self, segment: SegmentNumber, position: u64) -> LogError {
        match self {
            Self::Record(why) => LogError::Record { segment, position, why },
            Self::Index { index, found } => LogError::NotOfIndex { segment, position, index, found },
        }
    }
}

impl From<RecordError> for Mismatch {
    fn from(why: RecordError) -> Self {
        Self::Record(why)
    }
}

/// Verifies a record that is to be copied, every message of it; its LSN.
fn verify(pick: &Pick, record: &[u8]) -> Result<Lsn, Mismatch> {
    let head = RecordHead::decode(record)?;
    let location = Location { segment: SegmentNumber(0), position: 0, length: head.length };
    let found = Placed::of(&head, location).map(|placed| (placed.queue, Run::of(&placed)));
    let index = (pick.queue, Run { position: 0, ..pick.run });
    if found != Some(index) {
        return Err(Mismatch::Index {
            index: format!("{index:?}"),
            found: format!("{found:?}, record {}", head.lsn),
        });
    }
    for entry in head.run().iter().flat_map(|run| run.entries()) {
        let from = entry.position as usize;
        if !entry.verify(&record[from..from + entry.len() as usize]) {
            return Err(RecordError::Checksum.into());
        }
    }
    Ok(head.lsn)
}

/// Runs of several inputs, each sorted, as one sorted sequence.
struct Merge<I: Iterator<Item = (QueueId, Run)>> {
    sorted: Vec<Peekable<I>>,
}

impl<I: Iterator<Item = (QueueId, Run)>> Iterator for Merge<I> {
    /// The run's input, its queue, and it.
    type Item = (usize, QueueId, Run);

    fn next(&mut self) -> Option<Self::Item> {
        let heads = self.sorted.iter_mut().enumerate();
        let heads =
            heads.filter_map(|(at, runs)| runs.peek().map(|(queue, run)| ((*queue, run.first_offset), at)));
        let (_, at) = heads.min()?;
        let (queue, run) = self.sorted[at].next()?;
        Some((at, queue, run))
    }
}
