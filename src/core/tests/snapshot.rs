//! A snapshot is the state: whatever comes after, both go the same way.

use proptest::prelude::*;

use super::harness::*;
use crate::core::consume::Handed;
use crate::core::dead_letter::{self, FreshUids, Letter};
use crate::core::event::Event;
use crate::core::snapshot::{SnapshotError, decode, encode};
use crate::core::state::State;
use crate::core::types::*;
use crate::core::{admin, pause, remove, settle};
use crate::ids::{Offset, Uid};
use crate::record::Lane;

fn bytes_of(state: &State) -> Vec<u8> {
    let mut out = Vec::new();
    encode(state, &mut out);
    out
}

/// One command and the numbers that shape it.
type Step = (u8, u64, u64);

/// Gives up early, so that it happens.
const POLICY: RetryPolicy = RetryPolicy { attempts_max: 2, backoff_us_min: 1_000, backoff_us_max: 90_000 };
/// Small, so that delays are spilled and come back.
const REFS_MAX: usize = 3;
const QUEUES: [&str; 3] = ["q", "r", "s"];
const SUBSCRIPTIONS: [&str; 2] = ["default", "other"];

/// A shard that is driven by steps, and what its consumers hold.
#[derive(Clone, Default)]
struct Walk {
    shard: Shard,
    held: Vec<(&'static str, &'static str, Handed)>,
}

impl Walk {
    fn begun() -> Self {
        let mut walk = Self::default();
        walk.shard.create_queue("q").unwrap();
        walk.shard.restart(1);
        walk
    }

    /// Takes the step; what came of it as text.
    fn step(&mut self, (which, a, b): Step) -> String {
        let queue = QUEUES[a as usize % QUEUES.len()];
        let name = SUBSCRIPTIONS[b as usize % SUBSCRIPTIONS.len()];
        let shard = &mut self.shard;
        let there = shard.state.subscription_named(&subscription_name(queue, name)).is_ok();
        match which % 16 {
            0 => format!("{:?}", shard.create_queue(queue)),
            1 => {
                let config = SubscriptionConfig { retry: POLICY, ..SubscriptionConfig::default() };
                format!("{:?}", shard.subscribe_with(queue, name, config, Start::Offset(Offset(b % 40))))
            }
            2..=4 => format!("{:?}", shard.publish(queue, 1 + (b % 90) as u32, None)),
            5 => {
                let stamp = stamp(["a", "b"][b as usize % 2], 1 + a % 2, 1 + b % 4);
                format!("{:?}", shard.publish(queue, 2, Some(stamp)))
            }
            6..=8 if there => {
                let handed = shard.lease_from(queue, name, 1 + b as usize % 50);
                self.held.extend(handed.iter().map(|handed| (queue, name, *handed)));
                format!("{handed:?}")
            }
            9..=12 if !self.held.is_empty() => self.settle(which, a, b),
            13 => self.pass(b),
            14 if b.is_multiple_of(7) => {
                let decision = admin::delete_queue(&shard.state, &queue_name(queue), None);
                self.held.retain(|(of, ..)| *of != queue);
                format!("{:?}", decision.map(|decision| shard.enact(decision)))
            }
            14 if b.is_multiple_of(5) => {
                let decision =
                    admin::delete_subscription(&shard.state, &subscription_name(queue, name), None);
                self.held.retain(|(of, by, _)| (*of, *by) != (queue, name));
                format!("{:?}", decision.map(|decision| shard.enact(decision)))
            }
            14 => self.pause_or_update(queue, name, a, b),
            15 if b.is_multiple_of(3) => {
                let decision = remove::purge(&shard.state, &queue_name(queue), Some(Offset(b % 300)));
                format!("{:?}", decision.map(|decision| shard.enact(decision)))
            }
            15 if b.is_multiple_of(2) => {
                let name = queue_name(queue);
                let decision = remove::cancel(&shard.state, &name, Uid([1; 16]), Offset(b % 100));
                format!("{:?}", decision.map(|decision| shard.enact(decision)))
            }
            15 => {
                shard.restart(shard.state.incarnation() + 1);
                String::new()
            }
            _ => String::new(),
        }
    }

    fn pause_or_update(&mut self, queue: &str, name: &str, a: u64, b: u64) -> String {
        let (now, shard) = (self.shard.now, &mut self.shard);
        let subscription = a.is_multiple_of(2).then(|| subscription_name(queue, name).subscription);
        let target = pause::Target { queue: queue_name(queue), subscription };
        match b % 4 {
            0 => {
                let decision = pause::pause(&shard.state, &target, a.is_multiple_of(3), b.to_string(), now);
                format!("{:?}", decision.map(|decision| shard.enact(decision)))
            }
            1 => {
                let decision = pause::resume(&shard.state, &target);
                format!("{:?}", decision.map(|decision| shard.enact(decision)))
            }
            2 => {
                let config = QueueConfig { labels: vec![("b".to_owned(), b.to_string())] };
                let decision = admin::update_queue(&shard.state, &target.queue, None, config, now);
                format!("{:?}", decision.map(|decision| shard.enact(decision)))
            }
            _ => {
                let config = SubscriptionConfig { in_flight_max: 1 + b % 50, ..Default::default() };
                let name = subscription_name(queue, name);
                let decision = admin::update_subscription(&shard.state, &name, None, config, now);
                format!("{:?}", decision.map(|decision| shard.enact(decision)))
            }
        }
    }

