//! Disks that fail, and what is left.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

use super::super::*;
use super::hook::{HookDisk, Verdict};
use super::support::*;
use crate::disk::{DiskError, Operation};

const BATCHES: u64 = 14;
const SIZE: usize = 50_000;

/// Runs the trace on a disk whose operation number `n` fails, and maybe all after it; batches committed, and
/// whether operation `n` was reached.
fn trace(dir: &Path, n: u64, verdict: Verdict, for_good: bool) -> (u64, bool) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let disk = HookDisk::over(dir, move |_, _| {
        let now = counted.fetch_add(1, Ordering::Relaxed);
        if now == n || for_good && now > n { verdict } else { Verdict::Go }
    });
    let mut committed = 0;
    if let Ok(mut harness) = try_open(disk, options()) {
        for offset in 0..BATCHES {
            let ticket = harness.submit(vec![run(offset, 1, SIZE)]);
            if harness.wait(ticket).is_err() {
                assert!(harness.log.failure().is_some());
                // Whatever comes later is dropped, and nothing is reported any more.
                harness.submit(vec![run(offset, 1, SIZE)]);
                break;
            }
            committed += 1;
        }
        // The failure, if there was one, is what the test is about.
        let _ = harness.log.close();
        let late = harness.events.try_iter().filter(|event| matches!(event, LogEvent::Committed { .. }));
        assert_eq!(late.count(), 0, "operation {n}");
    }
    (committed, count.load(Ordering::Relaxed) > n)
}

/// Fails each operation of the trace in turn; each time, what is found later is a prefix with all that was committed.
fn sweep(verdict: Verdict, for_good: bool) {
    let mut failures_with_commits = 0;
    for n in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let (committed, reached) = trace(dir.path(), n, verdict, for_good);
        let mut harness = open_dir(dir.path()).unwrap_or_else(|error| panic!("operation {n}: {error}"));
        let found = harness.replayed.len() as u64;
        assert!((committed..=committed + 1).contains(&found), "operation {n}: {committed} became {found}");
        harness.assert_holds(found, SIZE);
        harness.publish(found, found + 6, SIZE);
        drop(harness);
        open_dir(dir.path()).unwrap().assert_holds(found + 6, SIZE);
        if !reached {
            assert_eq!(committed, BATCHES);
            break;
        }
        failures_with_commits += u64::from((1..BATCHES).contains(&committed));
    }
    assert!(failures_with_commits > 20, "{failures_with_commits}");
}

/// The space of a segment is reserved: that there is none means that nothing of the frame can be relied on.
#[test]
fn a_commit_that_finds_no_space_stops_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let switch = full.clone();
    let disk = HookDisk::over(dir.path(), move |operation, _| {
        let refused = operation == Operation::Write && full.load(Ordering::Relaxed);
        if refused { Verdict::Fail(io::ErrorKind::StorageFull) } else { Verdict::Go }
    });
    let mut harness = try_open(disk, options()).unwrap();
    harness.publish(0, 2, SIZE);
    switch.store(true, Ordering::Relaxed);
    let ticket = harness.submit(vec![run(2, 1, SIZE)]);
    assert!(harness.wait(ticket).is_err());
    assert!(harness.log.failure().is_some_and(|failure| failure.is_no_space()));
    drop(harness);
    open_dir(dir.path()).unwrap().assert_holds(2, SIZE);
}

#[test]
fn any_one_operation_may_fail() {
    sweep(Verdict::Fail(io::ErrorKind::Other), false);
}

#[test]
fn any_one_operation_may_fail_halfway() {
    sweep(Verdict::FailHalfway, false);
}

#[test]
fn the_disk_may_go_away_at_any_operation() {
    sweep(Verdict::Fail(io::ErrorKind::Other), true);
}

