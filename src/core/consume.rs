//! Decisions to hand messages out, and to take them back when time is over.

use super::Decision;
use super::delivery::LeaseId;
use super::event::Event;
use super::runs::runs_of;
use super::state::{State, Subscription};
use crate::clock::Now;
use crate::ids::Offset;

/// One message handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handed {
    pub offset: Offset,
    pub lease: LeaseId,
    /// Deliveries so far, this one included.
    pub attempt: u32,
}

/// Chooses up to `max` waiting messages below `end`, as far as the subscription's in-flight limit allows.
pub fn candidates(subscription: &Subscription, max: usize, end: Offset) -> Vec<Offset> {
    let delivery = &subscription.delivery;
    let room = subscription.config.in_flight_max.saturating_sub(delivery.leased());
    delivery.choose(max.min(usize::try_from(room).unwrap_or(usize::MAX)), end)
}

/// Leases messages that [`candidates`] chose.
///
/// # Panics
/// If `chosen` is empty.
pub fn lease(
    state: &State,
    subscription: &Subscription,
    chosen: &[Offset],
    lease_us: u64,
    now: Now,
) -> Decision<Vec<Handed>> {
    assert!(!chosen.is_empty(), "a lease is of something");
    let delivery = &subscription.delivery;
    let first = LeaseId { incarnation: state.incarnation(), number: state.last_lease() + 1 };
    let handed = |(index, offset): (usize, &Offset)| Handed {
        offset: *offset,
        lease: LeaseId { number: first.number + index as u64, ..first },
        attempt: delivery.outstanding(*offset).map_or(0, |o| o.attempts) + 1,
    };
    let answer = chosen.iter().enumerate().map(handed).collect();
    let event = Event::Leased {
        queue: subscription.queue,
        subscription: subscription.id,
        runs: runs_of(chosen.iter().copied()),
        first,
        deadline_us: now.log_us + lease_us,
    };
    Decision { answer, events: vec![event] }
}

/// Gives back messages whose lease nobody used (the bodies did not fit, or the consumer was gone).
pub fn give_back(subscription: &Subscription, unused: &[Handed]) -> Vec<Event> {
    let still = unused.iter().filter(|handed| {
        subscription.delivery.outstanding(handed.offset).is_some_and(|o| o.lease == handed.lease)
    });
    requeue(subscription, still.map(|handed| handed.offset), 0, false)
}

/// Sets outstanding messages aside until `due_us`; their attempt does not count.
pub fn set_aside(subscription: &Subscription, offsets: &[Offset], due_us: u64) -> Vec<Event> {
    let held = offsets.iter().copied().filter(|offset| subscription.delivery.outstanding(*offset).is_some());
    requeue(subscription, held, due_us, false)
}

/// Takes back what `expired` leases and ended delays hold.
pub fn come_due(subscription: &Subscription, expired: Vec<Offset>, now: Now) -> Vec<Event> {
    let due = subscription.delivery.due(now.log_us);
    requeue(subscription, expired.into_iter().chain(due), 0, true)
}

/// Puts messages back to waiting until `due_us` (0 = now).
pub(super) fn requeue(
    subscription: &Subscription,
    offsets: impl IntoIterator<Item = Offset>,
    due_us: u64,
    counted: bool,
) -> Vec<Event> {
    let runs = runs_of(offsets);
    if runs.is_empty() {
        return Vec::new();
    }
    let (queue, subscription) = (subscription.queue, subscription.id);
    vec![Event::Requeued { queue, subscription, runs, due_us, counted }]
}
