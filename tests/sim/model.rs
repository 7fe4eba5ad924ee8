//! What must be true of the answers, written without a look at how the broker does it.
//!
//! 1. A message that comes is one that was published, byte for byte, at the offset that its publish was told, or at one
//!    offset for ever if it was told none; all messages of a publish are stored or none.
//! 2. What was acknowledged to be published comes to each subscription until it is acked there, purged, given up to the
//!    dead-letter queue (and found there, once), or reported as lost.
//! 3. After an acknowledged ack it does not come again; after an acknowledged purge, cancel or delete, to no later
//!    pull.
//! 4. In one life of the process no two leases of a message overlap.
//! 5. In each batch messages come in order; a queue with one consumer hands each message out for the first time in
//!    order of offset.
//!
//! What was not answered, or by a process whose disk had stopped, may have happened or not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use forebay::broker::QueueOffsets;
use forebay::broker::api::{Delivery, StoredMessage};
use forebay::ids::{Offset, Uid};
use forebay::record::meta::Meta;

use crate::coverage::Coverage;
use crate::random::Random;

/// Bytes at the head of each body that say what it is.
const LABEL_BYTES: usize = 12;

/// A publish, by its number in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishId(pub u32);

/// A message as its body says.
type MessageId = (PublishId, u32);
/// A subscription of the queue that has this uid.
type Key = (Uid, String);

#[derive(Clone, Debug)]
pub struct Publish {
    pub queue: String,
    pub sizes: Vec<u32>,
    outcome: Outcome,
    began: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Unknown,
    Stored(Uid, u64),
    Refused,
}

#[derive(Clone, Debug, Default)]
struct Queue {
    name: String,
    offsets: BTreeMap<u64, MessageId>,
    /// Acknowledged purges: when, and up to where.
    purges: Vec<(u64, u64)>,
    /// Purges without an answer have finished no more than what is below.
    purged_maybe: u64,
    /// Single messages that were taken back, or maybe: when that was told.
    cancelled: BTreeMap<u64, Option<u64>>,
    deleting: bool,
    deleted: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Subscription {
    /// What was published later must come.
    made: u64,
    /// And the wall time, microseconds, at which that was told.
    acked: BTreeMap<u64, u64>,
    acked_maybe: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
    leases: BTreeMap<u64, Lease>,
    given_up: BTreeMap<u64, Uid>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    life: u64,
    ends_us: u64,
}

/// A call to pull, from when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Pull {
    pub moment: u64,
    pub at_us: u64,
    pub life: u64,
    /// Nobody else takes from the subscription.
    pub alone: bool,
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub struct Model {
    moment: u64,
    life_began: u64,
    publishes: Vec<Publish>,
    /// Where messages were seen, or said to be.
    places: BTreeMap<MessageId, (Uid, u64)>,
    queues: BTreeMap<Uid, Queue>,
    subscriptions: BTreeMap<Key, Subscription>,
    /// Those that are there at the end.
    left: BTreeSet<Key>,
    /// Queues that may be paused: since when, and whether that was answered.
    pauses: BTreeMap<String, (u64, bool)>,
    /// Where given-up messages were found.
    letters: BTreeMap<(Uid, String, u64), (Uid, u64)>,
    /// Messages that were reported as lost.
    lost: BTreeSet<(Uid, u64)>,
    /// Offsets of messages that a start has said to be lost, maybe.
    lost_ranges: Vec<(Uid, String, Range<u64>)>,
    /// Records other than messages may have been lost, and it was said.
    pub damage_told: bool,
    deliveries: u64,
    redeliveries: u64,
}

/// The body of a message.
pub fn body(id: PublishId, index: u32, size: u32) -> Bytes {
    let mut body = vec![0; LABEL_BYTES + size as usize];
    body[..4].copy_from_slice(&id.0.to_le_bytes());
    body[4..8].copy_from_slice(&index.to_le_bytes());
    body[8..12].copy_from_slice(&size.to_le_bytes());
    Random::new(u64::from(id.0) << 32 | u64::from(index)).fill(&mut body[LABEL_BYTES..]);
    body.into()
}

/// Whether a queue of this name was made again, as its creation was lost.
pub fn is_recovered(name: &str) -> bool {
    name.starts_with("recovered-")
}

fn label(body: &[u8]) -> Option<(MessageId, u32)> {
    let number = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
    Some(((PublishId(number(0)?), number(4)?), number(8)?))
}

impl Model {
    /// A moment later than all before.
    pub fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// The process is started.
    pub fn begin_life(&mut self) {
        self.life_began = self.moment();
    }

