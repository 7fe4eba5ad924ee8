//! Tests by operation: what is decided, and what the state says after it is applied.

mod change;
mod misfit;
mod rebuild;
mod remove;
mod retry;
mod snapshot;
mod spill;

use super::consume::{self, Handed};
use super::dead_letter::{self, FreshUids, Letter, NoDeadLetter};
use super::harness::{self, *};
use super::state::State;
use super::types::*;
use super::{admin, settle};
use crate::ids::{Offset, Uid};
use crate::limits::{PRODUCER_ANSWERS_MAX, PRODUCER_IDLE_US};
use crate::names::QueueName;
use crate::record::Lane;

#[test]
fn names_are_taken_once_and_ids_never_twice() {
    let mut shard = Shard::with_queue("q");
    assert_eq!(shard.create_queue("q"), Err(Reject::QueueExists(queue_name("q"))));
    let decision = admin::delete_queue(&shard.state, &queue_name("q"), None).unwrap();
    let first = shard.enact(decision);
    assert!(matches!(shard.publish("q", 1, None), Err(Reject::QueueNotFound(_))));
    assert!(shard.state.subscription_named(&subscription_name("q", "default")).is_err());
    let second = shard.create_queue("q").unwrap();
    assert!(second > first);
    assert_eq!(shard.state.subscription_count(), 1);
}

#[test]
fn queues_are_listed_by_name_within_their_namespace() {
    let mut shard = Shard::default();
    for name in
        ["namespaces/a/queues/x", "namespaces/b/queues/y", "namespaces/b/queues/x", "namespaces/c/queues/a"]
    {
        let name = QueueName::parse(name).unwrap();
        let d =
            admin::create_queue(&shard.state, name, QueueConfig::default(), Uid::default(), None, shard.now);
        shard.enact(d.unwrap());
    }
    let b = queue_name("x").queue; // any checked name
    let namespace = QueueName::parse("namespaces/b/queues/x").unwrap().namespace;
    let listed =
        |after| shard.state.queues_after(&namespace, after).map(|q| q.name.to_string()).collect::<Vec<_>>();
    assert_eq!(listed(None), ["namespaces/b/queues/x", "namespaces/b/queues/y"]);
    assert_eq!(listed(Some(&b)), ["namespaces/b/queues/y"]);
}

#[test]
fn subscriptions_begin_where_they_were_asked_to() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 10, None).unwrap();
    let handed = shard.lease(4);
    shard.settle(&handed.iter().map(|h| (*h, Ending::Ack)).collect::<Vec<_>>());
    for (name, start, expected) in [
        ("earliest", Start::Earliest, 4),
        ("latest", Start::Latest, 10),
        ("seven", Start::Offset(Offset(7)), 7),
        ("gone", Start::Offset(Offset(1)), 4),
        ("next", Start::Offset(Offset(10)), 10),
    ] {
        shard.subscribe("q", name, start).unwrap();
        assert_eq!(shard.subscription("q", name).delivery.floor(), Offset(expected), "{name}");
    }
    let beyond = shard.subscribe("q", "beyond", Start::Offset(Offset(11)));
    assert!(matches!(beyond, Err(Reject::OffsetOutOfRange { next: Offset(10), .. })));
    assert!(matches!(shard.subscribe("q", "seven", Start::Latest), Err(Reject::SubscriptionExists(_))));
}

#[test]
fn messages_are_kept_for_the_slowest_subscription() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 10, None).unwrap();
    shard.subscribe("q", "slow", Start::Offset(Offset(3))).unwrap();
    let first_offset = |shard: &Shard| shard.state.queue_named(&queue_name("q")).unwrap().first_offset;
    let handed = shard.lease(10);
    shard.settle(&handed.iter().map(|h| (*h, Ending::Ack)).collect::<Vec<_>>());
    assert_eq!(first_offset(&shard), Offset(3));
    let decision = admin::delete_subscription(&shard.state, &subscription_name("q", "slow"), None).unwrap();
    shard.enact(decision);
    assert_eq!(first_offset(&shard), Offset(10));
}

