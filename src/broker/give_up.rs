//! Messages that are given up, rejected or after their last attempt, on their way to the dead-letter queue.
//!
//! A message moves as a copy, so its bytes must be read, and are in memory until their record is on disk. How many
//! bytes that may be is bounded ([`super::own`]); the rest waits in line, without its bytes.
//!
//! 1. The messages of a subscription move in the order in which they were given up, one read of a few at a time.
//!    Subscriptions take turns.
//! 2. A call is answered when all of its messages are on disk, or cannot move.
//! 3. Messages that wait are as many as the calls that wait have paid for with the memory of their requests, about as
//!    many whose callers have left, and a few for each subscription that had their last attempt: these come due again
//!    by themselves, as often as it takes.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::api::{Reply, StoredMessage};
use super::commits::Answer;
use super::own::{READ_BYTES_MAX, Turn};
use super::pump::DAMAGED_RETRY_US;
use super::reads::{Found, Purpose};
use super::shell::Shell;
use crate::admission::Permit;
use crate::clock::Now;
use crate::core::dead_letter::{self, FreshUids, Letter};
use crate::core::publish::LaneRun;
use crate::core::settle::{self, AckToken, GivenUp};
use crate::core::state::{Queue, Subscription};
use crate::core::types::Settled;
use crate::core::{Event, consume, event_codec};
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::log::ReadRoom;
use crate::record::meta::{DeadLetter, Meta};
use crate::record::{Record, StoredParts};

/// Bytes of messages that one read is meant to bring; their mean size tells how many that are.
const BYTES_PER_READ: u64 = 1 << 20;
/// What a dead letter takes at most besides its message: names of the queue and the subscription, the consumer's error,
/// the head of the record.
const LETTER_BYTES: u64 = 3 << 10;
/// Messages in line from which on those are looked for whose callers have left.
const ABANDONED_MAX: usize = 10_000;

/// Identifies a call some of whose messages are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct JobId(u64);

/// A call some of whose messages are given up.
struct Job {
    outcomes: Vec<Settled>,
    /// Messages that it waits for.
    left: usize,
    reply: Reply<Vec<Settled>>,
}

/// A message in line, and the place among the outcomes of the call that waits for it. Nobody waits for one that had
/// its last attempt.
struct Waiting {
    given_up: GivenUp,
    waited_for: Option<(JobId, usize)>,
}

impl Waiting {
    fn token(&self) -> AckToken {
        self.given_up.token
    }
}

/// The messages of a subscription; there as long as it has a turn to come or a read under way.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    /// How many of them are being read: the first ones.
    reading: usize,
    /// How many of them had their last attempt.
    exhausted: usize,
    /// Bytes of the first one, if it was found to be larger than was thought.
    first_bytes: Option<u64>,
}

/// See the module's header.
pub struct GivingUp {
    lines: FxHashMap<SubscriptionId, Line>,
    jobs: FxHashMap<JobId, Job>,
    last_job: u64,
    /// In all lines.
    waiting: usize,
    look_at: usize,
}

impl Default for GivingUp {
    fn default() -> Self {
        let (lines, jobs) = Default::default();
        Self { lines, jobs, last_job: 0, waiting: 0, look_at: ABANDONED_MAX }
    }
}

impl GivingUp {
    fn add_job(&mut self, job: Job) -> JobId {
        self.last_job += 1;
        let id = JobId(self.last_job);
        self.jobs.insert(id, job);
        id
    }

    /// Puts messages in line; whether the subscription had none there.
    fn push(&mut self, id: SubscriptionId, waiting: impl ExactSizeIterator<Item = Waiting>) -> bool {
        self.waiting += waiting.len();
        let is_new = !self.lines.contains_key(&id);
        let line = self.lines.entry(id).or_default();
        for waiting in waiting {
            line.exhausted += usize::from(waiting.waited_for.is_none());
            line.waiting.push_back(waiting);
        }
        is_new
    }

    fn first(&self, id: SubscriptionId) -> Option<&Waiting> {
        self.lines.get(&id)?.waiting.front()
    }

