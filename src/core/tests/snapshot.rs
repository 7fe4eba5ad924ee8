//! A snapshot is the state: whatever comes after, both go the same way.

use proptest::prelude::*;

use super::harness::*;
use crate::core::event::Event;
use crate::core::publish::LaneRun;
use crate::core::snapshot::SnapshotError;
use crate::core::state::State;
use crate::core::types::*;
use crate::core::walk::*;
use crate::core::{admin, publish};
use crate::ids::QueueId;
use crate::limits::PRODUCER_IDLE_US;
use crate::record::Lane;

impl Image {
    /// The head or a part, and the error of a snapshot in which it is another.
    fn changed(
        &self,
        at: prop::sample::Index,
        change: impl FnOnce(&mut Vec<u8>),
    ) -> Result<State, SnapshotError> {
        let mut image = self.clone();
        let mut all: Vec<&mut Vec<u8>> =
            [&mut image.head].into_iter().chain(image.parts.values_mut()).collect();
        let which = at.index(all.len());
        change(all[which]);
        image.decode()
    }
}

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec((any::<u8>(), any::<u64>(), any::<u64>()), 0..count)
}

fn walked(steps: Vec<Step>) -> Walk {
    let mut walk = Walk::begun();
    steps.into_iter().for_each(|step| drop(walk.step(step)));
    walk
}

