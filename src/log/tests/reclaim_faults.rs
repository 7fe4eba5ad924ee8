//! Rewriting that is stopped, has no space, or meets damage: what is needed stays.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::packed::PACKED_FIRST;
use super::super::*;
use super::crash::{CrashDisk, Unsynced};
use super::hook::{HookDisk, Verdict};
use super::reclaim::{QUEUES, SIZE, SLOW, assert_queue, flow, packed, real};
use super::support::*;
use crate::disk::{Disk, Operation};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if path.is_dir() {
            copy(&path, &to.join(name))
        } else {
            assert!(std::fs::copy(&path, to.join(name)).is_ok())
        }
    }
}

/// A log whose next checkpoint lets segments be rewritten.
fn ready(disk: Arc<dyn Disk>) -> BTreeMap<QueueId, u64> {
    let mut flow = flow(disk);
    flow.publish(150, QUEUES);
    flow.checkpoint(&[SLOW]);
    flow.publish(10, 1);
    flow.checkpoint(&[SLOW]);
    assert_eq!(flow.counters().bytes_packed.get(), 0, "it was not settled yet");
    flow.ends
}

/// Opens what [`ready`] made, and takes checkpoints until the log stops or nothing is left to do.
fn go_on(dir: &Path, disk: Arc<dyn Disk>, ends: &mut BTreeMap<QueueId, u64>) -> bool {
    go_on_for(6, dir, disk, ends).is_some()
}

/// The same for so many checkpoints; none if the log has stopped.
fn go_on_for(
    checkpoints: usize,
    dir: &Path,
    disk: Arc<dyn Disk>,
    ends: &mut BTreeMap<QueueId, u64>,
) -> Option<Harness> {
    let mut harness = try_open(disk, options()).ok()?;
    for _ in 0..checkpoints {
        let end = ends.get_mut(&QueueId(1)).unwrap();
        let ticket = harness.submit(vec![run_of(QueueId(1), *end, 1, SIZE)]);
        harness.wait(ticket).ok()?;
        *end += 1;
        let passes = harness.log.counters().reclaim_passes.get();
        let slow = Arc::new(|queue, _| queue == SLOW);
        assert!(harness.checkpoint_where(b"any", slow).ok()?);
        let start = Instant::now();
        while harness.log.counters().reclaim_passes.get() == passes && harness.log.failure().is_none() {
            assert!(start.elapsed() < Duration::from_secs(20), "reclaim ends: {}", dir.display());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    harness.log.failure().is_none().then_some(harness)
}

#[test]
fn a_stop_at_any_step_costs_nothing() {
    let made = tempfile::tempdir().unwrap();
    let ends = ready(real(made.path()));
    let mut steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        copy(made.path(), dir.path());
        let left = Arc::new(AtomicU64::new(steps));
        let halfway = steps % 2 == 0;
        let disk = HookDisk::over(dir.path(), move |_, path| {
            let counts =
                path.components().any(|part| part.as_os_str() == "packed") && !path.ends_with("RESERVE");
            // From the step on nothing works any more, as after a crash.
            let take = |left: u64| left.checked_sub(u64::from(counts));
            match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                Ok(0) if counts && halfway => Verdict::FailHalfway,
                Err(_) => Verdict::Fail(io::ErrorKind::Other),
                Ok(_) => Verdict::Go,
            }
        });
        let mut ends = ends.clone();
        let whole = go_on(dir.path(), disk, &mut ends);
        let again = open_dir(dir.path()).unwrap();
        assert_eq!(packed(dir.path(), ".tmp"), [""; 0], "step {steps}");
        assert_queue(&again, SLOW, ends[&SLOW]);
        let report = again.log.report();
        assert!(report.missing.is_empty() && report.set_aside.is_empty(), "step {steps}: {report:?}");
        drop(again);
        assert!(go_on(dir.path(), real(dir.path()), &mut ends), "step {steps}");
        assert!(!packed(dir.path(), ".seg").is_empty(), "step {steps}");
        assert_queue(&open_dir(dir.path()).unwrap(), SLOW, ends[&SLOW]);
        if whole {
            break;
        }
        steps += 1;
    }
    assert!(steps > 8, "{steps} steps");
}

#[test]
fn a_power_cut_at_any_step_costs_nothing() {
    let base = CrashDisk::default();
    let ends = ready(Arc::new(base.clone()));
    let whole = base.after_crash(Unsynced::Kept);
    let memory = Path::new("in memory");
    assert!(go_on(memory, Arc::new(whole.clone()), &mut ends.clone()));
    for operations in (0..whole.operations()).step_by(2) {
        let mut ends = ends.clone();
        let disk = base.after_crash(Unsynced::Kept);
        disk.fail_after(operations);
        go_on(memory, Arc::new(disk.clone()), &mut ends);
        let unsynced = [Unsynced::Lost, Unsynced::Kept, Unsynced::Either(operations)];
        let disk = disk.after_crash(unsynced[operations as usize / 2 % 3]);
        let again = try_open(Arc::new(disk.clone()), options()).unwrap();
        assert_queue(&again, SLOW, ends[&SLOW]);
        let report = again.log.report();
        assert!(report.missing.is_empty() && report.damage.is_empty(), "{operations}: {report:?}");
        // Indexes are being made again meanwhile.
        assert!(!disk.names("packed").iter().any(|name| name.ends_with(".seg.tmp")), "{operations}");
    }
}