    fn settle(&mut self, which: u8, a: u64, b: u64) -> String {
        let (queue, name, handed) = self.held.swap_remove(a as usize % self.held.len());
        let shard = &mut self.shard;
        let ending = match (which % 4, b % 4) {
            (0 | 1, _) | (2, 0) => Ending::Ack,
            (2, _) => Ending::Release,
            (_, 0) => return self.dead_letter(queue, name, handed),
            (_, 1) => {
                let subscription = shard.subscription(queue, name);
                let end = shard.state.queue(subscription.queue).unwrap().next_offset;
                let tokens = [token(handed)];
                let decision =
                    settle::extend(&shard.state, subscription, end, &tokens, b % LEASE_US, shard.now);
                self.held.push((queue, name, handed));
                return format!("{:?}", shard.enact(decision));
            }
            (..) => retry(Some(b % LEASE_US)),
        };
        format!("{:?}", shard.settle_on(queue, name, &[(handed, ending)]))
    }

    fn dead_letter(&mut self, queue: &str, name: &str, handed: Handed) -> String {
        let shard = &mut self.shard;
        let subscription = shard.subscription(queue, name);
        let owner = shard.state.queue(subscription.queue).unwrap();
        if !settle::is_held(&shard.state, subscription, owner.next_offset, token(handed)) {
            return "not held".to_owned();
        }
        let letter = Letter { offset: handed.offset, lane: Lane::default(), bytes: 9 };
        let fresh = FreshUids { queue: Uid([4; 16]), subscription: Uid([5; 16]) };
        let decision = dead_letter::dead_letter(&shard.state, owner, subscription, letter, fresh, shard.now);
        format!("{:?}", decision.map(|decision| shard.enact(decision)))
    }

    fn pass(&mut self, us: u64) -> String {
        self.shard.now.log_us += us % LEASE_US;
        self.shard.now.wall_us += us % LEASE_US;
        let mut ids: Vec<_> = self.shard.state.subscription_ids().collect();
        ids.sort_unstable();
        for id in ids {
            self.shard.come_due(id);
            self.shard.recall(id, REFS_MAX);
            self.shard.spill(id, REFS_MAX);
        }
        format!("{:?} {:?}", self.shard.log.last(), self.shard.given_up.drain(..))
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
        let bytes = bytes_of(&one.shard.state);
        let mut other = Walk { shard: Shard { state: decode(&bytes).unwrap(), ..one.shard.clone() }, ..one.clone() };
        prop_assert_eq!(&bytes_of(&other.shard.state), &bytes);
        for step in after {
            prop_assert_eq!(one.step(step), other.step(step));
        }
        prop_assert_eq!(bytes_of(&one.shard.state), bytes_of(&other.shard.state));
        prop_assert_eq!(one.shard.state.producer_count(), other.shard.state.producer_count());
    }

    #[test]
    fn the_log_and_the_snapshot_agree(steps in steps(300)) {
        let walk = walked(steps);
        let mut replayed = State::default();
        walk.shard.log.iter().for_each(|event| replayed.apply(event));
        prop_assert_eq!(bytes_of(&replayed), bytes_of(&walk.shard.state));
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        let _ = decode(&[&[1, 0, 0, 0], &bytes[..]].concat());
        let _ = decode(&bytes);
    }

    /// What still decodes is a state in which time can pass.
    #[test]
    fn changed_bytes_are_read_without_panic(
        before in steps(120),
        at: prop::sample::Index,
        to: u8,
        cut: prop::sample::Index,
    ) {
        let mut bytes = bytes_of(&walked(before).shard.state);
        prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]).unwrap_err(), SnapshotError::Truncated);
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(mut state) = decode(&bytes) {
            state.apply(&Event::Started { incarnation: 9, log_us: 1 });
            let again = bytes_of(&state);
            prop_assert_eq!(bytes_of(&decode(&again).unwrap()), again);
        }
    }
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
    let bytes = bytes_of(&example());
    let hex: String = bytes
        .chunks(40)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
        .collect();
    let frozen = include_str!("../../../tests/golden/snapshot.txt");
    assert!(hex == frozen, "the bytes of a snapshot have changed; they are now:\n{hex}");
}
