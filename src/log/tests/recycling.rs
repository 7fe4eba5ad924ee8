//! Files of segments that have left become those of new ones, a few of them wait, and nobody reads what was not his.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use super::super::counters::LogCounters;
use super::super::spare::SpareMaker;
use super::super::supply::{PIECE_BYTES, Step, Supply};
use super::super::tail::Blanks as _;
use super::super::*;
use super::crash::CrashDisk;
use super::hook::{HookDisk, Verdict};
use super::support::*;
use crate::disk::Operation;

/// Six messages of this size fill a segment.
pub const SIZE: usize = 40_000;

/// Publishes single messages, with a checkpoint behind every fifth, in which none before is needed.
pub fn flow(harness: &mut Harness, offsets: Range<u64>) {
    for offset in offsets {
        harness.publish(offset, offset + 1, SIZE);
        if offset % 5 == 4 {
            assert!(harness.checkpoint(b"any", offset + 1).unwrap());
        }
    }
}

fn names(dir: &Path, ending: &str) -> usize {
    let entries = std::fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == ending)).count()
}

#[test]
fn a_steady_flow_fills_a_handful_of_files_with_zeroes() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    flow(&mut harness, 0..300);
    let counters = harness.log.counters();
    let (created, recycled) = (counters.segments_created.get(), counters.segments_recycled.get());
    assert!((3..=9).contains(&created) && recycled >= 40, "{created} created, {recycled} recycled");
    let filled = counters.zero_filled_bytes.get();
    assert!((1..=created * SEGMENT_BYTES).contains(&filled), "{filled} bytes of {created} files");
    assert!(names(dir.path(), "seg") + names(dir.path(), "free") <= created as usize);
    harness.log.close().unwrap();
    let waiting = names(dir.path(), "free");
    assert!(waiting > 0);
    let mut harness = open_dir(dir.path()).unwrap();
    let counters = harness.log.counters();
    // More than the segments that are ready take.
    harness.publish(300, 320, SIZE);
    assert!(counters.segments_recycled.get() >= 1, "what the last run has left is taken up");
    flow(&mut harness, 320..350);
    assert!(counters.segments_recycled.get() >= 5);
    assert_eq!(harness.log.report().torn, []);
    assert_eq!(harness.log.report().set_aside, Vec::<PathBuf>::new());
}

/// The size of the newest checkpoint.
fn checkpoint_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir.join("checkpoint")).unwrap().map(|entry| entry.unwrap().path());
    let newest =
        entries.filter(|path| path.extension().is_some_and(|ending| ending == "ckpt")).max().unwrap();
    newest.metadata().unwrap().len()
}

#[test]
fn nothing_is_kept_of_segments_that_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    flow(&mut harness, 0..100);
    let (before, gone) = (checkpoint_bytes(dir.path()), harness.log.counters().segments_dropped.get());
    flow(&mut harness, 100..300);
    let gone = harness.log.counters().segments_dropped.get() - gone;
    assert!(gone >= 30, "{gone}");
    // The set has a few segments more or fewer, 16 bytes each.
    let after = checkpoint_bytes(dir.path());
    assert!(after <= before + 8 * 16, "{after} bytes, {before} before {gone} segments went");
    harness.log.close().unwrap();
    let (indexes, segments) = (names(dir.path(), "idx"), names(dir.path(), "seg"));
    assert!(indexes <= segments, "{indexes} index files of {segments} segments");
}

#[test]
fn space_of_a_backlog_that_is_gone_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, 180, SIZE);
    assert!(names(dir.path(), "seg") >= 30);
    flow(&mut harness, 180..200);
    assert!((1..=8).contains(&names(dir.path(), "free")), "{}", names(dir.path(), "free"));
    flow(&mut harness, 200..260);
    assert!(names(dir.path(), "free") <= 3, "{}", names(dir.path(), "free"));
    assert!(names(dir.path(), "seg") <= 8, "{}", names(dir.path(), "seg"));
}

