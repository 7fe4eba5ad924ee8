//! Reclaim: what is still needed is moved out of segments that hold little else, or in which queues are mixed, into
//! packed segments ([`super::packed`]), so that a slow consumer of one queue never keeps the space of others, and a
//! queue's backlog comes to lie together.
//!
//! # Contract
//! - Only segments wholly before the fallback of the checkpoints are touched: no replay reads them.
//! - A record is copied whole, and verified, message by message. One that fails its checksum stays where it is: its
//!   segment is not rewritten, reported, and served as before. Nothing goes because it could not be read.
//! - What is needed is judged by the newest checkpoint, again for each piece that is copied. Once not needed, a record
//!   stays so; so too much may be copied, never too little.
//! - The order of records stays that of the offsets in each queue: only neighbours are replaced together, and the
//!   packed segments stand in their places.
//! - Which segments are rewritten, and why, is told in [`policy`].
//!
//! # Steps, and a stop between them
//! Packed file written and synced under a temporary name → renamed, its directory synced → its index written → the
//! index looks into it → the writer logs `SegmentReplaced` → the replaced leave like dropped ones. A start removes
//! unfinished files, and finished ones whose record was not durable: all that they hold is in what they were to
//! replace. From the record on, the replaced are not needed. So at each step every record is in a listed segment.
//!
//! # What it takes
//! - Memory: a frame of 1 MiB (or the largest record, 16 MiB at most), as much again to read into, and 40 bytes for
//!   each run of one packed segment, at most 10 MiB; besides that, maps of the index files of up to 16 segments.
//! - Disk: for sparse segments, one packed segment of at most the length of one segment, kept free by
//!   `packed/RESERVE` for the time when the disk is full, and made again of the first file that comes free then; to
//!   merge, as much as is needed of 16 segments, which is not begun unless twice that is free. A full disk is no
//!   failure: it is tried again after the next checkpoint.
//! - Time of the disk: it writes and syncs 1 MiB at a time. While others commit, it then rests, unless it has fallen
//!   behind ([`pace`]).

mod pace;
mod pack;
mod policy;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::counters::LogCounters;
use super::error::LogError;
use super::index::{Look, Sealed};
use super::keeper::Live;
use super::reserve::Reserve;
use super::supply::Supply;
use super::writer::{Inbox, Upkeep};
use super::{Index, Reader, packed, segment};
use crate::disk::Disk;
use crate::host::{Condvar, Host, Thread};
use crate::ids::{SegmentNumber, Uid};
use pace::Pace;
use pack::{Job, Outcome};
use policy::{Candidate, Reason};

/// Segments that are looked through again in one pass: so the cost of looking stays in proportion to what is
/// written, and of `n` segments each is seen again after `n` / 64 checkpoints.
const LOOKS_MAX: usize = 64;
/// With more sparse segments than this, it does not rest between pieces.
const BEHIND: usize = 4;
/// How many times as long as a piece takes it rests behind it, for space and to merge.
const RESTS: u32 = 1;
const RESTS_TO_MERGE: u32 = 3;

/// What the thread works with.
pub struct Reclaim {
    pub host: Arc<dyn Host>,
    pub disk: Arc<dyn Disk>,
    pub cluster: Uid,
    pub index: Index,
    pub reader: Reader,
    pub inbox: Arc<Inbox>,
    pub counters: Arc<LogCounters>,
    pub supply: Arc<Supply>,
    /// Most bytes of a packed segment.
    pub segment_bytes: u64,
    /// Of the next packed segment.
    pub next: SegmentNumber,
}

/// What a checkpoint allows.
#[derive(Clone)]
pub struct Task {
    pub live: Live,
    /// Segments in places before it may be rewritten.
    pub end: SegmentNumber,
}

/// The thread; it stops at the next piece when this is dropped.
pub struct Reclaimer {
    shared: Arc<Shared>,
    thread: Option<Thread>,
}

