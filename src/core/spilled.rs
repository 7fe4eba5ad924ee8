//! Delays whose refs lie in the log: what memory keeps of them.
//!
//! A *ref* is all that is to be known of a message that waits for a delay: its offset, its attempts, when it is due.
//! A subscription with many of them writes those that are due latest into the log, as a *run*: a record with refs in
//! order of their time, which is found again by its *place*, an offset in the subscription's
//! [store of refs](crate::ids::QueueId::of_refs). Here is, of each run that is not used up, its place, how many of
//! its refs have come back, and when the next is due: about 60 bytes for each thousand refs, whatever their number.
//!
//! Invariants:
//! 1. Places are given once, in order; all runs before [`SpilledRuns::first`] are used up for good, so their records
//!    may go.
//! 2. A ref whose message is finished, or outstanding again, says nothing any more. So refs need not be taken out
//!    of a run when something becomes of their messages.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Offset;

/// A message that waits for a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ref {
    /// On the log's clock, microseconds.
    pub due_us: u64,
    pub offset: Offset,
    /// Deliveries that count.
    pub attempts: u32,
}

/// Where a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestOfRun {
    /// Refs before it.
    pub position: u64,
    /// When the ref there is due, on the log's clock, microseconds.
    pub due_us: u64,
}

/// The runs of a subscription that are not used up.
#[derive(Clone, Debug, Default)]
pub struct SpilledRuns {
    by_place: BTreeMap<Offset, RestOfRun>,
    by_due: BTreeSet<(u64, Offset)>,
    next: Offset,
}

impl SpilledRuns {
    /// Runs of these parts. Their places are before `next`.
    pub(super) fn restored(next: Offset, runs: impl IntoIterator<Item = (Offset, RestOfRun)>) -> Self {
        let mut spilled = Self { next, ..Self::default() };
        runs.into_iter().for_each(|(place, rest)| spilled.set(place, rest));
        spilled
    }

    pub fn is_empty(&self) -> bool {
        self.by_place.is_empty()
    }

    /// The place of the next run.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Everything before this place is used up.
    pub fn first(&self) -> Offset {
        self.by_place.keys().next().copied().unwrap_or(self.next)
    }

    pub fn get(&self, place: Offset) -> Option<RestOfRun> {
        self.by_place.get(&place).copied()
    }

    /// In order of place.
    pub fn all(&self) -> impl ExactSizeIterator<Item = (Offset, RestOfRun)> {
        self.by_place.iter().map(|(place, rest)| (*place, *rest))
    }

    /// In order of what is due next.
    pub fn by_due(&self) -> impl Iterator<Item = (Offset, RestOfRun)> {
        self.by_due.iter().map(|(_, place)| (*place, self.by_place[place]))
    }

    /// Adds a run whose first ref is due then.
    pub(super) fn add(&mut self, place: Offset, due_us: u64) {
        self.next = self.next.max(place.next());
        self.set(place, RestOfRun { position: 0, due_us });
    }

    /// Lets a run go on elsewhere, or end. One that is not here is passed over.
    pub(super) fn go_on(&mut self, place: Offset, rest: Option<RestOfRun>) {
        let Some(before) = self.by_place.remove(&place) else { return };
        self.by_due.remove(&(before.due_us, place));
        if let Some(rest) = rest {
            self.set(place, rest);
        }
    }

    /// The runs before this place were written.
    pub(super) fn use_up(&mut self, next: Offset) {
        self.next = self.next.max(next);
    }

    pub(super) fn clear(&mut self) {
        self.by_place.clear();
        self.by_due.clear();
    }

    fn set(&mut self, place: Offset, rest: RestOfRun) {
        self.by_place.insert(place, rest);
        self.by_due.insert((rest.due_us, place));
    }
}
