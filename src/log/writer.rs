//! The one thread that writes the log.
//!
//! It takes what producers have put into the queue, commits it as one frame, reports, and takes what came meanwhile:
//! batches grow with load, without timers. When nothing came for [`IDLE`] after a frame with batches, an empty frame
//! follows, so that damage to the last batch can be told from a torn write. The first failure ends the thread.
//!
//! It alone changes the segment set; what the keeper finds out about segments reaches it as [`Upkeep`].

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::error::LogError;
use super::keeper::Job;
use super::spare::SpareMaker;
use super::system::SegmentsReplaced;
use super::tail::{Blanks, Room, Tail};
use super::{Batch, LogEvent, OnEvent};
use crate::drill;
use crate::host::{Condvar, Host, Sender};
use crate::ids::SegmentNumber;

/// Batches are gathered up to this many bytes of records; a larger one goes alone.
const GATHER_BYTES: u64 = 1 << 20;
/// How long nothing must come before the empty frame.
const IDLE: Duration = Duration::from_millis(10);

/// A batch and the bytes of its records.
pub struct Queued {
    pub batch: Batch,
    pub bytes: u64,
    /// Its frame ends with it, and the place behind it is reported.
    pub mark: bool,
}

/// What the keeper has found out about segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// Nothing in them is needed.
    Drop(Vec<SegmentNumber>),
    /// What is needed of them is in packed segments.
    Replace(SegmentsReplaced),
    /// Dropped or replaced earlier, and their files are gone.
    Forget(Vec<SegmentNumber>),
}

/// What producers and the writer share.
pub struct Inbox {
    host: Arc<dyn Host>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    batches: Vec<Queued>,
    /// The writer sleeps and must be woken.
    asleep: bool,
    spare_ready: bool,
    upkeep: VecDeque<Upkeep>,
    ending: Option<Ending>,
    /// What another thread has met.
    stopped_for: Option<LogError>,
    failure: Option<LogError>,
}

/// How the writer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Commit what is queued first.
    Close,
    /// Stop after the frame under way.
    Abandon,
}

enum Work {
    Batches,
    ListSpare,
    Upkeep(Upkeep),
    Idle,
    End(Ending),
}

impl Inbox {
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(&*host), host }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wake = std::mem::take(&mut state.asleep);
        drop(state);
        if wake {
            self.changed.notify_all();
        }
    }

    /// Queues a batch; dropped if the log has failed.
    pub fn push(&self, queued: Queued) {
        self.change(|state| {
            if state.failure.is_none() {
                state.batches.push(queued);
            }
        });
    }

    pub fn spare_ready(&self) {
        self.change(|state| state.spare_ready = true);
    }

    pub fn keep_up(&self, upkeep: Upkeep) {
        self.change(|state| state.upkeep.push_back(upkeep));
    }

    /// Stops the writer for a failure that another thread has met.
    pub fn stop(&self, error: LogError) {
        self.change(|state| state.stopped_for = Some(error));
    }

    pub fn end(&self, ending: Ending) {
        self.change(|state| state.ending = Some(ending));
    }

    /// Why the log has stopped, if it has.
    pub fn failure(&self) -> Option<LogError> {
        let state = self.lock();
        state.failure.clone().or_else(|| state.stopped_for.clone())
    }

    fn fail(&self, error: LogError) {
        let mut state = self.lock();
        state.failure = Some(error);
        let dropped = std::mem::take(&mut state.batches);
        drop(state);
        drop(dropped);
    }

    /// Waits for something to do, and moves queued batches to `pending`.
    fn next(&self, pending: &mut VecDeque<Queued>, idle_follows: bool) -> Result<Work, LogError> {
        let idle_at = self.host.now() + IDLE;
        let mut state = self.lock();
        loop {
            if let Some(error) = state.stopped_for.clone() {
                return Err(error);
            }
            if state.ending == Some(Ending::Abandon) {
                return Ok(Work::End(Ending::Abandon));
            }
            if let Some(upkeep) = state.upkeep.pop_front() {
                return Ok(Work::Upkeep(upkeep));
            }
            pending.extend(state.batches.drain(..));
            if !pending.is_empty() {
                return Ok(Work::Batches);
            }
            if std::mem::take(&mut state.spare_ready) {
                return Ok(Work::ListSpare);
            }
            if let Some(ending) = state.ending {
                return Ok(Work::End(ending));
            }
            let left = idle_at.saturating_duration_since(self.host.now());
            if idle_follows && left.is_zero() {
                return Ok(Work::Idle);
            }
            state.asleep = true;
            state = match idle_follows {
                true => self.changed.wait_timeout(&self.state, state, left),
                false => self.changed.wait(&self.state, state),
            };
            state.asleep = false;
        }
    }
}

