//! Events that do not fit the state. Replaying a whole log meets none; behind damage, what came before is missing.
//!
//! [`State::admits`] tells whether an event can be applied. [`State::mend`] makes the state one that admits it where
//! that is safe: what is known to have existed is taken to be there.
//! - A gap in a queue's offsets: its messages were published and are lost.
//! - A queue that was never seen to be made: it is called `recovered-<id>`, in the namespace `default`, with as many
//!   `~` behind it as it takes if others have that name.
//! - A name that is given again: its former owner was deleted.
//! - A gap in ids, in a producer's sequences or in the places of runs of refs: they are used up.
//!
//! Anything else is to be skipped. A lost ack or lease means that messages are delivered again; nothing is finished
//! that was not. Messages that were handed out may be left without any trace of it: see [`super::spill`].

use super::event::{Event, PublishedRun, QueueCreated, SubscriptionCreated};
use super::runs::{OffsetRun, offsets_of};
use super::spilled::Ref;
use super::state::State;
use super::types::{ProducerStamp, QueueConfig};
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::names::QueueName;

/// Why an event cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error("queue {0} does not exist")]
    NoQueue(QueueId),
    #[error("subscription {subscription} of queue {queue} does not exist")]
    NoSubscription { queue: QueueId, subscription: SubscriptionId },
    #[error("queue {got} is made, but {expected} must come next")]
    QueueIds { got: QueueId, expected: QueueId },
    #[error("subscription {got} is made, but {expected} must come next")]
    SubscriptionIds { got: SubscriptionId, expected: SubscriptionId },
    #[error("queue {0} has the name already")]
    QueueNameTaken(QueueId),
    #[error("subscription {subscription} of queue {queue} has the name already")]
    SubscriptionNameTaken { queue: QueueId, subscription: SubscriptionId },
    #[error("queue {queue} ends at offset {next}, but offsets up to {end} are spoken of")]
    BehindTheEnd { queue: QueueId, next: Offset, end: Offset },
    #[error("offset {first} of queue {queue} is published again; {next} must come next")]
    PublishedAgain { queue: QueueId, first: Offset, next: Offset },
    #[error("producer {:?} of queue {queue} does not go on with sequence {}", stamp.id, stamp.sequence)]
    Sequence { queue: QueueId, stamp: ProducerStamp },
    #[error("run {got} of the refs of subscription {subscription} is written, but {expected} must come next")]
    RunPlaces { subscription: SubscriptionId, got: Offset, expected: Offset },
    #[error("message {offset} of subscription {subscription} is leased, but it is finished")]
    FinishedLeased { subscription: SubscriptionId, offset: Offset },
}

/// Messages that were published and are not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostMessages {
    pub queue: QueueId,
    pub first: Offset,
    /// Behind the last.
    pub end: Offset,
}

