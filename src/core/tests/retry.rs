//! Retry policies: how long messages wait, when they are given up, and where they may go.

use std::collections::BTreeSet;

use super::harness::*;
use crate::core::admin;
use crate::core::dead_letter::{self, NoDeadLetter};
use crate::core::types::*;
use crate::ids::{Offset, SubscriptionId, Uid};
use crate::record::meta::DeadLetterReason;

const POLICY: RetryPolicy =
    RetryPolicy { attempts_max: 3, backoff_us_min: 1_000_000, backoff_us_max: 10_000_000 };

/// A subscription `s` of a queue, which it makes if needed.
fn subscribe_with(
    shard: &mut Shard,
    queue: &str,
    dead_letter_queue: Option<&str>,
) -> Result<SubscriptionId, Reject> {
    let _ = shard.create_queue(queue);
    let dead_letter_queue = dead_letter_queue.map(queue_name);
    let config = SubscriptionConfig { retry: POLICY, dead_letter_queue, ..SubscriptionConfig::default() };
    let (name, uid) = (subscription_name(queue, "s"), Uid([7; 16]));
    admin::create_subscription(&shard.state, name, config, Start::Earliest, uid, shard.now)
        .map(|decision| shard.enact(decision))
}

fn shard_with(messages: u32) -> (Shard, SubscriptionId) {
    let mut shard = Shard::default();
    let id = subscribe_with(&mut shard, "q", None).unwrap();
    shard.publish("q", messages, None).unwrap();
    (shard, id)
}

/// Lets time pass up to the moment at which something of the subscription comes due.
fn pass_to_next(shard: &mut Shard, id: SubscriptionId) {
    shard.now.log_us = shard.state.subscription(id).unwrap().delivery.next_due_us().unwrap();
    shard.come_due(id);
}

#[test]
fn delays_double_within_their_bounds_and_are_spread() {
    let (shard, id) = shard_with(1);
    let subscription = shard.state.subscription(id).unwrap();
    for (attempt, low, high) in
        [(1, 1, 2), (2, 2, 4), (3, 4, 8), (4, 5, 10), (5, 5, 10), (64, 5, 10), (u32::MAX, 5, 10)]
    {
        let delays: BTreeSet<u64> =
            (0..200).map(|offset| subscription.backoff_us(Offset(offset), attempt)).collect();
        let (low, high) = (low * 1_000_000, high * 1_000_000);
        assert!(delays.iter().all(|delay| (low..=high).contains(delay)), "{attempt}: {delays:?}");
        assert!(delays.len() > 8 && delays.len() <= 16, "{attempt}: {delays:?}");
        assert_eq!(delays.first(), Some(&low), "{attempt}");
    }
    let none = Shard::with_queue("q");
    assert_eq!(none.subscription("q", "default").backoff_us(Offset(3), 9), 0);
}

#[test]
fn a_retry_without_a_delay_and_an_ended_lease_wait_as_the_policy_says() {
    let (mut shard, id) = shard_with(3);
    let handed = shard.lease_from("q", "s", 3);
    shard.settle_on("q", "s", &[(handed[0], retry(None)), (handed[1], retry(Some(0)))]);
    let delivery = |shard: &Shard| shard.state.subscription(id).unwrap().delivery.clone();
    assert_eq!(delivery(&shard).delayed(), 1);
    let due = delivery(&shard).next_due_us().unwrap();
    assert!((1_000_000..=2_000_000).contains(&due), "{due}");
    assert_eq!(shard.lease_from("q", "s", 3).iter().map(|h| h.offset.0).collect::<Vec<_>>(), [1]);
    shard.now.log_us = LEASE_US;
    shard.come_due(id);
    let later = delivery(&shard);
    assert_eq!((later.leased(), later.delayed()), (0, 2), "the leases of 1 and 2 have ended");
    // Their second and first attempts have ended: each waits its own time.
    pass_to_next(&mut shard, id);
    pass_to_next(&mut shard, id);
    assert!((LEASE_US + 2_000_000..=LEASE_US + 4_000_000).contains(&shard.now.log_us));
    assert_eq!(shard.lease_from("q", "s", 3).len(), 3);
    assert!(shard.given_up.is_empty());
}

