//! From offsets to what must be read.

use std::sync::Arc;

use super::sealed::Sealed;
use super::{Index, Location, Probe, Run, Runs, locked};
use crate::ids::{Offset, QueueId, SegmentNumber};
use crate::log::reader::ReadError;

/// Held segments that are asked before the others are halved: readers go on where they were.
const RECENT_ASKED: usize = 16;

/// Consecutive messages of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub location: Location,
    pub queue: QueueId,
    pub first_offset: Offset,
    /// The first message's place in the record.
    pub first: u32,
    pub count: u32,
    /// Bytes to expect, metadata and bodies.
    pub bytes: u64,
    /// Wall time of the publish, microseconds since the Unix epoch.
    pub publish_time_us: u64,
}

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub pieces: Vec<Piece>,
    /// Bytes to expect, metadata and bodies: of each message the mean of its run.
    pub bytes: u64,
    pub messages: usize,
}

impl Plan {
    fn add(&mut self, queue: QueueId, offset: Offset, bytes: u64, segment: SegmentNumber, run: Run) {
        self.messages += 1;
        self.bytes += bytes;
        let place = u32::try_from(offset.0 - run.first_offset.0).expect("a place in a run has 32 bits");
        let location = Location { segment, position: u64::from(run.position), length: run.length };
        match self.pieces.last_mut() {
            Some(last) if last.location == location && last.first + last.count == place => {
                last.count += 1;
                last.bytes += bytes;
            }
            _ => self.pieces.push(Piece {
                location,
                queue,
                first_offset: offset,
                first: place,
                count: 1,
                bytes,
                publish_time_us: run.publish_time_us,
            }),
        }
    }
}

/// Where the last message was found.
#[derive(Default)]
struct Place {
    run: Option<(SegmentNumber, Run)>,
    /// The runs of that segment, if it is sealed.
    runs: Option<Arc<Runs>>,
}

impl Index {
    /// Covers `offsets` (ascending) of a queue in order, until about `bytes_max` or until one that cannot be found;
    /// at least the first. May read index files: not for the broker's task.
    ///
    /// # Errors
    /// The first offset cannot be found: [`ReadError::NotIndexed`] if no run holds it, [`ReadError::Index`] if it may
    /// be in a segment whose runs can neither be read nor be rebuilt.
    pub fn plan(&self, queue: QueueId, offsets: &[Offset], bytes_max: u64) -> Result<Plan, ReadError> {
        let mut plan = Plan::default();
        let mut place = Place::default();
        for offset in offsets {
            let (segment, run) = match self.find(queue, *offset, &mut place) {
                Ok(found) => found,
                Err(error) if plan.messages == 0 => return Err(error),
                Err(_) => break,
            };
            let bytes = u64::from(run.bytes).div_ceil(run.count.into());
            if plan.messages > 0 && plan.bytes + bytes > bytes_max {
                break;
            }
            plan.add(queue, *offset, bytes, segment, run);
        }
        Ok(plan)
    }

    /// The first message of a queue at or behind `offset` that some run holds. A segment whose runs can neither be
    /// read nor be rebuilt counts as one without messages of the queue. May read index files, about as many as
    /// halving the segments takes: not for the broker's task.
    pub fn first_from(&self, queue: QueueId, offset: Offset) -> Option<Offset> {
        let (mut found, sealed) = {
            let segments = locked(&self.inner.segments);
            let newest = segments.newest.as_ref().map(|newest| newest.runs.probe(queue, offset));
            (newest.and_then(|probe| probe.first_from(offset)), segments.sealed.clone())
        };
        let (mut low, mut high) = (0, sealed.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let mut judged = (middle..high).filter_map(|at| {
                let runs = self.inner.open_for(&sealed[at], queue).ok().flatten()?;
                let probe = runs.probe(queue, offset);
                (probe != Probe::Absent).then_some((at, probe))
            });
            match judged.next() {
                Some((at, Probe::Later)) => low = at + 1,
                Some((_, probe)) => {
                    found = probe.first_from(offset);
                    high = middle;
                }
                None => high = middle,
            }
        }
        found
    }

