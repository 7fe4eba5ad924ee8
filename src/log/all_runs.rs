//! Which runs hold which messages: of every queue, its runs in order of offset.
//!
//! Kept in memory, 40 bytes a run. Callers hold offsets, never places: where a message lies is asked for each time,
//! so that segments can be rewritten and the index of sealed segments can move to files.

use std::collections::HashMap;

use super::{Location, Placed};
use crate::ids::{Offset, QueueId, SegmentNumber};

/// The runs of all queues.
#[derive(Debug, Default)]
pub struct Index {
    queues: HashMap<QueueId, Vec<Packed>>,
}

/// A run of messages at consecutive offsets, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first_offset: Offset,
    pub count: u32,
    /// Bytes of its messages, metadata and bodies.
    pub bytes: u64,
    pub publish_time_us: u64,
    pub location: Location,
}

impl Run {
    /// The offset behind its last message.
    pub fn end(&self) -> Offset {
        self.first_offset.plus(u64::from(self.count))
    }
}

/// A run in 40 bytes: positions and lengths inside a segment have 32 bits.
#[derive(Clone, Copy, Debug)]
struct Packed {
    first_offset: Offset,
    publish_time_us: u64,
    segment: SegmentNumber,
    position: u32,
    length: u32,
    count: u32,
    bytes: u32,
}

impl Packed {
    fn end(&self) -> Offset {
        self.first_offset.plus(u64::from(self.count))
    }

    fn run(&self) -> Run {
        Run {
            first_offset: self.first_offset,
            count: self.count,
            bytes: u64::from(self.bytes),
            publish_time_us: self.publish_time_us,
            location: Location {
                segment: self.segment,
                position: u64::from(self.position),
                length: self.length,
            },
        }
    }
}

impl Index {
    /// Adds a run. Runs of a queue come in order of offset; one that goes back is a bug.
    pub fn insert(&mut self, placed: &Placed) {
        let runs = self.queues.entry(placed.queue).or_default();
        let end = runs.last().map_or(Offset(0), Packed::end);
        assert!(placed.count > 0 && placed.first_offset >= end, "runs of a queue are in order of offset");
        runs.push(Packed {
            first_offset: placed.first_offset,
            publish_time_us: placed.publish_time_us,
            segment: placed.location.segment,
            position: u32::try_from(placed.location.position).expect("positions in a segment have 32 bits"),
            length: placed.location.length,
            count: placed.count,
            bytes: u32::try_from(placed.bytes).expect("a run is shorter than 4 GiB"),
        });
    }

    /// The offset behind the queue's last message; 0 for a queue without any.
    pub fn end(&self, queue: QueueId) -> Offset {
        self.runs(queue).last().map_or(Offset(0), Packed::end)
    }

    /// The run that holds a message, and the message's place in it.
    pub fn find(&self, queue: QueueId, offset: Offset) -> Option<(Run, u32)> {
        let runs = self.runs(queue);
        let run = runs.get(first_ending_after(runs, offset))?;
        let place = offset.0.checked_sub(run.first_offset.0)?;
        Some((run.run(), u32::try_from(place).expect("a place in a run has 32 bits")))
    }

    /// The queue's runs in order, from the one that holds `offset`, or else the first behind it.
    pub fn iter_from(&self, queue: QueueId, offset: Offset) -> impl Iterator<Item = Run> + '_ {
        let runs = self.runs(queue);
        runs[first_ending_after(runs, offset)..].iter().map(Packed::run)
    }

    /// Drops what is known of a queue.
    pub fn forget_queue(&mut self, queue: QueueId) {
        self.queues.remove(&queue);
    }

    fn runs(&self, queue: QueueId) -> &[Packed] {
        self.queues.get(&queue).map_or(&[], Vec::as_slice)
    }
}

fn first_ending_after(runs: &[Packed], offset: Offset) -> usize {
    // Readers mostly follow the writers closely: look at the newest run before searching.
    match runs.last() {
        Some(last) if last.first_offset <= offset => runs.len() - usize::from(offset < last.end()),
        _ => runs.partition_point(|run| run.end() <= offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueId = QueueId(7);

    fn placed(first: u64, count: u32) -> Placed {
        let location = Location { segment: SegmentNumber(1), position: first * 100, length: 90 };
        Placed {
            queue: QUEUE,
            first_offset: Offset(first),
            count,
            bytes: 50,
            publish_time_us: first + 1_000,
            location,
        }
    }

    fn filled() -> Index {
        let mut index = Index::default();
        for (first, count) in [(0, 3), (3, 1), (10, 5)] {
            index.insert(&placed(first, count));
        }
        index
    }

    #[test]
    fn every_offset_is_found_in_its_run() {
        let index = filled();
        let found: Vec<Option<(u64, u32)>> = (0..16)
            .map(|offset| index.find(QUEUE, Offset(offset)))
            .map(|found| found.map(|(run, place)| (run.first_offset.0, place)))
            .collect();
        let expected = [(0, 0), (0, 1), (0, 2), (3, 0)].into_iter().map(Some).chain([None; 6]);
        let expected = expected.chain((0..5).map(|place| Some((10, place)))).chain([None]);
        assert_eq!(found, expected.collect::<Vec<_>>());
        let (run, _) = index.find(QUEUE, Offset(12)).unwrap();
        assert_eq!(run.location, placed(10, 5).location);
        assert_eq!((run.count, run.bytes, run.publish_time_us, run.end()), (5, 50, 1_010, Offset(15)));
        assert_eq!(size_of::<Packed>(), 40);
    }

    #[test]
    fn iteration_begins_at_the_run_of_an_offset() {
        let index = filled();
        let from = |offset| -> Vec<u64> {
            index.iter_from(QUEUE, Offset(offset)).map(|run| run.first_offset.0).collect()
        };
        assert_eq!((from(2), from(3), from(4)), (vec![0, 3, 10], vec![3, 10], vec![10]));
        assert_eq!((from(14), from(15)), (vec![10], vec![]));
    }

    #[test]
    fn a_forgotten_queue_is_empty() {
        let mut index = filled();
        assert_eq!(index.end(QUEUE), Offset(15));
        index.forget_queue(QUEUE);
        assert_eq!((index.end(QUEUE), index.find(QUEUE, Offset(0))), (Offset(0), None));
    }

    #[test]
    #[should_panic(expected = "in order of offset")]
    fn runs_do_not_go_back() {
        filled().insert(&placed(14, 1));
    }
}
