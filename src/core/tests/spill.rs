//! Delays that are spilled into the log and come back.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::core::event::Event;
use crate::core::spill::{self, Recall};
use crate::core::spilled::{Ref, RestOfRun};
use crate::ids::SubscriptionId;

const REFS_MAX: usize = 4;
/// More than what counts as soon.
const STEP_US: u64 = 2_000_000;

/// A queue whose first `count` messages were delivered once and wait, each a step longer than the one before.
fn delayed(count: u64) -> (Shard, SubscriptionId, Vec<Handed>) {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", count as u32, None).unwrap();
    let handed = shard.lease(count as usize);
    for (handed, delay) in handed.iter().zip(1..) {
        shard.settle(&[(*handed, retry(Some(STEP_US * delay)))]);
    }
    let id = shard.subscription("q", "default").id;
    (shard, id, handed)
}

fn counts(shard: &Shard) -> (u64, u64, u64) {
    let delivery = &shard.subscription("q", "default").delivery;
    let in_memory = delivery.all_outstanding().count() as u64;
    (in_memory, delivery.spilled_messages(), delivery.delayed())
}

#[test]
fn what_is_due_latest_is_spilled() {
    let (mut shard, id, _) = delayed(7);
    assert_eq!(shard.spill(id, REFS_MAX), 0, "below twice the bound");
    let (mut shard, id, _) = delayed(13);
    assert_eq!(shard.spill(id, REFS_MAX), 2);
    assert_eq!(counts(&shard), (5, 8, 13));
    let offsets = |refs: Vec<Ref>| refs.iter().map(|entry| entry.offset.0).collect::<Vec<_>>();
    assert_eq!(offsets(shard.run_at(id, Offset(0)).unwrap()), [5, 6, 7, 8]);
    assert_eq!(offsets(shard.run_at(id, Offset(1)).unwrap()), [9, 10, 11, 12]);
    let first = shard.run_at(id, Offset(0)).unwrap()[0];
    assert_eq!(first, Ref { due_us: 6 * STEP_US, offset: Offset(5), attempts: 1 });
}

#[test]
fn spilled_messages_come_back_when_they_are_due_with_their_attempts() {
    let (mut shard, id, _) = delayed(13);
    shard.spill(id, REFS_MAX);
    shard.pass(6 * STEP_US - 1);
    assert_eq!((shard.recall(id, REFS_MAX), shard.waiting()), (0, vec![0, 1, 2, 3, 4]));
    assert_eq!(shard.lease(5).len(), 5);
    shard.pass(1);
    assert_eq!((shard.recall(id, REFS_MAX), shard.waiting()), (1, vec![5]));
    // A little more than what is due comes at once, but waits in memory until then.
    shard.pass(2 * STEP_US);
    shard.now.log_us += STEP_US - 1_000;
    assert_eq!((shard.recall(id, REFS_MAX), shard.waiting()), (3, vec![5, 6, 7]));
    assert_eq!(counts(&shard), (9, 4, 5));
    shard.pass(1_000);
    let again = shard.lease(4);
    assert_eq!(
        again.iter().map(|h| (h.offset.0, h.attempt)).collect::<Vec<_>>(),
        [(5, 2), (6, 2), (7, 2), (8, 2)]
    );
    shard.pass(4 * STEP_US);
    assert_eq!((shard.recall(id, REFS_MAX), shard.waiting()), (4, vec![9, 10, 11, 12]));
    let delivery = &shard.subscription("q", "default").delivery;
    assert!(delivery.spilled().is_empty());
    assert_eq!((delivery.spilled().first(), delivery.spilled_messages()), (Offset(2), 0));
}

