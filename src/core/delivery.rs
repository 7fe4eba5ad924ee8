//! The delivery state of one subscription: what is finished, what is handed out, what waits to be handed out again.
//!
//! A message's life here:
//!
//! ```text
//!   waiting (at or above the cursor) ──lease──▶ leased ──ack──▶ finished
//!                                         ▲       │                    spilled
//!                                         │       │                   spill │▲ recall
//!                                         │       │                         ▼│
//!                                         │       ├─ retry with delay ─▶ delayed ─due─▶ ready
//!                                         │       └─ release, expiry ─────────────────▶ ready
//!                                         └──────────────────────────────────────────────┘
//! ```
//! Leased, delayed and ready messages are *outstanding*: they have an entry in memory. Spilled ones have a ref in the
//! log ([`super::spilled`]) and nothing here: they are what lies below the cursor and is neither finished nor
//! outstanding.
//!
//! Invariants:
//! 1. Every offset below `finished.floor()` is finished; `outstanding` holds only offsets that are not.
//! 2. An outstanding offset is in exactly one phase; `ready` and `delayed` hold just those in their phase.
//! 3. `deadlines` holds an entry for every leased offset; an entry whose lease is over is stale and skipped, and
//!    stale ones never outnumber live ones by more than a constant factor.
//! 4. An offset at or above the cursor was never handed out, so far as the log knows.
//! 5. Every spilled message is in a run of `spilled`; only damage to the log can break this ([`super::spill`]).

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use rustc_hash::FxHashMap;

use super::bits::Finished;
use super::runs::{OffsetRun, offsets_of};
use super::spilled::{Ref, RestOfRun, SpilledRuns};
use crate::ids::Offset;
use crate::planted;

/// A lease's identity: the server's run that gave it, and its number there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId {
    pub incarnation: u32,
    pub number: u64,
}

/// Where an outstanding message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Leased { deadline_us: u64 },
    Delayed { due_us: u64 },
    Ready,
}

/// A message that was handed out and is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Deliveries that count.
    pub attempts: u32,
    /// The last lease, over or not; 0 if the message was spilled since, older than any.
    pub lease: LeaseId,
    pub phase: Phase,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Delivery {
    finished: Finished,
    cursor: Offset,
    outstanding: FxHashMap<Offset, Outstanding>,
    ready: BTreeSet<Offset>,
    delayed: BTreeSet<(u64, Offset)>,
    deadlines: BinaryHeap<Reverse<(u64, Offset)>>,
    leased: u64,
    spilled: SpilledRuns,
}

impl Delivery {
    /// Begins at `start`: everything below counts as finished.
    pub fn starting_at(start: Offset) -> Self {
        Self {
            finished: Finished::below(start),
            cursor: start,
            outstanding: FxHashMap::default(),
            ready: BTreeSet::new(),
            delayed: BTreeSet::new(),
            deadlines: BinaryHeap::new(),
            leased: 0,
            spilled: SpilledRuns::default(),
        }
    }

    /// A delivery of these parts; what follows from them is made anew.
    pub(super) fn restored(
        finished: Finished,
        cursor: Offset,
        outstanding: impl IntoIterator<Item = (Offset, Outstanding)>,
        spilled: SpilledRuns,
    ) -> Self {
        let mut delivery = Self { cursor, finished, spilled, ..Self::starting_at(Offset(0)) };
        for (offset, entry) in outstanding {
            match entry.phase {
                Phase::Leased { deadline_us } => {
                    delivery.leased += 1;
                    delivery.deadlines.push(Reverse((deadline_us, offset)));
                }
                Phase::Delayed { due_us } => drop(delivery.delayed.insert((due_us, offset))),
                Phase::Ready => drop(delivery.ready.insert(offset)),
            }
            delivery.outstanding.insert(offset, entry);
        }
        delivery
    }

    pub fn finished(&self) -> &Finished {
        &self.finished
    }

    pub fn cursor(&self) -> Offset {
        self.cursor
    }

    /// Everything handed out and not finished, in no order.
    pub fn all_outstanding(&self) -> impl Iterator<Item = (Offset, &Outstanding)> {
        self.outstanding.iter().map(|(offset, entry)| (*offset, entry))
    }

    pub fn floor(&self) -> Offset {
        self.finished.floor()
    }

    /// Messages below `end` that are not finished.
    pub fn backlog(&self, end: Offset) -> u64 {
        end.0.saturating_sub(self.finished.count())
    }

    pub fn leased(&self) -> u64 {
        self.leased
    }

    /// Messages that wait for a delay.
    pub fn delayed(&self) -> u64 {
        self.delayed.len() as u64 + self.spilled_messages()
    }