#[test]
fn publish_times_never_decrease_and_offsets_are_dense() {
    let mut shard = Shard::with_queue("q");
    shard.now.wall_us = 100;
    assert_eq!(shard.publish("q", 3, None).unwrap().publish_time_us, 100);
    shard.now.wall_us = 50;
    let answer = shard.publish("q", 2, None).unwrap();
    assert_eq!((answer.first_offset, answer.count, answer.publish_time_us), (Offset(3), 2, 100));
}

#[test]
fn a_producers_retry_gets_its_first_answer_again() {
    let mut shard = Shard::with_queue("q");
    let first = shard.publish("q", 3, Some(stamp("p", 1, 1))).unwrap();
    let second = shard.publish("q", 2, Some(stamp("p", 1, 2))).unwrap();
    shard.publish("q", 5, None).unwrap();
    for (sequence, answer) in [(1, first), (2, second)] {
        let again = shard.publish("q", 9, Some(stamp("p", 1, sequence))).unwrap();
        assert_eq!(again, PublishAnswer { duplicate: true, ..answer });
    }
    assert_eq!(shard.state.queue_named(&queue_name("q")).unwrap().next_offset, Offset(10));
}

#[test]
fn sequences_have_no_gaps_and_begin_at_one() {
    let mut shard = Shard::with_queue("q");
    let gap = |result, want| match result {
        Err(Reject::SequenceGap { expected, .. }) => assert_eq!(expected, want),
        other => panic!("{other:?}"),
    };
    gap(shard.publish("q", 1, Some(stamp("p", 1, 2))), 1);
    shard.publish("q", 1, Some(stamp("p", 1, 1))).unwrap();
    gap(shard.publish("q", 1, Some(stamp("p", 1, 3))), 2);
    gap(shard.publish("q", 1, Some(stamp("p", 2, 2))), 1);
    shard.publish("q", 1, Some(stamp("p", 2, 1))).unwrap();
    let fenced = shard.publish("q", 1, Some(stamp("p", 1, 2)));
    assert!(matches!(fenced, Err(Reject::ProducerFenced { got: 1, current: 2, .. })));
    assert_eq!(shard.state.producer_count(), 1);
}

#[test]
fn only_the_newest_answers_are_kept() {
    let mut shard = Shard::with_queue("q");
    let last = PRODUCER_ANSWERS_MAX as u64 + 1;
    for sequence in 1..=last {
        shard.publish("q", 1, Some(stamp("p", 1, sequence))).unwrap();
    }
    assert!(matches!(shard.publish("q", 1, Some(stamp("p", 1, 1))), Err(Reject::SequenceTooOld { .. })));
    assert_eq!(shard.publish("q", 1, Some(stamp("p", 1, 2))).unwrap().first_offset, Offset(1));
}

#[test]
fn idle_producers_are_forgotten_by_the_logs_clock() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 1, Some(stamp("idle", 1, 1))).unwrap();
    shard.now.log_us = PRODUCER_IDLE_US + 1;
    shard.publish("q", 1, Some(stamp("busy", 1, 1))).unwrap();
    assert_eq!(shard.state.producer_count(), 1);
    assert!(matches!(
        shard.publish("q", 1, Some(stamp("idle", 1, 2))),
        Err(Reject::SequenceGap { expected: 1, .. })
    ));
}

#[test]
fn messages_are_handed_out_in_order_once_while_leased() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 5, None).unwrap();
    let first = shard.lease(3);
    assert_eq!(first.iter().map(|h| (h.offset.0, h.attempt)).collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 1)]);
    assert_eq!(shard.lease(10).len(), 2);
    assert!(shard.lease(10).is_empty());
}

#[test]
fn an_expired_lease_is_handed_out_again_and_its_late_ack_counts_until_then() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 2, None).unwrap();
    let first = shard.lease(2);
    shard.pass(LEASE_US - 1);
    assert!(shard.waiting().is_empty());
    shard.pass(1);
    assert_eq!(shard.waiting(), [0, 1]);
    assert_eq!(shard.settle(&[(first[1], Ending::Ack)]), [Settled::Ok]);
    assert_eq!(shard.waiting(), [0]);
    let second = shard.lease(2);
    assert_eq!((second[0].offset, second[0].attempt), (Offset(0), 2));
    assert_eq!(shard.settle(&[(first[0], Ending::Ack)]), [Settled::Stale]);
    assert_eq!(shard.settle(&[(second[0], Ending::Ack)]), [Settled::Ok]);
    assert_eq!(shard.subscription("q", "default").delivery.backlog(Offset(2)), 0);
}

