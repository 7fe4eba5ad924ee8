//! Decisions to move refs of delayed messages into the log and back.
//!
//! Memory keeps what is due first. When a subscription has twice [`REFS_MAX`] delayed messages in memory, those that
//! are due latest go into the log, a run of [`REFS_MAX`] at a time. They come back when they are due, as far as there
//! is room: what nobody takes stays where it is, at no cost. A run is read about as often as it has something due:
//! runs that were spilled one after the other mostly cover one time after the other. So runs are not merged.
//!
//! A run that cannot be read any more, and records that are lost, strand messages: they are spilled, and in no run.
//! A [`Survey`] of all runs finds them, and [`bring_back`] spills them anew, as due now: they are delivered again, and
//! what is lost of them is the rest of their delay and the count of their attempts.

use super::bits::Finished;
use super::delivery::Delivery;
use super::event::Event;
use super::retry::GIVING_UP_US;
use super::runs::{OffsetRun, offsets_of};
use super::spilled::{Ref, RestOfRun};
use super::state::Subscription;
use crate::clock::Now;
use crate::ids::Offset;

/// Refs of one run, and about how many delayed and ready messages of a subscription are in memory.
pub const REFS_MAX: usize = 1_024;
/// How much earlier than due refs come back, so that a run is not read for every message, microseconds.
const AHEAD_US: u64 = 100_000;
/// Runs that are read at one time.
const RUNS_PER_RECALL: usize = 16;

/// Spills what memory has too much of, in runs of `refs_max`.
pub fn spill(subscription: &Subscription, refs_max: usize) -> Vec<Event> {
    let delivery = &subscription.delivery;
    let delayed = delivery.delayed_in_memory();
    if delayed.len() < 2 * refs_max {
        return Vec::new();
    }
    let count = (delayed.len() - refs_max) / refs_max * refs_max;
    let latest = delayed.iter().skip(delayed.len() - count);
    let refs = latest.map(|(due_us, offset)| {
        let message = delivery.outstanding(*offset).expect("a delayed message in memory has an entry");
        Ref { due_us: *due_us, offset: *offset, attempts: message.attempts }
    });
    runs_of_refs(subscription, &refs.collect::<Vec<_>>(), refs_max)
}

/// Puts refs, which are in order, into new runs.
fn runs_of_refs(subscription: &Subscription, refs: &[Ref], refs_max: usize) -> Vec<Event> {
    let (queue, id) = (subscription.queue, subscription.id);
    let next = subscription.delivery.spilled().next();
    let run = |(index, refs): (u64, &[Ref])| {
        let place = next.plus(index);
        Event::Spilled { queue, subscription: id, place, refs: refs.to_vec() }
    };
    (0..).zip(refs.chunks(refs_max)).map(run).collect()
}

/// Which runs to read for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recall {
    /// By when they go on.
    pub runs: Vec<(Offset, RestOfRun)>,
    /// Most refs to take.
    pub room: usize,
    /// Refs due by then are taken.
    pub until_us: u64,
}

/// When there is something to recall and room for it, on the log's clock. Runs from the place `durable` on cannot be
/// read yet. Of what memory has, what comes due within a second counts as taking room, so that messages that are
/// set aside to be given up are not joined by ever more; when that second is over, this must be asked again.
pub fn recall_due_us(delivery: &Delivery, durable: Offset, now: Now, refs_max: usize) -> Option<u64> {
    let mut runs = delivery.spilled().by_due().filter(|(place, _)| *place < durable);
    let (_, rest) = runs.next()?;
    (in_memory(delivery, now, refs_max) <= refs_max / 2).then_some(rest.due_us)
}

/// What to recall now.
pub fn recall(delivery: &Delivery, durable: Offset, now: Now, refs_max: usize) -> Option<Recall> {
    recall_due_us(delivery, durable, now, refs_max).filter(|due_us| *due_us <= now.log_us)?;
    let until_us = now.log_us + AHEAD_US;
    let due = delivery.spilled().by_due().take_while(|(_, rest)| rest.due_us <= until_us);
    let runs = due.filter(|(place, _)| *place < durable).take(RUNS_PER_RECALL).collect();
    Some(Recall { runs, room: refs_max - in_memory(delivery, now, refs_max), until_us })
}

