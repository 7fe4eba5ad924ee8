//! Memory for what goes out: messages count from before they are read until the last byte of their answer has gone.
//!
//! 1. A reader (a stream of deliveries, a tail, a pull, a look at messages) takes a permit for the bytes that it is
//!    to get, before they are read. Without one it waits; nobody waits while holding messages that are not under way
//!    already, so nobody waits for ever as long as readers read.
//! 2. There are two shares, each served in the order of asking: one for readers that have taken [`PROVEN_BYTES`], more than
//!    a client commonly buffers unread, one for those that have not yet. So readers that never read cannot use up what
//!    others go on with.
//! 3. A message that is larger than what is free gets through when it is its turn; one that is larger than the share
//!    takes all of it.
//! 4. Readers of one thing, such as a subscription, have a [`Line`] of their own, and only the first in it stands in
//!    the line of all. So a thousand that do not read hold up whoever reads something else as long as one of them does.
//! 5. Readers that stop reading while others wait are cut off; see [`Outlet::is_wanted`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::{Admission, Permit, Waiter};

/// All memory for what goes out, bytes.
pub const OUTFLOW_BYTES: u64 = 24 << 20;
/// Larger answers go out in copied pieces of this size.
pub const PIECE_BYTES: usize = 32 << 10;
/// Of one answer in pieces, what may be in HTTP/2's hands, bytes.
pub const SEND_BYTES: usize = 2 * PIECE_BYTES;
/// Who has taken this much is known to read, bytes.
const PROVEN_BYTES: u64 = 1 << 20;
/// What a message takes besides its metadata and body: handles, its ack id and other fields of the answer.
const MESSAGE_BYTES: u64 = 256;

/// Memory that messages take until their answer has gone; `bytes` is their metadata and bodies.
pub fn memory_of(messages: u64, bytes: u64) -> u64 {
    answer_memory(bytes + messages * MESSAGE_BYTES)
}

/// Bytes of `count` messages, metadata and bodies, that this much memory covers.
pub fn bytes_within(memory_bytes: u64, count: u64) -> u64 {
    let (piece, pieces) = (PIECE_BYTES as u64, SEND_BYTES as u64);
    let answer =
        if memory_bytes > piece { memory_bytes.saturating_sub(pieces).max(piece) } else { memory_bytes };
    answer.saturating_sub(count * MESSAGE_BYTES)
}

/// Memory of an answer and of its pieces under way.
pub fn answer_memory(bytes: u64) -> u64 {
    if bytes > PIECE_BYTES as u64 { bytes + SEND_BYTES as u64 } else { bytes }
}

/// The budget, shared by its clones. See the module's header.
#[derive(Clone, Debug)]
pub struct Outflow {
    new: Admission,
    proven: Admission,
    /// Of those that look at messages without a subscription.
    looks: Line,
    /// Readers that wait, those in a line too.
    waiting: Arc<AtomicUsize>,
    cuts: Arc<AtomicU64>,
}

/// A line of readers that have something in common, for each share; its clones are the same one.
#[derive(Clone, Debug)]
pub struct Line {
    new: Arc<Semaphore>,
    proven: Arc<Semaphore>,
}

impl Default for Line {
    fn default() -> Self {
        let first = || Arc::new(Semaphore::new(1));
        Self { new: first(), proven: first() }
    }
}

impl Outflow {
    /// A budget of this many bytes, half for each share.
    pub fn new(bytes: u64) -> Self {
        let share = || Admission::new(bytes / 2, 0);
        let (waiting, cuts) = (Arc::default(), Arc::default());
        Self { new: share(), proven: share(), looks: Line::default(), waiting, cuts }
    }

    /// The whole budget.
    pub fn budget_bytes(&self) -> u64 {
        self.new.budget_bytes() + self.proven.budget_bytes()
    }

    /// What is taken now.
    pub fn used_bytes(&self) -> u64 {
        self.new.used_bytes() + self.proven.used_bytes()
    }

    /// Readers that wait for memory now, first of their line or not.
    pub fn waiting_readers(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Readers that were cut off because they did not read while others waited.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }

    /// The way out of one reader.
    pub fn outlet(&self) -> Outlet {
        Outlet { outflow: self.clone(), taken_bytes: Arc::default() }
    }
}

impl Default for Outflow {
    fn default() -> Self {
        Self::new(OUTFLOW_BYTES)
    }
}

/// The way out of one reader; clones are of the same one.
#[derive(Clone, Debug)]
pub struct Outlet {
    outflow: Outflow,
    taken_bytes: Arc<AtomicU64>,
}

impl Outlet {
    fn is_proven(&self) -> bool {
        self.taken_bytes.load(Ordering::Relaxed) >= PROVEN_BYTES
    }

    fn share(&self) -> &Admission {
        if self.is_proven() { &self.outflow.proven } else { &self.outflow.new }
    }

    /// Takes memory if it is free now.
    pub fn try_take(&self, bytes: u64) -> Option<Permit> {
        self.share().try_admit(bytes)
    }