impl State {
    /// Whether [`State::apply`] can take the event.
    pub fn admits(&self, event: &Event) -> Result<(), Misfit> {
        match event {
            Event::QueueCreated(created) => self.admits_queue(created),
            Event::QueueDeleted { queue } => self.queue(*queue).map(drop).ok_or(Misfit::NoQueue(*queue)),
            Event::SubscriptionCreated(created) => self.admits_subscription(created),
            Event::SubscriptionDeleted { queue, subscription } => {
                self.admits_runs(*queue, *subscription, &[])
            }
            Event::Published(run) => self.admits_publish(run),
            Event::Leased { queue, subscription, runs, .. } => {
                self.admits_runs(*queue, *subscription, runs)?;
                let delivery = &self.subscription(*subscription).expect("checked above").delivery;
                let finished = offsets_of(runs).find(|offset| delivery.is_finished(*offset));
                let subscription = *subscription;
                finished.map_or(Ok(()), |offset| Err(Misfit::FinishedLeased { subscription, offset }))
            }
            Event::LeaseExtended { queue, subscription, runs, .. }
            | Event::Acked { queue, subscription, runs }
            | Event::Requeued { queue, subscription, runs, .. } => {
                self.admits_runs(*queue, *subscription, runs)
            }
            Event::DeadLettered { queue, subscription, offset, .. } => {
                self.admits_runs(*queue, *subscription, &[OffsetRun { first: *offset, count: 1 }])
            }
            Event::Purged { queue, end } => {
                self.queue(*queue).ok_or(Misfit::NoQueue(*queue))?;
                self.reaches(*queue, *end)
            }
            Event::Cancelled { queue, offset } => {
                self.queue(*queue).ok_or(Misfit::NoQueue(*queue))?;
                self.reaches(*queue, Offset(offset.0.saturating_add(1)))
            }
            Event::Spilled { queue, subscription, place, refs } => {
                self.admits_refs(*queue, *subscription, refs)?;
                let (subscription, got) = (*subscription, *place);
                let delivery = &self.subscription(subscription).expect("checked above").delivery;
                let expected = delivery.spilled().next();
                let places = Misfit::RunPlaces { subscription, got, expected };
                if got == expected { Ok(()) } else { Err(places) }
            }
            Event::Recalled { queue, subscription, refs, .. } => {
                self.admits_refs(*queue, *subscription, refs)
            }
            Event::QueueUpdated { queue, .. }
            | Event::OffsetsSkipped { queue, .. }
            | Event::Resumed { queue, subscription: None } => {
                self.queue(*queue).map(drop).ok_or(Misfit::NoQueue(*queue))
            }
            Event::SubscriptionUpdated { queue, subscription, .. }
            | Event::Resumed { queue, subscription: Some(subscription) } => {
                self.admits_runs(*queue, *subscription, &[])
            }
            Event::Paused { queue, subscription, pause } => {
                self.queue(*queue).ok_or(Misfit::NoQueue(*queue))?;
                self.reaches(*queue, pause.from)?;
                subscription.map_or(Ok(()), |id| self.admits_runs(*queue, id, &[]))
            }
            Event::Started { .. } => Ok(()),
        }
    }

    fn admits_queue(&self, created: &QueueCreated) -> Result<(), Misfit> {
        let expected = self.next_queue_id();
        if created.queue != expected {
            return Err(Misfit::QueueIds { got: created.queue, expected });
        }
        match self.queue_named(&created.name) {
            Ok(owner) => Err(Misfit::QueueNameTaken(owner.id)),
            Err(_) => Ok(()),
        }
    }

    fn admits_subscription(&self, created: &SubscriptionCreated) -> Result<(), Misfit> {
        let queue = self.queue(created.queue).ok_or(Misfit::NoQueue(created.queue))?;
        let expected = self.next_subscription_id();
        if created.subscription != expected {
            return Err(Misfit::SubscriptionIds { got: created.subscription, expected });
        }
        if let Some(owner) = queue.subscriptions.get(&created.name) {
            return Err(Misfit::SubscriptionNameTaken { queue: queue.id, subscription: *owner });
        }
        self.reaches(created.queue, created.start)
    }

    fn admits_publish(&self, run: &PublishedRun) -> Result<(), Misfit> {
        let queue = self.queue(run.queue).ok_or(Misfit::NoQueue(run.queue))?;
        if run.first < queue.next_offset {
            let (first, next) = (run.first, queue.next_offset);
            return Err(Misfit::PublishedAgain { queue: queue.id, first, next });
        }
        self.reaches(run.queue, run.first)?;
        match &run.request {
            Some(request) if !queue.producers.goes_on_with(&request.stamp) => {
                Err(Misfit::Sequence { queue: queue.id, stamp: request.stamp.clone() })
            }
            _ => Ok(()),
        }
    }

    fn admits_runs(
        &self,
        queue: QueueId,
        subscription: SubscriptionId,
        runs: &[OffsetRun],
    ) -> Result<(), Misfit> {
        self.queue(queue).ok_or(Misfit::NoQueue(queue))?;
        let there = self.subscription(subscription).is_some_and(|owner| owner.queue == queue);
        if !there {
            return Err(Misfit::NoSubscription { queue, subscription });
        }
        let end = runs.iter().map(|run| run.first.0.saturating_add(run.count)).max().unwrap_or(0);
        self.reaches(queue, Offset(end))
    }