/// The thread's own state.
pub struct Writer {
    pub inbox: Arc<Inbox>,
    pub tail: Tail,
    pub spares: SpareMaker,
    pub keeper: Sender<Job>,
    pub on_event: OnEvent,
    /// Most bytes that are gathered into one frame.
    pub gather_bytes: u64,
    /// As it was reported last.
    pub room: Room,
}

impl Writer {
    /// How much is gathered where a batch may have up to `batch_bytes_max`.
    pub fn gather_bytes(batch_bytes_max: u64) -> u64 {
        GATHER_BYTES.min(batch_bytes_max)
    }

    /// Runs until it is ended or fails.
    pub fn run(mut self) {
        let worked = std::panic::catch_unwind(AssertUnwindSafe(|| self.work()));
        if let Err(error) = worked.unwrap_or(Err(LogError::Panicked)) {
            self.inbox.fail(error.clone());
            (self.on_event)(LogEvent::Failed(error));
        }
    }

    fn work(&mut self) -> Result<(), LogError> {
        if self.tail.wanted {
            self.spares.want(self.tail.highest);
        }
        let mut pending = VecDeque::new();
        let mut idle_follows = false;
        loop {
            match self.inbox.next(&mut pending, idle_follows)? {
                Work::Batches => {
                    self.commit(&mut pending)?;
                    idle_follows = true;
                }
                Work::ListSpare => {
                    if self.tail.list_ready(&mut self.spares)? {
                        idle_follows = false;
                    }
                }
                Work::Upkeep(Upkeep::Drop(segments)) => {
                    self.tail.drop_segments(segments, &mut self.spares)?;
                    idle_follows = true;
                }
                Work::Upkeep(Upkeep::Replace(replaced)) => {
                    self.tail.replace_segments(&replaced, &mut self.spares)?;
                    idle_follows = true;
                }
                Work::Upkeep(Upkeep::Forget(segments)) => {
                    self.tail.set.forget(&segments);
                    self.spares.retry();
                }
                Work::Idle => {
                    self.tail.append_no_op(&mut self.spares)?;
                    idle_follows = false;
                }
                Work::End(Ending::Abandon) => return Ok(()),
                Work::End(Ending::Close) => return self.finish(idle_follows),
            }
            self.report_begun();
            self.report_room();
        }
    }

    fn report_room(&mut self) {
        if self.spares.take_told() {
            self.room = Room::Exhausted;
        }
        let room = self.tail.room(self.room, self.spares.starved());
        if room != self.room {
            self.room = room;
            (self.on_event)(LogEvent::Room(room));
        }
    }

    fn commit(&mut self, pending: &mut VecDeque<Queued>) -> Result<(), LogError> {
        drill::point("log");
        let mut bytes = 0;
        let mut count = 0;
        for queued in pending.iter() {
            if count > 0 && bytes + queued.bytes > self.gather_bytes {
                break;
            }
            bytes += queued.bytes;
            count += 1;
            if queued.mark {
                break;
            }
        }
        let mark = pending[count - 1].mark;
        let taken: Vec<Batch> = pending.drain(..count).map(|queued| queued.batch).collect();
        let through = taken.last().expect("something is pending").ticket;
        let log_time_us = taken.iter().map(|batch| batch.log_time_us).max().expect("something is pending");
        let mut placed = Vec::new();
        if bytes > 0 {
            let records = taken.iter().flat_map(|batch| &batch.records);
            self.tail.append(records, bytes, log_time_us, &mut self.spares, &mut placed)?;
            self.tail.counters.bytes_appended.add(bytes);
        }
        (self.on_event)(LogEvent::Committed { through, placed, batches: taken });
        if mark {
            (self.on_event)(LogEvent::Marked(self.tail.mark()));
        }
        Ok(())
    }

    fn report_begun(&mut self) {
        if std::mem::take(&mut self.tail.begun) {
            self.keeper.send(Job::Sealed);
            (self.on_event)(LogEvent::SegmentBegun);
        }
    }

    /// Leaves the log with a successor behind every batch, and no file behind that is not listed.
    fn finish(&mut self, idle_follows: bool) -> Result<(), LogError> {
        self.spares.stop();
        let listed = self.tail.list_ready(&mut self.spares)?;
        if idle_follows && !listed {
            self.tail.append_no_op(&mut self.spares)?;
        }
        Ok(())
    }
}
