//! Decisions to stop the delivery of a queue or of a subscription, and to go on.
//!
//! What was leased stays so, may be settled, and runs out as ever; what the server itself publishes (dead letters) is
//! always taken.

use super::Decision;
use super::event::Event;
use super::state::{Queue, State};
use super::types::{Pause, Reject};
use crate::clock::Now;
use crate::ids::SubscriptionId;
use crate::names::{Name, QueueName, SubscriptionName};

/// What is paused: a queue with all its subscriptions, or one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub queue: QueueName,
    pub subscription: Option<Name>,
}

impl Target {
    fn find<'a>(&self, state: &'a State) -> Result<Found<'a>, Reject> {
        let queue = state.queue_named(&self.queue)?;
        let Some(name) = &self.subscription else {
            return Ok(Found { queue, subscription: None, pause: queue.pause.as_ref() });
        };
        let name = SubscriptionName { queue: self.queue.clone(), subscription: name.clone() };
        let subscription = state.subscription_named(&name)?;
        Ok(Found { queue, subscription: Some(subscription.id), pause: subscription.pause.as_ref() })
    }
}

struct Found<'a> {
    queue: &'a Queue,
    subscription: Option<SubscriptionId>,
    pause: Option<&'a Pause>,
}

/// Stops delivery. What is paused already keeps its time, and takes the new reason and what is new about publishes.
pub fn pause(
    state: &State,
    target: &Target,
    refuses: bool,
    reason: String,
    now: Now,
) -> Result<Decision<Pause>, Reject> {
    let found = target.find(state)?;
    let (time_us, from) =
        found.pause.map_or((now.wall_us, found.queue.next_offset), |pause| (pause.time_us, pause.from));
    let pause = Pause { refuses, reason, time_us, from };
    let (queue, subscription) = (found.queue.id, found.subscription);
    let event = Event::Paused { queue, subscription, pause: pause.clone() };
    let changed = found.pause != Some(&pause);
    Ok(Decision { answer: pause, events: if changed { vec![event] } else { Vec::new() } })
}

/// Goes on with delivery. The answer is how many messages were published during the pause; what is not paused stays
/// so.
pub fn resume(state: &State, target: &Target) -> Result<Decision<u64>, Reject> {
    let found = target.find(state)?;
    let Some(pause) = found.pause else { return Ok(Decision { answer: 0, events: Vec::new() }) };
    let event = Event::Resumed { queue: found.queue.id, subscription: found.subscription };
    Ok(Decision { answer: found.queue.next_offset.0 - pause.from.0, events: vec![event] })
}
