//! What has to be looked at when: one entry a key, kept at its earliest moment.
//!
//! An entry may fire too early; whoever handles it looks at the truth and sets it anew.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::api::ConsumerId;
use crate::ids::SubscriptionId;

/// Who is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A lease or a delay of the subscription ends.
    Subscription(SubscriptionId),
    /// A checkpoint is due.
    Checkpoint,
    /// The wait of a pull ends.
    Pull(ConsumerId),
}

/// Moments on the log's clock, microseconds.
#[derive(Debug, Default)]
pub struct Timers {
    by_time: BTreeSet<(u64, Key)>,
    by_key: FxHashMap<Key, u64>,
}

impl Timers {
    /// Wakes `key` at `due_us`, or earlier if that was asked for before.
    pub fn set(&mut self, key: Key, due_us: u64) {
        if self.by_key.get(&key).is_some_and(|earlier| *earlier <= due_us) {
            return;
        }
        if let Some(later) = self.by_key.insert(key, due_us) {
            self.by_time.remove(&(later, key));
        }
        self.by_time.insert((due_us, key));
    }

    pub fn remove(&mut self, key: Key) {
        if let Some(due_us) = self.by_key.remove(&key) {
            self.by_time.remove(&(due_us, key));
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn next_us(&self) -> Option<u64> {
        self.by_time.first().map(|(due_us, _)| *due_us)
    }

    /// Takes one key that is due by `now_us`.
    pub fn pop(&mut self, now_us: u64) -> Option<Key> {
        let (due_us, key) = self.by_time.first().copied().filter(|(due_us, _)| *due_us <= now_us)?;
        self.by_time.remove(&(due_us, key));
        self.by_key.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_fires_once_at_its_earliest_moment() {
        let mut timers = Timers::default();
        let (a, b) = (Key::Subscription(SubscriptionId(1)), Key::Pull(ConsumerId(1)));
        timers.set(a, 30);
        timers.set(a, 10);
        timers.set(a, 20);
        timers.set(b, 15);
        assert_eq!(timers.next_us(), Some(10));
        assert_eq!(timers.pop(9), None);
        assert_eq!([timers.pop(15), timers.pop(15), timers.pop(99)], [Some(a), Some(b), None]);
        timers.set(b, 5);
        timers.remove(b);
        assert_eq!(timers.next_us(), None);
    }
}
