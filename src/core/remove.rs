//! Decisions to take messages away that nobody has finished: all up to a barrier, or a single one.

use super::Decision;
use super::delivery::Phase;
use super::event::Event;
use super::state::State;
use super::types::Reject;
use crate::ids::{Offset, Uid};
use crate::names::QueueName;

/// Finishes every message below `end`, by default all that are there, for all subscriptions of a queue; leases of them
/// become void. The answer is the barrier: no message below it is delivered any more.
pub fn purge(state: &State, name: &QueueName, end: Option<Offset>) -> Result<Decision<Offset>, Reject> {
    let queue = state.queue_named(name)?;
    let next = queue.next_offset;
    let end = end.unwrap_or(next);
    if end > next {
        return Err(Reject::OffsetOutOfRange { queue: name.clone(), offset: end, next });
    }
    if end <= queue.first_offset {
        return Ok(Decision { answer: queue.first_offset, events: Vec::new() });
    }
    Ok(Decision { answer: end, events: vec![Event::Purged { queue: queue.id, end }] })
}

/// Finishes a message that waits, at once or for a delay, for all subscriptions of its queue.
pub fn cancel(state: &State, name: &QueueName, uid: Uid, offset: Offset) -> Result<Decision<()>, Reject> {
    let queue = state.queue_named(name)?;
    let not_found = || Reject::MessageNotFound { queue: name.clone(), offset };
    if uid != queue.uid || offset >= queue.next_offset {
        return Err(not_found());
    }
    let mut waits = false;
    for subscription in queue.subscriptions.values().filter_map(|id| state.subscription(*id)) {
        let message = subscription.delivery.outstanding(offset);
        if message.is_some_and(|message| matches!(message.phase, Phase::Leased { .. })) {
            let subscription = subscription.full_name(queue);
            return Err(Reject::MessageLeased { offset, subscription });
        }
        waits |= !subscription.delivery.is_finished(offset);
    }
    if !waits {
        return Err(not_found());
    }
    Ok(Decision { answer: (), events: vec![Event::Cancelled { queue: queue.id, offset }] })
}
