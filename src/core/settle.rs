//! Decisions to end deliveries, and to lengthen them.
//!
//! What an acknowledgement id is worth:
//! - its lease is the message's last one, running or over: it counts, since the message was not handed out again;
//! - the message was handed out again since: stale;
//! - the message is finished: an ack of it is no error, anything else is stale;
//! - no lease of the message is known (the record was lost in a crash, since leases are not waited for) and the
//!   message was not handed out since: it counts;
//! - the message waits for its delay, spilled, or has come back from there and was not handed out since: which lease
//!   was its last is not known any more, so any of them counts. An ack finishes it; a retry or a release of a spilled
//!   one changes nothing, since it waits already.

use std::cell::LazyCell;
use std::collections::BTreeMap;

use rustc_hash::{FxBuildHasher, FxHashSet};

use super::Decision;
use super::consume::{due_in, gives_up, requeue};
use super::delivery::{LeaseId, Phase};
use super::event::Event;
use super::runs::runs_of;
use super::state::{State, Subscription};
use super::types::{Ending, Settled};
use crate::clock::Now;
use crate::ids::Offset;
use crate::planted;
use crate::record::meta::DeadLetterReason;

/// A checked acknowledgement id: one lease of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AckToken {
    pub offset: Offset,
    pub lease: LeaseId,
}

/// What a token stands for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The message is this token's to end.
    Held,
    Finished,
    HandedOutAgain,
}

fn standing(state: &State, subscription: &Subscription, end: Offset, token: AckToken) -> Option<Standing> {
    if token.offset >= end || token.lease.incarnation > state.incarnation() {
        return None;
    }
    Some(match subscription.delivery.outstanding(token.offset) {
        _ if subscription.delivery.is_finished(token.offset) => Standing::Finished,
        Some(outstanding) if outstanding.lease == token.lease => Standing::Held,
        // A lease that the log lost in a crash is newer than the one it knows.
        Some(outstanding) if token.lease > outstanding.lease => Standing::Held,
        Some(_) if planted::bug("stale-ack-taken") => Standing::Held,
        Some(_) => Standing::HandedOutAgain,
        None => Standing::Held,
    })
}

/// Whether the token may still end its message's delivery.
pub fn is_held(state: &State, subscription: &Subscription, end: Offset, token: AckToken) -> bool {
    standing(state, subscription, end, token) == Some(Standing::Held)
}

/// What endings came to. Those that give a message up are [`Settled::Ok`] so far: they need the message's bytes and are
/// decided one by one by [`super::dead_letter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// One for each ending, in order.
    pub outcomes: Vec<Settled>,
    /// The endings' places in their request, ascending.
    pub given_up: Vec<(usize, GivenUp)>,
}

/// A message that is to move to the dead-letter queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    pub token: AckToken,
    /// Deliveries that counted, as far as they are known.
    pub attempts: u32,
    pub reason: DeadLetterReason,
    /// What its consumer said last.
    pub error: String,
}

/// Ends deliveries. `end` is the queue's next offset.
pub fn settle(
    state: &State,
    subscription: &Subscription,
    end: Offset,
    endings: &[(AckToken, Ending)],
    now: Now,
) -> Decision<Settlement> {
    let gives_up = LazyCell::new(|| gives_up(state, subscription));
    let mut seen = FxHashSet::with_capacity_and_hasher(endings.len(), FxBuildHasher);
    let mut acked = Vec::new();
    let mut released = Vec::new();
    let mut retried: BTreeMap<u64, Vec<Offset>> = BTreeMap::new();
    let is_exhausted = |message| subscription.is_exhausted(message);
    let mut given_up = Vec::new();
    let mut outcomes = Vec::with_capacity(endings.len());
    for (place, (token, ending)) in endings.iter().enumerate() {
        let message = subscription.delivery.outstanding(token.offset);
        let attempts = message.map_or(1, |message| message.attempts);
        let mut give_up = |reason, error: &String| {
            given_up.push((place, GivenUp { token: *token, attempts, reason, error: error.clone() }));
        };
        let again = !seen.insert(token.offset);
        let settled = match (standing(state, subscription, end, *token), ending) {
            (None, _) => Settled::Invalid,
            (Some(Standing::Finished), Ending::Ack) => Settled::Ok,
            (Some(Standing::Held), Ending::Ack) if again && acked.contains(&token.offset) => Settled::Ok,
            (Some(Standing::Held), _) if again => Settled::Stale,
            (Some(Standing::Held), _) => {
                match ending {
                    Ending::Ack => acked.push(token.offset),
                    Ending::Release => released.push(token.offset),
                    Ending::Retry { error, .. } if message.is_some_and(is_exhausted) && *gives_up => {
                        give_up(DeadLetterReason::AttemptsExhausted, error);
                    }
                    Ending::Retry { delay_us, .. } => {
                        let policy = || subscription.backoff_us(token.offset, attempts);
                        let due_us = match planted::bug("retry-delay-forgotten") {
                            true => 0,
                            false => due_in(delay_us.unwrap_or_else(policy), now),
                        };
                        retried.entry(due_us).or_default().push(token.offset);
                    }
                    Ending::Reject { error } => give_up(DeadLetterReason::Rejected, error),
                }
                Settled::Ok
            }
            (Some(_), _) => Settled::Stale,
        };
        outcomes.push(settled);
    }
    let mut events = Vec::new();
    if !acked.is_empty() {
        acked.sort_unstable();
        let (queue, id) = (subscription.queue, subscription.id);
        events.push(Event::Acked { queue, subscription: id, runs: runs_of(acked) });
    }
    let known = |offset: &Offset| subscription.delivery.outstanding(*offset).is_some();
    events.extend(requeue(subscription, released.into_iter().filter(known), 0, false));
    for (due_us, offsets) in retried {
        events.extend(requeue(subscription, offsets.into_iter().filter(known), due_us, true));
    }
    Decision { answer: Settlement { outcomes, given_up }, events }
}

/// Lets leases that are still held last `lease_us` from now.
pub fn extend(
    state: &State,
    subscription: &Subscription,
    end: Offset,
    tokens: &[AckToken],
    lease_us: u64,
    now: Now,
) -> Decision<Vec<Settled>> {
    let mut held = Vec::new();
    let mut outcome = |token: &AckToken| {
        if standing(state, subscription, end, *token).is_none() {
            return Settled::Invalid;
        }
        let outstanding = subscription.delivery.outstanding(token.offset);
        let leased =
            outstanding.is_some_and(|o| o.lease == token.lease && matches!(o.phase, Phase::Leased { .. }));
        if leased {
            held.push(token.offset);
        }
        if leased { Settled::Ok } else { Settled::Stale }
    };
    let answer = tokens.iter().map(&mut outcome).collect();
    let runs = runs_of(held);
    let (queue, subscription) = (subscription.queue, subscription.id);
    let deadline_us = now.log_us + lease_us;
    let events = if runs.is_empty() {
        Vec::new()
    } else {
        vec![Event::LeaseExtended { queue, subscription, runs, deadline_us }]
    };
    Decision { answer, events }
}