proptest! {
    #[test]
    fn both_go_on_in_the_same_way(before in steps(300), after in steps(300)) {
        let mut one = walked(before);
        let image = image_of(&one.shard.state);
        let mut other = Walk { shard: Shard { state: image.decode().unwrap(), ..one.shard.clone() }, ..one.clone() };
        prop_assert_eq!(&image_of(&other.shard.state), &image);
        for step in after {
            prop_assert_eq!(one.step(step), other.step(step));
        }
        prop_assert_eq!(image_of(&one.shard.state), image_of(&other.shard.state));
        prop_assert_eq!(one.shard.state.producer_count(), other.shard.state.producer_count());
    }

    #[test]
    fn the_log_and_the_snapshot_agree(steps in steps(300)) {
        let walk = walked(steps);
        let mut replayed = State::default();
        walk.shard.log.iter().for_each(|event| replayed.apply(event));
        prop_assert_eq!(image_of(&replayed), image_of(&walk.shard.state));
    }

    /// What is not told as changed is what it was, whatever has happened, and after a restart too.
    #[test]
    fn what_has_changed_is_told(walks in proptest::collection::vec(steps(40), 1..12), restarts: u16) {
        let mut walk = Walk::begun();
        let mut image = Image::default();
        for (at, steps) in walks.into_iter().enumerate() {
            steps.into_iter().for_each(|step| drop(walk.step(step)));
            let changed = walk.shard.state.take_changed();
            prop_assert!(changed.is_sorted());
            image.update(&walk.shard.state, &changed);
            prop_assert_eq!(&image, &image_of(&walk.shard.state));
            prop_assert_eq!(walk.shard.state.take_changed(), []);
            if restarts >> at & 1 == 1 {
                walk.shard.state = image.decode().unwrap();
                prop_assert_eq!(walk.shard.state.take_changed(), []);
            }
        }
    }

    /// Of an event it is known beforehand which queue it changes.
    #[test]
    fn an_event_changes_the_queue_alone_that_it_says(steps in steps(300)) {
        let walk = walked(steps);
        let mut state = State::default();
        for event in &walk.shard.log {
            let told = state.changes(event);
            state.apply(event);
            let changed = state.take_changed();
            prop_assert!(told.is_none() || changed.iter().all(|queue| Some(*queue) == told), "{:?}", event);
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        for bytes in [[&[1, 0], &bytes[..]].concat(), bytes] {
            let head = image_of(&State::default()).head;
            let _ = Image { head: bytes.clone(), ..Image::default() }.decode();
            let _ = Image { head, parts: [(QueueId(1), bytes)].into() }.decode();
        }
    }

    /// What still decodes is a state in which time can pass.
    #[test]
    fn changed_bytes_are_read_without_panic(
        before in steps(120),
        which: prop::sample::Index,
        at: prop::sample::Index,
        to: u8,
    ) {
        let image = image_of(&walked(before).shard.state);
        let cut = image.changed(which, |bytes| bytes.truncate(at.index(bytes.len())));
        prop_assert_eq!(cut.unwrap_err(), SnapshotError::Truncated);
        let flipped = image.changed(which, |bytes| {
            let at = at.index(bytes.len());
            bytes[at] = to;
        });
        if let Ok(mut state) = flipped {
            state.apply(&Event::Started { incarnation: 9, log_us: 1 });
            let again = image_of(&state);
            prop_assert_eq!(image_of(&again.decode().unwrap()), again);
        }
    }
}

#[test]
fn a_publish_that_looks_for_idle_producers_may_change_any_queue() {
    let mut shard = Shard::default();
    let ids = QUEUES.map(|name| shard.create_queue(name).unwrap());
    shard.publish("q", 1, Some(stamp("idle", 1, 1))).unwrap();
    shard.state.take_changed();
    shard.now.log_us += 2 * PRODUCER_IDLE_US;
    let publish = |shard: &Shard, sequence| {
        let run = LaneRun { lane: Lane::default(), count: 1, bytes: 1 };
        let stamp = Some(stamp("busy", 1, sequence));
        let queue = shard.state.queue_named(&queue_name("r")).unwrap();
        publish::publish(&shard.state, queue, &[run], stamp, shard.now).unwrap()
    };
    let decision = publish(&shard, 1);
    assert_eq!(shard.state.changes(&decision.events[0]), None);
    shard.enact(decision);
    assert_eq!(shard.state.take_changed(), ids[..2]);
    assert_eq!(shard.state.changes(&publish(&shard, 2).events[0]), Some(ids[1]));
}

#[test]
fn a_change_is_told_of_the_queue_alone_that_it_is_in() {
    let mut shard = Shard::default();
    let ids = QUEUES.map(|name| shard.create_queue(name).unwrap());
    assert_eq!(shard.state.take_changed(), ids);
    shard.publish("r", 3, None).unwrap();
    assert_eq!(shard.state.take_changed(), [ids[1]]);
    let handed = shard.lease_from("r", "default", 1);
    assert_eq!(shard.state.take_changed(), [ids[1]]);
    shard.now.log_us += LEASE_US;
    shard.restart(2);
    assert_eq!(shard.state.take_changed(), [ids[1]], "the lease has got its grace");
    shard.restart(3);
    assert_eq!(shard.state.take_changed(), [], "which is as long again");
    shard.settle_on("r", "default", &[(handed[0], Ending::Ack)]);
    let decision = admin::delete_queue(&shard.state, &queue_name("q"), None).unwrap();
    shard.enact(decision);
    assert_eq!(shard.state.take_changed(), [ids[0], ids[1]]);
    shard.state.mark_changed([ids[0]]);
    assert_eq!(shard.state.take_changed(), [ids[0]]);
    shard.state.mark_all_changed();
    assert_eq!(shard.state.take_changed(), ids[1..]);
}

/// A state with something of every kind.
fn example() -> State {
    let mut walk = Walk::begun();
    let shard = &mut walk.shard;
    shard.now.wall_us = 1_700_000_000_000_000;
    shard.now.log_us = 5_000_000;
    let config = SubscriptionConfig {
        retry: POLICY,
        dead_letter_queue: Some(queue_name("lost")),
        ..SubscriptionConfig::default()
    };
    shard.subscribe_with("q", "other", config, Start::Latest).unwrap();
    shard.publish("q", 30, None).unwrap();
    shard.publish("q", 2, Some(stamp("p-1", 3, 1))).unwrap();
    shard.publish("q", 5, Some(stamp("p-1", 3, 2))).unwrap();
    let handed = shard.lease(24);
    let acks: Vec<_> =
        handed.iter().filter(|handed| handed.offset.0 % 2 == 1).map(|h| (*h, Ending::Ack)).collect();
    shard.settle(&acks);
    let id = shard.subscription("q", "default").id;
    for (index, delay_us) in [(12, 8_000_000), (14, 8_000_000), (16, 8_100_000), (18, 9_000_000), (20, 100)] {
        shard.settle(&[(handed[index], retry(Some(delay_us)))]);
    }
    assert_eq!(shard.spill(id, 2), 1);
    shard.now.log_us += 8_100_000;
    shard.now.wall_us += 8_100_000;
    assert_eq!(shard.recall(id, 10), 1);
    shard.settle(&[(handed[2], retry(Some(7_000_000))), (handed[4], Ending::Release)]);
    let (queue, name) = ("q", "other");
    let other = shard.lease_from(queue, name, 6);
    let acks: Vec<_> = other[1..].iter().map(|handed| (*handed, Ending::Ack)).collect();
    shard.settle_on(queue, name, &acks);
    let rejected = shard.lease(1)[0];
    walk.dead_letter("q", "default", rejected);
    walk.shard.state
}

/// The layout is part of the format. Where a change is meant (right only before the first release of a format
/// version), the golden file is written anew from what a failure prints.
#[test]
fn the_layout_is_frozen() {
    let Image { head, parts } = image_of(&example());
    let bytes = [head].into_iter().chain(parts.into_values()).collect::<Vec<_>>().concat();
    let hex: String = bytes
        .chunks(40)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
        .collect();
    let frozen = include_str!("../../../tests/golden/snapshot.txt");
    assert!(hex == frozen, "the bytes of a snapshot have changed; they are now:\n{hex}");
}