    fn pop(&mut self, id: SubscriptionId) -> Option<Waiting> {
        let line = self.lines.get_mut(&id)?;
        let waiting = line.waiting.pop_front()?;
        line.first_bytes = None;
        line.exhausted -= usize::from(waiting.waited_for.is_none());
        self.waiting -= 1;
        Some(waiting)
    }

    /// Forgets calls whose callers have left, with their messages that are not being read: the memory of their
    /// requests was given back.
    fn forget_abandoned(&mut self) {
        if self.waiting < self.look_at {
            return;
        }
        self.jobs.retain(|_, job| !job.reply.is_closed());
        let jobs = &self.jobs;
        for line in self.lines.values_mut() {
            let mut reading = line.reading;
            line.waiting.retain(|waiting| {
                let is_read = reading > 0;
                reading = reading.saturating_sub(1);
                is_read || waiting.waited_for.is_none_or(|(job, _)| jobs.contains_key(&job))
            });
        }
        self.waiting = self.lines.values().map(|line| line.waiting.len()).sum();
        self.look_at = (2 * self.waiting).max(ABANDONED_MAX);
    }
}

impl Shell {
    /// Gives up messages of a call, which are known by the places of their outcomes, and answers it.
    pub(super) fn give_up(
        &mut self,
        id: SubscriptionId,
        outcomes: Vec<Settled>,
        given_up: Vec<(usize, GivenUp)>,
        reply: Reply<Vec<Settled>>,
    ) {
        if given_up.is_empty() {
            return self.commits.answer(Answer::Settle(reply, Ok(outcomes)));
        }
        self.giving_up.forget_abandoned();
        let job = self.giving_up.add_job(Job { outcomes, left: given_up.len(), reply });
        let waiting = given_up
            .into_iter()
            .map(|(place, given_up)| Waiting { given_up, waited_for: Some((job, place)) });
        if self.giving_up.push(id, waiting) {
            self.own_reads.line_up(Turn::GiveUp(id));
        }
    }

    /// Gives up messages that had their last attempt, as many as may be read at one time; the others come due again.
    pub(super) fn give_up_exhausted(&mut self, id: SubscriptionId, given_up: Vec<GivenUp>) {
        let Some(subscription) = self.state.subscription(id) else { return };
        let under_way = self.giving_up.lines.get(&id).is_some_and(|line| line.exhausted > 0);
        if given_up.is_empty() || under_way {
            return;
        }
        let each = self.mean_bytes(subscription.queue) + LETTER_BYTES;
        let most = usize::try_from(READ_BYTES_MAX / each).unwrap_or(usize::MAX).max(1);
        let these: Vec<GivenUp> = given_up.into_iter().take(most).collect();
        let waiting = these.into_iter().map(|given_up| Waiting { given_up, waited_for: None });
        if self.giving_up.push(id, waiting) {
            self.own_reads.line_up(Turn::GiveUp(id));
        }
    }

    /// Begins to read the first of the messages that a subscription gives up; false if there is no memory for them.
    pub(super) fn read_given_up(&mut self, id: SubscriptionId, now: Now) -> bool {
        self.pass_over(id, now);
        let Some((queue, offsets, bytes)) = self.next_given_up(id) else {
            self.giving_up.lines.remove(&id);
            return true;
        };
        let Some(memory) = self.own_reads.try_take(bytes + offsets.len() as u64 * LETTER_BYTES) else {
            return false;
        };
        self.giving_up.lines.get_mut(&id).expect("something waits in it").reading = offsets.len();
        let room = ReadRoom { bytes_max: bytes, first_max: bytes };
        self.start_read(queue, offsets, room, Purpose::GiveUp { subscription: id, memory });
        true
    }

    /// Ends the wait of messages at the head of the line that need not be read any more, or cannot be written.
    fn pass_over(&mut self, id: SubscriptionId, now: Now) {
        while let Some(first) = self.giving_up.first(id) {
            let outcome = match self.check_room_to_grow() {
                _ if !self.is_to_move(id, first.token()) => Settled::Stale,
                Err(error) => Settled::Transient { why: error.to_string() },
                Ok(()) => return,
            };
            let waiting = self.giving_up.pop(id).expect("seen above");
            self.end_wait(id, waiting, outcome, now);
        }
    }