    /// Messages below the cursor that are neither finished nor outstanding.
    pub fn spilled_messages(&self) -> u64 {
        self.cursor.0 - self.finished.count_below(self.cursor) - self.outstanding.len() as u64
    }

    /// Runs of refs in the log.
    pub fn spilled(&self) -> &SpilledRuns {
        &self.spilled
    }

    /// Delayed messages with an entry in memory, by when they are due.
    pub fn delayed_in_memory(&self) -> &BTreeSet<(u64, Offset)> {
        &self.delayed
    }

    /// Messages that wait to be handed out again at once.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    pub fn is_finished(&self, offset: Offset) -> bool {
        self.finished.contains(offset)
    }

    pub fn outstanding(&self, offset: Offset) -> Option<&Outstanding> {
        self.outstanding.get(&offset)
    }

    /// Chooses up to `max` messages below `end` to hand out: those to be handed out again first, then new ones.
    pub fn choose(&self, max: usize, end: Offset) -> Vec<Offset> {
        let mut chosen: Vec<Offset> =
            self.ready.iter().copied().take_while(|offset| *offset < end).take(max).collect();
        let behind = u64::from(planted::bug("double-lease")).min(self.cursor.0);
        let mut next = self.finished.next_unfinished(Offset(self.cursor.0 - behind));
        while chosen.len() < max && next < end {
            chosen.push(next);
            next = self.finished.next_unfinished(next.next());
        }
        chosen
    }

    /// Whether [`Self::choose`] would find one.
    pub fn has_waiting(&self, end: Offset) -> bool {
        self.ready.first().is_some_and(|offset| *offset < end)
            || self.finished.next_unfinished(self.cursor) < end
    }

    /// When the next lease or delay ends, on the log's clock. May name a moment too early, never too late.
    pub fn next_due_us(&self) -> Option<u64> {
        let lease = self.deadlines.peek().map(|Reverse((deadline, _))| *deadline);
        let delay = self.delayed.first().map(|(due, _)| *due);
        lease.into_iter().chain(delay).min()
    }

    /// Leases that ended by `now_us`, in order of offset.
    pub fn expired(&mut self, now_us: u64) -> Vec<Offset> {
        let mut expired = Vec::new();
        while let Some(Reverse((deadline_us, offset))) = self.deadlines.peek().copied()
            && deadline_us <= now_us
        {
            self.deadlines.pop();
            if self.outstanding.get(&offset).is_some_and(|o| o.phase == Phase::Leased { deadline_us }) {
                expired.push(offset);
            }
        }
        expired.sort_unstable();
        expired.dedup();
        expired
    }

    /// Delayed messages that are due by `now_us`.
    pub fn due(&self, now_us: u64) -> Vec<Offset> {
        self.delayed.iter().take_while(|(due, _)| *due <= now_us).map(|(_, offset)| *offset).collect()
    }

    /// Applies a lease of `runs`; lease numbers count up from `first` in the order of the runs.
    pub(super) fn lease(&mut self, runs: &[OffsetRun], first: LeaseId, deadline_us: u64) {
        for (index, offset) in offsets_of(runs).enumerate() {
            assert!(!self.is_finished(offset), "a finished message is never leased");
            let lease = LeaseId { number: first.number + index as u64, ..first };
            self.leave_phase(offset);
            let entry = self.outstanding.entry(offset).or_insert(Outstanding {
                attempts: 0,
                lease,
                phase: Phase::Ready,
            });
            *entry =
                Outstanding { attempts: entry.attempts + 1, lease, phase: Phase::Leased { deadline_us } };
            self.cursor = self.cursor.max(offset.next());
            self.leased += 1;
            self.deadlines.push(Reverse((deadline_us, offset)));
        }
        self.drop_stale_deadlines();
    }

    /// Applies a new deadline to leases that are still held.
    pub(super) fn extend(&mut self, runs: &[OffsetRun], deadline_us: u64) {
        for offset in offsets_of(runs) {
            if let Some(Outstanding { phase: phase @ Phase::Leased { .. }, .. }) =
                self.outstanding.get_mut(&offset)
            {
                *phase = Phase::Leased { deadline_us };
                self.deadlines.push(Reverse((deadline_us, offset)));
            }
        }
        self.drop_stale_deadlines();
    }

    /// Applies the end of messages. One that is finished already stays so.
    pub(super) fn finish(&mut self, runs: &[OffsetRun]) {
        for run in runs {
            if run.count <= self.outstanding.len() as u64 {
                run.offsets().for_each(|offset| self.leave(offset));
            } else {
                let run = run.first..run.first.plus(run.count);
                let left: Vec<_> = self.outstanding.keys().copied().filter(|at| run.contains(at)).collect();
                left.into_iter().for_each(|offset| self.leave(offset));
            }
            self.finished.insert_run(*run);
        }
        self.drop_stale_deadlines();
        self.drop_empty_runs();
    }

    /// Applies the end of every message below `end`.
    pub(super) fn finish_below(&mut self, end: Offset) {
        let passed: Vec<Offset> = self.outstanding.keys().copied().filter(|offset| *offset < end).collect();
        passed.into_iter().for_each(|offset| self.leave(offset));
        self.finished.raise(end);
        self.cursor = self.cursor.max(end);
        self.drop_stale_deadlines();
        self.drop_empty_runs();
    }

    /// Applies a new run in the log: its messages leave memory.
    pub(super) fn spill(&mut self, place: Offset, refs: &[Ref]) {
        refs.iter().for_each(|entry| self.leave(entry.offset));
        self.spilled.add(place, refs.first().map_or(0, |entry| entry.due_us));
        self.drop_stale_deadlines();
    }

    /// Applies the return of refs from a run, which goes on at `rest` or is used up.
    pub(super) fn recall(&mut self, place: Offset, rest: Option<RestOfRun>, refs: &[Ref]) {
        self.spilled.go_on(place, rest);
        for Ref { due_us, offset, attempts } in refs.iter().copied() {
            if self.is_spilled(offset) {
                let (lease, phase) = (LeaseId::default(), Phase::Delayed { due_us });
                self.outstanding.insert(offset, Outstanding { attempts, lease, phase });
                self.delayed.insert((due_us, offset));
            }
        }
        self.drop_empty_runs();
    }

    /// The runs before this place were written.
    pub(super) fn use_up_runs(&mut self, next: Offset) {
        self.spilled.use_up(next);
    }

    /// Whether the message was handed out, and is neither finished nor outstanding.
    pub fn is_spilled(&self, offset: Offset) -> bool {
        offset < self.cursor && !self.is_finished(offset) && !self.outstanding.contains_key(&offset)
    }

    /// Without spilled messages, no ref in a run says anything any more.
    fn drop_empty_runs(&mut self) {
        if !self.spilled.is_empty() && self.spilled_messages() == 0 {
            self.spilled.clear();
        }
    }

    /// Applies the return of outstanding messages: ready now, or delayed until `due_us` (0 = now).
    /// Without `counted` the ended attempt is taken back.
    pub(super) fn requeue(&mut self, runs: &[OffsetRun], due_us: u64, counted: bool) {
        for offset in offsets_of(runs) {
            self.leave_phase(offset);
            let Some(entry) = self.outstanding.get_mut(&offset) else { continue };
            entry.attempts = entry.attempts.saturating_sub(u32::from(!counted));
            if due_us == 0 {
                entry.phase = Phase::Ready;
                self.ready.insert(offset);
            } else {
                entry.phase = Phase::Delayed { due_us };
                self.delayed.insert((due_us, offset));
            }
        }
        self.drop_stale_deadlines();
    }

    /// Applies a restart: no lease ends before `deadline_us`, so that consumers have time to come back. Whether that
    /// has changed one.
    pub(super) fn grace(&mut self, deadline_us: u64) -> bool {
        let mut moved = Vec::new();
        for (offset, entry) in &mut self.outstanding {
            if let Phase::Leased { deadline_us: old } = entry.phase
                && old < deadline_us
            {
                entry.phase = Phase::Leased { deadline_us };
                moved.push(Reverse((deadline_us, *offset)));
            }
        }
        let changed = !moved.is_empty();
        self.deadlines.extend(moved);
        self.drop_stale_deadlines();
        changed
    }

    /// A message is outstanding no more, if it was.
    fn leave(&mut self, offset: Offset) {
        self.leave_phase(offset);
        self.outstanding.remove(&offset);
    }

    fn leave_phase(&mut self, offset: Offset) {
        match self.outstanding.get(&offset).map(|entry| entry.phase) {
            Some(Phase::Leased { .. }) => self.leased -= 1,
            Some(Phase::Delayed { due_us }) => assert!(self.delayed.remove(&(due_us, offset))),
            Some(Phase::Ready) => assert!(self.ready.remove(&offset)),
            None => {}
        }
    }

    fn drop_stale_deadlines(&mut self) {
        if self.deadlines.len() as u64 <= 4 * self.leased + 1024 {
            return;
        }
        let live = self.outstanding.iter().filter_map(|(offset, entry)| match entry.phase {
            Phase::Leased { deadline_us } => Some(Reverse((deadline_us, *offset))),
            _ => None,
        });
        self.deadlines = live.collect();
    }
}