#[test]
fn the_first_failure_is_kept_and_nothing_is_written_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let failed_at = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let (counted, writes_after) = (syncs.clone(), failed_at.clone());
    let open = Arc::new(AtomicBool::new(false));
    let is_open = open.clone();
    let disk = HookDisk::over(dir.path(), move |operation, path| {
        if !is_first(path) || !is_open.load(Ordering::Relaxed) {
            return Verdict::Go;
        }
        let failed = counted.load(Ordering::Relaxed) >= 3;
        if failed {
            *writes_after.lock().unwrap().entry(operation.to_string()).or_default() += 1;
        }
        if operation == Operation::Sync && counted.fetch_add(1, Ordering::Relaxed) == 2 {
            return Verdict::Fail(io::ErrorKind::Interrupted);
        }
        Verdict::Go
    });
    let mut harness = try_open(disk, options()).unwrap();
    open.store(true, Ordering::Relaxed);
    let ticket = (0..9).map(|offset| harness.submit(vec![run(offset, 1, 100)])).last().unwrap();
    // Another batch each time, until a sync fails: one per frame.
    let mut error = harness.wait(ticket).err();
    for offset in 9..100 {
        if error.is_some() {
            break;
        }
        let ticket = harness.submit(vec![run(offset, 1, 100)]);
        error = harness.wait(ticket).err();
    }
    assert!(matches!(&error, Some(LogError::Disk(DiskError::Io { operation: Operation::Sync, .. }))));
    assert_eq!(harness.log.failure().unwrap().to_string(), error.unwrap().to_string());
    let message = body(500, 20_000);
    let mut late = run(500, 1, 8);
    if let crate::record::Body::Run(run) = &mut late.body {
        run.messages[0].body = message.clone();
    }
    harness.submit(vec![late]);
    assert!(message.is_unique(), "what comes after the failure is dropped");
    assert!(harness.log.close().is_err(), "closing tells of the failure");
    assert_eq!(*failed_at.lock().unwrap(), BTreeMap::new());
    assert!(harness.events.try_iter().next().is_none(), "nothing is reported after the failure");
}

#[test]
fn a_disk_that_stays_full_loses_nothing_and_lets_the_log_end() {
    let dir = tempfile::tempdir().unwrap();
    let disk = HookDisk::over(dir.path(), |operation, path| {
        let first = is_first(path);
        match operation {
            Operation::Allocate if !first => Verdict::Fail(io::ErrorKind::StorageFull),
            _ => Verdict::Go,
        }
    });
    let mut harness = try_open(disk, options()).unwrap();
    harness.publish(0, 7, 30_000);
    // It does not fit, whatever the log has said of its room, and so it waits for space.
    harness.submit(vec![run(7, 1, 30_000)]);
    let error = harness.log.close().unwrap_err();
    assert!(error.is_no_space(), "{error}");
    let left: Vec<String> =
        std::fs::read_dir(dir.path().join("log")).unwrap().map(|e| name(&e.unwrap().path())).collect();
    assert_eq!(left, ["00000000000000000001.seg"], "a file that could not be made is unlinked");
    open_dir(dir.path()).unwrap().assert_holds(7, 30_000);
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[derive(Default)]
struct Gate {
    closed: Mutex<(bool, bool)>,
    changed: Condvar,
}

#[test]
fn what_comes_during_a_sync_shares_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let inner = gate.clone();
    let disk = HookDisk::over(dir.path(), move |operation, path| {
        if operation == Operation::Sync && is_first(path) {
            let mut state = inner.closed.lock().unwrap();
            state.1 = state.0;
            inner.changed.notify_all();
            while state.0 {
                state = inner.changed.wait(state).unwrap();
            }
        }
        Verdict::Go
    });
    let mut harness = try_open(disk, options()).unwrap();
    harness.commit(vec![run(0, 1, 100)]);
    let before = harness.log.counters().frames.get();
    gate.closed.lock().unwrap().0 = true;
    harness.submit(vec![run(1, 1, 100)]);
    let mut state = gate.closed.lock().unwrap();
    while !state.1 {
        state = gate.changed.wait(state).unwrap();
    }
    drop(state);
    let last = (2..66).map(|offset| harness.submit(vec![run(offset, 1, 100)])).last().unwrap();
    gate.closed.lock().unwrap().0 = false;
    gate.changed.notify_all();
    let placed = harness.wait(last).unwrap();
    assert_eq!(placed.len(), 65);
    let counters = harness.log.counters();
    // The one that was held, the one with the rest, and maybe a listing and an empty one.
    assert!(counters.frames.get() - before <= 4, "{} frames", counters.frames.get() - before);
    assert_eq!(counters.frames.get(), counters.syncs.get());
    harness.assert_holds(66, 100);
}

/// Whether a path is that of the first segment, also while it was prepared.
fn is_first(path: &Path) -> bool {
    path.to_string_lossy().contains("00000000000000000001.seg")
}

#[test]
fn opening_makes_the_last_frame_firm_before_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, 3, 100);
    harness.log.close().unwrap();
    let done = Arc::new(Mutex::new(Vec::new()));
    let seen = done.clone();
    let disk = HookDisk::over(dir.path(), move |operation, path| {
        if is_first(path) {
            seen.lock().unwrap().push(operation);
        }
        Verdict::Go
    });
    let harness = try_open(disk, options()).unwrap();
    let first = done.lock().unwrap()[..4].to_vec();
    assert_eq!(first, [Operation::Write, Operation::Sync, Operation::Write, Operation::Sync]);
    harness.assert_holds(3, 100);
}