#[test]
fn files_of_another_length_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    flow(&mut harness, 0..60);
    harness.log.close().unwrap();
    assert!(names(dir.path(), "free") > 0);
    let disk = Arc::new(crate::disk::RealDisk::new(dir.path()));
    let larger = LogOptions { segment_bytes: 2 * SEGMENT_BYTES, ..options() };
    let mut harness = try_open(disk, larger).unwrap();
    harness.publish(60, 90, SIZE);
    assert_eq!((harness.log.counters().segments_recycled.get(), names(dir.path(), "free")), (0, 0));
    (60..90).for_each(|offset| harness.assert_has(offset, SIZE));
}

#[test]
fn a_full_disk_that_refuses_a_checkpoint_gets_the_files_that_wait() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let switch = full.clone();
    let disk = HookDisk::over(dir.path(), move |operation, path| {
        let new = operation == Operation::Write && path.to_string_lossy().contains(".ckpt");
        let refused = new && full.load(Ordering::Relaxed);
        if refused { Verdict::Fail(std::io::ErrorKind::StorageFull) } else { Verdict::Go }
    });
    let mut harness = try_open(disk, options()).unwrap();
    flow(&mut harness, 0..60);
    assert!(names(dir.path(), "free") > 0);
    switch.store(true, Ordering::Relaxed);
    assert!(!harness.checkpoint(b"any", 60).unwrap());
    assert_eq!(names(dir.path(), "free"), 0);
    switch.store(false, Ordering::Relaxed);
    flow(&mut harness, 60..100);
}

#[derive(Default)]
struct Gate {
    /// Whether it is closed, and whether somebody stands before it.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| state.0).unwrap());
    }
}

#[test]
fn a_file_that_is_being_read_is_not_written_over() {
    const READER: &str = "held-reader";
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate { state: Mutex::new((true, false)), changed: Condvar::new() });
    let inner = gate.clone();
    let disk = HookDisk::with_reads(dir.path(), move |operation, _| {
        if operation == Operation::Read && std::thread::current().name() == Some(READER) {
            inner.pass();
        }
        Verdict::Go
    });
    let mut harness = try_open(disk, options()).unwrap();
    let location = harness.commit(vec![run(0, 1, SIZE)])[0].location;
    let reader = harness.log.reader();
    let read = std::thread::Builder::new().name(READER.to_owned());
    let read = read.spawn(move || reader.read(location, 0, 1, u64::MAX)).unwrap();
    drop(gate.changed.wait_while(gate.state.lock().unwrap(), |state| !state.1).unwrap());
    flow(&mut harness, 1..90);
    assert!(harness.log.counters().segments_recycled.get() >= 8);
    gate.state.lock().unwrap().0 = false;
    gate.changed.notify_all();
    let read = read.join().unwrap().unwrap();
    assert_eq!((read.damaged.len(), &read.messages[0].body), (0, &body(0, SIZE)));
}

/// A power cut may bring back a name whose loss was not synced: then the segment must be there as it was.
#[test]
fn a_file_is_written_over_only_when_its_old_name_is_gone_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (came_back, written) = (Arc::new(Mutex::new(HashSet::new())), Arc::new(Mutex::new(Vec::new())));
    let (names, writes) = (came_back.clone(), written.clone());
    let disk = HookDisk::over(dir.path(), move |operation, path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match (operation, extension) {
            (Operation::Rename, Some("seg")) => {
                names.lock().unwrap().insert(path.with_extension("free"));
            }
            (Operation::SyncDir, _) if path.ends_with("log") => names.lock().unwrap().clear(),
            (Operation::Write, Some("free")) => {
                writes.lock().unwrap().push(names.lock().unwrap().contains(path));
            }
            _ => {}
        }
        Verdict::Go
    });
    let mut harness = try_open(disk, options()).unwrap();
    flow(&mut harness, 0..120);
    harness.log.close().unwrap();
    let written = written.lock().unwrap();
    assert!(written.len() >= 10, "{} files were used again", written.len());
    assert!(written.iter().all(|early| !early), "{written:?}");
}