#[test]
fn an_ack_may_be_repeated_and_nothing_else_may() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 1, None).unwrap();
    let handed = shard.lease(1)[0];
    assert_eq!(shard.settle(&[(handed, Ending::Ack), (handed, Ending::Ack)]), [Settled::Ok, Settled::Ok]);
    assert_eq!(shard.settle(&[(handed, Ending::Ack)]), [Settled::Ok]);
    for ending in [Ending::Release, retry(Some(0)), Ending::Reject { error: String::new() }] {
        assert_eq!(shard.settle(&[(handed, ending)]), [Settled::Stale]);
    }
}

#[test]
fn one_message_ends_once_within_a_request() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 1, None).unwrap();
    let handed = shard.lease(1)[0];
    assert_eq!(
        shard.settle(&[(handed, Ending::Release), (handed, Ending::Ack)]),
        [Settled::Ok, Settled::Stale]
    );
    assert_eq!(shard.waiting(), [0]);
}

#[test]
fn a_release_does_not_count_as_an_attempt_and_a_retry_does() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 1, None).unwrap();
    let handed = shard.lease(1)[0];
    shard.settle(&[(handed, Ending::Release)]);
    let handed = shard.lease(1)[0];
    assert_eq!(handed.attempt, 1);
    shard.settle(&[(handed, retry(Some(0)))]);
    assert_eq!(shard.lease(1)[0].attempt, 2);
}

#[test]
fn a_retry_waits_for_its_delay() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 2, None).unwrap();
    let handed = shard.lease(1)[0];
    shard.settle(&[(handed, retry(Some(5_000)))]);
    assert_eq!(shard.waiting(), [1]);
    assert_eq!(shard.subscription("q", "default").delivery.next_due_us(), Some(5_000));
    shard.pass(4_999);
    assert_eq!(shard.waiting(), [1]);
    shard.pass(1);
    assert_eq!(shard.waiting(), [0, 1]);
}

#[test]
fn a_lease_is_lengthened_while_it_is_held() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 1, None).unwrap();
    let handed = shard.lease(1)[0];
    shard.pass(LEASE_US - 1);
    let extend = |shard: &mut Shard| {
        let subscription = shard.subscription("q", "default");
        let d = settle::extend(&shard.state, subscription, Offset(1), &[token(handed)], LEASE_US, shard.now);
        shard.enact(d)
    };
    assert_eq!(extend(&mut shard), [Settled::Ok]);
    shard.pass(LEASE_US - 1);
    assert!(shard.waiting().is_empty());
    shard.pass(1);
    assert_eq!(shard.waiting(), [0]);
    assert_eq!(extend(&mut shard), [Settled::Stale]);
}

#[test]
fn the_in_flight_limit_holds_messages_back() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 10, None).unwrap();
    let (name, uid) = (subscription_name("q", "narrow"), Uid::default());
    let config = SubscriptionConfig { in_flight_max: 3, ..SubscriptionConfig::default() };
    let d = admin::create_subscription(&shard.state, name, config, Start::Earliest, uid, shard.now).unwrap();
    let id = shard.enact(d);
    let narrow = shard.state.subscription(id).unwrap();
    assert_eq!(consume::candidates(narrow, 10, Offset(10)).len(), 3);
}

#[test]
fn ids_of_messages_that_are_not_there_are_invalid() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 1, None).unwrap();
    let handed = shard.lease(1)[0];
    let beyond = Handed { offset: Offset(1), ..handed };
    let mut future = handed;
    future.lease.incarnation += 1;
    assert_eq!(
        shard.settle(&[(beyond, Ending::Ack), (future, Ending::Ack)]),
        [Settled::Invalid, Settled::Invalid]
    );
}

#[test]
fn after_a_restart_leases_get_a_grace_and_lost_leases_still_count() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 2, None).unwrap();
    shard.restart(1);
    shard.lease(1);
    shard.pass(LEASE_US - 1);
    shard.restart(2);
    shard.pass(1);
    assert_eq!(shard.waiting(), [1], "the lease lasts a while longer");
    shard.pass(1_000_000);
    assert_eq!(shard.waiting(), [0, 1]);
    // A lease of the run before, whose record the crash took: the log knows nothing of it.
    let mut lost = shard.lease(1)[0];
    lost.offset = Offset(1);
    lost.lease.number += 1;
    assert_eq!(shard.settle(&[(lost, Ending::Ack)]), [Settled::Ok]);
    assert!(shard.waiting().is_empty());
}