struct Shared {
    host: Arc<dyn Host>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The newest.
    task: Option<Task>,
    /// It was not begun yet.
    is_new: bool,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Waits for a task; none at the end.
    fn next(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if std::mem::take(&mut state.is_new) {
                return state.task.clone();
            }
            state = self.changed.wait(&self.state, state);
        }
    }

    /// Rests, unless it is stopped.
    fn rest(&self, time: Duration) {
        let end = self.now() + time;
        let mut state = self.lock();
        loop {
            let left = end.saturating_duration_since(self.now());
            if state.stopped || left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(&self.state, state, left);
        }
    }

    fn now(&self) -> Instant {
        self.host.now()
    }

    /// What is needed, as the newest checkpoint says.
    fn live(&self) -> Option<Live> {
        self.lock().task.as_ref().map(|task| task.live.clone())
    }
}

impl Reclaimer {
    pub fn start(reclaim: Reclaim) -> std::io::Result<Self> {
        let host = reclaim.host.clone();
        let (state, changed) = (Mutex::default(), Condvar::new(&*host));
        let shared = Arc::new(Shared { host: host.clone(), state, changed });
        let work = shared.clone();
        let thread = host.spawn("log-reclaim", Box::new(move || reclaim.run(&work)))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Gives it the newest task; one that was not begun is forgotten.
    pub fn give(&self, task: Task) {
        let mut state = self.shared.lock();
        state.task = Some(task);
        state.is_new = true;
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

impl Reclaim {
    fn run(mut self, shared: &Shared) {
        let inbox = self.inbox.clone();
        let mut work = || {
            let mut looked = SegmentNumber(0);
            while let Some(task) = shared.next() {
                self.pass(&task, &mut looked, shared)?;
            }
            Ok(())
        };
        let ended = catch_unwind(AssertUnwindSafe(&mut work));
        if let Err(error) = ended.unwrap_or(Err(LogError::Panicked)) {
            inbox.stop(error);
        }
    }

    /// Does all that the policy wants, or as much as there is space for.
    fn pass(&mut self, task: &Task, looked: &mut SegmentNumber, shared: &Shared) -> Result<(), LogError> {
        self.look_again(task, looked)?;
        loop {
            let sealed = self.index.sealed_before(task.end);
            for sealed in sealed.iter().filter(|sealed| sealed.look().is_none()) {
                self.look(sealed, task)?;
            }
            let candidates: Vec<Candidate> = sealed.iter().map(|sealed| Candidate::of(sealed)).collect();
            let Some(choice) = policy::choose(&candidates, self.segment_bytes) else { break };
            let behind = candidates.iter().filter(|candidate| candidate.is_sparse()).count() > BEHIND;
            let rests = match choice.reason {
                Reason::Mixed => RESTS_TO_MERGE,
                Reason::Sparse if behind => 0,
                Reason::Sparse => RESTS,
            };
            let inputs = sealed[choice.range.clone()].to_vec();
            if choice.reason == Reason::Mixed && !self.has_room_to_merge(&inputs)? {
                break;
            }
            let merged = choice.reason == Reason::Mixed || inputs.iter().all(|sealed| sealed.merged);
            if !self.rewrite(&Job { inputs, merged }, choice.reason, rests, shared)? {
                break;
            }
        }
        self.supply.restore(Reserve::Reclaim, self.segment_bytes)?;
        self.account(task.end)?;
        self.counters.reclaim_passes.add(1);
        Ok(())
    }

    /// Looks through some of the segments that were looked through before, in turn.
    fn look_again(&self, task: &Task, looked: &mut SegmentNumber) -> Result<(), LogError> {
        let sealed = self.index.sealed_before(task.end);
        let first = sealed.partition_point(|sealed| sealed.place <= *looked);
        let in_turn = sealed[first..].iter().chain(&sealed[..first]);
        for sealed in in_turn.filter(|sealed| sealed.look().is_some()).take(LOOKS_MAX) {
            self.look(sealed, task)?;
            *looked = sealed.place;
        }
        Ok(())
    }

    fn look(&self, sealed: &Sealed, task: &Task) -> Result<(), LogError> {
        match self.index.look(sealed, &*task.live) {
            Ok(look) => sealed.set_look(look.after(sealed.look())),
            // One that has left meanwhile may have no file any more.
            Err(_) if self.has_left(sealed, task) => {}
            Err(error) => {
                self.unreadable(sealed, &error);
                sealed.set_look(Look::default());
            }
        }
        Ok(())
    }

    fn has_left(&self, sealed: &Sealed, task: &Task) -> bool {
        self.index.sealed_before(task.end).iter().all(|other| other.segment != sealed.segment)
    }

    /// From now on it is left as it is.
    fn unreadable(&self, sealed: &Sealed, why: &dyn std::fmt::Display) {
        let segment = sealed.segment;
        if !sealed.is_damaged() {
            self.counters.segments_unreadable.add(1);
            tracing::error!(%segment, %why, "data loss: records of a segment cannot be read; it stays as it is; stop the server and run forebay fsck to see what is hit");
        }
        sealed.set_damaged();
    }

    fn has_room_to_merge(&self, inputs: &[Arc<Sealed>]) -> Result<bool, LogError> {
        let needed: u64 = inputs.iter().filter_map(|sealed| Some(sealed.look()?.live_bytes)).sum();
        Ok(self.disk.free_bytes()? >= 2 * needed)
    }

    /// Whether to go on.
    fn rewrite(&mut self, job: &Job, reason: Reason, rests: u32, shared: &Shared) -> Result<bool, LogError> {
        let mut packed = self.pack(job, rests, shared);
        let is_full = |packed: &Result<Outcome, LogError>| packed.as_ref().is_err_and(LogError::is_no_space);
        if is_full(&packed) && reason == Reason::Sparse {
            self.supply.draw_on(Reserve::Reclaim)?;
            packed = self.pack(job, rests, shared);
            if is_full(&packed) && job.inputs.len() > 1 {
                // What is needed of one is less than half of it.
                let one = Job { inputs: job.inputs[..1].to_vec(), merged: job.merged };
                packed = self.pack(&one, rests, shared);
            }
        }
        if is_full(&packed) {
            return Ok(false);
        }
        match packed? {
            Outcome::Packed(replaced) => {
                let count = replaced.old.len() as u64;
                match reason {
                    Reason::Sparse => self.counters.segments_rewritten.add(count),
                    Reason::Mixed => self.counters.segments_merged.add(count),
                }
                let bytes: u64 = replaced.new.iter().map(|packed| packed.bytes).sum();
                self.counters.bytes_packed.add(bytes);
                tracing::debug!(
                    count,
                    packed = replaced.new.len(),
                    bytes,
                    ?reason,
                    "segments were rewritten"
                );
                self.index.replace(&replaced.old, &replaced.new);
                self.inbox.keep_up(Upkeep::Replace(replaced));
                Ok(true)
            }
            Outcome::Unreadable(at, why) => {
                self.unreadable(&job.inputs[at], &why);
                Ok(true)
            }
            Outcome::Gone | Outcome::Stopped => Ok(false),
        }
    }

    /// Makes the packed segments of a job; leaves nothing behind unless it is done.
    fn pack(&mut self, job: &Job, rests: u32, shared: &Shared) -> Result<Outcome, LogError> {
        let first = self.next;
        let pace = Pace::new(&self.counters, shared, rests);
        let packed = pack::run(self, job, first, pace);
        let used = job.inputs.len() as u64;
        // Numbers are not used twice, not even those of files that were given up.
        self.next = first.plus(used);
        if !matches!(packed, Ok(Outcome::Packed(_))) {
            (0..used).for_each(|index| packed::abandon(&*self.disk, first.plus(index)));
        }
        packed
    }

    /// Sums up what was seen last.
    fn account(&self, end: SegmentNumber) -> Result<(), LogError> {
        let (mut live, mut dead) = (0, 0);
        for look in self.index.sealed_before(end).iter().filter_map(|sealed| sealed.look()) {
            live += look.live_bytes;
            dead += look.file_bytes.saturating_sub(look.live_bytes);
        }
        self.counters.live_bytes.set(live);
        self.counters.dead_bytes.set(dead);
        let reserves = Reserve::Checkpoint.bytes(&*self.disk)? + Reserve::Reclaim.bytes(&*self.disk)?;
        let entries = self.disk.list("log")?;
        let free = entries.iter().filter(|entry| segment::parse_free_name(&entry.name).is_some());
        let free = free.count() as u64 * self.segment_bytes;
        self.counters.reserve_bytes.set(reserves + free);
        Ok(())
    }
}
