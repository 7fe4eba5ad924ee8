//! The decision to give a message up: it moves to the subscription's dead-letter queue in one atomic commit.
//!
//! The queue is the one that the subscription names, or else `<queue>-dead` in the same namespace; it is made when
//! first needed. What is made so has no dead letters of its own, and a way from queue to queue that would lead back is
//! refused, so that nothing can circle.

use std::collections::BTreeSet;

use super::Decision;
use super::admin::first_subscription;
use super::event::{Event, PublishedRun, QueueCreated};
use super::state::{Queue, State, Subscription};
use super::types::{QueueConfig, Reject};
use crate::clock::Now;
use crate::ids::{Offset, Uid};
use crate::names::{Name, QueueName};
use crate::planted;
use crate::record::Lane;

/// Why a message cannot be given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDeadLetter {
    #[error("queue {0} holds dead letters and has none of its own; ack the message or retry it")]
    IsDeadLetterQueue(QueueName),
    #[error(
        "the dead-letter queue's name {name:?} would be longer than a name may be; ack the message or retry it"
    )]
    NameTooLong { name: String },
    #[error("the dead-letter queue {0} leads back to this queue; ack the message or retry it")]
    LeadsBack(QueueName),
}

/// The message that is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letter {
    pub offset: Offset,
    /// The copy goes into the same lane.
    pub lane: Lane,
    /// Stored bytes of the copy.
    pub bytes: u64,
}

/// Fresh uids, in case the queue must be made.
#[derive(Clone, Copy, Debug)]
pub struct FreshUids {
    pub queue: Uid,
    pub subscription: Uid,
}

/// The name of a subscription's dead-letter queue, if it may have one.
pub fn target(state: &State, queue: &Queue, subscription: &Subscription) -> Result<QueueName, NoDeadLetter> {
    let name = named_target(queue, subscription)?;
    if leads_to(state, &name, &queue.name) { Err(NoDeadLetter::LeadsBack(name)) } else { Ok(name) }
}

/// Checks the dead-letter queue that a new subscription of a queue asks for.
pub(super) fn check_target(state: &State, queue: &Queue, target: &QueueName) -> Result<(), Reject> {
    let refused = |why| {
        let (queue, target) = (queue.name.clone(), target.clone());
        Err(Reject::DeadLetterQueue { queue, target, why })
    };
    if queue.dead_letters {
        return refused("is not needed: the queue holds dead letters and has none of its own");
    }
    if leads_to(state, target, &queue.name) { refused("leads back to it") } else { Ok(()) }
}

fn named_target(queue: &Queue, subscription: &Subscription) -> Result<QueueName, NoDeadLetter> {
    if queue.dead_letters {
        return Err(NoDeadLetter::IsDeadLetterQueue(queue.name.clone()));
    }
    if let Some(name) = &subscription.config.dead_letter_queue {
        return Ok(name.clone());
    }
    let name = format!("{}-dead", queue.name.queue);
    match Name::new(&name) {
        Ok(name) => Ok(QueueName { namespace: queue.name.namespace.clone(), queue: name }),
        Err(_) => Err(NoDeadLetter::NameTooLong { name }),
    }
}

/// Whether messages that are given up again and again can come from one queue to the other.
fn leads_to(state: &State, from: &QueueName, to: &QueueName) -> bool {
    let mut seen = BTreeSet::new();
    let mut ways = vec![from.clone()];
    while let Some(name) = ways.pop() {
        if name == *to {
            return true;
        }
        let Ok(queue) = state.queue_named(&name) else { continue };
        if seen.insert(name) {
            let subscriptions = queue.subscriptions.values().filter_map(|id| state.subscription(*id));
            ways.extend(subscriptions.filter_map(|subscription| named_target(queue, subscription).ok()));
        }
    }
    false
}

/// Moves a message of a subscription to the dead-letter queue: made if needed, published, finished here.
pub fn dead_letter(
    state: &State,
    queue: &Queue,
    subscription: &Subscription,
    letter: Letter,
    fresh: FreshUids,
    now: Now,
) -> Result<Decision<()>, NoDeadLetter> {
    let name = target(state, queue, subscription)?;
    let mut events = Vec::new();
    let (to, to_offset, earliest_us) = match state.queue_named(&name) {
        Ok(dead) => (dead.id, dead.next_offset, dead.last_publish_us),
        Err(_) => {
            let to = state.next_queue_id();
            events.push(Event::QueueCreated(QueueCreated {
                queue: to,
                uid: fresh.queue,
                name,
                config: QueueConfig::default(),
                create_time_us: now.wall_us,
                dead_letters: true,
            }));
            events.push(first_subscription(state, to, fresh.subscription, now));
            (to, Offset(0), 0)
        }
    };
    let stored = Event::Published(PublishedRun {
        queue: to,
        first: to_offset,
        count: 1,
        bytes: letter.bytes,
        lane: letter.lane,
        publish_time_us: now.wall_us.max(earliest_us),
        request: None,
    });
    if !planted::bug("dead-letter-not-stored") {
        events.push(stored);
    }
    events.push(Event::DeadLettered {
        queue: subscription.queue,
        subscription: subscription.id,
        offset: letter.offset,
        to,
        to_offset,
    });
    Ok(Decision { answer: (), events })
}
