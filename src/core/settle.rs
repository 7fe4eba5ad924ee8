//! Decisions to end deliveries, and to lengthen them.
//!
//! What an acknowledgement id is worth:
//! - its lease is the message's last one, running or over: it counts, since the message was not handed out again;
//! - the message was handed out again since: stale;
//! - the message is finished: an ack of it is no error, anything else is stale;
//! - the log knows no lease of the message (its record was lost in a crash, since leases are not waited for) and the
//!   message was not handed out since: it counts.

use std::collections::HashSet;

use super::Decision;
use super::consume::requeue;
use super::delivery::{LeaseId, Phase};
use super::event::Event;
use super::runs::runs_of;
use super::state::{State, Subscription};
use super::types::{Ending, Settled};
use crate::clock::Now;
use crate::ids::Offset;

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
        Some(_) => Standing::HandedOutAgain,
        None => Standing::Held,
    })
}

/// Whether the token may still end its message's delivery.
pub fn is_held(state: &State, subscription: &Subscription, end: Offset, token: AckToken) -> bool {
    standing(state, subscription, end, token) == Some(Standing::Held)
}

/// Ends deliveries. Rejections are only checked here ([`Settled::Ok`] = may be rejected): they need the message's
/// bytes and are decided one by one by [`super::dead_letter`]. `end` is the queue's next offset.
pub fn settle(
    state: &State,
    subscription: &Subscription,
    end: Offset,
    endings: &[(AckToken, Ending)],
    now: Now,
) -> Decision<Vec<Settled>> {
    let mut seen = HashSet::new();
    let mut acked = Vec::new();
    let mut released = Vec::new();
    let mut retried = Vec::new();
    let mut answer = Vec::with_capacity(endings.len());
    for (token, ending) in endings {
        let again = !seen.insert(token.offset);
        let settled = match (standing(state, subscription, end, *token), ending) {
            (None, _) => Settled::Invalid,
            (Some(Standing::Finished), Ending::Ack) => Settled::Ok,
            (Some(Standing::Held), Ending::Ack) if again && acked.contains(&token.offset) => Settled::Ok,
            (Some(Standing::Held), _) if again => Settled::Stale,
            (Some(Standing::Held), _) => {
                match ending {
                    Ending::Ack => acked.push(token.offset),
                    Ending::Release => released.push(*token),
                    Ending::Retry { delay_us } => retried.push((*token, *delay_us)),
                    Ending::Reject { .. } => {}
                }
                Settled::Ok
            }
            (Some(_), _) => Settled::Stale,
        };
        answer.push(settled);
    }
    let mut events = Vec::new();
    if !acked.is_empty() {
        acked.sort_unstable();
        let (queue, id) = (subscription.queue, subscription.id);
        events.push(Event::Acked { queue, subscription: id, runs: runs_of(acked) });
    }
    let known = |token: &AckToken| subscription.delivery.outstanding(token.offset).is_some();
    let released = released.iter().filter(|token| known(token)).map(|token| token.offset);
    events.extend(requeue(subscription, released, 0, false));
    for (due_us, offsets) in by_due(retried.into_iter().filter(|(token, _)| known(token)), now) {
        events.extend(requeue(subscription, offsets, due_us, true));
    }
    Decision { answer, events }
}

/// Groups retries by when they are due, 0 for now.
fn by_due(retried: impl Iterator<Item = (AckToken, u64)>, now: Now) -> Vec<(u64, Vec<Offset>)> {
    let mut groups: Vec<(u64, Vec<Offset>)> = Vec::new();
    for (token, delay_us) in retried {
        let due_us = if delay_us == 0 { 0 } else { now.log_us + delay_us };
        match groups.iter_mut().find(|(due, _)| *due == due_us) {
            Some((_, offsets)) => offsets.push(token.offset),
            None => groups.push((due_us, vec![token.offset])),
        }
    }
    groups
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