    /// Messages that are about to be published.
    pub fn publish(&mut self, queue: &str, sizes: Vec<u32>) -> (PublishId, Vec<Bytes>) {
        let id = PublishId(self.publishes.len() as u32);
        let bodies = sizes.iter().zip(0..).map(|(size, index)| body(id, index, *size)).collect();
        let began = self.moment();
        self.publishes.push(Publish { queue: queue.to_owned(), sizes, outcome: Outcome::Unknown, began });
        (id, bodies)
    }

    pub fn published(&mut self, id: PublishId, uid: Uid, first: Offset, count: u32) {
        let publish = &mut self.publishes[id.0 as usize];
        assert_eq!(count as usize, publish.sizes.len(), "the answer to {id:?} counts its messages");
        let told = Outcome::Stored(uid, first.0);
        assert!(
            publish.outcome == Outcome::Unknown || publish.outcome == told,
            "{id:?} was stored as {:?}, then as {told:?}",
            publish.outcome
        );
        publish.outcome = told;
        let name = publish.queue.clone();
        (0..count).for_each(|index| self.place((id, index), uid, &name, first.0 + u64::from(index)));
    }

    pub fn refused(&mut self, id: PublishId) {
        let publish = &mut self.publishes[id.0 as usize];
        assert_eq!(publish.outcome, Outcome::Unknown, "{id:?} was refused after all");
        publish.outcome = Outcome::Refused;
    }

    pub fn bodies(&self, id: PublishId) -> Vec<Bytes> {
        let sizes = self.publishes[id.0 as usize].sizes.iter();
        sizes.zip(0..).map(|(size, index)| body(id, index, *size)).collect()
    }

    fn place(&mut self, message: MessageId, uid: Uid, name: &str, offset: u64) {
        let known = *self.places.entry(message).or_insert((uid, offset));
        assert_eq!(known, (uid, offset), "message {message:?} is at two places");
        let queue = self.queue(uid, name);
        let there = *queue.offsets.entry(offset).or_insert(message);
        assert_eq!(there, message, "two messages are at offset {offset} of {name}");
    }

    fn queue(&mut self, uid: Uid, name: &str) -> &mut Queue {
        let queue = self.queues.entry(uid).or_default();
        name.clone_into(&mut queue.name);
        queue
    }

    /// What is known of a subscription. One whose making was not answered is there at the latest when it is first
    /// heard of; that of each queue is made with it.
    fn subscription(&mut self, uid: Uid, name: &str) -> &mut Subscription {
        let made = if name == "default" { 0 } else { self.moment() };
        let fresh = || Subscription { made, ..Subscription::default() };
        self.subscriptions.entry((uid, name.to_owned())).or_insert_with(fresh)
    }

    /// A queue is there.
    pub fn created(&mut self, name: &str, uid: Uid) {
        self.queue(uid, name);
        self.subscription(uid, "default");
    }

    /// A subscription is there: what is published from now on comes to it.
    pub fn subscribed(&mut self, uid: Uid, name: &str) {
        self.subscription(uid, name);
    }

    /// Nobody knows any more whether it is there.
    pub fn deleting(&mut self, uid: Uid) {
        self.queues.entry(uid).or_default().deleting = true;
    }

    /// A queue may be paused from now on.
    pub fn pausing(&mut self, queue: &str) {
        let moment = self.moment();
        self.pauses.insert(queue.to_owned(), (moment, false));
    }

    /// The last pause was answered.
    pub fn paused(&mut self, queue: &str) {
        self.pauses.entry(queue.to_owned()).and_modify(|(_, answered)| *answered = true);
    }

    /// What was paused for certain when this resume began goes on.
    pub fn resumed(&mut self, queue: &str, began: u64) {
        if self.pauses.get(queue).is_some_and(|(paused, answered)| *paused < began && *answered) {
            self.pauses.remove(queue);
        }
    }

    /// Whether nothing keeps a message from being delivered that waits.
    pub fn is_free(&self, queue: &str, uid: Uid, offset: Offset) -> bool {
        let purged = self.queues.get(&uid).map_or(0, Queue::purged);
        !self.pauses.contains_key(queue) && !self.may_be_gone(uid) && offset.0 >= purged
    }

    /// Whether a queue may not be there, or lack what it had.
    pub fn may_be_gone(&self, uid: Uid) -> bool {
        self.damage_told || self.queues.get(&uid).is_none_or(|queue| queue.deleting)
    }

