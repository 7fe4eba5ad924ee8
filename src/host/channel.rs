//! An unbounded channel between threads of a machine.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Condvar, Host};

/// A channel whose receiver waits on this machine.
pub fn channel<T>(host: &dyn Host) -> (Sender<T>, Receiver<T>) {
    let state = State { items: VecDeque::new(), senders: 1 };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(host) });
    (Sender(shared.clone()), Receiver(shared))
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    senders: usize,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Never waits. What nobody receives any more is dropped with the channel.
    pub fn send(&self, item: T) {
        self.0.lock().items.push_back(item);
        self.0.changed.notify_all();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        self.0.changed.notify_all();
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

pub struct Receiver<T>(Arc<Shared<T>>);

impl<T> Receiver<T> {
    /// Waits for the next item; none when all have been taken and no sender is left.
    pub fn next(&self) -> Option<T> {
        let mut state = self.0.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                return Some(item);
            }
            if state.senders == 0 {
                return None;
            }
            state = self.0.changed.wait(&self.0.state, state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::RealHost;

    #[test]
    fn all_that_was_sent_is_received_before_the_end() {
        let (sender, receiver) = channel(&RealHost);
        let other = sender.clone();
        let sending = std::thread::spawn(move || (0..100).for_each(|n| other.send(n)));
        let first: Vec<u32> = (0..100).filter_map(|_| receiver.next()).collect();
        sending.join().unwrap();
        sender.send(100);
        drop(sender);
        assert_eq!(first, (0..100).collect::<Vec<_>>());
        assert_eq!([receiver.next(), receiver.next()], [Some(100), None]);
    }
}
