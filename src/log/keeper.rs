//! The thread that keeps house behind the writer: index files, checkpoints, and segments that nothing needs any more.
//!
//! A segment's way out: every message in it is finished, and the fallback of the checkpoints begins behind it, so no
//! replay reads it → the writer logs that it is dropped → the fallback includes that record, so no start
//! expects the file → the file loses its name, durably: nobody can open it any more → the writer forgets the number. A
//! file that somebody has open still is unlinked; the others go to the [`Supply`] of new segments.
//! Segments that [`super::reclaim`] has replaced by packed ones leave the same way; packed ones too, and are unlinked.
//!
//! A full disk is no failure here: what could not be written is tried again at the next occasion. Any other error
//! stops the log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::checkpoint::{Checkpoints, Mark, New, Parts, Taken};
use super::counters::LogCounters;
use super::error::LogError;
use super::reclaim::{Reclaimer, Task};
use super::reserve::Reserve;
use super::supply::Supply;
use super::writer::{Inbox, Upkeep};
use super::{CheckpointEnd, Index, LogEvent, OnEvent, Reader, packed, segment};
use crate::disk::Disk;
use crate::host::{Host, Receiver, Sender, Thread, channel};
use crate::ids::{Offset, QueueId, SegmentNumber};
use crate::planted;

/// Whether some message of a queue below an offset may still be needed. Once false it stays so.
pub type Live = Arc<dyn Fn(QueueId, Offset) -> bool + Send + Sync>;

/// What to keep of one place in the log.
pub struct Checkpoint {
    pub mark: Mark,
    /// What the records before the mark have come to; given back by [`super::StateMachine::restore`].
    pub head: Vec<u8>,
    /// Its parts that have changed since the last checkpoint that was written, or since the start came to its end; all
    /// if the start had no checkpoint, or if that was asked for.
    pub parts: Parts,
    /// As of the mark, or later.
    pub live: Live,
}

/// Work for the thread.
pub enum Job {
    /// A segment was sealed.
    Sealed,
    Checkpoint(Box<Checkpoint>),
}

/// The thread; it ends when this and all senders of jobs are gone, with what was given it done.
#[derive(Debug)]
pub struct Keeper {
    index: Index,
    jobs: Option<Sender<Job>>,
    thread: Option<Thread>,
}

/// What the thread works with.
pub struct House {
    pub disk: Arc<dyn Disk>,
    pub index: Index,
    pub reader: Reader,
    pub inbox: Arc<Inbox>,
    pub on_event: OnEvent,
    pub counters: Arc<LogCounters>,
    pub supply: Arc<Supply>,
    pub reclaimer: Reclaimer,
    pub checkpoints: Checkpoints,
}

impl Keeper {
    pub fn start(house: House, host: &dyn Host) -> std::io::Result<Self> {
        let (jobs, inbox) = channel(host);
        let index = house.index.clone();
        let thread = host.spawn("log-keeper", Box::new(move || house.run(&inbox)))?;
        Ok(Self { index, jobs: Some(jobs), thread: Some(thread) })
    }

    /// For those who have work for it.
    pub fn sender(&self) -> Sender<Job> {
        self.jobs.clone().expect("it has not been stopped")
    }

    pub fn give(&self, job: Job) {
        self.sender().send(job);
    }
}

impl Keeper {
    /// Lets the writing of index files end early: they can be made later.
    pub fn hurry(&self) {
        self.index.stop();
    }

