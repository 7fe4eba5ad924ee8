//! Calls that end deliveries or lengthen them.
//!
//! Acks, retries and releases are decided at once. What gives a message up (a rejection, a retry after the last attempt)
//! copies it to the dead-letter queue, so it needs the message's bytes first; the call is answered when all of its
//! parts are on disk.

use rustc_hash::FxHashMap;

use super::api::{BrokerError, Reply, Settlement, StoredMessage};
use super::commits::Answer;
use super::reads::Purpose;
use super::shell::Shell;
use crate::clock::{Now, wall_us};
use crate::core::dead_letter::{self, FreshUids, Letter};
use crate::core::publish::LaneRun;
use crate::core::settle::{self, AckToken, GivenUp};
use crate::core::state::{Queue, Subscription};
use crate::core::types::Settled;
use crate::core::{Event, event_codec};
use crate::ids::{Offset, SubscriptionId, Uid};
use crate::names::SubscriptionName;
use crate::record::meta::{DeadLetter, Meta};
use crate::record::{Record, StoredParts};

/// Identifies a call whose dead letters are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobId(u64);

/// Calls whose dead letters are under way.
#[derive(Default)]
pub struct Jobs {
    by_id: FxHashMap<JobId, Job>,
    last: u64,
}

struct Job {
    subscription: SubscriptionId,
    outcomes: Vec<Settled>,
    given_up: FxHashMap<usize, GivenUp>,
    reply: Reply<Vec<Settled>>,
}

impl Shell {
    pub(super) fn settle(
        &mut self,
        name: &SubscriptionName,
        settlements: Vec<Settlement>,
        now: Now,
        reply: Reply<Vec<Settled>>,
    ) {
        let subscription = match self.settleable(name) {
            Ok(subscription) => subscription,
            Err(error) => return self.commits.answer(Answer::Settle(reply, Err(error))),
        };
        let id = subscription.id;
        let mut outcomes = vec![Settled::Invalid; settlements.len()];
        let mut endings = Vec::with_capacity(settlements.len());
        let mut places = Vec::with_capacity(settlements.len());
        for (place, settlement) in settlements.into_iter().enumerate() {
            if let Some(token) = self.ack_ids.decode(id, &settlement.ack_id) {
                endings.push((token, settlement.ending));
                places.push(place);
            }
        }
        let decision = settle::settle(&self.state, subscription, self.end_of(subscription), &endings, now);
        let settle::Settlement { outcomes: decided, given_up } = decision.answer;
        for (place, settled) in places.iter().zip(decided) {
            outcomes[*place] = settled;
        }
        self.enact(&decision.events, now);
        self.schedule(id);
        self.mark(id);
        let given_up = given_up.into_iter().map(|(index, given_up)| (places[index], given_up)).collect();
        self.give_up_all(Job { subscription: id, outcomes, given_up, reply });
    }

    pub(super) fn extend(
        &mut self,
        name: &SubscriptionName,
        ack_ids: &[String],
        lease_us: u64,
        now: Now,
        reply: Reply<Vec<Settled>>,
    ) {
        let subscription = match self.settleable(name) {
            Ok(subscription) => subscription,
            Err(error) => return self.commits.answer(Answer::Settle(reply, Err(error))),
        };
        let id = subscription.id;
        let tokens: Vec<Option<AckToken>> =
            ack_ids.iter().map(|ack_id| self.ack_ids.decode(id, ack_id)).collect();
        let known: Vec<AckToken> = tokens.iter().flatten().copied().collect();
        let end = self.end_of(subscription);
        let decision = settle::extend(&self.state, subscription, end, &known, lease_us, now);
        let mut decided = decision.answer.into_iter();
        let outcome = |token: Option<AckToken>| {
            token.map_or(Settled::Invalid, |_| decided.next().expect("one outcome a token"))
        };
        let outcomes = tokens.into_iter().map(outcome).collect();
        self.enact_lazily(&decision.events, now);
        self.schedule(id);
        self.commits.answer(Answer::Settle(reply, Ok(outcomes)));
    }

    fn settleable(&self, name: &SubscriptionName) -> Result<&Subscription, BrokerError> {
        self.check_room()?;
        Ok(self.state.subscription_named(name)?)
    }

    fn end_of(&self, subscription: &Subscription) -> Offset {
        self.state.queue(subscription.queue).map_or(Offset(0), |queue| queue.next_offset)
    }

    /// Starts a call's dead letters; answers at once if there are none.
    fn give_up_all(&mut self, job: Job) {
        self.jobs.last += 1;
        let id = JobId(self.jobs.last);
        let subscription = job.subscription;
        let mut slots: Vec<(usize, Offset)> =
            job.given_up.iter().map(|(slot, given_up)| (*slot, given_up.token.offset)).collect();
        slots.sort_unstable();
        self.jobs.by_id.insert(id, job);
        for (slot, offset) in slots {
            let queue = self.state.subscription(subscription).expect("decided on just now").queue;
            let reserved = self.mean_bytes(queue);
            let purpose = Purpose::DeadLetter { job: id, slot };
            self.start_read(queue, vec![offset], u64::MAX.into(), reserved, purpose);
        }
        self.finish_job(id);
    }

    /// A message to give up was read, or could not be.
    pub(super) fn dead_letter_read(
        &mut self,
        id: JobId,
        slot: usize,
        message: Option<StoredMessage>,
        now: Now,
    ) {
        let job = self.jobs.by_id.get_mut(&id).expect("a job lives until its reads are done");
        let given_up = job.given_up.remove(&slot).expect("each slot is read once");
        let subscription = job.subscription;
        let outcome = match message {
            Some(message) => self.dead_letter(subscription, given_up, message, now),
            None => Settled::Transient { why: "the message cannot be read; see the server's log".to_owned() },
        };
        let job = self.jobs.by_id.get_mut(&id).expect("looked up above");
        job.outcomes[slot] = outcome;
        self.finish_job(id);
    }

    fn finish_job(&mut self, id: JobId) {
        if self.jobs.by_id.get(&id).is_some_and(|job| job.given_up.is_empty()) {
            let job = self.jobs.by_id.remove(&id).expect("seen above");
            self.commits.answer(Answer::Settle(job.reply, Ok(job.outcomes)));
        }
    }

    /// Moves one message to the dead-letter queue, if it is still the token's to end.
    pub(super) fn dead_letter(
        &mut self,
        id: SubscriptionId,
        given_up: GivenUp,
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
        let Some(parts) = dead_letter_parts(queue, subscription, given_up, &message) else {
            return refused(
                "the message's metadata is damaged; check the disk, and cancel the message to give it up"
                    .to_owned(),
            );
        };
        let bytes = (parts.meta.len() + parts.body.len()) as u64;
        let letter = Letter { offset: token.offset, lane: message.lane, bytes };
        let fresh = FreshUids { queue: Uid::random(), subscription: Uid::random() };
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
                    self.state.apply(event);
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
    given_up: GivenUp,
    message: &StoredMessage,
) -> Option<StoredParts> {
    let GivenUp { token, attempts, reason, error } = given_up;
    let mut meta = Meta::decode(&message.meta).ok()?;
    meta.dead_letter = Some(DeadLetter {
        reason,
        error,
        queue: queue.name.to_string(),
        queue_uid: queue.uid,
        offset: token.offset,
        subscription: subscription.full_name(queue).to_string(),
        attempts,
        time_us: wall_us(),
    });
    Some(StoredParts { meta: meta.encode(), body: message.body.clone() })
}