#[test]
fn nothing_is_recalled_while_nobody_takes_what_is_ready() {
    let (mut shard, id, _) = delayed(13);
    shard.spill(id, REFS_MAX);
    shard.pass(20 * STEP_US);
    assert_eq!(shard.waiting(), [0, 1, 2, 3, 4]);
    let due_us = |shard: &Shard| {
        let delivery = &shard.subscription("q", "default").delivery;
        spill::recall_due_us(delivery, Offset(9), shard.now, REFS_MAX)
    };
    assert_eq!((due_us(&shard), shard.recall(id, REFS_MAX)), (None, 0), "no alarm, no read");
    shard.lease(2);
    assert_eq!(due_us(&shard), None);
    shard.lease(1);
    assert_eq!(due_us(&shard), Some(6 * STEP_US), "half of the bound");
    assert_eq!(shard.recall(id, REFS_MAX), 2, "as many as there is room for");
    // What is set aside for a second takes room as well.
    let ready: Vec<Offset> = shard.waiting().into_iter().map(Offset).collect();
    let until_us = shard.now.log_us + 500_000;
    let events = consume::set_aside(shard.subscription("q", "default"), &ready, until_us, true);
    shard.enact_events(events);
    assert_eq!((shard.waiting(), due_us(&shard)), (vec![], None));
}

#[test]
fn a_run_that_is_not_on_disk_yet_is_not_read() {
    let (mut shard, id, _) = delayed(13);
    shard.spill(id, REFS_MAX);
    shard.pass(20 * STEP_US);
    shard.lease(5);
    let delivery = &shard.subscription("q", "default").delivery;
    let runs = |durable| {
        let recall = spill::recall(delivery, Offset(durable), shard.now, REFS_MAX)?;
        Some(recall.runs.iter().map(|(place, _)| place.0).collect::<Vec<_>>())
    };
    assert_eq!((runs(0), runs(1), runs(2)), (None, Some(vec![0]), Some(vec![0, 1])));
}

#[test]
fn a_run_is_taken_as_far_as_it_is_due_and_fits() {
    let refs: Vec<Ref> = (0..6).map(|at| Ref { due_us: 10 * at, offset: Offset(at), attempts: 1 }).collect();
    let rest = |position| Some(RestOfRun { position, due_us: 10 * position });
    let take = |room, until_us, from| {
        let mut recall = Recall { runs: Vec::new(), room, until_us };
        let (taken, rest) = recall.take(&refs, RestOfRun { position: from, due_us: 10 * from });
        assert!(taken.iter().map(|entry| entry.offset.0).eq(from..from + taken.len() as u64));
        assert_eq!(recall.room, room - taken.len());
        (taken.len(), rest)
    };
    assert_eq!(take(9, 25, 0), (3, rest(3)));
    assert_eq!(take(2, 25, 0), (2, rest(2)));
    assert_eq!(take(0, 25, 1), (0, rest(1)));
    assert_eq!(take(9, 50, 3), (3, None));
}

#[test]
fn endings_of_spilled_messages_take_effect_or_change_nothing() {
    let (mut shard, id, handed) = delayed(13);
    shard.spill(id, REFS_MAX);
    let records = shard.log.len();
    let ending =
        |shard: &mut Shard, at: usize, ending: Ending| shard.settle(&[(handed[at], ending)])[0].clone();
    assert_eq!(ending(&mut shard, 7, retry(Some(1))), Settled::Ok);
    assert_eq!(ending(&mut shard, 7, Ending::Release), Settled::Ok);
    assert_eq!((shard.log.len(), counts(&shard)), (records, (5, 8, 13)), "it waits already");
    assert_eq!(ending(&mut shard, 7, Ending::Ack), Settled::Ok);
    assert_eq!(ending(&mut shard, 7, Ending::Ack), Settled::Ok, "again");
    assert_eq!(ending(&mut shard, 7, retry(None)), Settled::Stale);
    assert_eq!(counts(&shard), (5, 7, 12));
    assert_eq!(ending(&mut shard, 8, Ending::Reject { error: "bad".to_owned() }), Settled::Ok);
    assert_eq!((shard.given_up.len(), shard.given_up[0].token.offset), (1, Offset(8)));
    let decision =
        crate::core::remove::cancel(&shard.state, &queue_name("q"), Uid([1; 16]), Offset(9)).unwrap();
    shard.enact(decision);
    assert_eq!(counts(&shard), (5, 6, 11));
    shard.pass(20 * STEP_US);
    shard.lease(9);
    while shard.recall(id, REFS_MAX) > 0 {
        shard.lease(9);
    }
    let back = shard.subscription("q", "default").delivery.all_outstanding().map(|(offset, _)| offset.0);
    let mut back: Vec<u64> = back.collect();
    back.sort_unstable();
    assert_eq!(back, [0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12], "without what is finished");
}

