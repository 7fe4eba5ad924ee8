//! The helper that makes the next segment's file ahead of need, off the commit path.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::error::LogError;
use super::segment::{Blank, prepare};
use super::tail::Blanks;
use crate::disk::Disk;
use crate::ids::SegmentNumber;

/// Tells the writer that a file is ready.
pub type Wake = Box<dyn Fn() + Send>;

/// A thread that makes one file at a time.
#[derive(Debug)]
pub struct SpareMaker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Debug)]
enum State {
    Idle,
    Wanted(SegmentNumber),
    Ready(Result<Blank, (SegmentNumber, LogError)>),
    Ended,
}

impl SpareMaker {
    pub fn start(disk: Arc<dyn Disk>, segment_bytes: u64, wake: Wake) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Idle),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let work = {
            let shared = shared.clone();
            move || shared.work(&*disk, segment_bytes, &wake)
        };
        let thread = std::thread::Builder::new().name("log-spare".to_owned()).spawn(work)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Ends the thread; what it had made stays to be taken by [`Blanks::ready`].
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Taken so that the thread cannot miss the news between looking and sleeping.
        drop(self.shared.lock());
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
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

    fn work(&self, disk: &dyn Disk, segment_bytes: u64, wake: &Wake) {
        // Also when this thread panics, nobody may wait for it for ever.
        let _ended = Ended(self);
        while let Some(segment) = self.next_wanted() {
            let made = match prepare(disk, segment, segment_bytes, &self.stop) {
                Ok(None) => return,
                Ok(Some(blank)) => Ok(blank),
                Err(error) => Err((segment, error)),
            };
            *self.lock() = State::Ready(made);
            self.changed.notify_all();
            wake();
        }
    }

    fn next_wanted(&self) -> Option<SegmentNumber> {
        let mut state = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let State::Wanted(segment) = *state {
                return Some(segment);
            }
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if !matches!(*state, State::Ready(_)) {
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
            State::Ready(Ok(blank)) => Ok(Some(blank)),
            // A full disk is no fault: there is room in the segment yet, and maybe on the disk when it is used up.
            State::Ready(Err((_, LogError::Disk(error)))) if !error.is_no_space() => Err(error.into()),
            other => {
                *state = other;
                Ok(None)
            }
        }
    }

    fn wait(&mut self) -> Result<Blank, LogError> {
        let mut state = self.shared.lock();
        if let State::Ready(Err((segment, _))) = *state {
            *state = State::Wanted(segment);
            self.shared.changed.notify_all();
        }
        loop {
            match std::mem::replace(&mut *state, State::Idle) {
                State::Ready(made) => return made.map_err(|(_, error)| error),
                State::Ended => return Err(LogError::Panicked),
                other => *state = other,
            }
            state = self.shared.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
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