#[test]
fn a_rejected_message_moves_to_the_dead_letter_queue_at_once() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 1, None).unwrap();
    let handed = shard.lease(1)[0];
    assert_eq!(shard.settle(&[(handed, Ending::Reject { error: "bad".to_owned() })]), [Settled::Ok]);
    let subscription = shard.subscription("q", "default").id;
    let fresh = FreshUids { queue: Uid([4; 16]), subscription: Uid([5; 16]) };
    let letter = Letter { offset: handed.offset, lane: Lane::default(), bytes: 9 };
    let dead_letter = |shard: &mut Shard| {
        let subscription = shard.state.subscription(subscription).unwrap();
        let queue = shard.state.queue(subscription.queue).unwrap();
        let d =
            dead_letter::dead_letter(&shard.state, queue, subscription, letter, fresh, shard.now).unwrap();
        shard.enact(d);
    };
    dead_letter(&mut shard);
    let dead = shard.state.queue_named(&queue_name("q-dead")).unwrap();
    assert_eq!((dead.next_offset, dead.dead_letters), (Offset(1), true));
    assert_eq!(shard.subscription("q", "default").delivery.floor(), Offset(1));
    assert_eq!(shard.subscription("q-dead", "default").delivery.backlog(Offset(1)), 1);
    let target = |shard: &Shard, queue: &str| {
        let own = shard.state.queue_named(&queue_name(queue)).unwrap();
        dead_letter::target(&shard.state, own, shard.subscription(queue, "default"))
    };
    assert_eq!(target(&shard, "q-dead"), Err(NoDeadLetter::IsDeadLetterQueue(queue_name("q-dead"))));
    let long = "x".repeat(251);
    shard.create_queue(&long).unwrap();
    assert!(matches!(target(&shard, &long), Err(NoDeadLetter::NameTooLong { .. })));
}

/// Replaying what happened gives what is.
#[test]
fn the_log_makes_the_state_again() {
    let mut shard = Shard::with_queue("q");
    shard.restart(1);
    let mut seed = 7u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut held: Vec<Handed> = Vec::new();
    for step in 0..3_000u64 {
        match random(6) {
            0 => drop(shard.publish("q", 1 + random(5) as u32, None)),
            1 => drop(shard.publish("q", 1, Some(stamp("p", step / 500, 1 + step % 500)))),
            2 => held.extend(shard.lease(1 + random(8) as usize)),
            3 => shard.pass(random(LEASE_US / 4)),
            _ if held.is_empty() => {}
            which => {
                let handed = held.swap_remove(random(held.len() as u64) as usize);
                let ending = [Ending::Ack, Ending::Release, retry(Some(random(LEASE_US)))];
                let ending = if which == 4 { Ending::Ack } else { ending[random(3) as usize].clone() };
                shard.settle(&[(handed, ending)]);
            }
        }
    }
    let mut again = State::default();
    for event in &shard.log {
        again.apply(event);
    }
    let id = shard.subscription("q", "default").id;
    let (a, b) = (&shard.state.subscription(id).unwrap().delivery, &again.subscription(id).unwrap().delivery);
    let end = shard.state.queue_named(&queue_name("q")).unwrap().next_offset;
    assert!(
        a.floor() > Offset(0) && a.leased() > 0,
        "the walk reached something: {:?}",
        (a.floor(), a.leased())
    );
    assert_eq!((a.floor(), a.leased(), a.delayed()), (b.floor(), b.leased(), b.delayed()));
    for offset in (0..end.0).map(Offset) {
        assert_eq!(
            (a.is_finished(offset), a.outstanding(offset)),
            (b.is_finished(offset), b.outstanding(offset))
        );
    }
    assert_eq!(a.choose(usize::MAX, end), b.choose(usize::MAX, end));
    assert_eq!(again.producer_count(), shard.state.producer_count());
    assert_eq!(again.last_lease(), shard.state.last_lease());
}