#[test]
fn a_replacement_is_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let mut ends = ready(real(dir.path()));
    let mut harness = go_on_for(2, dir.path(), real(dir.path()), &mut ends).unwrap();
    let end = ends.get_mut(&QueueId(1)).unwrap();
    harness.commit(vec![run_of(QueueId(1), *end, 1, SIZE)]);
    *end += 1;
    // No checkpoint knows of it.
    drop(harness);
    let again = open_dir(dir.path()).unwrap();
    assert!(again.log.counters().packed_segments.get() > 0);
    let plan = again.log.index().plan(SLOW, &[Offset(0)], 0).unwrap();
    assert!(plan.pieces[0].location.segment > PACKED_FIRST);
    assert_queue(&again, SLOW, ends[&SLOW]);
    drop(again);
    assert!(go_on(dir.path(), real(dir.path()), &mut ends));
    assert_queue(&open_dir(dir.path()).unwrap(), SLOW, ends[&SLOW]);
}

#[test]
fn a_full_disk_is_waited_for_and_the_reserve_is_used() {
    let made = tempfile::tempdir().unwrap();
    let ends = ready(real(made.path()));
    for reserve_helps in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        copy(made.path(), dir.path());
        let reserve = dir.path().join("packed/RESERVE");
        std::fs::write(&reserve, vec![0; SEGMENT_BYTES as usize]).unwrap();
        let disk = HookDisk::over(dir.path(), move |operation, path| {
            let new =
                path.to_string_lossy().contains(".seg.tmp") && path.parent().unwrap().ends_with("packed");
            let fits = reserve_helps && !reserve.exists();
            if new && operation == Operation::Write && !fits {
                return Verdict::Fail(io::ErrorKind::StorageFull);
            }
            Verdict::Go
        });
        let mut now = ends.clone();
        assert!(go_on(dir.path(), disk, &mut now), "a full disk is no failure");
        assert_eq!(packed(dir.path(), ".seg").is_empty(), !reserve_helps);
        assert_eq!(packed(dir.path(), ".tmp"), [""; 0]);
        assert!(go_on(dir.path(), real(dir.path()), &mut now));
        assert!(!packed(dir.path(), ".seg").is_empty());
        assert_queue(&open_dir(dir.path()).unwrap(), SLOW, now[&SLOW]);
    }
}

#[test]
fn a_damaged_record_keeps_its_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut ends = ready(real(dir.path()));
    let harness = open_dir(dir.path()).unwrap();
    let hit = harness.log.index().plan(SLOW, &[Offset(2)], 0).unwrap().pieces[0].location;
    drop(harness);
    let path = dir.path().join(segment::path(hit.segment));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[hit.position as usize + hit.length as usize - 1] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(go_on(dir.path(), real(dir.path()), &mut ends));
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "it stays as it is");
    assert!(!packed(dir.path(), ".seg").is_empty(), "its neighbours go");
    let again = open_dir(dir.path()).unwrap();
    let reader = again.log.reader();
    for offset in 0..ends[&SLOW] {
        let plan = again.log.index().plan(SLOW, &[Offset(offset)], 0).unwrap();
        let read = reader.read(plan.pieces[0].location, plan.pieces[0].first, 1, u64::MAX).unwrap();
        assert_eq!(read.damaged.is_empty(), offset != 2, "{offset}");
    }
}

#[test]
fn the_index_of_a_packed_segment_is_made_again_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut ends = ready(real(dir.path()));
    assert!(go_on(dir.path(), real(dir.path()), &mut ends));
    let path = dir.path().join("packed").join(&packed(dir.path(), ".idx")[0]);
    let good = std::fs::read(&path).unwrap();
    let mut damaged = good.clone();
    damaged[5_000] ^= 1;
    for harm in [None, Some(damaged)] {
        match harm {
            None => std::fs::remove_file(&path).unwrap(),
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
        }
        let again = open_dir(dir.path()).unwrap();
        assert_queue(&again, SLOW, ends[&SLOW]);
        assert!(again.log.counters().index_rebuilds.get() >= 1);
        let index = again.log.index();
        again.log.close().unwrap();
        index.write_sealed().unwrap();
        assert!(std::fs::read(&path).unwrap() == good);
    }
}

#[test]
fn a_missing_packed_segment_is_reported_and_a_strange_one_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let mut ends = ready(real(dir.path()));
    assert!(go_on(dir.path(), real(dir.path()), &mut ends));
    let name = packed(dir.path(), ".seg").remove(0);
    let path = dir.path().join("packed").join(&name);
    let strange = dir.path().join(format!("packed/{:020}.seg", PACKED_FIRST.0 + 900));
    std::fs::rename(&path, &strange).unwrap();
    let again = open_dir(dir.path()).unwrap();
    let report = again.log.report();
    assert_eq!(report.missing, [SegmentNumber(name.trim_end_matches(".seg").parse().unwrap())]);
    assert_eq!(report.set_aside.len(), 1);
    assert!(!strange.exists() && report.set_aside[0].exists());
    drop(again);
    // Its number is none of the log's, though it lies in quarantine now.
    let there = packed(dir.path(), ".seg");
    let mut again = open_dir(dir.path()).unwrap();
    let (begun, end) = (again.log.report().segments, ends[&QueueId(1)]);
    for offset in end..end + 4 * SEGMENT_BYTES / SIZE as u64 {
        again.commit(vec![run_of(QueueId(1), offset, 1, SIZE)]);
    }
    drop(again);
    assert!(open_dir(dir.path()).unwrap().log.report().segments > begun, "segments were begun");
    assert_eq!(packed(dir.path(), ".seg"), there, "none of them as packed ones");
}