    /// The run that holds a message, looked for first where the last one was found.
    fn find(
        &self,
        queue: QueueId,
        offset: Offset,
        place: &mut Place,
    ) -> Result<(SegmentNumber, Run), ReadError> {
        if let Some((segment, run)) = place.run {
            if run.holds(offset) {
                return Ok((segment, run));
            }
            if let Some(Probe::Found(next)) = place.runs.as_ref().map(|runs| runs.probe(queue, offset)) {
                place.run = Some((segment, next));
                return Ok((segment, next));
            }
        }
        let (segment, run, runs) = self.locate(queue, offset)?;
        *place = Place { run: Some((segment, run)), runs };
        Ok((segment, run))
    }

    fn locate(&self, queue: QueueId, offset: Offset) -> Result<Located, ReadError> {
        let sealed = {
            let segments = locked(&self.inner.segments);
            if let Some(newest) = &segments.newest {
                match newest.runs.probe(queue, offset) {
                    Probe::Found(run) => return Ok((newest.segment, run, None)),
                    Probe::Gap { .. } | Probe::Later => return Err(ReadError::NotIndexed { queue, offset }),
                    Probe::Absent | Probe::Earlier { .. } => {}
                }
            }
            segments.sealed.clone()
        };
        let mut search = Search { queue, offset, segments: &sealed, low: 0, high: sealed.len() };
        if let Some(located) = search.among_held(self) {
            return Ok(located);
        }
        search.by_halving(self)
    }
}

/// A segment, the run in it that holds the message, and all its runs if it is sealed.
type Located = (SegmentNumber, Run, Option<Arc<Runs>>);

/// The search for a message in sealed segments; it can only lie in `low..high`.
struct Search<'a> {
    queue: QueueId,
    offset: Offset,
    segments: &'a [Arc<Sealed>],
    low: usize,
    high: usize,
}

impl Search<'_> {
    /// Takes in what the segment at `at` says; the message's run, if it is there.
    fn narrow(&mut self, at: usize, runs: &Arc<Runs>) -> Option<Located> {
        match runs.probe(self.queue, self.offset) {
            Probe::Found(run) => return Some((self.segments[at].segment, run, Some(runs.clone()))),
            Probe::Gap { .. } => self.high = self.low,
            Probe::Earlier { .. } => self.high = self.high.min(at),
            Probe::Later => self.low = self.low.max(at + 1),
            Probe::Absent => {}
        }
        None
    }

    /// Asks segments whose runs are at hand.
    fn among_held(&mut self, index: &Index) -> Option<Located> {
        let recent = locked(&index.inner.held).recent(RECENT_ASKED);
        for (segment, place, runs) in recent {
            let at = self.segments.binary_search_by_key(&place, |sealed| sealed.place);
            // Another may have taken its place.
            let at = at.ok().filter(|at| self.segments[*at].segment == segment);
            let Some(at) = at.filter(|at| (self.low..self.high).contains(at)) else { continue };
            if let Some(located) = self.narrow(at, &runs) {
                // It counts as used, or the readers' own segments would be the first to go.
                locked(&index.inner.held).get(segment);
                return Some(located);
            }
        }
        None
    }

    fn by_halving(&mut self, index: &Index) -> Result<Located, ReadError> {
        let mut unreadable = None;
        while self.low < self.high {
            let middle = self.low + (self.high - self.low) / 2;
            let before = (self.low, self.high);
            for at in middle..self.high {
                match index.inner.open_for(&self.segments[at], self.queue) {
                    Ok(Some(runs)) => {
                        if let Some(located) = self.narrow(at, &runs) {
                            return Ok(located);
                        }
                    }
                    Ok(None) => {}
                    Err(error) => drop(unreadable.get_or_insert(error)),
                }
                if before != (self.low, self.high) {
                    break;
                }
            }
            // What lies from the middle on has no runs of the queue, or only later ones.
            if self.low == before.0 {
                self.high = self.high.min(middle);
            }
        }
        let Self { queue, offset, .. } = *self;
        Err(unreadable.map_or(ReadError::NotIndexed { queue, offset }, ReadError::Index))
    }
}
