//! Sets of offsets written as runs, so that a batch costs one entry whatever its size.

use crate::ids::Offset;

/// The offsets `first..first + count`; `count` is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OffsetRun {
    pub first: Offset,
    pub count: u64,
}

impl OffsetRun {
    pub fn offsets(self) -> impl Iterator<Item = Offset> {
        (self.first.0..self.first.0 + self.count).map(Offset)
    }
}

/// Joins neighbours of a sequence of offsets; the sequence's order is kept.
pub fn runs_of(offsets: impl IntoIterator<Item = Offset>) -> Vec<OffsetRun> {
    let mut runs: Vec<OffsetRun> = Vec::new();
    for offset in offsets {
        match runs.last_mut() {
            Some(run) if run.first.0 + run.count == offset.0 => run.count += 1,
            _ => runs.push(OffsetRun { first: offset, count: 1 }),
        }
    }
    runs
}

/// All offsets of some runs, in their order.
pub fn offsets_of(runs: &[OffsetRun]) -> impl Iterator<Item = Offset> {
    runs.iter().flat_map(|run| run.offsets())
}