/// Which lease was the last is not known of a message that was spilled; none is refused.
#[test]
fn any_lease_may_end_a_message_that_has_come_back() {
    let (mut shard, id, handed) = delayed(8);
    shard.spill(id, REFS_MAX);
    shard.pass(9 * STEP_US);
    shard.lease(4);
    assert_eq!((shard.recall(id, REFS_MAX), shard.waiting()), (4, vec![4, 5, 6, 7]));
    assert_eq!(shard.settle(&[(handed[6], Ending::Ack)]), [Settled::Ok]);
    let again = shard.lease(9);
    assert_eq!(shard.settle(&[(handed[7], Ending::Ack)]), [Settled::Stale], "it was handed out again");
    assert_eq!(again[2].offset, Offset(7));
    assert_eq!(shard.settle(&[(again[2], Ending::Ack)]), [Settled::Ok]);
}

#[test]
fn runs_end_when_nothing_spilled_is_left() {
    let (mut shard, id, handed) = delayed(13);
    shard.spill(id, REFS_MAX);
    let runs = |shard: &Shard| shard.subscription("q", "default").delivery.spilled().all().len();
    let acks: Vec<_> = handed[5..12].iter().map(|handed| (*handed, Ending::Ack)).collect();
    shard.settle(&acks);
    assert_eq!((counts(&shard), runs(&shard)), ((5, 1, 6), 2));
    let purge = crate::core::remove::purge(&shard.state, &queue_name("q"), None).unwrap();
    let mut purged = shard.clone();
    purged.enact(purge);
    assert_eq!((counts(&purged), runs(&purged)), ((0, 0, 0), 0));
    shard.settle(&[(handed[12], Ending::Ack)]);
    assert_eq!((counts(&shard), runs(&shard)), ((5, 0, 5), 0));
}

#[test]
fn a_lost_run_costs_delays_and_attempts_and_no_message() {
    let (mut shard, id, handed) = delayed(13);
    shard.spill(id, REFS_MAX);
    shard.settle(&[(handed[6], Ending::Ack)]);
    shard.now.log_us = 500;
    assert_eq!(shard.survey(id, &[], REFS_MAX), 0, "all are accounted for");
    assert_eq!(shard.survey(id, &[Offset(0)], REFS_MAX), 3);
    let again = shard.run_at(id, Offset(2)).unwrap();
    let back = |offset| Ref { due_us: 500, offset: Offset(offset), attempts: 0 };
    assert_eq!(again, [back(5), back(7), back(8)]);
    let places = |shard: &Shard| {
        let delivery = &shard.subscription("q", "default").delivery;
        delivery.spilled().all().map(|(place, _)| place.0).collect::<Vec<_>>()
    };
    assert_eq!((places(&shard), counts(&shard)), (vec![1, 2], (5, 7, 12)));
    assert_eq!(shard.survey(id, &[], REFS_MAX), 0);
    shard.settle(&handed[..5].iter().map(|handed| (*handed, Ending::Ack)).collect::<Vec<_>>());
    assert_eq!(shard.recall(id, REFS_MAX), 3);
    let leased = shard.lease(9);
    assert_eq!(leased.iter().map(|h| (h.offset.0, h.attempt)).collect::<Vec<_>>(), [(5, 1), (7, 1), (8, 1)]);
}

/// Where the record of a lease or of a recall is lost, a later one still tells that its messages were handed out.
#[test]
fn messages_without_any_trace_of_their_delivery_are_found() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 9, None).unwrap();
    let id = shard.subscription("q", "default").id;
    shard.lease(3);
    let lost = shard.log.pop();
    assert!(matches!(lost, Some(Event::Leased { .. })));
    shard.lease(2);
    let mut replayed = Shard { now: shard.now, ..Shard::default() };
    shard.log.iter().for_each(|event| replayed.state.apply(event));
    assert_eq!((counts(&replayed), replayed.waiting()), ((2, 3, 3), vec![5, 6, 7, 8]));
    assert_eq!(replayed.survey(id, &[], REFS_MAX), 3);
    assert_eq!((replayed.recall(id, REFS_MAX), replayed.waiting()), (3, vec![0, 1, 2, 5, 6, 7, 8]));
}