#[test]
fn after_the_last_attempt_a_message_is_given_up_with_its_error() {
    let (mut shard, id) = shard_with(2);
    for _ in 0..2 {
        let handed = shard.lease_from("q", "s", 2);
        let endings: Vec<_> = handed.iter().map(|handed| (*handed, retry(Some(0)))).collect();
        shard.settle_on("q", "s", &endings);
    }
    let last = shard.lease_from("q", "s", 2);
    assert_eq!(last.iter().map(|handed| handed.attempt).collect::<Vec<_>>(), [3, 3]);
    assert!(shard.given_up.is_empty());
    let ending = Ending::Retry { delay_us: Some(0), error: "no luck".to_owned() };
    assert_eq!(shard.settle_on("q", "s", &[(last[0], ending)]), [Settled::Ok]);
    let [given_up] = &shard.given_up[..] else { panic!("{:?}", shard.given_up) };
    assert_eq!((given_up.token, given_up.reason), (token(last[0]), DeadLetterReason::AttemptsExhausted));
    assert_eq!(given_up.error, "no luck");
    // Released, it does not count; what ends its last lease is given up too, and is nobody's meanwhile.
    shard.given_up.clear();
    shard.settle_on("q", "s", &[(last[1], Ending::Release)]);
    let again = shard.lease_from("q", "s", 2);
    assert_eq!((again.len(), again[0].attempt), (1, 3));
    shard.now.log_us += LEASE_US;
    shard.come_due(id);
    let tokens: Vec<_> = shard.given_up.iter().map(|given_up| given_up.token).collect();
    assert_eq!(tokens, [token(last[0]), token(again[0])]);
    assert!(shard.lease_from("q", "s", 2).is_empty());
    // As long as it has not moved it comes due again, and a late ack still counts.
    shard.given_up.clear();
    pass_to_next(&mut shard, id);
    assert_eq!(shard.given_up.len(), 2);
    assert_eq!(shard.settle_on("q", "s", &[(again[0], Ending::Ack)]), [Settled::Ok]);
}

#[test]
fn what_has_nowhere_to_go_is_delivered_on_and_on() {
    let mut shard = Shard::with_queue(&"q".repeat(251));
    let queue = "q".repeat(251);
    shard.publish(&queue, 1, None).unwrap();
    for attempt in 1..40 {
        let handed = shard.lease_from(&queue, "default", 1);
        assert_eq!(handed[0].attempt, attempt);
        shard.settle_on(&queue, "default", &[(handed[0], retry(None))]);
    }
    assert!(shard.given_up.is_empty());
}

#[test]
fn no_way_leads_back() {
    let mut shard = Shard::default();
    let refused = |result| matches!(result, Err(Reject::DeadLetterQueue { .. }));
    assert!(refused(subscribe_with(&mut shard, "a", Some("a"))), "itself");
    subscribe_with(&mut shard, "a", Some("b")).unwrap();
    subscribe_with(&mut shard, "b", Some("c")).unwrap();
    assert!(refused(subscribe_with(&mut shard, "c", Some("a"))), "over two others");
    subscribe_with(&mut shard, "c", Some("d")).unwrap();
    // A queue's own choice of name closes a circle that nobody asked for: x to x-dead to x.
    subscribe_with(&mut shard, "x-dead", Some("x")).unwrap();
    shard.create_queue("x").unwrap();
    let x = shard.state.queue_named(&queue_name("x")).unwrap();
    let target = dead_letter::target(&shard.state, x, shard.subscription("x", "default"));
    assert_eq!(target, Err(NoDeadLetter::LeadsBack(queue_name("x-dead"))));
    let a = shard.state.queue_named(&queue_name("a")).unwrap();
    let target = dead_letter::target(&shard.state, a, shard.subscription("a", "s"));
    assert_eq!(target, Ok(queue_name("b")));
}