/// A maker of files of 16 MiB on a disk that has no space for the first `full` of them, and what it counts: syncs.
fn spares(dir: &Path, full: usize) -> (SpareMaker, Arc<LogCounters>, Arc<AtomicUsize>) {
    let syncs = Arc::new(AtomicUsize::new(0));
    let (seen, refused) = (syncs.clone(), AtomicUsize::new(0));
    let disk = HookDisk::over(dir, move |operation, _| {
        seen.fetch_add(usize::from(operation == Operation::Sync), Ordering::Relaxed);
        match operation {
            Operation::Allocate if refused.fetch_add(1, Ordering::Relaxed) < full => {
                Verdict::Fail(ErrorKind::StorageFull)
            }
            _ => Verdict::Go,
        }
    });
    disk.create_dir("log").unwrap();
    let counters = Arc::new(LogCounters::default());
    let supply = Arc::new(Supply::new(disk, 16 << 20, counters.clone()));
    let host = crate::host::RealHost;
    (SpareMaker::start(supply, Box::new(|| {}), Box::new(|| {}), &host).unwrap(), counters, syncs)
}

fn until_ready(spares: &mut SpareMaker) {
    while spares.ready().unwrap().is_none() {
        spares.retry();
        std::thread::yield_now();
    }
}

#[test]
fn a_file_that_has_time_is_filled_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spares, counters, syncs) = spares(dir.path(), 0);
    spares.want(SegmentNumber(1));
    until_ready(&mut spares);
    assert_eq!(syncs.swap(0, Ordering::Relaxed), 64, "256 KiB each");
    spares.want(SegmentNumber(2));
    while counters.zero_filled_bytes.get() == 16 << 20 {
        std::thread::yield_now();
    }
    // Small commits, however many.
    counters.syncs.add(1 << 20);
    counters.bytes_written.add(4 << 30);
    until_ready(&mut spares);
    assert_eq!(syncs.load(Ordering::Relaxed), 64);
    assert_eq!(counters.zero_filled_bytes.get(), 32 << 20);
}

#[test]
fn who_waits_gets_a_file_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spares, counters, _) = spares(dir.path(), 0);
    spares.want(SegmentNumber(1));
    let blank = spares.wait().unwrap();
    assert_eq!(blank.file.length().unwrap(), 16 << 20);
    let filled = counters.zero_filled_bytes.get();
    assert!(filled < 16 << 20, "{filled}");
}

#[test]
fn for_large_commits_little_is_filled() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spares, counters, syncs) = spares(dir.path(), 0);
    spares.want(SegmentNumber(1));
    while counters.zero_filled_bytes.get() == 0 {
        std::thread::yield_now();
    }
    counters.syncs.add(10);
    counters.bytes_written.add(10 << 20);
    until_ready(&mut spares);
    let pieces = syncs.load(Ordering::Relaxed);
    assert!(pieces < 64, "{pieces}");
}

#[test]
fn files_that_a_full_disk_lacked_are_there_as_soon_as_it_has_space() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spares, _, syncs) = spares(dir.path(), 1);
    spares.want(SegmentNumber(1));
    while !spares.starved() {
        std::thread::yield_now();
    }
    until_ready(&mut spares);
    spares.want(SegmentNumber(2));
    until_ready(&mut spares);
    assert_eq!(syncs.swap(0, Ordering::Relaxed), 2, "one piece each");
    spares.want(SegmentNumber(3));
    until_ready(&mut spares);
    assert_eq!(syncs.load(Ordering::Relaxed), 64, "there is time again");
}

#[test]
fn where_no_space_can_be_reserved_every_file_is_filled() {
    let (disk, counters) = (CrashDisk::default(), Arc::new(LogCounters::default()));
    let supply = Supply::new(Arc::new(disk.clone()), 1 << 20, counters.clone());
    supply.prepare(SegmentNumber(1), &|_| Step::Enough).unwrap();
    assert_eq!(counters.zero_filled_bytes.get(), PIECE_BYTES);
    disk.reserve_nothing();
    supply.prepare(SegmentNumber(2), &|_| Step::Enough).unwrap();
    assert_eq!(counters.zero_filled_bytes.get(), PIECE_BYTES + (1 << 20));
}