    /// At the end there is no queue of this name.
    pub fn gone(&mut self, name: &str) {
        self.is_there(name, Uid([0; 16]));
    }

    /// At the end the queue of this name has this uid, so others of the name were deleted.
    pub fn is_there(&mut self, name: &str, uid: Uid) {
        let moment = self.moment;
        let damage_told = self.damage_told;
        let others = self.queues.iter_mut().filter(|(of, queue)| queue.name == name && **of != uid);
        for (_, queue) in others.filter(|(_, queue)| queue.deleted.is_none()) {
            assert!(queue.deleting || damage_told, "queue {name} is gone, and nobody deleted it");
            queue.deleted = Some(moment);
        }
    }

    /// At the end a queue has these subscriptions.
    pub fn subscriptions_are(&mut self, queue: Uid, names: impl IntoIterator<Item = String>) {
        self.left.extend(names.into_iter().map(|name| (queue, name)));
    }

    /// What a lost one should have got is not expected, if damage was told: who asks for it hears that it does not exist.
    /// Its dead letters may be there.
    fn is_subscription_lost(&self, key: &Key) -> bool {
        self.damage_told && !self.left.contains(key)
    }

    pub fn deleted(&mut self, uid: Uid) {
        let moment = self.moment();
        self.queues.entry(uid).or_default().deleted.get_or_insert(moment);
    }

    pub fn purged(&mut self, uid: Uid, end: Offset) {
        let moment = self.moment();
        self.queues.entry(uid).or_default().purges.push((moment, end.0));
    }

    /// Purges that were not answered have come no further than this.
    pub fn purged_maybe(&mut self, uid: Uid, end: Offset) {
        let queue = self.queues.entry(uid).or_default();
        queue.purged_maybe = queue.purged_maybe.max(end.0);
    }

    /// A message may be taken back from now on.
    pub fn cancelling(&mut self, uid: Uid, offset: Offset) {
        self.queues.entry(uid).or_default().cancelled.entry(offset.0).or_default();
    }

    pub fn cancelled(&mut self, uid: Uid, offset: Offset) {
        let moment = self.moment();
        self.queues.entry(uid).or_default().cancelled.insert(offset.0, Some(moment));
    }

    /// Nothing is expected of this subscription any more.
    pub fn unsubscribing(&mut self, queue: &str, subscription: &str) {
        let of = |uid: &Uid| self.queues.get(uid).is_some_and(|known| known.name == queue);
        self.subscriptions.retain(|(uid, name), _| !(of(uid) && name == subscription));
    }

    pub fn lost(&mut self, queue: &str, uid: Uid, offset: Offset) {
        self.queue(uid, queue);
        self.lost.insert((uid, offset.0));
    }

    /// A start has said so, or that it may be.
    pub fn lost_range(&mut self, of: &QueueOffsets) {
        let name = of.name.queue.as_str().to_owned();
        self.lost_ranges.push((of.uid, name, of.first.0..of.end.0));
    }

    fn is_lost(&self, uid: Uid, offset: u64) -> bool {
        self.lost.contains(&(uid, offset))
            || self.lost_ranges.iter().any(|(of, _, range)| *of == uid && range.contains(&offset))
    }

    /// Whether a dead letter of a queue was lost, which one nobody knows.
    fn is_letter_lost(&self, name: &str) -> bool {
        let dead = format!("{name}-dead");
        let may_be = |of: &str| of == dead || is_recovered(of);
        self.lost_ranges.iter().any(|(_, of, _)| may_be(of))
            || self.lost.iter().any(|(uid, _)| self.queues.get(uid).is_some_and(|queue| may_be(&queue.name)))
    }

    /// Checks a message wherever it comes from; its offset.
    pub fn read(&mut self, name: &str, uid: Uid, offset: Offset, bytes: &Bytes) -> u64 {
        let (message, size) =
            label(bytes).unwrap_or_else(|| panic!("{name}/{offset}: nobody published this"));
        let (id, index) = message;
        let publish = self.publishes.get(id.0 as usize);
        let publish = publish.unwrap_or_else(|| panic!("{name}/{offset}: there is no {id:?}"));
        assert_eq!(publish.sizes.get(index as usize), Some(&size), "{name}/{offset}: not as published");
        assert!(*bytes == body(id, index, size), "{name}/{offset}: not the bytes of {id:?}[{index}]");
        assert_ne!(publish.outcome, Outcome::Refused, "{name}/{offset}: {id:?} was refused");
        if !name.ends_with("-dead") {
            assert_eq!(publish.queue, name, "{id:?} is in another queue");
            let name = name.to_owned();
            self.place(message, uid, &name, offset.0);
        }
        offset.0
    }