    fn is_to_move(&self, id: SubscriptionId, token: AckToken) -> bool {
        self.state.subscription(id).is_some_and(|subscription| {
            settle::is_held(&self.state, subscription, self.end_of(subscription), token)
        })
    }

    /// The queue and offsets of the messages to read next, and bytes for them: as many as come in order of offset and
    /// are likely to fit one read.
    fn next_given_up(&self, id: SubscriptionId) -> Option<(QueueId, Vec<Offset>, u64)> {
        let line = self.giving_up.lines.get(&id)?;
        let mut waiting = line.waiting.iter().map(|waiting| waiting.token().offset);
        let queue = self.state.subscription(id)?.queue;
        let mut offsets = vec![waiting.next()?];
        if let Some(bytes) = line.first_bytes {
            return Some((queue, offsets, bytes));
        }
        let mean = self.mean_bytes(queue);
        let count = (BYTES_PER_READ / (mean + LETTER_BYTES)).max(1);
        for offset in waiting.take(count as usize - 1) {
            if offsets.last().is_some_and(|last| *last >= offset) {
                break;
            }
            offsets.push(offset);
        }
        let bytes = mean * offsets.len() as u64;
        Some((queue, offsets, bytes))
    }

    /// Messages that were given up were read, as far as there was room: they move, unless something else became of
    /// them meanwhile. What is missing counts as damaged.
    pub(super) fn given_up_read(&mut self, id: SubscriptionId, found: Found, mut memory: Permit, now: Now) {
        let Found { messages, damaged, too_large, .. } = found;
        let line = self.giving_up.lines.get_mut(&id).expect("a line lives until its read is done");
        let asked_for = std::mem::take(&mut line.reading);
        let mut messages: FxHashMap<Offset, StoredMessage> =
            messages.into_iter().map(|message| (message.offset, message)).collect();
        let mut taken = 0;
        for done in 0..asked_for {
            let offset = self.giving_up.first(id).expect("what is read waits").token().offset;
            let message = messages.remove(&offset);
            // Of the first it is always known what has become of it.
            let left_out = message.is_none() && (done > 0 || too_large.is_some());
            if left_out && !damaged.contains(&offset) {
                break;
            }
            let waiting = self.giving_up.pop(id).expect("seen above");
            let outcome = match message {
                Some(message) => {
                    taken += message.len() + LETTER_BYTES;
                    self.dead_letter(id, &waiting.given_up, message, now)
                }
                // It was finished meanwhile, and its space may be gone.
                None if !self.is_to_move(id, waiting.token()) => Settled::Stale,
                None => {
                    let why = "the message cannot be read; see the server's log".to_owned();
                    Settled::Transient { why }
                }
            };
            self.end_wait(id, waiting, outcome, now);
        }
        memory.shrink_to(taken);
        self.commits.hold(memory);
        self.go_on_giving_up(id, too_large);
        self.schedule(id);
    }

    fn go_on_giving_up(&mut self, id: SubscriptionId, too_large: Option<u64>) {
        let line = self.giving_up.lines.get_mut(&id).expect("only this removes it");
        line.first_bytes = too_large;
        if line.waiting.is_empty() {
            self.giving_up.lines.remove(&id);
        } else if too_large.is_some() {
            self.own_reads.line_up_first(Turn::GiveUp(id));
        } else {
            self.own_reads.line_up(Turn::GiveUp(id));
        }
    }

    fn end_wait(&mut self, id: SubscriptionId, waiting: Waiting, outcome: Settled, now: Now) {
        let Some((job_id, place)) = waiting.waited_for else {
            if let Settled::Refused { why } | Settled::Transient { why } = outcome {
                let offset = waiting.token().offset;
                let subscription = self.full_name(id);
                tracing::warn!(
                    subscription,
                    %offset,
                    why,
                    retry_s = DAMAGED_RETRY_US / 1_000_000,
                    "a message cannot be given up; it is tried again by itself"
                );
                self.put_off(id, offset, now);
            }
            return;
        };
        // Those of a caller that has left may be forgotten.
        let Some(job) = self.giving_up.jobs.get_mut(&job_id) else { return };
        job.outcomes[place] = outcome;
        job.left -= 1;
        if job.left == 0 {
            let job = self.giving_up.jobs.remove(&job_id).expect("seen above");
            self.commits.answer(Answer::Settle(job.reply, Ok(job.outcomes)));
        }
    }

