//! Delayed messages that memory has no room for: their refs are written into the log, and read back off this task when
//! they are due and somebody may take them ([`spill`]). A subscription has one such read at a time.
//!
//! A run of refs that cannot be read costs no message: all runs of the subscription are looked through, and what is in
//! none of them is delivered again.

use rustc_hash::FxHashSet;

use super::own::Turn;
use super::reads::{Done, Source};
use super::shell::Shell;
use crate::admission::Permit;
use crate::clock::Now;
use crate::core::runs::OffsetRun;
use crate::core::spill::{self, REFS_MAX, Recall, Survey};
use crate::core::spilled::{Ref, RestOfRun};
use crate::core::{Event, State, event_codec};
use crate::ids::{Offset, QueueId, SubscriptionId};
use crate::log::{Placed, ReadError};

/// Memory that reading one run may take, the record and its refs, bytes.
const RUN_BYTES: u64 = (REFS_MAX * 2 * size_of::<Ref>()) as u64;

/// Reads of refs.
#[derive(Default)]
pub struct Recalls {
    /// Subscriptions whose runs are being read, or have their turn to come.
    under_way: FxHashSet<SubscriptionId>,
    /// Subscriptions that may have stranded messages; all their runs are to be read.
    surveys: FxHashSet<SubscriptionId>,
    /// Messages whose delays were lost to damage.
    pub delays_lost: u64,
}

impl Recalls {
    /// Every subscription may have stranded messages.
    pub fn after_damage(state: &State) -> Self {
        let has_spilled =
            |id: &SubscriptionId| state.subscription(*id).is_some_and(|s| s.delivery.spilled_messages() > 0);
        Self { surveys: state.subscription_ids().filter(has_spilled).collect(), ..Self::default() }
    }

    pub fn is_under_way(&self, id: SubscriptionId) -> bool {
        self.under_way.contains(&id)
    }
}

/// A finished read of refs.
pub struct RefsDone {
    subscription: SubscriptionId,
    /// Given back when the refs are in the state.
    _memory: Permit,
    found: Found,
}

enum Found {
    Due(Vec<Taken>),
    Survey { stranded: Vec<OffsetRun>, lost: Vec<Offset> },
}

/// What was read of the run at a place: refs, and where it goes on.
struct Taken {
    place: Offset,
    refs: Result<(Vec<Ref>, Option<RestOfRun>), ReadError>,
}

/// What to read.
enum Wanted {
    Due(Recall),
    Survey { survey: Survey, runs: Vec<(Offset, RestOfRun)> },
}

impl Wanted {
    fn runs(&self) -> usize {
        match self {
            Wanted::Due(recall) => recall.runs.len(),
            // One after the other.
            Wanted::Survey { .. } => 1,
        }
    }

    fn read(self, source: &Source, id: SubscriptionId) -> Found {
        match self {
            Wanted::Due(mut recall) => {
                let runs = std::mem::take(&mut recall.runs);
                let take = |(place, rest)| {
                    let refs = read_run(source, id, place).map(|refs| recall.take(&refs, rest));
                    Taken { place, refs }
                };
                Found::Due(runs.into_iter().map(take).collect())
            }
            Wanted::Survey { mut survey, runs } => {
                let mut lost = Vec::new();
                for (place, rest) in runs {
                    match read_run(source, id, place) {
                        Ok(refs) => survey.note(&refs, rest),
                        Err(error) => {
                            tracing::error!(subscription = %id, %place, %error, "delays cannot be read");
                            lost.push(place);
                        }
                    }
                }
                Found::Survey { stranded: survey.stranded(), lost }
            }
        }
    }
}

impl Shell {
    /// Writes refs into the log that memory should not have.
    pub(super) fn spill(&mut self, id: SubscriptionId, now: Now) {
        if self.recalls.surveys.contains(&id) {
            return;
        }
        let Some(subscription) = self.state.subscription(id) else { return };
        let events = spill::spill(subscription, REFS_MAX);
        self.enact_lazily(&events, now);
    }

    /// When [`Self::recall`] would read.
    pub(super) fn recall_due_us(&self, id: SubscriptionId, now: Now) -> Option<u64> {
        let delivery = &self.state.subscription(id)?.delivery;
        if self.recalls.is_under_way(id) {
            None
        } else if self.recalls.surveys.contains(&id) {
            self.can_survey(id).then_some(now.log_us)
        } else {
            spill::recall_due_us(delivery, self.end(QueueId::of_refs(id)), now, REFS_MAX)
        }
    }

    /// Sees to it that what is due of the subscription's runs is read, or all of them after damage.
    pub(super) fn recall(&mut self, id: SubscriptionId, now: Now) {
        let is_due = self.recall_due_us(id, now).is_some_and(|due_us| due_us <= now.log_us);
        if is_due && self.recalls.under_way.insert(id) {
            self.own_reads.line_up(Turn::Recall(id));
        }
    }