    /// Waits until what was given is done. All senders must be gone, or go soon.
    pub fn end(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

impl House {
    fn run(mut self, jobs: &Receiver<Job>) {
        let inbox = self.inbox.clone();
        let work = AssertUnwindSafe(|| std::iter::from_fn(|| jobs.next()).try_for_each(|job| self.work(job)));
        if let Err(error) = catch_unwind(work).unwrap_or(Err(LogError::Panicked)) {
            inbox.stop(error);
        }
    }

    fn work(&mut self, job: Job) -> Result<(), LogError> {
        match job {
            Job::Sealed => unless_full(self.index.write_sealed()).map(drop),
            Job::Checkpoint(checkpoint) => {
                let written = unless_full(self.checkpoint(*checkpoint))?;
                if written.is_none() {
                    self.supply.give_up()?;
                    self.supply.draw_on(Reserve::Reclaim)?;
                }
                (self.on_event)(LogEvent::CheckpointEnded(match written {
                    Some(Taken::Written) => CheckpointEnd::Written,
                    Some(Taken::AllNeeded) => CheckpointEnd::AllNeeded,
                    None => CheckpointEnd::NoSpace,
                }));
                Ok(())
            }
        }
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint) -> Result<Taken, LogError> {
        let Checkpoint { mark, head, parts, live } = checkpoint;
        let taken = self.checkpoints.take(&New { mark: &mark, head: &head, parts: &parts })?;
        drop(parts);
        // Without one the only base could be damaged one day; then everything before it is needed.
        let fallback = self.checkpoints.fallback();
        if let Some(fallback) = fallback {
            let covered = if planted::bug("unlinked-before-checkpoint") { mark.lsn } else { fallback.lsn() };
            self.remove_files(mark.set.dropped_before(covered))?;
        }
        // Those that a full disk has no space for are made later.
        unless_full(self.index.write_sealed())?;
        if let Some(fallback) = fallback {
            self.drop_dead(fallback.start, &*live);
            self.reclaimer.give(Task { live, end: fallback.start });
        }
        Ok(taken)
    }

    fn remove_files(&self, segments: Vec<SegmentNumber>) -> Result<(), LogError> {
        if segments.is_empty() {
            return Ok(());
        }
        let mut free = Vec::new();
        for segment in &segments {
            let (path, index_path) = (segment::path(*segment), segment::index_path(*segment));
            if self.disk.exists(&index_path)? {
                self.disk.remove(&index_path)?;
            }
            if !self.disk.exists(&path)? {
                continue;
            }
            if packed::is_packed(*segment) {
                self.disk.remove(&path)?;
            } else {
                self.disk.rename(&path, &segment::free_path(*segment))?;
                free.push(*segment);
            }
        }
        self.index.wait_for_opening();
        let mut in_use = self.reader.close(&segments);
        if planted::bug("recycled-while-read") {
            in_use.clear();
        }
        let (in_use, free): (Vec<_>, Vec<_>) = free.into_iter().partition(|segment| in_use.contains(segment));
        for segment in in_use {
            self.disk.remove(&segment::free_path(segment))?;
        }
        if !planted::bug("free-names-not-synced") {
            self.disk.sync_dir("log")?;
        }
        self.disk.sync_dir(packed::DIR)?;
        self.supply.give(free)?;
        self.inbox.keep_up(Upkeep::Forget(segments));
        Ok(())
    }

    /// Drops sealed segments in the places before `end` that hold nothing that lives.
    fn drop_dead(&mut self, end: SegmentNumber, live: &dyn Fn(QueueId, Offset) -> bool) {
        let mut dead = Vec::new();
        for sealed in self.index.sealed_before(end) {
            let segment = sealed.segment;
            match self.index.find_live(&sealed, live) {
                Ok(Some(_)) if !planted::bug("live-segment-dropped") => {}
                Ok(_) => dead.push(segment),
                // Nothing is dropped because it cannot be read.
                Err(error) => {
                    tracing::error!(%segment, %error, "a segment cannot be looked through; it stays")
                }
            }
        }
        if dead.is_empty() {
            return;
        }
        for segment in &dead {
            self.index.drop_segment(*segment);
        }
        self.counters.segments_dropped.add(dead.len() as u64);
        self.inbox.keep_up(Upkeep::Drop(dead));
    }
}

/// `None` if the disk is full.
fn unless_full<T>(result: Result<T, LogError>) -> Result<Option<T>, LogError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_no_space() => Ok(None),
        Err(error) => Err(error),
    }
}