/// Messages in memory that are ready or soon will be; from `refs_max` on it is not counted further.
fn in_memory(delivery: &Delivery, now: Now, refs_max: usize) -> usize {
    let soon = delivery.delayed_in_memory().range(..(now.log_us + GIVING_UP_US, Offset(u64::MAX)));
    (delivery.ready() + soon.take(refs_max).count()).min(refs_max)
}

impl Recall {
    /// Takes what is due from a run of these refs, which goes on at `rest`: the refs, and where it goes on then.
    pub fn take(&mut self, refs: &[Ref], rest: RestOfRun) -> (Vec<Ref>, Option<RestOfRun>) {
        let from = usize::try_from(rest.position).unwrap_or(usize::MAX).min(refs.len());
        let due = refs[from..].iter().take_while(|entry| entry.due_us <= self.until_us);
        let taken: Vec<Ref> = due.take(self.room).copied().collect();
        self.room -= taken.len();
        let at = from + taken.len();
        let rest = refs.get(at).map(|next| RestOfRun { position: at as u64, due_us: next.due_us });
        (taken, rest)
    }
}

/// Brings refs back that were taken from a run, which goes on at `rest`. Nothing if the run has gone meanwhile, or goes
/// on where it was.
pub fn recalled(
    subscription: &Subscription,
    place: Offset,
    refs: &[Ref],
    rest: Option<RestOfRun>,
) -> Option<Event> {
    let delivery = &subscription.delivery;
    let before = delivery.spilled().get(place)?;
    if rest == Some(before) {
        return None;
    }
    let refs = refs.iter().filter(|entry| delivery.is_spilled(entry.offset)).copied().collect();
    Some(Event::Recalled { queue: subscription.queue, subscription: subscription.id, place, rest, refs })
}

/// The search for stranded messages of a subscription. From its beginning to its end none may be spilled or recalled.
#[derive(Clone, Debug)]
pub struct Survey {
    cursor: Offset,
    /// What is finished, outstanding, or in a run that was noted.
    accounted: Finished,
}

impl Survey {
    pub fn of(delivery: &Delivery) -> Self {
        let mut accounted = delivery.finished().clone();
        for (offset, _) in delivery.all_outstanding() {
            accounted.insert(offset);
        }
        Self { cursor: delivery.cursor(), accounted }
    }

    /// A run of these refs, which goes on at `rest`, can be read.
    pub fn note(&mut self, refs: &[Ref], rest: RestOfRun) {
        let from = usize::try_from(rest.position).unwrap_or(usize::MAX).min(refs.len());
        // Damaged numbers must not grow the set: what is not below the cursor was not handed out.
        for entry in refs[from..].iter().filter(|entry| entry.offset < self.cursor) {
            self.accounted.insert(entry.offset);
        }
    }

    /// Messages that were handed out and are accounted for nowhere.
    pub fn stranded(&self) -> Vec<OffsetRun> {
        let mut runs = Vec::new();
        let mut first = self.accounted.next_unfinished(Offset(0));
        while first < self.cursor {
            let mut end = first.next();
            while end < self.cursor && !self.accounted.contains(end) {
                end = end.next();
            }
            runs.push(OffsetRun { first, count: end.0 - first.0 });
            first = self.accounted.next_unfinished(end);
        }
        runs
    }
}

/// Spills stranded messages anew, as due now and not yet tried, and ends the runs that are `lost`.
pub fn bring_back(
    subscription: &Subscription,
    stranded: &[OffsetRun],
    lost: &[Offset],
    now: Now,
    refs_max: usize,
) -> Vec<Event> {
    let still = offsets_of(stranded).filter(|offset| subscription.delivery.is_spilled(*offset));
    let refs: Vec<Ref> = still.map(|offset| Ref { due_us: now.log_us, offset, attempts: 0 }).collect();
    let mut events = runs_of_refs(subscription, &refs, refs_max);
    events.extend(lost.iter().filter_map(|place| recalled(subscription, *place, &[], None)));
    events
}
