//! Rewriting: what is needed stays, what is not goes, and what that costs.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::packed::PACKED_FIRST;
use super::super::*;
use super::hook::{HookDisk, Verdict};
use super::support::*;
use crate::disk::{Disk, Operation, RealDisk};

/// Messages of this size, each in a frame of its own, fill a segment of 256 KiB with 31 of them.
pub const SIZE: usize = 8_000;
/// The queue whose messages nobody takes.
pub const SLOW: QueueId = QueueId(3);
pub const QUEUES: u64 = 8;

/// A log of several queues and what is in it.
pub struct Flow {
    pub harness: Harness,
    pub ends: BTreeMap<QueueId, u64>,
}

pub fn flow(disk: Arc<dyn Disk>) -> Flow {
    Flow { harness: try_open(disk, options()).unwrap(), ends: BTreeMap::new() }
}

pub fn real(dir: &Path) -> Arc<dyn Disk> {
    Arc::new(RealDisk::new(dir))
}

impl Flow {
    /// Publishes to the queues in turn, each message in a frame of its own.
    pub fn publish(&mut self, messages: u64, queues: u64) {
        for n in 0..messages {
            let queue = QueueId(1 + n % queues);
            let end = self.ends.entry(queue).or_default();
            self.harness.commit(vec![run_of(queue, *end, 1, SIZE)]);
            *end += 1;
        }
    }

    /// Takes a checkpoint at which these queues need all their messages, the others none; waits for reclaim.
    pub fn checkpoint(&mut self, needed: &[QueueId]) {
        let (needed, ends) = (needed.to_vec(), self.ends.clone());
        let live = move |queue, end: Offset| needed.contains(&queue) || end.0 > ends[&queue];
        self.checkpoint_where(Arc::new(live));
    }

    pub fn checkpoint_where(&mut self, live: Live) {
        let counters = self.harness.log.counters();
        let (passes, checkpoints) = (counters.reclaim_passes.get(), counters.checkpoints.get());
        assert!(self.harness.checkpoint_where(b"any", live).unwrap());
        let start = Instant::now();
        // Behind the first checkpoint alone nothing is reclaimed.
        while checkpoints > 0 && counters.reclaim_passes.get() == passes {
            assert!(start.elapsed() < Duration::from_secs(20), "reclaim ends");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Enough checkpoints for all that can leave to leave.
    pub fn settle(&mut self, needed: &[QueueId]) {
        for _ in 0..7 {
            self.publish(10, 1);
            self.checkpoint(needed);
        }
    }

    /// Publishes to the queues in turn until a segment is begun, as the broker takes checkpoints.
    pub fn fill_segment(&mut self, queues: u64) {
        let mut first = None;
        for n in 0.. {
            let queue = QueueId(1 + n % queues);
            let end = self.ends.entry(queue).or_default();
            let placed = self.harness.commit(vec![run_of(queue, *end, 1, SIZE)]);
            *end += 1;
            if *first.get_or_insert(placed[0].location.segment) != placed[0].location.segment {
                break;
            }
        }
    }

    pub fn counters(&self) -> Arc<LogCounters> {
        self.harness.log.counters()
    }

    /// Reads all of a queue's messages, each once and in order.
    pub fn assert_holds(&self, queue: QueueId) {
        assert_queue(&self.harness, queue, self.ends[&queue]);
    }
}

pub fn assert_queue(harness: &Harness, queue: QueueId, end: u64) {
    let offsets: Vec<Offset> = (0..end).map(Offset).collect();
    let plan = harness.log.index().plan(queue, &offsets, u64::MAX).unwrap();
    assert_eq!(plan.messages as u64, end, "queue {queue}");
    let reader = harness.log.reader();
    let mut reading = reader.read_plan(&plan);
    let mut next = 0;
    while let Some((_, run)) = reading.next(u64::MAX) {
        let run = run.unwrap();
        assert_eq!((run.queue, run.damaged.len(), run.complete), (queue, 0, true));
        for message in run.messages {
            assert_eq!((message.offset, &message.body), (Offset(next), &body(next, SIZE)));
            next += 1;
        }
    }
    assert_eq!(next, end, "queue {queue}");
}

/// Names in `packed/` with this ending.
pub fn packed(dir: &Path, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("packed")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(ending)).collect();
    names.sort();
    names
}

/// Bytes of the files in `log/` and `packed/`, without the reserve and files for new segments.
fn used(dir: &Path) -> u64 {
    let files = ["log", "packed"].into_iter().flat_map(|folder| std::fs::read_dir(dir.join(folder)).unwrap());
    let files = files.map(|entry| entry.unwrap()).filter(|entry| {
        let name = entry.file_name().into_string().unwrap();
        name != "RESERVE" && !name.ends_with(".free")
    });
    // Some may leave meanwhile.
    files.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

#[test]
fn a_slow_consumer_keeps_its_own_messages_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut flow = flow(real(dir.path()));
    let mut most = 0;
    for _ in 0..40 {
        flow.fill_segment(QUEUES);
        flow.checkpoint(&[SLOW]);
        let live = flow.ends[&SLOW] * SIZE as u64;
        most = most.max(used(dir.path()).saturating_sub(2 * live));
    }
    assert!(most <= 8 * SEGMENT_BYTES, "{most} bytes beyond twice what is needed");
    flow.settle(&[SLOW]);
    flow.assert_holds(SLOW);
    let counters = flow.counters();
    assert!(counters.segments_rewritten.get() > 10, "{counters:?}");
    assert_eq!(counters.segments_unreadable.get(), 0);
    let (live, packed) = (counters.live_bytes.get(), counters.packed_bytes.get());
    assert!(live > 90 * SIZE as u64 && packed < 2 * live && packed > live, "{live} in {packed}");
    let Flow { harness, ends } = flow;
    harness.log.close().unwrap();
    let again = open_dir(dir.path()).unwrap();
    assert_queue(&again, SLOW, ends[&SLOW]);
    let report = again.log.report();
    assert!(report.set_aside.is_empty() && report.missing.is_empty(), "{report:?}");
}

#[test]
fn packed_segments_are_rewritten_and_leave_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut flow = flow(real(dir.path()));
    flow.publish(300, QUEUES);
    flow.settle(&[SLOW]);
    let first = packed(dir.path(), ".seg");
    assert!(!first.is_empty());
    let end = flow.ends[&SLOW];
    let half = move |queue: QueueId, behind: Offset| queue == SLOW && behind.0 > end - 5;
    for _ in 0..7 {
        flow.publish(10, 1);
        flow.checkpoint_where(Arc::new(half));
    }
    let second = packed(dir.path(), ".seg");
    assert!(!second.is_empty() && !second.contains(&first[0]), "{first:?} {second:?}");
    for offset in end - 5..end {
        let plan = flow.harness.log.index().plan(SLOW, &[Offset(offset)], 0).unwrap();
        assert!(plan.pieces[0].location.segment > PACKED_FIRST);
    }
    flow.settle(&[]);
    assert_eq!(packed(dir.path(), ".seg"), [""; 0]);
    assert_eq!(packed(dir.path(), ".idx"), [""; 0]);
    assert_eq!(flow.counters().packed_segments.get(), 0);
}

