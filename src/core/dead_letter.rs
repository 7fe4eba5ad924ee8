//! The decision to give a message up: it moves to the subscription's dead-letter queue in one atomic commit.
//!
//! The queue is `<queue>-dead` in the same namespace, made when first needed. A dead-letter queue has no dead
//! letters of its own, so that nothing can circle.

use super::Decision;
use super::admin::first_subscription;
use super::event::{Event, PublishedRun, QueueCreated};
use super::state::{Queue, State, Subscription};
use super::types::QueueConfig;
use crate::clock::Now;
use crate::ids::{Offset, Uid};
use crate::names::{Name, QueueName};
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

/// The name of a queue's dead-letter queue, if it may have one.
pub fn queue_name(queue: &Queue) -> Result<QueueName, NoDeadLetter> {
    if queue.dead_letters {
        return Err(NoDeadLetter::IsDeadLetterQueue(queue.name.clone()));
    }
    let name = format!("{}-dead", queue.name.queue);
    match Name::new(&name) {
        Ok(name) => Ok(QueueName { namespace: queue.name.namespace.clone(), queue: name }),
        Err(_) => Err(NoDeadLetter::NameTooLong { name }),
    }
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
    let name = queue_name(queue)?;
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
    events.push(Event::Published(PublishedRun {
        queue: to,
        first: to_offset,
        count: 1,
        bytes: letter.bytes,
        lane: letter.lane,
        publish_time_us: now.wall_us.max(earliest_us),
        request: None,
    }));
    events.push(Event::DeadLettered {
        queue: subscription.queue,
        subscription: subscription.id,
        offset: letter.offset,
        to,
        to_offset,
    });
    Ok(Decision { answer: (), events })
}
