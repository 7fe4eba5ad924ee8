//! Events behind a gap in the log.

use super::*;
use crate::core::event::Event;
use crate::core::misfit::{LostMessages, Misfit};
use crate::ids::{QueueId, SubscriptionId};

/// A life with everything in it: queues that go and come again, producers, leases, acks, retries, dead letters.
fn life() -> Vec<Event> {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 3, Some(stamp("p", 1, 1))).unwrap();
    shard.subscribe("q", "audit", Start::Earliest).unwrap();
    let handed = shard.lease(2);
    shard.settle(&[
        (handed[0], Ending::Ack),
        (handed[1], Ending::Retry { delay_us: Some(5), error: String::new() }),
    ]);
    shard.create_queue("gone").unwrap();
    shard.publish("gone", 2, None).unwrap();
    shard.publish("q", 2, Some(stamp("p", 1, 2))).unwrap();
    let handed = shard.lease(2);
    shard.settle(&[(handed[0], retry(Some(7))), (handed[1], retry(Some(8)))]);
    let id = shard.subscription("q", "default").id;
    assert_eq!(shard.spill(id, 1), 2);
    let decision = admin::delete_queue(&shard.state, &queue_name("gone"), None).unwrap();
    shard.enact(decision);
    shard.create_queue("gone").unwrap();
    shard.publish("gone", 1, Some(stamp("p", 7, 1))).unwrap();
    shard.pass(10);
    assert_eq!(shard.recall(id, 4), 2);
    let handed = shard.lease_from("q", "audit", 5);
    shard.settle_on("q", "audit", &[(handed[4], Ending::Ack), (handed[0], Ending::Release)]);
    let letter = Letter { offset: Offset(2), lane: Lane::default(), bytes: 1 };
    let queue = shard.state.queue_named(&queue_name("q")).unwrap();
    let subscription = shard.subscription("q", "audit");
    let fresh = FreshUids { queue: Uid([5; 16]), subscription: Uid([6; 16]) };
    let decision = dead_letter::dead_letter(&shard.state, queue, subscription, letter, fresh, shard.now);
    shard.enact(decision.unwrap());
    shard.restart(2);
    shard.publish("q", 1, Some(stamp("p", 2, 1))).unwrap();
    let handed = shard.lease(9);
    shard.settle(&handed.iter().map(|handed| (*handed, Ending::Ack)).collect::<Vec<_>>());
    shard.log
}

/// Replays the events without some of them, as a start behind damage does.
fn replay_without(events: &[Event], hole: std::ops::Range<usize>) -> (State, Vec<LostMessages>) {
    let (mut state, mut lost) = (State::default(), Vec::new());
    for (place, event) in events.iter().enumerate().filter(|(place, _)| !hole.contains(place)) {
        if state.admits(event).is_err() {
            assert!(place >= hole.end, "before the hole everything fits");
            match state.mend(event) {
                Ok(more) => lost.extend(more),
                Err(_) => continue,
            }
        }
        state.apply(event);
    }
    (state, lost)
}

#[test]
fn any_hole_in_a_life_leaves_a_state_that_finishes_nothing_by_itself() {
    let events = life();
    let (whole, none) = replay_without(&events, 0..0);
    assert_eq!(none, []);
    for from in 0..events.len() {
        for to in from + 1..=events.len() {
            let (state, lost) = replay_without(&events, from..to);
            for id in state.queue_ids() {
                let queue = state.queue(id).unwrap();
                let Some(full) = whole.queue(id) else { continue };
                assert!(queue.next_offset <= full.next_offset, "{from}..{to}: offsets are not made up");
                for (name, subscription) in &queue.subscriptions {
                    let Some(other) = full.subscriptions.get(name) else { continue };
                    let (here, there) = (state.subscription(*subscription), whole.subscription(*other));
                    let finished = |offset: &u64| here.unwrap().delivery.is_finished(Offset(*offset));
                    for offset in (0..queue.next_offset.0).filter(finished) {
                        assert!(
                            there.unwrap().delivery.is_finished(Offset(offset)),
                            "{from}..{to}: {offset}"
                        );
                    }
                }
            }
            for gap in lost {
                assert!(gap.first < gap.end, "{gap:?}");
            }
        }
    }
}

/// Lets all delays and leases end, and leases whatever comes; how many messages come never.
fn missing(shard: &mut Shard, id: SubscriptionId) -> u64 {
    shard.now.log_us += 1 << 40;
    shard.survey(id, &[], 4);
    loop {
        shard.come_due(id);
        shard.recall(id, 4);
        let subscription = shard.state.subscription(id).unwrap();
        let end = shard.state.queue(subscription.queue).unwrap().next_offset;
        let chosen = consume::candidates(subscription, 100, end);
        if chosen.is_empty() {
            return subscription.delivery.backlog(end) - subscription.delivery.leased();
        }
        let decision = consume::lease(&shard.state, subscription, &chosen, LEASE_US, shard.now);
        shard.enact(decision);
    }
}

#[test]
fn after_any_hole_every_message_that_is_not_finished_is_delivered() {
    let events = life();
    for from in 0..events.len() {
        for to in from + 1..=events.len() {
            let (state, _) = replay_without(&events, from..to);
            let log = [&events[..from], &events[to..]].concat();
            let mut shard = Shard { state, log, ..Shard::default() };
            let mut ids: Vec<_> = shard.state.subscription_ids().collect();
            ids.sort_unstable();
            for id in ids {
                assert_eq!(missing(&mut shard, id), 0, "{from}..{to}: subscription {id}");
            }
        }
    }
}

#[test]
fn a_gap_in_the_offsets_is_published_and_lost() {
    let mut shard = Shard::with_queue("q");
    for _ in 0..3 {
        shard.publish("q", 2, None).unwrap();
    }
    let publishes = shard.log.len() - 3;
    let (state, lost) = replay_without(&shard.log, publishes..publishes + 2);
    let queue = state.queue_named(&queue_name("q")).unwrap();
    assert_eq!(lost, [LostMessages { queue: queue.id, first: Offset(0), end: Offset(4) }]);
    assert_eq!((queue.next_offset, queue.first_offset), (Offset(6), Offset(0)));
    assert_eq!(state.waiting_in(queue), 6, "lost ones wait, so that their loss is told");
    let again = &shard.log[publishes];
    assert!(matches!(state.clone().mend(again), Err(Misfit::PublishedAgain { first: Offset(0), .. })));
}

#[test]
fn a_queue_whose_creation_is_lost_keeps_its_messages() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 2, Some(stamp("p", 3, 1))).unwrap();
    shard.publish("q", 2, Some(stamp("p", 3, 2))).unwrap();
    let creation = shard.log.iter().position(|event| matches!(event, Event::Published(_))).unwrap();
    let (state, _) = replay_without(&shard.log, 0..creation + 1);
    let queue = state.queue_named(&queue_name("recovered-1")).unwrap();
    assert_eq!((queue.id, queue.next_offset), (QueueId(1), Offset(4)));
    assert_eq!(state.next_queue_id(), QueueId(2), "its id is used up");
    // The producer goes on, and asks again for what is known.
    let check = |sequence| queue.producers.check(&queue.name, &stamp("p", 3, sequence));
    assert_eq!(check(3), Ok(None));
    assert!(check(2).unwrap().is_some_and(|answer| answer.duplicate && answer.first_offset == Offset(2)));
    assert!(matches!(check(1), Err(Reject::SequenceTooOld { .. })));
}