    fn admits_refs(&self, queue: QueueId, subscription: SubscriptionId, refs: &[Ref]) -> Result<(), Misfit> {
        let last = refs.iter().map(|entry| entry.offset).max();
        let runs = last.map(|offset| OffsetRun { first: offset, count: 1 });
        self.admits_runs(queue, subscription, runs.as_slice())
    }

    /// Whether a queue, which exists, has all messages before `end`.
    fn reaches(&self, queue: QueueId, end: Offset) -> Result<(), Misfit> {
        let next = self.queue(queue).expect("the caller has looked").next_offset;
        if end > next { Err(Misfit::BehindTheEnd { queue, next, end }) } else { Ok(()) }
    }

    /// Makes the state admit an event that follows damage; what is then known to be lost.
    ///
    /// # Errors
    /// The event must be skipped. What was mended until then stays so.
    pub fn mend(&mut self, event: &Event) -> Result<Vec<LostMessages>, Misfit> {
        let mut lost = Vec::new();
        while let Err(misfit) = self.admits(event) {
            lost.extend(self.mend_one(event, misfit)?);
        }
        Ok(lost)
    }

    fn mend_one(&mut self, event: &Event, misfit: Misfit) -> Result<Option<LostMessages>, Misfit> {
        match misfit {
            Misfit::NoQueue(queue) if !matches!(event, Event::QueueDeleted { .. }) => {
                self.make_again(queue)?;
            }
            Misfit::QueueIds { got, expected } if got > expected => self.use_up_queue_ids(got),
            Misfit::SubscriptionIds { got, expected } if got > expected => self.use_up_subscription_ids(got),
            Misfit::RunPlaces { subscription, got, expected } if got > expected => {
                self.use_up_runs(subscription, got);
            }
            Misfit::QueueNameTaken(queue) => self.apply(&Event::QueueDeleted { queue }),
            Misfit::SubscriptionNameTaken { queue, subscription } => {
                self.apply(&Event::SubscriptionDeleted { queue, subscription });
            }
            Misfit::BehindTheEnd { queue, next, end } => {
                self.lose_messages(queue, end);
                return Ok(Some(LostMessages { queue, first: next, end }));
            }
            Misfit::Sequence { queue, stamp } if stamp.sequence > 0 => self.go_on_at(queue, &stamp),
            unsafe_to_mend => return Err(unsafe_to_mend),
        }
        Ok(None)
    }

    /// Makes a queue of which only the id is known.
    pub(super) fn make_again(&mut self, queue: QueueId) -> Result<(), Misfit> {
        // One of them is free: there are more than queues.
        let mut names = (0..=self.queue_count()).map(|taken| recovered(queue, taken));
        let made = queue != QueueId(0) && names.any(|made| self.recover_queue(made));
        if made { Ok(()) } else { Err(Misfit::NoQueue(queue)) }
    }
}

/// What is known of a queue whose creation is lost, when the first names for it are taken. Its uid is made of its id,
/// so that it stays the same.
fn recovered(queue: QueueId, taken: usize) -> QueueCreated {
    let more = "~".repeat(taken);
    let name = QueueName::parse(&format!("namespaces/default/queues/recovered-{queue}{more}"));
    QueueCreated {
        queue,
        uid: recovered_uid(queue.0),
        name: name.expect("the name of a recovered queue is a name"),
        config: QueueConfig::default(),
        create_time_us: 0,
        dead_letters: false,
    }
}

/// The uid of what was made again with this id.
pub(super) fn recovered_uid(id: u64) -> Uid {
    let mut uid = *b"recovered\0\0\0\0\0\0\0";
    uid[9..].copy_from_slice(&id.to_be_bytes()[1..]);
    Uid(uid)
}