    /// Takes memory, waiting for it as long as it takes.
    pub async fn wait(&self, bytes: u64) -> Permit {
        let _waiter = Waiter::new(&self.outflow.waiting);
        self.share().wait(bytes).await
    }

    /// The same, behind those that stand in the line already.
    pub async fn wait_in(&self, line: &Line, bytes: u64) -> Permit {
        let Outflow { new, proven, waiting, .. } = &self.outflow;
        let _waiter = Waiter::new(waiting);
        let (share, line) = if self.is_proven() { (proven, &line.proven) } else { (new, &line.new) };
        let _first = line.acquire().await.expect("the semaphore is never closed");
        share.wait(bytes).await
    }

    /// The same, behind others that look at messages without a subscription.
    pub async fn wait_to_look(&self, bytes: u64) -> Permit {
        self.wait_in(&self.outflow.looks, bytes).await
    }

    /// The reader has taken bytes.
    pub fn took(&self, bytes: u64) {
        self.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether others wait for what this reader holds.
    pub fn is_wanted(&self) -> bool {
        self.outflow.new.waiting() + self.outflow.proven.waiting() > 0
    }

    /// The reader was cut off.
    pub fn cut(&self) {
        self.outflow.cuts.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was read, and the memory that it takes until it is dropped.
#[derive(Debug)]
pub struct Held<T> {
    pub value: T,
    pub memory: Option<Permit>,
}

impl<T> Held<T> {
    /// Something that takes no memory to speak of.
    pub fn free(value: T) -> Self {
        Self { value, memory: None }
    }

    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Held<U> {
        Held { value: change(self.value), memory: self.memory }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_that_have_read_go_on_whatever_others_hold() {
        let outflow = Outflow::new(8 << 10);
        let (stalled, honest) = (outflow.outlet(), outflow.outlet());
        drop(honest.try_take(1 << 10).unwrap());
        honest.clone().took(PROVEN_BYTES);
        let _held = stalled.try_take(4 << 10).unwrap();
        assert!(stalled.try_take(1).is_none());
        assert!(!honest.is_wanted());
        let other = outflow.outlet();
        let waiting = tokio::spawn(async move { other.wait(1).await.bytes() });
        while !honest.is_wanted() {
            tokio::task::yield_now().await;
        }
        drop(honest.try_take(4 << 10).unwrap());
        assert_eq!((outflow.used_bytes(), outflow.budget_bytes()), (4 << 10, 8 << 10));
        assert_eq!(outflow.waiting_readers(), 1);
        drop(_held);
        assert_eq!(waiting.await.unwrap(), 1);
        assert!(!honest.is_wanted());
        assert_eq!(outflow.waiting_readers(), 0);
    }

    #[tokio::test]
    async fn many_readers_of_one_thing_hold_others_up_like_one() {
        let outflow = Outflow::new(8 << 10);
        let mut held = vec![outflow.outlet().try_take(4 << 10).unwrap()];
        let (granted, mut grants) = tokio::sync::mpsc::unbounded_channel();
        let join = |name: &'static str, line: &Line| {
            let (outlet, line, granted) = (outflow.outlet(), line.clone(), granted.clone());
            tokio::spawn(async move {
                let memory = outlet.wait_in(&line, 4 << 10).await;
                granted.send((name, memory)).unwrap();
            });
        };
        let (crowded, other) = (Line::default(), Line::default());
        (0..100).for_each(|_| join("crowd", &crowded));
        while !outflow.outlet().is_wanted() {
            tokio::task::yield_now().await;
        }
        join("other", &other);
        let mut order = Vec::new();
        for _ in 0..4 {
            tokio::task::yield_now().await;
            held.clear();
            let (name, memory) = grants.recv().await.unwrap();
            order.push(name);
            held.push(memory);
        }
        assert_eq!(order, ["crowd", "other", "crowd", "crowd"]);
    }

    #[tokio::test]
    async fn a_large_message_gets_through_among_small_ones() {
        let outflow = Outflow::new(8 << 10);
        let small: Vec<_> = (0..4).map(|_| outflow.outlet().try_take(1 << 10).unwrap()).collect();
        let large = outflow.outlet();
        let waiting = tokio::spawn(async move { large.wait(1 << 20).await });
        while !outflow.outlet().is_wanted() {
            tokio::task::yield_now().await;
        }
        let mut small = small.into_iter();
        drop(small.next());
        // What was given back is the large one's.
        assert!(outflow.outlet().try_take(1).is_none());
        drop(small);
        assert_eq!(waiting.await.unwrap().bytes(), 1 << 20);
        assert_eq!(outflow.used_bytes(), 0);
    }

    #[test]
    fn answers_in_pieces_count_their_pieces() {
        assert_eq!(memory_of(1, 1), 257);
        for (count, bytes) in [(1, 1), (1, 32 << 10), (256, 256 << 10), (7, 8 << 20), (100, 0)] {
            assert_eq!(bytes_within(memory_of(count, bytes), count), bytes);
        }
        assert_eq!(memory_of(2, 32 << 10), (32 << 10) + 512 + (64 << 10));
    }
}
