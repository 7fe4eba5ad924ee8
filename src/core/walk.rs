//! A shard that is driven by any numbers, for fuzzers and tests: each step is a command, and what it decides is applied.

use std::collections::BTreeMap;

use super::consume::Handed;
use super::dead_letter::{self, FreshUids, Letter};
use super::harness::*;
use super::snapshot::{Decoding, SnapshotError, put_head, put_part};
use super::state::State;
use super::types::*;
use super::{admin, pause, remove, settle};
use crate::ids::{Offset, QueueId, Uid};
use crate::record::Lane;

/// Bytes that say one step.
const STEP_BYTES: usize = 5;

/// Does what the bytes say. Afterwards the log makes the same state again, and so does a snapshot, and a state that was
/// made of a snapshot halfway.
pub fn commands(data: &[u8]) {
    let step = |bytes: &[u8]| {
        let number = |at: usize| u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        (bytes[0], number(1), number(3) * 997)
    };
    let steps: Vec<Step> = data.chunks_exact(STEP_BYTES).map(step).collect();
    let (before, after) = steps.split_at(steps.len() / 2);
    let mut one = Walk::begun();
    before.iter().for_each(|step| drop(one.step(*step)));
    let image = image_of(&one.shard.state);
    let state = image.decode().expect("what is written is read");
    let mut other = Walk { shard: Shard { state, ..one.shard.clone() }, ..one.clone() };
    for step in after {
        assert_eq!(one.step(*step), other.step(*step), "both go on in the same way");
    }
    let end = image_of(&one.shard.state);
    assert_eq!(image_of(&other.shard.state), end);
    let mut replayed = State::default();
    one.shard.log.iter().for_each(|event| replayed.apply(event));
    assert_eq!(image_of(&replayed), end, "the log makes the state again");
}

/// A snapshot, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub head: Vec<u8>,
    pub parts: BTreeMap<QueueId, Vec<u8>>,
}

pub fn image_of(state: &State) -> Image {
    let mut image = Image::default();
    image.update(state, &state.queue_ids().collect::<Vec<_>>());
    image
}

impl Image {
    /// Puts these queues anew, and the head.
    pub fn update(&mut self, state: &State, changed: &[QueueId]) {
        self.head.clear();
        put_head(&mut self.head, state);
        for id in changed {
            self.parts.remove(id);
            if let Some(queue) = state.queue(*id) {
                put_part(self.parts.entry(*id).or_default(), state, queue);
            }
        }
    }

    pub fn decode(&self) -> Result<State, SnapshotError> {
        let mut decoding = Decoding::begin(&self.head)?;
        self.parts.iter().try_for_each(|(id, part)| decoding.part(*id, part))?;
        Ok(decoding.end())
    }
}

/// One command and the numbers that shape it.
pub type Step = (u8, u64, u64);

/// Gives up early, so that it happens.
pub const POLICY: RetryPolicy =
    RetryPolicy { attempts_max: 2, backoff_us_min: 1_000, backoff_us_max: 90_000 };
/// Small, so that delays are spilled and come back.
const REFS_MAX: usize = 3;
pub const QUEUES: [&str; 3] = ["q", "r", "s"];
const SUBSCRIPTIONS: [&str; 2] = ["default", "other"];

/// A shard that is driven by steps, and what its consumers hold.
#[derive(Clone, Default)]
pub struct Walk {
    pub shard: Shard,
    pub held: Vec<(&'static str, &'static str, Handed)>,
}

impl Walk {
    pub fn begun() -> Self {
        let mut walk = Self::default();
        walk.shard.create_queue("q").unwrap();
        walk.shard.restart(1);
        walk
    }

    /// Takes the step; what came of it as text.
    pub fn step(&mut self, (which, a, b): Step) -> String {
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

    pub fn dead_letter(&mut self, queue: &str, name: &str, handed: Handed) -> String {
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
