//! Runs of one segment in memory, 32 bytes each besides their queue: those of the open segment, those of sealed ones
//! whose file is not written yet, and what was rebuilt.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::Placed;
use crate::ids::{Offset, QueueId};

/// A run of messages and where it lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first_offset: Offset,
    pub publish_time_us: u64,
    /// Of the record's first byte in the segment's file.
    pub position: u32,
    /// Bytes of the record.
    pub length: u32,
    pub count: u32,
    /// Bytes of its messages, metadata and bodies.
    pub bytes: u32,
}

impl Run {
    /// The run of a record that was placed.
    pub fn of(placed: &Placed) -> Self {
        Self {
            first_offset: placed.first_offset,
            publish_time_us: placed.publish_time_us,
            position: u32::try_from(placed.location.position).expect("positions in a segment have 32 bits"),
            length: placed.location.length,
            count: placed.count,
            bytes: u32::try_from(placed.bytes).expect("a run is shorter than 4 GiB"),
        }
    }

    /// The offset behind its last message.
    pub fn end(&self) -> Offset {
        self.first_offset.plus(u64::from(self.count))
    }

    pub fn holds(&self, offset: Offset) -> bool {
        self.first_offset <= offset && offset < self.end()
    }
}

/// What one segment says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Nothing: it has no runs of the queue.
    Absent,
    /// It lies in an earlier segment, if anywhere; `next` is the first one here.
    Earlier {
        next: Offset,
    },
    /// It lies in a later segment, if anywhere.
    Later,
    /// It lies nowhere: runs on both sides of it are here, and `next` is the first one behind it.
    Gap {
        next: Offset,
    },
    Found(Run),
}

impl Probe {
    /// The answer of runs in order, by the first that ends behind `offset` and the one before it, both of the queue.
    pub fn judge(offset: Offset, before: Option<Run>, ending_behind: Option<Run>) -> Self {
        match (before, ending_behind) {
            (_, Some(run)) if run.holds(offset) => Probe::Found(run),
            (Some(_), Some(run)) => Probe::Gap { next: run.first_offset },
            (None, Some(run)) => Probe::Earlier { next: run.first_offset },
            (Some(_), None) => Probe::Later,
            (None, None) => Probe::Absent,
        }
    }

    /// The first message at or behind `offset`, as far as this segment says.
    pub fn first_from(self, offset: Offset) -> Option<Offset> {
        match self {
            Probe::Found(_) => Some(offset),
            Probe::Earlier { next } | Probe::Gap { next } => Some(next),
            Probe::Absent | Probe::Later => None,
        }
    }
}

/// See the module's header. Runs of a queue are in order of offset.
#[derive(Debug, Default)]
pub struct MemoryRuns {
    queues: FxHashMap<QueueId, Vec<Run>>,
    count: usize,
}

impl MemoryRuns {
    /// Adds a run; `false` if it does not come behind those of its queue, and then it is not added.
    pub fn push(&mut self, queue: QueueId, run: Run) -> bool {
        let runs = self.queues.entry(queue).or_default();
        let end = runs.last().map_or(Offset(0), Run::end);
        let follows = run.count > 0 && run.first_offset >= end;
        if follows {
            runs.push(run);
            self.count += 1;
        }
        follows
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn queues(&self) -> impl Iterator<Item = QueueId> {
        self.queues.keys().copied()
    }

    /// What the segment says of a message.
    pub fn probe(&self, queue: QueueId, offset: Offset) -> Probe {
        let Some(runs) = self.queues.get(&queue) else { return Probe::Absent };
        // Readers mostly follow the writers closely: look at the newest run before searching.
        let at = match runs.last() {
            Some(last) if last.first_offset <= offset => runs.len() - usize::from(last.holds(offset)),
            _ => runs.partition_point(|run| run.end() <= offset),
        };
        Probe::judge(offset, at.checked_sub(1).map(|before| runs[before]), runs.get(at).copied())
    }

    /// All runs, sorted by queue and offset.
    pub fn sorted(&self) -> impl Iterator<Item = (QueueId, Run)> + '_ {
        let queues: BTreeMap<QueueId, &Vec<Run>> = self.queues.iter().map(|(id, runs)| (*id, runs)).collect();
        queues.into_iter().flat_map(|(queue, runs)| runs.iter().map(move |run| (queue, *run)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueId = QueueId(7);

    fn run(first: u64, count: u32) -> Run {
        let position = first as u32 * 100;
        Run { first_offset: Offset(first), publish_time_us: 9, position, length: 90, count, bytes: 50 }
    }

    fn filled() -> MemoryRuns {
        let mut runs = MemoryRuns::default();
        for (first, count) in [(2, 3), (5, 1), (10, 5)] {
            assert!(runs.push(QUEUE, run(first, count)));
        }
        runs
    }

    #[test]
    fn every_offset_is_judged() {
        let runs = filled();
        let found: Vec<Probe> = (0..17).map(|offset| runs.probe(QUEUE, Offset(offset))).collect();
        let expected = [
            vec![Probe::Earlier { next: Offset(2) }; 2],
            vec![Probe::Found(run(2, 3)); 3],
            vec![Probe::Found(run(5, 1)); 1],
            vec![Probe::Gap { next: Offset(10) }; 4],
            vec![Probe::Found(run(10, 5)); 5],
            vec![Probe::Later; 2],
        ];
        assert_eq!(found, expected.concat());
        assert_eq!(runs.probe(QueueId(8), Offset(3)), Probe::Absent);
        assert_eq!(size_of::<Run>(), 32);
    }

    #[test]
    fn runs_do_not_go_back() {
        let mut runs = filled();
        assert!(!runs.push(QUEUE, run(14, 1)) && !runs.push(QUEUE, run(20, 0)));
        assert_eq!(runs.count(), 3);
        assert!(runs.push(QUEUE, run(15, 1)) && runs.push(QueueId(3), run(0, 1)));
        let sorted: Vec<(u64, u64)> =
            runs.sorted().map(|(queue, run)| (queue.0, run.first_offset.0)).collect();
        assert_eq!(sorted, [(3, 0), (7, 2), (7, 5), (7, 10), (7, 15)]);
    }
}
