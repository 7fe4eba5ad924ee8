//! What the log does in the background.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::index::INDEX_RUNS_MAX;

use super::super::*;
use super::hook::{HookDisk, Verdict};
use super::support::*;
use crate::disk::{Disk, DiskError, Operation, RealDisk};
use crate::host::RealHost;

const SIZE: usize = 30_000;
const COUNT: u64 = 60;

/// The numbers of the files in `log/` with this ending, in order.
fn numbers(dir: &Path, ending: &str) -> Vec<u64> {
    let names =
        std::fs::read_dir(dir.join("log")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut numbers: Vec<u64> = names.filter_map(|name| name.strip_suffix(ending)?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// A disk on which the writing of index files fails as `fails` says.
fn index_fails(dir: &Path, fails: impl Fn() -> Verdict + Send + Sync + 'static) -> Arc<dyn Disk> {
    HookDisk::over(dir, move |operation, path| match operation {
        Operation::Write if path.to_string_lossy().ends_with(".idx.tmp") => fails(),
        _ => Verdict::Go,
    })
}

#[test]
fn every_sealed_segment_gets_its_index_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, COUNT, SIZE);
    let open = harness.find(COUNT - 1).unwrap().0.segment.0;
    let index = harness.log.index();
    let counters = harness.log.counters();
    harness.log.close().unwrap();
    assert_eq!(numbers(dir.path(), ".idx"), (1..open).collect::<Vec<_>>());
    assert!(open > 5);
    assert_eq!(index.open_runs(), (0..COUNT).filter(|offset| segment_of(&index, *offset) == open).count());
    assert_eq!(counters.index_rebuilds.get(), 0);

    std::fs::remove_file(dir.path().join("log/00000000000000000002.idx")).unwrap();
    let unfinished = dir.path().join("log/00000000000000000009.idx.tmp");
    std::fs::write(&unfinished, b"x").unwrap();
    let again = open_dir(dir.path()).unwrap();
    again.assert_holds(COUNT, SIZE);
    assert!(!unfinished.exists());
    again.log.close().unwrap();
    assert_eq!(numbers(dir.path(), ".idx"), (1..open).collect::<Vec<_>>());
}

fn segment_of(index: &Index, offset: u64) -> u64 {
    index.plan(QUEUE, &[Offset(offset)], 0).unwrap().pieces[0].location.segment.0
}

#[test]
fn index_files_wait_for_space_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let fails = full.clone();
    let disk = index_fails(dir.path(), move || match fails.load(Ordering::Relaxed) {
        true => Verdict::Fail(io::ErrorKind::StorageFull),
        false => Verdict::Go,
    });
    let mut harness = try_open(disk, options()).unwrap();
    harness.publish(0, 30, SIZE);
    harness.assert_holds(30, SIZE);
    assert!(numbers(dir.path(), ".idx").is_empty());
    full.store(false, Ordering::Relaxed);
    harness.publish(30, COUNT, SIZE);
    let open = harness.find(COUNT - 1).unwrap().0.segment.0;
    harness.log.close().unwrap();
    assert_eq!(numbers(dir.path(), ".idx"), (1..open).collect::<Vec<_>>());
}

#[test]
fn an_index_file_that_cannot_be_written_stops_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let disk = index_fails(dir.path(), || Verdict::Fail(io::ErrorKind::Other));
    let mut harness = try_open(disk, options()).unwrap();
    let mut committed = 0;
    let error = loop {
        let ticket = harness.submit(vec![run(committed, 1, SIZE)]);
        match harness.wait(ticket) {
            Ok(_) => committed += 1,
            Err(error) => break error,
        }
        assert!(committed < 10_000, "the log stops");
    };
    assert!(matches!(&error, LogError::Disk(DiskError::Io { operation: Operation::Write, .. })), "{error}");
    assert_eq!(harness.log.failure().unwrap().to_string(), error.to_string());
    assert!(harness.log.close().is_err());
    open_dir(dir.path()).unwrap().assert_holds(committed, SIZE);
}

#[test]
fn a_failure_behind_the_last_batch_is_told_by_closing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = index_fails(dir.path(), || Verdict::Fail(io::ErrorKind::Other));
    let mut harness = try_open(disk, options()).unwrap();
    let last = (0..20).map(|offset| harness.submit(vec![run(offset, 1, SIZE)])).last().unwrap();
    // Whether the batches were faster or not.
    let _ = harness.wait(last);
    assert!(harness.log.close().is_err());
    // Also when the writer has ended, and cannot take the failure up any more.
    let inbox = Inbox::new(Arc::new(RealHost));
    inbox.stop(LogError::Panicked);
    assert!(matches!(inbox.failure(), Some(LogError::Panicked)));
}

#[test]
fn a_segment_is_sealed_at_its_most_runs() {
    const RUNS: u64 = 16 << 10;
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new(dir.path()));
    let mut harness = try_open(disk, LogOptions { segment_bytes: 64 << 20, ..options() }).unwrap();
    let batches = INDEX_RUNS_MAX as u64 / RUNS + 2;
    let mut segments = Vec::new();
    for batch in 0..batches {
        // It waits for the next file only when it is full, not for the sake of its runs.
        while harness.log.counters().segments.get() < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let runs = (batch * RUNS..(batch + 1) * RUNS).map(|offset| run(offset, 1, 8)).collect();
        segments.extend(harness.commit(runs).iter().map(|placed| placed.location.segment.0));
    }
    let first = segments.iter().filter(|segment| **segment == 1).count();
    assert_eq!((first, segments.len()), (INDEX_RUNS_MAX, INDEX_RUNS_MAX + 2 * RUNS as usize));
    assert_eq!(segments.last(), Some(&2));
    assert_eq!(harness.log.index().open_runs(), 2 * RUNS as usize);
}