    /// Begins to read what is due of the subscription's runs; false if there is no memory for it.
    pub(super) fn read_refs(&mut self, id: SubscriptionId, now: Now) -> bool {
        let Some(wanted) = self.wanted_refs(id, now) else {
            self.recalls.under_way.remove(&id);
            self.schedule(id);
            return true;
        };
        let Some(memory) = self.own_reads.try_take(wanted.runs() as u64 * RUN_BYTES) else { return false };
        let (source, done) = (self.source(), self.reads_done.clone());
        self.readers.run(move || {
            let found = wanted.read(&source, id);
            // The receiver is gone only if the task has ended, and then nobody waits.
            let _ = done.send(Done::Refs(RefsDone { subscription: id, _memory: memory, found }));
        });
        true
    }

    fn wanted_refs(&self, id: SubscriptionId, now: Now) -> Option<Wanted> {
        let delivery = &self.state.subscription(id)?.delivery;
        if !self.recalls.surveys.contains(&id) {
            let durable = self.end(QueueId::of_refs(id));
            return spill::recall(delivery, durable, now, REFS_MAX).map(Wanted::Due);
        }
        let runs = delivery.spilled().all().collect();
        self.can_survey(id).then(|| Wanted::Survey { survey: Survey::of(delivery), runs })
    }

    /// Whether all runs are on disk.
    fn can_survey(&self, id: SubscriptionId) -> bool {
        let durable = self.end(QueueId::of_refs(id));
        let subscription = self.state.subscription(id);
        subscription.is_some_and(|s| s.delivery.spilled().all().all(|(place, _)| place < durable))
    }

    /// Whether it is not known yet what damage has stranded.
    pub(super) fn is_surveying(&self) -> bool {
        !self.recalls.surveys.is_empty()
    }

    /// A run is on disk: it can be read.
    pub(super) fn run_visible(&mut self, id: SubscriptionId, placed: Placed) {
        if self.state.subscription(id).is_some() {
            self.ends.insert(placed.queue, placed.first_offset.next());
            self.schedule(id);
        }
    }

    /// A subscription is gone, and its runs with it.
    pub(super) fn forget_runs(&mut self, id: SubscriptionId) {
        self.ends.remove(&QueueId::of_refs(id));
        self.recalls.surveys.remove(&id);
    }

    pub(super) fn refs_done(&mut self, done: RefsDone, now: Now) {
        let RefsDone { subscription: id, found, .. } = done;
        self.recalls.under_way.remove(&id);
        match found {
            Found::Due(taken) => taken.into_iter().for_each(|taken| self.take_back(id, taken, now)),
            Found::Survey { stranded, lost } => self.bring_back(id, &stranded, &lost, now),
        }
        self.come_due(id, now);
    }

    fn take_back(&mut self, id: SubscriptionId, Taken { place, refs }: Taken, now: Now) {
        let Some(subscription) = self.state.subscription(id) else { return };
        match refs {
            Ok((refs, rest)) => {
                let event = spill::recalled(subscription, place, &refs, rest);
                self.enact_lazily(event.as_slice(), now);
            }
            Err(error) if subscription.delivery.spilled().get(place).is_some() => {
                tracing::error!(subscription = %id, %place, %error, "delays cannot be read; all are looked through");
                self.recalls.surveys.insert(id);
            }
            // It was used up meanwhile, and its record has gone.
            Err(_) => {}
        }
    }

    fn bring_back(&mut self, id: SubscriptionId, stranded: &[OffsetRun], lost: &[Offset], now: Now) {
        self.recalls.surveys.remove(&id);
        let Some(subscription) = self.state.subscription(id) else { return };
        let lost: Vec<Offset> = lost
            .iter()
            .copied()
            .filter(|place| subscription.delivery.spilled().get(*place).is_some())
            .collect();
        let messages: u64 = stranded.iter().map(|run| run.count).sum();
        if messages > 0 || !lost.is_empty() {
            tracing::error!(
                subscription = %id, runs = lost.len(), messages,
                "damage took the delays and attempts of messages: they are delivered again"
            );
        }
        self.recalls.delays_lost += messages;
        let events = spill::bring_back(subscription, stranded, &lost, now, REFS_MAX);
        self.enact_lazily(&events, now);
    }
}

/// The refs of the run at a place. If its segment has gone between finding and reading, it is looked for once more.
fn read_run(source: &Source, id: SubscriptionId, place: Offset) -> Result<Vec<Ref>, ReadError> {
    match find_and_read(source, id, place) {
        Err(error) if error.is_gone() => find_and_read(source, id, place),
        result => result,
    }
}

fn find_and_read(source: &Source, id: SubscriptionId, place: Offset) -> Result<Vec<Ref>, ReadError> {
    let plan = source.index.plan(QueueId::of_refs(id), &[place], u64::MAX)?;
    let location = plan.pieces[0].location;
    let refs = source.reader.read_plain(location, |head| match event_codec::decode(head) {
        Ok(Some(Event::Spilled { subscription, place: at, refs, .. }))
            if (subscription, at) == (id, place) =>
        {
            Some(refs)
        }
        _ => None,
    })?;
    let (segment, position) = (location.segment, location.position);
    refs.ok_or(ReadError::NotARun { segment, position })
}
