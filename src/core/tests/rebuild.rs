//! A state made of what a log without checkpoints still has.

use super::*;
use crate::core::event::Event;
use crate::core::rebuild::{IDS_SKIPPED, Seen};
use crate::ids::{QueueId, SubscriptionId};

/// Two queues with their messages, acks and dead letters.
fn life() -> Vec<Event> {
    let mut shard = Shard::with_queue("old");
    shard.publish("old", 4, None).unwrap();
    shard.publish("old", 3, Some(stamp("p", 1, 1))).unwrap();
    let handed = shard.lease_from("old", "default", 5);
    shard.settle_on("old", "default", &handed.iter().map(|one| (*one, Ending::Ack)).collect::<Vec<_>>());
    shard.create_queue("new").unwrap();
    shard.publish("new", 2, None).unwrap();
    shard.publish("old", 2, Some(stamp("p", 1, 2))).unwrap();
    shard.log
}

/// Replays the events that `kept` says are still there, as a log is that begins in the middle or has holes.
fn replayed(kept: impl Fn(usize, &Event) -> bool) -> (State, Seen) {
    let (mut state, mut seen) = (State::default(), Seen::default());
    for (_, event) in life().into_iter().enumerate().filter(|(at, event)| kept(*at, event)) {
        if let Event::Published(run) = &event {
            seen.stored(run.queue, run.first, run.count);
        }
        seen.note(QueueId(0), &event);
        if state.mend(&event).is_ok() {
            state.apply(&event);
        }
    }
    (state, seen)
}

/// What waits, by offset.
fn waiting(state: &State, queue: &str, subscription: &str) -> Vec<u64> {
    let one = state.subscription_named(&subscription_name(queue, subscription)).unwrap();
    let end = state.queue(one.queue).unwrap().next_offset;
    one.delivery.choose(100, end).into_iter().map(|offset| offset.0).collect()
}

#[test]
fn everything_that_is_there_waits_again() {
    // Its creation and its first run are lost.
    let (mut state, seen) = replayed(|at, _| at > 2);
    let rebuilt = state.rebuild(&seen, 7);
    assert_eq!(rebuilt.len(), 2);
    assert_eq!((rebuilt[0].waiting, rebuilt[0].made_again, rebuilt[0].subscribed), (5, true, true));
    assert_eq!((rebuilt[1].waiting, rebuilt[1].made_again, rebuilt[1].subscribed), (2, false, false));
    assert_eq!(waiting(&state, "recovered-1", "default"), [4, 5, 6, 7, 8], "those that were finished too");
    assert_eq!(waiting(&state, "new", "default"), [0, 1]);
    let queue = state.queue_named(&queue_name("recovered-1")).unwrap();
    assert_eq!((queue.first_offset, queue.next_offset), (Offset(4), Offset(9)));
    assert!(!state.waits(queue.id, Offset(3)) && state.waits(queue.id, Offset(4)));
    // Its producer goes on where it was.
    let mut shard = Shard { state, ..Shard::default() };
    assert_eq!(shard.publish("recovered-1", 1, Some(stamp("p", 1, 3))).unwrap().first_offset, Offset(9));
}

#[test]
fn what_is_not_there_counts_as_finished() {
    let (mut state, seen) = replayed(
        |_, event| !matches!(event, Event::Published(run) if run.queue == QueueId(1) && run.first == Offset(4)),
    );
    let rebuilt = state.rebuild(&seen, 7);
    assert_eq!(rebuilt[0].absent, [(Offset(4), Offset(7))]);
    assert_eq!(waiting(&state, "old", "default"), [0, 1, 2, 3, 7, 8]);
    assert_eq!(state.first_needed(QueueId(1), Offset(4)), Offset(7));
}

#[test]
fn ids_and_incarnations_go_on_above_everything_seen() {
    let (mut state, seen) = replayed(|at, event| at > 2 && !matches!(event, Event::QueueCreated(_)));
    state.rebuild(&seen, 7);
    let skipped = u64::from(IDS_SKIPPED);
    assert_eq!(state.next_queue_id(), QueueId(2 + skipped + 1));
    // Two recovered queues have been given subscriptions.
    assert!(state.next_subscription_id() >= SubscriptionId(2 + skipped + 1));
    assert!(state.incarnation() >= IDS_SKIPPED);
}

#[test]
fn a_name_that_is_taken_is_not_taken_away() {
    let mut shard = Shard::with_queue("recovered-2");
    shard.create_queue("q").unwrap();
    shard.publish("q", 1, None).unwrap();
    let mut state = State::default();
    for event in shard
        .log
        .into_iter()
        .filter(|event| !matches!(event, Event::QueueCreated(it) if it.queue == QueueId(2)))
    {
        state.mend(&event).unwrap();
        state.apply(&event);
    }
    assert_eq!(state.queue_named(&queue_name("recovered-2")).unwrap().id, QueueId(1));
    assert_eq!(state.queue_named(&queue_name("recovered-2~")).unwrap().id, QueueId(2));
}