    /// Checks what a pull has brought.
    pub fn pulled(&mut self, name: &str, subscription: &str, pull: Pull, seen_us: u64, batch: &[Delivery]) {
        let offsets: Vec<u64> = batch.iter().map(|delivery| delivery.message.offset.0).collect();
        assert!(offsets.is_sorted_by(|a, b| a < b), "{name}/{subscription}: not in order: {offsets:?}");
        for delivery in batch {
            self.delivered(name, subscription, pull, seen_us, delivery);
        }
    }

    fn delivered(&mut self, name: &str, subscription: &str, pull: Pull, seen_us: u64, delivery: &Delivery) {
        self.deliveries += 1;
        self.redeliveries += u64::from(delivery.attempt > 1);
        let message = &delivery.message;
        let uid = message.queue_uid;
        let offset = self.read(name, uid, message.offset, &message.body);
        if name.ends_with("-dead") {
            self.dead_letter(uid, offset, &message.meta);
        }
        let what = format!("{name}/{subscription}/{offset}, attempt {}", delivery.attempt);
        let damage_told = self.damage_told;
        let queue = self.queue(uid, name);
        assert!(queue.deleted.is_none_or(|at| at > pull.moment), "{what}: its queue was deleted");
        let purged = queue.purges.iter().any(|(at, end)| *at < pull.moment && offset < *end);
        assert!(!purged || damage_told, "{what}: it was purged");
        let cancelled = queue.cancelled.get(&offset).copied().flatten();
        assert!(cancelled.is_none_or(|at| at > pull.moment) || damage_told, "{what}: it was taken back");
        let earlier = if pull.alone { self.published_earlier(uid, subscription, offset) } else { Vec::new() };
        let state = self.subscription(uid, subscription);
        assert!(!state.acked.contains_key(&offset) || damage_told, "{what}: it was acked");
        assert!(!state.given_up.contains_key(&offset) || damage_told, "{what}: it was given up");
        if let Some(lease) = state.leases.get(&offset).filter(|lease| lease.life == pull.life) {
            let (ends, now) = (lease.ends_us, seen_us);
            assert!(now >= ends, "{what}: it comes at {now} us, and is leased until {ends} us at least");
        }
        state.leases.insert(offset, Lease { life: pull.life, ends_us: pull.at_us + delivery.lease_us });
        assert!(delivery.attempt >= 1, "{what}: attempts count from 1");
        if state.delivered.insert(offset) && !damage_told {
            let skipped = earlier.iter().find(|earlier| !state.delivered.contains(earlier));
            assert_eq!(skipped, None, "{what}: an earlier one did not come before it");
        }
    }

    /// Messages of this life, and of that of a subscription, before an offset that nobody can have purged.
    fn published_earlier(&self, uid: Uid, subscription: &str, offset: u64) -> Vec<u64> {
        let queue = &self.queues[&uid];
        let key = (uid, subscription.to_owned());
        let Some(made) = self.subscriptions.get(&key).map(|s| s.made).filter(|made| *made > 0) else {
            return Vec::new();
        };
        let is_new = |id: PublishId| self.publishes[id.0 as usize].began > self.life_began.max(made);
        let earlier = queue.offsets.range(queue.purged().min(offset)..offset);
        earlier.filter(|(_, (id, _))| is_new(*id)).map(|(offset, _)| *offset).collect()
    }

    /// A message is in a queue that was made again under another name: it may be a dead letter.
    pub fn recovered(&mut self, message: &StoredMessage) {
        let meta = Meta::decode(&message.meta).expect("the metadata of a message");
        if let Some(letter) = meta.dead_letter {
            let name = letter.subscription.rsplit('/').next().expect("a full name").to_owned();
            let state = self.subscription(letter.queue_uid, &name);
            state.given_up.entry(letter.offset.0).or_insert(message.queue_uid);
        }
    }

    /// A given-up message has come to a dead-letter queue.
    fn dead_letter(&mut self, dead: Uid, at: u64, meta: &Bytes) {
        let meta = Meta::decode(meta).expect("the metadata of a dead letter");
        let letter = meta.dead_letter.expect("a dead letter says where it comes from");
        let name = letter.subscription.rsplit('/').next().expect("a full name").to_owned();
        let offset = letter.offset.0;
        let damage_told = self.damage_told;
        let state = self.subscription(letter.queue_uid, &name);
        // An ack of what was given up is no error; giving up what was acked is.
        let in_time = state.acked.get(&offset).is_none_or(|acked_us| letter.time_us <= *acked_us);
        assert!(in_time || damage_told, "{name}/{offset} was acked, then given up");
        state.given_up.insert(offset, dead);
        let known = *self.letters.entry((letter.queue_uid, name, offset)).or_insert((dead, at));
        assert_eq!(known, (dead, at), "a message was given up twice");
    }