/// What a subscription's messages are, in plain words: until when each waits, and how often it was delivered.
#[derive(Default)]
struct Model {
    waits: BTreeMap<u64, (u64, u32)>,
}

proptest! {
    /// Messages come back exactly when they are due, with their attempts, whatever was spilled meanwhile, and memory
    /// keeps its bound.
    #[test]
    fn delays_hold_whether_spilled_or_not(
        steps in proptest::collection::vec((0u8..8, 0u64..9_000_000, any::<prop::sample::Index>()), 1..150),
    ) {
        let mut shard = Shard::with_queue("q");
        let id = shard.subscription("q", "default").id;
        let mut model = Model::default();
        let mut held: Vec<Handed> = Vec::new();
        for (which, us, at) in steps {
            match which {
                0 => drop(shard.publish("q", 3, None).unwrap()),
                1..=3 => {
                    for handed in shard.lease(2) {
                        let (due_us, attempts) = model.waits.remove(&handed.offset.0).unwrap_or((0, 0));
                        prop_assert!(due_us <= shard.now.log_us, "{} came early", handed.offset);
                        prop_assert_eq!(handed.attempt, attempts + 1);
                        held.push(handed);
                    }
                }
                4..=5 if !held.is_empty() => {
                    let handed = held.swap_remove(at.index(held.len()));
                    shard.settle(&[(handed, retry(Some(us)))]);
                    let due_us = shard.now.log_us + us;
                    model.waits.insert(handed.offset.0, (due_us, handed.attempt));
                }
                6 if !held.is_empty() => {
                    let handed = held.swap_remove(at.index(held.len()));
                    shard.settle(&[(handed, Ending::Ack)]);
                }
                _ => {
                    // No lease lasts so long that it ends by itself.
                    for handed in held.drain(..) {
                        shard.settle(&[(handed, retry(Some(us / 2)))]);
                        model.waits.insert(handed.offset.0, (shard.now.log_us + us / 2, handed.attempt));
                    }
                    shard.pass(us);
                    // Late acks of what waits.
                    if us.is_multiple_of(3) && let Some(offset) = model.waits.keys().next().copied() {
                        shard.enact_events(vec![Event::Acked {
                            queue: shard.subscription("q", "default").queue,
                            subscription: id,
                            runs: crate::core::runs::runs_of([Offset(offset)]),
                        }]);
                        model.waits.remove(&offset);
                    }
                }
            }
            shard.spill(id, REFS_MAX);
            while shard.recall(id, REFS_MAX) > 0 {
                shard.spill(id, REFS_MAX);
            }
            let delivery = &shard.subscription("q", "default").delivery;
            prop_assert_eq!(delivery.delayed() as usize + delivery.ready(), model.waits.len());
            prop_assert!(delivery.delayed_in_memory().len() < 2 * REFS_MAX);
            // What is due is ready, as far as there is room.
            let due = model.waits.values().filter(|(due_us, _)| *due_us <= shard.now.log_us).count();
            let soon = (shard.now.log_us + 1_000_000, Offset(0));
            let room_taken = delivery.ready() + delivery.delayed_in_memory().range(..soon).count();
            prop_assert!(delivery.ready() >= due || room_taken > REFS_MAX / 2, "{} of {due}", delivery.ready());
        }
        prop_assert_eq!(shard.survey(id, &[], REFS_MAX), 0);
        // In the end all come.
        shard.pass(20_000_000);
        let mut waits = model.waits.len();
        while waits > 0 {
            shard.pass(1);
            shard.recall(id, REFS_MAX);
            let handed = shard.lease(9);
            prop_assert!(!handed.is_empty(), "{waits} are missing");
            waits -= handed.iter().filter(|handed| model.waits.remove(&handed.offset.0).is_some()).count();
        }
    }
}