#[test]
fn what_a_fast_consumer_leaves_is_not_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut flow = flow(real(dir.path()));
    for n in 0..30 {
        flow.publish(40, 1);
        // It lags two and a half segments behind: the middle of one is always finished, its end is not.
        let first = (n * 40u64).saturating_sub(78);
        flow.checkpoint_where(Arc::new(move |_, end| end.0 > first));
    }
    let counters = flow.counters();
    assert!(counters.segments_dropped.get() > 15);
    assert_eq!((counters.bytes_packed.get(), counters.segments_rewritten.get()), (0, 0));
}

/// Segments full of small runs of many queues, all needed.
fn mixed(disk: Arc<dyn Disk>) -> Flow {
    let mut flow = flow(disk);
    for n in 0..140u64 {
        let mut records = Vec::new();
        for queue in 1..=4 {
            let end = flow.ends.entry(QueueId(queue)).or_default();
            records.push(run_of(QueueId(queue), *end, 1, SIZE));
            *end += 1;
        }
        records.rotate_left(n as usize % 4);
        flow.harness.commit(records);
    }
    flow
}

const ALL: [QueueId; 4] = [QueueId(1), QueueId(2), QueueId(3), QueueId(4)];

#[test]
fn a_mixed_backlog_is_read_by_few_reads_after_its_merge() {
    let dir = tempfile::tempdir().unwrap();
    let mut flow = mixed(real(dir.path()));
    let reads = |flow: &Flow| {
        let traffic = &flow.counters().traffic;
        let before = traffic.reads();
        // What is in the first 15 segments.
        ALL.iter().for_each(|queue| assert_queue(&flow.harness, *queue, 105));
        traffic.reads() - before
    };
    let before = reads(&flow);
    flow.settle(&ALL);
    assert_eq!(flow.counters().segments_merged.get(), 16);
    reads(&flow);
    let after = reads(&flow);
    assert!(before >= 4 * 105 && 8 * after < before, "{before} reads before, {after} after");
    ALL.iter().for_each(|queue| flow.assert_holds(*queue));
    // Merged once: what comes of it is not merged again.
    flow.settle(&ALL);
    assert_eq!(flow.counters().segments_merged.get(), 16);
    let open = flow.harness.log.index().plan(ALL[1], &[Offset(0)], 0).unwrap();
    assert!(open.pieces[0].location.segment > PACKED_FIRST);
}

#[test]
fn a_merge_needs_much_free_space() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let switch = full.clone();
    let disk = HookDisk::over(dir.path(), move |operation, _| {
        let none = operation == Operation::Inspect && full.load(Ordering::Relaxed);
        if none { Verdict::Fail(io::ErrorKind::StorageFull) } else { Verdict::Go }
    });
    let mut flow = mixed(disk);
    flow.settle(&ALL);
    assert_eq!(flow.counters().bytes_packed.get(), 0);
    switch.store(false, Ordering::Relaxed);
    flow.publish(1, 1);
    flow.checkpoint(&ALL);
    assert_eq!(flow.counters().segments_merged.get(), 16);
    ALL.iter().for_each(|queue| flow.assert_holds(*queue));
}