    /// How operators know a subscription.
    fn full_name(&self, id: SubscriptionId) -> String {
        let subscription = self.state.subscription(id);
        let queue = subscription.and_then(|subscription| self.state.queue(subscription.queue));
        match (subscription, queue) {
            (Some(subscription), Some(queue)) => subscription.full_name(queue).to_string(),
            _ => format!("{id}, deleted meanwhile"),
        }
    }

    /// Tries again later to give a message up, if it is still there.
    fn put_off(&mut self, id: SubscriptionId, offset: Offset, now: Now) {
        let Some(subscription) = self.state.subscription(id) else { return };
        let events = consume::set_aside(subscription, &[offset], now.log_us + DAMAGED_RETRY_US, true);
        self.enact_lazily(&events, now);
        self.schedule(id);
    }

    /// Moves one message to the dead-letter queue, if it is still the token's to end.
    fn dead_letter(
        &mut self,
        id: SubscriptionId,
        given_up: &GivenUp,
        message: StoredMessage,
        now: Now,
    ) -> Settled {
        let Some(subscription) = self.state.subscription(id) else { return Settled::Stale };
        let queue = self.state.queue(subscription.queue).expect("a subscription has a queue");
        let token = given_up.token;
        if !settle::is_held(&self.state, subscription, queue.next_offset, token) {
            return Settled::Stale;
        }
        let refused = |why: String| Settled::Refused { why };
        let Some(parts) = dead_letter_parts(queue, subscription, given_up, &message, now) else {
            return refused(
                "the message's metadata is damaged; check the disk, and cancel the message to give it up"
                    .to_owned(),
            );
        };
        let bytes = (parts.meta.len() + parts.body.len()) as u64;
        let letter = Letter { offset: token.offset, lane: message.lane, bytes };
        let fresh = FreshUids { queue: Uid(self.host.random()), subscription: Uid(self.host.random()) };
        let run = LaneRun { lane: letter.lane, count: 1, bytes };
        if let Err(error) = self.check_size(&[run]) {
            return refused(error.to_string());
        }
        let decision = dead_letter::dead_letter(&self.state, queue, subscription, letter, fresh, now);
        match decision {
            Err(error) => refused(error.to_string()),
            Ok(decision) => {
                self.enact_with(&decision.events, parts, now);
                Settled::Ok
            }
        }
    }

    /// Enacts events one of which publishes `parts`, in one commit.
    fn enact_with(&mut self, events: &[Event], parts: StoredParts, now: Now) {
        let mut parts = Some(parts);
        let records: Vec<Record> = events
            .iter()
            .map(|event| match event {
                Event::Published(run) => self.store(run, parts.take().into_iter().collect()),
                event => {
                    self.apply(event);
                    event_codec::encode(event)
                }
            })
            .collect();
        self.commits.add(records, &self.log, now.log_us);
    }
}

/// The message as it is stored in the dead-letter queue; none if its metadata does not decode.
fn dead_letter_parts(
    queue: &Queue,
    subscription: &Subscription,
    given_up: &GivenUp,
    message: &StoredMessage,
    now: Now,
) -> Option<StoredParts> {
    let mut meta = Meta::decode(&message.meta).ok()?;
    meta.dead_letter = Some(DeadLetter {
        reason: given_up.reason,
        error: given_up.error.clone(),
        queue: queue.name.to_string(),
        queue_uid: queue.uid,
        offset: given_up.token.offset,
        subscription: subscription.full_name(queue).to_string(),
        attempts: given_up.attempts,
        time_us: now.wall_us,
    });
    Some(StoredParts { meta: meta.encode(), body: message.body.clone() })
}

#[cfg(test)]
mod tests;