    /// Deliveries are about to be settled: their leases may end, and acks may count.
    pub fn settling(&mut self, uid: Uid, subscription: &str, offset: Offset) {
        self.subscription(uid, subscription).leases.remove(&offset.0);
    }

    /// A lease was made to last at least until then.
    pub fn extended(&mut self, uid: Uid, subscription: &str, offset: Offset, life: u64, ends_us: u64) {
        // If it was handed out again meanwhile, that is the lease.
        self.subscription(uid, subscription).leases.entry(offset.0).or_insert(Lease { life, ends_us });
    }

    pub fn acked(&mut self, uid: Uid, subscription: &str, offset: Offset, wall_us: u64) {
        self.subscription(uid, subscription).acked.entry(offset.0).or_insert(wall_us);
    }

    /// Nobody knows whether an ack counted.
    pub fn acked_maybe(&mut self, uid: Uid, subscription: &str, offset: Offset) {
        self.subscription(uid, subscription).acked_maybe.insert(offset.0);
    }

    /// Queues that are there as far as was told.
    pub fn live(&self) -> Vec<(Uid, String)> {
        let live = self.queues.iter().filter(|(_, queue)| queue.deleted.is_none());
        live.map(|(uid, queue)| (*uid, queue.name.clone())).collect()
    }

    pub fn count(&self, coverage: &mut Coverage) {
        coverage.deliveries = self.deliveries;
        coverage.redeliveries = self.redeliveries;
        coverage.dead_letters = self.letters.len() as u64;
        coverage.losses_told = self.lost.len() as u64 + u64::from(self.damage_told);
    }

    /// After all queues were emptied by acks: nothing that was promised is missing.
    pub fn check_end(&self) {
        let expected = self.subscriptions.iter().filter(|(key, _)| !self.is_subscription_lost(key));
        for ((uid, name), state) in expected {
            let Some(queue) = self.queues.get(uid).filter(|queue| queue.deleted.is_none()) else { continue };
            let purged = queue.purged();
            for (offset, (id, index)) in queue.offsets.range(purged..) {
                let publish = &self.publishes[id.0 as usize];
                let may_be_cancelled = queue.cancelled.contains_key(offset);
                if publish.outcome == Outcome::Unknown || publish.began < state.made || may_be_cancelled {
                    continue;
                }
                let is_there = state.delivered_at_end(*offset)
                    || state.given_up.contains_key(offset)
                    || self.is_lost(*uid, *offset)
                    || self.is_letter_lost(&queue.name);
                assert!(
                    is_there,
                    "{}/{name}/{offset} ({id:?}[{index}]) was acknowledged, and is lost without a word",
                    queue.name
                );
            }
        }
        self.check_whole();
    }

    /// All messages of a publish are there or none.
    fn check_whole(&self) {
        for (publish, number) in self.publishes.iter().zip(0..) {
            let place = |index: u32| Some((u64::from(index), self.places.get(&(PublishId(number), index))?));
            let seen: Vec<_> = (0..publish.sizes.len() as u32).filter_map(place).collect();
            let Some((index, (uid, offset))) =
                seen.first().copied().filter(|_| seen.len() < publish.sizes.len())
            else {
                continue;
            };
            let queue = &self.queues[uid];
            // A purge may have ended within it.
            let excused = queue.deleted.is_some() || offset - index < queue.purged() || self.damage_told;
            assert!(
                excused,
                "of publish {number}, {:?}, only some messages are in {}: {seen:?} of {}",
                publish.outcome,
                queue.name,
                publish.sizes.len()
            );
        }
    }
}

impl Queue {
    /// Messages below it may have been purged.
    fn purged(&self) -> u64 {
        self.purges.iter().map(|(_, end)| *end).fold(self.purged_maybe, u64::max)
    }
}

impl Subscription {
    /// What was acked for certain was delivered before; what was acked maybe is finished, or came at the end.
    fn delivered_at_end(&self, offset: u64) -> bool {
        self.acked.contains_key(&offset) || self.acked_maybe.contains(&offset)
    }
}
