//! A condition variable of a machine.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::{Host, Parking};

/// Like that of the standard library, for the mutex that is given with its guard.
#[derive(Debug)]
pub struct Condvar {
    native: std::sync::Condvar,
    parking: Option<Arc<dyn Parking>>,
}

impl Condvar {
    pub fn new(host: &dyn Host) -> Self {
        Self { native: std::sync::Condvar::new(), parking: host.parking() }
    }

    pub fn notify_all(&self) {
        match &self.parking {
            None => self.native.notify_all(),
            Some(parking) => parking.unpark_all(),
        }
    }

    /// Waits for a notification.
    pub fn wait<'a, T>(&self, mutex: &'a Mutex<T>, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        match &self.parking {
            None => self.native.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner()),
            Some(parking) => {
                drop(guard);
                parking.park(None);
                lock(mutex)
            }
        }
    }

    /// Waits for a notification, at most for so long.
    pub fn wait_timeout<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> MutexGuard<'a, T> {
        match &self.parking {
            None => {
                let waited = self.native.wait_timeout(guard, timeout);
                waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
            }
            Some(parking) => {
                drop(guard);
                parking.park(Some(timeout));
                lock(mutex)
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
