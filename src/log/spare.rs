//! The helper that sees to the next segment's file ahead of need, off the commit path.
//!
//! A file that is not needed soon is filled slowly: twice as fast as the log is written, or a piece every [`REST`]. So it
//! is full of zeroes when half of the current segment is written, and commits have the disk nearly to themselves
//! meanwhile. Who waits for it gets it as it is, and so does a log whose commits are large: for those, zeroes cost more
//! than they save.
//!
//! A full disk is no failure: the helper tries again, at the latest after [`RETRY`].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::error::LogError;
use super::segment::Blank;
use super::supply::{Filling, Step, Supply, Written};
use super::tail::{AHEAD, Blanks};
use crate::host::{Condvar, Host, Thread};
use crate::ids::SegmentNumber;

/// When it is tried again after the disk was full.
const RETRY: Duration = Duration::from_millis(500);
/// Between the pieces of a file, unless the log is written fast.
const REST: Duration = Duration::from_millis(20);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(2);
/// Commits of so many bytes take about as long in a file that is filled while they go on as in one that is not.
const LARGE_COMMIT_BYTES: u64 = 96 << 10;
/// They are judged by so many.
const COMMITS_MIN: u64 = 4;

/// Tells the writer that a file is ready, or cannot be made now.
pub type Wake = Box<dyn Fn() + Send>;
/// Tells the log's owner that the writer waits for space.
pub type Tell = Box<dyn Fn() + Send>;

/// A thread that prepares one file at a time.
pub struct SpareMaker {
    shared: Arc<Shared>,
    thread: Option<Thread>,
    tell: Tell,
    told: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    /// Files that somebody waits for: the writer, or who is refused while a disk that was full lacks them.
    urgent: AtomicUsize,
    /// Nobody waits for space any more.
    closing: AtomicBool,
}

/// Ends a wait for space.
#[derive(Clone, Debug)]
pub struct Closer(Arc<Shared>);

impl Closer {
    /// From now on a full disk is an error for who waits for a file.
    pub fn close(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
        // Taken so that the writer cannot miss the news between looking and sleeping.
        drop(self.0.lock());
        self.0.changed.notify_all();
    }
}

#[derive(Debug)]
enum State {
    Idle,
    Wanted(SegmentNumber),
    /// Wanted, and the disk is full.
    Starved(SegmentNumber, LogError),
    Ready(Result<Blank, LogError>),
    Ended,
}

impl SpareMaker {
    pub fn start(supply: Arc<Supply>, wake: Wake, tell: Tell, host: &dyn Host) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Idle),
            changed: Condvar::new(host),
            stop: AtomicBool::new(false),
            urgent: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
        });
        let work = {
            let shared = shared.clone();
            move || shared.work(&supply, &wake)
        };
        let thread = host.spawn("log-spare", Box::new(work))?;
        Ok(Self { shared, thread: Some(thread), tell, told: false })
    }

    /// Whether it was told since the last call that the writer waits for space.
    pub fn take_told(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    pub fn closer(&self) -> Closer {
        Closer(self.shared.clone())
    }

    /// Ends the thread; what it had made stays to be taken by [`Blanks::ready`].
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Taken so that the thread cannot miss the news between looking and sleeping.
        drop(self.shared.lock());
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

impl Drop for SpareMaker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn work(&self, supply: &Supply, wake: &Wake) {
        // Also when this thread panics, nobody may wait for it for ever.
        let _ended = Ended(self);
        while let Some(segment) = self.next_wanted() {
            *self.lock() = match supply.prepare(segment, &|filling| self.pace(filling, supply)) {
                Ok(None) => return,
                Ok(Some(blank)) => {
                    let one_less = |urgent: usize| Some(urgent.saturating_sub(1));
                    let _ = self.urgent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
                    State::Ready(Ok(blank))
                }
                Err(error) if error.is_no_space() => {
                    self.urgent.store(AHEAD, Ordering::Relaxed);
                    State::Starved(segment, error)
                }
                Err(error) => State::Ready(Err(error)),
            };
            self.changed.notify_all();
            wake();
        }
    }

    /// What is next for a file, after a rest if there is time.
    fn pace(&self, filling: Filling, supply: &Supply) -> Step {
        let (mut state, mut rested) = (self.lock(), Duration::ZERO);
        loop {
            match self.step(filling, supply.written()) {
                Some(step) => return step,
                None if rested >= REST => return Step::Fill,
                None => {}
            }
            state = self.changed.wait_timeout(&self.state, state, LOOK);
            rested += LOOK;
        }
    }

    /// What is to be done at once.
    fn step(&self, filling: Filling, now: Written) -> Option<Step> {
        let (bytes, commits) = (now.bytes - filling.before.bytes, now.commits - filling.before.commits);
        if self.stop.load(Ordering::Relaxed) {
            return Some(Step::GiveUp);
        }
        if self.urgent.load(Ordering::Relaxed) > 0 || bytes > commits.max(COMMITS_MIN) * LARGE_COMMIT_BYTES {
            return Some(Step::Enough);
        }
        (filling.filled < 2 * bytes).then_some(Step::Fill)
    }

    /// Somebody is about to wait for the file that is being made, if one is.
    fn hurry(&self) -> MutexGuard<'_, State> {
        let state = self.lock();
        if matches!(*state, State::Wanted(_) | State::Starved(..)) {
            self.urgent.fetch_max(1, Ordering::Relaxed);
            self.changed.notify_all();
        }
        state
    }

    fn next_wanted(&self) -> Option<SegmentNumber> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            match *state {
                State::Wanted(segment) => return Some(segment),
                State::Starved(segment, _) if waited => return Some(segment),
                State::Starved(..) => {
                    state = self.changed.wait_timeout(&self.state, state, RETRY);
                    waited = true;
                }
                _ => state = self.changed.wait(&self.state, state),
            }
        }
    }
}

struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if !matches!(*state, State::Ready(_) | State::Starved(..)) {
            *state = State::Ended;
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Blanks for SpareMaker {
    fn ready(&mut self) -> Result<Option<Blank>, LogError> {
        let mut state = self.shared.lock();
        match std::mem::replace(&mut *state, State::Idle) {
            State::Ready(made) => made.map(Some),
            other => {
                *state = other;
                Ok(None)
            }
        }
    }

    fn wait_unless_full(&mut self) -> Result<Option<Blank>, LogError> {
        let mut state = self.shared.hurry();
        while matches!(*state, State::Wanted(_)) {
            state = self.shared.changed.wait(&self.shared.state, state);
        }
        drop(state);
        self.ready()
    }

    fn wait(&mut self) -> Result<Blank, LogError> {
        let mut state = self.shared.hurry();
        loop {
            match std::mem::replace(&mut *state, State::Idle) {
                State::Ready(made) => return made,
                State::Starved(_, error) if self.shared.closing.load(Ordering::Relaxed) => return Err(error),
                State::Ended => return Err(LogError::Panicked),
                other => *state = other,
            }
            // More was under way than was left; who waits behind it must know why.
            if matches!(*state, State::Starved(..)) && !self.told {
                self.told = true;
                (self.tell)();
            }
            state = self.shared.changed.wait(&self.shared.state, state);
        }
    }

    fn starved(&self) -> bool {
        matches!(*self.shared.lock(), State::Starved(..))
    }

    fn retry(&mut self) {
        self.shared.changed.notify_all();
    }

    fn want(&mut self, segment: SegmentNumber) {
        let mut state = self.shared.lock();
        if matches!(*state, State::Idle) {
            *state = State::Wanted(segment);
            drop(state);
            self.shared.changed.notify_all();
        }
    }
}
