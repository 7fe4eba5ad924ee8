//! Decisions to hand messages out, and to take them back when time is over.

use std::cell::LazyCell;
use std::collections::BTreeMap;

use super::delivery::LeaseId;
use super::event::Event;
use super::retry::GIVING_UP_US;
use super::runs::runs_of;
use super::settle::{AckToken, GivenUp};
use super::state::{State, Subscription};
use super::{Decision, dead_letter};
use crate::clock::Now;
use crate::ids::Offset;
use crate::record::meta::DeadLetterReason;

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

/// Sets outstanding messages aside until `due_us`; their attempt counts if `counted` says so.
pub fn set_aside(subscription: &Subscription, offsets: &[Offset], due_us: u64, counted: bool) -> Vec<Event> {
    let held = offsets.iter().copied().filter(|offset| subscription.delivery.outstanding(*offset).is_some());
    requeue(subscription, held, due_us, counted)
}

/// Takes back what `expired` leases and ended delays hold. The answer is what had its last attempt: it is set aside
/// until it has moved to the dead-letter queue, which needs its bytes. In order of offset.
pub fn come_due(
    state: &State,
    subscription: &Subscription,
    expired: Vec<Offset>,
    now: Now,
) -> Decision<Vec<GivenUp>> {
    let due = subscription.delivery.due(now.log_us);
    let gives_up = LazyCell::new(|| gives_up(state, subscription));
    let mut given_up = Vec::new();
    let mut groups: BTreeMap<u64, Vec<Offset>> = BTreeMap::new();
    let ended = expired.into_iter().map(|offset| (offset, true));
    for (offset, is_lease) in ended.chain(due.into_iter().map(|offset| (offset, false))) {
        let Some(message) = subscription.delivery.outstanding(offset) else { continue };
        let due_us = if subscription.is_exhausted(message) && *gives_up {
            let token = AckToken { offset, lease: message.lease };
            let (reason, error) = (DeadLetterReason::AttemptsExhausted, String::new());
            given_up.push(GivenUp { token, attempts: message.attempts, reason, error });
            now.log_us + GIVING_UP_US
        } else if is_lease {
            due_in(subscription.backoff_us(offset, message.attempts), now)
        } else {
            0
        };
        groups.entry(due_us).or_default().push(offset);
    }
    given_up.sort_unstable_by_key(|given_up| given_up.token.offset);
    let requeued = |(due_us, offsets)| requeue(subscription, offsets, due_us, true);
    Decision { answer: given_up, events: groups.into_iter().flat_map(requeued).collect() }
}

/// Whether messages of the subscription are given up after their last attempt: they need somewhere to go.
pub(super) fn gives_up(state: &State, subscription: &Subscription) -> bool {
    let queue = state.queue(subscription.queue).expect("a subscription has a queue");
    dead_letter::target(state, queue, subscription).is_ok()
}

/// When a delay ends, as events say it: 0 for at once.
pub(super) fn due_in(delay_us: u64, now: Now) -> u64 {
    if delay_us == 0 { 0 } else { now.log_us + delay_us }
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
