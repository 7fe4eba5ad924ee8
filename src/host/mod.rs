//! What the broker takes from its machine besides the disk: threads and their waits, clocks, randomness. All of it goes
//! through here, so that a simulated machine can decide each of them in its place.
//!
//! 1. A thread waits only in [`Condvar`], [`Receiver::next`] and [`Thread::join`]. It holds no lock then, nor while it
//!    changes something on the disk: so a machine may let one thread run at a time, and change over at these places.
//! 2. A wait may end early: whoever waited looks again.
//! 3. Moments of [`Host::now`] are those of the async runtime's timers.

mod channel;
mod condvar;
mod real;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use channel::{Receiver, Sender, channel};
pub use condvar::Condvar;
pub use real::RealHost;

/// What a thread does.
pub type Work = Box<dyn FnOnce() + Send>;

/// A machine.
pub trait Host: Send + Sync + fmt::Debug {
    /// Never steps back.
    fn now(&self) -> Instant;
    /// Wall time, microseconds since the Unix epoch; may step.
    fn wall_us(&self) -> u64;
    /// Fills `bytes` with what nobody can guess.
    fn fill_random(&self, bytes: &mut [u8]);
    /// Starts a thread.
    fn spawn(&self, name: &str, work: Work) -> io::Result<Thread>;
    /// Lets a thread that is kept for such work do this; called from a task.
    fn spawn_blocking(&self, work: Work);
    /// A place for threads to wait, if not the operating system's own.
    fn parking(&self) -> Option<Arc<dyn Parking>>;
}

impl dyn Host + '_ {
    /// Bytes that nobody can guess.
    pub fn random<const BYTES: usize>(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        self.fill_random(&mut bytes);
        bytes
    }
}

/// Where threads wait to be woken.
pub trait Parking: Send + Sync + fmt::Debug {
    /// Waits until woken, at most for so long.
    fn park(&self, timeout: Option<Duration>);
    /// Wakes all who wait.
    fn unpark_all(&self);
}

/// A thread that was started.
pub struct Thread(Box<dyn FnOnce() + Send + Sync>);

impl Thread {
    /// A thread of which `join` waits for the end.
    pub fn new(join: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Box::new(join))
    }

    /// Waits until it has ended, be it by a panic.
    pub fn join(self) {
        (self.0)();
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Thread")
    }
}
